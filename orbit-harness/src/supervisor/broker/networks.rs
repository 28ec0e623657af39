//! Networks that sandboxes share: each a bridge in a network namespace of its own, with the links of its
//! sandboxes and who answers names.
//!
//! Nothing is ever deleted link by link: a sandbox's end takes its link along, and a network's namespace ends with
//! its last descriptor, which is ours.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{SocketFlags, SocketType},
};

use super::{
    namespaces::Namespaces,
    protocol::Answer,
    resolver::{Connections, Resolver},
    trunk::{self, Heard, Known, Peer, Word},
    watch::{Kind, Watch},
    wire::Wire,
};
use crate::{
    net::{
        addresses::Subnet,
        dns::Found,
        faults::Faults,
        frames::{self, Destination},
    },
    netlink::Netlink,
    supervisor::channel::Channel,
    sys,
};

/// What the bridge is called in its own namespace.
const BRIDGE: &str = "orbit0";

#[derive(Default)]
pub(super) struct Networks {
    all: HashMap<u64, Network>,
    /// By the lease that holds them.
    members: HashMap<u64, Member>,
    questions: Connections,
    /// Brokers of other processes.
    peers: HashMap<u64, Peer>,
    /// For messages of peers; made with the first.
    buffer: Vec<u8>,
}

struct Network {
    lease: u64,
    subnet: Subnet,
    netlink: Netlink,
    namespace: OwnedFd,
    bridge: u32,
    resolver: Resolver,
    /// Made with the first fault, or for a network that other processes are on.
    wire: Option<Wire>,
    /// Where brokers of other processes come in.
    trunk: Option<OwnedFd>,
    /// The lease of who had an address last: the kernel takes its link apart some time after its end.
    former: HashMap<Ipv4Addr, u64>,
}

/// A sandbox on a network.
struct Member {
    network: u64,
    /// The same on each network that a sandbox is on.
    sandbox: u64,
    address: Ipv4Addr,
    /// In lower case.
    names: Vec<String>,
    /// Whether it has a name server beyond its networks, too.
    asks_beyond: bool,
    /// To its init, until it is connected.
    init: Option<Channel>,
    /// Its network namespace and the name of its link, once it is connected.
    link: Option<(OwnedFd, String)>,
}

/// What the port of the bridge is called that leads to the member of this lease. No other ever has the name.
fn port_name(lease: u64) -> String {
    format!("sandbox{lease}")
}

impl Network {
    /// The wire, which is made where there is none yet.
    fn wire(&mut self, watch: &Watch, namespaces: &Namespaces, id: u64) -> io::Result<&mut Wire> {
        if let Some(ref mut wire) = self.wire {
            return Ok(wire);
        }
        let namespace = self.namespace.as_fd();
        let wire = Wire::make(&self.netlink, self.bridge, namespaces, namespace)?;
        watch.add(wire.socket(), Kind::Wire, id, EventFlags::IN)?;
        Ok(self.wire.insert(wire))
    }
}

impl Networks {
    /// Makes a network, which the lease of the first number holds.
    pub(super) fn create(
        &mut self,
        watch: &Watch,
        namespaces: &Namespaces,
        (lease, id): (u64, u64),
        subnet: Subnet,
        trunk: Option<OwnedFd>,
    ) -> io::Result<()> {
        let (netlink, namespace, bridge, resolver) = namespaces.inside_new(|| {
            let socket = sys::network_socket()?;
            sys::bring_up(&socket, c"lo")?;
            let netlink = Netlink::open()?;
            let bridge = netlink.add_bridge(BRIDGE, subnet.gateway())?;
            netlink.add_address(bridge, subnet.gateway(), subnet.prefix())?;
            let resolver = Resolver::make(subnet.gateway())?;
            let namespace = sys::namespace_of(&socket)?;
            Ok((netlink, namespace, bridge, resolver))
        })?;
        resolver.watch(watch, id)?;
        let mut network = Network {
            lease,
            subnet,
            netlink,
            namespace,
            bridge,
            resolver,
            wire: None,
            trunk,
            former: HashMap::new(),
        };
        if let Some(trunk) = &network.trunk {
            watch.add(trunk.as_fd(), Kind::Trunk, id, EventFlags::IN)?;
            network.wire(watch, namespaces, id)?;
        }
        self.all.insert(id, network);
        Ok(())
    }

    /// Lets a sandbox have a link to the network `network` as soon as its init, at the other end of `init`, asks
    /// for it; and its names be known there from now on.
    pub(super) fn admit(
        &mut self,
        watch: &Watch,
        lease: u64,
        (network, sandbox): (u64, u64),
        (address, names): (Ipv4Addr, &[String]),
        asks_beyond: bool,
        init: Channel,
    ) -> io::Result<()> {
        let known = self.all.get_mut(&network).ok_or(Errno::NOENT)?;
        if let Some(former) = known.former.insert(address, lease) {
            silence(known, former)?;
        }
        watch.add(init.as_fd(), Kind::Init, lease, EventFlags::IN)?;
        let names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        self.tell(
            watch,
            network,
            &Word::Joined(Known {
                key: lease,
                address,
                names: names.clone(),
            }),
        );
        self.members.insert(
            lease,
            Member {
                network,
                sandbox,
                address,
                names,
                asks_beyond,
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
        let made = match (self.all.get(&member.network), fds.first()) {
            (Some(network), Some(namespace)) => network.netlink.add_veth(
                &port_name(lease),
                network.bridge,
                &name,
                namespace.as_fd(),
                member.address,
            ),
            _ => Err(Errno::NOENT.into()),
        };
        if made.is_ok() {
            member.link = fds.pop().map(|namespace| (namespace, name));
        }
        let answer: Answer = made.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        let _ = init.send(&answer, &[]);
    }

    fn member(&self, network: u64, address: Ipv4Addr) -> Option<(u64, &Member)> {
        let mut members = self.members.iter();
        members
            .find(|(_, member)| member.network == network && member.address == address)
            .map(|(lease, member)| (*lease, member))
    }

    /// What is wrong from now on with what the first of two members sends to the second.
    pub(super) fn set_faults(
        &mut self,
        watch: &Watch,
        namespaces: &Namespaces,
        id: u64,
        (from, to): (Ipv4Addr, Ipv4Addr),
        faults: Faults,
    ) -> io::Result<()> {
        let (receiver, _) = self.member(id, to).ok_or(Errno::NOENT)?;
        let network = self.all.get_mut(&id).ok_or(Errno::NOENT)?;
        let port = network.netlink.index(&port_name(receiver))?;
        network.wire(watch, namespaces, id)?;
        if let Some(wire) = &mut network.wire {
            wire.set(&network.netlink, (from, to), port, faults)?;
        }
        let told = self.at_sender(namespaces, id, from, |netlink, link| {
            netlink.set_neighbour(link, to.into(), frames::detour(to))?;
            match netlink.set_neighbour(link, frames::link_local(to), frames::detour(to)) {
                // A sandbox without IPv6.
                Err(error) if is_without_ipv6(&error) => Ok(()),
                other => other,
            }
        });
        if told.is_err() {
            // What failed first is what is told.
            let _ = self.clear_faults(namespaces, id, (from, to));
        }
        told
    }

    /// Nothing is wrong any more with what the first of two members sends to the second.
    pub(super) fn clear_faults(
        &mut self,
        namespaces: &Namespaces,
        id: u64,
        (from, to): (Ipv4Addr, Ipv4Addr),
    ) -> io::Result<()> {
        let told = self.at_sender(namespaces, id, from, |netlink, link| {
            for address in [IpAddr::V4(to), frames::link_local(to)] {
                match netlink.remove_neighbour(link, address) {
                    Err(error)
                        if error.raw_os_error() == Some(libc::ENOENT)
                            || is_without_ipv6(&error) => {}
                    other => other?,
                }
            }
            Ok(())
        });
        if let Some(network) = self.all.get_mut(&id)
            && let Some(wire) = &mut network.wire
        {
            wire.clear(&network.netlink, (from, to));
        }
        match told {
            // The sender is gone, and what it knew.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Nothing is wrong any more with the network.
    pub(super) fn heal(&mut self, namespaces: &Namespaces, id: u64) -> io::Result<()> {
        let wire = self.all.get(&id).and_then(|it| it.wire.as_ref());
        for pair in wire.map(Wire::pairs).unwrap_or_default() {
            self.clear_faults(namespaces, id, pair)?;
        }
        Ok(())
    }

    /// What `act` does in the network namespace of the member at `from`, with the number of its link.
    fn at_sender(
        &self,
        namespaces: &Namespaces,
        id: u64,
        from: Ipv4Addr,
        act: impl FnOnce(&Netlink, u32) -> io::Result<()>,
    ) -> io::Result<()> {
        let sender = self.member(id, from).and_then(|(_, it)| it.link.as_ref());
        let (namespace, link) = sender.ok_or(Errno::NOENT)?;
        namespaces.inside(namespace, || {
            let netlink = Netlink::open()?;
            let index = netlink.index(link)?;
            act(&netlink, index)
        })
    }

    /// Ends what the lease holds: a network, or a sandbox's place in one.
    pub(super) fn close(&mut self, watch: &Watch, namespaces: &Namespaces, lease: u64) {
        if let Some((id, address)) = self
            .members
            .get(&lease)
            .map(|member| (member.network, member.address))
        {
            self.end_member(watch, namespaces, lease, id, address);
        }
        let ended: Vec<u64> = self
            .all
            .extract_if(|_, network| network.lease == lease)
            .map(|(id, _)| id)
            .collect();
        for id in ended {
            self.questions.close(id);
            self.peers.retain(|_, peer| peer.network != id);
        }
    }

    fn end_member(
        &mut self,
        watch: &Watch,
        namespaces: &Namespaces,
        lease: u64,
        id: u64,
        address: Ipv4Addr,
    ) {
        let wire = self.all.get(&id).and_then(|it| it.wire.as_ref());
        // The next at this address is parted from nobody.
        for pair in wire.map(Wire::pairs).unwrap_or_default() {
            if pair.0 == address || pair.1 == address {
                let _ = self.clear_faults(namespaces, id, pair);
            }
        }
        self.members.remove(&lease);
        if let Some(network) = self.all.get_mut(&id) {
            if let Some(wire) = &mut network.wire {
                wire.forget(&network.netlink, address);
            }
            if network.trunk.is_some() {
                // The next at this address may be another process's, at once.
                let _ = silence(network, lease);
            }
        }
        self.tell(watch, id, &Word::Left(lease));
    }

    /// Answers the datagrams that came to the network `id`.
    pub(super) fn resolve(&self, id: u64) {
        if let Some(network) = self.all.get(&id) {
            network
                .resolver
                .answer_datagrams(|asker, name| self.addresses(id, asker, name));
        }
    }

    /// Takes connections on which the network `id` is asked.
    pub(super) fn accept_question(&mut self, watch: &mut Watch, id: u64) {
        if let Some(network) = self.all.get(&id) {
            self.questions.accept(watch, id, &network.resolver);
        }
    }

    /// Answers what came on the connection `connection`.
    pub(super) fn resolve_stream(&mut self, connection: u64) {
        let mut questions = std::mem::take(&mut self.questions);
        if let Some(id) = questions.network(connection) {
            questions.answer(connection, |asker, name| self.addresses(id, asker, name));
        }
        self.questions = questions;
    }

    /// Who is called `name` on the networks that the asker is on. It asks on one of them, but means all.
    fn addresses(&self, network: u64, asker: Ipv4Addr, name: &str) -> Found {
        let Some((_, asker)) = self.member(network, asker) else {
            return Found::Nobody;
        };
        let of_asker = self
            .members
            .values()
            .filter(|member| member.sandbox == asker.sandbox);
        let networks: Vec<u64> = of_asker.map(|member| member.network).collect();
        let ours = self
            .members
            .values()
            .filter(|member| networks.contains(&member.network))
            .map(|member| (&member.names, member.address));
        let peers = self
            .peers
            .values()
            .filter(|peer| networks.contains(&peer.network));
        let theirs = peers
            .flat_map(|peer| &peer.members)
            .map(|known| (&known.names, known.address));
        let mut found: Vec<IpAddr> = ours
            .chain(theirs)
            .filter(|(names, _)| names.iter().any(|known| known == name))
            .map(|(_, address)| address.into())
            .collect();
        found.sort_unstable();
        match (found.is_empty(), asker.asks_beyond) {
            (false, _) => Found::At(found),
            (true, true) => Found::AskAnother,
            (true, false) => Found::Nobody,
        }
    }
}

/// Whether there is no IPv6 where something was asked of it.
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL)
    )
}

/// Lets nothing of the former member's in any more, which its kernel may still send until it is taken apart.
fn silence(network: &Network, former: u64) -> io::Result<()> {
    match network.netlink.take_down(&port_name(former)) {
        // It is taken apart already.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Frames that pass through here.
impl Networks {
    /// Takes the frames that came to the wire of the network `id`.
    pub(super) fn pass(&mut self, id: u64) {
        let Some(network) = self.all.get_mut(&id) else {
            return;
        };
        let own = frames::hardware(network.subnet.gateway());
        let peers: Vec<&Peer> = self
            .peers
            .values()
            .filter(|peer| peer.network == id)
            .collect();
        if let Some(wire) = &mut network.wire {
            wire.receive(|frame, destination| {
                // Each process's bridge has the same address, for its own members alone.
                if peers.is_empty() || frame.get(6..12) == Some(&own[..]) {
                    return;
                }
                let message = trunk::frame_message(frame);
                let has = |peer: &&&Peer| match destination {
                    Destination::Member(to) => peer.members.iter().any(|it| it.address == to),
                    _ => false,
                };
                match peers.iter().find(has) {
                    Some(peer) => peer.send_frame(&message),
                    None => peers.iter().for_each(|peer| peer.send_frame(&message)),
                }
            });
        }
    }

    /// How long until the next frame that is late arrives.
    pub(super) fn next_arrival(&self) -> Option<Duration> {
        let wires = self.all.values().filter_map(|it| it.wire.as_ref());
        wires.filter_map(Wire::next_arrival).min()
    }

    /// Delivers the frames whose time has come.
    pub(super) fn deliver(&mut self) {
        for wire in self.all.values_mut().filter_map(|it| it.wire.as_mut()) {
            wire.deliver();
        }
    }
}

/// Other processes.
impl Networks {
    /// Takes the brokers of other processes that came to the network `id`, and greets them.
    pub(super) fn accept(&mut self, watch: &mut Watch, id: u64) {
        loop {
            let Some(trunk) = self.all.get(&id).and_then(|it| it.trunk.as_ref()) else {
                return;
            };
            let Ok(socket) = rustix::net::accept_with(trunk, SocketFlags::CLOEXEC) else {
                return;
            };
            let Ok(peer) = self.add_peer(watch, id, socket, Vec::new()) else {
                continue;
            };
            self.say_to(watch, peer, &Word::Ready);
        }
    }

    /// Meets the broker of another process, whose members are these.
    pub(super) fn meet(
        &mut self,
        watch: &mut Watch,
        id: u64,
        socket: OwnedFd,
        members: Vec<Known>,
    ) -> io::Result<()> {
        if rustix::net::sockopt::socket_type(&socket)? != SocketType::SEQPACKET {
            return Err(Errno::INVAL.into());
        }
        self.add_peer(watch, id, socket, members).map(drop)
    }

    fn add_peer(
        &mut self,
        watch: &mut Watch,
        network: u64,
        socket: OwnedFd,
        members: Vec<Known>,
    ) -> io::Result<u64> {
        if !self.all.contains_key(&network) {
            return Err(Errno::NOENT.into());
        }
        let id = watch.next_id();
        watch.add(socket.as_fd(), Kind::Peer, id, EventFlags::IN)?;
        self.peers.insert(id, Peer::new(network, socket, members));
        let ours: Vec<Word> = self
            .members
            .iter()
            .filter(|(_, member)| member.network == network)
            .map(|(lease, member)| {
                Word::Joined(Known {
                    key: *lease,
                    address: member.address,
                    names: member.names.clone(),
                })
            })
            .collect();
        for word in ours {
            self.say_to(watch, id, &word);
        }
        Ok(id)
    }

    /// Hears the peer of this number, or sends it what waits.
    pub(super) fn hear(&mut self, watch: &Watch, id: u64) {
        const MESSAGES: usize = 256;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        self.buffer.resize(trunk::MESSAGE_BYTES, 0);
        let mut alive = peer.flush(watch, id);
        if let Some(network) = self.all.get_mut(&peer.network) {
            let own = frames::hardware(network.subnet.gateway());
            for _ in 0..MESSAGES {
                match peer.hear(&mut self.buffer) {
                    Heard::Frame(frame) => {
                        if let Some(wire) = &mut network.wire
                            && frame.get(6..12) != Some(&own[..])
                        {
                            wire.bring(frame);
                        }
                    }
                    Heard::Word => {}
                    Heard::Nothing => break,
                    Heard::End => {
                        alive = false;
                        break;
                    }
                }
            }
        }
        if !alive {
            self.peers.remove(&id);
        }
    }

    /// Tells the other processes of a network.
    fn tell(&mut self, watch: &Watch, network: u64, word: &Word) {
        let peers = self.peers.iter().filter(|(_, it)| it.network == network);
        for id in peers.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.say_to(watch, id, word);
        }
    }

    fn say_to(&mut self, watch: &Watch, id: u64, word: &Word) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !peer.say(watch, id, word)
        {
            self.peers.remove(&id);
        }
    }
}
