//! The bridge on the host that root's sandboxes share, across processes.
//!
//! Made by the first process that needs it, gone with the last sandbox on it. Who uses it is told by leases: files
//! that are locked as long as their owner lives, so that a process that was killed needs nobody's cleaning up
//! but the next process's. Its links are born in the sandboxes and end with them.
//!
//! The bridge is no way out: packets from it reach neither the host's own services nor what is beyond the host.
//! The rules are counted, and are installed with one call of `nft` for a bridge.

mod leases;
mod rules;

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
};

use self::leases::{Directory, Held};
use crate::{net::addresses::Subnet, netlink::Netlink, supervisor::Channel};

/// Why there is no bridge, or no place on it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BridgeError {
    #[error("cannot {doing} the bridge {name}: {source}")]
    Io {
        doing: &'static str,
        name: String,
        source: io::Error,
    },
    #[error(
        "a link called {0} is there already, and Orbit did not make it: choose another name for the bridge, or \
         remove the link with `ip link del {0}`"
    )]
    Foreign(String),
    #[error(
        "the bridge {name} is {has} while other sandboxes use it, and cannot be {wanted} too: choose another name \
         or the same addresses"
    )]
    OtherSubnet {
        name: String,
        has: Subnet,
        wanted: Subnet,
    },
    #[error(
        "the bridge {name} cannot be {subnet}: the link {link} of this host has {address}, which is in it; choose \
         other addresses"
    )]
    Overlap {
        name: String,
        subnet: Subnet,
        link: String,
        address: Ipv4Addr,
    },
    #[error(
        "the bridge {name} is full: each address of {subnet} is a sandbox's; give it a larger network"
    )]
    Full { name: String, subnet: Subnet },
    #[error("cannot keep the bridge {name} apart from the host: {why}")]
    Rules { name: String, why: String },
}

/// A sandbox's place on a bridge. When this is dropped its address is free, and the bridge is gone if it was the
/// last.
#[derive(Debug)]
pub(crate) struct Place {
    bridge: String,
    address: Ipv4Addr,
    held: Option<Held>,
    /// Who else is there: addresses and names.
    neighbours: Vec<(Ipv4Addr, String)>,
}

/// Takes a place on the bridge `name`, which is made where it is not there.
///
/// # Errors
/// [`BridgeError`]; nothing was created then.
pub(crate) fn join(name: &str, subnet: Subnet, names: &[String]) -> Result<Place, BridgeError> {
    let failed = |doing| {
        let name = name.to_owned();
        move |source| BridgeError::Io {
            doing,
            name,
            source,
        }
    };
    let directory = Directory::lock(name).map_err(failed("lock"))?;
    directory.forget_dead().map_err(failed("tidy up"))?;
    if let Err(error) = ensure_bridge(&directory, name, subnet) {
        if directory.is_unused().is_ok_and(|unused| unused) {
            directory.forget_bridge();
        }
        return Err(error);
    }
    let taken = directory
        .take(subnet, names)
        .map_err(failed("lease an address of"))?;
    let Some((address, held)) = taken else {
        return Err(BridgeError::Full {
            name: name.to_owned(),
            subnet,
        });
    };
    let neighbours = directory.names().map_err(failed("read the leases of"))?;
    Ok(Place {
        bridge: name.to_owned(),
        address,
        held: Some(held),
        neighbours,
    })
}

fn ensure_bridge(directory: &Directory, name: &str, subnet: Subnet) -> Result<(), BridgeError> {
    let failed = |source| BridgeError::Io {
        doing: "make",
        name: name.to_owned(),
        source,
    };
    let netlink = Netlink::open().map_err(failed)?;
    let index = netlink.index(name).ok();
    match (directory.made(), index) {
        (Some((ours, has)), Some(index)) if ours == index => {
            if has == subnet {
                return Ok(());
            }
            if !directory.is_unused().map_err(failed)? {
                return Err(BridgeError::OtherSubnet {
                    name: name.to_owned(),
                    has,
                    wanted: subnet,
                });
            }
            // Left behind by a process that was killed.
            netlink.remove(index).map_err(failed)?;
        }
        (_, Some(_)) => return Err(BridgeError::Foreign(name.to_owned())),
        (_, None) => {}
    }
    refuse_overlap(name, subnet)?;
    let index = netlink.add_bridge(name, subnet.gateway()).map_err(failed)?;
    let made = directory
        .remember(index, subnet)
        .and_then(|()| netlink.add_address(index, subnet.gateway(), subnet.prefix()))
        .map_err(failed)
        .and_then(|()| {
            rules::install(name).map_err(|why| BridgeError::Rules {
                name: name.to_owned(),
                why,
            })
        });
    if made.is_err() {
        // What failed first is what is told.
        let _ = netlink.remove(index);
    }
    made
}

/// Whether some other link of the host has an address of the subnet.
fn refuse_overlap(name: &str, subnet: Subnet) -> Result<(), BridgeError> {
    let links = nix::ifaddrs::getifaddrs().map_err(|errno| BridgeError::Io {
        doing: "look at the host's links for",
        name: name.to_owned(),
        source: errno.into(),
    })?;
    for link in links {
        let v4 = |it: Option<nix::sys::socket::SockaddrStorage>| {
            it.and_then(|it| it.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip))
        };
        let (Some(address), Some(mask)) = (v4(link.address), v4(link.netmask)) else {
            continue;
        };
        let theirs = mask.to_bits();
        let in_theirs = subnet.gateway().to_bits() & theirs == address.to_bits() & theirs;
        if subnet.contains(address) || in_theirs {
            return Err(BridgeError::Overlap {
                name: name.to_owned(),
                subnet,
                link: link.interface_name,
                address,
            });
        }
    }
    Ok(())
}

impl Place {
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Who was on the bridge when this place was taken.
    pub(crate) fn neighbours(&self) -> &[(Ipv4Addr, String)] {
        &self.neighbours
    }

    /// Gives the init at the other end of `init` the link that it asks for.
    ///
    /// # Errors
    /// What the kernel answers. An init that is gone is none: who launched it hears of that elsewhere.
    pub(crate) fn connect(&self, init: &Channel) -> io::Result<()> {
        let Some((name, fds)) = init.recv::<String>()? else {
            return Ok(());
        };
        let made = self.make_link(&name, fds.first());
        let answer: Result<(), i32> =
            made.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        // As above.
        let _ = init.send(&answer, &[]);
        Ok(())
    }

    fn make_link(&self, name: &str, namespace: Option<&OwnedFd>) -> io::Result<()> {
        let namespace = namespace.ok_or(rustix::io::Errno::BADF)?;
        let netlink = Netlink::open()?;
        let bridge = netlink.index(&self.bridge)?;
        // No two sandboxes of this host have this name, nor does one that is about to end.
        let unique = NEXT_LINK.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let own = format!("orb{:x}.{unique:x}", std::process::id());
        netlink.add_veth(&own, bridge, name, namespace.as_fd(), self.address)
    }
}

static NEXT_LINK: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

impl Drop for Place {
    fn drop(&mut self) {
        // Without the lock nothing may be removed; the next process to come will.
        let Ok(directory) = Directory::lock(&self.bridge) else {
            return;
        };
        drop(self.held.take());
        directory.release(self.address);
        // The dead count for nobody.
        if directory.forget_dead().is_ok() && directory.is_unused().is_ok_and(|unused| unused) {
            remove_bridge(&directory, &self.bridge);
        }
    }
}

/// Removes the bridge and its rules, as far as they are ours and there.
fn remove_bridge(directory: &Directory, name: &str) {
    if let (Some((ours, _)), Ok(netlink)) = (directory.made(), Netlink::open())
        && netlink.index(name).is_ok_and(|index| index == ours)
    {
        let _ = netlink.remove(ours);
    }
    rules::remove(name);
    directory.forget_bridge();
}
