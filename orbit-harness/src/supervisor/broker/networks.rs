//! Networks that sandboxes share: each a bridge in a network namespace of its own, with the links of its
//! sandboxes and a socket that answers names.
//!
//! Nothing is ever deleted link by link: a sandbox's end takes its link along, and a network's namespace ends with
//! its last descriptor, which is ours.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{
    event::epoll::EventFlags,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
};

use super::{
    namespaces::Namespaces,
    protocol::Answer,
    watch::{Kind, Watch},
};
use crate::{
    net::{addresses::Subnet, dns},
    netlink::Netlink,
    supervisor::channel::Channel,
};

/// What the bridge is called in its own namespace.
const BRIDGE: &str = "orbit0";
const DNS_PORT: u16 = 53;
/// As long as a question can be, with room for extensions.
const QUESTION_BYTES: usize = 4096;
/// Questions answered before others have their turn.
const QUESTIONS: usize = 64;

#[derive(Default)]
pub(super) struct Networks {
    networks: HashMap<u64, Network>,
    /// By the lease that holds them.
    members: HashMap<u64, Member>,
}

struct Network {
    lease: u64,
    /// Of the bridge; its socket is what keeps the namespace.
    netlink: Netlink,
    bridge: u32,
    resolver: OwnedFd,
}

/// A sandbox on a network.
struct Member {
    network: u64,
    /// The same on each network that a sandbox is on.
    sandbox: u64,
    address: Ipv4Addr,
    /// In lower case.
    names: Vec<String>,
    /// To its init, until it is connected.
    init: Option<Channel>,
    /// Its network namespace and the name of its link, once it is connected.
    link: Option<(OwnedFd, String)>,
}

impl Networks {
    /// Makes a network, which the lease of number `lease` holds.
    pub(super) fn create(
        &mut self,
        watch: &Watch,
        namespaces: &Namespaces,
        lease: u64,
        id: u64,
        subnet: Subnet,
    ) -> io::Result<()> {
        let (netlink, bridge, resolver) = namespaces.inside_new(|| {
            crate::sys::bring_up(c"lo")?;
            let netlink = Netlink::open()?;
            let bridge = netlink.add_bridge(BRIDGE, subnet.gateway())?;
            netlink.add_address(bridge, subnet.gateway(), subnet.prefix())?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
            let resolver = rustix::net::socket_with(family, kind, flags, None)?;
            rustix::net::bind(&resolver, &SocketAddr::from((subnet.gateway(), DNS_PORT)))?;
            Ok((netlink, bridge, resolver))
        })?;
        watch.add(resolver.as_fd(), Kind::Resolver, id, EventFlags::IN)?;
        let network = Network {
            lease,
            netlink,
            bridge,
            resolver,
        };
        self.networks.insert(id, network);
        Ok(())
    }

    /// Lets a sandbox have a link to the network `network` as soon as its init, at the other end of `init`, asks
    /// for it; and its names be known there from now on.
    pub(super) fn admit(
        &mut self,
        watch: &Watch,
        lease: u64,
        (network, sandbox): (u64, u64),
        address: Ipv4Addr,
        names: &[String],
        init: Channel,
    ) -> io::Result<()> {
        if !self.networks.contains_key(&network) {
            return Err(rustix::io::Errno::NOENT.into());
        }
        watch.add(init.as_fd(), Kind::Init, lease, EventFlags::IN)?;
        self.members.insert(
            lease,
            Member {
                network,
                sandbox,
                address,
                names: names.iter().map(|name| name.to_ascii_lowercase()).collect(),
                init: Some(init),
                link: None,
            },
        );
        Ok(())
    }

    /// The init of the member asks for its link, or is gone.
    pub(super) fn connect(&mut self, lease: u64) {
        let Some(member) = self.members.get_mut(&lease) else {
            return;
        };
        let Some(init) = member.init.take() else {
            return;
        };
        // Gone before it asked: its end is told elsewhere.
        let Ok(Some((name, mut fds))) = init.recv::<String>() else {
            return;
        };
        let made = match (self.networks.get(&member.network), fds.first()) {
            (Some(network), Some(namespace)) => network.netlink.add_veth(
                &format!("sandbox{lease}"),
                network.bridge,
                &name,
                namespace.as_fd(),
                member.address,
            ),
            _ => Err(rustix::io::Errno::NOENT.into()),
        };
        if made.is_ok() {
            member.link = fds.pop().map(|namespace| (namespace, name));
        }
        let answer: Answer = made.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        let _ = init.send(&answer, &[]);
    }

    /// Loses what the member at an address of a network sends to another, or finds it again.
    pub(super) fn lose(
        &self,
        namespaces: &Namespaces,
        (network, from): (u64, Ipv4Addr),
        to: Ipv4Addr,
        lost: bool,
    ) -> io::Result<()> {
        let is_sender = |member: &&Member| member.network == network && member.address == from;
        let sender = self.members.values().find(is_sender);
        let Some((namespace, link)) = sender.and_then(|member| member.link.as_ref()) else {
            return Err(rustix::io::Errno::NOENT.into());
        };
        namespaces.inside(namespace, || {
            let netlink = Netlink::open()?;
            let index = netlink.index(link)?;
            if lost {
                netlink.lose(index, to)
            } else {
                netlink.find(index, to)
            }
        })
    }

    /// Ends what the lease holds: a network, or a sandbox's place in one.
    pub(super) fn close(&mut self, lease: u64) {
        self.members.remove(&lease);
        self.networks.retain(|_, network| network.lease != lease);
    }

    /// Answers the questions that came to the network `id`.
    pub(super) fn resolve(&self, id: u64) {
        let Some(network) = self.networks.get(&id) else {
            return;
        };
        let mut question = [0; QUESTION_BYTES];
        for _ in 0..QUESTIONS {
            let received =
                rustix::net::recvfrom(&network.resolver, &mut question[..], RecvFlags::empty());
            let Ok((count, _, Some(from))) = received else {
                return;
            };
            let Ok(SocketAddr::V4(asker)) = SocketAddr::try_from(from.clone()) else {
                continue;
            };
            let known = |name: &str| self.addresses(id, *asker.ip(), name);
            if let Some(answer) = dns::answer(&question[..count.min(QUESTION_BYTES)], known) {
                // A lost answer is asked for again.
                let _ = rustix::net::sendto(
                    &network.resolver,
                    &answer,
                    SendFlags::NOSIGNAL,
                    &SocketAddr::V4(asker),
                );
            }
        }
    }

    /// Who is called `name` on the networks that the asker is on. It asks on one of them, but means all.
    fn addresses(&self, network: u64, asker: Ipv4Addr, name: &str) -> Option<Vec<Ipv4Addr>> {
        let asker = self
            .members
            .values()
            .find(|member| member.network == network && member.address == asker)?;
        let of_asker = self
            .members
            .values()
            .filter(|member| member.sandbox == asker.sandbox);
        let networks: Vec<u64> = of_asker.map(|member| member.network).collect();
        let mut found: Vec<Ipv4Addr> = self
            .members
            .values()
            .filter(|member| networks.contains(&member.network))
            .filter(|member| member.names.iter().any(|known| known == name))
            .map(|member| member.address)
            .collect();
        found.sort_unstable();
        (!found.is_empty()).then_some(found)
    }
}
