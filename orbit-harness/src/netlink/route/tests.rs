//! That these bytes are those of `netlink-packet-route`, which others keep, and try on many kernels.

use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily as Family, RouteNetlinkMessage as Message,
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

use super::*;

const HARDWARE: Hardware = [2, 0, 10, 1, 2, 3];

fn bytes(message: Message, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = netlink_packet_core::NLM_F_REQUEST | netlink_packet_core::NLM_F_ACK | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    buffer
}

const NEW: u16 = netlink_packet_core::NLM_F_CREATE | netlink_packet_core::NLM_F_EXCL;
const SET: u16 = netlink_packet_core::NLM_F_CREATE | netlink_packet_core::NLM_F_REPLACE;

fn of_link(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = attributes;
    link
}

fn with(mut link: LinkMessage, flags: LinkFlags, change: LinkFlags) -> LinkMessage {
    link.header.flags = flags;
    link.header.change_mask = change;
    link
}

fn up(link: LinkMessage) -> LinkMessage {
    with(link, LinkFlags::Up, LinkFlags::Up)
}

#[test]
fn links_are_made() {
    let link = of_link(
        0,
        vec![
            LinkAttribute::IfName("orbit0".to_owned()),
            LinkAttribute::Address(HARDWARE.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ],
    );
    assert_eq!(
        new_bridge("orbit0", HARDWARE),
        bytes(Message::NewLink(up(link)), NEW)
    );

    for is_up in [true, false] {
        let mut others = vec![LinkAttribute::IfName("eth0".to_owned())];
        if is_up {
            others.push(LinkAttribute::NetNsFd(7));
            others.push(LinkAttribute::Address(HARDWARE.to_vec()));
        }
        let peer = InfoVeth::Peer(of_link(0, others));
        let link = of_link(
            0,
            vec![
                LinkAttribute::IfName("v1".to_owned()),
                LinkAttribute::Controller(3),
                LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Veth),
                    LinkInfo::Data(InfoData::Veth(peer)),
                ]),
            ],
        );
        let link = if is_up { up(link) } else { link };
        let ours = Peer {
            name: "eth0",
            namespace: is_up.then_some(7),
            hardware: is_up.then_some(HARDWARE),
        };
        assert_eq!(
            new_veth("v1", 3, &ours, is_up),
            bytes(Message::NewLink(link), NEW)
        );
    }
}

#[test]
fn links_are_changed_and_removed() {
    let change = |link| bytes(Message::NewLink(link), 0);
    assert_eq!(bring_up(5), change(up(of_link(5, Vec::new()))));
    let both = LinkFlags::Up | LinkFlags::Noarp;
    assert_eq!(
        bring_up_without_arp(5),
        change(with(of_link(5, Vec::new()), both, both))
    );
    let named = of_link(0, vec![LinkAttribute::IfName("v1".to_owned())]);
    let down = with(named, LinkFlags::empty(), LinkFlags::Up);
    assert_eq!(take_down("v1"), change(down));
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let families = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
    assert_eq!(without_own_address(5), change(of_link(5, vec![families])));
    for flood in [true, false] {
        let data = InfoPortData::BridgePort(vec![
            InfoBridgePort::BroadcastFlood(flood),
            InfoBridgePort::MulticastFlood(flood),
        ]);
        let info = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(data),
        ];
        let link = of_link(5, vec![LinkAttribute::LinkInfo(info)]);
        assert_eq!(set_flood(5, flood), change(link));
    }
    assert_eq!(
        delete_link(5),
        bytes(Message::DelLink(of_link(5, Vec::new())), 0)
    );
}

#[test]
fn links_are_given_addresses() {
    let address = Ipv4Addr::new(10, 1, 2, 3);
    let mut message = AddressMessage::default();
    message.header.family = Family::Inet;
    message.header.prefix_len = 24;
    message.header.index = 5;
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
    ];
    assert_eq!(
        new_address(5, address, 24),
        bytes(Message::NewAddress(message), NEW)
    );
}

#[test]
fn neighbours_are_set_and_removed() {
    let hardware = || NeighbourAttribute::LinkLayerAddress(HARDWARE.to_vec());
    let behind = || {
        let mut message = NeighbourMessage::default();
        message.header.family = Family::Bridge;
        message.header.ifindex = 5;
        message.header.flags = NeighbourFlags::Controller;
        message.header.state = NeighbourState::Noarp;
        message.attributes = vec![hardware()];
        message
    };
    assert_eq!(
        new_forwarding(5, HARDWARE),
        bytes(Message::NewNeighbour(behind()), SET)
    );
    assert_eq!(
        delete_forwarding(5, HARDWARE),
        bytes(Message::DelNeighbour(behind()), 0)
    );

    for address in ["10.1.2.3", "fd00::3"] {
        let address: IpAddr = address.parse().unwrap();
        let known = || {
            let mut message = NeighbourMessage::default();
            let (family, address) = match address {
                IpAddr::V4(v4) => (Family::Inet, NeighbourAddress::Inet(v4)),
                IpAddr::V6(v6) => (Family::Inet6, NeighbourAddress::Inet6(v6)),
            };
            message.header.family = family;
            message.header.ifindex = 5;
            message.attributes = vec![NeighbourAttribute::Destination(address)];
            message
        };
        let mut set = known();
        set.header.state = NeighbourState::Permanent;
        set.attributes.push(hardware());
        let ours = new_neighbour(5, address, HARDWARE);
        assert_eq!(ours, bytes(Message::NewNeighbour(set), SET));
        assert_eq!(
            delete_neighbour(5, address),
            bytes(Message::DelNeighbour(known()), 0)
        );
    }
}

#[test]
fn the_rest_is_kept() {
    let route = |family, kind, scope, more: Vec<RouteAttribute>| {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = scope;
        message.header.kind = kind;
        message.attributes = vec![RouteAttribute::Oif(1), RouteAttribute::Priority(u32::MAX)];
        message.attributes.extend(more);
        bytes(Message::NewRoute(message), NEW)
    };
    let source = RouteAttribute::PrefSource(RouteAddress::Inet(Ipv4Addr::LOCALHOST));
    let v4 = route(
        Family::Inet,
        RouteType::Unicast,
        RouteScope::Link,
        vec![source],
    );
    assert_eq!(last_route(1), v4);
    let v6 = route(
        Family::Inet6,
        RouteType::Local,
        RouteScope::Universe,
        Vec::new(),
    );
    assert_eq!(last_route_v6(1), v6);
}
