//! Who answers names on a network: a socket for datagrams, one for connections, at the network's first address.
//!
//! Source: RFC 1035, section 4.2; RFC 7766 for connections.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{
    event::epoll::EventFlags,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
};

use super::watch::{Kind, Watch};
use crate::net::dns::{self, Room};

const DNS_PORT: u16 = 53;
/// As long as a question can be, with room for extensions.
const QUESTION_BYTES: usize = 4096;
/// Questions answered before others have their turn.
const QUESTIONS: usize = 64;
/// Connections open at once; then the one that was opened first is closed.
const MOST_CONNECTIONS: usize = 64;

pub(super) struct Resolver {
    datagrams: OwnedFd,
    listener: OwnedFd,
}

impl Resolver {
    /// In the network namespace of the calling process.
    pub(super) fn make(address: Ipv4Addr) -> io::Result<Self> {
        let socket = |kind| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
            rustix::net::bind(&socket, &SocketAddr::from((address, DNS_PORT)))?;
            io::Result::Ok(socket)
        };
        let resolver = Self {
            datagrams: socket(SocketType::DGRAM)?,
            listener: socket(SocketType::STREAM)?,
        };
        rustix::net::listen(&resolver.listener, 64)?;
        Ok(resolver)
    }

    pub(super) fn watch(&self, watch: &Watch, network: u64) -> io::Result<()> {
        watch.add(
            self.datagrams.as_fd(),
            Kind::Resolver,
            network,
            EventFlags::IN,
        )?;
        watch.add(
            self.listener.as_fd(),
            Kind::ResolverListener,
            network,
            EventFlags::IN,
        )
    }

    /// Answers the datagrams that came. `known` is who has a name, of those that the asker may know.
    pub(super) fn answer_datagrams(&self, known: impl Fn(Ipv4Addr, &str) -> dns::Found) {
        let mut question = [0; QUESTION_BYTES];
        for _ in 0..QUESTIONS {
            let received =
                rustix::net::recvfrom(&self.datagrams, &mut question[..], RecvFlags::empty());
            let Ok((count, _, Some(from))) = received else {
                return;
            };
            let Ok(SocketAddr::V4(asker)) = SocketAddr::try_from(from.clone()) else {
                continue;
            };
            let question = &question[..count.min(QUESTION_BYTES)];
            let known = |name: &str| known(*asker.ip(), name);
            if let Some(answer) = dns::answer(question, Room::Datagram, known) {
                // A lost answer is asked for again.
                let to = SocketAddr::V4(asker);
                let _ = rustix::net::sendto(&self.datagrams, &answer, SendFlags::NOSIGNAL, &to);
            }
        }
    }
}

/// Connections on which questions are asked.
#[derive(Default)]
pub(super) struct Connections(HashMap<u64, Connection>);

struct Connection {
    network: u64,
    asker: Ipv4Addr,
    socket: OwnedFd,
    /// What was read, and is no whole question yet.
    read: Vec<u8>,
}

impl Connections {
    pub(super) fn accept(&mut self, watch: &mut Watch, network: u64, resolver: &Resolver) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok((socket, from)) = rustix::net::acceptfrom_with(&resolver.listener, flags) {
            let Some(Ok(SocketAddr::V4(asker))) = from.map(SocketAddr::try_from) else {
                continue;
            };
            let id = watch.next_id();
            if watch
                .add(socket.as_fd(), Kind::ResolverClient, id, EventFlags::IN)
                .is_err()
            {
                return;
            }
            let same = |connection: &&Connection| connection.network == network;
            if self.0.values().filter(same).count() >= MOST_CONNECTIONS {
                let of_network = self.0.iter().filter(|(_, it)| it.network == network);
                if let Some(oldest) = of_network.map(|(id, _)| *id).min() {
                    self.0.remove(&oldest);
                }
            }
            let connection = Connection {
                network,
                asker: *asker.ip(),
                socket,
                read: Vec::new(),
            };
            self.0.insert(id, connection);
        }
    }

    /// The network that a connection is of.
    pub(super) fn network(&self, id: u64) -> Option<u64> {
        self.0.get(&id).map(|connection| connection.network)
    }

    /// Answers what the connection of this number asks.
    pub(super) fn answer(&mut self, id: u64, known: impl Fn(Ipv4Addr, &str) -> dns::Found) {
        if self
            .0
            .get_mut(&id)
            .is_some_and(|connection| connection.answer(known).is_none())
        {
            self.0.remove(&id);
        }
    }

    /// Closes those of a network that is gone.
    pub(super) fn close(&mut self, network: u64) {
        self.0.retain(|_, connection| connection.network != network);
    }
}

impl Connection {
    /// `None` where it is over.
    fn answer(&mut self, known: impl Fn(Ipv4Addr, &str) -> dns::Found) -> Option<()> {
        let mut buffer = [0; QUESTION_BYTES];
        match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Some(()),
            Ok((0, _)) | Err(_) => return None,
            Ok((count, _)) => self.read.extend(&buffer[..count]),
        }
        while let Some((length, rest)) = self.read.split_first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length));
            if length > QUESTION_BYTES {
                return None;
            }
            let Some(question) = rest.get(..length) else {
                return Some(());
            };
            let known = |name: &str| known(self.asker, name);
            let answer = dns::answer(question, Room::Stream, known)?;
            let length_of_answer = u16::try_from(answer.len()).ok()?.to_be_bytes();
            let answer = [&length_of_answer[..], &answer].concat();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // Who does not read its answers gets none.
            let sent = rustix::net::send(&self.socket, &answer, flags).ok()?;
            if sent < answer.len() {
                return None;
            }
            self.read.drain(..length + 2);
        }
        Some(())
    }
}
