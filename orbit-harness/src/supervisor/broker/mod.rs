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
//! | `networks` | bridges, links and names of the networks that sandboxes share |
//! | `resolver` | questions for names, and answers |
//! | `wire` | faults on the wire |
//! | `trunk` | the part of a network that is in other processes |
//! | `client` | the test process's side |

mod client;
mod datagrams;
mod due;
mod flow;
mod namespaces;
mod networks;
mod protocol;
mod resolver;
mod streams;
mod trunk;
mod watch;
mod wire;

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
pub(crate) use trunk::{Known, greeting};

use self::{
    datagrams::Datagrams,
    namespaces::{Family, Namespaces},
    networks::Networks,
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
    networks: Networks,
}

/// Tells who asked, who may be gone.
fn answer(reply: &Channel, done: io::Result<()>) {
    let _ = match done {
        Ok(()) => reply.send(&Answer::Ok(()), &[]),
        Err(error) => reply.send(&refusal(&error), &[]),
    };
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
        let (leases, streams, datagrams, networks) = Default::default();
        Ok(Self {
            control,
            watch,
            namespaces,
            leases,
            streams,
            datagrams,
            networks,
        })
    }

    /// Takes what happened. Whether the test process is still there.
    fn turn(&mut self) -> io::Result<bool> {
        let timeout = if self.streams.is_busy() {
            Some(Duration::ZERO)
        } else {
            let waits = [
                self.streams.retry_after(),
                self.datagrams.next_look(),
                self.networks.next_arrival(),
            ];
            waits.into_iter().flatten().min()
        };
        let events = self.watch.wait(timeout)?;
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
                        .pass_in(id, &mut self.watch, &self.namespaces);
                }
                Kind::DatagramClient => self.datagrams.pass_back(id),
                Kind::Resolver => self.networks.resolve(id),
                Kind::ResolverListener => self.networks.accept_question(&mut self.watch, id),
                Kind::ResolverClient => self.networks.resolve_stream(id),
                Kind::Init => self.networks.connect(id),
                Kind::Wire => self.networks.pass(id),
                Kind::Trunk => self.networks.accept(&mut self.watch, id),
                Kind::Peer => self.networks.hear(&self.watch, id),
            }
        }
        self.networks.deliver();
        self.streams.take_turns(&mut self.watch, &self.namespaces);
        self.streams.retry(&self.watch);
        self.datagrams.forget_idle();
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
        if fds.is_empty() {
            return true; // As an invalid message.
        }
        let mut rest = fds.split_off(1);
        let reply = Channel::from_fd(fds.remove(0));
        match (request, rest.is_empty()) {
            (NetRequest::CreateNetwork { id, subnet }, _) => {
                let lease = self.watch.next_id();
                let made = self.networks.create(
                    &self.watch,
                    &self.namespaces,
                    (lease, id),
                    subnet,
                    rest.pop(),
                );
                self.keep(lease, reply, made);
            }
            (NetRequest::Meet { network, members }, false) => {
                let met = self
                    .networks
                    .meet(&mut self.watch, network, rest.remove(0), members);
                answer(&reply, met);
            }
            (
                NetRequest::Fault {
                    network,
                    pair,
                    faults,
                },
                _,
            ) => {
                let (watch, namespaces) = (&self.watch, &self.namespaces);
                let done = match faults {
                    Some(faults) => self
                        .networks
                        .set_faults(watch, namespaces, network, pair, faults),
                    None => self.networks.clear_faults(namespaces, network, pair),
                };
                answer(&reply, done);
            }
            (NetRequest::Heal { network }, _) => {
                answer(&reply, self.networks.heal(&self.namespaces, network));
            }
            (NetRequest::Sockets, false) => self.make_sockets(&reply, &rest[0]),
            (NetRequest::Publish { ports }, false) => {
                let lease = self.watch.next_id();
                let sockets = rest.split_off(1);
                let namespace = Rc::new(rest.remove(0));
                let published = self.publish(lease, &namespace, sockets, &ports);
                self.keep(lease, reply, published);
            }
            (
                NetRequest::Admit {
                    network,
                    sandbox,
                    address,
                    names,
                    asks_beyond,
                },
                false,
            ) => {
                let lease = self.watch.next_id();
                let init = Channel::from_fd(rest.remove(0));
                let whose = (network, sandbox);
                let who = (address, &names[..]);
                let admitted =
                    self.networks
                        .admit(&self.watch, lease, whose, who, asks_beyond, init);
                self.keep(lease, reply, admitted);
            }
            (_, true) => {} // As an invalid message.
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

    fn publish(
        &mut self,
        owner: u64,
        namespace: &Rc<OwnedFd>,
        sockets: Vec<OwnedFd>,
        ports: &[(Protocol, u16)],
    ) -> io::Result<()> {
        for ((protocol, port), socket) in ports.iter().zip(sockets) {
            let (watch, namespace) = (&mut self.watch, Rc::clone(namespace));
            match protocol {
                Protocol::Tcp => self
                    .streams
                    .listen(watch, owner, socket, namespace, *port)?,
                Protocol::Udp => self
                    .datagrams
                    .listen(watch, owner, socket, namespace, *port)?,
            }
        }
        Ok(())
    }

    /// Answers, and keeps what was done until the lease is closed.
    fn keep(&mut self, id: u64, lease: Channel, done: io::Result<()>) {
        let watched = done.and_then(|()| {
            self.watch
                .add(lease.as_fd(), Kind::Lease, id, EventFlags::RDHUP)
        });
        let answer = match &watched {
            Ok(()) => Answer::Ok(()),
            Err(error) => refusal(error),
        };
        if lease.send(&answer, &[]).is_ok() && watched.is_ok() {
            self.leases.insert(id, lease);
        } else {
            self.end_lease(id);
        }
    }

    /// Closes what was asked for with a lease, then the lease: who waits for that knows that all is closed.
    fn end_lease(&mut self, id: u64) {
        self.streams.close(id);
        self.datagrams.close(id);
        self.networks.close(&self.watch, &self.namespaces, id);
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
