//! Sandboxes that run a service, and ways to wait for it.

use std::{
    env,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orbit::{Sandbox, SandboxBuilder};

/// How long a service may take to listen.
const READY: Duration = Duration::from_secs(20);

/// A sandbox over the host's files that runs the service of these words.
pub(crate) fn service(words: &[&str]) -> Result<SandboxBuilder> {
    let program = env::current_exe()?;
    Ok(Sandbox::builder().cmd([program]).args(words))
}

/// Waits until something listens on `port` inside.
pub(crate) fn await_port(sandbox: &Sandbox, port: u16) -> Result<TcpStream> {
    let until = Instant::now() + READY;
    loop {
        match sandbox.connect(port) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.is_connection_refused() && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => bail!("{error}"),
        }
    }
}

/// Sends `text`, closes that direction, and reads to the end of the other.
pub(crate) fn exchange(mut stream: TcpStream, text: &[u8]) -> Result<Vec<u8>> {
    stream.set_read_timeout(Some(READY))?;
    stream.write_all(text)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    Ok(answer)
}

/// Lets this process open as many files as it may.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Megabytes a second.
pub(crate) fn rate(bytes: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure to print")]
    let megabytes = bytes as f64 / 1e6;
    megabytes / took.as_secs_f64()
}
