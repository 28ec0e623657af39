//! Redis in a test, and what it does when it stands still and when its disk is full.
//!
//! ```sh
//! images/build.sh redis
//! cargo run -p orbit-tests --example redis
//! ```

use std::{thread, time::Duration};

use anyhow::Context as _;
use orbit::{Sandbox, Wait};
use redis::Commands as _;

pub(crate) fn main() -> anyhow::Result<()> {
    let server = Sandbox::builder()
        .image("oci:target/images/redis")
        .args(["--save", "3600 1"])
        .expose(6379)
        .wait_for(Wait::port(6379))
        .start()?;
    let address = server.addr(6379);
    println!("redis is ready at {address}");

    let mut client = redis::Client::open(format!("redis://{address}"))?.get_connection()?;
    client.set::<_, _, ()>("greeting", "hello")?;
    assert_eq!(client.get::<_, String>("greeting")?, "hello");

    // A server that hangs: its connections stay open, and nobody answers.
    client.set_read_timeout(Some(Duration::from_millis(100)))?;
    server.pause()?;
    let hung = client.get::<_, String>("greeting");
    let hung = hung.expect_err("nobody answers");
    assert!(hung.is_timeout());
    println!("paused: {hung}");
    server.unpause()?;

    // A disk that fills up, with a connection that has no answer outstanding.
    let mut client = redis::Client::open(format!("redis://{address}"))?.get_connection()?;
    server.fill_disk()?;
    assert_eq!(save(&mut client)?, "err");
    let refused = client.set::<_, _, ()>("greeting", "bye");
    let refused = refused.expect_err("it could not save");
    assert_eq!(refused.code(), Some("MISCONF"));
    println!("full: {refused:?}");
    server.free_disk()?;
    assert_eq!(save(&mut client)?, "ok");
    client.set::<_, _, ()>("greeting", "bye")?;
    println!("well again");
    Ok(())
}

/// Saves to the disk, and says how that went: `ok` or `err`.
fn save(client: &mut redis::Connection) -> anyhow::Result<String> {
    redis::cmd("BGSAVE").exec(client)?;
    loop {
        let info: redis::InfoDict = redis::cmd("INFO").arg("persistence").query(client)?;
        if info.get::<u32>("rdb_bgsave_in_progress") == Some(0) {
            return info
                .get("rdb_last_bgsave_status")
                .context("Redis tells how it went");
        }
        thread::sleep(Duration::from_millis(10));
    }
}
