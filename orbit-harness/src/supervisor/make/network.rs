//! The sandbox's network: loopback, links to the networks it shares, and the files that name who is there.

use std::{
    ffi::CStr,
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::{Done, Helper, Maker, syscalls::fd_path};
use crate::{
    netfilter::{Gate, Netfilter},
    netlink::Netlink,
    spec::Link,
    step::EtcFile,
    supervisor::{home::STAGE, protocol::Cause},
    sys,
};

/// Of what a helper writes before it ends, what is passed on.
const MAX_SAID_BYTES: u64 = 2048;

/// Loopback, in every network namespace.
pub(in crate::supervisor) const LOOPBACK: &CStr = c"lo";

/// Its number. Source: Linux, include/net/flow.h, `LOOPBACK_IFINDEX`.
const LOOPBACK_NUMBER: u32 = 1;

impl Maker {
    /// `ip link set lo up`. Source: netdevice(7).
    pub(super) fn loopback_up(&self) -> Done {
        sys::bring_up(self.socket()?, LOOPBACK).map_err(cause)
    }

    fn socket(&self) -> Result<&OwnedFd, Cause> {
        // A plan with links and no network is no plan of this crate's making.
        self.socket.as_ref().ok_or(Cause::Errno(libc::EINVAL))
    }

    /// Lets everybody bind every port, by the sandbox's own `/proc`: in the supervisor's the kernel would look through a file
    /// of this name of each network that there is.
    ///
    /// Source: Linux, fs/proc/proc_sysctl.c, `proc_sys_compare`.
    pub(super) fn all_ports(&self) -> Done {
        let path = "proc/sys/net/ipv4/ip_unprivileged_port_start";
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(self.root()?, path, flags, Mode::empty(), resolve)?;
        rustix::io::write(&file, b"0")?;
        Ok(())
    }

    /// Has a link made into this network namespace, and gives it its address.
    pub(super) fn link(&mut self, name: &str, link: &Link) -> Done {
        let connector = self
            .networks
            .pop_front()
            .ok_or(Cause::Errno(libc::EINVAL))?;
        let here = sys::namespace_of(self.socket()?).map_err(cause)?;
        connector
            .send(&name.to_owned(), &[here.as_fd()])
            .map_err(cause)?;
        match connector.recv::<Result<(), i32>>().map_err(cause)? {
            Some((made, _)) => made.map_err(Cause::Errno)?,
            None => return Err(Cause::Errno(libc::EPIPE)),
        }
        let netlink = Netlink::open().map_err(cause)?;
        let index = netlink.index(name).map_err(cause)?;
        quiet(name).map_err(cause)?;
        netlink
            .add_address(index, link.address, link.subnet.prefix())
            .and_then(|()| netlink.bring_up(index))
            .map_err(cause)
    }

    /// Installs the rules of what may leave.
    pub(super) fn gate(&mut self, gate: &Gate, is_needed: bool) -> Done {
        let installed = Netfilter::open().and_then(|netfilter| {
            if gate.links.is_empty() && gate.out.is_none() {
                netfilter.install(gate)?;
            } else {
                let own = own_addresses()?;
                netfilter.install(&Gate {
                    own,
                    ..gate.clone()
                })?;
            }
            let netlink = Netlink::open()?;
            netlink.keep_the_rest(LOOPBACK_NUMBER)?;
            Ok(netfilter)
        });
        match installed {
            Ok(netfilter) => self.record.netfilter = Some(netfilter),
            Err(error) if is_needed => return Err(cause(error)),
            Err(error) => {
                self.record.unrecorded = Some(error.raw_os_error().unwrap_or(libc::EIO));
            }
        }
        Ok(())
    }

    /// Waits until there is a way out.
    pub(super) fn await_helper(&mut self) -> Done {
        let Some(Helper { output, errors, .. }) = self.helper.take() else {
            return Err(Cause::Errno(libc::EINVAL));
        };
        let mut ready = [0];
        if File::from(output).read(&mut ready).map_err(cause)? > 0 {
            return Ok(());
        }
        let mut said = String::new();
        let mut errors = File::from(errors);
        // It ended: what it wrote is all there.
        let _ = errors.rewind();
        let _ = errors.take(MAX_SAID_BYTES).read_to_string(&mut said);
        Err(Cause::Helper(said))
    }

    /// Mounts a file over one of the host's `/etc`, or puts it there where there is none.
    pub(super) fn cover_etc(&self, file: &EtcFile) -> Done {
        let own = format!("{STAGE}/etc-{}", file.name);
        std::fs::write(&own, &file.content).map_err(cause)?;
        self.give_to_system(&own)?;
        let at = Path::new("/etc").join(&file.name);
        let target = match self.empty_file(&at) {
            // A link that leads nowhere in here, as one into `/run` does.
            Err(Cause::Errno(libc::EEXIST)) => {
                let (parent, name) = self.split(&at)?;
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                self.empty_file(&at)?
            }
            other => other?,
        };
        Ok(rustix::mount::mount_bind(own, fd_path(&target))?)
    }
}

/// Keeps IPv6 from asking by the link `name`, which is not up yet, for what is not there: a router, and somebody else with
/// its own address, which follows from a hardware address that is nobody else's.
///
/// Each such question goes to everybody on the network, for as long as there is no answer. Of some hundred sandboxes
/// they fill the kernel's queue (`net.core.netdev_max_backlog`, 1000 packets), and what is lost is others' packets.
///
/// Source: Linux, Documentation/networking/ip-sysctl.rst, `router_solicitations`, `dad_transmits`.
fn quiet(name: &str) -> io::Result<()> {
    for what in ["router_solicitations", "dad_transmits"] {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{what}");
        match File::options().write(true).open(path) {
            Ok(mut file) => file.write_all(b"0")?,
            // A kernel without IPv6 asks nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The addresses of this network's links.
fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let address = |link: nix::ifaddrs::InterfaceAddress| {
        let address = link.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    };
    let mut own: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?.filter_map(address).collect();
    own.retain(|address| !address.is_loopback());
    Ok(own)
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err passes it")]
fn cause(error: io::Error) -> Cause {
    Cause::Errno(error.raw_os_error().unwrap_or(libc::EIO))
}
