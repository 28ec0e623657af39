//! Links and addresses, through netlink: what the broker and the inits ask the kernel for.
//!
//! Who asks here is a small single-threaded process that waits for each answer anyway; the crate `rtnetlink` needs an
//! asynchronous runtime.

pub(crate) mod attributes;
mod route;

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink,
};

use self::{
    attributes::{Said, said},
    route::Peer,
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
        self.ask(&route::new_bridge(name, hardware(address)))?;
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
        let peer = Peer {
            name: peer_name,
            namespace: Some(peer_in.as_raw_fd()),
            hardware: Some(hardware(peer_address)),
        };
        self.ask(&route::new_veth(name, bridge, &peer, true))
    }

    /// Gives the link of number `index` an address in a network of this prefix.
    pub(crate) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        self.ask(&route::new_address(index, address, prefix))
    }

    /// Brings the link of number `index` up.
    pub(crate) fn bring_up(&self, index: u32) -> io::Result<()> {
        self.ask(&route::bring_up(index))
    }

    /// Makes a pair of links: `name`, up and in the bridge of number `bridge`; `peer_name` in the same namespace, which
    /// is no host of its own: it answers nobody. The number of the first, and of the second.
    pub(crate) fn add_tap(
        &self,
        name: &str,
        bridge: u32,
        peer_name: &str,
    ) -> io::Result<(u32, u32)> {
        let peer = Peer {
            name: peer_name,
            namespace: None,
            hardware: None,
        };
        self.ask(&route::new_veth(name, bridge, &peer, false))?;
        let (near, far) = (self.index(name)?, self.index(peer_name)?);
        for index in [near, far] {
            match self.ask(&route::without_own_address(index)) {
                // A kernel without IPv6.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                other => other?,
            }
        }
        self.ask(&route::bring_up_without_arp(far))?;
        self.bring_up(near)?;
        Ok((near, far))
    }

    /// Whether what is for everybody, or for a group, leaves the bridge by the port of number `port`.
    pub(crate) fn set_flood(&self, port: u32, flood: bool) -> io::Result<()> {
        self.ask(&route::set_flood(port, flood))
    }

    /// Takes the link `name` down: nothing passes it any more, either way, and a bridge forgets who was there.
    ///
    /// Not by the state of a bridge's port: the bridge enables a disabled port again when it hears, up to a second late,
    /// that the link has a carrier. Source: Linux, net/bridge/br_if.c, `br_port_carrier_check`.
    ///
    /// # Errors
    /// ENODEV where the link is gone.
    pub(crate) fn take_down(&self, name: &str) -> io::Result<()> {
        self.ask(&route::take_down(name))
    }

    /// Has a bridge forward what is for a hardware address by the port of number `port`.
    pub(crate) fn add_forwarding(&self, port: u32, hardware: Hardware) -> io::Result<()> {
        self.ask(&route::new_forwarding(port, hardware))
    }

    /// Undoes [`Self::add_forwarding`].
    ///
    /// # Errors
    /// ENOENT where it is gone.
    pub(crate) fn remove_forwarding(&self, port: u32, hardware: Hardware) -> io::Result<()> {
        self.ask(&route::delete_forwarding(port, hardware))
    }

    /// Makes what has no other route go to the link of number `index`, which is loopback.
    ///
    /// IPv6 takes routes by loopback for ways to nowhere, except those that say that all there is is here. With one of
    /// those IPv4 would let programs bind every address, so it is not the same for both.
    /// Source: Linux, net/ipv6/route.c, `ip6_route_info_create`.
    pub(crate) fn keep_the_rest(&self, index: u32) -> io::Result<()> {
        self.ask(&route::last_route(index))?;
        match self.ask(&route::last_route_v6(index)) {
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
        self.ask(&route::new_neighbour(index, address, hardware))
    }

    /// Undoes [`Self::set_neighbour`]: whoever has the address is asked for anew.
    ///
    /// # Errors
    /// ENOENT where nothing is known of it.
    pub(crate) fn remove_neighbour(&self, index: u32, address: IpAddr) -> io::Result<()> {
        self.ask(&route::delete_neighbour(index, address))
    }

    /// Removes the link of number `index`.
    pub(crate) fn remove(&self, index: u32) -> io::Result<()> {
        self.ask(&route::delete_link(index))
    }

    /// Sends `message` and waits for the kernel's word on it.
    fn ask(&self, message: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.0, message, SendFlags::empty(), &kernel)?;
        // Never set to zero: in an init each page that is touched is copied first.
        let mut answer = Vec::with_capacity(8192);
        rustix::io::retry_on_intr(|| {
            let room = rustix::buffer::spare_capacity(&mut answer);
            rustix::net::recv(&self.0, room, RecvFlags::empty())
        })?;
        match said(&answer).next() {
            Some(Said::Answer(0)) => Ok(()),
            Some(Said::Answer(errno)) => Err(io::Error::from_raw_os_error(errno)),
            other => Err(io::Error::other(format!("an unexpected answer: {other:?}"))),
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
