//! Further programs in a running sandbox: [`Sandbox::exec`], [`ExecBuilder`], [`Exec`].

use std::{
    ffi::OsString,
    fmt,
    io::PipeReader,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Sandbox, core::Core};
use crate::{
    bounded::DEFAULT_LIMIT,
    builder::{Output, Stdin},
    capture::{self, Capture, Nowhere, Stream},
    error::{Error, Kind},
    outcome::{Note, Outcome, OutputStream, Status, Usage},
    plan::{Isolation, ProgramPlan, UserPlan},
    security::user::UserSpec,
    spec::SpecFault,
    supervisor::{Cause, Channel, Control, ExecEvent, ExecOrder, Failure, Own},
};

/// A further program for a running sandbox; made by [`Sandbox::exec`].
#[must_use = "nothing happens until `run` or `start`"]
#[derive(Debug)]
pub struct ExecBuilder {
    core: Arc<Core>,
    program: ProgramPlan,
    faults: Vec<SpecFault>,
    stdin: Stdin,
    stdout: Output,
    stderr: Output,
    timeout: Option<Duration>,
}

impl Sandbox {
    /// A further program in this sandbox, as `docker exec` runs one: it sees the same files, network and processes,
    /// has the same user, environment, working directory, capabilities and system calls as the sandbox's own program
    /// unless told otherwise, counts to the same limits, and ends with the sandbox.
    ///
    /// ```
    /// let sandbox = orbit::Sandbox::builder()
    ///     .cmd(["sh", "-c", "echo ready > /tmp/state; sleep 60"])
    ///     .start()?;
    /// let outcome = sandbox
    ///     .exec(["sh", "-c", "until [ -s /tmp/state ]; do sleep 0.01; done; cat /tmp/state; exit 3"])
    ///     .run()?;
    /// assert_eq!(outcome.stdout_text(), "ready\n");
    /// assert_eq!(outcome.status, orbit::Status::Exited(3));
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn exec(&self, words: impl IntoIterator<Item = impl Into<OsString>>) -> ExecBuilder {
        ExecBuilder::new(&self.core, words.into_iter().map(Into::into).collect())
    }
}

impl ExecBuilder {
    pub(super) fn new(core: &Arc<Core>, argv: Vec<OsString>) -> Self {
        let mut program = core.plan.program.clone();
        program.argv = argv;
        program.tty = false;
        Self {
            core: Arc::clone(core),
            program,
            faults: Vec::new(),
            stdin: Stdin::default(),
            stdout: Output::default(),
            stderr: Output::default(),
            timeout: None,
        }
    }

    /// Who it runs as: `user`, `user:group`, `uid` or `uid:gid` of the sandbox. By default, as whom the sandbox's own
    /// program was started.
    pub fn user(mut self, user: &str) -> Self {
        match user.parse::<UserSpec>() {
            Ok(_) => {
                self.program.user = UserPlan::Named(user.to_owned());
                // The home of who it would have been.
                if self.core.plan.program.user != self.program.user {
                    self.program.env.remove(std::ffi::OsStr::new("HOME"));
                }
            }
            Err(fault) => self.faults.push(fault),
        }
        self
    }

    /// The directory it starts in, which must be there.
    pub fn working_dir(mut self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        if !path.is_absolute() {
            let (given, why) = (path.display().to_string(), "expected an absolute path");
            self.faults.push(SpecFault::new("working_dir", given, why));
        }
        self.program.working_dir = path;
        self
    }

    /// Sets a variable of its environment, which else is that of the sandbox's own program.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.program.env.insert(name.into(), value.into());
        self
    }

    /// Starts from an empty environment, with what [`env`](Self::env) sets after this call.
    pub fn env_clear(mut self) -> Self {
        self.program.env.clear();
        self
    }

    /// What it reads from standard input: nothing by default.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Where standard output goes: to [`Outcome::stdout`] by default.
    pub fn stdout(mut self, stdout: Output) -> Self {
        self.stdout = stdout;
        self
    }

    /// Where standard error goes: to [`Outcome::stderr`] by default.
    pub fn stderr(mut self, stderr: Output) -> Self {
        self.stderr = stderr;
        self
    }

    /// Gives it a terminal of the sandbox as its standard streams: [`Exec::take_terminal`] is the other side.
    pub fn tty(mut self, tty: bool) -> Self {
        self.program.tty = tty;
        if tty {
            let term = self.program.env.entry("TERM".into());
            term.or_insert_with(|| "xterm".into());
        }
        self
    }

    /// Kills it, and what it started, when it runs longer than this: its status is [`Status::TimedOut`] then. The
    /// time is watched by who waits for it.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// Where it could not be started, or the sandbox has ended ([`Error::is_ended`]). How it *ended* is no error:
    /// that is in the [`Outcome`].
    pub fn run(self) -> Result<Outcome, Error> {
        self.start()?.wait()
    }

    /// Starts it, and returns once it runs.
    ///
    /// ```
    /// use std::io::{Read as _, Write as _};
    ///
    /// let sandbox = orbit::Sandbox::builder().cmd(["sleep", "60"]).start()?;
    /// let (input, mut to_program) = std::io::pipe()?;
    /// let mut cat = sandbox.exec(["cat"]).stdin(orbit::Stdin::Fd(input.into())).start()?;
    /// let mut output = cat.take_stdout().expect("captured by default");
    /// to_program.write_all(b"streamed")?;
    /// let mut buffer = [0; 8];
    /// output.read_exact(&mut buffer)?;
    /// assert_eq!(&buffer, b"streamed");
    /// drop(to_program);
    /// assert!(cat.wait()?.success());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn start(mut self) -> Result<Exec, Error> {
        self.check();
        if !self.faults.is_empty() {
            return Err(Error::spec(self.faults));
        }
        let cannot_open = |error| Error::io("cannot open the program's standard streams", error);
        let nowhere = Nowhere::default();
        let input = capture::input(self.stdin, &nowhere).map_err(cannot_open)?;
        let (output, stdout) =
            capture::output(self.stdout, Stream::Output, DEFAULT_LIMIT, &nowhere)
                .map_err(cannot_open)?;
        let (error_output, stderr) =
            capture::output(self.stderr, Stream::Error, DEFAULT_LIMIT, &nowhere)
                .map_err(cannot_open)?;
        let name = self.program.argv[0].to_string_lossy().into_owned();
        self.core.check_thawed(&format!("run `{name}`"))?;
        let handles = self.core.handles(&format!("run `{name}`"))?;
        let working_dir = self.program.working_dir.display().to_string();
        let started = Instant::now();
        let channel = Core::supervisor()?.exec(
            ExecOrder {
                sandbox: self.core.key,
                program: self.program,
                in_cgroup: self.core.cgroup.is_some(),
                own: Own {
                    network: self.core.plan.network == Isolation::Own,
                    clock: self.core.plan.clock_offset.is_some(),
                },
            },
            [input.as_fd(), output.as_fd(), error_output.as_fd()],
            self.core.cgroup.as_ref().map(|fd| fd.as_fd()),
            handles.get(1..).unwrap_or_default(),
        )?;
        drop((input, output, error_output));
        let mut exec = Exec {
            channel,
            pidfd: None,
            terminal: None,
            stdout,
            stderr,
            timeout: self.timeout,
            started,
            timed_out: false,
            exited: None,
            outcome: None,
        };
        match exec.hear()? {
            Some((ExecEvent::Started, fds)) => {
                let mut fds = fds.into_iter();
                exec.pidfd = fds.next();
                if let Some(terminal) = fds.next() {
                    let cannot = |error| Error::io("cannot read the program's terminal", error);
                    let reader = terminal.try_clone().map_err(cannot)?;
                    exec.stdout = Some(Capture::new(reader, DEFAULT_LIMIT).map_err(cannot)?);
                    exec.terminal = Some(terminal);
                }
                Ok(exec)
            }
            Some((ExecEvent::Failed(Cause::Exec(failure)), _)) => Err(Kind::Exec {
                program: name,
                working_dir,
                failure,
                few_ids: self.core.few_ids.clone(),
            }
            .into()),
            Some((ExecEvent::Failed(cause), _)) => Err(Kind::Enter {
                program: name,
                failure: Failure { line: 0, cause },
            }
            .into()),
            Some((ExecEvent::Exited { .. }, _)) | None => Err(Kind::Ended {
                doing: format!("run `{name}`"),
            }
            .into()),
        }
    }

    /// What is wrong with it that can be told at once.
    fn check(&mut self) {
        let has_nul = |text: &OsString| text.as_bytes().contains(&0);
        if self.program.argv.is_empty() {
            let why = "no program was given";
            self.faults.push(SpecFault::new("exec", "", why));
        }
        for word in self.program.argv.iter().filter(|word| has_nul(word)) {
            let why = "an argument has a NUL byte";
            self.faults
                .push(SpecFault::new("exec", word.to_string_lossy(), why));
        }
        for (name, value) in &self.program.env {
            if name.is_empty() || name.as_bytes().contains(&b'=') || has_nul(name) || has_nul(value)
            {
                let why =
                    "a name is not empty and has no `=`, and neither name nor value has a NUL byte";
                self.faults
                    .push(SpecFault::new("env", name.to_string_lossy(), why));
            }
        }
        if self.program.working_dir.as_os_str().as_bytes().contains(&0) {
            let given = self.program.working_dir.display().to_string();
            self.faults
                .push(SpecFault::new("working_dir", given, "it has a NUL byte"));
        }
        if self.timeout == Some(Duration::ZERO) {
            let why = "expected more than zero";
            self.faults.push(SpecFault::new("timeout", "0s", why));
        }
    }
}

/// A further program that runs in a sandbox: killed, with what it started, when this value is dropped. What it let go
/// of, as a daemon, lives on until the sandbox ends.
pub struct Exec {
    channel: Channel,
    pidfd: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    stdout: Option<Capture>,
    stderr: Option<Capture>,
    timeout: Option<Duration>,
    started: Instant,
    timed_out: bool,
    exited: Option<(Status, Usage, Duration)>,
    outcome: Option<Outcome>,
}

/// How often a mebibyte is taken after the end: more no pipe holds, unless its size was raised by root.
const MAX_LEFT_TURNS: usize = 32;

impl Exec {
    /// The number of its process, as this process sees it. `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        super::pid_of(self.pidfd.as_ref()?)
    }

    /// Sends `signal`, as numbered in signal(7), to the program; SIGKILL to all of its process group. Nothing happens
    /// if it has ended.
    ///
    /// # Errors
    /// Where there is no such signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        super::check_signal(signal)?;
        let _ = self.channel.send(&Control::Signal(signal), &[]);
        Ok(())
    }

    /// Kills the program and what is left in its process group.
    pub fn kill(&self) {
        // Where nobody listens, nobody lives.
        let _ = self.channel.send(&Control::Signal(libc::SIGKILL), &[]);
    }

    /// What it writes to standard output, to be read as it comes; nothing of it is captured then. `None` where it is
    /// not captured in the first place, or was taken before.
    pub fn take_stdout(&mut self) -> Option<PipeReader> {
        if self.terminal.is_some() {
            return None;
        }
        Some(self.stdout.take()?.into_reader()?.into())
    }

    /// As [`take_stdout`](Self::take_stdout), of standard error.
    pub fn take_stderr(&mut self) -> Option<PipeReader> {
        Some(self.stderr.take()?.into_reader()?.into())
    }

    /// The other side of its terminal, where one was asked for: what is written there is typed, what is read is shown.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        let terminal = self.terminal.take()?;
        self.stdout = None;
        let _ = rustix::io::ioctl_fionbio(&terminal, false);
        Some(terminal)
    }

    /// Waits until it ends, and says how.
    ///
    /// # Errors
    /// Where the sandbox vanished, and with it the knowledge of its end.
    pub fn wait(&mut self) -> Result<Outcome, Error> {
        self.collect(None)?;
        self.conclude()
    }

    /// Waits until it ends, for at most this long. `None`: it runs on.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, patience: Duration) -> Result<Option<Outcome>, Error> {
        if self.collect(Instant::now().checked_add(patience))? {
            self.conclude().map(Some)
        } else {
            Ok(None)
        }
    }

    fn conclude(&mut self) -> Result<Outcome, Error> {
        if self.outcome.is_none() {
            let (status, usage, wall_time) = self.exited.ok_or(Kind::Vanished)?;
            let status = match self.timeout {
                Some(limit) if self.timed_out => Status::TimedOut(limit),
                _ => status,
            };
            self.pidfd = None;
            let take = |capture: &mut Option<Capture>| {
                capture.as_mut().map(Capture::take).unwrap_or_default()
            };
            let (stdout, stdout_cut) = take(&mut self.stdout);
            let (stderr, stderr_cut) = take(&mut self.stderr);
            let cut = [
                (OutputStream::Stdout, stdout_cut),
                (OutputStream::Stderr, stderr_cut),
            ];
            let note = |(stream, cut): (_, Option<_>)| {
                cut.map(|left_out| Note::OutputCut { stream, left_out })
            };
            self.outcome = Some(Outcome {
                status,
                stdout,
                stderr,
                wall_time,
                usage,
                leaked: Vec::new(),
                notes: cut.into_iter().filter_map(note).collect(),
                warnings: Vec::new(),
                // Of the sandbox as a whole: it tells of them.
                changes: None,
                denied: Vec::new(),
            });
        }
        self.outcome.clone().ok_or_else(|| Kind::Vanished.into())
    }

    /// Reads output until it has ended, or `until`. Whether it has ended.
    fn collect(&mut self, until: Option<Instant>) -> Result<bool, Error> {
        while self.exited.is_none() {
            let now = Instant::now();
            let limit = self.timeout.filter(|_| !self.timed_out);
            let limit = limit.and_then(|limit| self.started.checked_add(limit));
            if limit.is_some_and(|at| at <= now) {
                self.timed_out = true;
                self.kill();
                continue;
            }
            let is_late = until.is_some_and(|at| at <= now);
            let next = [limit, until].into_iter().flatten().min();
            let timeout =
                next.and_then(|at| Timespec::try_from(at.saturating_duration_since(now)).ok());
            let mut polled = vec![PollFd::new(&self.channel, PollFlags::IN)];
            polled.extend(
                [&self.stdout, &self.stderr]
                    .into_iter()
                    .filter_map(|capture| capture.as_ref()?.reader())
                    .map(|reader| PollFd::new(reader, PollFlags::IN)),
            );
            match rustix::event::poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("cannot wait for the program", error)),
            }
            let has_event = !polled[0].revents().is_empty();
            self.drain();
            if has_event {
                self.take_event()?;
            } else if is_late {
                return Ok(false);
            }
        }
        // What it wrote is there; what a daemon of its writes later is nobody's.
        self.drain_to_end();
        Ok(true)
    }

    fn drain(&mut self) {
        for capture in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            capture.drain();
        }
    }

    fn drain_to_end(&mut self) {
        for capture in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            // As much as a pipe holds at most: a daemon may write for ever.
            for _ in 0..MAX_LEFT_TURNS {
                if capture.drain() {
                    break;
                }
            }
        }
    }

    fn take_event(&mut self) -> Result<(), Error> {
        match self.hear()? {
            Some((
                ExecEvent::Exited {
                    status,
                    usage,
                    wall_time,
                },
                _,
            )) => self.exited = Some((status, usage, wall_time)),
            Some(_) => {}
            None => return Err(Kind::Vanished.into()),
        }
        Ok(())
    }

    fn hear(&self) -> Result<Option<(ExecEvent, Vec<OwnedFd>)>, Error> {
        self.channel
            .recv::<ExecEvent>()
            .map_err(|error| Error::io("cannot hear from the program", error))
    }

    /// What becomes readable when there is output to take.
    #[cfg(feature = "tokio")]
    pub(super) fn readers(&self) -> impl Iterator<Item = &std::fs::File> {
        let captures = [&self.stdout, &self.stderr].into_iter().flatten();
        captures.filter_map(Capture::reader)
    }

    /// When its timeout passes.
    #[cfg(feature = "tokio")]
    pub(super) fn limit(&self) -> Option<Instant> {
        let limit = self.timeout.filter(|_| !self.timed_out)?;
        self.started.checked_add(limit)
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    pub(super) fn pidfd(&self) -> Option<&OwnedFd> {
        self.pidfd.as_ref()
    }

    /// What becomes readable when it ends.
    pub(super) fn end(&self) -> &Channel {
        &self.channel
    }
}

/// Kills it, and returns when it is gone.
impl Drop for Exec {
    fn drop(&mut self) {
        if self.exited.is_none() {
            // Its end is read by who sees to the program: the kill, and the answer.
            let _ = self.channel.shutdown_send();
            while self.exited.is_none() && self.take_event().is_ok() {}
        }
    }
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec")
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}
