//! Ports of the host that lead into a sandbox: bound here, in the test process, with its own privileges and on
//! its own network; forwarded by the broker.

mod holder;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{BorrowedFd, OwnedFd},
};

use crate::{
    net::ports::{Protocol, Published},
    supervisor::{Broker, Lease, MAX_PORTS},
};

/// Why ports could not be published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("cannot publish port {port}/{protocol} of the sandbox at {host}: {}", bind_text(*.host, .source, .holder.as_deref()))]
    Bind {
        host: SocketAddr,
        port: u16,
        protocol: Protocol,
        source: io::Error,
        /// Who has it, where that could be found out.
        holder: Option<String>,
    },
    #[error("cannot forward ports of the host to the sandbox: {0}")]
    Forward(#[source] io::Error),
}

impl PublishError {
    pub(crate) fn is_port_taken(&self) -> bool {
        matches!(self, Self::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

fn bind_text(host: SocketAddr, source: &io::Error, holder: Option<&str>) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = holder
                .map(|holder| format!(": {holder} listens there"))
                .unwrap_or_default();
            format!(
                "the port is taken{holder}. Publish another, or leave the host's port 0 to let the kernel choose \
                 a free one"
            )
        }
        io::ErrorKind::PermissionDenied if host.port() < 1024 => format!(
            "{source}. Ports below 1024 are for root here: publish a higher one, or lower \
             `sysctl net.ipv4.ip_unprivileged_port_start`"
        ),
        io::ErrorKind::AddrNotAvailable => format!("{source}. This host has no such address"),
        _ => source.to_string(),
    }
}

/// A port of the host that leads to a port of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Port {
    /// Where the host listens.
    pub host: SocketAddr,
    /// The port of the sandbox.
    pub port: u16,
    /// What is forwarded.
    pub protocol: Protocol,
}

/// Sockets of the host that wait for their sandbox. Connections are taken from now on, into the kernel's queue.
#[derive(Debug, Default)]
pub(crate) struct Bound(Vec<(Port, OwnedFd)>);

/// Binds every port, or none.
///
/// # Errors
/// [`PublishError::Bind`] for the first that cannot be had.
pub(crate) fn bind(ports: &[Published]) -> Result<Bound, PublishError> {
    let bound = ports.iter().map(|published| {
        let Published {
            host,
            port,
            protocol,
        } = *published;
        let (host, socket) = listen(host, protocol).map_err(|source| PublishError::Bind {
            host,
            port,
            protocol,
            holder: (source.kind() == io::ErrorKind::AddrInUse)
                .then(|| holder::find(host, protocol))
                .flatten(),
            source,
        })?;
        let port = Port {
            host,
            port,
            protocol,
        };
        Ok((port, socket))
    });
    bound.collect::<Result<_, _>>().map(Bound)
}

fn listen(host: SocketAddr, protocol: Protocol) -> io::Result<(SocketAddr, OwnedFd)> {
    match protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(host)?;
            // Once more, for a longer queue than the standard library's 128: bursts of a thousand are waited for
            // here, as the kernel allows (net.core.somaxconn).
            rustix::net::listen(&listener, 4096)?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener.into()))
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(host)?;
            socket.set_nonblocking(true)?;
            Ok((socket.local_addr()?, socket.into()))
        }
    }
}

impl Bound {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has the broker forward what arrives to the sandbox that `network` belongs to.
    ///
    /// # Errors
    /// [`PublishError::Forward`].
    pub(crate) fn forward(
        self,
        broker: &Broker,
        network: BorrowedFd<'_>,
    ) -> Result<Ports, PublishError> {
        let (mut all, mut leases, mut batch) = (Vec::new(), Vec::new(), Vec::new());
        let mut send = |batch: &mut Vec<_>| {
            if !batch.is_empty() {
                leases.push(
                    broker
                        .publish(network, batch)
                        .map_err(PublishError::Forward)?,
                );
                batch.clear();
            }
            Ok(())
        };
        for (port, socket) in self.0 {
            all.push(port);
            batch.push((port.protocol, port.port, socket));
            if batch.len() == MAX_PORTS {
                send(&mut batch)?;
            }
        }
        send(&mut batch)?;
        Ok(Ports { all, leases })
    }
}

/// The published ports of a running sandbox. When this is dropped they are free again.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    all: Vec<Port>,
    leases: Vec<Lease>,
}

impl Ports {
    /// Those of a sandbox on the host's own network: they lead to themselves.
    pub(crate) fn of_host(exposed: &[u16]) -> Self {
        let port = |port: &u16| Port {
            host: (Ipv4Addr::LOCALHOST, *port).into(),
            port: *port,
            protocol: Protocol::Tcp,
        };
        Self {
            all: exposed.iter().map(port).collect(),
            leases: Vec::new(),
        }
    }

    pub(crate) fn all(&self) -> &[Port] {
        &self.all
    }

    /// Where to connect to reach the TCP port `port`.
    pub(crate) fn address(&self, port: u16) -> Option<SocketAddr> {
        let leads = |it: &&Port| it.port == port && it.protocol == Protocol::Tcp;
        let mut host = self.all.iter().find(leads)?.host;
        if host.ip().is_unspecified() {
            host.set_ip(match host {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            });
        }
        Some(host)
    }

    /// Stops forwarding. The ports are free when this returns.
    pub(crate) fn close(&mut self) {
        self.leases.clear();
    }
}
