//! The wire of a network where the kernel's own is not enough: frames that are to be lost or late, or that are for
//! another process's sandboxes, leave the bridge by a port of their own, and are read and passed on here.
//!
//! Which frames come this way is decided where they are sent: the sender's kernel is told the receiver's *detour*, a
//! hardware address that the bridge forwards to this port. What is for everybody comes here of itself; a member that
//! somebody's frames are to be kept from gets that from here alone, as its own port of the bridge is told not to flood.
//!
//! Not netem: many kernels are built without it (that of the machine this was written on, those of several CI
//! services), and what it would be told is a queue for each receiver and a filter for each pair, in every sandbox.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::net::RecvFlags;

use super::namespaces::Namespaces;
use crate::{
    net::{
        faults::{Chance, Faults, Shaper},
        frames::{self, Destination},
    },
    netlink::Netlink,
    sys,
};

/// Longer than a frame of any link of ours.
const FRAME_BYTES: usize = 65536 + 64;
/// Frames read before others have their turn.
const ROUND: usize = 256;
const TAP: &str = "wire";
const TAP_C: &std::ffi::CStr = c"wire";
const FAR_END: &str = "wire-end";

pub(super) struct Wire {
    socket: OwnedFd,
    /// The number of the port of the bridge, and of the link at its other end.
    port: u32,
    far: u32,
    links: HashMap<(Ipv4Addr, Ipv4Addr), Shaper>,
    /// Members whose detour leads here.
    targets: HashMap<Ipv4Addr, Target>,
    late: BinaryHeap<Reverse<Late>>,
    sent: u64,
    chance: Chance,
    buffer: Vec<u8>,
}

struct Target {
    /// The number of its port of the bridge.
    port: u32,
    /// Whether that port does not flood.
    muted: bool,
}

/// A frame on its way. Those that arrive at the same time do so in the order in which they were sent.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    at: Instant,
    number: u64,
    by: u32,
    frame: Vec<u8>,
}

impl Wire {
    /// The wire of the bridge of this number in `namespace`, which `netlink` speaks with.
    pub(super) fn make(
        netlink: &Netlink,
        bridge: u32,
        namespaces: &Namespaces,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let (port, far) = netlink.add_tap(TAP, bridge, FAR_END)?;
        let socket = namespaces.inside(namespace, || {
            sys::compute_checksums(TAP_C)?;
            sys::packet_socket(far)
        })?;
        // As large as this host allows; what is above that is cut down.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 8 << 20);
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        let (links, targets, late, sent) = Default::default();
        Ok(Self {
            socket,
            port,
            far,
            links,
            targets,
            late,
            sent,
            chance: Chance::new(u64::from_ne_bytes(seed)),
            buffer: vec![0; FRAME_BYTES],
        })
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Has what `from` sends to `to`, whose port of the bridge is `port`, pass through here with these faults.
    pub(super) fn set(
        &mut self,
        netlink: &Netlink,
        (from, to): (Ipv4Addr, Ipv4Addr),
        port: u32,
        faults: Faults,
    ) -> io::Result<()> {
        netlink.add_forwarding(self.port, frames::detour(to))?;
        netlink.set_flood(port, false)?;
        self.targets.insert(to, Target { port, muted: true });
        self.links.insert((from, to), Shaper::new(faults));
        Ok(())
    }

    /// Undoes [`Self::set`]. What is on its way arrives when it would have.
    pub(super) fn clear(&mut self, netlink: &Netlink, (from, to): (Ipv4Addr, Ipv4Addr)) {
        self.links.remove(&(from, to));
        if self.links.keys().any(|(_, other)| *other == to) {
            return;
        }
        // The target stays known: frames may be on their way to it.
        if let Some(target) = self.targets.get_mut(&to)
            && target.muted
        {
            // Where its link is gone, so is the port.
            let _ = netlink.set_flood(target.port, true);
            target.muted = false;
        }
    }

    /// The pairs with faults.
    pub(super) fn pairs(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        self.links.keys().copied().collect()
    }

    /// Forgets a member that is gone.
    pub(super) fn forget(&mut self, netlink: &Netlink, address: Ipv4Addr) {
        self.links
            .retain(|(from, to), _| *from != address && *to != address);
        if self.targets.remove(&address).is_some() {
            // Gone with the bridge at the latest.
            let _ = netlink.remove_forwarding(self.port, frames::detour(address));
        }
    }

    /// Reads what came, and passes it on, or keeps it until its time. `elsewhere` is given what may be for members
    /// that are not on this bridge.
    pub(super) fn receive(&mut self, mut elsewhere: impl FnMut(&[u8], Destination)) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..ROUND {
            let received = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT);
            let Ok((count, _)) = received else { break };
            let frame = &mut buffer[..count];
            match frames::destination(frame) {
                Some(Destination::Detour(to)) => {
                    frames::redirect(frame, to);
                    self.pass(frame, to);
                }
                Some(destination) => {
                    if destination == Destination::Group {
                        self.flood(frame);
                    }
                    elsewhere(frame, destination);
                }
                None => {}
            }
        }
        self.buffer = buffer;
    }

    /// Gives the bridge a frame that came from elsewhere.
    pub(super) fn bring(&mut self, frame: &[u8]) {
        // Lost where a queue is full, as on every wire.
        let _ = sys::send_by(self.socket.as_fd(), self.far, frame);
        if frames::destination(frame) == Some(Destination::Group) {
            self.flood(frame);
        }
    }

    /// Passes what is for everybody on to those who get it from here.
    fn flood(&mut self, frame: &[u8]) {
        let from = frames::source(frame);
        let muted = self.targets.iter().filter(|(_, target)| target.muted);
        let others: Vec<Ipv4Addr> = muted
            .map(|(address, _)| *address)
            .filter(|address| Some(*address) != from)
            .collect();
        for to in others {
            self.pass(frame, to);
        }
    }

    fn pass(&mut self, frame: &[u8], to: Ipv4Addr) {
        let Some(target) = self.targets.get(&to) else {
            return;
        };
        let by = target.port;
        let link = frames::source(frame)
            .filter(|_| !frames::is_about_neighbours(frame))
            .and_then(|from| self.links.get_mut(&(from, to)));
        let now = Instant::now();
        let at = match link {
            None => now,
            Some(shaper) => match shaper.take(now, frame.len(), || self.chance.next()) {
                Some(at) => at,
                None => return,
            },
        };
        if at <= now {
            // As above.
            let _ = sys::send_by(self.socket.as_fd(), by, frame);
            return;
        }
        self.sent += 1;
        self.late.push(Reverse(Late {
            at,
            number: self.sent,
            by,
            frame: frame.to_vec(),
        }));
    }

    /// How long until the next frame arrives.
    pub(super) fn next_arrival(&self) -> Option<Duration> {
        let Reverse(next) = self.late.peek()?;
        Some(next.at.saturating_duration_since(Instant::now()))
    }

    /// Passes on what arrives by now.
    pub(super) fn deliver(&mut self) {
        let now = Instant::now();
        while self.late.peek().is_some_and(|Reverse(next)| next.at <= now) {
            let Some(Reverse(late)) = self.late.pop() else {
                return;
            };
            // As above; ENXIO: who it was for is gone.
            let _ = sys::send_by(self.socket.as_fd(), late.by, &late.frame);
        }
    }
}
