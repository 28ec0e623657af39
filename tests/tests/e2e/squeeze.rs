//! Redis with less and less memory: where it is told of its bound it refuses writes and lives; where it is not, the
//! kernel ends it, and that is said. It runs where limits are kept, as in the virtual machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use orbit::{Sandbox, Status, Wait};
use orbit_tests::{Case, Context, Skip, Who, images};
use redis::{Commands as _, Connection};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "squeeze::redis_refuses_writes_or_is_killed",
            redis_refuses_writes_or_is_killed,
        )
        .who(Who::RANGED),
    ]
}

/// Writes pages of 256 KiB until one is not taken. How many were, and why that one was not.
fn fill(client: &mut Connection, name: &str) -> Result<(u32, redis::RedisError)> {
    let page = vec![b'x'; 256 << 10];
    for number in 0..4000 {
        if let Err(error) = client.set::<_, _, ()>(format!("{name} {number}"), &page) {
            return Ok((number, error));
        }
    }
    anyhow::bail!("a gibibyte was written");
}

fn redis_refuses_writes_or_is_killed(_: &Context) -> Result<()> {
    let started = Sandbox::builder()
        .image(&images::reference("redis")?)
        .args(["--maxmemory", "16mb", "--maxmemory-policy", "noeviction"])
        .expose(6379)
        .memory("128M")
        .wait_for(Wait::port(6379))
        .start();
    let mut redis = match started {
        Err(error) if error.is_limit() || error.is_spec() => {
            let why = "limits cannot be kept here; `cargo xtask vm` runs it where they can";
            return Err(Skip::because(why));
        }
        started => started?,
    };
    let open = || -> Result<Connection> {
        let client = redis::Client::open(format!("redis://{}", redis.addr(6379)))?;
        Ok(client.get_connection_with_timeout(Duration::from_secs(20))?)
    };

    // Its own bound is reached first: nothing is lost, and it answers.
    redis.set_memory("96M")?;
    let mut client = open()?;
    let (bounded, refused) = fill(&mut client, "bounded")?;
    ensure!(refused.code() == Some("OOM"), "{refused}");
    ensure!(bounded > 30, "only {bounded} pages of 256 KiB in 16 MiB");
    ensure!(client.exists::<_, bool>("bounded 0")?);

    // Without one of its own, the sandbox's is what ends it.
    redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "0"])
        .exec(&mut client)?;
    redis.set_memory("48M")?;
    let began = Instant::now();
    let (unbounded, gone) = fill(&mut client, "unbounded")?;
    ensure!(gone.is_connection_dropped() || gone.is_io_error(), "{gone}");
    let outcome = redis.wait().context("it ended")?;
    ensure!(
        matches!(outcome.status, Status::OomKilled { .. }),
        "{}",
        outcome.status
    );
    println!(
        "{bounded} pages of 256 KiB in 16 MiB, {unbounded} more until it was killed at 48 MiB after {:.1?}: {}",
        began.elapsed(),
        outcome.status
    );
    Ok(())
}
