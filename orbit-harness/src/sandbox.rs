//! [`Sandbox`]: a running container. How it comes about is in [`launch`].

#[cfg(feature = "tokio")]
mod asynchronous;
mod core;
mod disk;
mod exec;
mod files;
mod http;
mod inspect;
mod launch;
mod pause;
mod reader;
mod ready;
mod restart;

use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::de::DeserializeOwned;

#[cfg(feature = "tokio")]
pub(crate) use self::asynchronous::blocking;
#[cfg(feature = "images")]
pub(crate) use self::launch::surroundings;
pub use self::launch::{start_to_wait, start_with};
use self::{core::Core, reader::Reader};
pub use self::{
    exec::{Exec, ExecBuilder},
    inspect::{Inspect, State},
    pause::Paused,
};
use crate::{
    bridge::Place,
    builder::SandboxBuilder,
    capture::Capture,
    changes::Changes,
    error::{Error, Kind},
    host::Host,
    image::{HealthCheck, Held, Image},
    layer::{Fault, Writable},
    limited::Limited,
    logs::{Log, Logs},
    names::Claim,
    net::denied::Denied,
    netfilter::Netfilter,
    network::{Membership, Network},
    outcome::{Note, Outcome, OutputStream, Status, Usage},
    publish::{Port, Ports},
    spec::{Init, Spec, SpecFault},
    supervisor::{Cause, Channel, Control, Event, Exit, Failure, Gone, Request, Supervisor},
    sys,
    units::Bytes,
    wait::Wait,
    way_out::Record,
};

/// A running sandbox: a container that ends, with everything in it, when this value is dropped.
///
/// ```no_run
/// use std::time::Duration;
///
/// let mut sandbox = orbit::Sandbox::builder().cmd(["sleep", "60"]).start()?;
/// let outcome = sandbox.stop(Duration::from_secs(5))?;
/// assert_eq!(outcome.status, orbit::Status::Signaled(15));
/// # Ok::<(), orbit::Error>(())
/// ```
///
/// From async code, call [`run`](SandboxBuilder::run) and [`wait`](Self::wait) where blocking is allowed, as in
/// `tokio::task::spawn_blocking`; a `Sandbox` may move between threads.
pub struct Sandbox {
    id: String,
    /// What its parts share.
    core: Arc<Core>,
    /// Of the program.
    pidfd: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    stdout: Option<Capture>,
    stderr: Option<Capture>,
    capture_limit: Bytes,
    exit: Option<Exit>,
    gone: Option<Gone>,
    failure: Option<Failure>,
    outcome: Option<Outcome>,
    /// Where it has one of its own.
    network: Option<OwnedFd>,
    /// Of what it was refused.
    record: Record,
    ports: Ports,
    memberships: Vec<Membership>,
    /// On the host's bridge.
    place: Option<Place>,
    is_on_bridge: bool,
    /// Who reads what is captured, while it runs.
    reader: Option<Reader>,
    /// The program, where it is not the first one: after a restart.
    main: Option<Exec>,
    /// How that ended.
    main_end: Option<Outcome>,
    outputs: [Outputs; 2],
    /// The number of the first line of its log that this program can have written: not the one before a restart.
    first_line: usize,
    /// What it was waited for, and is again after a restart.
    waits: Vec<Wait>,
    startup_timeout: Duration,
    healthcheck: Option<HealthCheck>,
    /// What `stop` sends.
    stop_signal: i32,
    /// Whether it does not show its log where a test panics.
    hides_log: bool,
    /// Whether its init was told to outlive the program, for a restart.
    is_held: bool,
    name: Option<String>,
    /// What keeps the name this sandbox's own.
    _claim: Option<Claim>,
    /// Its control group, which goes when the sandbox is gone.
    limited: Limited,
    /// The filesystem of its writable layers, which stays as long as this does.
    scratch: Option<OwnedFd>,
    origin: Origin,
}

/// Where an output of the program goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outputs {
    Captured,
    Inherited,
    Null,
    Given,
}

/// What a sandbox was made of: what another one like it would be.
#[cfg_attr(
    not(feature = "images"),
    expect(dead_code, reason = "read by snapshots, which are layers of images")
)]
pub(crate) struct Origin {
    /// As asked, with the host's paths made absolute.
    pub(crate) spec: Spec,
    pub(crate) image: Image,
    /// What is held of the image while it is in use.
    pub(crate) held: Held,
}

impl Sandbox {
    /// What a sandbox should be: the host's files with nothing else asked, until it is said otherwise.
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder::default()
    }

    /// A random name of twelve hexadecimal digits, for messages and logs.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The name it was given, with the number that made it unique where that was asked.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The number of the program's process, as this process sees it. `None` once it has ended.
    ///
    /// A number is reused by the system when its process is gone; to signal the program, use
    /// [`signal`](Self::signal), which cannot hit another.
    pub fn pid(&self) -> Option<u32> {
        pid_of(self.pidfd.as_ref()?)
    }

    /// The address of the host that leads to the TCP port `port` of the sandbox, which was
    /// [exposed](SandboxBuilder::expose) or [published](SandboxBuilder::publish).
    ///
    /// ```no_run
    /// let redis = orbit::Sandbox::builder().image("redis:8").expose(6379).start()?;
    /// let stream = std::net::TcpStream::connect(redis.addr(6379))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// Where `port` was neither exposed nor published; [`ports`](Self::ports) lists those that were.
    #[track_caller]
    pub fn addr(&self, port: u16) -> SocketAddr {
        match self.ports.address(port) {
            Some(address) => address,
            None => panic!(
                "port {port} of this sandbox is not exposed: add `.expose({port})` to its builder"
            ),
        }
    }

    /// The ports of the host that lead into this sandbox.
    pub fn ports(&self) -> &[Port] {
        self.ports.all()
    }

    /// The sandbox's address on `network`; `None` where it is not on it.
    pub fn address(&self, network: &Network) -> Option<Ipv4Addr> {
        let mut addresses = self
            .memberships
            .iter()
            .map(|membership| &membership.address);
        Some(addresses.find(|it| it.network.is(network))?.address)
    }

    /// The sandbox's address on the bridge of [`NetworkMode::Bridge`](crate::NetworkMode::Bridge). As root, the host reaches it there too.
    pub fn bridge_address(&self) -> Option<Ipv4Addr> {
        let in_place = self.memberships.iter().map(|it| it.address.address).next();
        let asked = self.is_on_bridge;
        self.place
            .as_ref()
            .map(Place::address)
            .or(in_place.filter(|_| asked))
    }

    /// What the sandbox tried to reach and was refused so far, where that is
    /// [recorded](SandboxBuilder::record_denied): empty where it is not.
    ///
    /// # Errors
    /// Where this kernel cannot record it, though that was asked for.
    pub fn denied(&self) -> Result<Vec<Denied>, Error> {
        let failed = |error| Error::io("cannot read what the sandbox was refused", error);
        self.record.read().map_err(failed)
    }

    /// Connects to the TCP port `port` of the sandbox's own loopback: a socket inside of the sandbox's network,
    /// with nothing in between. The port need not be exposed.
    ///
    /// # Errors
    /// Where nobody listens there ([`Error::is_connection_refused`]), or the sandbox's network is gone.
    pub fn connect(&self, port: u16) -> Result<TcpStream, Error> {
        let failed = |source| Error::from(Kind::Connect { port, source });
        let Some(network) = &self.network else {
            return TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(failed);
        };
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        let broker = Supervisor::get(host)?.broker()?;
        broker.connect(network.as_fd(), port).map_err(failed)
    }

    /// As [`connect`](Self::connect), for at most `patience`: a server that takes no connections, since its queue is full,
    /// holds up nobody. The stream may still be connecting.
    fn begin_to_connect(&self, port: u16, patience: Duration) -> Result<TcpStream, Error> {
        let failed = |source| Error::from(Kind::Connect { port, source });
        let Some(network) = &self.network else {
            let address = (Ipv4Addr::LOCALHOST, port).into();
            // 0 is refused.
            let patience = patience.max(Duration::from_millis(1));
            return TcpStream::connect_timeout(&address, patience).map_err(failed);
        };
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        let broker = Supervisor::get(host)?.broker()?;
        broker
            .begin_to_connect(network.as_fd(), port)
            .map_err(failed)
    }

    /// Sends `signal`, as numbered in signal(7), to the program. Nothing happens if it has ended.
    ///
    /// # Errors
    /// Where there is no such signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        check_signal(signal)?;
        if let Some(main) = &self.main {
            return main.signal(signal);
        }
        if let (Init::Program, Some(program)) = (self.core.plan.program.init, &self.pidfd) {
            // Nobody inside passes it on. ESRCH: it has ended.
            let _ = sys::signal_process(program.as_fd(), signal);
            return Ok(());
        }
        // Where the init is gone, so is the program.
        let _ = self.core.events.send(&Control::Signal(signal), &[]);
        Ok(())
    }

    /// Kills the program and everything else in the sandbox. [`wait`](Self::wait) then says how it ended.
    pub fn kill(&self) {
        // Where nobody listens, nobody lives.
        let _ = self.core.events.shutdown_send();
    }

    /// What ends this sandbox from another thread, while this one [waits](Self::wait).
    ///
    /// # Errors
    /// Where this process has no descriptor to spare.
    pub fn killer(&self) -> Result<Killer, Error> {
        let cannot = |error| Error::io("cannot share the sandbox's channel", error);
        Ok(Killer {
            events: self.core.events.try_clone().map_err(cannot)?,
        })
    }

    /// Asks the program to end, with SIGTERM, or the [signal](SandboxBuilder::stop_signal) that it or its image asks
    /// for, and kills the sandbox if it has not after `patience`.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn stop(&mut self, patience: Duration) -> Result<Outcome, Error> {
        self.signal(self.stop_signal)?;
        if self.collect(Some(Instant::now() + patience))? {
            return self.wait();
        }
        self.kill();
        self.wait()
    }

    /// Waits until the program ends, and says how. Whatever else still runs in the sandbox then is killed.
    ///
    /// # Errors
    /// Where the supervisor is gone, and with it the sandbox and the knowledge of its end.
    pub fn wait(&mut self) -> Result<Outcome, Error> {
        if self.outcome.is_none() {
            self.collect(None)?;
            self.outcome = Some(self.conclude()?);
        }
        self.outcome.clone().ok_or_else(|| Kind::Vanished.into())
    }

    /// What the program has written so far to the outputs that are captured, line by line; what it writes from now on
    /// too, after [`Logs::follow`]. Of more than the [capture limit](SandboxBuilder::capture_limit), and a mebibyte,
    /// lines in the middle are missing. With a terminal there is nothing here.
    pub fn logs(&self) -> Logs {
        let log = self.reader.as_ref().map(|reader| Arc::clone(reader.log()));
        Logs::of(log.unwrap_or_else(|| {
            let log = Log::new(self.capture_limit);
            log.finish();
            Arc::new(log)
        }))
    }

    /// Which files were made, changed or removed in the sandbox's writable layer so far: while it runs, and when it has
    /// ended. What is written to mounts of the host, and to other filesystems in memory, is not among them.
    ///
    /// ```
    /// let mut sandbox = orbit::Sandbox::builder().cmd(["touch", "/tmp/made"]).start()?;
    /// sandbox.wait()?;
    /// let changes = sandbox.changes()?;
    /// assert_eq!(changes.entries[0].to_string(), "A /tmp/made");
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where the supervisor is gone, or a file of the layer cannot be read.
    pub fn changes(&self) -> Result<Changes, Error> {
        let Some(scratch) = &self.scratch else {
            // It ended before its program ran.
            return Ok(Changes::default());
        };
        changes_of(scratch, self.writable())
    }

    /// Where what it writes lies.
    pub(crate) fn writable(&self) -> Writable {
        let temporary = self.core.plan.program.env.get(OsStr::new("TMPDIR"));
        let temporary = temporary.map(Path::new).filter(|path| path.is_absolute());
        Writable::of(&self.core.plan.steps, temporary)
    }

    /// What it was made of, its program's plan, and the filesystem of its writable layers: `None` where it ended
    /// before its program ran.
    #[cfg(feature = "images")]
    pub(crate) fn made_of(&self) -> (&Origin, &crate::plan::Plan, Option<&OwnedFd>) {
        (&self.origin, &self.core.plan, self.scratch.as_ref())
    }

    /// When it counted as ready.
    #[cfg(feature = "images")]
    pub(crate) fn readying(&self) -> crate::wait::Readying {
        crate::wait::Readying {
            waits: self.waits.clone(),
            startup_timeout: Some(self.startup_timeout),
            healthcheck: self.healthcheck.clone(),
        }
    }

    /// Whether nothing in the sandbox runs: it has ended, or is paused.
    #[cfg(feature = "images")]
    pub(crate) fn is_quiet(&mut self) -> Result<bool, Error> {
        let moment = Duration::from_millis(1);
        if self.limited.is_frozen() || self.collect(Some(Instant::now() + moment))? {
            return Ok(true);
        }
        if self.core.is_stopped() {
            // Again: what was started meanwhile is to stand still too.
            self.pause()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The other side of the program's terminal, where one was asked for: what is written there is typed, what
    /// is read is shown. From then on nothing of it is captured.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        let terminal = self.terminal.take()?;
        self.stdout = None;
        // The one who captured it read without waiting, and so would whoever has it now.
        let _ = rustix::io::ioctl_fionbio(&terminal, false);
        Some(terminal)
    }

    /// Reads events and output until the program has ended or the deadline has passed. Whether it has ended.
    ///
    /// Nobody sees the output before that, and a pipe holds a good part of it: so this thread does not wake for each
    /// line, and looks at what is written once in a [`REST`], or when there is much of it.
    fn collect(&mut self, deadline: Option<Instant>) -> Result<bool, Error> {
        let captures = self.stdout.is_some() || self.stderr.is_some();
        let mut rests = captures;
        while self.exit.is_none() && self.gone.is_none() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let rest = rests.then_some(REST);
            let timeout = left.into_iter().chain(rest).min();
            let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
            let readers = [&self.stdout, &self.stderr].map(|capture| {
                let capture = capture.as_ref().filter(|_| !rests);
                capture.and_then(Capture::reader)
            });
            let mut polled = vec![PollFd::new(&self.core.events, PollFlags::IN)];
            let main = self.main.as_ref().filter(|_| self.main_end.is_none());
            polled.extend(main.map(|main| PollFd::new(main.end(), PollFlags::IN)));
            polled.extend(
                readers
                    .into_iter()
                    .flatten()
                    .map(|reader| PollFd::new(reader, PollFlags::IN)),
            );
            match rustix::event::poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("cannot wait for the sandbox", error)),
            }
            let has_event = !polled[0].revents().is_empty();
            let before = self.captured();
            self.drain();
            // After a rest with nothing to read, and after one that was too long for so much, wait for what comes.
            let taken = self.captured() - before;
            rests = captures && !rests && taken < MUCH_BYTES;
            self.take_end_of_main(false)?;
            if has_event && !self.take_event()? {
                return Err(Kind::Vanished.into());
            }
            if !has_event && left == Some(Duration::ZERO) {
                return Ok(false);
            }
        }
        // All that could write is dead: what they wrote is there.
        while !self.drain() {}
        if let Some(reader) = &mut self.reader {
            reader.finish();
        }
        Ok(true)
    }

    /// How much was read of what is captured.
    fn captured(&self) -> u64 {
        let captures = [&self.stdout, &self.stderr].into_iter().flatten();
        captures.map(Capture::total).sum()
    }

    /// Takes what was written, or a good part of it. Whether that was all.
    fn drain(&mut self) -> bool {
        let mut all = true;
        for capture in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            all &= capture.drain();
        }
        all
    }

    /// Whether there was an event: not where the supervisor is gone.
    fn take_event(&mut self) -> Result<bool, Error> {
        match self.hear()? {
            None => return Ok(false),
            Some((Event::Exited(mut exit), _)) => {
                if let Some(end) = self.main_end.take() {
                    (exit.status, exit.usage, exit.wall_time) =
                        (end.status, end.usage, end.wall_time);
                }
                self.exit = Some(exit);
            }
            Some((Event::Gone(gone), _)) => self.gone = Some(gone),
            Some((Event::Failed(failure), _)) => self.failure = Some(failure),
            // Said once, before all else.
            Some((Event::Started { .. }, _)) => {}
        }
        Ok(true)
    }

    fn conclude(&mut self) -> Result<Outcome, Error> {
        let take =
            |capture: &mut Option<Capture>| capture.as_mut().map(Capture::take).unwrap_or_default();
        let [(stdout, stdout_cut), (stderr, stderr_cut)] = match &self.reader {
            Some(reader) => reader.log().parts(),
            None => [take(&mut self.stdout), take(&mut self.stderr)],
        };
        self.pidfd = None;
        self.ports.close();
        if let Some(failure) = self.failure.take() {
            return Err(self.failed(failure));
        }
        let (status, usage, wall_time, leaked, full_disk) = match (&self.exit, &self.gone) {
            (Some(exit), _) => (
                exit.status,
                exit.usage,
                exit.wall_time,
                exit.leaked.clone(),
                exit.full_disk,
            ),
            (None, Some(gone)) => (gone.status, gone.usage, gone.wall_time, Vec::new(), None),
            (None, None) => return Err(Kind::Vanished.into()),
        };
        let mut end = self.limited.conclude(status, usage, full_disk);
        for (stream, cut) in [
            (OutputStream::Stdout, stdout_cut),
            (OutputStream::Stderr, stderr_cut),
        ] {
            end.notes
                .extend(cut.map(|left_out| Note::OutputCut { stream, left_out }));
        }
        let changes = if self.origin.spec.record_changes {
            Some(self.changes()?)
        } else {
            None
        };
        let denied = self.record.conclude(&mut end.warnings);
        Ok(Outcome {
            status: end.status,
            stdout,
            stderr,
            wall_time,
            usage: end.usage,
            leaked,
            notes: end.notes,
            warnings: end.warnings,
            changes,
            denied,
        })
    }
}

/// Ends a sandbox from another thread: see [`Sandbox::killer`]. It does not keep the sandbox alive.
///
/// ```
/// let mut sandbox = orbit::Sandbox::builder().cmd(["sleep", "60"]).start()?;
/// let killer = sandbox.killer()?;
/// let waiting = std::thread::spawn(move || sandbox.wait());
/// killer.kill();
/// assert_eq!(waiting.join().unwrap()?.status, orbit::Status::Signaled(9));
/// # Ok::<(), orbit::Error>(())
/// ```
#[derive(Debug)]
pub struct Killer {
    events: Channel,
}

impl Killer {
    /// Kills the program and everything else in the sandbox. Nothing happens if it has ended.
    pub fn kill(&self) {
        // Where nobody listens, nobody lives.
        let _ = self.events.shutdown_send();
    }

    /// Sends a signal, as numbered in signal(7), to the program. Nothing happens if it has ended, if there is no such
    /// signal, if the program is process 1 itself ([`Init::Program`]), or after a [restart](Sandbox::restart).
    pub fn signal(&self, signal: i32) {
        if (1..=libc::SIGRTMAX()).contains(&signal) {
            let _ = self.events.send(&Control::Signal(signal), &[]);
        }
    }
}

/// Limits while it runs. All but [`usage`](Self::usage) need a control group: a sandbox that was started with a
/// limit has one, or with [`accounting`](SandboxBuilder::accounting).
impl Sandbox {
    /// Bounds the memory of all processes together from now on: `64M`. What is above it is reclaimed, and where
    /// that is not enough, everything in the sandbox is killed.
    ///
    /// # Errors
    /// Where the amount is none, or the sandbox has no control group.
    pub fn set_memory(&self, limit: &str) -> Result<(), Error> {
        self.limited.set_memory(parse_limit("memory limit", limit)?)
    }

    /// Bounds CPU time from now on, to this many CPUs.
    ///
    /// # Errors
    /// As [`set_cpu_max`](Self::set_cpu_max).
    pub fn set_cpus(&self, cpus: f64) -> Result<(), Error> {
        self.set_cpu_max(&crate::builder::cpus_text(cpus))
    }

    /// Bounds CPU time from now on: what cgroup v2 takes (`50000 100000`, `max`) or a number of CPUs (`0.5`).
    ///
    /// # Errors
    /// Where the limit is none, or the sandbox has no control group.
    pub fn set_cpu_max(&self, limit: &str) -> Result<(), Error> {
        self.limited.set_cpu(parse_limit("cpu limit", limit)?)
    }

    /// Stops every process of the sandbox where it is, and returns when all stand still. Timeouts go on.
    ///
    /// # Errors
    /// Where the sandbox has no control group, or the kernel is not done in some seconds.
    pub fn freeze(&self) -> Result<(), Error> {
        self.limited.freeze(true)?;
        self.core.set_frozen(true);
        Ok(())
    }

    /// Lets a frozen sandbox go on.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub fn thaw(&self) -> Result<(), Error> {
        self.limited.freeze(false)?;
        self.core.set_frozen(false);
        Ok(())
    }

    /// What the sandbox has used so far: as its control group counts it, or, without one, what `/proc` tells of its
    /// program. [`Usage::source`] says which.
    pub fn usage(&self) -> Usage {
        self.limited.usage(self.pid())
    }
}

/// What was written to `scratch`, the filesystem of a sandbox's writable layers.
fn changes_of(scratch: &OwnedFd, writable: Writable) -> Result<Changes, Error> {
    let host = Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
    let request = Request::Changes(Box::new(writable));
    let reply = Supervisor::get(host)?.ask(&request, &[scratch.as_fd()])?;
    written(&reply)
}

fn parse_limit<T: std::str::FromStr<Err: fmt::Display>>(
    field: &str,
    text: &str,
) -> Result<T, Error> {
    text.parse()
        .map_err(|error: T::Err| Error::spec(vec![SpecFault::new(field, text, error.to_string())]))
}

/// Ends the sandbox, and returns when nothing of it is left.
impl Drop for Sandbox {
    fn drop(&mut self) {
        let has_failed = self.reader.is_some() && !self.hides_log && self.fails_unseen();
        // An init whose program has ended, and that is not to stay, ends by itself: to kill it would only make the
        // supervisor, and this thread, wait for each other.
        if self.exit.is_none() || self.is_held {
            self.kill();
        }
        while self.gone.is_none() && self.take_event().is_ok_and(|heard| heard) {}
        if let Some(reader) = &mut self.reader {
            reader.finish();
            if !self.hides_log && (has_failed || std::thread::panicking() || shows_all_logs()) {
                self.show_log();
            }
        }
    }
}

impl Sandbox {
    /// What people call it.
    fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("`{name}` ({})", self.id),
            None => format!("{} ({})", self.id, self.origin.spec.image),
        }
    }

    /// Whether its program has ended by itself, badly, and nobody waited for it. A test that fails by an error looks,
    /// to who is dropped in it, like one that passes; a service that is gone tells them apart.
    fn fails_unseen(&mut self) -> bool {
        if self.outcome.is_some() || !self.collect(Some(Instant::now())).unwrap_or(false) {
            return false;
        }
        self.exit.is_some() && self.wait().is_ok_and(|outcome| !outcome.success())
    }

    /// How its program ended, where somebody waited for it.
    fn told_end(&self) -> String {
        let Some(outcome) = &self.outcome else {
            return String::new();
        };
        let notes = outcome.notes.iter().map(|note| format!("; {note}"));
        format!(
            ", whose program {}{}",
            outcome.status,
            notes.collect::<String>()
        )
    }

    /// Whether its end was seen, by whoever started it or waited for it.
    pub(crate) fn is_known_to_be_over(&self) -> bool {
        self.exit.is_some() || self.gone.is_some()
    }

    /// Where its program has ended: how, and the last that it wrote.
    pub(crate) fn end_by_itself(&mut self) -> Option<String> {
        // A supervisor that is gone has said what there is to say to whoever failed.
        let has_ended = self.collect(Some(Instant::now())).unwrap_or(false);
        let status = self.exit.as_ref().filter(|_| has_ended)?.status;
        let tail = self
            .reader
            .as_ref()
            .map(|reader| reader.log().tail(SHOWN_LINES));
        Some(match tail.filter(|tail| !tail.is_empty()) {
            Some(tail) => format!(
                "its program {status}. The last it wrote:\n{}",
                tail.trim_end()
            ),
            None => format!("its program {status}. It wrote nothing that was captured"),
        })
    }

    /// Writes the end of the log to standard error: through the macro that a test's runner captures.
    pub(crate) fn show_log(&self) {
        if let Some(reader) = &self.reader {
            let tail = reader.log().tail(SHOWN_LINES);
            let title = format!("{}{}", self.title(), self.told_end());
            if tail.is_empty() {
                eprintln!("--- the sandbox {title}: it wrote nothing that was captured");
            } else {
                eprintln!("--- the end of the log of the sandbox {title}:\n{tail}---");
            }
        }
    }
}

/// How the program of `sandbox` ended, and the last that it wrote, where it has ended.
pub fn end_by_itself(sandbox: &mut Sandbox) -> Option<String> {
    sandbox.end_by_itself()
}

/// How long what is written is left where it is, by who only waits for the end.
const REST: Duration = Duration::from_millis(4);

/// So much at once that the program may have been waiting for it to be read: half of what a pipe holds.
const MUCH_BYTES: u64 = 32 << 10;

/// Whether each log is to be shown, for tests that fail by an error: `ORBIT_LOGS=always`.
fn shows_all_logs() -> bool {
    std::env::var_os("ORBIT_LOGS").is_some_and(|value| value == "always")
}

/// How much of a log is shown where something failed.
const SHOWN_LINES: usize = 40;

/// The number, as this process sees it, of the process that `pidfd` stands for.
fn pid_of(pidfd: &OwnedFd) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("Pid:"))?
        .trim()
        .parse()
        .ok()
}

fn check_signal(signal: i32) -> Result<(), Error> {
    if (1..=libc::SIGRTMAX()).contains(&signal) {
        return Ok(());
    }
    Err(Error::spec(vec![SpecFault::new(
        "signal",
        signal.to_string(),
        "expected a number from signal(7), such as 15",
    )]))
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("id", &self.id)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl Sandbox {
    fn await_start(&mut self) -> Result<(), Error> {
        let event = self.hear()?;
        match event {
            Some((
                Event::Started {
                    has_pidfd,
                    has_terminal,
                    executes_later,
                    has_network,
                    has_scratch,
                    has_record,
                    unrecorded,
                },
                mut fds,
            )) => {
                self.network = if has_network { fds.pop() } else { None };
                let record = if has_record { fds.pop() } else { None };
                self.record = Record::new(record.map(Netfilter::from_fd), unrecorded);
                self.scratch = if has_scratch { fds.pop() } else { None };
                let mut fds = fds.into_iter();
                self.pidfd = if has_pidfd { fds.next() } else { None };
                if let Some(terminal) = has_terminal.then(|| fds.next()).flatten() {
                    let cannot = |error| Error::io("cannot read the program's terminal", error);
                    let reader = terminal.try_clone().map_err(cannot)?;
                    self.stdout = Some(Capture::new(reader, self.capture_limit).map_err(cannot)?);
                    self.terminal = Some(terminal);
                }
                match executes_later.then(|| fds.next()).flatten() {
                    Some(executing) => self.await_execution(executing),
                    None => Ok(()),
                }
            }
            Some((Event::Failed(failure), _)) => Err(self.failed(failure)),
            Some((Event::Gone(gone), _)) => {
                let ended =
                    matches!(gone.status, Status::TimedOut(_)) || self.limited.is_out_of_memory();
                self.gone = Some(gone);
                // Killed before the program ran: by its timeout or its memory limit, which `wait` reports, or by
                // somebody else.
                if ended {
                    Ok(())
                } else {
                    Err(Kind::Vanished.into())
                }
            }
            Some((Event::Exited(_), _)) | None => Err(Kind::Vanished.into()),
        }
    }

    /// Waits until a program that is process 1 has executed, or has said why it could not.
    fn await_execution(&mut self, executing: OwnedFd) -> Result<(), Error> {
        // It ends when the program executes, or with a process that said what failed just before.
        let _ = fs::File::from(executing).read(&mut [0]);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut polled = [PollFd::new(&self.core.events, PollFlags::IN)];
        if rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0) {
            self.take_event()?;
        }
        match self.failure.take() {
            Some(failure) => Err(self.failed(failure)),
            None => Ok(()),
        }
    }

    fn hear(&self) -> Result<Option<(Event, Vec<OwnedFd>)>, Error> {
        self.core
            .events
            .recv::<Event>()
            .map_err(|error| Error::io("cannot hear from the sandbox", error))
    }

    fn failed(&self, failure: Failure) -> Error {
        let plan = &self.core.plan;
        if let Cause::Exec(exec) = failure.cause {
            return Kind::Exec {
                program: plan.program.argv[0].to_string_lossy().into_owned(),
                working_dir: plan.program.working_dir.display().to_string(),
                failure: exec,
                few_ids: self.core.few_ids.clone(),
            }
            .into();
        }
        let step = plan.lines().get(failure.line).cloned().unwrap_or_default();
        Kind::Step {
            number: failure.line + 1,
            step,
            failure,
        }
        .into()
    }
}

/// The answer of a process that read a sandbox's files.
pub(crate) fn written<T: DeserializeOwned>(reply: &Channel) -> Result<T, Error> {
    Ok(answered::<Result<T, Fault>>(reply)?.map_err(Kind::Layer)?)
}

/// The answer of a process that the supervisor started for something.
fn answered<T: DeserializeOwned>(reply: &Channel) -> Result<T, Error> {
    let cannot = |error| {
        Error::io(
            "cannot hear from the process that is at work on a sandbox's files",
            error,
        )
    };
    match reply.recv::<T>().map_err(cannot)? {
        Some((answer, _)) => Ok(answer),
        None => Err(cannot(io::Error::other("it ended without an answer"))),
    }
}

pub(crate) fn random_id() -> String {
    let mut bytes = [0; 8];
    // So few bytes are always given whole; before the system has any, at its boot, zeros tell apart well enough.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format!("{:012x}", u64::from_be_bytes(bytes) & 0xffff_ffff_ffff)
}
