//! Waits for a sandbox to be ready: one loop over every source of events, in the thread that asked.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use regex_lite::Regex;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{MemfdFlags, Mode, OFlags, ResolveFlags, inotify},
};

use super::{Exec, ExecBuilder, Sandbox, failing::SHOWN_LINES, http::HttpTry};
use crate::{
    builder::Output,
    error::{Error, Kind},
    image::HealthCheck,
    logs::{LogStream, LogWaker},
    outcome::Outcome,
    wait::{HttpWait, NotReady, Progress, Wait, WaitKind, Why},
};

/// Between two looks at the table of sockets: first and longest.
const PORT_PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// Between two requests.
const HTTP_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// How long one request may take.
const HTTP_PATIENCE: Duration = Duration::from_secs(5);
/// Between two runs of a program.
const EXEC_PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// Between two looks for a file that cannot be watched, and for one that is.
const FILE_PAUSES: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(500));
/// As good as for ever, and no more than can be added to the time.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Sandbox {
    /// Waits until this came true, for at most `patience`: as
    /// [`SandboxBuilder::wait_for`](crate::SandboxBuilder::wait_for), while the sandbox runs. The log counts from its
    /// beginning.
    ///
    /// ```
    /// use std::time::Duration;
    /// use orbit::Wait;
    ///
    /// let mut sandbox = orbit::Sandbox::builder()
    ///     .cmd(["sh", "-c", "sleep 0.05; touch /tmp/here; exec sleep 60"])
    ///     .start()?;
    /// sandbox.wait_for(&Wait::file("/tmp/here"), Duration::from_secs(10))?;
    /// let error = sandbox
    ///     .wait_for(&Wait::port(80), Duration::from_millis(20))
    ///     .unwrap_err();
    /// assert!(error.is_not_ready());
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where it does not come in time, or the program ends before ([`Error::is_not_ready`]).
    pub fn wait_for(&mut self, wait: &Wait, patience: Duration) -> Result<(), Error> {
        self.check_wait(wait)?;
        self.get_ready(std::slice::from_ref(wait), patience)
    }

    /// What is wrong with a wait that the builder has not seen.
    pub(super) fn check_wait(&self, wait: &Wait) -> Result<(), Error> {
        let mut faults = wait.faults.clone();
        if self.healthcheck.is_none() {
            faults.extend(wait.fault_without_healthcheck());
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::spec(faults))
        }
    }

    pub(super) fn get_ready(&mut self, waits: &[Wait], limit: Duration) -> Result<(), Error> {
        if waits.is_empty() {
            return Ok(());
        }
        let waker = self.log_waker()?;
        let mut ready = Readiness::new(waits, limit, self);
        while !ready.is_met(self)? {
            let (sources, next) = ready.sources(self, waker.as_ref());
            let polled = sources
                .iter()
                .map(|(fd, wanted)| PollFd::from_borrowed_fd(*fd, *wanted));
            let mut polled: Vec<_> = polled.collect();
            let left = next.saturating_duration_since(Instant::now());
            match rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("cannot wait for the sandbox", error)),
            }
            if let Some(waker) = &waker {
                waker.drain();
            }
        }
        Ok(())
    }

    /// As [`get_ready`](Self::get_ready), in the poll of a runtime.
    #[cfg(feature = "tokio")]
    pub(super) async fn get_ready_async(
        &mut self,
        waits: &[Wait],
        limit: Duration,
    ) -> Result<(), Error> {
        if waits.is_empty() {
            return Ok(());
        }
        let waker = self.log_waker()?;
        let mut ready = Readiness::new(waits, limit, self);
        while !ready.is_met(self)? {
            let (all, next) = {
                let (sources, next) = ready.sources(self, waker.as_ref());
                let all = super::asynchronous::any_of(&sources);
                let cannot = |error| Error::io("cannot wait for the sandbox", error);
                (all.map_err(cannot)?, next)
            };
            super::asynchronous::readable(vec![all], Some(next)).await?;
            if let Some(waker) = &waker {
                waker.drain();
            }
        }
        Ok(())
    }

    fn log_waker(&self) -> Result<Option<LogWaker>, Error> {
        let log = self.reader.as_ref().map(|reader| Arc::clone(reader.log()));
        log.map(LogWaker::new)
            .transpose()
            .map_err(|error| Error::io("cannot wait for the log", error))
    }
}

/// What is polled, and for what.
pub(super) type Source<'a> = (BorrowedFd<'a>, PollFlags);

/// A wait under way.
struct Readiness {
    started: Instant,
    limit: Duration,
    /// All must be met.
    nodes: Vec<Node>,
    pid: Option<u32>,
}

/// One wait, and how far it came.
struct Node {
    what: String,
    met: Option<Duration>,
    /// What was seen last.
    seen: String,
    leaf: Leaf,
    pauses: Pauses,
}

/// Longer and longer pauses between two looks at what tells nobody of its changes.
struct Pauses {
    next: Option<Instant>,
    pause: Duration,
    most: Duration,
}

#[expect(clippy::large_enum_variant, reason = "there are few, and for a moment")]
enum Leaf {
    Port(u16),
    Log {
        regex: Option<Regex>,
        stream: Option<LogStream>,
        times: usize,
        count: usize,
        next_line: usize,
    },
    Http {
        wait: HttpWait,
        trial: Option<HttpTry>,
        /// Whether one has come to its end before there was no time left.
        was_answered: bool,
    },
    Exec {
        check: HealthCheck,
        words: Vec<std::ffi::OsString>,
        code: i32,
        /// With what it writes.
        running: Option<(Exec, File)>,
        /// Where failures count: how many there were, and when the last was.
        failures: Option<(u32, Option<Instant>)>,
    },
    File {
        path: PathBuf,
        watch: Option<OwnedFd>,
    },
    Exit(i32),
    All(Vec<Node>),
    Any(Vec<Node>),
}

impl Pauses {
    fn new((first, most): (Duration, Duration)) -> Self {
        Self {
            next: None,
            pause: first,
            most,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    fn begin(&mut self, now: Instant) {
        self.next = Some(now + self.pause);
        self.pause = (self.pause * 2).min(self.most);
    }
}

impl Readiness {
    fn new(waits: &[Wait], limit: Duration, sandbox: &Sandbox) -> Self {
        Self {
            started: Instant::now(),
            limit: limit.min(LONGEST),
            nodes: waits.iter().map(|wait| Node::new(wait, sandbox)).collect(),
            pid: sandbox.pid(),
        }
    }

    /// Looks at everything once. Whether all came true.
    fn is_met(&mut self, sandbox: &mut Sandbox) -> Result<bool, Error> {
        let deadline = self.started + self.limit;
        while has_event(sandbox)? {}
        sandbox.take_end_of_main(false)?;
        let has_ended = sandbox.exit.is_some() || sandbox.gone.is_some();
        if has_ended && let Some(reader) = &mut sandbox.reader {
            // All that will be written is there.
            reader.finish();
        }
        let mut is_met = true;
        for node in &mut self.nodes {
            match node.check(sandbox, self.started, self.pid, deadline) {
                Ok(met) => is_met &= met,
                Err(why) => return Err(self.not_ready(sandbox, Why::Failed(why))),
            }
        }
        if is_met {
            return Ok(true);
        }
        if has_ended {
            let outcome = sandbox.wait()?;
            let notes = outcome.notes.iter().map(ToString::to_string).collect();
            return Err(self.not_ready(sandbox, Why::Ended(outcome.status, notes)));
        }
        if Instant::now() >= deadline {
            return Err(self.not_ready(sandbox, Why::TimedOut(self.limit)));
        }
        Ok(false)
    }

    /// What to poll before the next look, and until when at the latest.
    fn sources<'a>(
        &'a self,
        sandbox: &'a Sandbox,
        waker: Option<&'a LogWaker>,
    ) -> (Vec<Source<'a>>, Instant) {
        let mut next = self.started + self.limit;
        let mut sources = vec![(sandbox.core.events.as_fd(), PollFlags::IN)];
        let main = sandbox.main.iter();
        sources.extend(main.map(|main| (main.end().as_fd(), PollFlags::IN)));
        sources.extend(waker.map(|waker| (waker.fd().as_fd(), PollFlags::IN)));
        for node in &self.nodes {
            node.sources(&mut sources, &mut next);
        }
        (sources, next)
    }

    fn not_ready(&self, sandbox: &Sandbox, why: Why) -> Error {
        let mut waits = Vec::new();
        for node in &self.nodes {
            node.tell(&mut waits);
        }
        let tail = sandbox.reader.as_ref().map(|it| it.log().tail(SHOWN_LINES));
        NotReady {
            sandbox: sandbox.title(),
            why,
            after: self.started.elapsed(),
            waits,
            tail: tail.unwrap_or_default(),
            few_ids: sandbox.core.few_ids.clone(),
        }
        .into()
    }
}

impl Node {
    fn new(wait: &Wait, sandbox: &Sandbox) -> Self {
        let nodes = |waits: &[Wait]| waits.iter().map(|wait| Self::new(wait, sandbox)).collect();
        let (leaf, pauses) = match &wait.kind {
            WaitKind::Port(port) => (Leaf::Port(*port), PORT_PAUSES),
            WaitKind::Log {
                pattern,
                regex,
                stream,
                times,
            } => {
                let leaf = Leaf::Log {
                    regex: regex.clone().or_else(|| Regex::new(pattern).ok()),
                    stream: *stream,
                    times: *times,
                    count: 0,
                    next_line: sandbox.first_line,
                };
                (leaf, PORT_PAUSES)
            }
            WaitKind::Http(wait) => {
                let wait = wait.clone();
                (
                    Leaf::Http {
                        wait,
                        trial: None,
                        was_answered: false,
                    },
                    HTTP_PAUSES,
                )
            }
            WaitKind::Exec { words, code } => {
                let leaf = Leaf::Exec {
                    check: HealthCheck::new(Vec::<String>::new()).timeout(Duration::MAX),
                    words: words.clone(),
                    code: *code,
                    running: None,
                    failures: None,
                };
                (leaf, EXEC_PAUSES)
            }
            WaitKind::Healthcheck => {
                // Who is waited for in this way was found to have one.
                let check = sandbox.healthcheck.clone();
                let check = check.unwrap_or_else(|| HealthCheck::new(["false"]));
                let most = check.interval.min(EXEC_PAUSES.1);
                let leaf = Leaf::Exec {
                    words: check.words.iter().map(Into::into).collect(),
                    check,
                    code: 0,
                    running: None,
                    failures: Some((0, None)),
                };
                (leaf, (EXEC_PAUSES.0, most))
            }
            WaitKind::File(path) => {
                let (path, watch) = (path.clone(), None);
                (Leaf::File { path, watch }, (FILE_PAUSES.0, FILE_PAUSES.0))
            }
            WaitKind::Exit(code) => (Leaf::Exit(*code), PORT_PAUSES),
            WaitKind::All(waits) => (Leaf::All(nodes(waits)), PORT_PAUSES),
            WaitKind::Any(waits) => (Leaf::Any(nodes(waits)), PORT_PAUSES),
        };
        Self {
            what: wait.to_string(),
            met: None,
            seen: String::new(),
            leaf,
            pauses: Pauses::new(pauses),
        }
    }

    /// Whether it is met by now; why it never will be.
    fn check(
        &mut self,
        sandbox: &mut Sandbox,
        started: Instant,
        pid: Option<u32>,
        deadline: Instant,
    ) -> Result<bool, String> {
        if self.met.is_none() && self.look(sandbox, started, pid, deadline)? {
            self.met = Some(started.elapsed());
        }
        Ok(self.met.is_some())
    }

    fn look(
        &mut self,
        sandbox: &mut Sandbox,
        started: Instant,
        pid: Option<u32>,
        deadline: Instant,
    ) -> Result<bool, String> {
        let now = Instant::now();
        let (pauses, seen) = (&mut self.pauses, &mut self.seen);
        match &mut self.leaf {
            Leaf::All(nodes) => {
                let mut is_met = true;
                for node in nodes {
                    is_met &= node.check(sandbox, started, pid, deadline)?;
                }
                Ok(is_met)
            }
            Leaf::Any(nodes) => {
                let mut failed = Vec::new();
                let count = nodes.len();
                for node in nodes {
                    match node.check(sandbox, started, pid, deadline) {
                        Ok(true) => return Ok(true),
                        Ok(false) => {}
                        Err(why) => failed.push(why),
                    }
                }
                if failed.len() == count {
                    return Err(failed.join("; "));
                }
                Ok(false)
            }
            Leaf::Exit(code) => match (&sandbox.exit, &sandbox.gone) {
                (Some(exit), _) => {
                    *seen = exit.status.to_string();
                    Ok(exit.status == crate::outcome::Status::Exited(*code))
                }
                _ => Ok(false),
            },
            Leaf::Log {
                regex,
                stream,
                times,
                count,
                next_line,
            } => {
                let Some(reader) = &sandbox.reader else {
                    return Err(
                        "its output is not captured, so no log can be waited for".to_owned()
                    );
                };
                while let Some((number, line)) = reader.log().line_from(*next_line) {
                    *next_line = number + 1;
                    let is_wanted = stream.is_none_or(|wanted| wanted == line.stream);
                    if is_wanted && regex.as_ref().is_some_and(|it| it.is_match(&line.text)) {
                        *count += 1;
                    }
                }
                *seen = format!("{count} of {next_line} lines matched");
                Ok(*count >= *times)
            }
            Leaf::Port(port) => {
                if !pauses.is_over(now) {
                    return Ok(false);
                }
                pauses.begin(now);
                Ok(pid.is_some_and(|pid| super::http::listens(pid, *port)))
            }
            Leaf::Http {
                wait,
                trial,
                was_answered,
            } => {
                if trial.is_none() && pauses.is_over(now) {
                    pauses.begin(now);
                    if !pid.is_some_and(|pid| super::http::listens(pid, wait.port)) {
                        "nothing listens there".clone_into(seen);
                        return Ok(false);
                    }
                    // Not longer than there is time for.
                    let until = deadline.min(now + HTTP_PATIENCE);
                    let patience = until.saturating_duration_since(now);
                    match sandbox.begin_to_connect(wait.port, patience) {
                        Ok(stream) => match HttpTry::start(stream, wait, until) {
                            Ok(started) => *trial = Some(started),
                            Err(error) => *seen = error.to_string(),
                        },
                        Err(error) => *seen = error.to_string(),
                    }
                }
                let Some(current) = trial else {
                    return Ok(false);
                };
                match current.proceed(wait, now) {
                    None => Ok(false),
                    Some(Ok(())) => Ok(true),
                    Some(Err(why)) => {
                        // The last, cut off by the end of the time, says less than an answer before it.
                        if now < deadline || !*was_answered {
                            *seen = why;
                        }
                        *was_answered |= now < deadline;
                        *trial = None;
                        pauses.begin(now);
                        Ok(false)
                    }
                }
            }
            Leaf::Exec {
                check,
                words,
                code,
                running,
                failures,
            } => {
                if running.is_none() && pauses.is_over(now) {
                    match start_check(sandbox, words, check.timeout) {
                        Ok(started) => *running = Some(started),
                        Err(error) => {
                            *seen = error.to_string();
                            pauses.begin(now);
                        }
                    }
                }
                let Some((exec, output)) = running else {
                    return Ok(false);
                };
                let outcome = match exec.wait_timeout(Duration::ZERO) {
                    Ok(Some(outcome)) => outcome,
                    Ok(None) => return Ok(false),
                    Err(error) => {
                        *seen = error.to_string();
                        *running = None;
                        pauses.begin(now);
                        return Ok(false);
                    }
                };
                if outcome.status == crate::outcome::Status::Exited(*code) {
                    return Ok(true);
                }
                *seen = describe(&outcome, output);
                *running = None;
                pauses.begin(now);
                if let Some((count, last)) = failures {
                    // As often as it would have been tried.
                    let counts = started.elapsed() >= check.start_period
                        && last.is_none_or(|last| now.duration_since(last) >= check.interval);
                    if counts {
                        *count += 1;
                        *last = Some(now);
                        if *count >= check.retries.max(1) {
                            return Err(format!(
                                "its health check failed {count} times in a row: {seen}"
                            ));
                        }
                    }
                }
                Ok(false)
            }
            Leaf::File { path, watch } => {
                let is_changed = watch.as_ref().is_some_and(drain_watch);
                if !is_changed && !pauses.is_over(now) {
                    return Ok(false);
                }
                // Before the look: what comes between them is told.
                if watch.is_none() || is_changed {
                    *watch = watch_for(sandbox, path);
                    pauses.pause = if watch.is_some() {
                        FILE_PAUSES.1
                    } else {
                        FILE_PAUSES.0
                    };
                    pauses.most = pauses.pause;
                }
                pauses.begin(now);
                match sandbox.core.has_file(path) {
                    Ok(found) => Ok(found),
                    Err(error) => {
                        *seen = error.to_string();
                        Ok(false)
                    }
                }
            }
        }
    }

    /// What to poll, and when to look again at the latest.
    fn sources<'a>(&'a self, fds: &mut Vec<Source<'a>>, next: &mut Instant) {
        if self.met.is_some() {
            return;
        }
        let mut at = |when: Option<Instant>| *next = when.map_or(*next, |when| when.min(*next));
        match &self.leaf {
            Leaf::All(nodes) | Leaf::Any(nodes) => {
                for node in nodes {
                    node.sources(fds, next);
                }
            }
            Leaf::Log { .. } | Leaf::Exit(_) => {}
            Leaf::Port(_) => at(self.pauses.next),
            Leaf::Http { trial, .. } => match trial {
                Some(trial) => {
                    let sending = if trial.is_sending() {
                        PollFlags::OUT
                    } else {
                        PollFlags::empty()
                    };
                    fds.push((trial.as_fd(), PollFlags::IN | sending));
                    at(Some(trial.deadline()));
                }
                None => at(self.pauses.next),
            },
            Leaf::Exec { running, check, .. } => match running {
                Some((exec, _)) => {
                    fds.push((exec.end().as_fd(), PollFlags::IN));
                    at(exec.started().checked_add(check.timeout));
                }
                None => at(self.pauses.next),
            },
            Leaf::File { watch, .. } => {
                fds.extend(watch.iter().map(|watch| (watch.as_fd(), PollFlags::IN)));
                at(self.pauses.next);
            }
        }
    }

    fn tell(&self, waits: &mut Vec<Progress>) {
        if let Leaf::All(nodes) | Leaf::Any(nodes) = &self.leaf {
            return nodes.iter().for_each(|node| node.tell(waits));
        }
        waits.push(Progress {
            what: self.what.clone(),
            met: self.met,
            seen: self.seen.clone(),
        });
    }
}

/// Takes an event of the sandbox, if there is one.
pub(super) fn has_event(sandbox: &mut Sandbox) -> Result<bool, Error> {
    if sandbox.gone.is_some() || sandbox.exit.is_some() {
        return Ok(false);
    }
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::new(&sandbox.core.events, PollFlags::IN)];
    if !rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0) {
        return Ok(false);
    }
    if sandbox.take_event()? {
        Ok(true)
    } else {
        Err(Kind::Vanished.into())
    }
}

/// Starts a check, whose output goes to a file in memory: no pipe can fill and hold it up.
fn start_check(
    sandbox: &Sandbox,
    words: &[std::ffi::OsString],
    timeout: Duration,
) -> Result<(Exec, File), Error> {
    let cannot = |error| Error::io("cannot keep the output of a check", error);
    let memory = rustix::fs::memfd_create("orbit-check", MemfdFlags::CLOEXEC);
    let output = File::from(memory.map_err(|error| cannot(error.into()))?);
    let copy = || {
        output
            .try_clone()
            .map(|file| Output::Fd(file.into()))
            .map_err(cannot)
    };
    let mut exec = ExecBuilder::new(&sandbox.core, words.to_vec())
        .stdout(copy()?)
        .stderr(copy()?);
    if timeout < Duration::MAX {
        exec = exec.timeout(timeout);
    }
    Ok((exec.start()?, output))
}

/// How a check ended, and the last line it wrote.
fn describe(outcome: &Outcome, output: &mut File) -> String {
    const READ_BYTES: u64 = 4096;
    let mut bytes = Vec::new();
    let _ = std::io::Seek::rewind(output);
    let _ = output.take(READ_BYTES).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    match text.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => format!("{}: {}", outcome.status, line.trim().escape_debug()),
        None => outcome.status.to_string(),
    }
}

/// What becomes readable when something changes in the directory of `path`, or in the closest one above it that is
/// there. `None` where this process may not watch it: it may belong to a user inside.
fn watch_for(sandbox: &Sandbox, path: &Path) -> Option<OwnedFd> {
    let handles = sandbox.core.handles("watch for a file").ok()?;
    let root = handles.first()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let directory = path
        .ancestors()
        .skip(1)
        .find_map(|above| rustix::fs::openat2(root, above, flags, Mode::empty(), resolve).ok())?;
    let created = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(created).ok()?;
    let changes = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVE_SELF
        | inotify::WatchFlags::DELETE_SELF;
    let at = format!("/proc/self/fd/{}", directory.as_raw_fd());
    inotify::add_watch(&watch, at, changes).ok()?;
    Some(watch)
}

/// Whether there was a change.
fn drain_watch(watch: &OwnedFd) -> bool {
    let mut buffer = [0u8; 4096];
    let mut found = false;
    while rustix::io::read(watch, &mut buffer).is_ok_and(|count| count > 0) {
        found = true;
    }
    found
}
