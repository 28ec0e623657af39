//! Published TCP ports: accepts on the host, connects inside, and moves bytes both ways.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd as _, OwnedFd},
    rc::Rc,
    time::Duration,
};

use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{SocketFlags, SocketType, sockopt},
};

use super::{
    due::Due,
    flow::{Flow, More, Pipes},
    namespaces::{Family, Namespaces},
    watch::{Kind, Watch},
};

/// Connections taken from one listener before the others have their turn.
const ACCEPTS: usize = 64;

/// Where there was no descriptor for one, how long until the next is taken.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Streams {
    listeners: HashMap<u64, Listener>,
    connections: HashMap<u64, Connection>,
    /// Connections that had more to move when their turn was over.
    waiting: VecDeque<u64>,
    pipes: Pipes,
    /// Set where nothing is accepted for want of descriptors: when that is tried again.
    paused: Due,
}

struct Listener {
    owner: u64,
    socket: OwnedFd,
    namespace: Rc<OwnedFd>,
    port: u16,
}

struct Connection {
    owner: u64,
    client: OwnedFd,
    target: OwnedFd,
    state: State,
    up: Flow,
    down: Flow,
}

enum State {
    /// To this loopback address; the other one is tried where nobody listens there.
    Connecting {
        namespace: Rc<OwnedFd>,
        port: u16,
        family: Family,
        last: bool,
    },
    Open,
}

/// What became of a connection after an event.
enum Fate {
    Open(More),
    Over,
    Broken,
}

impl Streams {
    /// Forwards what `socket` accepts to `port` inside of `namespace`, on behalf of `owner`.
    pub(super) fn listen(
        &mut self,
        watch: &mut Watch,
        owner: u64,
        socket: OwnedFd,
        namespace: Rc<OwnedFd>,
        port: u16,
    ) -> io::Result<()> {
        let id = watch.next_id();
        watch.add(socket.as_fd(), Kind::Listener, id, EventFlags::IN)?;
        self.listeners.insert(
            id,
            Listener {
                owner,
                socket,
                namespace,
                port,
            },
        );
        Ok(())
    }

    /// Closes everything of `owner`'s.
    pub(super) fn close(&mut self, owner: u64) {
        self.listeners.retain(|_, listener| listener.owner != owner);
        let theirs = self.connections.extract_if(|_, it| it.owner == owner);
        for (_, connection) in theirs {
            connection.abort();
        }
    }

    /// Whether some connection need not wait for an event.
    pub(super) fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How long to wait before listeners that were paused are tried again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.paused.left()
    }

    /// Gives each connection that has more to move one turn.
    pub(super) fn take_turns(&mut self, watch: &mut Watch, namespaces: &Namespaces) {
        for _ in 0..self.waiting.len() {
            if let Some(id) = self.waiting.pop_front() {
                self.progress(id, watch, namespaces);
            }
        }
    }

    /// Takes what came to the listener `id`.
    pub(super) fn accept(&mut self, id: u64, watch: &mut Watch, namespaces: &Namespaces) {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.listeners.get(&id) else {
                return;
            };
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(&listener.socket, flags) {
                Ok(client) => {
                    if let Err(error) = self.open(id, client, watch, namespaces)
                        && is_shortage(&error)
                    {
                        return self.pause(watch);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    return self.pause(watch);
                }
                // Errors of a connection that was there and is gone: accept(2).
                Err(_) => {}
            }
        }
    }

    fn open(
        &mut self,
        listener: u64,
        client: OwnedFd,
        watch: &mut Watch,
        namespaces: &Namespaces,
    ) -> io::Result<()> {
        let Some(listener) = self.listeners.get(&listener) else {
            return Ok(());
        };
        let (namespace, port, family) = (Rc::clone(&listener.namespace), listener.port, Family::V4);
        let _ = sockopt::set_tcp_nodelay(&client, true);
        let target = match begin(namespaces, &namespace, port, family) {
            Ok(target) => target,
            Err(error) => {
                reset(&client);
                return Err(error);
            }
        };
        let id = watch.next_id();
        watch.add(client.as_fd(), Kind::Client, id, BOTH_WAYS)?;
        watch.add(target.as_fd(), Kind::Target, id, BOTH_WAYS)?;
        let (up, down) = Default::default();
        let connection = Connection {
            owner: listener.owner,
            client,
            target,
            state: State::Connecting {
                namespace,
                port,
                family,
                last: false,
            },
            up,
            down,
        };
        self.connections.insert(id, connection);
        Ok(())
    }

    /// Something happened to the connection `id`.
    pub(super) fn progress(&mut self, id: u64, watch: &mut Watch, namespaces: &Namespaces) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match connection.progress(id, &mut self.pipes, watch, namespaces) {
            Fate::Open(More::WhenReady) => return,
            Fate::Open(More::Soon) => {
                if !self.waiting.contains(&id) {
                    self.waiting.push_back(id);
                }
                return;
            }
            Fate::Over => {
                self.connections.remove(&id);
            }
            Fate::Broken => {
                if let Some(connection) = self.connections.remove(&id) {
                    connection.abort();
                }
            }
        }
        self.resume(watch);
    }

    /// Stops accepting: connections wait in the host's queues until one of ours has ended.
    fn pause(&mut self, watch: &Watch) {
        if !self.paused.is_set() {
            self.paused.set(RETRY);
            self.arm(watch, EventFlags::empty());
        }
    }

    /// Accepts again where it is time to try.
    pub(super) fn retry(&mut self, watch: &Watch) {
        if self.paused.has_come() {
            self.resume(watch);
        }
    }

    fn resume(&mut self, watch: &Watch) {
        if self.paused.is_set() {
            self.paused.clear();
            self.arm(watch, EventFlags::IN);
        }
    }

    fn arm(&self, watch: &Watch, events: EventFlags) {
        for (id, listener) in &self.listeners {
            watch.change(listener.socket.as_fd(), Kind::Listener, *id, events);
        }
    }
}

/// Both directions, told once each time something changes.
const BOTH_WAYS: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// A socket inside that connects to its own loopback.
fn begin(
    namespaces: &Namespaces,
    namespace: &OwnedFd,
    port: u16,
    family: Family,
) -> io::Result<OwnedFd> {
    let target = namespaces.socket(namespace, family, SocketType::STREAM, SocketFlags::NONBLOCK)?;
    let _ = sockopt::set_tcp_nodelay(&target, true);
    match rustix::net::connect(&target, &family.loopback(port)) {
        // Refusals are heard as events, also where they come at once.
        Ok(()) | Err(Errno::INPROGRESS | Errno::CONNREFUSED) => Ok(target),
        Err(error) => Err(error.into()),
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// Makes the close of `socket` a reset: the peer reads an error, not an end of file.
fn reset(socket: &OwnedFd) {
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

impl Connection {
    fn progress(
        &mut self,
        id: u64,
        pipes: &mut Pipes,
        watch: &mut Watch,
        namespaces: &Namespaces,
    ) -> Fate {
        if let State::Connecting {
            namespace,
            port,
            family,
            last,
        } = &self.state
        {
            match sockopt::socket_error(&self.target) {
                // Connected, or not yet.
                Ok(Ok(())) => match rustix::net::getpeername(&self.target) {
                    Ok(Some(_)) => self.state = State::Open,
                    _ => return Fate::Open(More::WhenReady),
                },
                Ok(Err(Errno::CONNREFUSED)) if !last => {
                    let (namespace, port, family) = (Rc::clone(namespace), *port, family.other());
                    // There may be no IPv6: then nobody listens there.
                    let Ok(target) = begin(namespaces, &namespace, port, family) else {
                        return Fate::Broken;
                    };
                    if watch
                        .add(target.as_fd(), Kind::Target, id, BOTH_WAYS)
                        .is_err()
                    {
                        return Fate::Broken;
                    }
                    self.target = target;
                    self.state = State::Connecting {
                        namespace,
                        port,
                        family,
                        last: true,
                    };
                    return Fate::Open(More::WhenReady);
                }
                Ok(Err(_)) | Err(_) => return Fate::Broken,
            }
        }
        let up = self.up.pump(&self.client, &self.target, pipes);
        let down = self.down.pump(&self.target, &self.client, pipes);
        match (up, down) {
            (Err(_), _) | (_, Err(_)) => Fate::Broken,
            _ if self.up.is_over() && self.down.is_over() => Fate::Over,
            (Ok(More::WhenReady), Ok(More::WhenReady)) => Fate::Open(More::WhenReady),
            _ => Fate::Open(More::Soon),
        }
    }

    /// Ends both halves as what they are: broken.
    fn abort(self) {
        reset(&self.client);
        reset(&self.target);
    }
}
