//! The test process's side of the broker.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{
    protocol::{Answer, NetRequest},
    trunk::Known,
};
use crate::{
    net::{addresses::Subnet, faults::Faults, ports::Protocol},
    supervisor::channel::{Channel, MAX_FDS},
};

/// Ports that one message can carry, beside the lease and the namespace.
pub(crate) const MAX_PORTS: usize = MAX_FDS - 2;

/// How long a connection over loopback may be under way before it is said to be.
const LOOPBACK_PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// The broker of this process's supervisor.
#[derive(Debug)]
pub(crate) struct Broker(Channel);

/// Something that the broker does until this is dropped, and has stopped doing when the drop returns.
#[derive(Debug)]
pub(crate) struct Lease(Channel);

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.shutdown_send().is_ok() {
            // Nothing more is said: this waits for the end.
            while let Ok(Some(_)) = self.0.recv::<Answer>() {}
        }
    }
}

impl Broker {
    /// The broker at the other end of `channel`, once it is ready.
    ///
    /// # Errors
    /// What it, or the supervisor for it, answered.
    pub(crate) fn greet(channel: Channel) -> io::Result<Self> {
        answer(&channel)?;
        Ok(Self(channel))
    }

    /// Whether it can still be asked.
    pub(crate) fn is_alive(&self) -> bool {
        self.0.is_open()
    }

    /// Connects to `port` of the loopback inside of `namespace`: of IPv4, or of IPv6 where the service listens
    /// there alone.
    ///
    /// # Errors
    /// What `connect` answers: ECONNREFUSED where nobody listens.
    pub(crate) fn connect(&self, namespace: BorrowedFd<'_>, port: u16) -> io::Result<TcpStream> {
        self.connect_by(namespace, port, |socket, address| {
            rustix::net::connect(socket, address)
        })
    }

    /// As [`connect`](Self::connect), but the stream does not block, and the connection may still be under way when this
    /// returns, where the queue of the service is full.
    ///
    /// # Errors
    /// What was known by then: ECONNREFUSED always is.
    pub(crate) fn begin_to_connect(
        &self,
        namespace: BorrowedFd<'_>,
        port: u16,
    ) -> io::Result<TcpStream> {
        self.connect_by(namespace, port, |socket, address| {
            rustix::io::ioctl_fionbio(socket, true)?;
            match rustix::net::connect(socket, address) {
                Err(rustix::io::Errno::INPROGRESS) => {}
                done => return done,
            }
            // A loopback answers at once, or not for a second.
            let mut polled = [PollFd::new(socket, PollFlags::OUT)];
            if rustix::event::poll(&mut polled, Some(&LOOPBACK_PATIENCE))? == 0 {
                return Ok(());
            }
            rustix::net::sockopt::socket_error(socket)?
        })
    }

    fn connect_by(
        &self,
        namespace: BorrowedFd<'_>,
        port: u16,
        connect: impl Fn(&OwnedFd, &SocketAddr) -> rustix::io::Result<()>,
    ) -> io::Result<TcpStream> {
        let reply = self.ask(&NetRequest::Sockets, &[namespace])?;
        let mut sockets = answer(&reply)?.into_iter();
        let v4 = sockets.next().ok_or(rustix::io::Errno::NOENT)?;
        let to = |address: SocketAddr, socket: OwnedFd| {
            connect(&socket, &address).map(|()| TcpStream::from(socket))
        };
        let refused = match to((Ipv4Addr::LOCALHOST, port).into(), v4) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let v6 = sockets
            .next()
            .filter(|_| refused == rustix::io::Errno::CONNREFUSED);
        match v6.map(|v6| to((Ipv6Addr::LOCALHOST, port).into(), v6)) {
            Some(Ok(stream)) => Ok(stream),
            _ => Err(refused.into()),
        }
    }

    /// Forwards what arrives at each of the host's sockets to a port inside of `namespace`. At most
    /// [`MAX_PORTS`] of them.
    pub(crate) fn publish(
        &self,
        namespace: BorrowedFd<'_>,
        sockets: &[(Protocol, u16, OwnedFd)],
    ) -> io::Result<Lease> {
        let ports = sockets
            .iter()
            .map(|(protocol, port, _)| (*protocol, *port))
            .collect();
        let mut fds = vec![namespace];
        fds.extend(sockets.iter().map(|(_, _, socket)| socket.as_fd()));
        let lease = self.ask(&NetRequest::Publish { ports }, &fds)?;
        answer(&lease)?;
        Ok(Lease(lease))
    }

    /// Makes a network: one that other processes are on where there is a socket that listens for them.
    pub(crate) fn create_network(
        &self,
        id: u64,
        subnet: Subnet,
        listener: Option<BorrowedFd<'_>>,
    ) -> io::Result<Lease> {
        let fds: Vec<_> = listener.into_iter().collect();
        let lease = self.ask(&NetRequest::CreateNetwork { id, subnet }, &fds)?;
        answer(&lease)?;
        Ok(Lease(lease))
    }

    /// Connects a network with the broker of another process that is on it.
    pub(crate) fn meet(
        &self,
        network: u64,
        connection: BorrowedFd<'_>,
        members: Vec<Known>,
    ) -> io::Result<()> {
        let request = NetRequest::Meet { network, members };
        answer(&self.ask(&request, &[connection])?).map(drop)
    }

    /// Lets a sandbox join a network: what holds its place, and what its init is to be given.
    pub(crate) fn admit(
        &self,
        (network, sandbox): (u64, u64),
        address: Ipv4Addr,
        names: &[String],
        asks_beyond: bool,
    ) -> io::Result<(Lease, Channel)> {
        let (init, ours) = Channel::pair()?;
        let request = NetRequest::Admit {
            network,
            sandbox,
            address,
            names: names.to_vec(),
            asks_beyond,
        };
        let lease = self.ask(&request, &[ours.as_fd()])?;
        answer(&lease)?;
        Ok((Lease(lease), init))
    }

    /// Says what is wrong with what the first of two members of the network sends to the second: `None` is nothing.
    ///
    /// # Errors
    /// ENOENT where one of them is gone.
    pub(crate) fn set_faults(
        &self,
        network: u64,
        pair: (Ipv4Addr, Ipv4Addr),
        faults: Option<Faults>,
    ) -> io::Result<()> {
        let request = NetRequest::Fault {
            network,
            pair,
            faults,
        };
        answer(&self.ask(&request, &[])?).map(drop)
    }

    /// Ends everything that is wrong with the network.
    pub(crate) fn heal(&self, network: u64) -> io::Result<()> {
        answer(&self.ask(&NetRequest::Heal { network }, &[])?).map(drop)
    }

    fn ask(&self, request: &NetRequest, fds: &[BorrowedFd<'_>]) -> io::Result<Channel> {
        let (ours, theirs) = Channel::pair()?;
        let mut all = vec![theirs.as_fd()];
        all.extend_from_slice(fds);
        self.0.send(request, &all)?;
        Ok(ours)
    }
}

fn answer(channel: &Channel) -> io::Result<Vec<OwnedFd>> {
    match channel.recv::<Answer>()? {
        Some((Ok(()), fds)) => Ok(fds),
        Some((Err(errno), _)) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the process that owns the network of this test's sandboxes ended",
        )),
    }
}
