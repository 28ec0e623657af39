//! A migrated database, prepared once and cloned for each test: PostgreSQL from its image, as root and as an ordinary
//! user with a range of ids.

use std::{
    net::SocketAddr,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orbit::{Sandbox, SandboxBuilder, Snapshot};
use orbit_tests::{Case, Context, Skip, Who, images};
use postgres::{Client, NoTls};

const PORT: u16 = 5432;
const CLONES: usize = 20;

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
        .deadline(Duration::from_secs(240)),
    ]
}

fn database() -> Result<SandboxBuilder> {
    Ok(Sandbox::builder()
        .image(&images::reference("postgres")?)
        .expose(PORT))
}

/// A client that was let in.
fn connect(address: SocketAddr) -> Result<Client> {
    let (host, port) = (address.ip(), address.port());
    let options = format!("host={host} port={port} user=postgres connect_timeout=10");
    Ok(Client::connect(&options, NoTls)?)
}

/// Starts one, and says how long it took until it answered a query.
fn ready(start: impl FnOnce() -> Result<Sandbox, orbit::Error>) -> Result<(Sandbox, Duration)> {
    let began = Instant::now();
    let mut sandbox = start()?;
    loop {
        let answer = connect(sandbox.addr(PORT))
            .and_then(|mut client| Ok(client.query_one("SELECT 1", &[])?.get::<_, i32>(0)));
        match answer {
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

/// How many people there are, and the greatest of their numbers.
fn people(client: &mut Client) -> Result<(i64, i32)> {
    let row = client.query_one("SELECT count(*), max(id) FROM people", &[])?;
    Ok((row.get(0), row.get(1)))
}

fn migrated_once_and_cloned(context: &Context) -> Result<()> {
    // The virtual machine has not all images; where the suites run as a whole, they are built before.
    if let Err(missing) = images::reference("postgres") {
        return Err(Skip::because(format!("{missing:#}")));
    }
    // Unpacked ahead, which is no part of a start.
    orbit::images::pull(&images::reference("postgres")?, orbit::PullPolicy::Missing)?;
    let mut fresh = Duration::ZERO;
    let mut sealing = Duration::ZERO;
    let golden = Snapshot::named("people")
        .image(images::reference("postgres")?)
        .inputs(MIGRATIONS)
        .get_or_create(|| -> Result<Snapshot> {
            let builder = database()?;
            let (mut first, took) = ready(|| builder.start())?;
            fresh = took;
            let mut client = connect(first.addr(PORT))?;
            for migration in MIGRATIONS {
                client.batch_execute(migration)?;
            }
            drop(client);
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
    // One at a time, as the fresh one was; all of them stay, so that the last starts beside nineteen others.
    let mut times = Vec::new();
    let mut clones = Vec::new();
    for _ in 0..CLONES {
        let (clone, took) = ready(|| golden.start())?;
        times.push(took);
        clones.push(clone);
    }
    times.sort();
    let (median, slowest) = (times[CLONES / 2], times[CLONES - 1]);
    println!(
        "fresh start {} ms, snapshot {} ms of {} KiB; {CLONES} clones: median {} ms, {:.1} times sooner, slowest {} ms, \
         {:.1} times sooner",
        fresh.as_millis(),
        sealing.as_millis(),
        golden.bytes() >> 10,
        median.as_millis(),
        fresh.as_secs_f64() / median.as_secs_f64(),
        slowest.as_millis(),
        fresh.as_secs_f64() / slowest.as_secs_f64()
    );
    ensure!(
        fresh >= 4 * slowest,
        "the slowest clone took {slowest:?}, a fresh start {fresh:?}: {times:?}"
    );
    let began = Instant::now();
    serve(clones)?;
    println!(
        "{CLONES} clones served {CLONES} tests in {} ms",
        began.elapsed().as_millis()
    );

    // And started all at once, on however few processors there are.
    let began = Instant::now();
    let starts: Vec<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..CLONES)
            .map(|_| scope.spawn(|| ready(|| golden.start())))
            .collect();
        all.into_iter()
            .map(|one| one.join().expect("no panic"))
            .collect::<Result<_>>()
    })?;
    let slowest = starts.iter().map(|(_, took)| *took).max();
    println!(
        "{CLONES} clones started at once: {} ms in all, the slowest {} ms",
        began.elapsed().as_millis(),
        slowest.unwrap_or_default().as_millis()
    );
    serve(starts.into_iter().map(|(clone, _)| clone).collect())?;
    drop(golden);
    audit.check()?;
    Ok(())
}

/// A test for each of these, all at the same time, each with a client of its own that sees no other's rows.
fn serve(clones: Vec<Sandbox>) -> Result<()> {
    let all_ready = Barrier::new(clones.len());
    thread::scope(|scope| -> Result<()> {
        let tests: Vec<_> = (5000..)
            .zip(clones)
            .map(|(id, clone): (i32, Sandbox)| {
                let all_ready = &all_ready;
                scope.spawn(move || -> Result<()> {
                    let client = connect(clone.addr(PORT));
                    // Also where one failed: the others wait for it.
                    all_ready.wait();
                    let mut client = client?;
                    client.execute("INSERT INTO people VALUES ($1, 'clone')", &[&id])?;
                    let found = people(&mut client)?;
                    ensure!(found == (1001, id), "{found:?}");
                    Ok(())
                })
            })
            .collect();
        for test in tests {
            test.join().expect("no panic")?;
        }
        Ok(())
    })
}
