//! PostgreSQL in tests: migrated once, then a database of its own for each test, in a fraction of the time.
//!
//! ```sh
//! images/build.sh postgres
//! cargo run -p orbit-tests --example postgres
//! ```

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use orbit::{Sandbox, Snapshot, Wait};
use postgres::{Client, NoTls};

const MIGRATIONS: &str = "
    CREATE TABLE people (id serial PRIMARY KEY, name text NOT NULL);
    INSERT INTO people (name) SELECT 'person ' || n FROM generate_series(1, 1000) n;
";

fn connect(server: &Sandbox) -> anyhow::Result<Client> {
    let address = server.addr(5432);
    let (host, port) = (address.ip(), address.port());
    let client = Client::connect(
        &format!("host={host} port={port} user=postgres connect_timeout=5"),
        NoTls,
    );
    client.context("connect to PostgreSQL")
}

/// One of what tests would do.
fn test(golden: &Snapshot, number: i32) -> anyhow::Result<()> {
    let began = Instant::now();
    let server = golden
        .builder()
        .wait_for(Wait::log("ready to accept connections"))
        .start()?;
    let mut client = connect(&server)?;
    println!("test {number}: ready after {:.0?}", began.elapsed());
    client.execute("INSERT INTO people (name) VALUES ($1)", &[&"somebody"])?;
    // Nobody else's: there are a thousand, and the one of this test.
    let row = client.query_one("SELECT count(*) FROM people", &[])?;
    assert_eq!(row.get::<_, i64>(0), 1001);
    Ok(())
}

pub(crate) fn main() -> anyhow::Result<()> {
    // Whichever process comes first makes it; the next run of the tests finds it.
    let golden = Snapshot::named("example-people")
        .input(MIGRATIONS)
        .get_or_create(|| -> anyhow::Result<Snapshot> {
            let began = Instant::now();
            let mut server = Sandbox::builder()
                .image("oci:target/images/postgres")
                .expose(5432)
                .wait_for(Wait::log("ready to accept connections"))
                .start()?;
            connect(&server)?.batch_execute(MIGRATIONS)?;
            println!("migrated after {:.0?}", began.elapsed());
            server.stop(Duration::from_secs(20))?;
            Ok(server.snapshot()?)
        })?;

    thread::scope(|scope| {
        let tests: Vec<_> = (1..=4)
            .map(|number| {
                let golden = &golden;
                scope.spawn(move || test(golden, number))
            })
            .collect();
        tests
            .into_iter()
            .try_for_each(|test| test.join().expect("no panic"))
    })
}
