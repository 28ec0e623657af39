//! The words of the report for people. Pure: events in, lines out.

use std::{fmt::Write as _, time::Duration};

use crate::{
    report::{
        colour::{BAD, BINARY, BOLD, Brush, DIM, GOOD, TEST, WARN},
        github::Guard,
        text::{self, counted},
    },
    test::event::{
        Attempt, BinaryListed, Class, Ending, RunStarted, SharedSandbox, Summary, TestId,
        TestResult, Used, Verdict, mebibytes,
    },
};

/// More of one test's output than this is cut in its middle: a terminal is no place to read it.
const OUTPUT_MOST_BYTES: usize = 1 << 20;
/// More files than this are counted.
const FILES_MOST: usize = 10;
/// Where the details under a test's line begin.
const INDENT: &str = "                     ";

/// Writes lines.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    pub(super) brush: Brush,
    pub(super) verbose: bool,
    /// On GitHub Actions, around what tests wrote.
    pub(super) guard: Option<Guard>,
}

impl Lines {
    pub(super) fn run_started(&self, run: &RunStarted) -> String {
        let jobs = match run.jobs {
            1 => "one job".to_owned(),
            jobs => format!("{jobs} jobs"),
        };
        let mut line = self.word(BOLD, "Starting");
        let _ = write!(line, " run {} with {jobs}", text::name(&run.run));
        if let Some(profile) = &run.profile {
            let _ = write!(line, ", profile {}", text::name(profile));
        }
        if let Some(seed) = run.shuffle {
            let _ = write!(line, ", shuffled: --shuffle={seed}");
        }
        line + "\n"
    }

    pub(super) fn binary_listed(&self, listed: &BinaryListed) -> String {
        let word = self.word(DIM, "Listed");
        let binary = self.brush.paint(BINARY, &text::name(&listed.binary.0));
        let tests = counted(listed.tests, "test");
        format!("{word} {binary}: {tests}, {} selected\n", listed.selected)
    }

    pub(super) fn test_started(&self, id: &TestId, attempt: u32) -> String {
        let which = match attempt {
            1 => String::new(),
            attempt => format!(" (attempt {attempt})"),
        };
        let word = self.word(DIM, "Begins");
        format!("{word}             {}{which}\n", self.test(id))
    }

    pub(super) fn slow(&self, id: &TestId, running_for: Duration) -> String {
        let word = self.word(WARN, "SLOW");
        format!("{word} {} {}\n", self.time(running_for, '>'), self.test(id))
    }

    /// An attempt that failed, when there will be another.
    pub(super) fn retried(&self, id: &TestId, failed: &Attempt) -> String {
        let word = self.word(WARN, failed.verdict.word());
        let time = self.time(failed.wall_time, ' ');
        let mut text = format!("{word} {time} {}, and is tried again\n", self.test(id));
        self.details(&mut text, failed);
        self.outputs(&mut text, failed);
        text
    }

    /// The line of a test that has ended, and what belongs to it.
    pub(super) fn finished(&self, result: &TestResult) -> String {
        let class = result.class();
        let Some(last) = result.attempts.last() else {
            let word = if class == Class::Ignored {
                "IGNORED"
            } else {
                "NOT RUN"
            };
            let why = match class {
                Class::NotReached => " (the run ended before its turn)",
                _ => "",
            };
            let word = self.word(WARN, word);
            return format!("{word}             {}{why}\n", self.test(&result.id));
        };
        let word = match class {
            Class::Passed => self.word(GOOD, last.verdict.word()),
            Class::Flaky => self.word(WARN, "FLAKY"),
            _ => self.word(BAD, last.verdict.word()),
        };
        let time = self.time(last.wall_time, ' ');
        let mut text = format!("{word} {time} {}", self.test(&result.id));
        if result.attempts.len() > 1 {
            let count = result.attempts.len();
            let _ = match class {
                Class::Flaky => write!(text, ", at attempt {count}"),
                _ => write!(text, ", {count} times"),
            };
        }
        // Of those that shared a sandbox it is told of them together.
        if self.verbose && last.alone {
            text.push_str(&self.brush.paint(DIM, &used(&last.used)));
        }
        text.push('\n');
        self.details(&mut text, last);
        if self.verbose || class == Class::Failed {
            self.outputs(&mut text, last);
        }
        text
    }

    /// What tests used and wrote that shared a sandbox.
    pub(super) fn shared(&self, shared: &SharedSandbox) -> String {
        let attempt = &shared.attempt;
        if !self.verbose && attempt.wrote.is_empty() {
            return String::new();
        }
        let word = self.word(DIM, "Together");
        let mut text = format!(
            "{word} {} {}, {}",
            self.time(attempt.wall_time, ' '),
            self.brush.paint(BINARY, &text::name(&shared.binary.0)),
            counted(shared.tests, "test"),
        );
        if let Some(repetition) = shared.repetition {
            let _ = write!(text, " #{repetition}");
        }
        text.push_str(&self.brush.paint(DIM, &used(&attempt.used)));
        text.push('\n');
        let told = Attempt {
            wrote: attempt.wrote.clone(),
            ..Attempt::new(Verdict::Passed, attempt.used)
        };
        self.details(&mut text, &told);
        if self.verbose {
            self.outputs(&mut text, attempt);
        }
        text
    }

    pub(super) fn ending(&self, why: Ending, running: usize) -> String {
        let word = self.word(WARN, "Ending");
        let why = match why {
            Ending::Signal => "as a signal asks",
            Ending::Failure => "after a failure (--no-fail-fast goes on)",
        };
        format!(
            "{word} the run {why}, with {} running\n",
            counted(running, "test")
        )
    }

    pub(super) fn summary(&self, summary: &Summary) -> String {
        let style = if summary.failed > 0 { BAD } else { GOOD };
        let run = summary.passed + summary.failed;
        let mut text = self.brush.paint(DIM, &"─".repeat(12));
        let _ = write!(
            text,
            "\n{} {} {} run: {}",
            self.word(style, "Summary"),
            self.time(summary.wall_time, ' '),
            self.brush.paint(BOLD, &counted(run, "test")),
            self.brush
                .paint(GOOD, &format!("{} passed", summary.passed)),
        );
        if summary.flaky > 0 {
            let flaky = format!("{} flaky", summary.flaky);
            let _ = write!(text, " ({})", self.brush.paint(WARN, &flaky));
        }
        for (count, words, style) in [
            (summary.failed, "failed", BAD),
            (summary.ignored, "ignored", DIM),
            (summary.not_reached, "not reached", WARN),
            (summary.filtered_out, "filtered out", DIM),
        ] {
            if count > 0 {
                let _ = write!(
                    text,
                    ", {}",
                    self.brush.paint(style, &format!("{count} {words}"))
                );
            }
        }
        text.push('\n');
        text
    }

    /// A test as the summary names it.
    pub(super) fn in_summary(&self, result: &TestResult) -> String {
        let Some(last) = result.attempts.last() else {
            return String::new();
        };
        if result.class() == Class::Flaky {
            let first = result.attempts.first().unwrap_or(last);
            let word = self.word(WARN, "FLAKY");
            let how = phrase(&first.verdict);
            return format!("{word} {}: first {how}\n", self.test(&result.id));
        }
        let word = self.word(BAD, last.verdict.word());
        let how = phrase(&last.verdict);
        format!("{word} {}: {how}\n", self.test(&result.id))
    }

    /// What to do about it.
    pub(super) fn what_next(&self, summary: &Summary) -> String {
        if summary.failed == 0 {
            if summary.passed == 0 && summary.not_reached == 0 {
                return format!("{} no test was run\n", self.word(WARN, "Note"));
            }
            return String::new();
        }
        let word = self.word(BOLD, "Next");
        format!("{word} run what failed again: cargo orbit test --failed\n")
    }

    /// One word in a column of its own.
    fn word(&self, style: anstyle::Style, word: &str) -> String {
        self.brush.paint(style, &format!("{word:>8}"))
    }

    fn time(&self, time: Duration, sign: char) -> String {
        self.brush
            .paint(DIM, &format!("[{sign}{:>7.3}s]", time.as_secs_f64()))
    }

    fn test(&self, id: &TestId) -> String {
        let mut test = self.brush.paint(BINARY, &text::name(&id.binary.0));
        if !id.name.is_empty() {
            test.push(' ');
            match id.name.rsplit_once("::") {
                Some((module, name)) => {
                    test.push_str(&text::name(module));
                    test.push_str("::");
                    test.push_str(&self.brush.paint(TEST, &text::name(name)));
                }
                None => test.push_str(&self.brush.paint(TEST, &text::name(&id.name))),
            }
        }
        if let Some(repetition) = id.repetition {
            let _ = write!(test, " #{repetition}");
        }
        test
    }

    /// What is remarkable about an attempt, a line each.
    fn details(&self, text: &mut String, attempt: &Attempt) {
        let mut say = |what: &str, style: anstyle::Style| {
            // Reasons of several lines stay under each other.
            let lines: Vec<_> = what.lines().map(text::name).collect();
            let lines = lines.join(&format!("\n{INDENT}"));
            let _ = writeln!(text, "{INDENT}{}", self.brush.paint(style, &lines));
        };
        match &attempt.verdict {
            Verdict::Passed
            | Verdict::Failed {
                code: None | Some(101),
            } => {}
            verdict => say(&verdict.to_string(), BAD),
        }
        if !attempt.leaked.is_empty() {
            say(&format!("left behind: {}", attempt.leaked.join(", ")), WARN);
        }
        if !attempt.denied.is_empty() {
            say(&format!("was not let out to {}", denied(attempt)), WARN);
        }
        if !attempt.wrote.is_empty() {
            let shown = &attempt.wrote[..attempt.wrote.len().min(FILES_MOST)];
            let mut line = format!("wrote {}", shown.join(", "));
            let more = attempt.wrote.len() - shown.len();
            if more > 0 {
                let _ = write!(line, " and {more} more");
            }
            say(&line, WARN);
        }
        for note in &attempt.notes {
            say(&format!("note: {note}"), DIM);
        }
        if let Some(kept) = &attempt.kept {
            say(&format!("kept: cargo orbit shell {kept}"), BOLD);
        }
    }

    /// What was captured.
    fn outputs(&self, text: &mut String, attempt: &Attempt) {
        let mut said = String::new();
        for (name, bytes) in [("stdout", &attempt.stdout), ("stderr", &attempt.stderr)] {
            if bytes.is_empty() {
                continue;
            }
            let rule = format!("  ── {name} ──────────");
            let _ = writeln!(said, "{}", self.brush.paint(DIM, &rule));
            let output = text::output(&text::cut(bytes, OUTPUT_MOST_BYTES), self.brush.colours);
            for line in output.trim_end_matches('\n').split('\n') {
                if line.is_empty() {
                    said.push('\n');
                } else {
                    let _ = writeln!(said, "    {line}");
                }
            }
        }
        text.push_str(&match &self.guard {
            Some(guard) => guard.around(&said),
            None => said,
        });
    }
}

/// The first line of what a verdict says: the others are with the test's own line.
fn phrase(verdict: &Verdict) -> String {
    let phrase = verdict.to_string();
    text::name(phrase.lines().next().unwrap_or_default()).into_owned()
}

/// `192.0.2.1:443/tcp (3 times)`, each.
fn denied(attempt: &Attempt) -> String {
    let all: Vec<_> = attempt
        .denied
        .iter()
        .map(|denied| match denied.count {
            1 => denied.to.clone(),
            count => format!("{} ({count} times)", denied.to),
        })
        .collect();
    all.join(", ")
}

fn used(used: &Used) -> String {
    let cpu = (used.cpu_user + used.cpu_system).as_secs_f64();
    let memory = used
        .memory_peak_bytes
        .map(|bytes| format!(", {}", mebibytes(bytes)));
    format!("  {cpu:.3}s CPU{}", memory.unwrap_or_default())
}
