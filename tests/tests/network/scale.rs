//! Many sandboxes, much data, many rounds.

use std::{
    collections::HashSet,
    io::Read,
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{Network, NetworkMode, Sandbox, SandboxBuilder};
use orbit_tests::{Case, Context, Who};

use crate::{
    named::{descriptors_of_descendants, same_descriptors},
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
            "scale::five_hundred_sandboxes_on_port_80_of_the_bridge",
            five_hundred_on_the_bridge,
        )
        .who(&[Who::Root])
        .needs(&["nftables"])
        .deadline(Duration::from_secs(300)),
        Case::new(
            "scale::a_gibibyte_arrives_intact",
            a_gibibyte_arrives_intact,
        )
        .who(Who::RANGED)
        .deadline(Duration::from_secs(120)),
        Case::new("scale::a_thousand_rounds_leave_nothing", a_thousand_rounds)
            .who(Who::RANGED)
            .needs(&["nftables"])
            .deadline(Duration::from_secs(600)),
    ]
}

/// Sandboxes that bind port 80 at the same time.
const MANY: usize = 500;

/// Has each of `sandboxes` answer with its number, at the address that `address` tells, to one more sandbox that `joins`
/// the same network.
fn each_answers_at_its_own_address(
    sandboxes: &[Sandbox],
    address: impl Fn(&Sandbox) -> Option<Ipv4Addr>,
    joins: impl FnOnce(SandboxBuilder) -> SandboxBuilder,
) -> Result<Vec<Ipv4Addr>> {
    let addresses = sandboxes
        .iter()
        .map(|sandbox| address(sandbox).context("it has an address"))
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        addresses.iter().collect::<HashSet<_>>().len() == sandboxes.len(),
        "two have the same address: {addresses:?}"
    );
    let questions = addresses.iter().map(|address| format!("tcp:{address}:80"));
    let client = joins(service(&["ask"])?.args(questions));
    let outcome = client.run()?;
    let said = outcome.stdout_text();
    for (number, (answer, address)) in said.lines().zip(&addresses).enumerate() {
        ensure!(answer == number.to_string(), "{address}: {answer:?}");
    }
    ensure!(said.lines().count() == sandboxes.len(), "{outcome:?}");
    Ok(addresses)
}

fn many_on_port_80(
    joins: impl Fn(SandboxBuilder) -> SandboxBuilder,
) -> Result<(Vec<Sandbox>, Duration)> {
    raise_descriptor_limit()?;
    let started = Instant::now();
    let sandboxes = (0..MANY)
        .map(|number| {
            let serves = service(&["serve-text", "0.0.0.0:80", &number.to_string()])?.disk("1M");
            joins(serves)
                .start()
                .with_context(|| format!("sandbox {number}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let made = started.elapsed();
    for sandbox in &sandboxes {
        drop(await_port(sandbox, 80)?);
    }
    Ok((sandboxes, made))
}

fn five_hundred_on_port_80(_: &Context) -> Result<()> {
    let network = Network::builder().subnet("10.80.0.0/22").create()?;
    let (sandboxes, made) = many_on_port_80(|sandbox| sandbox.network(&network).expose(80))?;
    let started = Instant::now();
    each_answers_at_its_own_address(
        &sandboxes,
        |sandbox| sandbox.address(&network),
        |client| client.network(&network),
    )?;
    let inside = started.elapsed();
    let started = Instant::now();
    for (number, sandbox) in sandboxes.iter().enumerate() {
        let stream = TcpStream::connect(sandbox.addr(80))?;
        let answer = exchange(stream, b"").with_context(|| format!("sandbox {number}"))?;
        ensure!(
            answer == number.to_string().as_bytes(),
            "sandbox {number}: {answer:?}"
        );
    }
    let ports: HashSet<_> = sandboxes.iter().map(|sandbox| sandbox.addr(80)).collect();
    ensure!(ports.len() == MANY);
    println!(
        "{MANY} sandboxes on port 80 of one network made in {made:?}; all reached at their own addresses in \
         {inside:?}, at their ports of the host in {:?}",
        started.elapsed()
    );
    Ok(())
}

/// On root's bridge the host reaches them too. A bridge of the kernel has 1024 ports (`BR_MAX_PORTS`).
fn five_hundred_on_the_bridge(_: &Context) -> Result<()> {
    let on_bridge = |sandbox: SandboxBuilder| {
        let sandbox = sandbox.network(NetworkMode::Bridge);
        sandbox.bridge("orbit-e2e5").bridge_cidr("172.29.20.0/22")
    };
    let (sandboxes, made) = many_on_port_80(on_bridge)?;
    let started = Instant::now();
    let addresses =
        each_answers_at_its_own_address(&sandboxes, Sandbox::bridge_address, on_bridge)?;
    let inside = started.elapsed();
    let started = Instant::now();
    for (number, address) in addresses.iter().enumerate() {
        let answer = exchange(TcpStream::connect((*address, 80))?, b"")
            .with_context(|| format!("sandbox {number} at {address}"))?;
        ensure!(
            answer == number.to_string().as_bytes(),
            "{address}: {answer:?}"
        );
    }
    println!(
        "{MANY} sandboxes on port 80 of the host's bridge made in {made:?}; all reached by a sandbox in {inside:?}, \
         by the host in {:?}",
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
    let network = Network::builder().subnet("10.81.0.0/28").create()?;
    let once = |round: usize| -> Result<()> {
        let sandbox = Sandbox::builder()
            .cmd(["true"])
            .disk("1M")
            .expose(80)
            .publish("0:53/udp");
        let (own, shared);
        let sandbox = match round % 5 {
            0 => sandbox,
            1 => sandbox.network(&network),
            2 => {
                own = Network::builder().create()?;
                sandbox.network(&own).network_alias("of-its-own")
            }
            3 => {
                shared = Network::builder().name("rounds").shared(true).create()?;
                sandbox.network(&shared)
            }
            _ => {
                let sandbox = sandbox.network(NetworkMode::Bridge);
                sandbox.bridge("orbit-e2e6").bridge_cidr("172.29.24.0/28")
            }
        };
        sandbox.start()?.wait()?;
        Ok(())
    };
    // The supervisor and the broker stay: they are there before the audit begins.
    once(0)?;
    let audit = context.audit();
    let before = descriptors_of_descendants();
    let started = Instant::now();
    for round in 0..ROUNDS {
        once(round).with_context(|| format!("round {round}"))?;
    }
    println!(
        "{ROUNDS} sandboxes with two published ports each, on loopback, on a network that stays, on one of their own, \
         on one that is shared, on the bridge: {:?}",
        started.elapsed()
    );
    audit.check()?;
    // Networks are namespaces that the broker holds.
    same_descriptors(&before)
}
