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

/// Starts one, and says how long it took until a client was let in.
fn ready(start: impl FnOnce() -> Result<Sandbox, orbit::Error>) -> Result<(Sandbox, Duration)> {
    let began = Instant::now();
    let mut sandbox = start()?;
    loop {
        match connect(sandbox.addr(PORT)) {
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
        .input(images::reference("postgres")?)
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
    // One at a time, as the fresh one was.
    let mut times = Vec::new();
    for _ in 0..5 {
        let (clone, took) = ready(|| golden.start())?;
        ensure!(people(&mut connect(clone.addr(PORT))?)? == (1000, 1000));
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
                        .map(|(clone, _)| connect(clone.addr(PORT)));
                    // Also where one failed: the others wait for it.
                    all_ready.wait();
                    let (clone, _) = found?;
                    let mut client = held.context("it is ready")??;
                    let id = 5000 + i32::try_from(number)?;
                    client.execute("INSERT INTO people VALUES ($1, 'clone')", &[&id])?;
                    // Each sees its own, and no other's.
                    let found = people(&mut client)?;
                    ensure!(found == (1001, id), "{found:?}");
                    drop(clone);
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
