//! The JUnit report, as CI systems read it: one suite for each binary, one case for each test.
//!
//! Attempts before the last are `flakyFailure` and `rerunFailure`, as Maven Surefire has them: of a test that
//! never passed the first attempt is the case's own, of a flaky one the last. What a test used is in properties; of tests
//! that shared a sandbox it is in those of their suite.
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
use crate::test::event::{
    Attempt, BinaryId, Event, RunStarted, SharedSandbox, Skipped, TestResult, Verdict,
};

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

    /// The case of a test that was told to have passed is taken out: it is told again.
    fn forget(&mut self, result: &TestResult) {
        let name = xml(&text::name(&name_of(result))).into_owned();
        if let Some(suite) = self.suites.get_mut(&result.id.binary)
            && let Some(at) = suite
                .test_cases
                .iter()
                .rposition(|case| case.name.as_str() == name)
        {
            // As the counts of a suite only grow, it is made anew.
            let mut anew = TestSuite::new(suite.name.clone());
            anew.add_properties(std::mem::take(&mut suite.properties));
            let mut cases = std::mem::take(&mut suite.test_cases);
            cases.remove(at);
            anew.add_test_cases(cases);
            *suite = anew;
        }
    }

    fn shared(&mut self, shared: &SharedSandbox) {
        let attempt = &shared.attempt;
        let mut properties = usage(attempt);
        let tests = Property::new("orbit.sandbox_tests", shared.tests.to_string());
        properties.insert(0, tests);
        properties.extend(remarks("orbit.wrote", &attempt.wrote));
        properties.extend(remarks("orbit.kept", &attempt.kept));
        self.suite(&shared.binary).add_properties(properties);
    }

    fn suite(&mut self, binary: &BinaryId) -> &mut TestSuite {
        self.suites
            .entry(binary.clone())
            .or_insert_with(|| TestSuite::new(&*xml(&text::name(&binary.0))))
    }

    fn finished(&mut self, result: &TestResult) {
        let name = name_of(result);
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
        case.set_classname(&*xml(&text::name(&binary.0)));
        self.suite(binary).add_test_case(case);
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
            Event::TestCorrected(result) => {
                self.forget(result);
                self.finished(result);
            }
            Event::SandboxFinished(shared) => self.shared(shared),
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

/// What a case is called in its suite.
fn name_of(result: &TestResult) -> String {
    let name = if result.id.name.is_empty() {
        &result.id.binary.0
    } else {
        &result.id.name
    };
    match result.id.repetition {
        Some(repetition) => format!("{name} #{repetition}"),
        None => name.clone(),
    }
}

/// What it used, and what was remarkable.
fn properties(attempt: &Attempt, attempts: usize) -> Vec<Property> {
    // Of tests that shared a sandbox nobody knows which used how much: it is with their suite.
    let mut properties = if attempt.alone {
        usage(attempt)
    } else {
        Vec::new()
    };
    properties.extend(remarks("orbit.lane", [attempt.lane.to_string()]));
    if attempts > 1 {
        properties.extend(remarks("orbit.attempts", [attempts.to_string()]));
    }
    properties.extend(remarks("orbit.leaked", &attempt.leaked));
    let denied = attempt.denied.iter().map(|denied| &denied.to);
    properties.extend(remarks("orbit.denied", denied));
    properties.extend(remarks("orbit.wrote", &attempt.wrote));
    properties.extend(remarks("orbit.note", &attempt.notes));
    properties.extend(remarks("orbit.kept", &attempt.kept));
    properties
}

fn usage(attempt: &Attempt) -> Vec<Property> {
    let used = &attempt.used;
    let cpu = |name, time| Property::new(name, seconds(time).to_string());
    let mut properties = vec![
        cpu("orbit.cpu_user_seconds", used.cpu_user),
        cpu("orbit.cpu_system_seconds", used.cpu_system),
    ];
    let memory = used.memory_peak_bytes.map(|bytes| bytes.to_string());
    properties.extend(remarks("orbit.memory_peak_bytes", memory));
    properties
}

/// A property for each of `values`.
fn remarks<V: AsRef<str>>(name: &str, values: impl IntoIterator<Item = V>) -> Vec<Property> {
    values
        .into_iter()
        .map(|value| Property::new(name, &*xml(&text::name(value.as_ref()))))
        .collect()
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

    #[test]
    fn a_test_that_is_told_again_is_one_case() {
        let mut events = sample::run();
        let at = events.len() - 1;
        let passed = sample::results().swap_remove(0);
        let mut failed = passed.clone();
        failed.attempts[0].verdict = Verdict::Failed { code: None };
        events.insert(at, Event::TestCorrected(failed));
        let before = document(&sample::run());
        let after = document(&events);
        let cases = |text: &str| text.matches("<testcase ").count();
        assert_eq!(cases(&before), cases(&after));
        let count = |text: &str| text.matches("<failure").count();
        assert_eq!(count(&before) + 1, count(&after));
        let api = after.split("<testsuite name=\"api\"").nth(1).unwrap();
        // Two have failed without it.
        assert!(
            api.lines().next().unwrap().contains("failures=\"3\""),
            "{api}"
        );
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
