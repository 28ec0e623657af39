//! The bridge that sandboxes share: as root a link of the host.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{NetworkMode, Sandbox, SandboxBuilder, Status};
use orbit_tests::{Case, Context, Program, Skip, Who};

use crate::support::{await_port, exchange, service};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("bridge::sandboxes_share_it", sandboxes_share_it).needs(NEEDS),
        Case::new(
            "bridge::it_is_on_the_host_and_goes_with_its_last_user",
            on_the_host,
        )
        .who(&[Who::Root])
        .needs(NEEDS),
        Case::new("bridge::the_hosts_firewall_lets_it_pass", beside_a_firewall)
            .who(&[Who::Root])
            .needs(NEEDS),
        Case::new("bridge::nothing_leaves_it", nothing_leaves_it)
            .who(&[Who::Root])
            .needs(NEEDS),
        Case::new(
            "bridge::processes_share_it_and_no_address",
            processes_share_it,
        )
        .who(&[Who::Root])
        .needs(NEEDS),
        Case::new(
            "bridge::what_a_killed_process_left_is_reaped",
            killed_process,
        )
        .who(&[Who::Root])
        .needs(NEEDS),
        Case::new("bridge::bad_bridges_are_one_clear_error", bad_bridges).needs(NEEDS),
    ]
}

const NEEDS: &[&str] = &["iproute2", "nftables", "busybox-static"];

/// Not the default: the tests of another checkout may be using that.
const BRIDGE: &str = "orbit-e2e0";
const CIDR: &str = "172.29.7.0/24";

fn on_bridge(words: &[&str]) -> Result<SandboxBuilder> {
    let sandbox = service(words)?.network(NetworkMode::Bridge);
    Ok(sandbox.bridge(BRIDGE).bridge_cidr(CIDR))
}

fn sandboxes_share_it(_: &Context) -> Result<()> {
    let server = on_bridge(&["serve-text", "0.0.0.0:80", "bridged"])?
        .name("server")
        .start()?;
    drop(await_port(&server, 80)?);
    let address = server.bridge_address().context("it is on the bridge")?;
    for at in [format!("{address}:80"), "server:80".to_owned()] {
        let outcome = on_bridge(&["fetch", &at])?.run()?;
        ensure!(outcome.stdout_text() == "bridged", "{at}: {outcome:?}");
    }
    Ok(())
}

/// The supervisor and the broker stay: they are to be there before an audit begins.
fn start_supervisor() -> Result<()> {
    drop(Sandbox::builder().cmd(["true"]).expose(80).start()?);
    Ok(())
}

fn link_is_there(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn rules() -> Result<String> {
    Ok(Program::new("nft")
        .args(["list", "ruleset"])
        .run()?
        .success()?
        .stdout)
}

fn on_the_host(context: &Context) -> Result<()> {
    start_supervisor()?;
    let audit = context.audit();
    ensure!(!link_is_there(BRIDGE));
    let one = on_bridge(&["serve-echo", "0.0.0.0:80"])?.start()?;
    let other = on_bridge(&["serve-echo", "0.0.0.0:80"])?.start()?;
    ensure!(link_is_there(BRIDGE) && rules()?.contains(BRIDGE));
    let shown = Program::new("ip")
        .args(["-br", "address", "show", BRIDGE])
        .run()?
        .success()?;
    ensure!(shown.stdout.contains("172.29.7.1/24"), "{shown}");
    for sandbox in [&one, &other] {
        drop(await_port(sandbox, 80)?);
        let address = sandbox.bridge_address().context("it is on the bridge")?;
        ensure!(exchange(TcpStream::connect((address, 80))?, b"host")? == b"host");
    }
    drop(one);
    ensure!(link_is_there(BRIDGE));
    drop(other);
    ensure!(!link_is_there(BRIDGE) && !rules()?.contains(BRIDGE));
    ensure!(!Path::new("/run/orbit/bridges").join(BRIDGE).exists());
    Ok(audit.check()?)
}

/// A table of the host that drops what is forwarded on the bridge, as Docker's does of all. Removed with this value.
struct Dropping;

const FIREWALL: &str = "orbit-e2e-drops";

impl Dropping {
    fn add() -> Result<Self> {
        let dropping = Self;
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for line in [
            format!("add table ip {FIREWALL}"),
            format!("add chain ip {FIREWALL} FORWARD {{ type filter hook forward priority 0 ; }}"),
            format!("add rule ip {FIREWALL} FORWARD iifname {BRIDGE} counter drop"),
        ] {
            Program::new("nft").args(words(&line)).run()?.success()?;
        }
        Ok(dropping)
    }
}

impl Drop for Dropping {
    fn drop(&mut self) {
        let args = ["delete", "table", "ip", FIREWALL].map(str::to_owned);
        // The audit names what is left.
        let _ = Program::new("nft").args(args).run();
    }
}

fn beside_a_firewall(context: &Context) -> Result<()> {
    const SEES: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if !std::fs::read_to_string(SEES).is_ok_and(|it| it.trim() == "1") {
        return Err(Skip::because(format!(
            "needs br_netfilter, and 1 in {SEES}"
        )));
    }
    start_supervisor()?;
    let audit = context.audit();
    {
        let _dropping = Dropping::add()?;
        sandboxes_share_it(context)?;
        let left: Vec<_> = rules()?
            .lines()
            .filter(|line| line.contains(&format!("orbit-{BRIDGE}")))
            .map(str::to_owned)
            .collect();
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(audit.check()?)
}

/// Egress is off: what a sandbox sends to the host, or beyond, is dropped, and counted where it is.
fn nothing_leaves_it(_: &Context) -> Result<()> {
    let listener = std::net::TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    let script = format!(
        "busybox nc -w 1 172.29.7.1 {port} </dev/null; echo host $?\n\
         busybox nc -w 1 192.0.2.1 80 </dev/null; echo beyond $?\n\
         busybox ip route add default via 172.29.7.1\n\
         busybox nc -w 1 192.0.2.1 80 </dev/null; echo routed $?\n"
    );
    let sandbox = Sandbox::builder()
        .network(NetworkMode::Bridge)
        .bridge(BRIDGE)
        .bridge_cidr(CIDR)
        .cap_add("NET_ADMIN")
        .cmd(["sh", "-c", &script]);
    let mut sandbox = sandbox.arg("sh").start()?;
    let mut dropped = String::new();
    let until = Instant::now() + Duration::from_secs(10);
    while !dropped.contains("counter packets") || dropped.contains("input_nothing") {
        ensure!(Instant::now() < until, "{dropped}");
        let chain =
            ["list", "chain", "inet", &format!("orbit-{BRIDGE}"), "input"].map(str::to_owned);
        dropped = Program::new("nft").args(chain).run()?.success()?.stdout;
        if dropped.contains("packets 0 ") {
            dropped.push_str("input_nothing");
        }
        thread::sleep(Duration::from_millis(20));
    }
    let outcome = sandbox.wait()?;
    ensure!(
        outcome.stdout_text() == "host 1\nbeyond 1\nrouted 1\n",
        "{outcome:?}"
    );
    listener.set_nonblocking(true)?;
    ensure!(listener.accept().is_err(), "the host was reached");
    Ok(())
}

/// The name of a sandbox in a process of its own, and how it is kept: until its input ends.
fn in_another_process(context: &Context, name: &str) -> Result<std::process::Child> {
    let line = format!(
        "echo $(hostname) ready; exec {} serve-text 0.0.0.0:80 {name}",
        exe()?
    );
    let mut command =
        Command::new(std::env::var_os("ORBIT_TESTS_CARGO_ORBIT").context("main sets it")?);
    command
        .args([
            "orbit",
            "run",
            "--image",
            "host",
            "--name",
            name,
            "--timeout",
            "60s",
        ])
        .args([
            "--bridge",
            BRIDGE,
            "--bridge-cidr",
            CIDR,
            "--",
            "sh",
            "-c",
            &line,
        ])
        .current_dir(Path::new(&exe()?).parent().context("a directory")?)
        .env("TMPDIR", context.tmp())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().context("piped")?).read_line(&mut first)?;
    ensure!(first.contains("ready"), "{first:?}");
    Ok(child)
}

fn exe() -> Result<String> {
    Ok(std::env::current_exe()?.display().to_string())
}

fn processes_share_it(context: &Context) -> Result<()> {
    let names = ["first", "second", "third"];
    let mut children = names
        .iter()
        .map(|name| in_another_process(context, name))
        .collect::<Result<Vec<_>>>()?;
    let own = on_bridge(&["serve-echo", "0.0.0.0:80"])?.start()?;
    let mut seen = Vec::new();
    let last = own.bridge_address().context("it is on the bridge")?;
    for number in 2..last.octets()[3] {
        let answer = exchange(
            TcpStream::connect((Ipv4Addr::new(172, 29, 7, number), 80))?,
            b"",
        );
        seen.push(String::from_utf8(answer?)?);
    }
    ensure!(seen == names, "{seen:?}");
    // Those that were there before it are known by name.
    let outcome = on_bridge(&["fetch", "second:80"])?.run()?;
    ensure!(outcome.stdout_text() == "second", "{outcome:?}");
    for child in &mut children {
        child.kill()?;
        child.wait()?;
    }
    ensure!(link_is_there(BRIDGE));
    drop(own);
    ensure!(!link_is_there(BRIDGE), "the dead count for nobody");
    Ok(())
}

fn killed_process(context: &Context) -> Result<()> {
    let mut child = in_another_process(context, "killed")?;
    child.kill()?;
    child.wait()?;
    ensure!(link_is_there(BRIDGE), "nobody is left who could remove it");
    // With other addresses, so that what was left cannot be what is used.
    let mut next = on_bridge(&["fetch", "127.0.0.1:1"])?
        .bridge_cidr("172.29.8.0/24")
        .start()?;
    let address = next.bridge_address().context("it is on the bridge")?;
    ensure!(address.to_string() == "172.29.8.2", "{address}");
    ensure!(next.wait()?.status == Status::Exited(1));
    drop(next);
    ensure!(!link_is_there(BRIDGE) && !Path::new("/run/orbit/bridges").join(BRIDGE).exists());
    Ok(())
}

fn bad_bridges(context: &Context) -> Result<()> {
    start_supervisor()?;
    let audit = context.audit();
    let fails = |sandbox: SandboxBuilder, part: &str| match sandbox.start() {
        Ok(_) => bail!("no {part:?}"),
        Err(error) if error.to_string().contains(part) => Ok(()),
        Err(error) => bail!("no {part:?} in {error}"),
    };
    let bridge = |name: &str, cidr: &str| {
        let sandbox = Sandbox::builder()
            .cmd(["true"])
            .network(NetworkMode::Bridge);
        sandbox.bridge(name).bridge_cidr(cidr)
    };
    fails(
        bridge("sixteen-bytes-xx", CIDR),
        "bridge `sixteen-bytes-xx`: it is longer than the 15 bytes",
    )?;
    fails(bridge("a;b", CIDR), "bridge `a;b`: expected letters")?;
    fails(
        bridge(BRIDGE, "172.29.7.0"),
        "bridge cidr `172.29.7.0`: expected an IPv4 network",
    )?;
    // Each is told before a lease is taken, or a bridge made.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let network = orbit::Network::builder()
        .name("wide")
        .subnet("172.29.0.0/16")
        .create()?;
    for (sandbox, part) in [
        (bridge(BRIDGE, CIDR).network(&network), "overlaps with"),
        (bridge(BRIDGE, CIDR).network_alias("-db"), "alias `-db`"),
        (
            bridge(BRIDGE, CIDR).network_alias("10.0.0.1"),
            "alias `10.0.0.1`: a name of numbers alone",
        ),
        (bridge(BRIDGE, CIDR).expose(0), "expose `0`"),
        (
            bridge(BRIDGE, CIDR).publish("70000:80"),
            "`70000` is no port",
        ),
        (
            bridge(BRIDGE, CIDR)
                .publish("8080:80")
                .publish("[::]:8080:80"),
            "this port of the host is published twice",
        ),
        (
            bridge(BRIDGE, CIDR).publish((port, 80)),
            "the port is taken: this process itself",
        ),
        (bridge(BRIDGE, "172.29.7.0/31"), "expected 8 to 30"),
    ] {
        fails(sandbox, part)?;
        ensure!(!link_is_there(BRIDGE), "{part}");
        ensure!(
            !Path::new("/run/orbit/bridges").join(BRIDGE).exists(),
            "{part}"
        );
    }
    drop((network, taken));
    {
        let small = || bridge("orbit-e2e7", "172.29.10.0/30");
        let _only = small().cmd(["sleep", "60"]).start()?;
        fails(small(), "orbit-e2e7")?;
        fails(small(), "full")?;
    }
    ensure!(!link_is_there("orbit-e2e7"));
    if context.who == Who::Root {
        fails(bridge("lo", CIDR), "a link called lo is there already")?;
        let _holds = on_bridge(&["serve-echo", "0.0.0.0:80"])?.start()?;
        fails(
            bridge(BRIDGE, "172.29.8.0/24"),
            "172.29.7.0/24 while other sandboxes use it",
        )?;
        fails(
            bridge("orbit-e2e1", "172.29.0.0/16"),
            "the link orbit-e2e0 of this host has 172.29.7.1",
        )?;
    }
    Ok(audit.check()?)
}
