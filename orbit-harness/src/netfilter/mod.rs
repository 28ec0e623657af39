//! The gate of a sandbox's network: what may leave it, kept by nf_tables in its own network namespace, and a record
//! of what was refused.
//!
//! The messages are made here, since no program should be executed for each sandbox (`nft` takes milliseconds), and
//! the crates that make them wrap a library under the GPL. The socket is made in the namespace by who has privilege
//! over it, and read by the test process, which has it as the owner of the user namespace.

mod gate;
mod message;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink,
    netlink::SocketAddrNetlink,
};

pub(crate) use self::gate::Gate;
use crate::{
    net::denied::Denied,
    netlink::attributes::{Said, said},
};

/// A conversation with nf_tables in the network namespace that its socket was made in.
#[derive(Debug)]
pub(crate) struct Netfilter(Mutex<OwnedFd>);

/// Makes the messages of the gate that most sandboxes have, for this process and the forks that it will make.
pub(crate) fn prepare() {
    let _ = Gate::default().install();
}

/// What one datagram of a dump is bounded by. Source: Linux, net/netlink/af_netlink.c, `netlink_dump`.
const ANSWER_BYTES: usize = 32 * 1024;

impl Netfilter {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let protocol = Some(netlink::NETFILTER);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self::from_fd(socket))
    }

    pub(crate) fn from_fd(socket: OwnedFd) -> Self {
        Self(Mutex::new(socket))
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Installs the rules of `gate`, all or none.
    ///
    /// # Errors
    /// EOPNOTSUPP, ENOENT or EPROTONOSUPPORT where the kernel has not what it takes.
    pub(crate) fn install(&self, gate: &Gate) -> io::Result<()> {
        self.ask(&gate.install(), |_| {})
    }

    /// The destinations that were refused so far.
    pub(crate) fn denied(&self) -> io::Result<Vec<Denied>> {
        let mut found = Vec::new();
        for question in gate::ask() {
            self.ask(&question, |said| found.extend(gate::read(said)))?;
        }
        found.sort_unstable();
        // Of what has no ports there may be several.
        found.dedup_by(|next, one: &mut Denied| {
            let is_same =
                (next.address, next.port, next.protocol) == (one.address, one.port, one.protocol);
            one.count += if is_same { next.count } else { 0 };
            is_same
        });
        Ok(found)
    }

    /// Sends a question, and hears the answers to their end.
    fn ask(&self, question: &[u8], mut hear: impl FnMut(Said<'_>)) -> io::Result<()> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&*socket, question, SendFlags::empty(), &kernel)?;
        // Never set to zero: most answers are short, and in an init each page that is touched is copied first.
        let mut answer = Vec::with_capacity(ANSWER_BYTES);
        loop {
            answer.clear();
            rustix::io::retry_on_intr(|| {
                let room = rustix::buffer::spare_capacity(&mut answer);
                rustix::net::recv(&*socket, room, RecvFlags::empty())
            })?;
            for said in said(&answer) {
                match said {
                    Said::Done | Said::Answer(0) => return Ok(()),
                    Said::Answer(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    Said::Data(_) => hear(said),
                }
            }
        }
    }
}
