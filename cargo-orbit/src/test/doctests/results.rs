//! What came of doctests: verdicts from what rustdoc said, which [`super::said`] reads, and from what runners have told of their programs.
//!
//! Pure.

use crate::test::{
    doctests::said,
    event::{Attempt, BinaryId, Skipped, TestId, TestResult, Used, Verdict},
    libtest::Said,
    session::Ran,
};

/// What came of the doctests of one library: of `said`, and of what the programs did that `ran`.
pub(super) fn results_of<'a>(
    said: &said::Library,
    binary: &BinaryId,
    ran: impl Iterator<Item = &'a Ran>,
    lane: usize,
    interrupted: bool,
) -> Vec<TestResult> {
    let mut results: Vec<TestResult> = said
        .verdicts
        .iter()
        .map(|heard| {
            let attempt = |verdict| Attempt {
                started: heard.started,
                wall_time: heard.ended.saturating_sub(heard.started),
                lane: lane + heard.lane,
                alone: false,
                ..Attempt::new(verdict, Used::default())
            };
            let (attempts, skipped) = match heard.said {
                Said::Ignored => (Vec::new(), Some(Skipped::Ignored)),
                Said::Passed => (vec![attempt(Verdict::Passed)], None),
                Said::Failed => {
                    let stdout = said.outputs.get(&heard.name).cloned().unwrap_or_default();
                    let failed = Attempt {
                        stdout,
                        ..attempt(Verdict::Failed { code: None })
                    };
                    (vec![failed], None)
                }
            };
            TestResult {
                id: TestId {
                    binary: binary.clone(),
                    name: heard.name.clone(),
                    repetition: None,
                },
                attempts,
                skipped,
            }
        })
        .collect();

    let mut whole = Attempt {
        lane,
        alone: false,
        ..Attempt::new(Verdict::Passed, Used::default())
    };
    let mut used = Used::default();
    for ran in ran {
        used = used.and(ran.used);
        whole.leaked.extend(ran.leaked.iter().cloned());
        whole.denied.extend(ran.denied.iter().cloned());
        if let Some(verdict) = &ran.verdict
            && !refine(&mut results, verdict)
        {
            let one = format!("a program with doctests of it: {verdict}");
            whole.notes.push(one);
            whole.verdict = verdict.clone();
        }
    }
    if said.lost > 0 && interrupted {
        whole.verdict = Verdict::Interrupted;
    } else if said.lost > 0 {
        let note = format!("a program ended before {} of its doctests had", said.lost);
        whole.notes.push(note);
        if whole.verdict.passed() {
            whole.verdict = Verdict::Failed { code: None };
        }
        whole.stdout.clone_from(&said.text);
    }
    if let Some(last) = results
        .iter_mut()
        .rev()
        .find_map(|it| it.attempts.last_mut())
    {
        last.used = used;
    } else {
        whole.used = used;
    }
    let is_worth_telling = !whole.verdict.passed()
        || !whole.leaked.is_empty()
        || !whole.denied.is_empty()
        || !whole.notes.is_empty();
    if is_worth_telling {
        results.push(TestResult {
            id: TestId {
                binary: binary.clone(),
                name: String::new(),
                repetition: None,
            },
            attempts: vec![whole],
            skipped: None,
        });
    }
    results
}

/// Rustdoc knows only that a doctest failed; its runner has said in the doctest's output how. Whether one was found that
/// may have ended so.
fn refine(results: &mut [TestResult], verdict: &Verdict) -> bool {
    let line = format!("orbit: {verdict}");
    let is_it = |attempt: &&mut Attempt| {
        let output = String::from_utf8_lossy(&attempt.stdout);
        matches!(attempt.verdict, Verdict::Failed { .. }) && output.lines().any(|it| it == line)
    };
    let mut attempts = results.iter_mut().flat_map(|it| &mut it.attempts);
    match attempts.find(is_it) {
        Some(attempt) => {
            attempt.verdict = verdict.clone();
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::test::event::{Class, Denied};

    const OUTPUT: &str = "   Doc-tests first

running 2 tests
test src/lib.rs - one (line 1) ... ok
test src/lib.rs - two (line 5) - compile fail ... FAILED

failures:

---- src/lib.rs - two (line 5) - compile fail stdout ----
Test compiled successfully, but it's marked `compile_fail`.

failures:
    src/lib.rs - two (line 5) - compile fail

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s

error: doctest failed, to rerun pass `-p first --doc`
   Doc-tests second_one

running 1 test
test src/lib.rs - one (line 1) ... ignored

test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s
";

    fn told(results: &[TestResult]) -> String {
        let lines: Vec<String> = results
            .iter()
            .map(|result| {
                let last = result.attempts.first();
                let output = last.map(|it| String::from_utf8_lossy(&it.stdout));
                let how = last.map_or_else(String::new, |it| it.verdict.to_string());
                format!("{} | {how} | {}", result.id, output.unwrap_or_default())
            })
            .collect();
        lines.join("\n")
    }

    fn said(text: &str) -> Vec<said::Library> {
        let mut listener = said::Listener::new(2, Duration::ZERO);
        listener.take(text.as_bytes(), Duration::ZERO);
        listener.end().1
    }

    fn binary() -> BinaryId {
        BinaryId("first::doc".into())
    }

    fn ran(verdict: Option<Verdict>) -> Ran {
        Ran {
            binary: binary(),
            used: Used {
                cpu_user: Duration::from_millis(2),
                cpu_system: Duration::ZERO,
                memory_peak_bytes: Some(7),
            },
            verdict,
            leaked: Vec::new(),
            denied: Vec::new(),
        }
    }

    #[test]
    fn libraries_are_told_apart() {
        let said = said(OUTPUT);
        let names: Vec<&str> = said.iter().map(|library| &*library.name).collect();
        assert_eq!(names, ["first", "second_one"]);
        let ran = [ran(None), ran(None)];
        let first = results_of(&said[0], &binary(), ran.iter(), 0, false);
        let second = results_of(
            &said[1],
            &BinaryId("second-one::doc".into()),
            [].iter(),
            0,
            false,
        );
        insta::assert_snapshot!([told(&first), told(&second)].join("\n"));
        let used = first[1].attempts[0].used;
        assert_eq!(used.cpu_user, Duration::from_millis(4));
        assert_eq!(used.memory_peak_bytes, Some(7));
    }

    #[test]
    fn what_rustdoc_does_not_see_is_told() {
        let output = "   Doc-tests first

running 2 tests
test src/lib.rs - one (line 1) ... FAILED
test src/lib.rs - two (line 5) - should panic ... ok

failures:

---- src/lib.rs - one (line 1) stdout ----
Test executable failed (exit status: 124).

stderr:
orbit: killed after its timeout of 2s


failures:
    src/lib.rs - one (line 1)

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
";
        let said = said(output);
        let timed_out = || {
            ran(Some(Verdict::TimedOut {
                limit: Duration::from_secs(2),
            }))
        };
        let one = results_of(&said[0], &binary(), [timed_out()].iter(), 0, false);
        assert_eq!(one.len(), 2);
        assert!(told(&one).starts_with(
            "first::doc src/lib.rs - one (line 1) | killed after its timeout of 2s |"
        ));
        // The second was the one that should panic, and did not.
        let both = results_of(
            &said[0],
            &binary(),
            [timed_out(), timed_out()].iter(),
            0,
            false,
        );
        assert!(
            told(&both).ends_with("first::doc | killed after its timeout of 2s | "),
            "{}",
            told(&both)
        );
        let reached = Ran {
            denied: vec![Denied {
                to: "192.0.2.1:443/tcp".into(),
                count: 1,
            }],
            ..ran(None)
        };
        let told_of = results_of(&said[0], &binary(), [reached].iter(), 0, false);
        assert_eq!(told_of[2].class(), Class::Passed);
        assert_eq!(told_of[2].attempts[0].denied.len(), 1);
    }

    #[test]
    fn a_program_that_ends_before_its_doctests_has_failed() {
        let said = said("   Doc-tests first\nrunning 3 tests\ntest a ... ok\n");
        let results = results_of(&said[0], &binary(), [].iter(), 0, false);
        assert_eq!(results[1].class(), Class::Failed);
        let notes = &results[1].attempts[0].notes;
        assert_eq!(notes[0], "a program ended before 2 of its doctests had");
        let stopped = results_of(&said[0], &binary(), [].iter(), 0, true);
        assert_eq!(stopped[1].attempts[0].verdict, Verdict::Interrupted);
    }
}
