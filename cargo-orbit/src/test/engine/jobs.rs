//! What a job's thread does: it makes one sandbox, or two, waits, and says what came of it.

use std::{
    any::Any,
    collections::BTreeMap,
    ffi::OsString,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use orbit::__private::prepare_ahead_if_possible;

use super::{Message, Options};
use crate::{
    config::settings::Settings,
    test::{
        attempt::{self, Ground, Streams},
        binary::TestBinary,
        doctests::Doctests,
        event::{Attempt, TestId, TestResult, Used, Verdict},
        libtest,
        lists::Tests,
        schedule::Room,
        select::RunIgnored,
        together::{Gone, Group, Heard, Span},
    },
};

/// A test to run.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(super) id: TestId,
    pub(super) binary: Arc<TestBinary>,
    pub(super) is_ignored: bool,
    pub(super) settings: Arc<Settings>,
    /// Failed ones.
    pub(super) attempts: Vec<Attempt>,
    /// Whether the program has a list of tests; if not, it is run as a whole.
    pub(super) is_listed: bool,
    /// Which group of its binary it ran in without coming to an end there.
    pub(super) orphan_of: Option<u64>,
}

pub(super) enum Job {
    List(Arc<TestBinary>, Arc<Settings>),
    Alone(Box<Task>),
    Together(Vec<Task>, Group),
    Doctests(Doctests),
}

/// What came of a job.
pub(crate) enum Done {
    /// `None`: it is no binary that lists its tests.
    Listed(Arc<TestBinary>, Result<Option<Listed>, Box<Attempt>>),
    Alone(Box<Task>, Box<Attempt>),
    Together(Vec<Task>, Box<Gone>),
    Doctests(Vec<TestResult>, Option<Box<Attempt>>),
}

/// What a binary said when it was asked for its tests.
pub(crate) struct Listed {
    pub(super) tests: Tests,
    /// Whether it said so, too, which are ignored.
    pub(super) is_whole: bool,
}

/// A job with its room, on the way to its thread. Where that never comes to be, it is told as not run: whoever waits for it
/// would wait for ever.
pub(super) struct Errand<'a> {
    pub(super) ground: &'a Ground,
    pub(super) sender: Sender<Message>,
    pub(super) load: Option<(Room, Job)>,
    /// How many more tests will follow at once.
    pub(super) following: usize,
}

impl Errand<'_> {
    /// Does the job, and says what came of it, whatever happens on the way.
    pub(super) fn run(mut self, options: &Options) {
        let Some((mut room, job)) = self.load.take() else {
            return;
        };
        let (ground, following) = (self.ground, self.following);
        let lane = room.lane();
        let lost = |why| {
            let mut attempt = attempt::not_run(ground, why);
            attempt.lane = lane;
            attempt
        };
        let done = match job {
            Job::List(binary, settings) => {
                let listed = caught(|| list(ground, options, &binary, &settings));
                let listed = listed.unwrap_or_else(|why| Err(Box::new(lost(why))));
                Done::Listed(binary, listed)
            }
            Job::Alone(task) => {
                let attempt = caught(|| alone(ground, options, &task, following));
                let mut attempt = attempt.unwrap_or_else(lost);
                attempt.lane = lane;
                Done::Alone(task, Box::new(attempt))
            }
            Job::Together(tasks, group) => {
                let sender = &self.sender;
                let gone = caught(|| together(ground, options, &tasks, &group, &mut room, sender));
                let mut gone = gone.unwrap_or_else(|why| Gone::of(lost(why)));
                gone.attempt.lane = lane;
                Done::Together(tasks, Box::new(gone))
            }
            Job::Doctests(doctests) => {
                let ended = caught(|| doctests.run(ground, lane));
                let (results, failed) = ended.unwrap_or_else(|why| (Vec::new(), Some(lost(why))));
                Done::Doctests(results, failed.map(Box::new))
            }
        };
        // The other end is gone only when nobody wants to know any more.
        let _ = self.sender.send(Message::Done(room, done));
    }
}

impl Drop for Errand<'_> {
    fn drop(&mut self) {
        let Some((room, job)) = self.load.take() else {
            return;
        };
        let why = "no thread could be started for it".to_owned();
        let attempt = Box::new(attempt::not_run(self.ground, why));
        let _ = self.sender.send(Message::Done(room, job.not_run(attempt)));
    }
}

impl Job {
    /// The first of the tests that it runs.
    pub(super) fn first(&self) -> Option<&TestId> {
        match self {
            Self::Alone(task) => Some(&task.id),
            Self::Together(tasks, _) => tasks.first().map(|task| &task.id),
            Self::List(..) | Self::Doctests(_) => None,
        }
    }

    fn not_run(self, attempt: Box<Attempt>) -> Done {
        match self {
            Self::List(binary, _) => Done::Listed(binary, Err(attempt)),
            Self::Alone(task) => Done::Alone(task, attempt),
            Self::Together(tasks, _) => Done::Together(tasks, Box::new(Gone::of(*attempt))),
            Self::Doctests(_) => Done::Doctests(Vec::new(), Some(attempt)),
        }
    }
}

/// What `job` comes to; where it panics, what it said. The panic itself is on standard error.
fn caught<T>(job: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(job)).map_err(|panic: Box<dyn Any + Send>| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("a fault of Orbit: {}", said.unwrap_or("a panic"))
    })
}

/// Turns a pass into a failure where the settings want it.
pub(super) fn by_policy(attempt: &mut Attempt, settings: &Settings) {
    if !attempt.verdict.passed() {
        return;
    }
    if settings.leak_fails() && !attempt.leaked.is_empty() {
        attempt.verdict = Verdict::Leaked;
    } else if settings.reach_out_fails() && !attempt.denied.is_empty() {
        attempt.verdict = Verdict::ReachedOut;
    }
}

/// The tests of a binary, and which of them are ignored; `None` where it is no such binary.
fn list(
    ground: &Ground,
    options: &Options,
    binary: &Arc<TestBinary>,
    settings: &Settings,
) -> Result<Option<Listed>, Box<Attempt>> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let words = |more: &[&str]| -> Vec<OsString> {
        let words = ["--list", "--format", "terse"].iter().chain(more);
        words
            .map(OsString::from)
            .chain(options.arguments.iter().cloned())
            .collect()
    };
    let sandbox = ground.sandbox(binary, settings, words(&[]));
    let again = ground.command(binary, words(&["--ignored"]));
    let (all, ignored) = attempt::run_twice(ground, sandbox, PATIENCE, again);
    if matches!(
        all.verdict,
        Verdict::SetupFailed { .. } | Verdict::Interrupted
    ) {
        return Err(Box::new(all));
    }
    if binary.has_harness && !all.verdict.passed() {
        return Err(Box::new(all));
    }
    // A program with a `main` of its own may take the question for a reason to fail, or to run.
    let Some(names) = libtest::listed(&all.stdout).filter(|_| all.verdict.passed()) else {
        return Ok(None);
    };
    if names.is_empty() {
        // A `main` of its own may say nothing, whatever it is asked.
        return Ok(binary.has_harness.then(|| Listed {
            tests: Vec::new(),
            is_whole: true,
        }));
    }
    let ignored = ignored.or_else(|| {
        // Not a second time in one sandbox: as in the first place, then.
        let sandbox = ground.sandbox(binary, settings, words(&["--ignored"]));
        let sandbox = sandbox.timeout(PATIENCE);
        let attempt = attempt::run(ground, &binary.id.0, sandbox, Streams::Captured);
        attempt.verdict.passed().then_some(attempt.stdout)
    });
    let ignored = ignored.and_then(|stdout| libtest::listed(&stdout));
    let is_whole = ignored.is_some();
    let ignored = ignored.unwrap_or_default();
    let tests = names.into_iter().map(|name| {
        let is_ignored = ignored.contains(&name);
        (name, is_ignored)
    });
    Ok(Some(Listed {
        tests: tests.collect(),
        is_whole,
    }))
}

/// Runs one test in a sandbox of its own. While it runs, sandboxes for those that follow it are made.
fn alone(ground: &Ground, options: &Options, task: &Task, following: usize) -> Attempt {
    let needed = match ground.need(&task.settings) {
        Ok(needed) => needed,
        Err(attempt) => return *attempt,
    };
    let mut arguments: Vec<OsString> = Vec::new();
    if task.is_listed {
        // Told how many threads it may have, libtest need not find out: it would read the mount table and the control
        // groups, which takes longer than many a test. With more than one a test has its own, with its name. Source:
        // rust-lang/rust, library/test/src/helpers/concurrency.rs; library/std/src/sys/thread/unix.rs, `cgroups`.
        let words = ["--exact", &task.id.name, "--nocapture", "--test-threads=2"];
        arguments.extend(words.map(OsString::from));
        if task.is_ignored {
            arguments.push("--include-ignored".into());
        }
    } else if options.selection.ignored == RunIgnored::Only {
        arguments.push("--ignored".into());
    }
    arguments.extend(options.arguments.iter().cloned());
    let sandbox = ground.sandbox(&task.binary, &task.settings, arguments);
    let mut sandbox = prepare_ahead_if_possible(needed.give_to(sandbox, &task.settings), following);
    if let Some(limit) = task.settings.timeout() {
        sandbox = sandbox.timeout(limit);
    }
    let streams = if options.nocapture {
        Streams::Inherited
    } else {
        Streams::Captured
    };
    let mut attempt = attempt::run(ground, &task.id.to_string(), sandbox, streams);
    if task.is_listed && !options.nocapture {
        let (output, ended) = libtest::alone(&attempt.stdout, &task.id.name);
        if attempt.verdict.passed() && ended == Some(false) {
            attempt.verdict = Verdict::Failed { code: Some(0) };
            attempt
                .notes
                .push("it ended the process before the test was over".to_owned());
        }
        attempt.stdout = output;
    }
    by_policy(&mut attempt, &task.settings);
    attempt::blame(&mut attempt, &needed);
    attempt
}

/// Runs the tests of a group in one sandbox, and gives back the lanes that it needs no more.
fn together(
    ground: &Ground,
    options: &Options,
    tasks: &[Task],
    group: &Group,
    room: &mut Room,
    sender: &Sender<Message>,
) -> Gone {
    let (binary, settings) = (&tasks[0].binary, &tasks[0].settings);
    let needed = match ground.need(settings) {
        Ok(needed) => needed,
        Err(attempt) => return Gone::of(*attempt),
    };
    let mut arguments = group.arguments();
    arguments.extend(options.arguments.iter().cloned());
    let sandbox = ground.sandbox(binary, settings, arguments);
    let sandbox = needed.give_to(sandbox, settings);
    let by_name: BTreeMap<&str, &Task> = tasks
        .iter()
        .map(|task| (task.id.name.as_str(), task))
        .collect();
    let lanes = room.lanes().to_vec();
    let lane_of = |slot: usize| lanes.get(slot).or(lanes.first()).copied().unwrap_or(0);
    let task_of = |name: &str| by_name.get(name).map(|task| Box::new((*task).clone()));
    let mut gone = group.run(ground, &binary.id.0, sandbox, |heard| {
        let message = match heard {
            Heard::Started(name, Span { started, .. }) => {
                task_of(name).map(|task| Message::Started(task, started))
            }
            Heard::Ended(name, said, span) => task_of(name).map(|task| {
                let attempt = of_span(span, lane_of(span.slot), Verdict::Passed);
                Message::Ended(task, said, Box::new(attempt))
            }),
            Heard::Idle { slot } => room.without(lane_of(slot)).map(Message::Free),
        };
        if let Some(message) = message {
            let _ = sender.send(message);
        }
    });
    for span in gone.spans.values_mut() {
        span.slot = lane_of(span.slot);
    }
    attempt::blame(&mut gone.attempt, &needed);
    gone
}

/// What is known of a test that shared its sandbox.
pub(super) fn of_span(span: Span, lane: usize, verdict: Verdict) -> Attempt {
    let ended = span.ended.unwrap_or(span.started);
    Attempt {
        started: span.started,
        wall_time: ended.saturating_sub(span.started),
        lane,
        alone: false,
        ..Attempt::new(verdict, Used::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_reason() {
        assert_eq!(caught(|| 1), Ok(1));
        let said = |job: fn()| caught(job).unwrap_err();
        assert_eq!(said(|| panic!("boom")), "a fault of Orbit: boom");
        assert_eq!(
            said(|| assert_eq!(1 + 1, 3, "sums")).lines().next(),
            Some("a fault of Orbit: assertion `left == right` failed: sums")
        );
    }
}
