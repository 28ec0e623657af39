//! What a plan does about the way out of a sandbox's network: the gate, the program behind it, and the names beyond.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use crate::{
    host::Host,
    net::{
        egress::{Allowed, Block, Policy, Target},
        ports::Protocol,
    },
    netfilter::Gate,
    rootfs::Beyond,
    security::capabilities::{Capability, CapabilitySet},
    spec::{NetworkMode, Spec, SpecFault},
    step::Step,
};

/// Where the sandbox's questions for names go, which pasta passes on to the host's name server, wherever that is.
const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const DNS_PORT: u16 = 53;

/// The steps, and what files say.
#[derive(Default)]
pub(super) struct WayOut {
    /// Last of all: it takes longest, and goes on beside the other steps.
    pub(super) helper: Option<Step>,
    /// When all addresses are there.
    pub(super) gate: Option<Step>,
    pub(super) beyond: Beyond,
}

/// What is wrong with what was asked of egress.
pub(super) fn faults(spec: &Spec, host: &Host, held: CapabilitySet, faults: &mut Vec<SpecFault>) {
    let Some(policy) = &spec.egress else { return };
    let mut refuse = |field: &str, given: String, why: &str| {
        faults.push(SpecFault::new(field, given, why));
    };
    if spec.network == NetworkMode::Host {
        let why = "on the host's own network the program reaches what the host does; leave egress out, or leave out \
                   the host's network";
        refuse("egress", policy.to_string(), why);
    }
    if *policy != Policy::None && host.pasta.is_none() {
        let why =
            "the program pasta, which is the way out, is not installed: install the package passt";
        refuse("egress", policy.to_string(), why);
    }
    if !matches!(policy, Policy::Allow(_)) {
        return;
    }
    if held.contains(Capability::NetAdmin) {
        let why = "with it the program could lift the rules of egress; leave it out, or let out everything";
        refuse("cap_add", "NET_ADMIN".to_owned(), why);
    }
    let is_raw = |name: &&String| {
        let name = name.to_ascii_uppercase();
        name.strip_prefix("CAP_").unwrap_or(&name) == "NET_RAW"
    };
    if let Some(name) = spec.cap_add.iter().find(is_raw) {
        let why = "with it the program could send around the rules of egress; leave it out, or let out everything";
        refuse("cap_add", name.clone(), why);
    }
}

/// The capabilities that remain where only some of what is beyond may be reached.
pub(super) fn bounded(spec: &Spec, held: CapabilitySet) -> CapabilitySet {
    match spec.egress {
        Some(Policy::Allow(_)) => held.difference(CapabilitySet::from_iter([Capability::NetRaw])),
        _ => held,
    }
}

/// The host's name server, where the sandbox may ask it.
fn resolver(spec: &Spec, host: &Host) -> Option<Resolver> {
    let may_ask = match spec.egress.as_ref()? {
        Policy::None => false,
        Policy::All => true,
        Policy::Allow(rules) => rules.iter().any(|rule| rule.to == Target::Dns),
    };
    may_ask.then(|| Resolver::of(&host.resolv_conf)).flatten()
}

/// Whether the sandbox may ask a name server beyond its own networks.
pub(super) fn asks_beyond(spec: &Spec, host: &Host) -> bool {
    resolver(spec, host).is_some()
}

/// Plans the way out of a sandbox that has a network of its own.
pub(super) fn plan(spec: &Spec, host: &Host) -> WayOut {
    let policy = spec.egress.as_ref().unwrap_or(&Policy::None);
    let is_needed = matches!(policy, Policy::Allow(_));
    // Where there is a way out, the rules also keep pasta from losing sight of the sandbox.
    let is_wanted = match policy {
        Policy::None => spec.record_denied.unwrap_or(spec.egress.is_some()),
        Policy::All | Policy::Allow(_) => true,
    };
    let link = format!("eth{}", spec.links.len());
    let resolver = resolver(spec, host);
    let out = match policy {
        Policy::None => None,
        Policy::All => Some((link.clone(), None)),
        Policy::Allow(_) => {
            let asked = resolver.iter().flat_map(Resolver::allowed);
            let allowed = spec.looked_up.allowed.iter().copied().chain(asked);
            Some((link.clone(), Some(allowed.collect())))
        }
    };
    let gate = Gate {
        own: Vec::new(),
        links: (0..spec.links.len()).map(|n| format!("eth{n}")).collect(),
        out,
    };
    WayOut {
        gate: is_wanted.then_some(Step::Gate { gate, is_needed }),
        helper: host
            .pasta
            .as_ref()
            .filter(|_| *policy != Policy::None)
            .map(|program| Step::Egress {
                program: program.clone(),
                args: arguments(&link, resolver.as_ref()),
            }),
        beyond: Beyond {
            names: spec.looked_up.names.clone(),
            resolver: resolver.map(|resolver| resolver.file).unwrap_or_default(),
        },
    }
}

/// Who answers for names.
struct Resolver {
    servers: Vec<IpAddr>,
    is_forwarded: bool,
    /// `/etc/resolv.conf`.
    file: String,
}

impl Resolver {
    /// What a sandbox asks where the host's own file says this. Source: resolv.conf(5).
    fn of(host: &str) -> Option<Self> {
        let servers: Vec<IpAddr> = host
            .lines()
            .filter_map(|line| {
                line.strip_prefix("nameserver")?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        let is_forwarded = servers.iter().any(IpAddr::is_ipv4);
        let servers = if is_forwarded {
            vec![RESOLVER]
        } else {
            // pasta passes on what goes to these as it does all else.
            servers.into_iter().filter(|it| !it.is_loopback()).collect()
        };
        let mut file = String::new();
        for line in host.lines() {
            if line.starts_with("search ") || line.starts_with("options ") {
                let _ = writeln!(file, "{line}");
            }
        }
        for server in &servers {
            let _ = writeln!(file, "nameserver {server}");
        }
        (!servers.is_empty()).then_some(Self {
            servers,
            is_forwarded,
            file,
        })
    }

    fn allowed(&self) -> impl Iterator<Item = Allowed> {
        self.servers.iter().flat_map(|server| {
            [Protocol::Udp, Protocol::Tcp].map(|protocol| Allowed {
                to: Block::of(*server),
                ports: Some((DNS_PORT, DNS_PORT)),
                protocol: Some(protocol),
            })
        })
    }
}

/// What pasta is told: a link in the network namespace that is its standard input, configured as the host's own,
/// and nothing of what it does beside: no ports that lead in, no way to the host's loopback. It writes its number
/// to standard output when the link is there. Source: pasta(1).
fn arguments(link: &str, resolver: Option<&Resolver>) -> Vec<String> {
    let mut arguments = vec![
        "--foreground",
        "--quiet",
        "--config-net",
        "--ns-ifname",
        link,
        "--no-map-gw",
        "--no-dhcp",
        "--no-dhcpv6",
        "--no-ra",
    ];
    for ports in ["--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"] {
        arguments.extend([ports, "none"]);
    }
    arguments.extend([
        "--no-netns-quit",
        "--netns-only",
        "--netns",
        "/proc/self/fd/0",
        "--pid",
        "/proc/self/fd/1",
    ]);
    let mut arguments: Vec<String> = arguments.into_iter().map(Into::into).collect();
    if resolver.is_some_and(|resolver| resolver.is_forwarded) {
        arguments.extend(["--dns-forward".to_owned(), RESOLVER.to_string()]);
    }
    arguments
}
