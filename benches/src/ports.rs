//! A published port against a direct veth: as root, the host's own bridge leads to the same server.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{NetworkMode, Sandbox};

use crate::{
    Stage,
    samples::{Samples, tell},
};

const STREAM: u16 = 80;
const ECHO: u16 = 81;
const BYTES: u64 = 1 << 30;
const BLOCK: usize = 128 * 1024;
const ROUNDS: usize = 5;
const ROUND_TRIPS: usize = 3000;
/// Nobody's default.
const BRIDGE: &str = "orbit-bench0";
const CIDR: &str = "172.29.9.0/24";

pub(crate) fn all(_: &Stage) -> Result<()> {
    let sandbox = Sandbox::builder()
        .cmd([env::current_exe()?])
        .args(["serve", "."])
        .network(NetworkMode::Bridge)
        .bridge(BRIDGE)
        .bridge_cidr(CIDR)
        .expose(STREAM)
        .expose(ECHO)
        .start()?;
    let address = sandbox
        .bridge_address()
        .context("not on the host's bridge: this needs root")?;
    let direct = |port| SocketAddr::from((address, port));
    for port in [STREAM, ECHO] {
        await_port(direct(port))?;
    }
    let (mut published, mut beside) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        published.time(|| receive(sandbox.addr(STREAM)))?;
        beside.time(|| receive(direct(STREAM)))?;
    }
    published.tell("published gibibyte");
    beside.tell("direct gibibyte");

    let (mut published, mut beside, mut wake) =
        (Samples::default(), Samples::default(), Samples::default());
    let (mut by_port, mut by_veth) = (connect(sandbox.addr(ECHO))?, connect(direct(ECHO))?);
    let (mut here, mut there) = std::os::unix::net::UnixStream::pair()?;
    let echo = thread::spawn(move || -> Result<()> {
        let mut byte = [0];
        while there.read(&mut byte)? == 1 {
            there.write_all(&byte)?;
        }
        Ok(())
    });
    let mut byte = [0];
    for _ in 0..ROUND_TRIPS {
        published.time(|| {
            Ok(by_port
                .write_all(&byte)
                .and_then(|()| by_port.read_exact(&mut byte))?)
        })?;
        beside.time(|| {
            Ok(by_veth
                .write_all(&byte)
                .and_then(|()| by_veth.read_exact(&mut byte))?)
        })?;
        wake.time(|| {
            Ok(here
                .write_all(&byte)
                .and_then(|()| here.read_exact(&mut byte))?)
        })?;
    }
    drop(here);
    echo.join().ok().context("a thread panicked")??;
    published.tell("published round trip");
    beside.tell("direct round trip");
    // There and back: two wake-ups.
    tell("wake-up", wake.median().as_secs_f64() / 2.0, ROUND_TRIPS);
    Ok(())
}

fn connect(at: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(at).with_context(|| format!("connect to {at}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn await_port(at: SocketAddr) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(at).is_err() {
        ensure!(Instant::now() < until, "nobody listens at {at}");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn receive(at: SocketAddr) -> Result<()> {
    let mut stream = connect(at)?;
    let (mut buffer, mut total) = (vec![0; BLOCK], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 if total == BYTES => return Ok(()),
            0 => bail!("{total} of {BYTES} bytes"),
            count => total += count as u64,
        }
    }
}

/// Inside of the sandbox: sends a gibibyte to whoever connects to the one port, and echoes on the other.
pub(crate) fn serve() -> Result<()> {
    let streams = TcpListener::bind(("0.0.0.0", STREAM))?;
    let echoes = TcpListener::bind(("0.0.0.0", ECHO))?;
    thread::spawn(move || {
        for stream in streams.incoming().flatten() {
            thread::spawn(move || send(stream));
        }
    });
    for stream in echoes.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        thread::spawn(move || {
            let mut byte = [0];
            while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
        });
    }
    Ok(())
}

fn send(mut stream: TcpStream) -> std::io::Result<()> {
    let block = vec![0; BLOCK];
    (0..BYTES / BLOCK as u64).try_for_each(|_| stream.write_all(&block))
}
