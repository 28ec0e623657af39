//! The deciding thread, told of sandboxes that never were.

use std::sync::{Mutex, PoisonError, mpsc};
use std::{collections::BTreeMap, io, path::PathBuf, time::Instant};

use super::*;
use crate::{
    report::Report,
    services::Services,
    test::{
        attempt::Running,
        environment::HostVariables,
        event::{BinaryId, Used},
        isolate::View,
        libtest::{self, Told},
        schedule::Room,
        takedown::Takedown,
        together::{Gone, Group, Span},
    },
};

struct AsTheyAre;

impl Choice for AsTheyAre {
    fn settings(&self, _: &TestBinary, _: &str) -> Arc<Settings> {
        Arc::new(Settings::new())
    }

    fn has(&self, _: &TestBinary, _: &str) -> bool {
        true
    }

    fn may_have(&self, _: &TestBinary) -> bool {
        true
    }
}

/// Holds what is told, a line each.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Report for Heard {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        let of_result = |word: &str, result: &TestResult| {
            let last = result.attempts.last();
            let verdict = last.map_or("none".to_owned(), |last| last.verdict.to_string());
            let kept = last.and_then(|last| last.kept.clone());
            let stdout = last.map_or(String::new(), |it| {
                String::from_utf8_lossy(&it.stdout).into_owned()
            });
            format!("{word} {}: {verdict} {stdout:?} {kept:?}", result.id)
        };
        let line = match event {
            Event::TestStarted { id, at, .. } => format!("started {id} at {}", at.as_secs()),
            Event::TestEnded { id, .. } => format!("ended {id}"),
            Event::TestFinished(result) => of_result("finished", result),
            Event::TestCorrected(result) => of_result("corrected", result),
            Event::SandboxFinished(shared) => format!(
                "sandbox of {}: {} tests, {:?}, wrote {:?}",
                shared.binary,
                shared.tests,
                shared.attempt.used.memory_peak_bytes,
                shared.attempt.wrote
            ),
            _ => return Ok(()),
        };
        self.told().push(line);
        Ok(())
    }
}

impl Heard {
    fn told(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ground() -> Ground {
    Ground {
        view: View::default(),
        host_variables: HostVariables::default(),
        through: Vec::new(),
        began: Instant::now(),
        running: Running::default(),
        services: Services::new(Vec::new()),
        keep_failed: true,
        diff: true,
        takedown: Takedown::default(),
    }
}

fn options(show_output: bool) -> Options {
    Options {
        jobs: 2,
        threads: 2,
        selection: Selection::default(),
        nocapture: false,
        fail_fast: false,
        repeat: 1,
        shuffle: None,
        list: false,
        arguments: Vec::new(),
        show_output,
        memory_bytes: 1 << 30,
    }
}

fn binary() -> Arc<TestBinary> {
    Arc::new(TestBinary {
        id: BinaryId("b".to_owned()),
        package_id: String::new(),
        package: "b".to_owned(),
        kind: "lib",
        name: "b".to_owned(),
        path: PathBuf::from("/not/there"),
        has_harness: true,
        working_dir: PathBuf::from("/"),
        variables: BTreeMap::new(),
    })
}

/// Calls `body` with an engine, and says what was told.
fn with_engine(
    show_output: bool,
    body: impl FnOnce(&mut Engine<'_>, &Receiver<Message>),
) -> (Vec<String>, Summary) {
    let (ground, options) = (ground(), options(show_output));
    let (sender, receiver) = mpsc::channel();
    let heard = Heard::default();
    let mut reports = Reports::default();
    reports.add("what is heard", heard.clone());
    let history = History::load(&PathBuf::from("/not/there"));
    let mut engine = Engine::new(&ground, &options, &AsTheyAre, sender, reports, history);
    body(&mut engine, &receiver);
    let summary = engine.ended.summary.clone();
    let told = heard.told().clone();
    (told, summary)
}

fn tasks(engine: &Engine<'_>, names: &[&str]) -> Vec<Task> {
    let binary = binary();
    let task = |name: &&str| {
        let mut task = engine.whole(&binary);
        task.id.name = (*name).to_owned();
        task.is_listed = true;
        task
    };
    names.iter().map(task).collect()
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A binary that said `stdout`, and ended with `verdict`.
fn gone(verdict: Verdict, stdout: &str) -> Gone {
    let used = Used {
        memory_peak_bytes: Some(4711),
        ..Used::default()
    };
    let told: Told = libtest::told(stdout.as_bytes(), |_| true);
    let span = |(name, started): (&str, u64)| {
        let span = Span {
            started: at(started),
            ended: told.verdicts.contains_key(name).then(|| at(started + 1)),
            slot: 1,
        };
        (Arc::from(name), span)
    };
    Gone {
        spans: [("a", 1), ("b", 2)].map(span).into_iter().collect(),
        attempt: Attempt {
            wrote: vec!["A /x".to_owned()],
            kept: Some("id-1".to_owned()),
            wall_time: at(9),
            ..Attempt::new(verdict, used)
        },
        told,
    }
}

const FAILED: Verdict = Verdict::Failed { code: Some(101) };

#[test]
fn what_a_shared_sandbox_used_wrote_and_kept_is_told() {
    let (told, summary) = with_engine(false, |engine, _| {
        let tasks = tasks(engine, &["a", "b"]);
        engine.started(&tasks[0], at(1));
        let passed = Attempt::new(Verdict::Passed, Used::default());
        engine.heard(tasks[0].clone(), Said::Passed, passed);
        engine.started(&tasks[1], at(2));
        let failed = Attempt::new(Verdict::Passed, Used::default());
        engine.heard(tasks[1].clone(), Said::Failed, failed);
        assert!(engine.running.is_empty(), "neither runs any more");
        let said = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nboom\n";
        engine.gone(tasks, gone(FAILED, said));
        assert!(engine.passed.is_empty());
    });
    assert_eq!(
        told,
        [
            "started b a at 1",
            "finished b a: passed \"\" None",
            "started b b at 2",
            "ended b b",
            "finished b b: failed \"boom\\n\" Some(\"id-1\")",
            "sandbox of b: 2 tests, Some(4711), wrote [\"A /x\"]",
        ]
    );
    assert_eq!((summary.passed, summary.failed), (1, 1));
}

#[test]
fn what_passed_tests_printed_is_told_where_it_is_asked_for() {
    let (told, summary) = with_engine(true, |engine, _| {
        let tasks = tasks(engine, &["a"]);
        engine.started(&tasks[0], at(1));
        let passed = Attempt::new(Verdict::Passed, Used::default());
        engine.heard(tasks[0].clone(), Said::Passed, passed);
        let said =
            "test a ... ok\n\nsuccesses:\n\n---- a stdout ----\nhello\n\n\nsuccesses:\n    a\n";
        engine.gone(tasks, gone(Verdict::Passed, said));
    });
    assert_eq!(
        told[1..3],
        ["ended b a", "finished b a: passed \"hello\\n\" None"]
    );
    assert_eq!((told.len(), summary.passed), (4, 1));
}

#[test]
fn a_failure_wins_over_what_looked_like_a_pass_and_is_counted_once() {
    let (told, summary) = with_engine(false, |engine, _| {
        let tasks = tasks(engine, &["a"]);
        let passed = Attempt::new(Verdict::Passed, Used::default());
        engine.heard(tasks[0].clone(), Said::Passed, passed);
        engine.gone(tasks, gone(FAILED, "test a ... ok\ntest a ... FAILED\n"));
    });
    assert_eq!(told[1], "corrected b a: failed \"\" Some(\"id-1\")");
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!((summary.passed, summary.failed), (0, 1));
}

#[test]
fn what_had_not_begun_when_the_run_ended_was_not_interrupted() {
    let (told, summary) = with_engine(false, |engine, _| {
        let tasks = tasks(engine, &["a", "b", "c"]);
        engine.gone(tasks, gone(Verdict::Interrupted, "test a ... ok\n"));
    });
    assert_eq!(
        told[2..],
        [
            "finished b b: was running when the run was ended \"\" Some(\"id-1\")",
            "finished b c: none \"\" None"
        ]
    );
    assert_eq!(
        (summary.passed, summary.failed, summary.not_reached),
        (1, 1, 1)
    );
}

/// Else the run would wait for ever.
#[test]
fn a_job_that_gets_no_thread_is_not_run_and_leaves_its_room() {
    let (told, summary) = with_engine(false, |engine, receiver| {
        let tasks = tasks(engine, &["a", "b"]);
        let group = Group {
            names: Vec::new(),
            is_all: true,
            has_ignored: false,
            threads: 2,
            timeout: None,
            show_output: false,
        };
        engine.push(Job::Together(tasks, group));
        let load = engine.queue.next();
        assert_eq!(engine.queue.running(), 1);
        assert!(!engine.is_over());
        drop(Errand {
            ground: engine.ground,
            sender: engine.sender.clone(),
            load,
            following: 0,
        });
        engine.take(receiver.try_recv().unwrap(), &|| {});
        engine.build = Some(true);
        assert!(engine.is_over());
        assert_eq!(engine.ended.not_run, 2);
    });
    assert!(
        told[0].contains("has not run: no thread could be started for it"),
        "{told:?}"
    );
    assert_eq!(summary.failed, 2);
}

#[test]
fn lanes_come_back_while_the_job_runs() {
    with_engine(false, |engine, _| {
        let wide = Size {
            expected: None,
            slots: 2,
            memory_bytes: None,
        };
        let job = |engine: &Engine<'_>| Job::Alone(Box::new(tasks(engine, &["a"]).remove(0)));
        let (first, second) = (job(engine), job(engine));
        engine.queue.push(wide, first);
        engine.queue.push(Size { slots: 1, ..wide }, second);
        let (mut room, _): (Room, Job) = engine.queue.next().unwrap();
        assert!(engine.queue.next().is_none());
        let part = room.without(1).unwrap();
        engine.take(Message::Free(part), &|| {});
        assert!(engine.queue.next().is_some());
    });
}
