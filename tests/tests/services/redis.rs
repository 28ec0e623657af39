//! Redis under faults, by its own client: it behaves as its documentation says, and is well again afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use orbit::{Network, Sandbox, SandboxBuilder, Status, Wait};
use orbit_tests::{Case, Context, Who, images};
use redis::{Commands as _, Connection, RedisError, RedisResult};

use crate::support::{case, has, until};

const PORT: u16 = 6379;

/// What a client waits for an answer that does not come.
const SHORT: Duration = Duration::from_millis(200);

pub(crate) fn cases() -> Vec<Case> {
    let several = |name, run| case(name, run).who(Who::RANGED);
    vec![
        several("redis::a_pause_loses_nothing", a_pause_loses_nothing),
        several(
            "redis::a_partition_parts_a_replica",
            a_partition_parts_a_replica,
        ),
        several(
            "redis::without_memory_it_refuses_writes_or_evicts",
            without_memory_it_refuses_writes_or_evicts,
        ),
        several(
            "redis::a_full_disk_stops_writes_until_a_save_succeeds",
            a_full_disk_stops_writes,
        ),
        several(
            "redis::a_full_disk_stops_its_log_of_writes",
            a_full_disk_stops_its_log,
        ),
        several(
            "redis::a_read_only_disk_stops_writes_until_a_save_succeeds",
            a_read_only_disk_stops_writes,
        ),
        several(
            "redis::what_it_logged_survives_a_kill",
            what_it_logged_survives_a_kill,
        ),
        case("redis::one_id_is_not_enough", one_id_is_not_enough).who(&[Who::Single]),
    ]
}

fn image() -> Result<SandboxBuilder> {
    Ok(Sandbox::builder()
        .image(&images::reference("redis")?)
        .expose(PORT)
        .wait_for(Wait::port(PORT))
        .wait_for(Wait::log("Ready to accept connections")))
}

/// Started with these options more.
fn start(options: &[&str]) -> Result<Sandbox> {
    Ok(image()?.args(options.iter().copied()).start()?)
}

fn client(redis: &Sandbox) -> Result<Connection> {
    let client = redis::Client::open(format!("redis://{}", redis.addr(PORT)))?;
    let connection = client.get_connection_with_timeout(Duration::from_secs(5))?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(connection)
}

/// The field `name` of what `INFO` tells.
fn info(connection: &mut Connection, name: &str) -> Result<String> {
    let all: String = redis::cmd("INFO").query(connection)?;
    let line = all
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line
        .with_context(|| format!("no {name} in {all}"))?
        .to_owned())
}

fn set_config(connection: &mut Connection, name: &str, value: &str) -> Result<()> {
    Ok(redis::cmd("CONFIG")
        .arg(&["SET", name, value])
        .exec(connection)?)
}

/// The error that a command ended with.
fn refused<T>(answer: RedisResult<T>, code: &str) -> Result<RedisError> {
    let error = answer.err().with_context(|| format!("no {code}"))?;
    ensure!(
        error.code() == Some(code),
        "{error}, where {code} was expected"
    );
    Ok(error)
}

/// Saves to the disk in the background, and says how that ended.
fn save(connection: &mut Connection) -> Result<String> {
    redis::cmd("BGSAVE").exec(connection)?;
    until("it has saved", || {
        Ok(info(connection, "rdb_bgsave_in_progress")? == "0")
    })?;
    info(connection, "rdb_last_bgsave_status")
}

fn a_pause_loses_nothing(_: &Context) -> Result<()> {
    let redis = start(&[])?;
    let mut steady = client(&redis)?;
    let mut hasty = client(&redis)?;
    hasty.set_read_timeout(Some(SHORT))?;
    let mut number: u32 = steady.incr("number", 1)?;
    for round in 0..3 {
        redis.pause()?;
        let asked = Instant::now();
        let error = hasty
            .incr::<_, _, u32>("number", 1)
            .err()
            .context("it answered")?;
        ensure!(error.is_timeout() && asked.elapsed() >= SHORT, "{error}");
        let waiting = std::thread::spawn(move || {
            let answer = steady.incr::<_, _, u32>("number", 1);
            (answer, steady)
        });
        std::thread::sleep(SHORT);
        ensure!(!waiting.is_finished(), "it answered while it was paused");
        redis.unpause()?;
        let (answer, connection) = waiting.join().expect("no panic");
        steady = connection;
        // Whoever waited has an answer, and what a client sent that did not wait was done too: before it or after it.
        number += 2;
        let answer = answer?;
        ensure!(
            answer == number || answer == number - 1,
            "round {round}: {answer}, not {number}"
        );
        until("both were done", || {
            Ok(steady.get::<_, u32>("number")? == number)
        })?;
        // A connection that was given up is not used again: its next answer would be the late one.
        hasty = client(&redis)?;
        hasty.set_read_timeout(Some(SHORT))?;
        ensure!(hasty.get::<_, u32>("number")? == number);
    }
    Ok(())
}

fn a_partition_parts_a_replica(_: &Context) -> Result<()> {
    let network = Network::builder().create()?;
    let primary = image()?
        .network(&network)
        .network_alias("primary")
        .args(["--repl-ping-replica-period", "1", "--repl-timeout", "2"])
        .start()?;
    let replica = image()?
        .network(&network)
        .args(["--replicaof", "primary", "6379", "--repl-timeout", "2"])
        .start()?;
    let (mut writer, mut reader) = (client(&primary)?, client(&replica)?);
    let acknowledged = |writer: &mut Connection| -> Result<u32> {
        Ok(redis::cmd("WAIT").arg(&[1, 300]).query(writer)?)
    };
    let link = |reader: &mut Connection| info(reader, "master_link_status");
    until("the replica has its primary", || {
        Ok(link(&mut reader)? == "up")
    })?;
    for round in 0..2 {
        writer.set::<_, _, ()>("key", round)?;
        until("the replica acknowledges", || {
            Ok(acknowledged(&mut writer)? == 1)
        })?;
        ensure!(reader.get::<_, i32>("key")? == round);

        network.partition(&primary, &replica)?;
        writer.set::<_, _, ()>("key", -1)?;
        ensure!(
            acknowledged(&mut writer)? == 0,
            "a parted replica acknowledged"
        );
        until("the replica misses its primary", || {
            Ok(link(&mut reader)? == "down")
        })?;
        // It serves what it had, and takes no writes of its own.
        ensure!(reader.get::<_, i32>("key")? == round);
        refused(reader.set::<_, _, ()>("key", 7), "READONLY")?;

        network.heal()?;
        until("the replica has its primary again", || {
            Ok(link(&mut reader)? == "up")
        })?;
        until("the replica caught up", || {
            Ok(reader.get::<_, i32>("key")? == -1)
        })?;
    }
    Ok(())
}

fn without_memory_it_refuses_writes_or_evicts(_: &Context) -> Result<()> {
    let redis = start(&[])?;
    let mut client = client(&redis)?;
    let used: u64 = info(&mut client, "used_memory")?.trim().parse()?;
    let page = vec![b'x'; 64 << 10];
    client.set::<_, _, ()>("kept", "value")?;
    set_config(&mut client, "maxmemory-policy", "noeviction")?;
    set_config(&mut client, "maxmemory", &(used + (2 << 20)).to_string())?;
    let mut written = 0;
    let error = loop {
        ensure!(written < 1000, "nothing bounds it");
        match client.set::<_, _, ()>(format!("page {written}"), &page) {
            Ok(()) => written += 1,
            error => break refused(error, "OOM")?,
        }
    };
    has(&error.to_string(), &["maxmemory"])?;
    ensure!(written > 8, "only {written} pages of 64 KiB fit into 2 MiB");
    // What it has can be read and removed, which makes room.
    ensure!(client.get::<_, String>("kept")? == "value");
    for page in 0..4 {
        client.del::<_, ()>(format!("page {page}"))?;
    }
    client.set::<_, _, ()>("again", "there is room")?;
    // Where it may evict, nothing is refused, and something is gone.
    set_config(&mut client, "maxmemory-policy", "allkeys-lru")?;
    for more in 0..100 {
        client.set::<_, _, ()>(format!("more {more}"), &page)?;
    }
    let evicted: u32 = info(&mut client, "evicted_keys")?.trim().parse()?;
    ensure!(
        evicted > 0 && redis::cmd("DBSIZE").query::<u32>(&mut client)? < 100,
        "{evicted} evicted"
    );
    println!("{written} pages of 64 KiB fit into 2 MiB, then {evicted} keys were evicted");
    Ok(())
}

/// With points in time at which it saves; else a save that failed would stop nothing.
const SAVES: [&str; 4] = ["--save", "3600 1", "--stop-writes-on-bgsave-error", "yes"];

fn a_full_disk_stops_writes(_: &Context) -> Result<()> {
    let redis = start(&SAVES)?;
    stops_writes(
        &redis,
        || redis.fill_disk(),
        || redis.free_disk(),
        "No space left on device",
    )
}

fn a_read_only_disk_stops_writes(_: &Context) -> Result<()> {
    let redis = start(&SAVES)?;
    stops_writes(
        &redis,
        || redis.set_read_only(true),
        || redis.set_read_only(false),
        "Read-only file system",
    )
}

/// Source: redis.conf, "stop-writes-on-bgsave-error".
fn stops_writes(
    redis: &Sandbox,
    break_disk: impl Fn() -> Result<(), orbit::Error>,
    mend_disk: impl Fn() -> Result<(), orbit::Error>,
    why: &str,
) -> Result<()> {
    let mut client = client(redis)?;
    for round in 0..2 {
        client.set::<_, _, ()>("key", round)?;
        ensure!(save(&mut client)? == "ok");
        let saved = redis.read_file("/data/dump.rdb")?;

        break_disk()?;
        // As long as nobody has tried to save, nobody knows.
        client.set::<_, _, ()>("key", "unsaved")?;
        client.set::<_, _, ()>("large", vec![b'x'; 1 << 20])?;
        ensure!(save(&mut client)? == "err");
        let error = refused(client.set::<_, _, ()>("key", "refused"), "MISCONF")?;
        has(&error.to_string(), &["disk"])?;
        ensure!(
            redis.logs().any(|line| line.text.contains(why)),
            "no `{why}` in its log"
        );
        ensure!(client.get::<_, String>("key")? == "unsaved");
        ensure!(
            redis.read_file("/data/dump.rdb")? == saved,
            "a save that failed changed the last that went well"
        );

        mend_disk()?;
        // It does not know yet that all is well.
        refused(client.set::<_, _, ()>("key", "refused"), "MISCONF")?;
        ensure!(save(&mut client)? == "ok");
        client.set::<_, _, ()>("key", "taken")?;
        ensure!(client.get::<_, String>("key")? == "taken");
        client.del::<_, ()>("large")?;
    }
    Ok(())
}

/// Source: redis.conf, "appendonly"; it tries again each second, and takes writes as soon as it can.
fn a_full_disk_stops_its_log(_: &Context) -> Result<()> {
    let redis = start(&["--appendonly", "yes", "--appendfsync", "everysec"])?;
    let mut client = client(&redis)?;
    client.set::<_, _, ()>("key", "before")?;
    // A file that is open for writing keeps the kernel from making the disk read-only; full it can be.
    let busy = redis
        .set_read_only(true)
        .err()
        .context("its log is open for writing")?;
    has(&busy.to_string(), &["appendonly.aof", "redis-server"])?;
    redis.fill_disk()?;
    let large = vec![b'x'; 64 << 10];
    let mut answer = Ok(());
    until("it refuses writes", || {
        answer = client.set::<_, _, ()>("large", &large);
        Ok(answer.is_err())
    })?;
    has(&refused(answer, "MISCONF")?.to_string(), &["AOF"])?;
    ensure!(client.get::<_, String>("key")? == "before");
    redis.free_disk()?;
    until("it takes writes again", || {
        Ok(client.set::<_, _, ()>("key", "after").is_ok())
    })?;
    ensure!(client.get::<_, String>("key")? == "after");
    Ok(())
}

fn what_it_logged_survives_a_kill(_: &Context) -> Result<()> {
    let mut redis = start(&["--appendonly", "yes", "--appendfsync", "always"])?;
    for number in 1..4 {
        let count: u32 = client(&redis)?.incr("number", 1)?;
        ensure!(count == number, "{count} after {number} starts");
        // Without patience: it has no time to write anything more.
        redis.restart(Duration::ZERO)?;
    }
    redis.signal(libc::SIGKILL)?;
    ensure!(redis.wait()?.status == Status::Signaled(9));
    Ok(())
}

/// Who has no range of ids cannot have redis's own user; the error says what would help.
fn one_id_is_not_enough(_: &Context) -> Result<()> {
    let error = image()?.start().err().context("it started")?;
    has(&error.to_string(), &["subuid", "usermod"])
}
