//! Several tests of one binary in one sandbox, as `cargo test` would run them: their verdicts are read from what the binary says,
//! while it says it.
//!
//! When each began is not said, but known: the harness starts them in the order in which it lists them, the next when one
//! has ended.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
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
    ends::Ends,
    event::{Attempt, Verdict},
    libtest::{Reader, Said, Told},
};

/// More than this of all that a binary prints is cut in its middle.
const OUTPUT_MOST_BYTES: usize = 1 << 20;

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
    /// What passed tests printed is wanted too: the harness says it when all have ended.
    pub(crate) show_output: bool,
}

/// When a test ran, since the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) started: Duration,
    /// Absent where its binary ended first.
    pub(crate) ended: Option<Duration>,
    /// Which of the binary's threads ran it, from 0.
    pub(crate) slot: usize,
}

/// What is heard while the binary runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    Started(&'a Arc<str>, Span),
    Ended(&'a Arc<str>, Said, Span),
    /// No test is left for this thread.
    Idle {
        slot: usize,
    },
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Gone {
    /// Of the binary as a whole.
    pub(crate) attempt: Attempt,
    pub(crate) told: Told,
    /// Of each test that has begun.
    pub(crate) spans: BTreeMap<Arc<str>, Span>,
}

impl Group {
    /// The arguments for the binary, before those that the user has for it.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![format!("--test-threads={}", self.threads).into()];
        if self.has_ignored {
            arguments.push("--include-ignored".into());
        }
        if self.show_output {
            arguments.push("--show-output".into());
        }
        if !self.is_all {
            arguments.push("--exact".into());
            arguments.extend(self.names.iter().map(|name| OsString::from(&**name)));
        }
        arguments
    }

    /// Runs the tests in `sandbox`, and says what is heard of them, at once.
    pub(crate) fn run(
        &self,
        ground: &Ground,
        title: &str,
        sandbox: SandboxBuilder,
        mut heard: impl FnMut(Heard<'_>) + Send,
    ) -> Gone {
        let not_run = |error: io::Error| {
            let why = format!("cannot hear what the tests say: {error}");
            Gone::of(attempt::not_run(ground, why))
        };
        let (reader, writer) = match pipe_with(PipeFlags::CLOEXEC) {
            Ok(pipe) => pipe,
            Err(error) => return not_run(error.into()),
        };
        let sandbox = sandbox
            .stdin(Stdin::Null)
            .stdout(Output::Fd(writer))
            .stderr(Output::Capture);
        let (begin, begun) = mpsc::channel();
        thread::scope(|scope| {
            // Before the sandbox, which needs no thread then that might not be had.
            let listening = thread::Builder::new().spawn_scoped(scope, move || {
                let mut listener = Listener::new(self, ground.began);
                // Else there is no sandbox to listen to.
                if let Ok(killer) = begun.recv() {
                    listener.listen(&reader, &killer, &mut heard);
                }
                listener.end()
            });
            let mut listening = match listening {
                Ok(listening) => Some(listening),
                Err(error) => return not_run(error),
            };
            let mut listened = None;
            let mut hear_out = || listening.take().and_then(|it| it.join().ok());
            let mut attempt = attempt::run_with(
                ground,
                title,
                sandbox,
                Streams::AsTheyAre,
                move |killer| {
                    // It listens as long as we do not end.
                    let _ = begin.send(killer);
                },
                || {
                    // Those that have no verdict run again, and are kept where they fail then.
                    listened = hear_out();
                    listened
                        .as_ref()
                        .is_none_or(|it: &Listened| !it.has_orphans(self.names.len()))
                },
            );
            let Some(listened) = listened.or_else(hear_out) else {
                return Gone::of(attempt);
            };
            if let (Some(limit), Verdict::Killed { .. }) = (listened.timed_out, &attempt.verdict) {
                attempt.verdict = Verdict::TimedOut { limit };
            }
            attempt.stdout = listened.output;
            Gone {
                attempt,
                told: listened.told,
                spans: listened.spans,
            }
        })
    }
}

impl Gone {
    /// Of which nothing was heard.
    pub(crate) fn of(attempt: Attempt) -> Self {
        Self {
            attempt,
            told: Told::default(),
            spans: BTreeMap::new(),
        }
    }
}

/// Reads what a binary says, as it comes.
struct Listener<'a> {
    names: &'a [Arc<str>],
    index: BTreeMap<&'a str, &'a Arc<str>>,
    timeout: Option<Duration>,
    clock: Instant,
    reader: Reader,
    output: Ends,
    spans: BTreeMap<Arc<str>, Span>,
    /// What each thread runs, since when.
    running: Vec<Option<(&'a Arc<str>, Duration)>>,
    /// The place of the first name that has not begun.
    next: usize,
    /// When the last verdict came, or all began.
    last: Duration,
    /// Whether every test that ended had begun, as far as can be known: else the harness has an order of its own, or a test
    /// wrote what looks like a verdict.
    is_in_order: bool,
    timed_out: Option<Duration>,
}

/// All that was heard.
struct Listened {
    told: Told,
    spans: BTreeMap<Arc<str>, Span>,
    output: Vec<u8>,
    timed_out: Option<Duration>,
}

impl Listened {
    fn has_orphans(&self, tests: usize) -> bool {
        self.told.verdicts.len() < tests
    }
}

impl<'a> Listener<'a> {
    fn new(group: &'a Group, clock: Instant) -> Self {
        Self {
            names: &group.names,
            index: group.names.iter().map(|name| (&**name, name)).collect(),
            timeout: group.timeout,
            clock,
            reader: Reader::default(),
            output: Ends::new(OUTPUT_MOST_BYTES),
            spans: BTreeMap::new(),
            running: vec![None; group.threads],
            next: 0,
            last: Duration::ZERO,
            is_in_order: true,
            timed_out: None,
        }
    }

    /// Reads to the end. What runs for longer than one test may is killed, with all beside it: which test it was that hung is
    /// seen when each runs alone.
    fn listen(&mut self, reader: &OwnedFd, killer: &Killer, heard: &mut impl FnMut(Heard<'_>)) {
        self.begin(self.clock.elapsed(), heard);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let left = self
                .deadline()
                .map(|deadline| deadline.saturating_sub(self.clock.elapsed()));
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
                Ok(length) => self.take(&buffer[..length], self.clock.elapsed(), heard),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// When the first of those that run has run for as long as it may. Where it is not known what runs, it is that no verdict
    /// has come for as long.
    fn deadline(&self) -> Option<Duration> {
        let limit = self.timeout.filter(|_| self.timed_out.is_none())?;
        let running = self.running.iter().flatten().map(|(_, since)| *since);
        let since = running.min().filter(|_| self.is_in_order);
        Some(since.unwrap_or(self.last) + limit)
    }

    fn begin(&mut self, now: Duration, heard: &mut impl FnMut(Heard<'_>)) {
        self.last = now;
        for slot in 0..self.running.len() {
            self.start_next(slot, now, heard);
        }
    }

    fn start_next(&mut self, slot: usize, now: Duration, heard: &mut impl FnMut(Heard<'_>)) {
        self.running[slot] = None;
        while let Some(name) = self.names.get(self.next) {
            self.next += 1;
            if self.spans.contains_key(name) {
                continue;
            }
            let span = Span {
                started: now,
                ended: None,
                slot,
            };
            self.spans.insert(name.clone(), span);
            self.running[slot] = Some((name, now));
            heard(Heard::Started(name, span));
            return;
        }
        heard(Heard::Idle { slot });
    }

    fn take(&mut self, bytes: &[u8], now: Duration, heard: &mut impl FnMut(Heard<'_>)) {
        self.output.push(bytes);
        let index = &self.index;
        let mut verdicts = Vec::new();
        self.reader.push(
            bytes,
            &|name| index.contains_key(name),
            &mut |name, said| verdicts.extend(index.get(name).map(|name| (*name, said))),
        );
        for (name, said) in verdicts {
            self.last = now;
            match self.spans.get_mut(name) {
                Some(span) if span.ended.is_none() => {
                    span.ended = Some(now);
                    let span = *span;
                    heard(Heard::Ended(name, said, span));
                    self.start_next(span.slot, now, heard);
                }
                // That it failed after all is told with the rest, in the end.
                Some(_) => {}
                None => self.is_in_order = false,
            }
        }
    }

    fn end(self) -> Listened {
        let index = self.index;
        Listened {
            told: self.reader.end(&|name| index.contains_key(name)),
            spans: self.spans,
            output: self.output.into_bytes(),
            timed_out: self.timed_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(is_all: bool) -> Group {
        Group {
            names: ["a", "b", "c", "d"].map(Arc::from).to_vec(),
            is_all,
            has_ignored: false,
            threads: 2,
            timeout: None,
            show_output: false,
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
            show_output: true,
            ..group(false)
        };
        assert_eq!(
            words(&some),
            "--test-threads=2 --include-ignored --show-output --exact a b c d"
        );
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What is heard of a binary that says these things at these seconds, in short.
    fn hear(listener: &mut Listener<'_>, says: &[(u64, &str)]) -> Vec<String> {
        let mut all = Vec::new();
        let mut heard = |heard: Heard<'_>| {
            all.push(match heard {
                Heard::Started(name, span) => {
                    format!("{name} from {} in {}", span.started.as_secs(), span.slot)
                }
                Heard::Ended(name, said, span) => {
                    let ended = span.ended.unwrap().as_secs();
                    format!("{name} {said:?} {} to {ended}", span.started.as_secs())
                }
                Heard::Idle { slot } => format!("{slot} is idle"),
            });
        };
        if listener.next == 0 {
            listener.begin(at(1), &mut heard);
        }
        for (second, text) in says {
            listener.take(text.as_bytes(), at(*second), &mut heard);
        }
        all
    }

    #[test]
    fn tests_begin_when_others_have_ended() {
        let group = group(true);
        let mut listener = Listener::new(&group, Instant::now());
        let heard = hear(
            &mut listener,
            &[
                (2, "\nrunning 4 tests\ntest b ... ok\ntest a ..."),
                (3, " FAILED\n"),
                (5, "test zzz ... ok\ntest c ... ok\ntest d ... ok"),
                (6, "\n"),
            ],
        );
        assert_eq!(
            heard,
            [
                "a from 1 in 0",
                "b from 1 in 1",
                "b Passed 1 to 2",
                "c from 2 in 1",
                "a Failed 1 to 3",
                "d from 3 in 0",
                "c Passed 2 to 5",
                "1 is idle",
                "d Passed 3 to 6",
                "0 is idle",
            ]
        );
        assert!(!listener.end().has_orphans(4));
    }

    #[test]
    fn what_has_not_begun_has_not_passed_yet() {
        let group = group(true);
        let mut listener = Listener::new(&group, Instant::now());
        let heard = hear(&mut listener, &[(2, "test d ... ok\ntest a ... ok\n")]);
        assert_eq!(
            heard[2..],
            ["a Passed 1 to 2", "c from 2 in 0"],
            "d is not believed at once"
        );
        let heard = hear(
            &mut listener,
            &[(3, "test a ... FAILED\ntest d ... FAILED\n")],
        );
        assert_eq!(heard, [""; 0]);
        let told = listener.end().told;
        assert_eq!(told.verdicts["a"], Said::Failed);
        assert_eq!(told.verdicts["d"], Said::Failed);
    }

    #[test]
    fn the_time_of_one_test_is_not_that_of_another() {
        let group = Group {
            timeout: Some(at(10)),
            ..group(true)
        };
        let mut listener = Listener::new(&group, Instant::now());
        hear(
            &mut listener,
            &[(5, "test b ... ok\n"), (7, "test c ... ok\n")],
        );
        // The first still runs, whatever ends beside it.
        assert_eq!(listener.deadline(), Some(at(11)));
        hear(&mut listener, &[(9, "test a ... ok\n")]);
        assert_eq!(listener.deadline(), Some(at(17)));
        listener.is_in_order = false;
        assert_eq!(listener.deadline(), Some(at(19)));
        listener.timed_out = Some(at(10));
        assert_eq!(listener.deadline(), None);
    }
}
