//! [`Sandbox`]: a running container, and [`SandboxBuilder`]'s way to one.

use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::de::DeserializeOwned;

use crate::{
    bridge::{self, Place},
    builder::SandboxBuilder,
    capture::{self, Capture, Stream},
    changes::Changes,
    error::{Error, Kind},
    host::Host,
    image::{Held, Image},
    layer::{Fault, Writable},
    limited::{self, Limited},
    names::{self, Claim},
    net::denied::Denied,
    netfilter::Netfilter,
    network::{Address, Membership, Network},
    outcome::{Note, Outcome, OutputStream, Status, Usage},
    plan::{Plan, plan},
    publish::{self, Port, Ports},
    rootfs::host_view::Surroundings,
    security::idmap::plan::Writer,
    spec::{ImageRef, Init, Link, LinkNames, MountKind, NetworkMode, Spec, SpecFault},
    supervisor::{Cause, Channel, Control, Event, Exit, Failure, Gone, Request, Supervisor},
    sys,
    units::Bytes,
    way_out::{self, Record},
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
    events: Channel,
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
    /// What was done, to say of a failure where it happened.
    plan: Plan,
    /// Why this host has few ids to give, where it has.
    few_ids: Option<String>,
    name: Option<String>,
    /// What keeps the name this sandbox's own.
    _claim: Option<Claim>,
    /// Its control group, which goes when the sandbox is gone.
    limited: Limited,
    /// The filesystem of its writable layers, which stays as long as this does.
    scratch: Option<OwnedFd>,
    origin: Origin,
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
        use std::os::fd::AsRawFd as _;
        let fd = self.pidfd.as_ref()?.as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
        info.lines()
            .find_map(|line| line.strip_prefix("Pid:"))?
            .trim()
            .parse()
            .ok()
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

    /// The sandbox's address on the bridge of [`NetworkMode::Bridge`]. As root, the host reaches it there too.
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

    /// Sends `signal`, as numbered in signal(7), to the program. Nothing happens if it has ended.
    ///
    /// # Errors
    /// Where there is no such signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        if !(1..=libc::SIGRTMAX()).contains(&signal) {
            return Err(Error::spec(vec![SpecFault::new(
                "signal",
                signal.to_string(),
                "expected a number from signal(7), such as 15",
            )]));
        }
        if let (Init::Program, Some(program)) = (self.plan.program.init, &self.pidfd) {
            // Nobody inside passes it on. ESRCH: it has ended.
            let _ = sys::signal_process(program.as_fd(), signal);
            return Ok(());
        }
        // Where the init is gone, so is the program.
        let _ = self.events.send(&Control::Signal(signal), &[]);
        Ok(())
    }

    /// Kills the program and everything else in the sandbox. [`wait`](Self::wait) then says how it ended.
    pub fn kill(&self) {
        // Where nobody listens, nobody lives.
        let _ = self.events.shutdown_send();
    }

    /// What ends this sandbox from another thread, while this one [waits](Self::wait).
    ///
    /// # Errors
    /// Where this process has no descriptor to spare.
    pub fn killer(&self) -> Result<Killer, Error> {
        let cannot = |error| Error::io("cannot share the sandbox's channel", error);
        Ok(Killer {
            events: self.events.try_clone().map_err(cannot)?,
        })
    }

    /// Asks the program to end with SIGTERM, and kills the sandbox if it has not after `patience`.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn stop(&mut self, patience: Duration) -> Result<Outcome, Error> {
        self.signal(libc::SIGTERM)?;
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
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        let request = Request::Changes(Box::new(self.writable()));
        let reply = Supervisor::get(host)?.ask(&request, &[scratch.as_fd()])?;
        written(&reply)
    }

    /// Where what it writes lies.
    pub(crate) fn writable(&self) -> Writable {
        let temporary = self.plan.program.env.get(OsStr::new("TMPDIR"));
        let temporary = temporary.map(Path::new).filter(|path| path.is_absolute());
        Writable::of(&self.plan.steps, temporary)
    }

    /// What it was made of, its program's plan, and the filesystem of its writable layers: `None` where it ended
    /// before its program ran.
    #[cfg(feature = "images")]
    pub(crate) fn made_of(&self) -> (&Origin, &Plan, Option<&OwnedFd>) {
        (&self.origin, &self.plan, self.scratch.as_ref())
    }

    /// Whether nothing in the sandbox runs: it has ended, or is frozen.
    #[cfg(feature = "images")]
    pub(crate) fn is_quiet(&mut self) -> Result<bool, Error> {
        Ok(self.limited.is_frozen()
            || self.collect(Some(Instant::now() + Duration::from_millis(1)))?)
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
    fn collect(&mut self, deadline: Option<Instant>) -> Result<bool, Error> {
        while self.exit.is_none() && self.gone.is_none() {
            let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Ok(false),
                left => left.and_then(|left| Timespec::try_from(left).ok()),
            };
            let readers = [&self.stdout, &self.stderr]
                .map(|capture| capture.as_ref().and_then(Capture::reader));
            let mut polled = vec![PollFd::new(&self.events, PollFlags::IN)];
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
            self.drain();
            if has_event && !self.take_event()? {
                return Err(Kind::Vanished.into());
            }
        }
        // All that could write is dead: what they wrote is there.
        while !self.drain() {}
        Ok(true)
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
            Some((Event::Exited(exit), _)) => self.exit = Some(exit),
            Some((Event::Gone(gone), _)) => self.gone = Some(gone),
            Some((Event::Failed(failure), _)) => self.failure = Some(failure),
            // Said once, before all else.
            Some((Event::Started { .. }, _)) => {}
        }
        Ok(true)
    }

    fn conclude(&mut self) -> Result<Outcome, Error> {
        let (stdout, cut) = self.stdout.as_mut().map(Capture::take).unwrap_or_default();
        let stdout_cut = cut.map(|left_out| (OutputStream::Stdout, left_out));
        let (stderr, cut) = self.stderr.as_mut().map(Capture::take).unwrap_or_default();
        let stderr_cut = cut.map(|left_out| (OutputStream::Stderr, left_out));
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
        let cut = stdout_cut.into_iter().chain(stderr_cut);
        end.notes
            .extend(cut.map(|(stream, left_out)| Note::OutputCut { stream, left_out }));
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
    /// signal, or if the program is process 1 itself ([`Init::Program`]).
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
        self.limited.freeze(true)
    }

    /// Lets a frozen sandbox go on.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub fn thaw(&self) -> Result<(), Error> {
        self.limited.freeze(false)
    }

    /// What the sandbox has used so far: as its control group counts it, or, without one, what `/proc` tells of its
    /// program. [`Usage::source`] says which.
    pub fn usage(&self) -> Usage {
        self.limited.usage(self.pid())
    }
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
        self.kill();
        while self.gone.is_none() && self.take_event().is_ok_and(|heard| heard) {}
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("id", &self.id)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl SandboxBuilder {
    /// Runs the program to its end in a fresh sandbox, of which nothing is left when this returns.
    ///
    /// # Errors
    /// Where the sandbox could not be made or the program not be started. How the program *ended* is no error:
    /// that is in the [`Outcome`].
    pub fn run(self) -> Result<Outcome, Error> {
        let mut sandbox = self.start()?;
        sandbox.wait()
    }

    /// What would be done to make this sandbox, one numbered step a line: nothing is made and nothing is run. An
    /// image is looked up, and pulled as [`pull`](Self::pull) says; the addresses that it would have on networks are
    /// not among the steps.
    ///
    /// ```
    /// let plan = orbit::Sandbox::builder().cmd(["true"]).plan()?;
    /// assert!(plan.starts_with("01 unshare mount"), "{plan}");
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with what was asked, as [`start`](Self::start) would say.
    pub fn plan(self) -> Result<String, Error> {
        let Self {
            mut spec,
            mut faults,
            ..
        } = self;
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        let around = surroundings();
        anchor(&mut spec, &around.working_dir, &mut faults);
        limited::look_up(&mut spec.limits, &mut faults);
        let (image, _held) = resolve(&spec, host, &mut faults)?;
        match plan(&spec, &image, host, &around) {
            Ok(plan) if faults.is_empty() => Ok(plan.to_string()),
            Ok(_) => Err(Error::spec(faults)),
            Err(found) => {
                faults.extend(found);
                Err(Error::spec(faults))
            }
        }
    }

    /// Starts the program in a fresh sandbox, and returns once it runs.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn start(self) -> Result<Sandbox, Error> {
        let Self {
            mut spec,
            mut faults,
            stdin,
            stdout,
            stderr,
            capture_limit,
            networks,
            base,
        } = self;
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        let around = surroundings();
        anchor(&mut spec, &around.working_dir, &mut faults);
        limited::look_up(&mut spec.limits, &mut faults);
        check_clock(&spec, &mut faults);
        way_out::look_up(&mut spec, &mut faults);
        let (image, held) = match base {
            Some(base) => (base.image, base.held),
            None => resolve(&spec, host, &mut faults)?,
        };
        let claim = claim_name(&mut spec)?;
        let (addresses, place) = if faults.is_empty() {
            take_addresses(networks, &mut spec, host)?
        } else {
            Default::default()
        };
        let mut plan = match plan(&spec, &image, host, &around) {
            Ok(plan) if faults.is_empty() => plan,
            Ok(_) => return Err(Error::spec(faults)),
            Err(found) => {
                faults.extend(found);
                return Err(Error::spec(faults));
            }
        };
        let ports = match spec.network {
            NetworkMode::Host => Ports::of_host(&spec.expose),
            _ => Ports::default(),
        };
        // First of all: what cannot be published is not worth a sandbox.
        let bound = publish::bind(&plan.publish)?;
        let cannot_open = |error| Error::io("cannot open the program's standard streams", error);
        let keep = capture_limit.unwrap_or(capture::DEFAULT_LIMIT);
        let input = capture::input(stdin).map_err(cannot_open)?;
        let (output, stdout) =
            capture::output(stdout, Stream::Output, keep).map_err(cannot_open)?;
        let (error_output, stderr) =
            capture::output(stderr, Stream::Error, keep).map_err(cannot_open)?;
        crate::cgroup::reap(host);
        let supervisor = Supervisor::get(host)?;
        let limited = Limited::make(&mut plan, host, supervisor.pid(), spec.limits.best_effort)?;
        let (memberships, mut connectors) = join(addresses, &spec)?;
        let mut on_bridge = None;
        if let Some(place) = &place {
            let (init, ours) =
                Channel::pair().map_err(|error| Error::io("cannot join the bridge", error))?;
            connectors.push(init);
            on_bridge = Some((place, ours));
        }
        let events = supervisor.launch(
            plan.clone(),
            [input.as_fd(), output.as_fd(), error_output.as_fd()],
            limited.fd(),
            &connectors,
        )?;
        // Else the ends of captured streams would never come.
        drop((input, output, error_output, connectors));
        if let Some((place, init)) = on_bridge {
            place
                .connect(&init)
                .map_err(|error| Error::io("cannot join the bridge", error))?;
        }
        let mut sandbox = Sandbox {
            id: random_id(),
            events,
            pidfd: None,
            terminal: None,
            stdout,
            stderr,
            capture_limit: keep,
            exit: None,
            gone: None,
            failure: None,
            outcome: None,
            limited,
            plan,
            is_on_bridge: spec.network == NetworkMode::Bridge,
            name: spec.name.clone(),
            _claim: claim,
            few_ids: match &host.ids.writer {
                Writer::Caller(single) => Some(format!("{single}; {}", single.fix())),
                Writer::Helpers | Writer::Privileged => None,
            },
            network: None,
            record: Record::default(),
            ports,
            memberships,
            place,
            scratch: None,
            origin: Origin { spec, image, held },
        };
        sandbox.await_start()?;
        if let (false, Some(network)) = (bound.is_empty(), &sandbox.network) {
            sandbox.ports = bound.forward(&*supervisor.broker()?, network.as_fd())?;
        }
        Ok(sandbox)
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
        let mut polled = [PollFd::new(&self.events, PollFlags::IN)];
        if rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0) {
            self.take_event()?;
        }
        match self.failure.take() {
            Some(failure) => Err(self.failed(failure)),
            None => Ok(()),
        }
    }

    fn hear(&self) -> Result<Option<(Event, Vec<OwnedFd>)>, Error> {
        self.events
            .recv::<Event>()
            .map_err(|error| Error::io("cannot hear from the sandbox", error))
    }

    fn failed(&self, failure: Failure) -> Error {
        let plan = &self.plan;
        if let Cause::Exec(exec) = failure.cause {
            return Kind::Exec {
                program: plan.program.argv[0].to_string_lossy().into_owned(),
                working_dir: plan.program.working_dir.display().to_string(),
                failure: exec,
                few_ids: self.few_ids.clone(),
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
    let heard = reply.recv::<Result<T, Fault>>();
    let cannot = |error| {
        Error::io(
            "cannot hear from the process that reads a sandbox's files",
            error,
        )
    };
    match heard.map_err(cannot)? {
        Some((answer, _)) => Ok(answer.map_err(Kind::Layer)?),
        None => Err(cannot(io::Error::other("it ended without an answer"))),
    }
}

/// That this kernel lets a program have a clock of its own when it is executed: before Linux 6.1 it would have the
/// host's, and nobody would say so.
fn check_clock(spec: &Spec, faults: &mut Vec<SpecFault>) {
    let Some(ahead) = spec.clock_offset else {
        return;
    };
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0_u32));
    let version = (numbers.next(), numbers.next());
    if version < (Some(6), Some(1)) {
        let why = format!(
            "this kernel is {release}, and programs have clocks of their own since Linux 6.1"
        );
        faults.push(SpecFault::new("clock_offset", format!("{ahead:?}"), why));
    }
}

/// Makes the host's paths in a spec absolute, and says which are not there.
fn anchor(spec: &mut Spec, here: &Path, faults: &mut Vec<SpecFault>) {
    let mut sources: Vec<(&str, &mut PathBuf)> = Vec::new();
    for mount in &mut spec.mounts {
        if let MountKind::Bind { source, .. } | MountKind::Overlay { source } = &mut mount.kind {
            sources.push(("mount source", source));
        }
    }
    if let ImageRef::Dir(path) = &mut spec.image {
        sources.push(("image dir", path));
    }
    for path in spec
        .host_view
        .paths
        .iter_mut()
        .chain(&mut spec.host_view.read_only_paths)
    {
        sources.push(("host path", path));
    }
    for (field, path) in sources {
        let absolute = here.join(&*path);
        if let Err(error) = fs::metadata(&absolute) {
            faults.push(SpecFault::new(
                field,
                path.display().to_string(),
                format!("on this host: {error}"),
            ));
        }
        *path = absolute;
    }
}

/// Makes the name unique among this user's running sandboxes, where that is asked.
/// An address on each of `networks`, and on the bridge where one is asked for: as root it is the host's, for others
/// it is the first of the networks.
fn take_addresses(
    mut networks: Vec<Network>,
    spec: &mut Spec,
    host: &Host,
) -> Result<(Vec<Address>, Option<Place>), Error> {
    let on_bridge = spec.network == NetworkMode::Bridge;
    if on_bridge && host.uid != 0 {
        networks.insert(0, Network::in_place_of(&spec.bridge)?);
    }
    let addresses = networks
        .iter()
        .map(Network::take_address)
        .collect::<Result<Vec<_>, _>>()?;
    spec.links = addresses.iter().map(Address::link).collect();
    let place = (on_bridge && host.uid == 0)
        .then(|| bridge::join(&spec.bridge.name, spec.bridge.subnet, &names_of(spec)))
        .transpose()?;
    spec.links.extend(place.as_ref().map(|place| Link {
        network: spec.bridge.name.clone(),
        subnet: spec.bridge.subnet,
        address: place.address(),
        names: LinkNames::Hosts(place.neighbours().to_vec()),
    }));
    Ok((addresses, place))
}

/// What others on its networks call a sandbox.
fn names_of(spec: &Spec) -> Vec<String> {
    spec.name
        .iter()
        .chain(&spec.hostname)
        .chain(&spec.aliases)
        .cloned()
        .collect()
}

/// Makes the sandbox known on its networks. Its init is given the channels, in the order of the links.
fn join(addresses: Vec<Address>, spec: &Spec) -> Result<(Vec<Membership>, Vec<Channel>), Error> {
    static LAST_ID: AtomicU64 = AtomicU64::new(0);

    let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
    let names = names_of(spec);
    addresses
        .into_iter()
        .map(|address| address.join(id, &names))
        .collect()
}

fn claim_name(spec: &mut Spec) -> Result<Option<Claim>, Error> {
    let Some(name) = spec.name.as_ref().filter(|_| spec.unique_name) else {
        return Ok(None);
    };
    let directory = crate::host::cache_dir().ok_or_else(|| {
        Error::io(
            "cannot tell where to keep names",
            io::Error::other(NO_CACHE_DIR),
        )
    })?;
    let (name, claim) = names::claim(&directory, name).map_err(|error| {
        Error::io(
            format!("cannot claim a name in {}", directory.display()),
            error,
        )
    })?;
    spec.name = Some(name);
    Ok(Some(claim))
}

const NO_CACHE_DIR: &str = "none of ORBIT_CACHE_DIR, XDG_CACHE_HOME and HOME is set to an absolute path; set ORBIT_CACHE_DIR";

#[cfg_attr(not(feature = "images"), expect(clippy::unnecessary_wraps))]
fn resolve(
    spec: &Spec,
    host: &'static Host,
    faults: &mut Vec<SpecFault>,
) -> Result<(Image, Held), Error> {
    match &spec.image {
        ImageRef::Host => Ok(Default::default()),
        ImageRef::Dir(path) => {
            if fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
                faults.push(SpecFault::new(
                    "image dir",
                    path.display().to_string(),
                    "it is not a directory",
                ));
            }
            Ok(Default::default())
        }
        #[cfg(feature = "images")]
        image => {
            let (image, lease) = crate::images::resolve(image, spec.pull, host)?;
            Ok((image, lease.map(|lease| std::sync::Arc::new(lease) as _)))
        }
        #[cfg(not(feature = "images"))]
        image => {
            let _ = host;
            let why =
                "this build of orbit-harness has neither of the features `images` and `registry`";
            faults.push(SpecFault::new("image", image.to_string(), why));
            Ok(Default::default())
        }
    }
}

pub(crate) fn surroundings() -> Surroundings {
    let executable = std::env::current_exe().ok();
    Surroundings {
        working_dir: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        executable_dir: executable.and_then(|path| path.parent().map(Path::to_owned)),
        path: std::env::var_os("PATH"),
        umask: umask(),
    }
}

/// The mask of this process, read where no thread can see it change meanwhile. Source: proc_pid_status(5).
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    value
        .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
        .unwrap_or(0o022)
}

pub(crate) fn random_id() -> String {
    let mut bytes = [0; 8];
    // So few bytes are always given whole; before the system has any, at its boot, zeros tell apart well enough.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format!("{:012x}", u64::from_be_bytes(bytes) & 0xffff_ffff_ffff)
}
