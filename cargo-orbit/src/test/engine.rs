//! The engine: takes binaries as they are built, lists their tests, runs them in sandboxes, and tells what happens.
//!
//! One thread decides; each running job has a thread that waits for its sandbox, and reports back. What is next
//! is decided in [`schedule`](super::schedule), what a sandbox showed in [`attempt`](super::attempt) and
//! [`together`](super::together), what is printed in [`crate::report`]. [`jobs`] is what those threads do, [`waiting`] what is
//! to run, [`verdicts`] what becomes of a test, [`workers`] the threads themselves.

mod jobs;
#[cfg(test)]
mod tests;
mod verdicts;
mod waiting;
mod workers;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, Scope},
    time::{Duration, Instant},
};

use self::{
    jobs::{Done, Errand, Job, Task},
    workers::Workers,
};
use super::{
    attempt::Ground,
    binary::TestBinary,
    doctests::{self, Doctests},
    event::{Attempt, BinaryId, Ending, Event, Summary, TestId, TestResult, Verdict},
    history::History,
    libtest::Said,
    lists::{Stamp, Tests},
    schedule::{Queue, Room, Size},
    select::{Chosen, Selection},
};
use crate::{config::settings::Settings, report::Reports};

/// How often a progress line moves.
const TICK: Duration = Duration::from_millis(100);

/// How long binaries are waited for that are built already, of which cargo tells one after the other: the longest test of all
/// is to be the first.
const GATHERING: Duration = Duration::from_millis(3);

/// How long tests have to end after they were asked to.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was asked of a run.
pub(crate) struct Options {
    /// How many programs run at a time; each thread of one with many tests counts.
    pub(crate) jobs: usize,
    /// How many threads one program may have for its tests.
    pub(crate) threads: usize,
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
    /// What passed tests printed is wanted too.
    pub(crate) show_output: bool,
    /// What the limits of running tests may add up to.
    pub(crate) memory_bytes: u64,
}

/// What chooses how, and whether, a test runs.
pub(crate) trait Choice: Sync {
    fn settings(&self, binary: &TestBinary, test: &str) -> Arc<Settings>;
    /// Whether the filtersets have it.
    fn has(&self, binary: &TestBinary, test: &str) -> bool;
    /// Whether they may have a test of it.
    fn may_have(&self, binary: &TestBinary) -> bool;
}

/// What reaches the deciding thread.
pub(crate) enum Message {
    Built(Arc<TestBinary>),
    /// The build has ended, and whether well.
    BuildEnded(bool),
    /// Asked to end by a signal.
    Signal(i32),
    /// Heard of a test beside others, in the words of a job: it has begun, then.
    Started(Box<Task>, Duration),
    /// It has ended; with when, as if it had passed.
    Ended(Box<Task>, Said, Box<Attempt>),
    /// Lanes that a running job needs no more.
    Free(Room),
    Done(Room, Done),
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

/// Who does jobs, and until when at the latest.
#[derive(Clone, Copy)]
struct Crew<'workers, 'scope, 'env, 'a> {
    scope: &'scope Scope<'scope, 'env>,
    workers: &'workers Workers<Errand<'a>>,
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
    /// Told as passed while their binary runs.
    passed: BTreeSet<TestId>,
    orphans: BTreeMap<u64, Orphans>,
    last_group: u64,
    doctests: Option<Doctests>,
    listing: usize,
    /// Binaries of which it is known what tests they have, and since when there are some that wait here.
    known: Vec<(Arc<TestBinary>, Tests)>,
    known_since: Option<Instant>,
    /// What those binaries were that are being asked for their tests.
    asked: BTreeMap<BinaryId, Stamp>,
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
            passed: BTreeSet::new(),
            orphans: BTreeMap::new(),
            last_group: 0,
            doctests: None,
            listing: 0,
            known: Vec::new(),
            known_since: None,
            asked: BTreeMap::new(),
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
            let workers = Workers::new();
            let crew = Crew {
                scope,
                workers: &workers,
            };
            loop {
                self.start_what_fits(crew);
                if self.is_over() {
                    break;
                }
                match messages.recv_timeout(self.patience()) {
                    Ok(message) => self.take(message, stop_build),
                    Err(RecvTimeoutError::Timeout) => {}
                    // We hold a sender ourselves.
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if self
                    .known_since
                    .is_some_and(|since| since.elapsed() >= GATHERING)
                {
                    self.take_known();
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

    /// Takes the lists of binaries that need not be asked.
    fn take_known(&mut self) {
        self.known_since = None;
        for (binary, tests) in std::mem::take(&mut self.known) {
            self.listed(&binary, Some(tests));
        }
    }

    /// How long to wait for a message.
    fn patience(&self) -> Duration {
        if self.known_since.is_some() {
            return GATHERING;
        }
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

    fn start_what_fits<'scope>(&mut self, crew: Crew<'_, 'scope, '_, 'a>)
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
            self.start(crew, room, Job::List(binary, settings));
        }
        // A list takes little, but it takes it now.
        while self.queue.running() + self.lists.running() < self.slots() {
            let Some((room, job)) = self.queue.next() else {
                break;
            };
            self.start(crew, room, job);
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
                self.start(crew, room, job);
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
        // They came as binaries were built and listed, which is another order each time.
        jobs.sort_by(|one, other| one.first().cmp(&other.first()));
        fastrand::Rng::with_seed(seed).shuffle(&mut jobs);
        for job in jobs {
            let size = self.size(&job);
            self.queue.push(size, job);
        }
    }

    fn start<'scope>(&mut self, crew: Crew<'_, 'scope, '_, 'a>, room: Room, job: Job)
    where
        'a: 'scope,
    {
        let (ground, options) = (self.ground, self.options);
        if let Job::Alone(task) = &job {
            self.started(task, self.now());
        }
        let errand = Errand {
            ground,
            sender: self.sender.clone(),
            load: Some((room, job)),
            following: self.queue.len().min(self.slots() + 1),
        };
        // Where there is no thread to be had, the errand says so as it is dropped.
        let running = self.queue.running() + self.lists.running();
        let run = move |errand: Errand<'a>| errand.run(options);
        crew.workers.start(crew.scope, errand, running, run);
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
                let stamp = Stamp::of(&binary.path).ok();
                if let Some(stamp) = stamp.filter(|_| self.lists_stay(&binary)) {
                    if let Some(tests) = self.ended.history.lists.of(&binary.path, stamp) {
                        self.known_since.get_or_insert_with(Instant::now);
                        return self.known.push((binary, tests));
                    }
                    self.asked.insert(binary.id.clone(), stamp);
                }
                self.listing += 1;
                let size = Size {
                    expected: None,
                    slots: 1,
                    memory_bytes: None,
                };
                self.lists.push(size, binary);
            }
            Message::BuildEnded(well) => {
                self.take_known();
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
            Message::Started(task, at) => self.started(&task, at),
            Message::Ended(task, said, attempt) => self.heard(*task, said, *attempt),
            Message::Free(room) => self.queue.give_back(room),
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

    /// Whether some of this binary's tests may have been asked for and others not, which nobody can tell without their names.
    fn needs_its_list(&self, binary: &TestBinary) -> bool {
        let selection = Selection {
            partition: None,
            ..self.options.selection.clone()
        };
        let has = |name: &str| self.choice.has(binary, name);
        selection.choose(&binary.id, [("", false)], has) != [Chosen::Run]
            && selection.may_run_in(&binary.id)
            && self.choice.may_have(binary)
    }

    /// Whether what this binary lists is told by its file alone: words for the binary may choose among its tests.
    fn lists_stay(&self, binary: &TestBinary) -> bool {
        binary.has_harness && self.options.arguments.is_empty()
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
            Done::Listed(binary, Ok(listed)) => {
                let asked = self.asked.remove(&binary.id);
                if let (Some(listed), Some(stamp)) = (&listed, asked)
                    && listed.is_whole
                {
                    let tests = listed.tests.clone();
                    self.ended.history.lists.learn(&binary.path, stamp, tests);
                }
                self.listed(&binary, listed.map(|listed| listed.tests));
                self.listing -= 1;
                self.tell_build_finished();
            }
            Done::Listed(binary, Err(attempt)) => {
                self.listing -= 1;
                let mut attempt = *attempt;
                let has_run = !matches!(
                    attempt.verdict,
                    Verdict::SetupFailed { .. } | Verdict::Interrupted
                );
                if has_run && !self.options.list && !self.needs_its_list(&binary) {
                    self.listed(&binary, None);
                    return self.tell_build_finished();
                }
                let why = format!("its tests cannot be listed: it {}", attempt.verdict);
                if self.options.list {
                    let stderr = String::from_utf8_lossy(&attempt.stderr);
                    tell!("orbit: {}: {why}\n{}", binary.id, stderr.trim_end());
                } else if has_run {
                    attempt.notes.push(why);
                }
                self.finish_binary(&binary, attempt);
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

    fn end(&mut self, why: Ending) {
        if self.ending.is_none() {
            self.ending = Some(why);
            let running = self.running.len();
            self.tell(&Event::Ending { why, running });
        }
    }
}
