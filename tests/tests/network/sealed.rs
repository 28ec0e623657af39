//! That no packet leaves a sandbox which was given no way out: counted at every way that there is, while it tries.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use orbit::{Egress, Network, NetworkMode, Sandbox, SandboxBuilder};
use orbit_tests::{Case, Context, Who};

use crate::egress::SERVER;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &["python3", "iproute2", "passt"];
    vec![
        Case::new("sealed::no_packet_leaves", no_packet_leaves)
            .needs(needs)
            .in_world(SERVER),
        Case::new("sealed::no_packet_leaves_a_network", named_network)
            .needs(needs)
            .in_world(SERVER),
        Case::new("sealed::no_packet_leaves_the_bridge", bridge)
            .needs(&["python3", "iproute2", "nftables"])
            .in_world(SERVER),
    ]
}

const TRY_HARD: &str = include_str!("try_hard.py");

fn tries(gateways: &[&str]) -> SandboxBuilder {
    Sandbox::builder()
        .cmd(["python3", "-c", TRY_HARD])
        .args(gateways)
        .timeout(Duration::from_secs(60))
}

/// What the links of this namespace have sent and received, but for those of sandboxes and their bridge.
fn counted() -> Result<Vec<(String, u64, u64)>> {
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    let mut counted = Vec::new();
    for line in table.lines().skip(2) {
        let (name, counters) = line.split_once(':').context("a link")?;
        let counters: Vec<u64> = counters.split_whitespace().flat_map(str::parse).collect();
        let name = name.trim();
        if name == "uplink" || name == "lo" {
            counted.push((name.to_owned(), counters[1], counters[9]));
        }
    }
    ensure!(counted.len() == 2, "{table}");
    Ok(counted)
}

/// A link that comes up tells others of its groups, twice within some seconds. Source: RFC 3810, section 9.
const SETTLED: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(300);

/// As [`counted`], once nothing has moved for so long.
fn quiet(pause: Duration) -> Result<Vec<(String, u64, u64)>> {
    let mut before = counted()?;
    for _ in 0..20 {
        thread::sleep(pause);
        let now = counted()?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    anyhow::bail!("the links of this namespace are never quiet: {before:?}")
}

/// Runs the sandbox, and counts: nothing has moved.
fn stays_in(what: &str, sandbox: SandboxBuilder) -> Result<()> {
    let before = quiet(PAUSE)?;
    let outcome = sandbox.run().context(what.to_owned())?;
    ensure!(outcome.success(), "{what}: {outcome:?}");
    // What would be on its way still is given the time.
    thread::sleep(Duration::from_millis(200));
    let after = counted()?;
    ensure!(before == after, "{what}: from {before:?} to {after:?}");
    println!("{what}: {}", outcome.stdout_text().trim());
    Ok(())
}

/// The control: the same counters move where there is a way out.
fn gets_out(what: &str, sandbox: SandboxBuilder) -> Result<()> {
    let before = quiet(PAUSE)?;
    let outcome = sandbox
        .egress(Egress::all())
        .run()
        .context(what.to_owned())?;
    ensure!(outcome.success(), "{what}: {outcome:?}");
    let after = counted()?;
    let sent = |counted: &[(String, u64, u64)]| {
        counted
            .iter()
            .find(|(name, ..)| name == "uplink")
            .map(|it| it.2)
    };
    let (before, after) = (sent(&before), sent(&after));
    ensure!(
        after > before.map(|sent| sent + 10),
        "{what}: {before:?} to {after:?}"
    );
    println!(
        "{what}, with a way out: {} packets more",
        after.unwrap_or(0) - before.unwrap_or(0)
    );
    Ok(())
}

fn no_packet_leaves(context: &Context) -> Result<()> {
    quiet(SETTLED)?;
    stays_in("by default", tries(&[]))?;
    stays_in("none", tries(&[]).egress(Egress::none()))?;
    stays_in("recorded", tries(&[]).record_denied(true))?;
    // With all that Orbit gives over a sandbox's own network.
    let mighty = || tries(&[]).user("0").cap_add("NET_ADMIN").cap_add("NET_RAW");
    if context.who != Who::Single {
        stays_in("NET_ADMIN", mighty())?;
        stays_in("NET_ADMIN, recorded", mighty().record_denied(true))?;
    }
    stays_in("nested", tries(&[]).nested(true))?;
    // A list that names nothing that is tried.
    stays_in(
        "a list of others",
        tries(&[]).egress(Egress::allow(["192.0.2.77:1"])),
    )?;
    gets_out("the control", tries(&[]))
}

fn named_network(_: &Context) -> Result<()> {
    let network = Network::builder().subnet("10.77.0.0/24").create()?;
    quiet(SETTLED)?;
    let _neighbour = Sandbox::builder()
        .cmd(["sleep", "60"])
        .network(&network)
        .start()?;
    let tries = || tries(&["10.77.0.1", "10.77.0.2"]).network(&network);
    stays_in("on a network", tries())?;
    stays_in("on a network, none", tries().egress(Egress::none()))?;
    stays_in(
        "on a network, mighty",
        tries().user("0").cap_add("NET_ADMIN"),
    )?;
    gets_out("on a network", tries())
}

fn bridge(_: &Context) -> Result<()> {
    let tries = || {
        tries(&["172.29.7.1"])
            .network(NetworkMode::Bridge)
            .bridge("orbit-e2e2")
            .bridge_cidr("172.29.7.0/24")
    };
    // What a bridge sends of itself when it comes up is not the sandbox's.
    let _holds = Sandbox::builder()
        .cmd(["sleep", "60"])
        .network(NetworkMode::Bridge)
        .bridge("orbit-e2e2")
        .bridge_cidr("172.29.7.0/24")
        .start()?;
    quiet(SETTLED)?;
    stays_in("on the bridge", tries())?;
    stays_in("on the bridge, none", tries().egress(Egress::none()))?;
    stays_in(
        "on the bridge, mighty",
        tries().user("0").cap_add("NET_ADMIN"),
    )?;
    gets_out("on the bridge", tries())
}
