//! A run with everything in it that reports must cope with: each verdict, retries, leaks, refused addresses, names
//! and output from hostile hands.

use std::time::Duration;

use crate::test::event::{
    Attempt, BinaryId, BinaryListed, Class, Denied, Ending, Event, RunStarted, SharedSandbox,
    Skipped, Summary, TestId, TestResult, Used, Verdict,
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn id(binary: &str, name: &str) -> TestId {
    TestId {
        binary: BinaryId(binary.to_owned()),
        name: name.to_owned(),
        repetition: None,
    }
}

/// An attempt that ran in a sandbox of its own and wrote nothing.
pub(crate) fn attempt(lane: usize, started_ms: u64, wall_ms: u64, verdict: Verdict) -> Attempt {
    Attempt {
        verdict,
        started: ms(started_ms),
        wall_time: ms(wall_ms),
        lane,
        alone: true,
        used: Used {
            cpu_user: ms(wall_ms / 2),
            cpu_system: ms(wall_ms / 8),
            memory_peak_bytes: Some((wall_ms + 3) << 16),
        },
        stdout: Vec::new(),
        stderr: Vec::new(),
        leaked: Vec::new(),
        denied: Vec::new(),
        wrote: Vec::new(),
        notes: Vec::new(),
        kept: None,
    }
}

const FAILED: Verdict = Verdict::Failed { code: Some(101) };

const PANIC: &str = "\nthread 'http::answers' (17) panicked at crates/api/src/http.rs:42:9:\nassertion `left == \
                     right` failed: the server's answer\n  left: 500\n right: 200\nnote: run with \
                     `RUST_BACKTRACE=1` environment variable to display a backtrace\n";

/// Every test of the sample, with its attempts.
pub(crate) fn results() -> Vec<TestResult> {
    let with = |mut attempt: Attempt, change: &dyn Fn(&mut Attempt)| {
        change(&mut attempt);
        attempt
    };
    let tests: Vec<(TestId, Vec<Attempt>)> = vec![
        (
            id("api", "parse::empty"),
            vec![attempt(0, 12, 3, Verdict::Passed)],
        ),
        (
            id("api", "parse::says_what_it_does"),
            vec![with(attempt(1, 12, 5, Verdict::Passed), &|it| {
                it.stdout = b"parsed 3 lines\n".to_vec();
            })],
        ),
        (
            id("api", "http::answers"),
            vec![with(attempt(0, 16, 412, FAILED), &|it| {
                it.stdout = b"GET /\n\x1b[32m200\x1b[0m expected\n".to_vec();
                it.stderr = PANIC.as_bytes().to_vec();
            })],
        ),
        (
            id("api", "store::survives_a_restart"),
            vec![
                with(attempt(1, 20, 600, FAILED), &|it| {
                    it.stderr = b"connection refused\n".to_vec();
                }),
                attempt(1, 640, 580, Verdict::Passed),
            ],
        ),
        (
            id("api", "never::passes"),
            vec![
                with(attempt(0, 430, 30, FAILED), &|it| {
                    it.stderr = b"first\n".to_vec();
                }),
                with(attempt(0, 470, 31, Verdict::Failed { code: None }), &|it| {
                    it.stderr = b"second\n".to_vec();
                }),
            ],
        ),
        (
            id("api::it", "segfaults"),
            vec![attempt(
                2,
                15,
                90,
                Verdict::Killed {
                    signal: 11,
                    name: "SIGSEGV".to_owned(),
                },
            )],
        ),
        (
            id("api::it", "hangs"),
            vec![with(
                attempt(2, 110, 2000, Verdict::TimedOut { limit: ms(2000) }),
                &|it| {
                    it.stdout = b"waiting for the other side\n".to_vec();
                    it.kept = Some("20261123-1".to_owned());
                },
            )],
        ),
        (
            id("api::it", "eats_memory"),
            vec![with(
                attempt(
                    0,
                    510,
                    700,
                    Verdict::OutOfMemory {
                        limit_bytes: 64 << 20,
                        peak_bytes: 64 << 20,
                        process: "it-0a1b".to_owned(),
                    },
                ),
                &|it| it.notes = vec!["the memory limit was met 3 times".to_owned()],
            )],
        ),
        (
            id("api::it", "has_no_image"),
            vec![attempt(
                1,
                1230,
                1,
                Verdict::SetupFailed {
                    why: "image `postgres:99` is not in the store\nand cannot be pulled: offline"
                        .to_owned(),
                },
            )],
        ),
        (
            id("api::it", "leaves_children"),
            vec![with(attempt(0, 1220, 40, Verdict::Leaked), &|it| {
                it.leaked = vec!["sleep".to_owned(), "s\x1b[2Jh".to_owned()];
            })],
        ),
        (
            id("api::it", "leaves_children_and_may"),
            vec![with(attempt(0, 1270, 40, Verdict::Passed), &|it| {
                it.leaked = vec!["sleep".to_owned()];
            })],
        ),
        (
            id("api::it", "phones_home"),
            vec![with(attempt(1, 1240, 80, Verdict::ReachedOut), &|it| {
                it.denied = vec![
                    Denied {
                        to: "192.0.2.1:443/tcp".to_owned(),
                        count: 3,
                    },
                    Denied {
                        to: "[2001:db8::1]:53/udp".to_owned(),
                        count: 1,
                    },
                ];
            })],
        ),
        (
            id("api::it", "writes_files"),
            vec![with(attempt(1, 1330, 12, Verdict::Passed), &|it| {
                it.wrote = (0..12).map(|n| format!("/work/out/{n}.txt")).collect();
                it.stdout = b"no end of line".to_vec();
            })],
        ),
        (
            id("größe::bin/世界", "名前::テスト_🦀"),
            vec![with(attempt(0, 1320, 8, Verdict::Passed), &|it| {
                it.stdout = "grün 世界 🦀\n".as_bytes().to_vec();
            })],
        ),
        (
            id(
                "evil",
                "</script><script>alert(1)</script>\x1b]0;owned\x07\r\n::error::x \u{202e}]]>&\"'`%0A|",
            ),
            vec![with(attempt(1, 1350, 9, FAILED), &|it| {
                it.stdout = b"</script><img src=x onerror=alert(1)><!-- ]]> & \x00\x01\xff\xfe \xef\xbf\xbe\n::error::stolen\n"
                    .to_vec();
                it.stderr = b"\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m\r\n\
                              thread 'a' panicked at src/a,b:c.rs:7:1:\n::endgroup::\n```\n|x|\n"
                    .to_vec();
            })],
        ),
        (
            id("tool::doc", ""),
            vec![attempt(0, 1340, 220, Verdict::Passed)],
        ),
        (
            id("api::it", "still_running"),
            vec![attempt(2, 2120, 30, Verdict::Interrupted)],
        ),
    ];
    let mut results: Vec<TestResult> = tests
        .into_iter()
        .map(|(id, attempts)| TestResult {
            id,
            attempts,
            skipped: None,
        })
        .collect();
    for (name, skipped) in [
        ("needs_a_database", Skipped::Ignored),
        ("came_too_late", Skipped::NotReached),
    ] {
        results.push(TestResult {
            id: id("api::it", name),
            attempts: Vec::new(),
            skipped: Some(skipped),
        });
    }
    let mut repeated = results[0].clone();
    for repetition in [1, 2] {
        repeated.id.name = "parse::again".to_owned();
        repeated.id.repetition = Some(repetition);
        repeated.attempts[0].started += ms(1500);
        if repetition == 2 {
            repeated.attempts[0].alone = false;
            repeated.attempts[0].used = Used::default();
        }
        results.push(repeated.clone());
    }
    results
}

/// The sample, in the order in which an engine tells it.
pub(crate) fn run() -> Vec<Event> {
    events(results())
}

/// A run that comes to `results`.
pub(crate) fn events(results: Vec<TestResult>) -> Vec<Event> {
    let mut events = vec![Event::RunStarted(RunStarted {
        run: "20261123T192803-4711".to_owned(),
        started_at_unix_seconds: 1_795_462_083,
        workspace: "sample".to_owned(),
        jobs: 3,
        shuffle: Some(42),
        profile: Some("ci".to_owned()),
        command_line: ["cargo", "orbit", "test", "--shuffle=42"]
            .map(str::to_owned)
            .to_vec(),
    })];
    let mut binaries: Vec<_> = results.iter().map(|result| &result.id.binary).collect();
    binaries.sort();
    binaries.dedup();
    for binary in binaries {
        let tests = results.iter().filter(|result| result.id.binary == *binary);
        let count = tests.count();
        let package = binary.0.split("::").next().unwrap_or_default();
        events.push(Event::BinaryListed(BinaryListed {
            binary: binary.clone(),
            package: package.to_owned(),
            kind: if binary.0.contains("::") {
                "test"
            } else {
                "lib"
            }
            .to_owned(),
            tests: count + 1,
            selected: count,
        }));
    }
    let mut summary = Summary {
        filtered_out: 6,
        wall_time: results
            .iter()
            .flat_map(|result| &result.attempts)
            .map(|attempt| attempt.started + attempt.wall_time)
            .max()
            .unwrap_or_default(),
        ..Summary::default()
    };
    events.push(Event::BuildFinished {
        tests: results.len(),
        at: ms(900),
    });
    // What happens is put in the order of its time; what happens at the same time, in the order given.
    let mut timed: Vec<(Duration, Event)> = Vec::new();
    let end = summary.wall_time;
    for result in results {
        match result.class() {
            Class::Passed => summary.passed += 1,
            Class::Flaky => {
                summary.passed += 1;
                summary.flaky += 1;
            }
            Class::Failed => summary.failed += 1,
            Class::Ignored => summary.ignored += 1,
            Class::NotReached => summary.not_reached += 1,
        }
        let id = &result.id;
        let mut ended = end;
        for (number, attempt) in (1..).zip(&result.attempts) {
            timed.push((
                attempt.started,
                Event::TestStarted {
                    id: id.clone(),
                    attempt: number,
                    at: attempt.started,
                },
            ));
            if matches!(attempt.verdict, Verdict::TimedOut { .. }) {
                timed.push((
                    attempt.started + attempt.wall_time / 2,
                    Event::TestSlow {
                        id: id.clone(),
                        running_for: attempt.wall_time / 2,
                    },
                ));
            }
            ended = attempt.started + attempt.wall_time;
            if (number as usize) < result.attempts.len() {
                timed.push((
                    ended,
                    Event::TestRetried {
                        id: id.clone(),
                        failed: attempt.clone(),
                    },
                ));
            }
        }
        let shared = result.attempts.iter().find(|attempt| !attempt.alone);
        let shared = shared.map(|attempt| shared_sandbox(id, attempt));
        if shared.is_some() {
            let id = id.clone();
            timed.push((ended, Event::TestEnded { id, at: ended }));
        }
        timed.push((ended, Event::TestFinished(result)));
        timed.extend(shared.map(|shared| (ended, Event::SandboxFinished(shared))));
    }
    timed.sort_by_key(|(at, _)| *at);
    events.extend(timed.into_iter().map(|(_, event)| event));
    let last = events.len().saturating_sub(3);
    events.insert(
        last,
        Event::Ending {
            why: Ending::Signal,
            running: 1,
        },
    );
    events.push(Event::RunFinished(summary));
    events
}

/// The sandbox that a test shared with another.
pub(crate) fn shared_sandbox(id: &TestId, of_test: &Attempt) -> SharedSandbox {
    let mut sandbox = attempt(of_test.lane, 0, 40, Verdict::Passed);
    sandbox.started = of_test.started.saturating_sub(ms(20));
    sandbox.alone = false;
    sandbox.stderr = b"a child said this\n".to_vec();
    sandbox.wrote = vec!["A /work/out/shared.txt".to_owned()];
    SharedSandbox {
        binary: id.binary.clone(),
        repetition: id.repetition,
        tests: 2,
        attempt: sandbox,
    }
}

/// Ten thousand tests on eight lanes, of which some fail.
fn large() -> Vec<Event> {
    let mut free_ms = [0; 8];
    let results = (0..10_000_u64).map(|n| {
        let lane = (0..8).min_by_key(|&lane| free_ms[lane]).unwrap_or_default();
        // As tests are: most are short.
        let wall_ms = 2 + n * n % 23 + if n % 97 == 0 { 400 } else { 0 };
        let verdict = if n % 211 == 5 {
            FAILED
        } else {
            Verdict::Passed
        };
        let mut attempt = attempt(lane, free_ms[lane], wall_ms, verdict);
        attempt.stdout = format!("this is test {n}\n").into_bytes();
        free_ms[lane] += wall_ms + 1;
        TestResult {
            id: id(
                &format!("crate-{}::it", n / 500),
                &format!("module_{}::test_{n}", n % 50),
            ),
            attempts: vec![attempt],
            skipped: None,
        }
    });
    events(results.collect())
}

#[cfg(test)]
mod tests {
    use std::{env, fs::File, path::PathBuf};

    use super::*;
    use crate::report::{Reports, html::Html, json::Json, junit::Junit};

    /// Where the suite `report` says so, it writes them there, to be read by programs that are not ours.
    #[test]
    fn every_report_can_be_written() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = env::var_os("ORBIT_REPORT_SAMPLE")
            .map_or_else(|| temporary.path().to_owned(), PathBuf::from);
        for (name, events) in [("small", run()), ("large", large())] {
            let directory = directory.join(name);
            let mut reports = Reports::default();
            reports.add("html", Html::new(directory.clone()));
            reports.add("junit", Junit::new(directory.join("junit.xml")));
            std::fs::create_dir_all(&directory).unwrap();
            let lines = File::create(directory.join("events.jsonl")).unwrap();
            reports.add("json", Json::new(lines));
            for event in &events {
                reports.on(event);
            }
            assert!(reports.faults().is_empty());
            for file in ["index.html", "junit.xml", "events.jsonl"] {
                let length = directory.join(file).metadata().unwrap().len();
                assert!(
                    (1 << 10..32 << 20).contains(&length),
                    "{name}/{file}: {length}"
                );
            }
        }
    }
}
