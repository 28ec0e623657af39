//! Links and addresses, through netlink: what the broker and the inits ask the kernel for.
//!
//! The messages are of `netlink-packet-route`, which is what `rtnetlink` itself speaks. `rtnetlink` is not used:
//! it needs an asynchronous runtime, and those who ask here are small single-threaded processes that wait for
//! each answer anyway.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily as Family, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink,
};

use crate::net::frames::{Hardware, hardware};

/// A conversation with the network namespace that its socket was made in.
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        // Protocol 0 is NETLINK_ROUTE.
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok(Self(socket))
    }

    /// The number of the link `name`.
    pub(crate) fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.0, name)?)
    }

    /// Makes a bridge that is up, with the hardware address of who has `address`: its number.
    ///
    /// One that is given none takes the lowest of its ports', and changes it as they come and go; what others
    /// remember of it then leads nowhere. Source: Linux, net/bridge/br_stp_if.c, `br_stp_recalculate_bridge_id`.
    ///
    /// # Errors
    /// EEXIST where the name is taken.
    pub(crate) fn add_bridge(&self, name: &str, address: Ipv4Addr) -> io::Result<u32> {
        let mut link = up(LinkMessage::default());
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(hardware(address).to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.add_link(link)?;
        self.index(name)
    }

    /// Makes a pair of links: `name` here, up and in the bridge of number `bridge`; `peer_name` born in the
    /// namespace `peer_in`, down, with the hardware address of who has `peer_address`.
    ///
    /// Source: Linux, drivers/net/veth.c. Moving a link between namespaces instead takes ten times as long.
    pub(crate) fn add_veth(
        &self,
        name: &str,
        bridge: u32,
        peer_name: &str,
        peer_in: BorrowedFd<'_>,
        peer_address: Ipv4Addr,
    ) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(peer_name.to_owned()),
            LinkAttribute::NetNsFd(peer_in.as_raw_fd()),
            LinkAttribute::Address(hardware(peer_address).to_vec()),
        ];
        self.add_link(up(veth_in_bridge(name, bridge, peer)))
    }

    /// EEXIST where there is one of that name.
    fn add_link(&self, link: LinkMessage) -> io::Result<()> {
        self.ask(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Gives the link of number `index` an address in a network of this prefix.
    pub(crate) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = Family::Inet;
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(address)),
            AddressAttribute::Address(IpAddr::V4(address)),
        ];
        self.ask(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Brings the link of number `index` up.
    pub(crate) fn bring_up(&self, index: u32) -> io::Result<()> {
        let mut link = up(LinkMessage::default());
        link.header.index = index;
        self.ask(RouteNetlinkMessage::NewLink(link), 0)
    }

    /// Makes a pair of links: `name`, up and in the bridge of number `bridge`; `peer_name` in the same namespace, which
    /// is no host of its own: it answers nobody. The number of the first, and of the second.
    pub(crate) fn add_tap(
        &self,
        name: &str,
        bridge: u32,
        peer_name: &str,
    ) -> io::Result<(u32, u32)> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![LinkAttribute::IfName(peer_name.to_owned())];
        self.add_link(veth_in_bridge(name, bridge, peer))?;
        let (near, far) = (self.index(name)?, self.index(peer_name)?);
        for index in [near, far] {
            let mut link = LinkMessage::default();
            link.header.index = index;
            let no_address = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![no_address],
            )])];
            match self.ask(RouteNetlinkMessage::NewLink(link), 0) {
                // A kernel without IPv6.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                other => other?,
            }
        }
        let mut link = up(LinkMessage::default());
        link.header.index = far;
        link.header.flags |= LinkFlags::Noarp;
        link.header.change_mask |= LinkFlags::Noarp;
        self.ask(RouteNetlinkMessage::NewLink(link), 0)?;
        self.bring_up(near)?;
        Ok((near, far))
    }

    /// Whether what is for everybody, or for a group, leaves the bridge by the port of number `port`.
    pub(crate) fn set_flood(&self, port: u32, flood: bool) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = port;
        link.attributes = vec![as_port(vec![
            InfoBridgePort::BroadcastFlood(flood),
            InfoBridgePort::MulticastFlood(flood),
        ])];
        self.ask(RouteNetlinkMessage::NewLink(link), 0)
    }

    /// Takes the link `name` down: nothing passes it any more, either way, and a bridge forgets who was there.
    ///
    /// Not by the state of a bridge's port: the bridge enables a disabled port again when it hears, up to a second late,
    /// that the link has a carrier. Source: Linux, net/bridge/br_if.c, `br_port_carrier_check`.
    ///
    /// # Errors
    /// ENODEV where the link is gone.
    pub(crate) fn take_down(&self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.ask(RouteNetlinkMessage::NewLink(link), 0)
    }

    /// Has a bridge forward what is for a hardware address by the port of number `port`.
    pub(crate) fn add_forwarding(&self, port: u32, hardware: Hardware) -> io::Result<()> {
        self.ask(
            RouteNetlinkMessage::NewNeighbour(forwarding(port, hardware)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Undoes [`Self::add_forwarding`].
    ///
    /// # Errors
    /// ENOENT where it is gone.
    pub(crate) fn remove_forwarding(&self, port: u32, hardware: Hardware) -> io::Result<()> {
        self.ask(
            RouteNetlinkMessage::DelNeighbour(forwarding(port, hardware)),
            0,
        )
    }

    /// Makes what has no other route go to the link of number `index`, which is loopback.
    ///
    /// IPv6 takes routes by loopback for ways to nowhere, except those that say that all there is is here. With one of
    /// those IPv4 would let programs bind every address, so it is not the same for both.
    /// Source: Linux, net/ipv6/route.c, `ip6_route_info_create`.
    pub(crate) fn keep_the_rest(&self, index: u32) -> io::Result<()> {
        let route = |family, kind, scope| {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.header.protocol = RouteProtocol::Boot;
            message.header.scope = scope;
            message.header.kind = kind;
            // The last choice of all.
            let last = RouteAttribute::Priority(u32::MAX);
            message.attributes = vec![RouteAttribute::Oif(index), last];
            if family == Family::Inet {
                // Loopback's own address is not for other links, and there would be none to send from.
                let source = RouteAddress::Inet(Ipv4Addr::LOCALHOST);
                message.attributes.push(RouteAttribute::PrefSource(source));
            }
            let message = RouteNetlinkMessage::NewRoute(message);
            self.ask(message, NLM_F_CREATE | NLM_F_EXCL)
        };
        route(Family::Inet, RouteType::Unicast, RouteScope::Link)?;
        match route(Family::Inet6, RouteType::Local, RouteScope::Universe) {
            // A host without IPv6 has nothing that could be refused.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EACCES | libc::EPERM)
                ) =>
            {
                Ok(())
            }
            done => done,
        }
    }

    /// Makes what is sent to `address` by the link of number `index` go to this hardware address, for good.
    pub(crate) fn set_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        hardware: Hardware,
    ) -> io::Result<()> {
        let mut message = neighbour(index, address);
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(hardware.to_vec()));
        self.ask(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Undoes [`Self::set_neighbour`]: whoever has the address is asked for anew.
    ///
    /// # Errors
    /// ENOENT where nothing is known of it.
    pub(crate) fn remove_neighbour(&self, index: u32, address: IpAddr) -> io::Result<()> {
        self.ask(
            RouteNetlinkMessage::DelNeighbour(neighbour(index, address)),
            0,
        )
    }

    /// Removes the link of number `index`.
    pub(crate) fn remove(&self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.ask(RouteNetlinkMessage::DelLink(link), 0)
    }

    /// Sends `message` and waits for the kernel's word on it.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.0, &buffer, SendFlags::empty(), &kernel)?;
        // Never set to zero: in an init each page that is touched is copied first.
        let mut answer = Vec::with_capacity(8192);
        rustix::io::retry_on_intr(|| {
            let room = rustix::buffer::spare_capacity(&mut answer);
            rustix::net::recv(&self.0, room, RecvFlags::empty())
        })?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
            },
            other => Err(io::Error::other(format!("an unexpected answer: {other:?}"))),
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    let (family, address) = match address {
        IpAddr::V4(v4) => (Family::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (Family::Inet6, NeighbourAddress::Inet6(v6)),
    };
    message.header.family = family;
    message.attributes = vec![NeighbourAttribute::Destination(address)];
    message
}

/// An entry of a bridge's table of hardware addresses.
fn forwarding(port: u32, hardware: Hardware) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = Family::Bridge;
    message.header.ifindex = port;
    message.header.flags = NeighbourFlags::Controller;
    message.header.state = NeighbourState::Noarp;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(hardware.to_vec())];
    message
}

/// What makes a change to a link one to its being the port of a bridge.
fn as_port(attributes: Vec<InfoBridgePort>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(attributes)),
    ])
}

/// A pair of links of which `name` is in the bridge of number `bridge`, and `peer` the other.
fn veth_in_bridge(name: &str, bridge: u32, peer: LinkMessage) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    link
}

fn up(mut link: LinkMessage) -> LinkMessage {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}
