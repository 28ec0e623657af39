//! Counting: what passed, what failed, what was skipped, and their names.

use std::time::Duration;

/// The counts of one suite.
#[derive(Debug, Default)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) passed: usize,
    failed: usize,
    skipped: usize,
    failed_names: Vec<Failed>,
    skipped_names: Vec<String>,
    /// Index of the failed test whose message is being read, and how many lines of it were taken.
    reading: Option<(usize, usize)>,
    took: Duration,
}

/// A test that failed, and how its message begins, where it has one.
#[derive(Debug, PartialEq)]
struct Failed {
    name: String,
    why: String,
}

impl Failed {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            why: String::new(),
        }
    }

    /// Takes a further line of the message, if it says anything and there is room. What stands above an output says nothing.
    fn add(&mut self, line: &str, lines: &mut usize) {
        let line = line.trim();
        if *lines == TOLD_LINES || line.is_empty() || line.starts_with("--- ") {
            return;
        }
        *lines += 1;
        let room = TOLD.saturating_sub(self.why.chars().count());
        self.why
            .push_str(if self.why.ends_with(':') { " " } else { ": " });
        self.why.extend(line.chars().take(room));
    }
}

/// How much of a message is told in the summary, in lines and in characters.
const TOLD_LINES: usize = 5;
const TOLD: usize = 600;

impl Suite {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Reads a line of what libtest or libtest-mimic prints: names from the line of each test, counts from
    /// the line at the end of each binary, which tests cannot print into; how a message begins from below its name.
    pub(crate) fn read(&mut self, line: &str) {
        let named = |heading: &str| {
            let name = heading.strip_suffix(" stdout").unwrap_or(heading);
            let is = |failed: &Failed| failed.why.is_empty() && failed.name == name;
            self.failed_names.iter().rposition(is)
        };
        if let Some(heading) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" ----"))
        {
            self.reading = named(heading).map(|index| (index, 0));
        } else if line == "failures:" {
            self.reading = None;
        } else if let Some((index, lines)) = self.reading.as_mut() {
            self.failed_names[*index].add(line, lines);
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count_before(result, "passed");
            self.failed += count_before(result, "failed");
            self.skipped += count_before(result, "ignored");
        } else if let Some((name, verdict)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        {
            let name = name.trim_end();
            if verdict.starts_with("FAILED") {
                self.failed_names.push(Failed::new(name));
            } else if let Some(reason) = verdict.strip_prefix("ignored") {
                // libtest writes `ignored, why`; libtest-mimic `ignored (why)`.
                let reason = reason.trim_start_matches([',', ' ']);
                let reason = reason
                    .strip_prefix('(')
                    .and_then(|r| r.strip_suffix(')'))
                    .unwrap_or(reason);
                let reason = if reason.is_empty() {
                    "marked ignored"
                } else {
                    reason
                };
                self.skipped_names.push(format!("{name}: {reason}"));
            }
        }
    }

    /// Counts one check that passed.
    pub(crate) fn pass(&mut self) {
        self.passed += 1;
    }

    /// Counts what could not be run at all.
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        self.skipped += 1;
        self.skipped_names.push(format!("{name}: {why}"));
    }

    /// The suite ended. One that failed without a failed test (it crashed, or did not build) fails itself.
    pub(crate) fn end(&mut self, success: bool, how: &str, took: Duration) {
        self.took += took;
        if !success && self.failed == 0 {
            self.failed += 1;
            self.failed_names.push(Failed::new(how));
        }
    }

    fn line(&self) -> String {
        let Self {
            name,
            passed,
            failed,
            skipped,
            took,
            ..
        } = self;
        format!(
            "{name}: {passed} passed, {failed} failed, {skipped} skipped ({:.1} s)",
            took.as_secs_f64()
        )
    }
}

fn count_before(result: &str, word: &str) -> usize {
    let before = result.split(word).next().unwrap_or_default().trim_end();
    before
        .rsplit(' ')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

/// All suites.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    suites: Vec<Suite>,
}

impl Tally {
    pub(crate) fn add(&mut self, suite: Suite) {
        println!("== {}\n", suite.line());
        self.suites.push(suite);
    }

    /// Counts one failure that no suite counted.
    pub(crate) fn failed(&mut self, suite: &str, how: &str) {
        eprintln!("error: {how}");
        let mut failed = Suite::new(suite);
        failed.end(false, how, Duration::ZERO);
        self.add(failed);
    }

    /// Counts one check that ended.
    pub(crate) fn checked(&mut self, name: &str, success: bool, how: &str, took: Duration) {
        let mut suite = Suite::new(name);
        suite.passed = usize::from(success);
        suite.end(success, how, took);
        self.add(suite);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.suites.iter().any(|suite| suite.failed > 0)
    }

    fn summary(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.suites.iter().map(Suite::line).collect();
        for suite in &self.suites {
            lines.extend(
                suite
                    .skipped_names
                    .iter()
                    .map(|name| format!("skipped: {}: {name}", suite.name)),
            );
        }
        for suite in &self.suites {
            lines.extend(
                suite
                    .failed_names
                    .iter()
                    .map(|Failed { name, why }| format!("failed: {}: {name}{why}", suite.name)),
            );
        }
        let sum = |count: fn(&Suite) -> usize| self.suites.iter().map(count).sum::<usize>();
        let (passed, failed) = (sum(|suite| suite.passed), sum(|suite| suite.failed));
        lines.push(format!(
            "{passed} passed, {failed} failed, {} skipped",
            sum(|suite| suite.skipped)
        ));
        lines
    }

    /// Prints a line for each suite, each skip and each failure, and the totals last.
    pub(crate) fn print(&self, took: Duration) {
        println!("---- summary, after {} s", took.as_secs());
        println!("{}", self.summary().join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Failed, Suite, Tally};

    fn read(lines: &str) -> Suite {
        let mut suite = Suite::new("unit");
        lines.lines().for_each(|line| suite.read(line));
        suite
    }

    #[test]
    fn sums_suites_and_names_what_did_not_pass() {
        let mut tally = Tally::default();
        let mut suite = read(
            "test a ... ok\ntest b::as_single   ... ignored (needs root)\ntest c ... FAILED\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.0s",
        );
        suite.end(false, "exit status: 101", Duration::ZERO);
        tally.add(suite);
        tally.checked("clippy", true, "", Duration::ZERO);
        assert_eq!(
            tally.summary(),
            [
                "unit: 1 passed, 1 failed, 1 skipped (0.0 s)",
                "clippy: 1 passed, 0 failed, 0 skipped (0.0 s)",
                "skipped: unit: b::as_single: needs root",
                "failed: unit: c",
                "2 passed, 1 failed, 1 skipped"
            ]
        );
        assert!(tally.has_failed());
    }

    #[test]
    fn a_crash_is_a_failure() {
        let mut suite = read("running 3 tests\ntest a ... ok");
        suite.end(false, "signal: 6 (SIGABRT)", Duration::ZERO);
        assert_eq!(
            (suite.failed, suite.failed_names),
            (1, vec![Failed::new("signal: 6 (SIGABRT)")])
        );
    }

    #[test]
    fn a_failure_says_how_its_message_begins() {
        let suite = read(
            "test a ... FAILED\ntest b ... FAILED\ntest c ... FAILED\n\nfailures:\n\n---- a stdout ----\n\n\
             thread 'a' (7) panicked at src/lib.rs:3:1:\nno such thing\nstack backtrace:\n   0: main\n\n\
             ---- b ----\ncargo test:\n  --- stdout\n  x: not in the table\n  test y ... FAILED\n\n  ---- c ----\n  of another\n\
             \nfailures:\n    a\n    b\n    c\n\ntest result: FAILED. 0 passed; 3 failed; 0 ignored",
        );
        let told: Vec<&str> = suite
            .failed_names
            .iter()
            .map(|it| it.why.as_str())
            .collect();
        assert_eq!(
            told,
            [
                ": thread 'a' (7) panicked at src/lib.rs:3:1: no such thing: stack backtrace: 0: main",
                ": cargo test: x: not in the table: test y ... FAILED: ---- c ----: of another",
                ""
            ]
        );
        assert_eq!(suite.failed, 3);
    }
}
