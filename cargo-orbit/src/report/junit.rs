//! The JUnit report, as CI systems read it: one suite for each binary, one case for each test.
//!
//! Attempts before the last are `flakyFailure` and `rerunFailure`, as Maven Surefire has them: of a test that
//! never passed the first attempt is the case's own, of a flaky one the last. What a test used is in properties.
//! A test that could not be tried is an error, any other that did not pass a failure.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use quick_junit::{NonSuccessKind, Property, TestCase, TestCaseStatus, TestRerun, TestSuite};

use super::{
    Report,
    json::seconds,
    text::{self, Budget},
};
use crate::test::event::{Attempt, BinaryId, Event, RunStarted, Skipped, TestResult, Verdict};

/// More than this of one stream of a test that did not pass is cut.
const FAILED_MOST_BYTES: usize = 256 << 10;
/// The same of one that passed.
const PASSED_MOST_BYTES: usize = 16 << 10;

/// The report. It is held in memory until the end of the run, and bounded by the budgets.
pub(crate) struct Junit {
    path: PathBuf,
    run: Option<RunStarted>,
    suites: BTreeMap<BinaryId, TestSuite>,
    /// What the others said is never cut because of passed tests.
    of_failed: Budget,
    of_passed: Budget,
}

impl Junit {
    /// Written to `path` at the end of the run, whole or not at all. Missing directories are made.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            run: None,
            suites: BTreeMap::new(),
            of_failed: Budget(48 << 20),
            of_passed: Budget(16 << 20),
        }
    }

    fn at(&self, since_start: Duration) -> DateTime<Utc> {
        let start = self
            .run
            .as_ref()
            .map_or(0, |run| run.started_at_unix_seconds);
        let at = Duration::from_secs(start).saturating_add(since_start);
        SystemTime::UNIX_EPOCH
            .checked_add(at)
            .map_or(DateTime::UNIX_EPOCH, DateTime::from)
    }

    /// One stream's text, as much as there is room for.
    fn output(&mut self, bytes: &[u8], passed: bool) -> Option<String> {
        if bytes.is_empty() {
            return None;
        }
        let bytes = if passed {
            self.of_passed.cut(bytes, PASSED_MOST_BYTES)
        } else {
            self.of_failed.cut(bytes, FAILED_MOST_BYTES)
        };
        Some(xml(&text::output(&bytes, false)).into_owned())
    }

    fn finished(&mut self, result: &TestResult) {
        let name = if result.id.name.is_empty() {
            result.id.binary.0.clone()
        } else {
            result.id.name.clone()
        };
        let name = match result.id.repetition {
            Some(repetition) => format!("{name} #{repetition}"),
            None => name,
        };
        let mut case = match (result.attempts.first(), result.attempts.last()) {
            (Some(first), Some(last)) if result.skipped.is_none() => {
                let flaky = last.verdict.passed();
                let own = if flaky { last } else { first };
                let mut status = status(&own.verdict);
                for (number, other) in result.attempts.iter().enumerate() {
                    let is_own = number == if flaky { result.attempts.len() - 1 } else { 0 };
                    if !is_own {
                        status.add_rerun(self.rerun(other));
                    }
                }
                let mut case = TestCase::new(&*xml(&text::name(&name)), status);
                case.set_timestamp(self.at(own.started));
                case.set_time(own.wall_time);
                if let Some(text) = self.output(&own.stdout, flaky) {
                    case.set_system_out(text);
                }
                if let Some(text) = self.output(&own.stderr, flaky) {
                    case.set_system_err(text);
                }
                case.add_properties(properties(own, result.attempts.len()));
                case
            }
            _ => {
                let mut status = TestCaseStatus::skipped();
                status.set_message(match result.skipped {
                    Some(Skipped::Ignored) => "ignored",
                    _ => "the run ended before its turn",
                });
                TestCase::new(&*xml(&text::name(&name)), status)
            }
        };
        let binary = &result.id.binary;
        let binary_name = text::name(&binary.0).into_owned();
        case.set_classname(&*xml(&binary_name));
        self.suites
            .entry(binary.clone())
            .or_insert_with(|| TestSuite::new(&*xml(&binary_name)))
            .add_test_case(case);
    }

    fn rerun(&mut self, attempt: &Attempt) -> TestRerun {
        let mut rerun = TestRerun::new(kind(&attempt.verdict));
        rerun
            .set_timestamp(self.at(attempt.started))
            .set_time(attempt.wall_time)
            .set_type(attempt.verdict.word())
            .set_message(&*xml(&text::name(&attempt.verdict.to_string())));
        if let Some(text) = self.output(&attempt.stdout, false) {
            rerun.set_system_out(text);
        }
        if let Some(text) = self.output(&attempt.stderr, false) {
            rerun.set_system_err(text);
        }
        rerun
    }

    /// The file's text.
    fn document(&mut self, wall_time: Duration) -> io::Result<String> {
        let name = self
            .run
            .as_ref()
            .map_or_else(String::new, |run| run.workspace.clone());
        let mut report = quick_junit::Report::new(&*xml(&text::name(&name)));
        report.set_timestamp(self.at(Duration::ZERO));
        report.set_time(wall_time);
        for (_, mut suite) in std::mem::take(&mut self.suites) {
            let started = suite
                .test_cases
                .iter()
                .filter_map(|case| case.timestamp)
                .min();
            suite.timestamp = started;
            // The time that its tests took together, as everybody who writes JUnit has it.
            let time = suite.test_cases.iter().filter_map(|case| case.time).sum();
            suite.set_time(time);
            report.add_test_suite(suite);
        }
        report.to_string().map_err(io::Error::other)
    }
}

impl Report for Junit {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::RunStarted(run) => self.run = Some(run.clone()),
            Event::TestFinished(result) => self.finished(result),
            Event::RunFinished(summary) => {
                let document = self.document(summary.wall_time)?;
                super::write_whole(&self.path, |file| {
                    io::Write::write_all(file, document.as_bytes())
                })?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn kind(verdict: &Verdict) -> NonSuccessKind {
    match verdict {
        Verdict::SetupFailed { .. } | Verdict::Interrupted => NonSuccessKind::Error,
        _ => NonSuccessKind::Failure,
    }
}

fn status(verdict: &Verdict) -> TestCaseStatus {
    if verdict.passed() {
        return TestCaseStatus::success();
    }
    let mut status = TestCaseStatus::non_success(kind(verdict));
    status.set_type(verdict.word());
    status.set_message(&*xml(&text::name(&verdict.to_string())));
    status
}

/// What it used, and what was remarkable.
fn properties(attempt: &Attempt, attempts: usize) -> Vec<Property> {
    let mut properties = Vec::new();
    let mut add = |name: &str, value: &str| {
        properties.push(Property::new(name, &*xml(&text::name(value))));
    };
    let used = &attempt.used;
    add(
        "orbit.cpu_user_seconds",
        &seconds(used.cpu_user).to_string(),
    );
    add(
        "orbit.cpu_system_seconds",
        &seconds(used.cpu_system).to_string(),
    );
    if let Some(bytes) = used.memory_peak_bytes {
        add("orbit.memory_peak_bytes", &bytes.to_string());
    }
    add("orbit.lane", &attempt.lane.to_string());
    if attempts > 1 {
        add("orbit.attempts", &attempts.to_string());
    }
    for leaked in &attempt.leaked {
        add("orbit.leaked", leaked);
    }
    for denied in &attempt.denied {
        add("orbit.denied", &denied.to);
    }
    for wrote in &attempt.wrote {
        add("orbit.wrote", wrote);
    }
    for note in &attempt.notes {
        add("orbit.note", note);
    }
    if let Some(kept) = &attempt.kept {
        add("orbit.kept", kept);
    }
    properties
}

/// The crate takes control characters out, but these two are no characters of XML either.
fn xml(text: &str) -> Cow<'_, str> {
    let wrong = |c| matches!(c, '\u{fffe}' | '\u{ffff}');
    if text.contains(wrong) {
        Cow::Owned(text.replace(wrong, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::report::sample;

    fn document(events: &[Event]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("not/there/junit.xml");
        let mut junit = Junit::new(path.clone());
        for event in events {
            junit.on(event).unwrap();
        }
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_run_as_ci_sees_it() {
        insta::assert_snapshot!(document(&sample::run()));
    }

    fn of_output(stdout: Vec<u8>, name: &str) -> String {
        let mut attempt = sample::attempt(0, 0, 1, Verdict::Failed { code: None });
        attempt.stdout = stdout;
        attempt.notes = vec![name.to_owned()];
        document(&sample::events(vec![TestResult {
            id: sample::id(name, name),
            attempts: vec![attempt.clone(), attempt],
            skipped: None,
        }]))
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_xml(stdout: Vec<u8>, name: String, odd in "[\u{fffe}\u{ffff}\u{0}-\u{1f}<>&\\]]{0,20}") {
            let mut stdout = stdout;
            stdout.extend(odd.as_bytes());
            let text = of_output(stdout, &(name + &odd));
            let wrong = |c| !matches!(c, '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'..);
            prop_assert_eq!(text.find(wrong), None, "{}", text);
            // By the crate that wrote it; another reader sees the sample in the suite `report`.
            prop_assert!(quick_junit::Report::deserialize_from_str(&text).is_ok(), "{}", text);
        }
    }
}
