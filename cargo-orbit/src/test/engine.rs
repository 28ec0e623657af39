//! The engine: takes binaries as they are built, lists their tests, runs them in sandboxes, and tells what happens.
//!
//! One thread decides; each running job has a thread that waits for its sandbox, and reports back. What is next
//! is decided in [`schedule`](super::schedule), what a sandbox showed in [`attempt`] and
//! [`together`](super::together), what is printed in [`crate::report`].

use std::{
    collections::BTreeMap,
    ffi::OsString,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, Scope},
    time::Duration,
};

use super::{
    attempt::{self, Ground, Streams},
    binary::TestBinary,
    doctests::{self, Doctests},
    event::{
        Attempt, BinaryListed, Class, Ending, Event, Skipped, Summary, TestId, TestResult, Used,
        Verdict,
    },
    history::History,
    libtest::{self, Said},
    schedule::{Queue, Room, Size},
    select::{Chosen, RunIgnored, Selection},
    together::{Gone, Group},
};
use crate::{
    config::settings::{Isolate, Settings},
    report::Reports,
};

/// How often a progress line moves.
const TICK: Duration = Duration::from_millis(100);

/// How long tests have to end after they were asked to.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many bytes of names fit on a command line with room to spare: execve(2) takes a quarter of the stack, 2 MiB.
const NAMES_BYTES: usize = 512 << 10;

/// What was asked of a run.
pub(crate) struct Options {
    pub(crate) jobs: usize,
    pub(crate) selection: Selection,
    /// Nothing is captured, and one test runs at a time.
    pub(crate) nocapture: bool,
    pub(crate) fail_fast: bool,
    pub(crate) repeat: u32,
    /// A seed.
    pub(crate) shuffle: Option<u64>,
    /// Tests are named, not run.
    pub(crate) list: bool,
    /// For the test binaries.
    pub(crate) arguments: Vec<OsString>,
    /// What the limits of running tests may add up to.
    pub(crate) memory_bytes: u64,
}

/// What chooses how, and whether, a test runs.
pub(crate) trait Choice: Sync {
    fn settings(&self, binary: &TestBinary, test: &str) -> Arc<Settings>;
    /// Whether the filtersets have it.
    fn has(&self, binary: &TestBinary, test: &str) -> bool;
}

/// What reaches the deciding thread.
pub(crate) enum Message {
    Built(Arc<TestBinary>),
    /// The build has ended, and whether well.
    BuildEnded(bool),
    /// Asked to end by a signal.
    Signal(i32),
    /// In the words of a job.
    Passed(Box<Task>, Box<Attempt>),
    Done(Room, Done),
}

/// A test to run.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    id: TestId,
    binary: Arc<TestBinary>,
    is_ignored: bool,
    settings: Arc<Settings>,
    /// Failed ones.
    attempts: Vec<Attempt>,
    /// Whether the program has a list of tests; if not, it is run as a whole.
    is_listed: bool,
    /// Which group of its binary it ran in without coming to an end there.
    orphan_of: Option<u64>,
}

enum Job {
    List(Arc<TestBinary>, Arc<Settings>),
    Alone(Box<Task>),
    Together(Vec<Task>, Group),
    Doctests(Doctests),
}

/// What came of a job.
pub(crate) enum Done {
    Listed(
        Arc<TestBinary>,
        Result<Option<Vec<(String, bool)>>, Box<Attempt>>,
    ),
    Alone(Box<Task>, Box<Attempt>),
    Together(Vec<Task>, Box<Gone>),
    Doctests(Vec<TestResult>, Option<Box<Attempt>>),
}

/// A binary that ended before its tests did: they run again, each alone, and if none of those fails, it has failed itself.
struct Orphans {
    left: usize,
    failed: bool,
    binary: Arc<TestBinary>,
    attempt: Attempt,
}

/// How a run went.
pub(crate) struct Ended {
    pub(crate) summary: Summary,
    pub(crate) history: History,
    pub(crate) build_failed: bool,
    /// Reasons why tests did not run.
    pub(crate) not_run: usize,
    pub(crate) signal: Option<i32>,
    pub(crate) reports: Reports,
    /// For `--list`.
    pub(crate) listed: Vec<TestId>,
}

/// The deciding thread.
pub(crate) struct Engine<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) options: &'a Options,
    pub(crate) choice: &'a dyn Choice,
    pub(crate) sender: Sender<Message>,
    queue: Queue<Job>,
    /// Lists first: nothing else can run before.
    lists: Queue<Arc<TestBinary>>,
    shuffled: Vec<Job>,
    delayed: Vec<(Duration, Task)>,
    running: BTreeMap<TestId, (Duration, Duration, u32)>,
    orphans: BTreeMap<u64, Orphans>,
    last_group: u64,
    doctests: Option<Doctests>,
    listing: usize,
    build: Option<bool>,
    was_build_told: bool,
    tests: usize,
    ending: Option<Ending>,
    signal: Option<i32>,
    kill_at: Option<Duration>,
    ended: Ended,
}

impl<'a> Engine<'a> {
    pub(crate) fn new(
        ground: &'a Ground,
        options: &'a Options,
        choice: &'a dyn Choice,
        sender: Sender<Message>,
        reports: Reports,
        history: History,
    ) -> Self {
        let slots = if options.nocapture { 1 } else { options.jobs };
        Self {
            ground,
            options,
            choice,
            sender,
            queue: Queue::new(slots, options.memory_bytes, options.shuffle.is_none()),
            lists: Queue::new(slots, 0, false),
            shuffled: Vec::new(),
            delayed: Vec::new(),
            running: BTreeMap::new(),
            orphans: BTreeMap::new(),
            last_group: 0,
            doctests: None,
            listing: 0,
            build: None,
            was_build_told: false,
            tests: 0,
            ending: None,
            signal: None,
            kill_at: None,
            ended: Ended {
                summary: Summary::default(),
                history,
                build_failed: false,
                not_run: 0,
                signal: None,
                reports,
                listed: Vec::new(),
            },
        }
    }

    /// Runs everything to its end. `doctests` come last. `stop_build` ends the build when nothing more is wanted of it.
    pub(crate) fn run(
        mut self,
        messages: &Receiver<Message>,
        doctests: Option<Doctests>,
        stop_build: &dyn Fn(),
    ) -> Ended {
        self.doctests = doctests;
        thread::scope(|scope| {
            loop {
                self.start_what_fits(scope);
                if self.is_over() {
                    break;
                }
                match messages.recv_timeout(self.patience()) {
                    Ok(message) => self.take(message, stop_build),
                    Err(RecvTimeoutError::Timeout) => {}
                    // We hold a sender ourselves.
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                self.look_at_the_clock();
            }
        });
        self.ended.summary.wall_time = self.now();
        self.ended.signal = self.signal;
        let summary = self.ended.summary.clone();
        if !self.options.list {
            self.ended.reports.on(&Event::RunFinished(summary));
        }
        self.ended
    }

    fn now(&self) -> Duration {
        self.ground.began.elapsed()
    }

    fn tell(&mut self, event: &Event) {
        if !self.options.list {
            self.ended.reports.on(event);
        }
    }

    fn is_over(&self) -> bool {
        let idle = self.queue.running() == 0 && self.lists.running() == 0;
        let nothing_waits = self.queue.is_empty()
            && self.lists.is_empty()
            && self.delayed.is_empty()
            && self.shuffled.is_empty()
            && self.doctests.is_none();
        idle && self.build.is_some() && (nothing_waits || self.ending.is_some())
    }

    /// How long to wait for a message.
    fn patience(&self) -> Duration {
        let now = self.now();
        let delayed = self.delayed.iter().map(|(at, _)| at.saturating_sub(now));
        delayed.min().unwrap_or(TICK).min(TICK)
    }

    fn look_at_the_clock(&mut self) {
        let now = self.now();
        self.ended.reports.tick(now);
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = None;
            self.ground.running.kill();
        }
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.delayed)
            .into_iter()
            .partition(|(at, _)| *at <= now || self.ending.is_some());
        self.delayed = later;
        for (_, task) in due {
            self.push_alone(task);
        }
        let mut slow = Vec::new();
        for (id, (started, period, told)) in &mut self.running {
            let running_for = now.saturating_sub(*started);
            if !period.is_zero() && running_for >= *period * (*told + 1) {
                *told += 1;
                slow.push((id.clone(), running_for));
            }
        }
        for (id, running_for) in slow {
            self.tell(&Event::TestSlow { id, running_for });
        }
    }

    fn start_what_fits<'scope>(&mut self, scope: &'scope Scope<'scope, '_>)
    where
        'a: 'scope,
    {
        if self.ending.is_some() {
            self.give_up_what_waits();
            return;
        }
        self.release_what_is_shuffled();
        while let Some((room, binary)) = self.lists.next() {
            let settings = self.choice.settings(&binary, "");
            self.start(scope, room, Job::List(binary, settings));
        }
        // A list takes little, but it takes it now.
        while self.queue.running() + self.lists.running() < self.slots() {
            let Some((room, job)) = self.queue.next() else {
                break;
            };
            self.start(scope, room, job);
        }
        let is_idle = self.queue.running() == 0 && self.lists.running() == 0;
        if self.build.is_some()
            && is_idle
            && self.queue.is_empty()
            && self.delayed.is_empty()
            && let Some(doctests) = self.doctests.take()
        {
            let size = Size {
                expected: None,
                slots: self.slots(),
                memory_bytes: None,
            };
            self.queue.push(size, Job::Doctests(doctests));
            if let Some((room, job)) = self.queue.next() {
                self.start(scope, room, job);
            }
        }
    }

    fn slots(&self) -> usize {
        if self.options.nocapture {
            1
        } else {
            self.options.jobs.max(1)
        }
    }

    fn release_what_is_shuffled(&mut self) {
        let (Some(seed), Some(_), 0) = (self.options.shuffle, self.build, self.listing) else {
            return;
        };
        let mut jobs = std::mem::take(&mut self.shuffled);
        fastrand::Rng::with_seed(seed).shuffle(&mut jobs);
        for job in jobs {
            let size = self.size(&job);
            self.queue.push(size, job);
        }
    }

    fn start<'scope>(&mut self, scope: &'scope Scope<'scope, '_>, room: Room, job: Job)
    where
        'a: 'scope,
    {
        let (ground, options) = (self.ground, self.options);
        let sender = self.sender.clone();
        let at = self.now();
        match &job {
            Job::List(..) | Job::Doctests(_) => {}
            Job::Alone(task) => self.started(task, at),
            Job::Together(tasks, _) => {
                for task in tasks {
                    self.started(task, at);
                }
            }
        }
        let work = move || {
            let lane = room.lane();
            let done = match job {
                Job::List(binary, settings) => {
                    let listed = list(ground, options, &binary, &settings);
                    Done::Listed(binary, listed)
                }
                Job::Alone(task) => {
                    let mut attempt = alone(ground, options, &task);
                    attempt.lane = lane;
                    Done::Alone(task, Box::new(attempt))
                }
                Job::Together(tasks, group) => {
                    let gone = together(ground, options, &tasks, &group, lane, &sender);
                    Done::Together(tasks, Box::new(gone))
                }
                Job::Doctests(doctests) => {
                    let (results, failed) = doctests.run(ground, lane);
                    Done::Doctests(results, failed.map(Box::new))
                }
            };
            // The other end is gone only when nobody wants to know any more.
            let _ = sender.send(Message::Done(room, done));
        };
        if thread::Builder::new().spawn_scoped(scope, work).is_err() {
            // No thread to be had: what asked for it is not run, and is told as such when the run ends.
            self.ended.not_run += 1;
        }
    }

    fn started(&mut self, task: &Task, at: Duration) {
        let attempt = u32::try_from(task.attempts.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        self.running
            .insert(task.id.clone(), (at, task.settings.slow_after(), 0));
        self.tell(&Event::TestStarted {
            id: task.id.clone(),
            attempt,
            at,
        });
    }

    fn take(&mut self, message: Message, stop_build: &dyn Fn()) {
        match message {
            Message::Built(binary) => {
                self.listing += 1;
                let size = Size {
                    expected: None,
                    slots: 1,
                    memory_bytes: None,
                };
                self.lists.push(size, binary);
            }
            Message::BuildEnded(well) => {
                self.build = Some(well);
                self.ended.build_failed = !well;
                self.tell_build_finished();
            }
            Message::Signal(number) => {
                if self.signal.replace(number).is_some() {
                    self.ground.running.kill();
                } else {
                    self.end(Ending::Signal);
                    self.kill_at = Some(self.now() + PATIENCE);
                    self.ground.running.signal(number);
                    stop_build();
                }
            }
            Message::Passed(task, attempt) => self.finish(*task, *attempt),
            Message::Done(room, done) => {
                if matches!(done, Done::Listed(..)) {
                    self.lists.done(room);
                } else {
                    self.queue.done(room);
                }
                self.take_done(done);
                if self.ending.is_some() {
                    stop_build();
                }
            }
        }
    }

    fn tell_build_finished(&mut self) {
        if self.build.is_some() && self.listing == 0 && !self.was_build_told {
            self.was_build_told = true;
            let (tests, at) = (self.tests, self.now());
            self.tell(&Event::BuildFinished { tests, at });
        }
    }

    fn take_done(&mut self, done: Done) {
        match done {
            Done::Listed(binary, Ok(tests)) => {
                self.listed(&binary, tests);
                self.listing -= 1;
                self.tell_build_finished();
            }
            Done::Listed(binary, Err(attempt)) => {
                self.listing -= 1;
                let mut task = self.whole(&binary);
                let why = format!("its tests cannot be listed: it {}", attempt.verdict);
                let mut attempt = *attempt;
                if !matches!(attempt.verdict, Verdict::SetupFailed { .. }) {
                    attempt.notes.push(why);
                }
                task.attempts.clear();
                self.finish(task, attempt);
                self.tell_build_finished();
            }
            Done::Alone(task, attempt) => self.finish(*task, *attempt),
            Done::Together(tasks, gone) => self.gone(tasks, *gone),
            Done::Doctests(results, failed) => {
                for result in results {
                    self.finished(result);
                }
                if let Some(attempt) = failed {
                    self.finished(TestResult {
                        id: TestId {
                            binary: doctests::all(),
                            name: String::new(),
                            repetition: None,
                        },
                        attempts: vec![*attempt],
                        skipped: None,
                    });
                }
            }
        }
    }

    /// A binary that is run as a whole.
    fn whole(&self, binary: &Arc<TestBinary>) -> Task {
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

    fn listed(&mut self, binary: &Arc<TestBinary>, tests: Option<Vec<(String, bool)>>) {
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

    fn tell_listed(&mut self, binary: &TestBinary, tests: usize, selected: usize) {
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
    fn repetitions(&self) -> impl Iterator<Item = Option<u32>> + use<> {
        let repeat = self.options.repeat;
        (1..=repeat).map(move |number| (repeat > 1).then_some(number))
    }

    fn push_repeated(&mut self, task: &Task) {
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

    fn push_alone(&mut self, task: Task) {
        self.push(Job::Alone(Box::new(task)));
    }

    /// Tests with the same settings share a sandbox.
    fn push_groups(&mut self, tasks: Vec<Task>, is_all: bool) {
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
                    threads: tasks.len().min(self.options.jobs).max(1),
                    timeout: tasks[0].settings.timeout(),
                };
                self.push(Job::Together(tasks, group));
            }
        }
    }

    fn push(&mut self, job: Job) {
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

    fn size(&self, job: &Job) -> Size {
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

    fn give_up_what_waits(&mut self) {
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

    fn not_reached(&mut self, mut task: Task) {
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

    fn end(&mut self, why: Ending) {
        if self.ending.is_none() {
            self.ending = Some(why);
            let running = self.running.len();
            self.tell(&Event::Ending { why, running });
        }
    }

    /// An attempt at a test has ended: it is tried again, or it is done.
    fn finish(&mut self, mut task: Task, attempt: Attempt) {
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
    fn settle_orphan(&mut self, task: &Task, passed: bool) {
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
    fn finish_binary(&mut self, binary: &TestBinary, attempt: Attempt) {
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

    fn finished(&mut self, result: TestResult) {
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
    fn gone(&mut self, tasks: Vec<Task>, gone: Gone) {
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
    fn judge_binary(
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

/// Turns a pass into a failure where the settings want it.
fn by_policy(attempt: &mut Attempt, settings: &Settings) {
    if !attempt.verdict.passed() {
        return;
    }
    if settings.leak_fails() && !attempt.leaked.is_empty() {
        attempt.verdict = Verdict::Leaked;
    } else if settings.reach_out_fails() && !attempt.denied.is_empty() {
        attempt.verdict = Verdict::ReachedOut;
    }
}

/// The tests of a binary, and which of them are ignored; `None` where it is no such binary.
fn list(
    ground: &Ground,
    options: &Options,
    binary: &Arc<TestBinary>,
    settings: &Settings,
) -> Result<Option<Vec<(String, bool)>>, Box<Attempt>> {
    let ask = |more: &[&str]| {
        let words = ["--list", "--format", "terse"].iter().chain(more);
        let arguments = words
            .map(OsString::from)
            .chain(options.arguments.iter().cloned());
        let sandbox = ground.sandbox(binary, settings, arguments.collect());
        attempt::run(
            ground,
            &binary.id.0,
            sandbox.timeout(Duration::from_secs(60)),
            Streams::Captured,
        )
    };
    let all = ask(&[]);
    if matches!(
        all.verdict,
        Verdict::SetupFailed { .. } | Verdict::Interrupted
    ) {
        return Err(Box::new(all));
    }
    // A program with a `main` of its own may take the question for a reason to fail, or to run.
    let Some(names) = libtest::listed(&all.stdout).filter(|_| all.verdict.passed()) else {
        return Ok(None);
    };
    if names.is_empty() && binary.kind != "lib" && binary.kind != "bin" && !all.stderr.is_empty() {
        return Ok(None);
    }
    if names.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let ignored = ask(&["--ignored"]);
    let ignored = libtest::listed(&ignored.stdout).unwrap_or_default();
    Ok(Some(
        names
            .into_iter()
            .map(|name| {
                let is_ignored = ignored.contains(&name);
                (name, is_ignored)
            })
            .collect(),
    ))
}

/// Runs one test in a sandbox of its own.
fn alone(ground: &Ground, options: &Options, task: &Task) -> Attempt {
    let mut arguments: Vec<OsString> = Vec::new();
    if task.is_listed {
        arguments.extend(["--exact", &task.id.name, "--nocapture"].map(OsString::from));
        if task.is_ignored {
            arguments.push("--include-ignored".into());
        }
    } else if options.selection.ignored == RunIgnored::Only {
        arguments.push("--ignored".into());
    }
    arguments.extend(options.arguments.iter().cloned());
    let mut sandbox = ground.sandbox(&task.binary, &task.settings, arguments);
    if let Some(limit) = task.settings.timeout() {
        sandbox = sandbox.timeout(limit);
    }
    let streams = if options.nocapture {
        Streams::Inherited
    } else {
        Streams::Captured
    };
    let mut attempt = attempt::run(ground, &task.id.to_string(), sandbox, streams);
    if task.is_listed && !options.nocapture {
        let (output, ended) = libtest::alone(&attempt.stdout, &task.id.name);
        if attempt.verdict.passed() && ended == Some(false) {
            attempt.verdict = Verdict::Failed { code: Some(0) };
            attempt
                .notes
                .push("it ended the process before the test was over".to_owned());
        }
        attempt.stdout = output;
    }
    by_policy(&mut attempt, &task.settings);
    attempt
}

/// Runs the tests of a group in one sandbox.
fn together(
    ground: &Ground,
    options: &Options,
    tasks: &[Task],
    group: &Group,
    lane: usize,
    sender: &Sender<Message>,
) -> Gone {
    let binary = &tasks[0].binary;
    let mut arguments = group.arguments();
    arguments.extend(options.arguments.iter().cloned());
    let sandbox = ground.sandbox(binary, &tasks[0].settings, arguments);
    let by_name: BTreeMap<&str, &Task> = tasks
        .iter()
        .map(|task| (task.id.name.as_str(), task))
        .collect();
    let sender = sender.clone();
    let mut gone = group.run(
        ground,
        &binary.id.0,
        sandbox,
        move |name, started, ended| {
            let Some(task) = by_name.get(&**name) else {
                return;
            };
            let attempt = Attempt {
                started,
                wall_time: ended.saturating_sub(started),
                lane,
                alone: false,
                ..Attempt::new(Verdict::Passed, Used::default())
            };
            let _ = sender.send(Message::Passed(
                Box::new((*task).clone()),
                Box::new(attempt),
            ));
        },
    );
    gone.attempt.lane = lane;
    gone
}
