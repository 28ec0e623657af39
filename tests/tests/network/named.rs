//! Networks that sandboxes share.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{Network, Outcome, Sandbox, SandboxBuilder, Status};
use orbit_tests::{Case, Context, Who, images};

use crate::support::{await_port, raise_descriptor_limit, service};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("named::sandboxes_reach_each_other_by_name", reach_by_name),
        Case::new(
            "named::a_page_is_fetched_by_name_from_an_image",
            page_from_image,
        )
        .who(Who::RANGED)
        .needs(&["busybox-static"]),
        Case::new("named::what_is_not_there_is_told_at_once", not_there),
        Case::new(
            "named::networks_do_not_see_each_other",
            networks_do_not_see_each_other,
        ),
        Case::new(
            "named::a_sandbox_on_two_networks_knows_both",
            on_two_networks,
        ),
        Case::new(
            "named::bad_networks_are_told_before_anything_is_made",
            bad_networks,
        ),
        Case::new(
            "named::names_and_addresses_end_with_their_sandbox",
            names_end,
        ),
        Case::new(
            "named::a_name_of_many_is_answered_by_a_connection",
            name_of_many,
        ),
        Case::new("named::threads_share_a_network", threads_share_a_network),
        Case::new(
            "named::a_hundred_sandboxes_on_port_80",
            a_hundred_on_port_80,
        )
        .who(Who::RANGED)
        .deadline(Duration::from_secs(240)),
        Case::new(
            "named::a_thousand_members_leave_nothing",
            a_thousand_members,
        )
        .who(Who::RANGED)
        .deadline(Duration::from_secs(300)),
    ]
}

fn fetch(network: &Network, at: &str) -> Result<Outcome> {
    Ok(service(&["fetch", at])?
        .network(network)
        .timeout(Duration::from_secs(10))
        .run()?)
}

/// The text that `at` serves, as another sandbox of the network sees it.
fn fetched(network: &Network, at: &str) -> Result<String> {
    let outcome = fetch(network, at)?;
    ensure!(outcome.status == Status::Exited(0), "{at}: {outcome:?}");
    Ok(outcome.stdout_text().clone())
}

/// A sandbox that serves `text` on port 80, once it does.
fn serves(sandbox: SandboxBuilder) -> Result<Sandbox> {
    let sandbox = sandbox.start()?;
    drop(await_port(&sandbox, 80)?);
    Ok(sandbox)
}

fn text(text: &str) -> Result<SandboxBuilder> {
    service(&["serve-text", "0.0.0.0:80", text])
}

fn reach_by_name(_: &Context) -> Result<()> {
    let network = Network::builder()
        .subnet("10.9.8.0/24")
        .internal(true)
        .name("backend")
        .create()?;
    let db = serves(
        text("I am db")?
            .name("database")
            .hostname("db-host")
            .network(&network)
            .network_alias("db")
            .network_alias("db.internal"),
    )?;
    let address = db.address(&network).context("it is on the network")?;
    ensure!(
        network.subnet().contains(address) && address.to_string() == "10.9.8.2",
        "{address}"
    );
    for name in ["database", "db-host", "db", "DB", "db.internal", "10.9.8.2"] {
        let answer = fetched(&network, &format!("{name}:80")).context(name)?;
        ensure!(answer == "I am db", "{name}: {answer:?}");
    }
    // And what a sandbox knows of itself.
    let hosts = Sandbox::builder()
        .cmd([
            "sh",
            "-c",
            "cat /etc/hosts /etc/resolv.conf; ls /sys/class/net",
        ])
        .hostname("me")
        .network(&network)
        // To say so twice makes no second link.
        .network(&network.clone())
        .run()?;
    let hosts = hosts.stdout_text().clone();
    for line in [
        "127.0.0.1\tlocalhost\n",
        "\tme\n",
        "nameserver 10.9.8.1\n",
        "eth0\nlo\n",
    ] {
        ensure!(hosts.contains(line), "no {line:?} in {hosts}");
    }
    Ok(())
}

fn page_from_image(_: &Context) -> Result<()> {
    let image = images::reference("busybox")?;
    let network = Network::builder().create()?;
    let script = "mkdir /www && echo a page >/www/index.html && exec httpd -f -p 80 -h /www";
    let _web = serves(
        Sandbox::builder()
            .image(&image)
            .cmd(["sh", "-c", script])
            .network(&network)
            .network_alias("web"),
    )?;
    let page = Sandbox::builder()
        .image(&image)
        .cmd([
            "sh",
            "-c",
            "wget -q -O- http://web/ && cat /etc/hosts /etc/resolv.conf",
        ])
        .network(&network)
        .run()?;
    ensure!(page.status == Status::Exited(0), "{page:?}");
    let text = page.stdout_text().clone();
    ensure!(
        text.starts_with("a page\n") && text.contains("nameserver 10.88.0.1"),
        "{text}"
    );
    Ok(())
}

fn not_there(_: &Context) -> Result<()> {
    let network = Network::builder().create()?;
    for (at, why) in [
        ("nobody:80", "failed to lookup address"),
        ("example.com:80", "failed to lookup address"),
        // The world beyond: there is no way there, and no packet that could leave.
        ("192.0.2.1:80", "unreachable"),
        ("10.88.0.1:80", "refused"),
    ] {
        let started = Instant::now();
        let outcome = fetch(&network, at)?;
        let said = outcome.stderr_text().clone();
        ensure!(
            outcome.status == Status::Exited(1) && said.contains(why),
            "{at}: {outcome:?}"
        );
        ensure!(
            started.elapsed() < Duration::from_secs(4),
            "{at} took {:?}",
            started.elapsed()
        );
    }
    Ok(())
}

fn networks_do_not_see_each_other(_: &Context) -> Result<()> {
    // The same addresses, and yet two networks.
    let networks = [(); 2].map(|()| Network::builder().subnet("10.9.8.0/24").create());
    let [one, other] = networks;
    let (one, other) = (one?, other?);
    let _of_one = serves(text("one")?.network(&one).network_alias("shared"))?;
    let _of_other = serves(text("other")?.network(&other).network_alias("shared"))?;
    ensure!(fetched(&one, "shared:80")? == "one");
    ensure!(fetched(&other, "shared:80")? == "other");
    let _only = serves(text("only")?.network(&one).network_alias("only"))?;
    ensure!(fetched(&one, "only:80")? == "only");
    for at in ["only:80", "10.9.8.4:80"] {
        let outcome = fetch(&other, at)?;
        ensure!(outcome.status != Status::Exited(0), "{at}: {outcome:?}");
    }
    Ok(())
}

fn on_two_networks(_: &Context) -> Result<()> {
    let front = Network::builder().subnet("10.1.0.0/24").create()?;
    let back = Network::builder().subnet("10.2.0.0/24").create()?;
    let _web = serves(text("front")?.network(&front).network_alias("web"))?;
    let _db = serves(text("back")?.network(&back).network_alias("db"))?;
    for (at, answer) in [("web:80", "front"), ("db:80", "back")] {
        let outcome = service(&["fetch", at])?
            .network(&front)
            .network(&back)
            .run()?;
        ensure!(outcome.stdout_text() == answer, "{at}: {outcome:?}");
    }
    // It is no router between them.
    let _both = service(&["serve-echo", "0.0.0.0:80"])?
        .network(&front)
        .network(&back)
        .start()?;
    ensure!(fetch(&front, "10.2.0.2:80")?.status != Status::Exited(0));
    Ok(())
}

fn bad_networks(context: &Context) -> Result<()> {
    let fails = |started: std::result::Result<Sandbox, orbit::Error>, part: &str| match started {
        Ok(_) => bail!("no {part:?}"),
        Err(error) if error.to_string().contains(part) => Ok(()),
        Err(error) => bail!("no {part:?} in {error}"),
    };
    let nobody = || Sandbox::builder().cmd(["true"]);
    let audit = context.audit();
    for (subnet, why) in [
        ("10.0.0.0", "expected an IPv4 network"),
        ("10.0.0.1/24", "did you mean 10.0.0.0/24?"),
        ("10.0.0.0/31", "expected 8 to 30"),
    ] {
        match Network::builder().subnet(subnet).create() {
            Ok(network) => bail!("{network:?}"),
            Err(error) => ensure!(
                error.is_spec() && error.to_string().contains(why),
                "{error}"
            ),
        }
    }
    match Network::builder().internal(false).create() {
        Ok(network) => bail!("{network:?}"),
        Err(error) => ensure!(error.is_spec(), "{error}"),
    }
    fails(
        nobody().network_alias("db").start(),
        "the sandbox is on no network that has names",
    )?;
    audit.check()?;

    let small = Network::builder()
        .subnet("10.3.0.0/30")
        .name("small")
        .create()?;
    let around = Network::builder()
        .subnet("10.0.0.0/8")
        .name("around")
        .create()?;
    let audit = context.audit();
    fails(
        nobody().network(&small).network_alias("no host").start(),
        "network alias `no host`: expected labels of letters",
    )?;
    let (long, label) = (["long"; 14].join("."), "x".repeat(64));
    for (alias, why) in [
        ("", "expected labels"),
        ("-db", "expected labels"),
        ("db-", "expected labels"),
        (label.as_str(), "expected labels"),
        (long.as_str(), "longer than the 64 bytes"),
        ("10.0.0.1", "numbers alone"),
        ("localhost", "each sandbox has this name for itself"),
    ] {
        let started = nobody().network(&small).network_alias(alias).start();
        fails(started, &format!("network alias `{alias}`: "))?;
        fails(nobody().network(&small).network_alias(alias).start(), why)?;
    }
    fails(
        nobody().network(&small).network(&around).start(),
        "its subnet 10.0.0.0/8 overlaps with 10.3.0.0/30 of the network small",
    )?;
    audit.check()?;
    let _last = Sandbox::builder()
        .cmd(["sleep", "60"])
        .network(&small)
        .start()?;
    fails(
        nobody().network(&small).start(),
        "the network small (10.3.0.0/30) is full: each of its 1 addresses is a sandbox's",
    )
}

fn names_end(_: &Context) -> Result<()> {
    let network = Network::builder().subnet("10.3.0.0/29").create()?;
    for round in 0..20 {
        let named = serves(
            text(&round.to_string())?
                .network(&network)
                .network_alias("db"),
        )?;
        let seen = fetched(&network, "db:80")
            .with_context(|| format!("round {round}, db at {:?}", named.address(&network)))?;
        ensure!(seen == round.to_string());
        drop(named);
        let outcome = fetch(&network, "db:80")?;
        ensure!(
            outcome.stderr_text().contains("lookup"),
            "round {round}: {outcome:?}"
        );
    }
    Ok(())
}

/// More addresses than a datagram holds: the system's resolver asks again by TCP.
fn name_of_many(_: &Context) -> Result<()> {
    let network = Network::builder().create()?;
    let sleeper = || {
        Sandbox::builder()
            .cmd(["sleep", "60"])
            .disk("1M")
            .network(&network)
            .network_alias("many")
            .start()
    };
    let mut many = Vec::new();
    for count in [1, 12, 13, 40] {
        while many.len() < count {
            many.push(sleeper()?);
        }
        let outcome = service(&["resolve", "many"])?.network(&network).run()?;
        ensure!(
            outcome.stdout_text() == count.to_string(),
            "{count}: {outcome:?}"
        );
    }
    Ok(())
}

fn threads_share_a_network(_: &Context) -> Result<()> {
    let network = Network::builder().create()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let network = network.clone();
                scope.spawn(move || -> Result<()> {
                    let name = format!("thread{number}");
                    let _own = serves(text(&name)?.network(&network).network_alias(&name))?;
                    ensure!(fetched(&network, &format!("{name}:80"))? == name);
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("panicked"))?)
    })
}

fn a_hundred_on_port_80(_: &Context) -> Result<()> {
    const COUNT: usize = 100;
    raise_descriptor_limit()?;
    let network = Network::builder().create()?;
    let started = Instant::now();
    let sandboxes = (0..COUNT)
        .map(|number| serves(text(&number.to_string())?.disk("1M").network(&network)))
        .collect::<Result<Vec<_>>>()?;
    let made = started.elapsed();
    let mut script = String::new();
    for sandbox in &sandboxes {
        let address = sandbox.address(&network).context("an address")?;
        writeln!(script, "busybox nc {address} 80 </dev/null; echo")?;
    }
    let outcome = Sandbox::builder()
        .cmd(["sh", "-c", &script])
        .network(&network)
        .run()?;
    let expected: Vec<String> = (0..COUNT).map(|number| number.to_string()).collect();
    ensure!(
        outcome.stdout_text() == expected.join("\n") + "\n",
        "{outcome:?}"
    );
    println!(
        "{COUNT} sandboxes on one network, each ready on its port 80 before the next: {made:?}"
    );
    Ok(())
}

fn a_thousand_members(context: &Context) -> Result<()> {
    const ROUNDS: usize = 1000;
    let network = Network::builder().subnet("10.3.0.0/28").create()?;
    let join = || {
        Sandbox::builder()
            .cmd(["true"])
            .disk("1M")
            .network(&network)
            .run()
    };
    join()?;
    let audit = context.audit();
    let before = descriptors_of_descendants();
    let started = Instant::now();
    for round in 0..ROUNDS {
        let own = if round % 10 == 0 {
            Some(Network::builder().create()?)
        } else {
            None
        };
        match &own {
            Some(own) => Sandbox::builder()
                .cmd(["true"])
                .network(&network)
                .network(own)
                .run(),
            None => join(),
        }
        .with_context(|| format!("round {round}"))?;
    }
    println!(
        "{ROUNDS} sandboxes on a network, every tenth with one of its own: {:?}",
        started.elapsed()
    );
    audit.check()?;
    same_descriptors(&before)
}

/// The supervisor and the broker have no more files open than before.
pub(crate) fn same_descriptors(before: &[(i32, usize)]) -> Result<()> {
    let after = descriptors_of_descendants();
    ensure!(
        before == after,
        "descriptors of the supervisor and the broker: {before:?}, then {after:?}"
    );
    Ok(())
}

/// How many files each descendant has open, where that may be looked at: by root only. Without the network namespace that a
/// supervisor makes when it has nothing to do, of which there is one at most.
pub(crate) fn descriptors_of_descendants() -> Vec<(i32, usize)> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = orbit_tests::proc_fs::descendants(own);
    let is_spare = |it: &orbit_tests::proc_fs::Process| it.name == "orbit-spare";
    let spares: Vec<_> = found
        .iter()
        .filter(|it| is_spare(it))
        .map(|it| it.parent)
        .collect();
    // An init may stand by that did not before, or the other way round.
    found.retain(|it| !is_spare(it));
    let has_spare = |pid| spares.contains(&pid);
    let open = |pid: i32, is_supervisor: bool| {
        let files = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        let targets = files.map(|file| fs::read_link(file?.path()));
        let (networks, others): (Vec<_>, Vec<_>) = targets.partition(|target| {
            let target = target.as_ref().ok().and_then(|target| target.to_str());
            target.is_some_and(|target| target.starts_with("net:["))
        });
        // By its number, and the channel on which it is told.
        let standing = if has_spare(pid) { 2 } else { 0 };
        others.len().saturating_sub(standing)
            + networks.len().saturating_sub(usize::from(is_supervisor))
    };
    found
        .into_iter()
        .map(|process| (process.pid, open(process.pid, process.parent == own)))
        .collect()
}
