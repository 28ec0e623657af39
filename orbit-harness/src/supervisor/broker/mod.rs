//! The broker: the one process that makes sockets inside sandboxes and forwards published ports to them.
//!
//! It is a fork of the supervisor, made with the first sandbox that needs it, in a network namespace of its own:
//! from there it may enter every sandbox's and come back, which an ordinary user's process on the host's network
//! may not. The test process talks to it directly, so that a connection never waits for a sandbox to be made.
//!
//! Published ports are forwarded here, and not by a thread of the test process: making a socket inside costs
//! no message between processes, thousands of connections do not count against the test's own limit on
//! descriptors, and there is no thread that a test could see, or that a fork could leave behind. The listening
//! sockets are the host's, bound by the test process with its own privileges and handed over. When the test
//! process dies the supervisor dies, and with it this.
//!
//! | file | subject |
//! |---|---|
//! | `protocol` | what is asked |
//! | `namespaces` | in and out of network namespaces |
//! | `watch` | the epoll |
//! | `streams`, `flow` | TCP |
//! | `datagrams` | UDP |
//! | `client` | the test process's side |

mod client;
mod datagrams;
mod flow;
mod namespaces;
mod protocol;
mod streams;
mod watch;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    rc::Rc,
    time::Duration,
};

pub(crate) use client::{Broker, Lease, MAX_PORTS};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};
use rustix::{
    event::epoll::EventFlags,
    net::{SocketFlags, SocketType},
};

use self::{
    datagrams::Datagrams,
    namespaces::{Family, Namespaces},
    protocol::{Answer, NetRequest},
    streams::Streams,
    watch::{Kind, Watch},
};
use super::channel::Channel;
use crate::net::ports::Protocol;

/// Serves until the test process closes `control`. What went wrong at the start is told there.
pub(super) fn serve(control: Channel) {
    let mut server = match Server::new(control) {
        Ok(server) => server,
        Err((control, error)) => {
            let _ = control.send(&refusal(&error), &[]);
            return;
        }
    };
    let _ = server.control.send(&Answer::Ok(()), &[]);
    while server.turn().is_ok_and(|goes_on| goes_on) {}
}

struct Server {
    control: Channel,
    watch: Watch,
    namespaces: Namespaces,
    /// What is to last until its channel is closed.
    leases: HashMap<u64, Channel>,
    streams: Streams,
    datagrams: Datagrams,
}

fn refusal(error: &io::Error) -> Answer {
    Err(error.raw_os_error().unwrap_or(libc::EIO))
}

impl Server {
    fn new(control: Channel) -> Result<Self, (Channel, io::Error)> {
        let prepare = || {
            raise_descriptor_limit();
            // A peer that is gone is an error of the call, and no signal.
            SigSet::from(Signal::SIGPIPE).thread_block()?;
            let watch = Watch::new()?;
            watch.add(control.as_fd(), Kind::Control, 0, EventFlags::IN)?;
            Ok((watch, Namespaces::new()?))
        };
        let (watch, namespaces) = match prepare() {
            Ok(prepared) => prepared,
            Err(error) => return Err((control, error)),
        };
        let (leases, streams, datagrams) = Default::default();
        Ok(Self {
            control,
            watch,
            namespaces,
            leases,
            streams,
            datagrams,
        })
    }

    /// Takes what happened. Whether the test process is still there.
    fn turn(&mut self) -> io::Result<bool> {
        let timeout = if self.streams.is_busy() {
            Some(Duration::ZERO)
        } else {
            let waits = [self.streams.retry_after(), self.datagrams.next_look()];
            waits.into_iter().flatten().min()
        };
        let events = self.watch.wait(timeout)?;
        let quiet = events.is_empty();
        for (kind, id) in events {
            match kind {
                Kind::Control => {
                    if !self.take_request() {
                        return Ok(false);
                    }
                }
                Kind::Lease => self.end_lease(id),
                Kind::Listener => self.streams.accept(id, &mut self.watch, &self.namespaces),
                Kind::Client | Kind::Target => {
                    self.streams.progress(id, &mut self.watch, &self.namespaces);
                }
                Kind::DatagramPort => {
                    self.datagrams
                        .from_clients(id, &mut self.watch, &self.namespaces);
                }
                Kind::DatagramClient => self.datagrams.from_target(id),
            }
        }
        self.streams.take_turns(&mut self.watch, &self.namespaces);
        if quiet {
            self.streams.resume(&self.watch);
            self.datagrams.forget_idle();
        }
        Ok(true)
    }

    /// Whether the test process is still there.
    fn take_request(&mut self) -> bool {
        let (request, mut fds) = match self.control.recv::<NetRequest>() {
            Ok(Some(message)) => message,
            Ok(None) => return false,
            // Its sender's channel was closed with the descriptors, which tells it.
            Err(_) => return true,
        };
        if fds.len() < 2 {
            return true; // As an invalid message.
        }
        let rest = fds.split_off(1);
        let reply = Channel::from_fd(fds.remove(0));
        match request {
            NetRequest::Sockets => self.make_sockets(&reply, &rest[0]),
            NetRequest::Publish { ports } => self.publish(reply, rest, &ports),
        }
        true
    }

    fn make_sockets(&self, reply: &Channel, namespace: &OwnedFd) {
        let socket = |family| {
            let (kind, flags) = (SocketType::STREAM, SocketFlags::empty());
            self.namespaces.socket(namespace, family, kind, flags)
        };
        let _ = match (socket(Family::V4), socket(Family::V6)) {
            (Ok(v4), Ok(v6)) => reply.send(&Answer::Ok(()), &[v4.as_fd(), v6.as_fd()]),
            (Ok(v4), Err(_)) => reply.send(&Answer::Ok(()), &[v4.as_fd()]),
            (Err(error), _) => reply.send(&refusal(&error), &[]),
        };
    }

    fn publish(&mut self, lease: Channel, mut fds: Vec<OwnedFd>, ports: &[(Protocol, u16)]) {
        let sockets = fds.split_off(1);
        let owner = self.watch.next_id();
        if let Err(error) = self.try_publish(owner, &lease, Rc::new(fds.remove(0)), sockets, ports)
        {
            self.streams.close(owner);
            self.datagrams.close(owner);
            let _ = lease.send(&refusal(&error), &[]);
            return;
        }
        if lease.send(&Answer::Ok(()), &[]).is_ok() {
            self.leases.insert(owner, lease);
        } else {
            self.end_lease(owner);
        }
    }

    fn try_publish(
        &mut self,
        owner: u64,
        lease: &Channel,
        namespace: Rc<OwnedFd>,
        sockets: Vec<OwnedFd>,
        ports: &[(Protocol, u16)],
    ) -> io::Result<()> {
        self.watch
            .add(lease.as_fd(), Kind::Lease, owner, EventFlags::RDHUP)?;
        for ((protocol, port), socket) in ports.iter().zip(sockets) {
            let namespace = Rc::clone(&namespace);
            match protocol {
                Protocol::Tcp => {
                    self.streams
                        .listen(&mut self.watch, owner, socket, namespace, *port)?;
                }
                Protocol::Udp => {
                    self.datagrams
                        .listen(&mut self.watch, owner, socket, namespace, *port)?;
                }
            }
        }
        Ok(())
    }

    /// Closes what was asked for with a lease, then the lease: who waits for that knows that all is closed.
    fn end_lease(&mut self, id: u64) {
        self.streams.close(id);
        self.datagrams.close(id);
        self.leases.remove(&id);
    }
}

/// As many descriptors as this user may have: they are counted by the process.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // With fewer, fewer connections are open at once; the others wait.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
