//! Several tests of one binary in one sandbox, as `cargo test` would run them: their verdicts are read from what the binary says,
//! while it says it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use orbit::{Killer, Output, SandboxBuilder, Stdin};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};

use super::{
    attempt::{self, Ground, Streams},
    event::{Attempt, Verdict},
    libtest::{self, Said, Told},
};

/// What a binary's tests are run with.
#[derive(Debug)]
pub(crate) struct Group {
    /// In the order in which the binary listed them.
    pub(crate) names: Vec<Arc<str>>,
    /// Whether these are all that it would run without being told names.
    pub(crate) is_all: bool,
    pub(crate) has_ignored: bool,
    pub(crate) threads: usize,
    /// How long one test may take.
    pub(crate) timeout: Option<Duration>,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Gone {
    /// Of the binary as a whole.
    pub(crate) attempt: Attempt,
    pub(crate) told: Told,
    /// From when to when each test ran, since the start of the run.
    pub(crate) times: BTreeMap<Arc<str>, (Duration, Duration)>,
}

impl Group {
    /// The arguments for the binary, before those that the user has for it.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![format!("--test-threads={}", self.threads).into()];
        if self.has_ignored {
            arguments.push("--include-ignored".into());
        }
        if !self.is_all {
            arguments.push("--exact".into());
            arguments.extend(self.names.iter().map(|name| OsString::from(&**name)));
        }
        arguments
    }

    /// Runs the tests in `sandbox`, and says of each that has passed, at once: with when it began and ended.
    pub(crate) fn run(
        &self,
        ground: &Ground,
        title: &str,
        sandbox: SandboxBuilder,
        mut passed: impl FnMut(&Arc<str>, Duration, Duration) + Send,
    ) -> Gone {
        let (reader, writer) = match pipe_with(PipeFlags::CLOEXEC) {
            Ok(pipe) => pipe,
            Err(error) => return Gone::not_run(ground, &error.into()),
        };
        let sandbox = sandbox
            .stdin(Stdin::Null)
            .stdout(Output::Fd(writer))
            .stderr(Output::Capture);
        let began = ground.began.elapsed();
        thread::scope(|scope| {
            let mut listener = Listener::new(self, ground.began, began);
            let mut reading = None;
            let attempt = attempt::run_with(ground, title, sandbox, Streams::AsTheyAre, |killer| {
                reading = Some(scope.spawn(move || {
                    listener.listen(&reader, &killer, &mut passed);
                    listener
                }));
            });
            let mut gone = Gone {
                attempt,
                told: Told::default(),
                times: BTreeMap::new(),
            };
            let Some(Ok(listener)) = reading.map(thread::ScopedJoinHandle::join) else {
                return gone;
            };
            if let (Some(limit), Verdict::Killed { .. }) =
                (listener.timed_out, &gone.attempt.verdict)
            {
                gone.attempt.verdict = Verdict::TimedOut { limit };
            }
            gone.told = libtest::told(&listener.output, |name| listener.index.contains_key(name));
            gone.times = listener.times;
            gone.attempt.stdout = listener.output;
            gone
        })
    }
}

impl Gone {
    fn not_run(ground: &Ground, error: &io::Error) -> Self {
        let why = format!("cannot read what the tests say: {error}");
        Self::of(Attempt {
            started: ground.began.elapsed(),
            ..Attempt::new(Verdict::SetupFailed { why }, super::event::Used::default())
        })
    }

    /// Of which nothing was heard.
    pub(crate) fn of(attempt: Attempt) -> Self {
        Self {
            attempt,
            told: Told::default(),
            times: BTreeMap::new(),
        }
    }
}

/// Reads what a binary says, line by line.
struct Listener {
    index: BTreeMap<Arc<str>, usize>,
    threads: usize,
    timeout: Option<Duration>,
    clock: Instant,
    began: Duration,
    /// When each verdict came, in their order.
    ends: Vec<Duration>,
    times: BTreeMap<Arc<str>, (Duration, Duration)>,
    output: Vec<u8>,
    /// Where the line begins that is not whole yet.
    line: usize,
    timed_out: Option<Duration>,
}

impl Listener {
    fn new(group: &Group, clock: Instant, began: Duration) -> Self {
        let names = group.names.iter().cloned();
        Self {
            index: names
                .enumerate()
                .map(|(index, name)| (name, index))
                .collect(),
            threads: group.threads,
            timeout: group.timeout,
            clock,
            began,
            ends: Vec::new(),
            times: BTreeMap::new(),
            output: Vec::new(),
            line: 0,
            timed_out: None,
        }
    }

    /// Reads to the end. Where no verdict comes for as long as one test may take, everything that runs now has run for
    /// longer, and is killed.
    fn listen(
        &mut self,
        reader: &OwnedFd,
        killer: &Killer,
        passed: &mut impl FnMut(&Arc<str>, Duration, Duration),
    ) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let last = self.ends.last().copied().unwrap_or(self.began);
            let left = self
                .timeout
                .filter(|_| self.timed_out.is_none())
                .map(|limit| (last + limit).saturating_sub(self.clock.elapsed()));
            let mut polled = [PollFd::new(reader, PollFlags::IN)];
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut polled, left.as_ref()) {
                Ok(0) => {
                    self.timed_out = self.timeout;
                    killer.kill();
                    continue;
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            }
            match rustix::io::read(reader, &mut buffer[..]) {
                Ok(0) => return,
                Ok(length) => self.take(&buffer[..length], passed),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, bytes: &[u8], passed: &mut impl FnMut(&Arc<str>, Duration, Duration)) {
        self.output.extend_from_slice(bytes);
        while let Some(length) = self.output[self.line..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = self.line..self.line + length;
            self.line += length + 1;
            let Some((name, said)) = std::str::from_utf8(&self.output[line])
                .ok()
                .and_then(libtest::verdict)
            else {
                continue;
            };
            let Some((name, index)) = self.index.get_key_value(name) else {
                continue;
            };
            if self.times.contains_key(name) {
                continue;
            }
            let ended = self.clock.elapsed();
            // The harness starts tests in the order in which it lists them, the next when one has ended.
            let started = index
                .checked_sub(self.threads)
                .and_then(|before| self.ends.get(before).copied())
                .unwrap_or(self.began);
            self.times.insert(name.clone(), (started, ended));
            self.ends.push(ended);
            if said == Said::Passed {
                passed(name, started, ended);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(is_all: bool) -> Group {
        Group {
            names: ["a", "b", "c"].map(Arc::from).to_vec(),
            is_all,
            has_ignored: false,
            threads: 2,
            timeout: None,
        }
    }

    #[test]
    fn names_are_given_where_not_all_run() {
        let words = |group: &Group| {
            let words: Vec<_> = group.arguments();
            words.join(" ".as_ref()).into_string().unwrap()
        };
        assert_eq!(words(&group(true)), "--test-threads=2");
        let some = Group {
            has_ignored: true,
            ..group(false)
        };
        assert_eq!(
            words(&some),
            "--test-threads=2 --include-ignored --exact a b c"
        );
    }

    #[test]
    fn verdicts_are_heard_as_they_come() {
        let mut listener = Listener::new(&group(true), Instant::now(), Duration::ZERO);
        let mut heard = Vec::new();
        let mut passed = |name: &Arc<str>, started, ended| {
            assert!(started <= ended);
            heard.push(name.to_string());
        };
        listener.take(b"\nrunning 3 tests\ntest a ... ok\ntest b ...", &mut passed);
        listener.take(
            b" FAILED\ntest a ... ok\ntest zzz ... ok\ntest c ... ok",
            &mut passed,
        );
        listener.take(b"\n", &mut passed);
        assert_eq!(heard, ["a", "c"]);
        // The third began when the first ended.
        assert_eq!(listener.times["c"].0, listener.ends[0]);
        assert_eq!(listener.times.len(), 3);
    }
}
