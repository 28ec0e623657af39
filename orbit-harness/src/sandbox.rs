//! [`Sandbox`]: a running container, and [`SandboxBuilder`]'s way to one.

use std::{
    fmt, fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::{
    builder::SandboxBuilder,
    capture::{self, Capture, Stream},
    error::{Error, Kind},
    host::Host,
    image::Image,
    limited::{self, Limited},
    outcome::{Outcome, Status, Usage},
    plan::{Plan, plan},
    rootfs::host_view::Surroundings,
    security::idmap::plan::Writer,
    spec::{ImageRef, MountKind, Spec, SpecFault},
    supervisor::{Cause, Channel, Control, Event, Exit, Failure, Gone, Supervisor},
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
    exit: Option<Exit>,
    gone: Option<Gone>,
    outcome: Option<Outcome>,
    /// Its control group, which goes when the sandbox is gone.
    limited: Limited,
    /// What is held of the image while it is in use.
    _image: Held,
}

#[cfg(feature = "images")]
type Held = Option<crate::store::ImageLease>;
#[cfg(not(feature = "images"))]
type Held = ();

impl Sandbox {
    /// What a sandbox should be: the host's files with nothing else asked, until it is said otherwise.
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder::default()
    }

    /// A random name of twelve hexadecimal digits, for messages and logs.
    pub fn id(&self) -> &str {
        &self.id
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
        // Where the init is gone, so is the program.
        let _ = self.events.send(&Control::Signal(signal), &[]);
        Ok(())
    }

    /// Kills the program and everything else in the sandbox. [`wait`](Self::wait) then says how it ended.
    pub fn kill(&self) {
        // Where nobody listens, nobody lives.
        let _ = self.events.shutdown_send();
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

    /// The other side of the program's terminal, where one was asked for: what is written there is typed, what
    /// is read is shown. From then on nothing of it is captured.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        if let Some(terminal) = self.terminal.take() {
            self.stdout = None;
            return Some(terminal);
        }
        None
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
        self.drain();
        Ok(true)
    }

    fn drain(&mut self) {
        for capture in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            capture.drain();
        }
    }

    /// Whether there was an event: not where the supervisor is gone.
    fn take_event(&mut self) -> Result<bool, Error> {
        let event = self
            .events
            .recv::<Event>()
            .map_err(|e| Error::io("cannot hear from the sandbox", e))?;
        match event {
            None => return Ok(false),
            Some((Event::Exited(exit), _)) => self.exit = Some(exit),
            Some((Event::Gone(gone), _)) => self.gone = Some(gone),
            // Neither is said after the start.
            Some((Event::Started { .. } | Event::Failed(_), _)) => {}
        }
        Ok(true)
    }

    fn conclude(&mut self) -> Result<Outcome, Error> {
        let stdout = self.stdout.as_mut().map(Capture::take).unwrap_or_default();
        let stderr = self.stderr.as_mut().map(Capture::take).unwrap_or_default();
        self.pidfd = None;
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
        let end = self.limited.conclude(status, usage, full_disk);
        Ok(Outcome {
            status: end.status,
            stdout,
            stderr,
            wall_time,
            usage: end.usage,
            leaked,
            notes: end.notes,
            warnings: end.warnings,
        })
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
        } = self;
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        let around = surroundings();
        anchor(&mut spec, &around.working_dir, &mut faults);
        limited::look_up(&mut spec.limits, &mut faults);
        let (image, held) = resolve(&spec, host, &mut faults)?;
        let mut plan = match plan(&spec, &image, host, &around) {
            Ok(plan) if faults.is_empty() => plan,
            Ok(_) => return Err(Error::spec(faults)),
            Err(found) => {
                faults.extend(found);
                return Err(Error::spec(faults));
            }
        };
        let cannot_open = |error| Error::io("cannot open the program's standard streams", error);
        let input = capture::input(stdin).map_err(cannot_open)?;
        let (output, stdout) = capture::output(stdout, Stream::Output).map_err(cannot_open)?;
        let (error_output, stderr) = capture::output(stderr, Stream::Error).map_err(cannot_open)?;
        crate::cgroup::reap(host);
        let supervisor = Supervisor::get(host)?;
        let limited = Limited::make(&mut plan, host, supervisor.pid(), spec.limits.best_effort)?;
        let events = supervisor.launch(
            plan.clone(),
            [input.as_fd(), output.as_fd(), error_output.as_fd()],
            limited.fd(),
        )?;
        // Else the ends of captured streams would never come.
        drop((input, output, error_output));
        let mut sandbox = Sandbox {
            id: random_id(),
            events,
            pidfd: None,
            terminal: None,
            stdout,
            stderr,
            exit: None,
            gone: None,
            outcome: None,
            limited,
            _image: held,
        };
        sandbox.await_start(&plan, host)?;
        Ok(sandbox)
    }
}

impl Sandbox {
    fn await_start(&mut self, plan: &Plan, host: &Host) -> Result<(), Error> {
        let event = self
            .events
            .recv::<Event>()
            .map_err(|e| Error::io("cannot hear from the sandbox", e))?;
        match event {
            Some((Event::Started { .. }, fds)) => {
                let mut fds = fds.into_iter();
                self.pidfd = fds.next();
                if let Some(terminal) = fds.next() {
                    let reader = terminal
                        .try_clone()
                        .map_err(|e| Error::io("cannot read the terminal", e))?;
                    self.stdout = Some(
                        Capture::new(reader)
                            .map_err(|e| Error::io("cannot read the terminal", e))?,
                    );
                    self.terminal = Some(terminal);
                }
                Ok(())
            }
            Some((Event::Failed(failure), _)) => Err(failed(plan, failure, host)),
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
}

fn failed(plan: &Plan, failure: Failure, host: &Host) -> Error {
    if let Cause::Exec(exec) = failure.cause {
        let program = plan.program.argv[0].to_string_lossy().into_owned();
        let working_dir = plan.program.working_dir.display().to_string();
        return Kind::Exec {
            program,
            working_dir,
            failure: exec,
            few_ids: match &host.ids.writer {
                Writer::Caller(single) => Some(format!("{single}; {}", single.fix())),
                Writer::Helpers | Writer::Privileged => None,
            },
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
        image => crate::images::resolve(image, spec.pull, host),
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

fn surroundings() -> Surroundings {
    let executable = std::env::current_exe().ok();
    Surroundings {
        working_dir: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        executable_dir: executable.and_then(|path| path.parent().map(Path::to_owned)),
        path: std::env::var_os("PATH"),
    }
}

fn random_id() -> String {
    let mut bytes = [0; 6];
    // Six bytes are always given whole; before the system has any, at its boot, zeros tell apart well enough.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
