//! Published UDP ports: each client of the host has a socket of its own inside, so that answers find their way
//! back; one that is idle for a minute is forgotten.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage};
use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, SocketFlags, SocketType},
};

use super::{
    due::Due,
    namespaces::{Family, Namespaces},
    watch::{Kind, Watch},
};

/// How long a client is remembered that neither sends nor is answered; Docker's and Linux's own choice is near.
const IDLE: Duration = Duration::from_secs(60);

/// How many clients one port serves at once; then the one idle longest is forgotten.
const MAX_CLIENTS: usize = 4096;

/// Datagrams taken with one call.
const BATCH: usize = 16;

/// As large as a datagram can be.
const DATAGRAM_BYTES: usize = 65536;

/// Batches taken from one socket before the others have their turn.
const ROUNDS: usize = 8;

#[derive(Default)]
pub(super) struct Datagrams {
    ports: HashMap<u64, Port>,
    clients: HashMap<u64, Client>,
    /// When to look for those that are idle.
    look: Due,
    buffers: Vec<Vec<u8>>,
}

struct Port {
    owner: u64,
    socket: OwnedFd,
    namespace: Rc<OwnedFd>,
    inside: u16,
    /// Where the service was last not refused.
    family: Family,
    clients: HashMap<SocketAddr, u64>,
}

struct Client {
    port: u64,
    address: SocketAddr,
    socket: OwnedFd,
    family: Family,
    last_used: Instant,
}

impl Datagrams {
    /// Forwards what arrives at `socket` to `port` inside of `namespace`, on behalf of `owner`.
    pub(super) fn listen(
        &mut self,
        watch: &mut Watch,
        owner: u64,
        socket: OwnedFd,
        namespace: Rc<OwnedFd>,
        port: u16,
    ) -> io::Result<()> {
        let id = watch.next_id();
        watch.add(socket.as_fd(), Kind::DatagramPort, id, EventFlags::IN)?;
        self.ports.insert(
            id,
            Port {
                owner,
                socket,
                namespace,
                inside: port,
                family: Family::V4,
                clients: HashMap::new(),
            },
        );
        if self.buffers.is_empty() {
            self.buffers = vec![vec![0; DATAGRAM_BYTES]; BATCH];
        }
        Ok(())
    }

    /// Closes everything of `owner`'s.
    pub(super) fn close(&mut self, owner: u64) {
        for (_, port) in self.ports.extract_if(|_, port| port.owner == owner) {
            for id in port.clients.values() {
                self.clients.remove(id);
            }
        }
    }

    /// When to look for idle clients again.
    pub(super) fn next_look(&mut self) -> Option<Duration> {
        if !self.clients.is_empty() {
            self.look.set(IDLE / 4);
        }
        self.look.left()
    }

    /// Forgets the clients that are idle, where it is time to look.
    pub(super) fn forget_idle(&mut self) {
        if !self.look.has_come() {
            return;
        }
        self.look.clear();
        let idle = |client: &Client| client.last_used.elapsed() > IDLE;
        for (_, client) in self.clients.extract_if(|_, client| idle(client)) {
            if let Some(port) = self.ports.get_mut(&client.port) {
                port.clients.remove(&client.address);
            }
        }
    }

    /// Passes on what clients of the host sent to the port `id`.
    pub(super) fn pass_in(&mut self, id: u64, watch: &mut Watch, namespaces: &Namespaces) {
        for _ in 0..ROUNDS {
            let Some(port) = self.ports.get(&id) else {
                return;
            };
            let Ok(received) = receive(&port.socket, &mut self.buffers) else {
                return;
            };
            let full = received.len() == BATCH;
            let mut batches: Vec<(SocketAddr, Vec<(usize, usize)>)> = Vec::new();
            for (index, (bytes, from)) in received.into_iter().enumerate() {
                let Some(from) = from else { continue };
                match batches.iter_mut().find(|(address, _)| *address == from) {
                    Some((_, batch)) => batch.push((index, bytes)),
                    None => batches.push((from, vec![(index, bytes)])),
                }
            }
            for (from, batch) in batches {
                // A datagram that cannot be passed on is lost, as datagrams may be.
                let _ = self.pass_on(id, from, &batch, watch, namespaces);
            }
            if !full {
                return;
            }
        }
    }

    fn pass_on(
        &mut self,
        id: u64,
        from: SocketAddr,
        batch: &[(usize, usize)],
        watch: &mut Watch,
        namespaces: &Namespaces,
    ) -> io::Result<()> {
        let client = self.client(id, from, watch, namespaces)?;
        let Some(known) = self.clients.get_mut(&client) else {
            return Ok(());
        };
        known.last_used = Instant::now();
        match send(&known.socket, None, batch, &self.buffers) {
            // Of an earlier datagram: nobody listens there.
            Err(Errno::CONNREFUSED) => {
                self.refused(client);
                let client = self.client(id, from, watch, namespaces)?;
                if let Some(known) = self.clients.get(&client) {
                    send(&known.socket, None, batch, &self.buffers)?;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// The client at `address` of the port `id`, with a socket inside.
    fn client(
        &mut self,
        id: u64,
        address: SocketAddr,
        watch: &mut Watch,
        namespaces: &Namespaces,
    ) -> io::Result<u64> {
        let Some(port) = self.ports.get_mut(&id) else {
            return Err(Errno::NOENT.into());
        };
        if let Some(known) = port.clients.get(&address) {
            return Ok(*known);
        }
        if port.clients.len() >= MAX_CLIENTS {
            let used = |id: &u64| self.clients.get(id).map(|client| client.last_used);
            let oldest = port.clients.iter().min_by_key(|(_, id)| used(id));
            if let Some((address, oldest)) = oldest.map(|(address, id)| (*address, *id)) {
                port.clients.remove(&address);
                self.clients.remove(&oldest);
            }
        }
        let family = port.family;
        let socket = namespaces.socket(
            &*port.namespace,
            family,
            SocketType::DGRAM,
            SocketFlags::NONBLOCK,
        )?;
        rustix::net::connect(&socket, &family.loopback(port.inside))?;
        let client = watch.next_id();
        watch.add(socket.as_fd(), Kind::DatagramClient, client, EventFlags::IN)?;
        port.clients.insert(address, client);
        self.clients.insert(
            client,
            Client {
                port: id,
                address,
                socket,
                family,
                last_used: Instant::now(),
            },
        );
        Ok(client)
    }

    /// Passes on what the service answered the client `id`.
    pub(super) fn pass_back(&mut self, id: u64) {
        for _ in 0..ROUNDS {
            let Some(client) = self.clients.get_mut(&id) else {
                return;
            };
            let Some(port) = self.ports.get(&client.port) else {
                return;
            };
            let received = match receive(&client.socket, &mut self.buffers) {
                Ok(received) => received,
                Err(nix::errno::Errno::ECONNREFUSED) => return self.refused(id),
                Err(_) => return,
            };
            client.last_used = Instant::now();
            let sizes = received.iter().map(|(bytes, _)| *bytes).enumerate();
            let batch: Vec<(usize, usize)> = sizes.collect();
            // As above.
            let _ = send(&port.socket, Some(client.address), &batch, &self.buffers);
            if batch.len() < BATCH {
                return;
            }
        }
    }

    /// Nobody listens where the client's datagrams went: its next ones go to the other loopback address.
    fn refused(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        if let Some(port) = self.ports.get_mut(&client.port) {
            port.clients.remove(&client.address);
            port.family = client.family.other();
        }
    }
}

/// Takes up to [`BATCH`] datagrams: how long each is, and where it came from.
///
/// C: `recvmmsg(socket, headers, n, MSG_DONTWAIT, NULL)`. Source: recvmmsg(2).
fn receive(
    socket: &OwnedFd,
    buffers: &mut [Vec<u8>],
) -> nix::Result<Vec<(usize, Option<SocketAddr>)>> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(buffers.len(), None);
    let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers
        .iter_mut()
        .map(|buffer| [IoSliceMut::new(buffer)])
        .collect();
    let received = nix::sys::socket::recvmmsg(
        socket.as_raw_fd(),
        &mut headers,
        slices.iter_mut(),
        MsgFlags::MSG_DONTWAIT,
        None,
    )?;
    let plain = |address: SockaddrStorage| {
        let v4 = address
            .as_sockaddr_in()
            .map(|v4| SocketAddr::V4((*v4).into()));
        v4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|v6| SocketAddr::V6((*v6).into()))
        })
    };
    Ok(received
        .map(|message| (message.bytes, message.address.and_then(plain)))
        .collect())
}

/// Sends the datagrams of `batch`, each an index into `buffers` and a length.
///
/// C: `sendmmsg(socket, headers, n, MSG_DONTWAIT)`. Source: sendmmsg(2).
fn send(
    socket: &OwnedFd,
    to: Option<SocketAddr>,
    batch: &[(usize, usize)],
    buffers: &[Vec<u8>],
) -> rustix::io::Result<()> {
    let to = to.map(SocketAddrAny::from);
    let slices: Vec<[IoSlice<'_>; 1]> = batch
        .iter()
        .map(|(index, bytes)| [IoSlice::new(&buffers[*index][..*bytes])])
        .collect();
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> = batch
        .iter()
        .map(|_| SendAncillaryBuffer::default())
        .collect();
    let mut headers: Vec<MMsgHdr<'_>> = slices
        .iter()
        .zip(&mut controls)
        .map(|(slice, control)| match &to {
            Some(to) => MMsgHdr::new_with_addr(to, slice, control),
            None => MMsgHdr::new(slice, control),
        })
        .collect();
    rustix::net::sendmmsg(
        socket,
        &mut headers,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
