//! Network links: what is asked by ioctl.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Opens a socket that stands for the network namespace it is opened in. It is bound to nothing.
///
/// # Errors
/// What the kernel answers.
pub(crate) fn network_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    Ok(rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// The network namespace of `socket`: as a file of `/proc/PID/ns/net`, but with no look into `/proc`, which makes
/// entries there that the end of this process has to remove.
///
/// C: `ioctl(socket, SIOCGSKNS)`. Source: Linux, net/socket.c, `sock_ioctl`; the descriptor is closed on exec.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN over this network namespace.
pub(crate) fn namespace_of(socket: &OwnedFd) -> io::Result<OwnedFd> {
    /// Source: Linux, include/uapi/linux/sockios.h.
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: SIOCGSKNS takes no argument, and answers with a new descriptor or -1.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made it for this process, and nothing else knows it.
        descriptor => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
    }
}

/// Brings up the link `name` of the network namespace that `socket` is of.
///
/// C: `ioctl(socket, SIOCSIFFLAGS, &request)` with `IFF_UP`. Source: netdevice(7).
///
/// # Errors
/// EPERM without CAP_NET_ADMIN over this network namespace, ENODEV without such a link.
pub(crate) fn bring_up(socket: &OwnedFd, name: &CStr) -> io::Result<()> {
    let mut request = request_for(name)?;
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

/// A request about the link `name`.
fn request_for(name: &CStr) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero `ifreq` is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = name.to_bytes_with_nul();
    if bytes.len() > request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *slot = *byte as libc::c_char;
    }
    Ok(request)
}

/// Has the kernel compute the checksums of what leaves by the link `name`, and cut what is longer than a frame: what
/// is read at its other end is then what would be on a wire.
///
/// C: `ioctl(socket, SIOCETHTOOL, &request)` with `ETHTOOL_STXCSUM` 0. Source: Linux, include/uapi/linux/ethtool.h,
/// `struct ethtool_value`; net/core/dev.c, `netdev_fix_features`: without checksums there is no segmentation.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN over this network namespace, ENODEV without such a link.
pub(crate) fn compute_checksums(name: &CStr) -> io::Result<()> {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let socket = network_socket()?;
    let mut value = Value {
        command: ETHTOOL_STXCSUM,
        data: 0,
    };
    let mut request = request_for(name)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads a whole `ifreq`, which `request` is, and reads and writes an `ethtool_value` at
    // `ifru_data`, which `value` is; it outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
