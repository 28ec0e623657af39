//! What becomes of a test when a job has ended: its verdict, another attempt, or a sandbox of its own.

use std::sync::Arc;

use super::{
    Engine, Orphans,
    jobs::{Task, by_policy},
};
use crate::{
    config::settings::Settings,
    test::{
        binary::TestBinary,
        event::{Attempt, Class, Ending, Event, Skipped, TestId, TestResult, Used, Verdict},
        libtest::Said,
        together::Gone,
    },
};

impl Engine<'_> {
    /// An attempt at a test has ended: it is tried again, or it is done.
    pub(super) fn finish(&mut self, mut task: Task, attempt: Attempt) {
        self.running.remove(&task.id);
        let retries = task.settings.retries();
        let tried = u32::try_from(task.attempts.len()).unwrap_or(u32::MAX);
        let is_failure = !attempt.verdict.passed();
        let may_retry = !matches!(
            attempt.verdict,
            Verdict::SetupFailed { .. } | Verdict::Interrupted
        );
        if is_failure && may_retry && tried < retries.count && self.ending.is_none() {
            self.tell(&Event::TestRetried {
                id: task.id.clone(),
                failed: attempt.clone(),
            });
            task.attempts.push(attempt);
            let at = self.now() + retries.delay_before(tried + 2);
            self.delayed.push((at, task));
            return;
        }
        self.settle_orphan(&task, !is_failure);
        let mut attempts = std::mem::take(&mut task.attempts);
        attempts.push(attempt);
        self.finished(TestResult {
            id: task.id,
            attempts,
            skipped: None,
        });
    }

    /// A test that its binary had left behind has a verdict of its own now.
    pub(super) fn settle_orphan(&mut self, task: &Task, passed: bool) {
        let Some(number) = task.orphan_of else { return };
        let Some(orphans) = self.orphans.get_mut(&number) else {
            return;
        };
        orphans.left -= 1;
        orphans.failed |= !passed;
        if orphans.left > 0 {
            return;
        }
        if let Some(Orphans {
            failed: false,
            binary,
            mut attempt,
            ..
        }) = self.orphans.remove(&number)
        {
            attempt.notes.push(
                "it ended before all of its tests had; each of those passes when it runs alone"
                    .to_owned(),
            );
            self.finish_binary(&binary, attempt);
        }
    }

    /// Something that is a binary's, and no one test's.
    pub(super) fn finish_binary(&mut self, binary: &TestBinary, attempt: Attempt) {
        let id = TestId {
            binary: binary.id.clone(),
            name: String::new(),
            repetition: None,
        };
        self.finished(TestResult {
            id,
            attempts: vec![attempt],
            skipped: None,
        });
    }

    pub(super) fn finished(&mut self, result: TestResult) {
        let summary = &mut self.ended.summary;
        let class = result.class();
        match class {
            Class::Passed => summary.passed += 1,
            Class::Flaky => {
                summary.passed += 1;
                summary.flaky += 1;
            }
            Class::Failed => summary.failed += 1,
            Class::Ignored => summary.ignored += 1,
            Class::NotReached => summary.not_reached += 1,
        }
        if let Some(Attempt {
            verdict: Verdict::SetupFailed { .. },
            ..
        }) = result.attempts.last()
        {
            self.ended.not_run += 1;
        }
        self.running.remove(&result.id);
        self.ended.history.learn(&result);
        self.tell(&Event::TestFinished(result));
        if class == Class::Failed && self.options.fail_fast {
            self.end(Ending::Failure);
        }
    }

    /// A sandbox with several tests has ended. Those that passed are told already.
    pub(super) fn gone(&mut self, tasks: Vec<Task>, gone: Gone) {
        let Gone {
            mut attempt,
            mut told,
            times,
        } = gone;
        let binary = Arc::clone(&tasks[0].binary);
        let settings = Arc::clone(&tasks[0].settings);
        let of_test = |task: &Task, verdict: Verdict, stdout: Vec<u8>| {
            let (started, ended) = times
                .get(task.id.name.as_str())
                .copied()
                .unwrap_or_default();
            Attempt {
                started,
                wall_time: ended.saturating_sub(started),
                lane: attempt.lane,
                alone: false,
                stdout,
                ..Attempt::new(verdict, Used::default())
            }
        };
        if let Verdict::SetupFailed { .. } = attempt.verdict {
            for task in tasks {
                let same = attempt.clone();
                self.finish(task, same);
            }
            return;
        }
        let is_all_well = attempt.verdict.passed() && told.is_all_well(tasks.len());
        let mut orphans = Vec::new();
        let mut has_failed = false;
        for task in tasks {
            match told.verdicts.get(task.id.name.as_str()) {
                Some(Said::Passed) if times.contains_key(task.id.name.as_str()) => {}
                Some(Said::Passed) => {
                    let passed = of_test(&task, Verdict::Passed, Vec::new());
                    self.finish(task, passed);
                }
                Some(Said::Ignored) => self.finished(TestResult {
                    id: task.id,
                    attempts: Vec::new(),
                    skipped: Some(Skipped::Ignored),
                }),
                Some(Said::Failed) => {
                    has_failed = true;
                    let output = told
                        .outputs
                        .remove(task.id.name.as_str())
                        .unwrap_or_default();
                    let failed = of_test(&task, Verdict::Failed { code: None }, output);
                    self.finish(task, failed);
                }
                None if is_all_well => {
                    let passed = of_test(&task, Verdict::Passed, Vec::new());
                    self.finish(task, passed);
                }
                None => orphans.push(task),
            }
        }
        attempt.alone = false;
        if attempt.verdict == Verdict::Interrupted {
            for task in orphans {
                let interrupted = of_test(&task, Verdict::Interrupted, Vec::new());
                self.finish(task, interrupted);
            }
        } else if orphans.is_empty() {
            self.judge_binary(&binary, &settings, attempt, has_failed);
        } else {
            // Which of them ended it cannot be told from outside: each runs again, alone.
            self.last_group += 1;
            let number = self.last_group;
            let left = orphans.len();
            self.orphans.insert(
                number,
                Orphans {
                    left,
                    failed: has_failed,
                    binary,
                    attempt,
                },
            );
            for mut task in orphans {
                self.running.remove(&task.id);
                task.orphan_of = Some(number);
                if self.ending.is_some() {
                    self.not_reached(task);
                } else {
                    self.push_alone(task);
                }
            }
        }
    }

    /// What a binary did beside its tests: failed though they passed, left processes, tried to reach out.
    pub(super) fn judge_binary(
        &mut self,
        binary: &TestBinary,
        settings: &Settings,
        mut attempt: Attempt,
        has_failed: bool,
    ) {
        if !attempt.verdict.passed() && !has_failed {
            attempt.notes.push("its tests have passed".to_owned());
            self.finish_binary(binary, attempt);
            return;
        }
        let is_worth_telling =
            !attempt.leaked.is_empty() || !attempt.denied.is_empty() || !attempt.notes.is_empty();
        if is_worth_telling {
            attempt.verdict = Verdict::Passed;
            by_policy(&mut attempt, settings);
            attempt.stdout.clear();
            attempt.stderr.clear();
            self.finish_binary(binary, attempt);
        }
    }
}
