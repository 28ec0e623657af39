//! PostgreSQL until it answers: started afresh from its image, and as a clone of a snapshot.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{Error, PullPolicy, Sandbox};

use crate::{Stage, samples::Samples};

const PORT: u16 = 5432;
const ROUNDS: usize = 5;

/// `postgres` in the stage is the image.
pub(crate) fn all(stage: &Stage) -> Result<()> {
    let image = format!("oci:{}", stage.0.join("postgres").display());
    // Unpacked ahead, which is no part of a start.
    orbit::images::pull(&image, PullPolicy::Missing)?;
    let start = || Sandbox::builder().image(&image).expose(PORT).start();
    let mut golden = ready(start)?;
    let outcome = golden.stop(Duration::from_secs(20))?;
    ensure!(
        outcome.success(),
        "{}: {}",
        outcome.status,
        outcome.stderr_text()
    );
    let snapshot = golden.snapshot()?;
    let (mut fresh, mut clone) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        fresh.time(|| ready(start).map(drop))?;
        clone.time(|| ready(|| snapshot.start()).map(drop))?;
    }
    fresh.tell("fresh PostgreSQL");
    clone.tell("cloned PostgreSQL");
    Ok(())
}

/// Starts one, and waits until a client is let in.
fn ready(start: impl FnOnce() -> Result<Sandbox, Error>) -> Result<Sandbox> {
    let sandbox = start()?;
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match greet(sandbox.addr(PORT)) {
            Ok(()) => return Ok(sandbox),
            Err(_) if Instant::now() < until && sandbox.pid().is_some() => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("PostgreSQL lets nobody in"),
        }
    }
}

/// Says who one is, and waits until the server is ready for a query, as every client does first.
///
/// Source: PostgreSQL, Frontend/Backend Protocol, "Start-up".
fn greet(address: SocketAddr) -> Result<()> {
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
            b'Z' => return Ok(()),
            b'E' => bail!("{}", String::from_utf8_lossy(&body)),
            _ => {}
        }
    }
}
