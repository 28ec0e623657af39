//! Messages about links, addresses, neighbours and routes, as bytes: just what the networks of sandboxes need. Pure.
//!
//! The crate that has all of them, `netlink-packet-route`, takes a fifth of the time in which this library is built, of
//! whoever depends on it; so the tests alone have it, and hold that its bytes are these.
//!
//! Source: rtnetlink(7); Linux, include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h and veth.h, whose names
//! the constants have.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::RawFd,
};

use super::attributes::{
    Attributes, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, add_message,
};
use crate::net::frames::Hardware;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 1 << 7;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NTF_MASTER: u8 = 1 << 2;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;

const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

/// The other one of a pair of links.
pub(super) struct Peer<'a> {
    pub(super) name: &'a str,
    /// Where it is born; else where the first is.
    pub(super) namespace: Option<RawFd>,
    pub(super) hardware: Option<Hardware>,
}

/// Makes a bridge that is up.
pub(super) fn new_bridge(name: &str, hardware: Hardware) -> Vec<u8> {
    let attributes = Attributes::default()
        .text(IFLA_IFNAME, name)
        .bytes(IFLA_ADDRESS, &hardware)
        .set(IFLA_LINKINFO, kind("bridge"));
    add(RTM_NEWLINK, &link(0, IFF_UP, IFF_UP), &attributes)
}

/// Makes a pair of links of which `name` is in the bridge of number `bridge`, and `is_up`, and `peer` the other.
pub(super) fn new_veth(name: &str, bridge: u32, peer: &Peer<'_>, is_up: bool) -> Vec<u8> {
    let mut other = Attributes::after(&link(0, 0, 0)).text(IFLA_IFNAME, peer.name);
    if let Some(namespace) = peer.namespace {
        other = other.bytes(IFLA_NET_NS_FD, &namespace.to_ne_bytes());
    }
    if let Some(hardware) = &peer.hardware {
        other = other.bytes(IFLA_ADDRESS, hardware);
    }
    let data = Attributes::default().set(VETH_INFO_PEER, other);
    let attributes = Attributes::default()
        .text(IFLA_IFNAME, name)
        .native(IFLA_MASTER, bridge)
        .set(IFLA_LINKINFO, kind("veth").set(IFLA_INFO_DATA, data));
    let up = if is_up { IFF_UP } else { 0 };
    add(RTM_NEWLINK, &link(0, up, up), &attributes)
}

/// Brings the link of number `index` up.
pub(super) fn bring_up(index: u32) -> Vec<u8> {
    change(&link(index, IFF_UP, IFF_UP), &Attributes::default())
}

/// The same for one that is to ask nobody who has an address.
pub(super) fn bring_up_without_arp(index: u32) -> Vec<u8> {
    let flags = IFF_UP | IFF_NOARP;
    change(&link(index, flags, flags), &Attributes::default())
}

/// Takes the link `name` down.
pub(super) fn take_down(name: &str) -> Vec<u8> {
    change(
        &link(0, 0, IFF_UP),
        &Attributes::default().text(IFLA_IFNAME, name),
    )
}

/// Has the link of number `index` give itself no address of IPv6.
pub(super) fn without_own_address(index: u32) -> Vec<u8> {
    let mode = Attributes::default().bytes(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
    let families = Attributes::default().set(AF_INET6.into(), mode);
    change(
        &link(index, 0, 0),
        &Attributes::default().set(IFLA_AF_SPEC, families),
    )
}

/// Whether what is for everybody, or for a group, leaves a bridge by the port of number `port`.
pub(super) fn set_flood(port: u32, flood: bool) -> Vec<u8> {
    let data = Attributes::default()
        .bytes(IFLA_BRPORT_BCAST_FLOOD, &[flood.into()])
        .bytes(IFLA_BRPORT_MCAST_FLOOD, &[flood.into()]);
    let info = Attributes::default()
        .text(IFLA_INFO_SLAVE_KIND, "bridge")
        .set(IFLA_INFO_SLAVE_DATA, data);
    change(
        &link(port, 0, 0),
        &Attributes::default().set(IFLA_LINKINFO, info),
    )
}

/// Removes the link of number `index`.
pub(super) fn delete_link(index: u32) -> Vec<u8> {
    message(RTM_DELLINK, 0, &link(index, 0, 0), &Attributes::default())
}

/// Gives the link of number `index` an address in a network of this prefix.
pub(super) fn new_address(index: u32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let [a, b, c, d] = index.to_ne_bytes();
    // `ifaddrmsg`: family, prefix, flags, scope, index.
    let header = [AF_INET, prefix, 0, RT_SCOPE_UNIVERSE, a, b, c, d];
    let attributes = Attributes::default()
        .bytes(IFA_LOCAL, &address.octets())
        .bytes(IFA_ADDRESS, &address.octets());
    add(RTM_NEWADDR, &header, &attributes)
}

/// An entry of a bridge's table of hardware addresses: it is behind the port of number `port`.
pub(super) fn new_forwarding(port: u32, hardware: Hardware) -> Vec<u8> {
    set_neighbour(&forwarding(port), &forwarded(hardware))
}

/// Undoes [`new_forwarding`].
pub(super) fn delete_forwarding(port: u32, hardware: Hardware) -> Vec<u8> {
    message(RTM_DELNEIGH, 0, &forwarding(port), &forwarded(hardware))
}

/// What is sent to `address` by the link of number `index` goes to this hardware address, for good.
pub(super) fn new_neighbour(index: u32, address: IpAddr, hardware: Hardware) -> Vec<u8> {
    let (family, attributes) = neighbour(address);
    let header = neighbour_header(family, index, NUD_PERMANENT, 0);
    set_neighbour(&header, &attributes.bytes(NDA_LLADDR, &hardware))
}

/// Undoes [`new_neighbour`].
pub(super) fn delete_neighbour(index: u32, address: IpAddr) -> Vec<u8> {
    let (family, attributes) = neighbour(address);
    message(
        RTM_DELNEIGH,
        0,
        &neighbour_header(family, index, 0, 0),
        &attributes,
    )
}

/// What has no other route of IPv4 goes to the link of number `index`, from this machine's own address.
pub(super) fn last_route(index: u32) -> Vec<u8> {
    let attributes = Attributes::default()
        .native(RTA_OIF, index)
        .native(RTA_PRIORITY, u32::MAX)
        .bytes(RTA_PREFSRC, &Ipv4Addr::LOCALHOST.octets());
    let header = route_header(AF_INET, RT_SCOPE_LINK, RTN_UNICAST);
    add(RTM_NEWROUTE, &header, &attributes)
}

/// The same of IPv6: all that has no other route is this machine's own.
pub(super) fn last_route_v6(index: u32) -> Vec<u8> {
    let attributes = Attributes::default()
        .native(RTA_OIF, index)
        .native(RTA_PRIORITY, u32::MAX);
    let header = route_header(AF_INET6, RT_SCOPE_UNIVERSE, RTN_LOCAL);
    add(RTM_NEWROUTE, &header, &attributes)
}

/// `ifinfomsg`: family, padding, type, index, flags, which flags to change.
fn link(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = AF_UNSPEC;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `ndmsg`: family, padding, index, state, flags, type.
fn neighbour_header(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// `rtmsg`: family, lengths of the addresses, type of service, table, protocol, scope, type, flags.
fn route_header(family: u8, scope: u8, kind: u8) -> [u8; 12] {
    [
        family,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        scope,
        kind,
        0,
        0,
        0,
        0,
    ]
}

fn kind(name: &str) -> Attributes {
    Attributes::default().text(IFLA_INFO_KIND, name)
}

fn forwarding(port: u32) -> [u8; 12] {
    neighbour_header(AF_BRIDGE, port, NUD_NOARP, NTF_MASTER)
}

fn forwarded(hardware: Hardware) -> Attributes {
    Attributes::default().bytes(NDA_LLADDR, &hardware)
}

fn neighbour(address: IpAddr) -> (u8, Attributes) {
    let none = Attributes::default();
    match address {
        IpAddr::V4(v4) => (AF_INET, none.bytes(NDA_DST, &v4.octets())),
        IpAddr::V6(v6) => (AF_INET6, none.bytes(NDA_DST, &v6.octets())),
    }
}

fn set_neighbour(header: &[u8], attributes: &Attributes) -> Vec<u8> {
    message(
        RTM_NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        header,
        attributes,
    )
}

/// Something new: EEXIST where there is one.
fn add(kind: u16, header: &[u8], attributes: &Attributes) -> Vec<u8> {
    message(kind, NLM_F_CREATE | NLM_F_EXCL, header, attributes)
}

/// A change to a link.
fn change(header: &[u8], attributes: &Attributes) -> Vec<u8> {
    message(RTM_NEWLINK, 0, header, attributes)
}

fn message(kind: u16, flags: u16, header: &[u8], attributes: &Attributes) -> Vec<u8> {
    let mut buffer = Vec::new();
    add_message(&mut buffer, kind, NLM_F_ACK | flags, header, attributes);
    buffer
}

#[cfg(test)]
mod tests;
