//! Network links: the one ioctl that brings one up.

use std::{ffi::CStr, io, os::fd::AsRawFd as _};

/// Brings up the link `name` of this network namespace.
///
/// C: `ioctl(socket, SIOCSIFFLAGS, &request)` with `IFF_UP`. Source: netdevice(7).
///
/// # Errors
/// EPERM without CAP_NET_ADMIN over this network namespace, ENODEV without such a link.
pub(crate) fn bring_up(name: &CStr) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero `ifreq` is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = name.to_bytes_with_nul();
    if bytes.len() > request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *slot = *byte as libc::c_char;
    }
    #[expect(clippy::cast_possible_truncation, reason = "IFF_UP is 1")]
    {
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    }
    // SAFETY: SIOCSIFFLAGS reads a whole `ifreq`, which `request` is.
    match unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
