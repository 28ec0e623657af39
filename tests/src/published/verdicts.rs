//! How each test of a suite ended, from what libtest prints.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// `ok`
    Passed,
    /// `FAILED`
    Failed,
    /// `ignored`
    Ignored,
}

/// The verdicts of a whole suite by test name. Several targets may have tests of the same name: each name
/// has as many verdicts as there are such tests, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts(BTreeMap<String, Vec<Verdict>>);

impl Verdicts {
    /// Reads the lines `test NAME ... VERDICT` of standard output, and checks them against the counts
    /// that libtest itself gives at the end of each target.
    ///
    /// # Errors
    /// Where the counts differ: a test printed into the middle of a line, or output is missing.
    pub fn parse(stdout: &str) -> Result<Self> {
        let mut verdicts = Self::default();
        let mut counted = 0;
        for line in stdout.lines() {
            if let Some((name, verdict)) = verdict_of(line) {
                verdicts.0.entry(name.to_owned()).or_default().push(verdict);
            } else if let Some(result) = line.strip_prefix("test result: ") {
                counted += total_of(result);
            }
        }
        for same_name in verdicts.0.values_mut() {
            same_name.sort_unstable();
        }
        let read = verdicts.0.values().map(Vec::len).sum::<usize>();
        ensure!(
            read == counted,
            "read {read} verdicts, but libtest counts {counted}"
        );
        Ok(verdicts)
    }

    /// Reads the events of `cargo orbit test --message-format json`, and checks them against its own counts. What a
    /// program did beside its tests is no test's, and not here.
    ///
    /// # Errors
    /// Where the counts differ, or a line is no event.
    pub fn of_orbit(stdout: &str) -> Result<Self> {
        let mut verdicts = Self::default();
        let (mut read, mut counted) = (0, None);
        for line in stdout.lines() {
            let event: Value = serde_json::from_str(line)
                .with_context(|| format!("not an event of `cargo orbit test`: {line}"))?;
            match event["event"].as_str() {
                Some("test-finished") => {
                    read += 1;
                    let verdict = match event["class"].as_str() {
                        Some("passed" | "flaky") => Verdict::Passed,
                        Some("ignored") => Verdict::Ignored,
                        Some("not-reached") => continue,
                        _ => Verdict::Failed,
                    };
                    let name = event["test"]["name"].as_str().unwrap_or_default();
                    if !name.is_empty() {
                        verdicts.0.entry(name.to_owned()).or_default().push(verdict);
                    }
                }
                Some("run-finished") => {
                    let count = |name: &str| event[name].as_u64().unwrap_or_default();
                    let names = ["passed", "failed", "ignored", "not_reached"];
                    counted = Some(names.into_iter().map(count).sum::<u64>());
                }
                _ => {}
            }
        }
        for same_name in verdicts.0.values_mut() {
            same_name.sort_unstable();
        }
        ensure!(
            counted == Some(read),
            "read {read} verdicts, but `cargo orbit test` counts {counted:?}"
        );
        Ok(verdicts)
    }

    /// The verdict of the one test that is called so.
    pub fn of(&self, name: &str) -> Option<Verdict> {
        match self.0.get(name).map(Vec::as_slice) {
            Some([verdict]) => Some(*verdict),
            _ => None,
        }
    }

    /// The names of all tests.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether no test ran.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many tests ended so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.0
            .values()
            .flatten()
            .filter(|&&found| found == verdict)
            .count()
    }

    /// One line for each test that ended otherwise in `other`; empty where all are the same.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut names: Vec<_> = self.0.keys().chain(other.0.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let show = |verdicts: Option<&Vec<Verdict>>| {
            verdicts.map_or("absent".into(), |v| format!("{v:?}"))
        };
        names
            .into_iter()
            .filter(|name| self.0.get(*name) != other.0.get(*name))
            .map(|name| {
                format!(
                    "{name}: {} / {}",
                    show(self.0.get(name)),
                    show(other.0.get(name))
                )
            })
            .collect()
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [passed, failed, ignored] =
            [Verdict::Passed, Verdict::Failed, Verdict::Ignored].map(|verdict| self.count(verdict));
        write!(f, "{passed} passed, {failed} failed, {ignored} ignored")
    }
}

fn verdict_of(line: &str) -> Option<(&str, Verdict)> {
    let (name, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let verdict = match verdict.split([',', ' ']).next()? {
        "ok" => Verdict::Passed,
        "FAILED" => Verdict::Failed,
        "ignored" => Verdict::Ignored,
        _ => return None,
    };
    Some((
        // What is to be done with a test is not of its name, by which it is listed.
        [" - should panic", " - compile fail", " - compile"]
            .iter()
            .find_map(|how| name.strip_suffix(how))
            .unwrap_or(name),
        verdict,
    ))
}

/// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s` is 4.
fn total_of(result: &str) -> usize {
    let number_before = |word: &str| -> usize {
        let before = result.split(word).next().unwrap_or_default().trim_end();
        before
            .rsplit(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_default()
    };
    ["passed", "failed", "ignored"]
        .into_iter()
        .map(number_before)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::{Verdict, Verdicts};

    const SUITE: &str = "
running 4 tests
test tests::a ... ok
test tests::b - should panic ... ok
test tests::slow ... ignored, takes minutes
test src/lib.rs - greet (line 3) - compile fail ... FAILED

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s

test tests::a ... FAILED
test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn reads_every_kind_of_line() {
        let verdicts = Verdicts::parse(SUITE).unwrap();
        assert_eq!(verdicts.to_string(), "2 passed, 2 failed, 1 ignored");
        assert_eq!(verdicts.0["tests::a"], [Verdict::Passed, Verdict::Failed]);
        assert_eq!(verdicts.0["tests::b"], [Verdict::Passed]);
    }

    #[test]
    fn names_what_ended_otherwise() {
        let verdicts = Verdicts::parse(SUITE).unwrap();
        let other = Verdicts::parse(
            &SUITE
                .replace(
                    "tests::slow ... ignored, takes minutes",
                    "tests::slow ... ok",
                )
                .replace("2 passed; 1 failed; 1", "3 passed; 1 failed; 0"),
        )
        .unwrap();
        assert_eq!(
            verdicts.differences(&other),
            ["tests::slow: [Ignored] / [Passed]"]
        );
        assert!(verdicts.differences(&verdicts).is_empty());
    }

    #[test]
    fn reads_the_events_of_orbit() {
        let finished = |name: &str, class: &str| {
            format!(
                r#"{{"event":"test-finished","class":"{class}","test":{{"binary":"b","name":"{name}"}}}}"#
            )
        };
        let end = r#"{"event":"run-finished","passed":2,"failed":1,"ignored":1,"not_reached":0}"#;
        let lines = [
            finished("a", "flaky"),
            finished("a", "failed"),
            finished("c", "ignored"),
            finished("", "passed"),
        ];
        let stdout = format!("{}\n{end}\n", lines.join("\n"));
        let verdicts = Verdicts::of_orbit(&stdout).unwrap();
        assert_eq!(verdicts.to_string(), "1 passed, 1 failed, 1 ignored");
        assert_eq!(verdicts.of("c"), Some(Verdict::Ignored));
        assert_eq!(verdicts.of("a"), None);
        let fault = Verdicts::of_orbit(&format!("{}\n{end}\n", lines[0])).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "read 1 verdicts, but `cargo orbit test` counts Some(4)"
        );
        assert!(Verdicts::of_orbit("noise").is_err());
    }

    #[test]
    fn refuses_output_that_lacks_a_verdict() {
        let fault = Verdicts::parse(&SUITE.replace("test tests::b", "noise tests::b")).unwrap_err();
        assert_eq!(fault.to_string(), "read 4 verdicts, but libtest counts 5");
    }
}
