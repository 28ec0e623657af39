//! Network namespaces, entered for as long as it takes to make a socket there.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::sys;

/// The broker's way into other namespaces and back.
///
/// A process may always return to a namespace of its own user namespace. It could not return to the host's: that
/// is why the broker is no part of the supervisor, which stays on the host's network.
pub(super) struct Namespaces {
    home: OwnedFd,
}

impl Namespaces {
    pub(super) fn new() -> io::Result<Self> {
        let home = File::open("/proc/self/ns/net")?.into();
        Ok(Self { home })
    }

    /// What `act` does inside of `namespace`.
    pub(super) fn inside<T>(
        &self,
        namespace: impl AsFd,
        act: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        self.and_back(act())
    }

    fn and_back<T>(&self, done: T) -> T {
        if setns(&self.home, CloneFlags::CLONE_NEWNET).is_err() {
            // What it would do next it would do in the wrong place.
            sys::exit_now(1);
        }
        done
    }

    /// What `act` does inside of a fresh namespace, which lasts as long as a socket that it made there.
    pub(super) fn inside_new<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        self.and_back(act())
    }

    /// A socket inside of `namespace`, which it stays part of wherever it is used.
    pub(super) fn socket(
        &self,
        namespace: impl AsFd,
        family: Family,
        kind: SocketType,
        flags: SocketFlags,
    ) -> io::Result<OwnedFd> {
        let flags = flags | SocketFlags::CLOEXEC;
        self.inside(namespace, || {
            Ok(rustix::net::socket_with(
                family.number(),
                kind,
                flags,
                None,
            )?)
        })
    }
}

/// Which loopback address of a sandbox: most services listen on the first, some on the other alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::INET,
            Self::V6 => AddressFamily::INET6,
        }
    }

    pub(super) fn loopback(self, port: u16) -> SocketAddr {
        let address = match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        SocketAddr::new(address, port)
    }
}
