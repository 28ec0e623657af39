//! Many sandboxes, much data, many rounds.

use std::{
    io::Read,
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{Network, Sandbox};
use orbit_tests::{Case, Context, Who};

use crate::{
    service::{BLOCK, block},
    support::{await_port, exchange, raise_descriptor_limit, rate, service},
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "scale::five_hundred_sandboxes_on_port_80",
            five_hundred_on_port_80,
        )
        .who(Who::RANGED)
        .deadline(Duration::from_secs(300)),
        Case::new(
            "scale::a_gibibyte_arrives_intact",
            a_gibibyte_arrives_intact,
        )
        .who(Who::RANGED)
        .deadline(Duration::from_secs(120)),
        Case::new("scale::a_thousand_rounds_leave_nothing", a_thousand_rounds)
            .who(Who::RANGED)
            .deadline(Duration::from_secs(300)),
    ]
}

fn five_hundred_on_port_80(_: &Context) -> Result<()> {
    const COUNT: usize = 500;
    raise_descriptor_limit()?;
    let started = Instant::now();
    let sandboxes = (0..COUNT)
        .map(|number| {
            service(&["serve-text", "0.0.0.0:80", &number.to_string()])?
                .disk("1M")
                .expose(80)
                .start()
                .with_context(|| format!("sandbox {number}"))
        })
        .collect::<Result<Vec<Sandbox>>>()?;
    let made = started.elapsed();
    let started = Instant::now();
    for (number, sandbox) in sandboxes.iter().enumerate() {
        await_port(sandbox, 80)?;
        let stream = TcpStream::connect(sandbox.addr(80))?;
        let answer = exchange(stream, b"").with_context(|| format!("sandbox {number}"))?;
        ensure!(
            answer == number.to_string().as_bytes(),
            "sandbox {number}: {answer:?}"
        );
    }
    let mut addresses: Vec<_> = sandboxes.iter().map(|sandbox| sandbox.addr(80)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    ensure!(addresses.len() == COUNT);
    println!(
        "{COUNT} sandboxes on port 80 made in {made:?}, each reached in {:?}",
        started.elapsed()
    );
    Ok(())
}

fn a_gibibyte_arrives_intact(_: &Context) -> Result<()> {
    const BYTES: u64 = 1 << 30;
    let size = BYTES.to_string();
    let sandbox = service(&["serve-bytes", "127.0.0.1:80", &size])?
        .expose(80)
        .start()?;
    drop(await_port(&sandbox, 80)?);
    check_all(TcpStream::connect(sandbox.addr(80))?, BYTES)?;

    let network = Network::builder().create()?;
    let server = service(&["serve-zeros", "0.0.0.0:80", &size])?;
    let sandbox = server
        .network(&network)
        .network_alias("server")
        .expose(80)
        .start()?;
    drop(await_port(&sandbox, 80)?);
    let forwarded = time_all(TcpStream::connect(sandbox.addr(80))?, BYTES)?;
    let direct = time_all(sandbox.connect(80)?, BYTES)?;
    let across = service(&["discard", "server:80"])?
        .network(&network)
        .run()?;
    ensure!(across.stdout_text() == size, "{across:?}");
    println!(
        "1 GiB: published port {:.0} MB/s, direct socket {:.0} MB/s, sandbox to sandbox by veth {:.0} MB/s",
        rate(BYTES, forwarded),
        rate(BYTES, direct),
        rate(BYTES, across.wall_time)
    );
    Ok(())
}

fn check_all(mut stream: TcpStream, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; BLOCK];
    for number in 0..bytes / BLOCK as u64 {
        stream
            .read_exact(&mut buffer)
            .with_context(|| format!("block {number}"))?;
        ensure!(buffer[..] == *block(number), "block {number} differs");
    }
    ensure!(stream.read(&mut buffer)? == 0, "more than was sent");
    Ok(())
}

fn time_all(mut stream: TcpStream, bytes: u64) -> Result<Duration> {
    let (mut buffer, mut total, started) = (vec![0; BLOCK], 0, Instant::now());
    loop {
        match stream.read(&mut buffer)? {
            0 if total == bytes => return Ok(started.elapsed()),
            0 => bail!("{total} of {bytes} bytes"),
            count => total += count as u64,
        }
    }
}

fn a_thousand_rounds(context: &Context) -> Result<()> {
    const ROUNDS: usize = 1000;
    // The supervisor and the broker stay: they are there before the audit begins.
    drop(Sandbox::builder().cmd(["true"]).expose(80).start()?);
    let audit = context.audit();
    let started = Instant::now();
    for round in 0..ROUNDS {
        let mut sandbox = Sandbox::builder()
            .cmd(["true"])
            .disk("1M")
            .expose(80)
            .publish("0:53/udp")
            .start()
            .with_context(|| format!("round {round}"))?;
        sandbox.wait()?;
    }
    println!(
        "{ROUNDS} sandboxes with two published ports each: {:?}",
        started.elapsed()
    );
    Ok(audit.check()?)
}
