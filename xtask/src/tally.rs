//! Counting: what passed, what failed, what was skipped, and their names.

use std::time::Duration;

/// The counts of one suite.
#[derive(Debug, Default)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) passed: usize,
    failed: usize,
    skipped: usize,
    failed_names: Vec<String>,
    skipped_names: Vec<String>,
    took: Duration,
}

impl Suite {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Reads a line of what libtest or libtest-mimic prints: names from the line of each test, counts from
    /// the line at the end of each binary, which tests cannot print into.
    pub(crate) fn read(&mut self, line: &str) {
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
                self.failed_names.push(name.to_owned());
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
            self.failed_names.push(how.to_owned());
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
                    .map(|name| format!("failed: {}: {name}", suite.name)),
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

    use super::{Suite, Tally};

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
            (1, vec!["signal: 6 (SIGABRT)".to_owned()])
        );
    }
}
