//! What a job's thread does: it makes one sandbox, or two, waits, and says what came of it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use super::{Message, Options};
use crate::{
    config::settings::Settings,
    test::{
        attempt::{self, Ground, Streams},
        binary::TestBinary,
        doctests::Doctests,
        event::{Attempt, TestId, TestResult, Used, Verdict},
        libtest,
        select::RunIgnored,
        together::{Gone, Group},
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
    Listed(
        Arc<TestBinary>,
        Result<Option<Vec<(String, bool)>>, Box<Attempt>>,
    ),
    Alone(Box<Task>, Box<Attempt>),
    Together(Vec<Task>, Box<Gone>),
    Doctests(Vec<TestResult>, Option<Box<Attempt>>),
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
pub(super) fn list(
    ground: &Ground,
    options: &Options,
    binary: &Arc<TestBinary>,
    settings: &Settings,
) -> Result<Option<Vec<(String, bool)>>, Box<Attempt>> {
    let ask = |more: &[&str]| {
        let words = ["--list", "--format", "terse"].iter().chain(more);
        let arguments = words
            .map(OsString::from)
            .chain(options.arguments.iter().cloned());
        let sandbox = ground.sandbox(binary, settings, arguments.collect());
        attempt::run(
            ground,
            &binary.id.0,
            sandbox.timeout(Duration::from_secs(60)),
            Streams::Captured,
        )
    };
    let all = ask(&[]);
    if matches!(
        all.verdict,
        Verdict::SetupFailed { .. } | Verdict::Interrupted
    ) {
        return Err(Box::new(all));
    }
    // A program with a `main` of its own may take the question for a reason to fail, or to run.
    let Some(names) = libtest::listed(&all.stdout).filter(|_| all.verdict.passed()) else {
        return Ok(None);
    };
    if names.is_empty() {
        // A `main` of its own may say nothing, whatever it is asked.
        return Ok(binary.has_harness.then(Vec::new));
    }
    let ignored = ask(&["--ignored"]);
    let ignored = libtest::listed(&ignored.stdout).unwrap_or_default();
    Ok(Some(
        names
            .into_iter()
            .map(|name| {
                let is_ignored = ignored.contains(&name);
                (name, is_ignored)
            })
            .collect(),
    ))
}

/// Runs one test in a sandbox of its own.
pub(super) fn alone(ground: &Ground, options: &Options, task: &Task) -> Attempt {
    let needed = match ground.need(&task.settings) {
        Ok(needed) => needed,
        Err(attempt) => return *attempt,
    };
    let mut arguments: Vec<OsString> = Vec::new();
    if task.is_listed {
        arguments.extend(["--exact", &task.id.name, "--nocapture"].map(OsString::from));
        if task.is_ignored {
            arguments.push("--include-ignored".into());
        }
    } else if options.selection.ignored == RunIgnored::Only {
        arguments.push("--ignored".into());
    }
    arguments.extend(options.arguments.iter().cloned());
    let sandbox = ground.sandbox(&task.binary, &task.settings, arguments);
    let mut sandbox = needed.give_to(sandbox, &task.settings);
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

/// Runs the tests of a group in one sandbox.
pub(super) fn together(
    ground: &Ground,
    options: &Options,
    tasks: &[Task],
    group: &Group,
    lane: usize,
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
    let sender = sender.clone();
    let mut gone = group.run(
        ground,
        &binary.id.0,
        sandbox,
        move |name, started, ended| {
            let Some(task) = by_name.get(&**name) else {
                return;
            };
            let attempt = Attempt {
                started,
                wall_time: ended.saturating_sub(started),
                lane,
                alone: false,
                ..Attempt::new(Verdict::Passed, Used::default())
            };
            let _ = sender.send(Message::Passed(
                Box::new((*task).clone()),
                Box::new(attempt),
            ));
        },
    );
    gone.attempt.lane = lane;
    attempt::blame(&mut gone.attempt, &needed);
    gone
}
