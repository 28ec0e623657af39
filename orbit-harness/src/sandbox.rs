//! [`Sandbox`]: a running container. How it comes about is in [`launch`].

#[cfg(feature = "tokio")]
mod asynchronous;
mod core;
mod disk;
mod ending;
mod exec;
mod failing;
mod files;
mod http;
mod inspect;
mod launch;
mod pause;
mod planned;
mod reader;
mod ready;
mod restart;
mod starting;

use std::{
    ffi::OsStr,
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

#[cfg(feature = "tokio")]
pub(crate) use self::asynchronous::blocking;
pub use self::failing::end_by_itself;
#[cfg(feature = "images")]
pub(crate) use self::launch::surroundings;
pub use self::launch::{start_to_wait, start_with};
use self::{core::Core, failing::shows_all_logs, reader::Reader};
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
    network::{Membership, Network},
    outcome::{Outcome, Usage},
    publish::{Port, Ports},
    spec::{Init, Spec, SpecFault},
    supervisor::{Channel, Control, Exit, Failure, Gone, Request, Supervisor},
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
        if self.collect(Instant::now().checked_add(patience))? {
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
