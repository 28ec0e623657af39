//! `--message-format json`: one object a line for each event, for programs to read while the run goes on.
//!
//! The form is documented in `docs/reports.md`, and kept: fields are added, and whoever reads must leave unknown
//! ones alone; where one would change its meaning, [`FORMAT`] grows. It is written down here apart from
//! [`crate::test::event`], which may change as it likes.

use std::{
    io::{self, Write},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::{Value, json};

use super::Report;
use crate::test::event::{
    Attempt, Class, Event, RunStarted, SharedSandbox, Skipped, Summary, TestId, TestResult, Verdict,
};

/// The version of the form.
pub(crate) const FORMAT: u32 = 1;

/// The report.
pub(crate) struct Json<W>(W);

impl<W: Write> Json<W> {
    /// To `out`, which is flushed after each line.
    pub(crate) const fn new(out: W) -> Self {
        Self(out)
    }
}

impl<W: Write + Send> Report for Json<W> {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        let (kind, fields) = object(event);
        let fields = serde_json::to_string(&fields)?;
        // Which form it is in and what it is come first, where who skims sees them.
        let fields = fields.strip_prefix('{').unwrap_or("}");
        writeln!(self.0, r#"{{"format":{FORMAT},"event":"{kind}",{fields}"#)?;
        self.0.flush()
    }
}

/// What an event is called, and its fields: one at least.
fn object(event: &Event) -> (&'static str, Value) {
    match event {
        Event::RunStarted(run) => ("run-started", run_started(run)),
        Event::BinaryListed(listed) => (
            "binary-listed",
            json!({
                "binary": listed.binary.0,
                "package": listed.package,
                "kind": listed.kind,
                "tests": listed.tests,
                "selected": listed.selected,
            }),
        ),
        Event::BuildFinished { tests, at } => (
            "build-finished",
            json!({ "tests": tests, "at_seconds": seconds(*at) }),
        ),
        Event::TestStarted { id, attempt, at } => (
            "test-started",
            json!({ "test": test(id), "attempt": attempt, "at_seconds": seconds(*at) }),
        ),
        Event::TestSlow { id, running_for } => (
            "test-slow",
            json!({ "test": test(id), "running_for_seconds": seconds(*running_for) }),
        ),
        Event::TestRetried { id, failed } => (
            "test-retried",
            json!({ "test": test(id), "failed": attempt(failed) }),
        ),
        Event::TestEnded { id, at } => (
            "test-ended",
            json!({ "test": test(id), "at_seconds": seconds(*at) }),
        ),
        Event::TestFinished(result) => ("test-finished", test_finished(result)),
        Event::TestCorrected(result) => ("test-corrected", test_finished(result)),
        Event::SandboxFinished(shared) => ("sandbox-finished", sandbox_finished(shared)),
        Event::Ending { why, running } => ("ending", json!({ "why": why, "running": running })),
        Event::RunFinished(summary) => ("run-finished", run_finished(summary)),
    }
}

pub(super) fn run_started(run: &RunStarted) -> Value {
    json!({
        "run": run.run,
        "started_at_unix_seconds": run.started_at_unix_seconds,
        "workspace": run.workspace,
        "jobs": run.jobs,
        "shuffle": run.shuffle,
        "profile": run.profile,
        "command_line": run.command_line,
    })
}

pub(super) fn run_finished(summary: &Summary) -> Value {
    json!({
        "passed": summary.passed,
        "flaky": summary.flaky,
        "failed": summary.failed,
        "ignored": summary.ignored,
        "not_reached": summary.not_reached,
        "filtered_out": summary.filtered_out,
        "wall_seconds": seconds(summary.wall_time),
    })
}

fn test_finished(result: &TestResult) -> Value {
    json!({
        "test": test(&result.id),
        "class": class(result.class()),
        "skipped": result.skipped.as_ref().map(|skipped| match skipped {
            Skipped::Ignored => "ignored",
            Skipped::NotReached => "not-reached",
        }),
        "attempts": result.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}

fn sandbox_finished(shared: &SharedSandbox) -> Value {
    let mut object = json!({
        "binary": shared.binary.0,
        "tests": shared.tests,
        "sandbox": attempt(&shared.attempt),
    });
    if let Some(repetition) = shared.repetition {
        object["repetition"] = json!(repetition);
    }
    object
}

/// A class as every report for programs spells it.
pub(super) const fn class(class: Class) -> &'static str {
    match class {
        Class::Passed => "passed",
        Class::Flaky => "flaky",
        Class::Failed => "failed",
        Class::Ignored => "ignored",
        Class::NotReached => "not-reached",
    }
}

fn test(id: &TestId) -> Value {
    let mut object = json!({ "binary": id.binary.0, "name": id.name });
    if let Some(repetition) = id.repetition {
        object["repetition"] = json!(repetition);
    }
    object
}

fn attempt(attempt: &Attempt) -> Value {
    let used = &attempt.used;
    json!({
        "verdict": verdict(&attempt.verdict),
        "started_seconds": seconds(attempt.started),
        "wall_seconds": seconds(attempt.wall_time),
        "lane": attempt.lane,
        "alone": attempt.alone,
        "cpu_user_seconds": seconds(used.cpu_user),
        "cpu_system_seconds": seconds(used.cpu_system),
        "memory_peak_bytes": used.memory_peak_bytes,
        "stdout": Output::from(&*attempt.stdout),
        "stderr": Output::from(&*attempt.stderr),
        "leaked": attempt.leaked,
        "denied": attempt.denied,
        "wrote": attempt.wrote,
        "notes": attempt.notes,
        "kept": attempt.kept,
    })
}

fn verdict(verdict: &Verdict) -> Value {
    let phrase = verdict.to_string();
    let mut object = match verdict {
        Verdict::Passed => json!({ "kind": "passed" }),
        Verdict::Failed { code } => json!({ "kind": "failed", "code": code }),
        Verdict::Killed { signal, name } => {
            json!({ "kind": "killed", "signal": signal, "name": name })
        }
        Verdict::TimedOut { limit } => {
            json!({ "kind": "timed-out", "limit_seconds": seconds(*limit) })
        }
        Verdict::OutOfMemory {
            limit_bytes,
            peak_bytes,
            process,
        } => json!({
            "kind": "out-of-memory",
            "limit_bytes": limit_bytes,
            "peak_bytes": peak_bytes,
            "process": process,
        }),
        Verdict::SetupFailed { why } => json!({ "kind": "setup-failed", "why": why }),
        Verdict::Leaked => json!({ "kind": "leaked" }),
        Verdict::ReachedOut => json!({ "kind": "reached-out" }),
        Verdict::Interrupted => json!({ "kind": "interrupted" }),
    };
    object["phrase"] = json!(phrase);
    object
}

/// Seconds, to the microsecond: what is beyond says nothing.
#[expect(
    clippy::cast_precision_loss,
    reason = "exact for the first two hundred years of a run"
)]
pub(super) fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}

/// Bytes, for people as text; for programs exactly, where the text is not exact.
#[derive(Serialize)]
struct Output {
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl From<&[u8]> for Output {
    fn from(bytes: &[u8]) -> Self {
        match str::from_utf8(bytes) {
            Ok(text) => Self {
                text: text.to_owned(),
                base64: None,
            },
            Err(_) => Self {
                text: String::from_utf8_lossy(bytes).into_owned(),
                base64: Some(STANDARD.encode(bytes)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::sample;

    fn lines(events: &[Event]) -> String {
        let mut out = Vec::new();
        let mut json = Json::new(&mut out);
        for event in events {
            json.on(event).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_line_for_each_event() {
        let events = sample::run();
        let lines = lines(&events);
        assert_eq!(lines.lines().count(), events.len());
        insta::assert_snapshot!(lines);
    }

    proptest! {
        #[test]
        fn what_was_written_can_be_read_back(stdout: Vec<u8>, name: String) {
            let mut attempt = sample::attempt(0, 0, 1, Verdict::Passed);
            attempt.stdout.clone_from(&stdout);
            let id = sample::id("b", &name);
            let result = TestResult { id, attempts: vec![attempt], skipped: None };
            let text = lines(&[Event::TestFinished(result)]);
            prop_assert_eq!(text.lines().count(), 1);
            let value: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(value["test"]["name"].as_str(), Some(&*name));
            let output = &value["attempts"][0]["stdout"];
            let read = match output["base64"].as_str() {
                Some(base64) => STANDARD.decode(base64).unwrap(),
                None => output["text"].as_str().unwrap().as_bytes().to_vec(),
            };
            prop_assert_eq!(read, stdout);
        }
    }
}
