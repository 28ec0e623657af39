//! What every sandbox has, whatever its root: `/proc`, `/sys`, `/dev`, and the files that name it.

use std::{fmt::Write as _, net::IpAddr, path::PathBuf};

use crate::{
    spec::{Link, LinkNames},
    step::{EtcFile, Step},
    units::Bytes,
};

/// What the files of a sandbox say of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Own,
    Host,
}

/// The system directories and the files that name the sandbox.
#[derive(Debug)]
pub(crate) struct SystemFiles<'a> {
    pub(crate) hostname: &'a str,
    pub(crate) network: Network,
    pub(crate) tty: bool,
    /// What the host's `/etc/resolv.conf` holds: what holds on the host's network.
    pub(crate) resolv_conf: &'a str,
    /// The networks it shares with other sandboxes.
    pub(crate) links: &'a [Link],
    /// What it knows of hosts beyond them.
    pub(crate) beyond: Beyond,
}

/// What a sandbox that has a way out knows of hosts there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// Their addresses, in `/etc/hosts`.
    pub(crate) names: Vec<(IpAddr, String)>,
    /// Who is asked for others: lines of `/etc/resolv.conf`.
    pub(crate) resolver: String,
}

/// What resolv.conf(5) takes; each knows the names of all networks that a sandbox is on.
const MAX_NAME_SERVERS: usize = 3;

/// What Docker gives `/dev/shm`.
const SHM: Bytes = Bytes::mib(64);

impl SystemFiles<'_> {
    /// The steps that mount the system directories.
    pub(crate) fn mounts(&self) -> Vec<Step> {
        let fresh = self.network == Network::Own;
        let mut mounts = vec![Step::Proc];
        if fresh {
            mounts.push(Step::AllPorts);
        }
        mounts.push(Step::Sys { fresh });
        mounts.push(Step::Dev {
            shm: SHM,
            console: self.tty,
        });
        mounts
    }

    /// The files of `/etc` that name the sandbox and its network.
    pub(crate) fn etc(&self) -> Vec<EtcFile> {
        let file = |name: &str, content: String| EtcFile {
            name: name.into(),
            content,
        };
        let hostname = self.hostname;
        let own = match self.links {
            [] => format!(" {hostname}"),
            _ => String::new(),
        };
        let mut hosts =
            format!("127.0.0.1\tlocalhost{own}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        for link in self.links {
            let _ = writeln!(hosts, "{}\t{hostname}", link.address);
            if let LinkNames::Hosts(known) = &link.names {
                for (address, name) in known.iter().filter(|(address, _)| *address != link.address)
                {
                    let _ = writeln!(hosts, "{address}\t{name}");
                }
            }
        }
        for (address, name) in &self.beyond.names {
            let _ = writeln!(hosts, "{address}\t{name}");
        }
        let mut files = vec![
            file("hostname", format!("{hostname}\n")),
            file("hosts", hosts),
        ];
        // Each of its networks' servers knows of all of them; the one beyond must not be the fourth, which nobody asks.
        let own_name_servers = if self.beyond.resolver.is_empty() {
            MAX_NAME_SERVERS
        } else {
            1
        };
        files.push(file(
            "resolv.conf",
            match self.network {
                // No network, no name servers: a lookup fails at once rather than after a timeout.
                Network::Own => {
                    self.links
                        .iter()
                        .filter(|link| link.names == LinkNames::Server)
                        .take(own_name_servers)
                        .fold(String::new(), |text, link| {
                            format!("{text}nameserver {}\n", link.subnet.gateway())
                        })
                        + &self.beyond.resolver
                }
                Network::Host => self.resolv_conf.to_owned(),
            },
        ));
        files
    }
}

/// Files and directories of `/proc` and `/sys` that tell of the host or reach its hardware: Docker's list.
///
/// Source: moby, oci/defaults.go, as of 2025.
pub(crate) fn masked_paths() -> Vec<PathBuf> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(PathBuf::from)
    .to_vec()
}

/// Parts of `/proc` through which the kernel is configured: Docker's list.
pub(crate) fn read_only_paths() -> Vec<PathBuf> {
    [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]
    .map(PathBuf::from)
    .to_vec()
}
