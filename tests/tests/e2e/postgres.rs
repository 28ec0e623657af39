//! A migrated database, prepared once and cloned for each test: PostgreSQL from its image, as root and as an ordinary
//! user with a range of ids.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{Sandbox, SandboxBuilder, Snapshot};
use orbit_tests::{Case, Context, Program, Who, images};

const PORT: u16 = 5432;
const CLONES: usize = 20;
const PSQL: &str = "/usr/lib/postgresql/15/bin/psql";

const MIGRATIONS: [&str; 2] = [
    "CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL)",
    "INSERT INTO people SELECT n, 'person ' || n FROM generate_series(1, 1000) n",
];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "postgres::migrated_once_and_cloned",
            migrated_once_and_cloned,
        )
        .who(&[Who::Root, Who::User])
        .needs(&["postgresql-client-15"])
        .deadline(Duration::from_secs(240)),
    ]
}

fn database() -> Result<SandboxBuilder> {
    Ok(Sandbox::builder()
        .image(&images::reference("postgres")?)
        .expose(PORT))
}

/// Says who one is, and waits until the server is ready for a query: as every client does first.
///
/// Source: PostgreSQL, Frontend/Backend Protocol, "Start-up".
fn greet(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let words = b"user\0postgres\0database\0postgres\0\0";
    let mut message = (u32::try_from(words.len())? + 8).to_be_bytes().to_vec();
    message.extend(196_608_u32.to_be_bytes());
    message.extend(words);
    stream.write_all(&message)?;
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        stream.read_exact(&mut body)?;
        match head[0] {
            b'Z' => return Ok(stream),
            b'E' => bail!("{}", String::from_utf8_lossy(&body)),
            _ => {}
        }
    }
}

/// Starts one, and says how long it took until a client was let in.
fn ready(start: impl FnOnce() -> Result<Sandbox, orbit::Error>) -> Result<(Sandbox, Duration)> {
    let began = Instant::now();
    let mut sandbox = start()?;
    loop {
        match greet(sandbox.addr(PORT)) {
            Ok(_) => return Ok((sandbox, began.elapsed())),
            Err(_) if began.elapsed() < Duration::from_secs(60) && sandbox.pid().is_some() => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => {
                sandbox.kill();
                let outcome = sandbox.wait()?;
                return Err(error).context(format!(
                    "{}\n{}",
                    outcome.status,
                    outcome.stderr_text()
                ));
            }
        }
    }
}

fn psql(sandbox: &Sandbox, sql: &str) -> Result<String> {
    let address = sandbox.addr(PORT);
    let finished = Program::new(PSQL)
        .args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
        ])
        .args([
            "--host",
            &address.ip().to_string(),
            "--port",
            &address.port().to_string(),
        ])
        .args(["--username", "postgres", "--command", sql])
        .run()?
        .success()?;
    Ok(finished.stdout)
}

fn migrated_once_and_cloned(context: &Context) -> Result<()> {
    // Unpacked ahead, which is no part of a start.
    orbit::images::pull(&images::reference("postgres")?, orbit::PullPolicy::Missing)?;
    let mut fresh = Duration::ZERO;
    let mut sealing = Duration::ZERO;
    let golden = Snapshot::named("people")
        .input(images::reference("postgres")?)
        .inputs(MIGRATIONS)
        .get_or_create(|| -> Result<Snapshot> {
            let builder = database()?;
            let (mut first, took) = ready(|| builder.start())?;
            fresh = took;
            for migration in MIGRATIONS {
                psql(&first, migration)?;
            }
            let outcome = first.stop(Duration::from_secs(20))?;
            ensure!(
                outcome.success(),
                "{}: {}",
                outcome.status,
                outcome.stderr_text()
            );
            let began = Instant::now();
            let snapshot = first.snapshot()?;
            sealing = began.elapsed();
            Ok(snapshot)
        })?;

    // From here on: what connects sandboxes to the host stays as long as this process.
    let audit = context.audit();
    // One at a time, as the fresh one was.
    let mut times = Vec::new();
    for _ in 0..5 {
        let (clone, took) = ready(|| golden.start())?;
        ensure!(psql(&clone, "SELECT count(*) FROM people")? == "1000\n");
        times.push(took);
    }
    times.sort();
    let clone = times[times.len() / 2];
    println!(
        "fresh start {} ms, snapshot {} ms of {} KiB, clone {} ms (median of 5), {:.1} times sooner",
        fresh.as_millis(),
        sealing.as_millis(),
        golden.bytes() >> 10,
        clone.as_millis(),
        fresh.as_secs_f64() / clone.as_secs_f64()
    );
    ensure!(
        fresh >= 4 * clone,
        "a clone took {clone:?}, a fresh start {fresh:?}"
    );

    // And all at once, each with a client of its own that sees no other's rows.
    let all_ready = Barrier::new(CLONES);
    let began = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..CLONES)
            .map(|number| {
                let (golden, all_ready) = (&golden, &all_ready);
                scope.spawn(move || -> Result<()> {
                    let found = ready(|| golden.start());
                    let held = found
                        .as_ref()
                        .ok()
                        .map(|(clone, _)| greet(clone.addr(PORT)));
                    // Also where one failed: the others wait for it.
                    all_ready.wait();
                    let (clone, _) = found?;
                    held.context("it is ready")??;
                    psql(
                        &clone,
                        &format!("INSERT INTO people VALUES ({}, 'clone')", 5000 + number),
                    )?;
                    let rows = psql(&clone, "SELECT count(*), max(id) FROM people")?;
                    ensure!(rows == format!("1001|{}\n", 5000 + number), "{rows}");
                    Ok(())
                })
            })
            .collect();
        for client in clients {
            client.join().expect("no panic")?;
        }
        Ok(())
    })?;
    println!(
        "{CLONES} clones with {CLONES} clients: {} ms in all",
        began.elapsed().as_millis()
    );
    drop(golden);
    audit.check()?;
    Ok(())
}
