//! Packet sockets: whole frames, read from and written to a link.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// Source: Linux, include/uapi/linux/if_packet.h; since 4.20.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// A socket that receives every frame that arrives at the link of number `index` of this network namespace, and none
/// that it sends itself. It does not wait, and is closed on exec.
///
/// C: `socket(AF_PACKET, SOCK_RAW, 0)`, `setsockopt(socket, SOL_PACKET, PACKET_IGNORE_OUTGOING, …)`,
/// `bind(socket, &address, …)` with `ETH_P_ALL`. Source: packet(7).
///
/// # Errors
/// EPERM without CAP_NET_RAW over this network namespace, ENODEV without such a link, EAFNOSUPPORT where the kernel has
/// no packet sockets.
pub(crate) fn packet_socket(index: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0: nothing is received before it is bound.
    // SAFETY: socket takes no pointers.
    let socket = match unsafe { libc::socket(libc::AF_PACKET, kind, 0) } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: a descriptor that the kernel just made, and nobody else knows.
        fd => unsafe { OwnedFd::from_raw_fd(fd) },
    };
    let yes: libc::c_int = 1;
    // SAFETY: the option reads an int, which `yes` is, of the length given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const yes).cast(),
            length_of::<libc::c_int>(),
        )
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(clippy::cast_possible_truncation, reason = "ETH_P_ALL is 3")]
    let address = link_address(index, (libc::ETH_P_ALL as u16).to_be());
    // SAFETY: bind reads a `sockaddr_ll`, which `address` is, of the length given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            length_of::<libc::sockaddr_ll>(),
        )
    };
    match bound {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a frame by the link of number `index`, whichever link the packet socket is bound to.
///
/// C: `sendto(socket, frame, …, MSG_DONTWAIT, &address, …)`. Source: packet(7).
///
/// # Errors
/// ENXIO where the link is gone, ENETDOWN where it is down.
pub(crate) fn send_by(socket: BorrowedFd<'_>, index: u32, frame: &[u8]) -> io::Result<()> {
    let address = link_address(index, 0);
    // SAFETY: sendto reads `frame` and a `sockaddr_ll`, which `address` is, each of the length given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            (&raw const address).cast(),
            length_of::<libc::sockaddr_ll>(),
        )
    };
    match sent {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn link_address(index: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: an all-zero `sockaddr_ll` is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_possible_truncation, reason = "AF_PACKET is 17")]
    {
        address.sll_family = libc::AF_PACKET as u16;
    }
    address.sll_protocol = protocol;
    // Numbers of links are positive.
    address.sll_ifindex = index as libc::c_int;
    address
}

#[expect(clippy::cast_possible_truncation, reason = "structures of some bytes")]
fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
