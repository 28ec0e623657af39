//! What waits to run: which tests of a binary, in which groups, in which order.

use std::sync::Arc;

use super::{
    Engine,
    jobs::{Job, Task},
};
use crate::{
    config::settings::Isolate,
    test::{
        binary::TestBinary,
        event::{BinaryListed, Event, Skipped, TestId, TestResult},
        lists::Tests,
        schedule::Size,
        select::Chosen,
        together::Group,
    },
};

/// So many bytes of names fit on a command line with room to spare: execve(2) takes a quarter of the stack, 2 MiB.
const NAMES_BYTES: usize = 512 << 10;

impl Engine<'_> {
    /// A binary that is run as a whole.
    pub(super) fn whole(&self, binary: &Arc<TestBinary>) -> Task {
        Task {
            id: TestId {
                binary: binary.id.clone(),
                name: String::new(),
                repetition: None,
            },
            binary: Arc::clone(binary),
            is_ignored: false,
            settings: self.choice.settings(binary, ""),
            attempts: Vec::new(),
            is_listed: false,
            orphan_of: None,
        }
    }

    pub(super) fn listed(&mut self, binary: &Arc<TestBinary>, tests: Option<Tests>) {
        let Some(tests) = tests else {
            let chosen = self
                .options
                .selection
                .choose(&binary.id, [("", false)], |name| {
                    self.choice.has(binary, name)
                });
            let selected = usize::from(chosen == [Chosen::Run]);
            self.tell_listed(binary, 1, selected);
            if selected == 1 {
                let task = self.whole(binary);
                self.push_repeated(&task);
            } else {
                self.ended.summary.filtered_out += 1;
            }
            return;
        };
        let names: Vec<String> = tests.iter().map(|(name, _)| name.clone()).collect();
        self.ended.history.keep(&binary.id, &names);
        let chosen = self.options.selection.choose(
            &binary.id,
            tests
                .iter()
                .map(|(name, ignored)| (name.as_str(), *ignored)),
            |name| self.choice.has(binary, name),
        );
        let selected = chosen
            .iter()
            .filter(|chosen| **chosen == Chosen::Run)
            .count();
        self.tell_listed(binary, tests.len(), selected);
        let runs_by_itself = tests.iter().filter(|(_, ignored)| !ignored).count();
        let all_but_ignored = tests
            .iter()
            .zip(&chosen)
            .all(|((_, ignored), chosen)| *ignored != (*chosen == Chosen::Run));
        let is_all = all_but_ignored && selected == runs_by_itself;

        let mut together: Vec<Task> = Vec::new();
        for ((name, is_ignored), chosen) in tests.into_iter().zip(chosen) {
            let id = TestId {
                binary: binary.id.clone(),
                name,
                repetition: None,
            };
            match chosen {
                Chosen::No => self.ended.summary.filtered_out += 1,
                Chosen::Ignored => self.finished(TestResult {
                    id,
                    attempts: Vec::new(),
                    skipped: Some(Skipped::Ignored),
                }),
                Chosen::Run => {
                    let task = Task {
                        settings: self.choice.settings(binary, &id.name),
                        id,
                        binary: Arc::clone(binary),
                        is_ignored,
                        attempts: Vec::new(),
                        is_listed: true,
                        orphan_of: None,
                    };
                    if self.options.list {
                        self.ended.listed.push(task.id);
                    } else if self.options.nocapture || task.settings.isolate() == Isolate::Test {
                        self.push_repeated(&task);
                    } else {
                        together.push(task);
                    }
                }
            }
        }
        self.push_groups(together, is_all);
    }

    pub(super) fn tell_listed(&mut self, binary: &TestBinary, tests: usize, selected: usize) {
        self.tests += selected * usize::try_from(self.options.repeat).unwrap_or(1);
        self.tell(&Event::BinaryListed(BinaryListed {
            binary: binary.id.clone(),
            package: binary.package.clone(),
            kind: binary.kind.to_owned(),
            tests,
            selected,
        }));
    }

    /// Which times a test runs; no number where it is once.
    pub(super) fn repetitions(&self) -> impl Iterator<Item = Option<u32>> + use<> {
        let repeat = self.options.repeat;
        (1..=repeat).map(move |number| (repeat > 1).then_some(number))
    }

    pub(super) fn push_repeated(&mut self, task: &Task) {
        if self.options.list {
            self.ended.listed.push(task.id.clone());
            return;
        }
        for repetition in self.repetitions() {
            let mut task = task.clone();
            task.id.repetition = repetition;
            self.push_alone(task);
        }
    }

    pub(super) fn push_alone(&mut self, task: Task) {
        self.push(Job::Alone(Box::new(task)));
    }

    /// Tests with the same settings share a sandbox.
    pub(super) fn push_groups(&mut self, tasks: Vec<Task>, is_all: bool) {
        let mut groups: Vec<Vec<Task>> = Vec::new();
        let mut sizes: Vec<usize> = Vec::new();
        for task in tasks {
            let length = task.id.name.len() + 9;
            let found = groups.iter().zip(&sizes).position(|(group, size)| {
                group[0].settings == task.settings && (is_all || size + length < NAMES_BYTES)
            });
            if let Some(index) = found {
                sizes[index] += length;
                groups[index].push(task);
            } else {
                sizes.push(length);
                groups.push(vec![task]);
            }
        }
        let is_all = is_all && groups.len() == 1;
        for tasks in groups {
            for repetition in self.repetitions() {
                let mut tasks = tasks.clone();
                for task in &mut tasks {
                    task.id.repetition = repetition;
                }
                let group = Group {
                    names: tasks
                        .iter()
                        .map(|task| Arc::from(task.id.name.as_str()))
                        .collect(),
                    is_all,
                    has_ignored: tasks.iter().any(|task| task.is_ignored),
                    threads: tasks.len().min(self.options.threads).max(1),
                    timeout: tasks[0].settings.timeout(),
                    show_output: self.options.show_output,
                };
                self.push(Job::Together(tasks, group));
            }
        }
    }

    pub(super) fn push(&mut self, job: Job) {
        if self.options.shuffle.is_some()
            && matches!(&job, Job::Alone(task) if task.attempts.is_empty() && task.orphan_of.is_none())
            || self.options.shuffle.is_some() && matches!(job, Job::Together(..))
        {
            self.shuffled.push(job);
        } else {
            let size = self.size(&job);
            self.queue.push(size, job);
        }
    }

    pub(super) fn size(&self, job: &Job) -> Size {
        let took = |task: &Task| self.ended.history.took(&task.binary.id, &task.id.name);
        match job {
            Job::List(..) | Job::Doctests(_) => Size {
                expected: None,
                slots: 1,
                memory_bytes: None,
            },
            Job::Alone(task) => Size {
                expected: took(task),
                slots: 1,
                memory_bytes: task.settings.memory_bytes(),
            },
            Job::Together(tasks, group) => Size {
                expected: tasks.iter().map(took).sum(),
                slots: group.threads,
                memory_bytes: tasks[0].settings.memory_bytes(),
            },
        }
    }

    pub(super) fn give_up_what_waits(&mut self) {
        let mut jobs = self.queue.take_all();
        jobs.append(&mut self.shuffled);
        let delayed = std::mem::take(&mut self.delayed);
        jobs.extend(
            delayed
                .into_iter()
                .map(|(_, task)| Job::Alone(Box::new(task))),
        );
        self.listing -= self.lists.take_all().len();
        self.doctests = None;
        for job in jobs {
            match job {
                Job::List(..) | Job::Doctests(_) => {}
                Job::Alone(task) => self.not_reached(*task),
                Job::Together(tasks, _) => {
                    for task in tasks {
                        self.not_reached(task);
                    }
                }
            }
        }
    }

    pub(super) fn not_reached(&mut self, mut task: Task) {
        let attempts = std::mem::take(&mut task.attempts);
        // A retry that is not reached leaves the test with what it has: a failure.
        let skipped = attempts.is_empty().then_some(Skipped::NotReached);
        self.settle_orphan(&task, attempts.is_empty());
        self.finished(TestResult {
            id: task.id,
            attempts,
            skipped,
        });
    }
}
