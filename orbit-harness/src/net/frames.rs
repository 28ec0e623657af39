//! Ethernet frames on a network of ours: who they are from and for. Pure.
//!
//! Every member of a network has the hardware address that follows from its address, and a second one by which
//! others reach it through the broker instead of directly: its *detour*.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A hardware address.
pub(crate) type Hardware = [u8; 6];

/// Locally administered, and not of a group.
const OWN: [u8; 2] = [0x02, 0x4f];
/// As above, and none that is a member's own.
const DETOUR: [u8; 2] = [0x02, 0x57];

/// The hardware address of who has `address`: who still remembers whose an address was, of a sandbox that is
/// gone, remembers the right thing of the next.
pub(crate) fn hardware(address: Ipv4Addr) -> Hardware {
    with(OWN, address)
}

/// Where to send what is for `address` and is to pass through the broker.
pub(crate) fn detour(address: Ipv4Addr) -> Hardware {
    with(DETOUR, address)
}

fn with([one, two]: [u8; 2], address: Ipv4Addr) -> Hardware {
    let [a, b, c, d] = address.octets();
    [one, two, a, b, c, d]
}

/// The address that the kernel gives every link for IPv6. Source: RFC 4291, appendix A.
pub(crate) fn link_local(address: Ipv4Addr) -> IpAddr {
    let [one, two, a, b, c, d] = hardware(address);
    let octets = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        one ^ 2,
        two,
        a,
        0xff,
        0xfe,
        b,
        c,
        d,
    ];
    IpAddr::V6(Ipv6Addr::from(octets))
}

/// For whom a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A member, directly.
    Member(Ipv4Addr),
    /// A member, through the broker.
    Detour(Ipv4Addr),
    /// Everybody, or a group.
    Group,
    /// A hardware address that is no member's.
    Other,
}

const HEADER_BYTES: usize = 14;

/// For whom `frame` is. `None` where it is none.
pub(crate) fn destination(frame: &[u8]) -> Option<Destination> {
    let &[one, two, a, b, c, d] = frame.get(..6).filter(|_| frame.len() >= HEADER_BYTES)? else {
        return None;
    };
    let address = Ipv4Addr::new(a, b, c, d);
    Some(match [one, two] {
        OWN => Destination::Member(address),
        DETOUR => Destination::Detour(address),
        _ if one & 1 == 1 => Destination::Group,
        _ => Destination::Other,
    })
}

/// The member that sent `frame`. `None` where it is from a hardware address that is no member's.
pub(crate) fn source(frame: &[u8]) -> Option<Ipv4Addr> {
    let &[one, two, a, b, c, d] = frame.get(6..12)? else {
        return None;
    };
    ([one, two] == OWN).then(|| Ipv4Addr::new(a, b, c, d))
}

/// Sends `frame` to the member itself.
pub(crate) fn redirect(frame: &mut [u8], to: Ipv4Addr) {
    if let Some(destination) = frame.get_mut(..6) {
        destination.copy_from_slice(&hardware(to));
    }
}

/// Whether `frame` only asks or says which hardware address somebody has: ARP, and neighbour solicitation and
/// advertisement of IPv6.
///
/// Source: RFC 826; RFC 4861, sections 4.3 and 4.4.
pub(crate) fn is_about_neighbours(frame: &[u8]) -> bool {
    const ARP: [u8; 2] = [0x08, 0x06];
    const IPV6: [u8; 2] = [0x86, 0xdd];
    const ICMPV6: u8 = 58;
    match frame.get(12..14) {
        Some(kind) if kind == ARP => true,
        Some(kind) if kind == IPV6 => {
            frame.get(20) == Some(&ICMPV6) && matches!(frame.get(54), Some(135 | 136))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DB: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

    #[test]
    fn a_member_is_known_by_both_of_its_addresses() {
        let mut frame = [detour(DB), hardware(DB)].concat();
        frame.extend([0x08, 0x00]);
        assert_eq!(destination(&frame), Some(Destination::Detour(DB)));
        assert_eq!(source(&frame), Some(DB));
        redirect(&mut frame, DB);
        assert_eq!(destination(&frame), Some(Destination::Member(DB)));
        frame[..6].copy_from_slice(&[0xff; 6]);
        assert_eq!(destination(&frame), Some(Destination::Group));
        frame[..6].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
        assert_eq!(destination(&frame), Some(Destination::Other));
        assert_eq!(destination(&frame[..13]), None);
    }

    #[test]
    fn the_address_of_the_link_is_the_kernels() {
        // As `ip -6 address` shows it for 02:4f:0a:09:00:02.
        assert_eq!(link_local(DB).to_string(), "fe80::4f:aff:fe09:2");
    }

    #[test]
    fn questions_for_neighbours_are_told_from_the_rest() {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(is_about_neighbours(&frame));
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        (frame[20], frame[54]) = (58, 136);
        assert!(is_about_neighbours(&frame));
        frame[54] = 128; // An echo request.
        assert!(!is_about_neighbours(&frame));
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        assert!(!is_about_neighbours(&frame));
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(mut frame in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = (destination(&frame), source(&frame), is_about_neighbours(&frame));
            redirect(&mut frame, DB);
        }
    }
}
