//! What becomes of a test when a job has ended: its verdict, another attempt, or a sandbox of its own.

use std::{sync::Arc, time::Duration};

use super::{
    Engine, Orphans,
    jobs::{Task, by_policy, of_span},
};
use crate::{
    config::settings::Settings,
    test::{
        binary::TestBinary,
        event::{
            Attempt, Class, Ending, Event, SharedSandbox, Skipped, TestId, TestResult, Verdict,
        },
        libtest::Said,
        together::{Gone, Span},
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
        if class == Class::Failed && self.options.fail_fast && !self.options.list {
            self.end(Ending::Failure);
        }
    }

    /// A test beside others was heard to have ended: what it printed comes later, and is not waited for where nobody asks.
    pub(super) fn heard(&mut self, task: Task, said: Said, attempt: Attempt) {
        if said == Said::Passed && !self.options.show_output {
            self.passed.insert(task.id.clone());
            self.finish(task, attempt);
        } else {
            let at = attempt.started + attempt.wall_time;
            self.ended_in_group(task.id, at);
        }
    }

    /// It runs no more, where it did; its verdict comes later.
    fn ended_in_group(&mut self, id: TestId, at: Duration) {
        if self.running.remove(&id).is_some() {
            self.tell(&Event::TestEnded { id, at });
        }
    }

    /// What looked like its verdict was told, and another came: it has failed, and that it has is told once.
    fn correct(&mut self, task: Task, mut attempt: Attempt) {
        attempt
            .notes
            .push("a line that looked like its verdict had said that it passed".to_owned());
        let result = TestResult {
            id: task.id,
            attempts: vec![attempt],
            skipped: None,
        };
        self.ended.summary.passed -= 1;
        self.ended.summary.failed += 1;
        self.ended.history.learn(&result);
        self.tell(&Event::TestCorrected(result));
        if self.options.fail_fast {
            self.end(Ending::Failure);
        }
    }

    /// A sandbox with several tests has ended. Those that passed may be told already.
    pub(super) fn gone(&mut self, tasks: Vec<Task>, gone: Gone) {
        let Gone {
            mut attempt,
            mut told,
            spans,
        } = gone;
        attempt.alone = false;
        let binary = Arc::clone(&tasks[0].binary);
        let settings = Arc::clone(&tasks[0].settings);
        let whole = Span {
            started: attempt.started,
            ended: Some(attempt.started + attempt.wall_time),
            slot: attempt.lane,
        };
        let kept = attempt.kept.clone();
        let of_test = |task: &Task, verdict: Verdict, stdout: Vec<u8>| {
            let span = spans.get(task.id.name.as_str()).copied();
            let mut span = span.unwrap_or(whole);
            span.ended = span.ended.or(whole.ended);
            let kept = kept.clone().filter(|_| !verdict.passed());
            Attempt {
                stdout,
                kept,
                ..of_span(span, span.slot, verdict)
            }
        };
        if let Verdict::SetupFailed { .. } = attempt.verdict {
            for task in tasks {
                if !self.passed.remove(&task.id) {
                    let same = attempt.clone();
                    self.finish(task, same);
                }
            }
            return;
        }
        let shared = SharedSandbox {
            binary: binary.id.clone(),
            repetition: tasks[0].id.repetition,
            tests: tasks.len(),
            attempt: Attempt {
                stdout: Vec::new(),
                ..attempt.clone()
            },
        };
        let is_all_well = attempt.verdict.passed() && told.is_all_well(tasks.len());
        let mut orphans = Vec::new();
        let mut has_failed = false;
        for task in tasks {
            let name = task.id.name.as_str();
            let was_told = self.passed.remove(&task.id);
            let mut output = || told.outputs.remove(name).unwrap_or_default();
            match told.verdicts.get(name) {
                Some(Said::Passed) if was_told => {}
                Some(Said::Passed) => {
                    let passed = of_test(&task, Verdict::Passed, output());
                    self.finish(task, passed);
                }
                Some(Said::Ignored) => {
                    let ignored = TestResult {
                        id: task.id,
                        attempts: Vec::new(),
                        skipped: Some(Skipped::Ignored),
                    };
                    self.finished(ignored);
                }
                Some(Said::Failed) => {
                    has_failed = true;
                    let failed = of_test(&task, Verdict::Failed { code: None }, output());
                    if was_told {
                        self.correct(task, failed);
                    } else {
                        self.finish(task, failed);
                    }
                }
                None if is_all_well => {
                    let passed = of_test(&task, Verdict::Passed, output());
                    self.finish(task, passed);
                }
                None => orphans.push(task),
            }
        }
        self.tell(&Event::SandboxFinished(shared));
        if attempt.verdict == Verdict::Interrupted {
            for task in orphans {
                if spans.contains_key(task.id.name.as_str()) {
                    let interrupted = of_test(&task, Verdict::Interrupted, Vec::new());
                    self.finish(task, interrupted);
                } else {
                    self.not_reached(task);
                }
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
            let at = self.now();
            for mut task in orphans {
                self.ended_in_group(task.id.clone(), at);
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
        // Told of the sandbox.
        attempt.wrote.clear();
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
            attempt.kept = None;
            self.finish_binary(binary, attempt);
        }
    }
}
