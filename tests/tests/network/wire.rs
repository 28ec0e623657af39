//! Faults on the wire, measured beside a wire without any in the same run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{Bytes, Network, Sandbox, Status};
use orbit_tests::{Case, Context};

use crate::support::{await_port, exchange, rate, service};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "wire::a_partition_parts_and_heals",
            partition_parts_and_heals,
        ),
        Case::new(
            "wire::a_partition_is_of_ipv6_and_of_what_is_for_all",
            partition_is_of_all_kinds,
        ),
        Case::new(
            "wire::an_open_connection_feels_it",
            an_open_connection_feels_it,
        ),
        Case::new("wire::latency_is_added_to_each_way", latency),
        Case::new("wire::a_share_is_lost", loss),
        Case::new("wire::a_rate_holds", a_rate_holds),
        Case::new("wire::bad_faults_are_told_at_once", bad_faults),
        Case::new("wire::faults_end_with_their_sandbox", faults_end),
    ]
}

const MS: Duration = Duration::from_millis(1);

/// A sandbox that sends and hears datagrams as it is told.
fn relay(network: &Network) -> Result<Sandbox> {
    let sandbox = service(&["serve-relay", "127.0.0.1:81"])?
        .network(network)
        .start()?;
    drop(await_port(&sandbox, 81)?);
    Ok(sandbox)
}

/// How a datagram is sent.
#[derive(Clone, Copy, Debug)]
enum Way {
    V4,
    LinkLocal,
    Broadcast,
    Multicast,
}

/// Whether what the one sends to the other arrives. A datagram is sent inside of one, and asked for inside of the
/// other: one direction alone counts.
fn reaches(network: &Network, from: &Sandbox, to: &Sandbox, way: Way) -> Result<bool> {
    let address = |sandbox: &Sandbox| sandbox.address(network).context("on the network");
    let link_local = |sandbox: &Sandbox| -> Result<String> {
        let [a, b, c, d] = address(sandbox)?.octets();
        let text = format!("fe80::4f:{a:02x}ff:fe{b:02x}:{c:02x}{d:02x}");
        Ok(text.parse::<std::net::Ipv6Addr>()?.to_string())
    };
    let (target, sender) = match way {
        Way::V4 => (address(to)?.to_string(), address(from)?.to_string()),
        Way::LinkLocal => (format!("{}%eth0", link_local(to)?), link_local(from)?),
        Way::Broadcast => {
            // Of a /29.
            let all = std::net::Ipv4Addr::from_bits(address(to)?.to_bits() | 7);
            (all.to_string(), address(from)?.to_string())
        }
        Way::Multicast => ("ff02::1%eth0".to_owned(), link_local(from)?),
    };
    exchange(to.connect(81)?, b"forget all")?;
    exchange(from.connect(81)?, format!("send {target}").as_bytes())?;
    let answer = exchange(to.connect(81)?, format!("heard {sender}").as_bytes())?;
    Ok(answer == b"heard")
}

fn partition_parts_and_heals(_: &Context) -> Result<()> {
    let network = Network::builder().subnet("10.5.0.0/29").create()?;
    let sandbox = || relay(&network);
    let (one, other, third) = (sandbox()?, sandbox()?, sandbox()?);
    let reaches = |from: &Sandbox, to: &Sandbox| reaches(&network, from, to, Way::V4);
    let all = |expected: [bool; 6]| -> Result<()> {
        let pairs = [
            (&one, &other),
            (&other, &one),
            (&one, &third),
            (&third, &one),
            (&other, &third),
            (&third, &other),
        ];
        for (number, (from, to)) in pairs.into_iter().enumerate() {
            ensure!(
                reaches(from, to)? == expected[number],
                "pair {number} of {expected:?}"
            );
        }
        Ok(())
    };
    all([true; 6])?;
    network.partition_one_way(&one, &other)?;
    all([false, true, true, true, true, true])?;
    network.partition(&one, &third)?;
    all([false, true, false, false, true, true])?;
    network.heal()?;
    all([true; 6])?;
    // Who comes next at an address is parted from nobody.
    network.partition(&one, &third)?;
    let was = third.address(&network);
    drop(third);
    let mut next = sandbox()?;
    while next.address(&network) != was {
        next = sandbox()?;
    }
    ensure!(reaches(&one, &next)? && reaches(&next, &one)?);
    drop(next);
    let alone = Sandbox::builder().cmd(["sleep", "60"]).start()?;
    match network.partition(&one, &alone) {
        Ok(()) => bail!("it is not on the network"),
        Err(error) => ensure!(
            error.is_spec() && error.to_string().contains("not on the network"),
            "{error}"
        ),
    }
    Ok(())
}

fn partition_is_of_all_kinds(_: &Context) -> Result<()> {
    let network = Network::builder().subnet("10.5.0.0/29").create()?;
    let (one, other, third) = (relay(&network)?, relay(&network)?, relay(&network)?);
    for way in [Way::V4, Way::LinkLocal, Way::Broadcast, Way::Multicast] {
        let check = |expected: bool, when: &str| -> Result<()> {
            ensure!(
                reaches(&network, &one, &other, way)? == expected,
                "{way:?} {when}"
            );
            // The way back, and everybody else.
            for (from, to) in [(&other, &one), (&one, &third), (&third, &other)] {
                ensure!(reaches(&network, from, to, way)?, "{way:?} {when}: others");
            }
            Ok(())
        };
        // An address of IPv6 cannot be used until nobody else turns out to have it.
        let until = Instant::now() + Duration::from_secs(5);
        while !(reaches(&network, &one, &other, way)?
            && reaches(&network, &other, &one, way)?
            && reaches(&network, &third, &other, way)?)
        {
            ensure!(Instant::now() < until, "{way:?} never worked");
        }
        check(true, "before")?;
        network.partition_one_way(&one, &other)?;
        check(false, "parted")?;
        network.heal()?;
        check(true, "healed")?;
    }
    Ok(())
}

/// A network with an echo server, one more, and how the two are asked.
struct Echoes {
    network: Network,
    near: Sandbox,
    far: Sandbox,
    client: Sandbox,
}

/// What a ping of many datagrams saw.
#[derive(Debug)]
struct Seen {
    count: u32,
    least: Duration,
    mean: Duration,
    most: Duration,
}

impl Echoes {
    fn start() -> Result<Self> {
        let network = Network::builder().create()?;
        let echo = || {
            service(&["serve-udp-echo", "0.0.0.0:7"])?
                .network(&network)
                .start()
                .map_err(Into::into)
        };
        let (near, far): (Result<Sandbox>, Result<Sandbox>) = (echo(), echo());
        // It only has the place on the network that the faults are of: what runs there is asked for by `connect`.
        let client = service(&["serve-run", "127.0.0.1:81"])?
            .network(&network)
            .start()?;
        drop(await_port(&client, 81)?);
        Ok(Self {
            near: near?,
            far: far?,
            network,
            client,
        })
    }

    fn ping(&self, to: &Sandbox, count: u32) -> Result<Seen> {
        let address = to.address(&self.network).context("on the network")?;
        let answer = exchange(
            self.client.connect(81)?,
            format!("ping {address}:7 {count}").as_bytes(),
        )?;
        let text = String::from_utf8(answer)?;
        let numbers: Vec<u32> = text
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| text.clone())?;
        let &[count, least, mean, most] = &numbers[..] else {
            bail!("{text}")
        };
        let micros = |n: u32| Duration::from_micros(n.into());
        Ok(Seen {
            count,
            least: micros(least),
            mean: micros(mean),
            most: micros(most),
        })
    }
}

fn latency(_: &Context) -> Result<()> {
    let echoes = Echoes::start()?;
    let Echoes {
        network,
        near,
        far,
        client,
    } = &echoes;
    let plain = echoes.ping(far, 100)?;
    ensure!(plain.count == 100 && plain.mean < 20 * MS, "{plain:?}");
    network
        .link(client, far)
        .latency(50 * MS)
        .one_way()
        .apply()?;
    let one_way = echoes.ping(far, 100)?;
    ensure!(
        one_way.count == 100 && one_way.least >= 50 * MS && one_way.mean < 80 * MS,
        "{one_way:?}"
    );
    network.link(client, far).latency(50 * MS).apply()?;
    let both = echoes.ping(far, 100)?;
    ensure!(
        both.count == 100 && both.least >= 100 * MS && both.mean < 140 * MS,
        "{both:?}"
    );
    network
        .link(far, client)
        .latency(50 * MS)
        .jitter(30 * MS)
        .apply()?;
    let varied = echoes.ping(far, 200)?;
    ensure!(
        varied.count == 200 && varied.least >= 40 * MS && varied.most > varied.least + 15 * MS,
        "{varied:?}"
    );
    // In the same run, and between the same two as before.
    let other = echoes.ping(near, 100)?;
    ensure!(other.count == 100 && other.mean < 20 * MS, "{other:?}");
    network.heal()?;
    let healed = echoes.ping(far, 100)?;
    ensure!(healed.count == 100 && healed.mean < 20 * MS, "{healed:?}");
    println!(
        "round trip: plain {:?}, 50 ms one way {:?}, both ways {:?}, with 30 ms of jitter {:?} to {:?}, healed {:?}",
        plain.mean, one_way.mean, both.mean, varied.least, varied.most, healed.mean
    );
    Ok(())
}

fn loss(_: &Context) -> Result<()> {
    let echoes = Echoes::start()?;
    let Echoes {
        network,
        near,
        far,
        client,
    } = &echoes;
    network.link(client, far).loss(0.3).one_way().apply()?;
    let some = echoes.ping(far, 1000)?;
    ensure!((600..=800).contains(&some.count), "{some:?}");
    let other = echoes.ping(near, 1000)?;
    ensure!(other.count == 1000, "{other:?}");
    network.link(client, far).loss(1.0).apply()?;
    let none = echoes.ping(far, 100)?;
    ensure!(none.count == 0, "{none:?}");
    network.link(client, far).heal()?;
    let healed = echoes.ping(far, 1000)?;
    ensure!(healed.count == 1000, "{healed:?}");
    println!(
        "of 1000 datagrams: {} with a loss of 0.3, {} beside it, {} healed; of 100 with a loss of 1: {}",
        some.count, other.count, healed.count, none.count
    );
    Ok(())
}

fn a_rate_holds(_: &Context) -> Result<()> {
    const BYTES: u64 = 1 << 20;
    let network = Network::builder().create()?;
    let server = service(&["serve-zeros", "0.0.0.0:80", &BYTES.to_string()])?
        .network(&network)
        .network_alias("server")
        .start()?;
    drop(await_port(&server, 80)?);
    let client = service(&["serve-run", "127.0.0.1:81"])?
        .network(&network)
        .start()?;
    drop(await_port(&client, 81)?);
    let fetch = || -> Result<Duration> {
        let started = Instant::now();
        let answer = exchange(client.connect(81)?, b"discard server:80")?;
        ensure!(
            answer == BYTES.to_string().as_bytes(),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        Ok(started.elapsed())
    };
    let plain = fetch()?;
    network.link(&server, &client).rate("8mbit").apply()?;
    let slow = fetch()?;
    network.link(&server, &client).rate(Bytes::mib(2)).apply()?;
    let faster = fetch()?;
    network.heal()?;
    let healed = fetch()?;
    // 8 mbit are a megabyte a second, of which headers take some percent.
    ensure!((1000 * MS..2200 * MS).contains(&slow), "{slow:?}");
    ensure!((480 * MS..1200 * MS).contains(&faster), "{faster:?}");
    ensure!(
        plain < 500 * MS && healed < 500 * MS,
        "{plain:?} {healed:?}"
    );
    println!(
        "1 MiB by TCP: plain {:.0} MB/s, at 8 mbit {:.2} MB/s, at 2 MiB/s {:.2} MB/s, healed {:.0} MB/s",
        rate(BYTES, plain),
        rate(BYTES, slow),
        rate(BYTES, faster),
        rate(BYTES, healed)
    );
    Ok(())
}

fn an_open_connection_feels_it(_: &Context) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let network = Network::builder().create()?;
    let echo = service(&["serve-echo", "0.0.0.0:80"])?
        .network(&network)
        .network_alias("echo")
        .start()?;
    drop(await_port(&echo, 80)?);
    let proxy = service(&["serve-proxy", "127.0.0.1:81", "echo:80"])?
        .network(&network)
        .start()?;
    let mut stream = await_port(&proxy, 81)?;
    let mut says = |word: &[u8; 4]| -> Result<bool> {
        stream.set_read_timeout(Some(400 * MS))?;
        stream.write_all(word)?;
        let mut answer = [0; 4];
        Ok(stream.read_exact(&mut answer).is_ok() && answer == *word)
    };
    ensure!(says(b"one.")?);
    network.partition(&echo, &proxy)?;
    ensure!(!says(b"two.")?, "it went through");
    network.heal()?;
    // What was lost is sent again, by TCP.
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(answer == *b"two.");
    Ok(())
}

fn bad_faults(context: &Context) -> Result<()> {
    let network = Network::builder().create()?;
    let (one, other, alone) = (
        relay(&network)?,
        relay(&network)?,
        Sandbox::builder().cmd(["sleep", "60"]).start()?,
    );
    let audit = context.audit();
    let told = |done: std::result::Result<(), orbit::Error>| match done {
        Ok(()) => bail!("it was taken"),
        Err(error) if error.is_spec() => Ok(error.to_string()),
        Err(error) => bail!("{error}"),
    };
    let text = told(
        network
            .link(&one, &alone)
            .latency(Duration::from_secs(4000))
            .loss(1.5)
            .rate("1mbps")
            .apply(),
    )?;
    for part in [
        "latency",
        "loss `1.5`: expected a share from 0 to 1",
        "rate `1mbps`",
        "not on the network",
    ] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    ensure!(told(network.link(&one, &other).loss(f64::NAN).apply())?.contains("share"));
    ensure!(told(network.link(&one, &one).apply())?.contains("between two sandboxes"));
    ensure!(told(network.partition(&one, &alone))?.contains("not on the network"));
    Ok(audit.check()?)
}

fn faults_end(context: &Context) -> Result<()> {
    let network = Network::builder().subnet("10.5.0.0/29").create()?;
    let stays = relay(&network)?;
    let audit = context.audit();
    for round in 0..20 {
        let comes = relay(&network)?;
        ensure!(reaches(&network, &stays, &comes, Way::V4)?, "round {round}");
        network.partition(&stays, &comes)?;
        ensure!(
            !reaches(&network, &stays, &comes, Way::V4)?,
            "round {round}"
        );
    }
    let mut ended = Sandbox::builder().cmd(["true"]).network(&network).start()?;
    ensure!(ended.wait()?.status == Status::Exited(0));
    // Its place is there until it is dropped.
    network.partition(&stays, &ended)?;
    drop(ended);
    Ok(audit.check()?)
}
