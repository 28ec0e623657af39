//! `cargo orbit test` prints what `cargo test` prints, and ends as it ends, whatever is asked.
//!
//! Against the real cargo, on a workspace with one of everything, and on a real kernel: this needs a host on
//! which Orbit can make a sandbox.

use std::{
    env,
    process::{Command, Output},
};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/workspace-mixed");
const ORBIT: &str = env!("CARGO_BIN_EXE_cargo-orbit");

/// What is asked, and how the fixture's `tests/ends.rs` is to end.
type Case = (&'static str, Option<&'static str>);

const CASES: &[Case] = &[
    ("--workspace -- --test-threads=1", None),
    ("--all-targets -- --test-threads=1", None),
    ("--lib", None),
    ("-q -p answer", None),
    ("--doc -p mixed -- --test-threads=1", None),
    ("--lib --features extra a_feature_is_on", None),
    ("--test custom -- --words for the harness", None),
    ("--workspace --exclude mixed --release", None),
    ("--no-run", None),
    ("--bin", None),
    ("--bin nope", None),
    ("--features nope", None),
    ("-p nope", None),
    ("--no-fail-fast --test ends --test custom", Some("fail")),
    ("--test ends --test environment", Some("fail")),
    ("--test ends --test environment", Some("exit")),
    ("--test ends --test environment", Some("abort")),
    ("--test ends --test environment", Some("segv")),
];

fn run(case: &Case, under_orbit: bool) -> Output {
    command(case, under_orbit).output().expect("start cargo")
}

fn command(&(line, end): &Case, under_orbit: bool) -> Command {
    let mut command = if under_orbit {
        let mut command = Command::new(ORBIT);
        command.args(["orbit", "test", "--env", "FIXTURE_END"]);
        command
    } else {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.arg("test");
        command
    };
    command
        .args(line.split(' '))
        .current_dir(FIXTURE)
        .env(
            "CARGO_TARGET_DIR",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/like-cargo-test"),
        )
        .env("CARGO_TERM_COLOR", "never")
        .env("RUST_BACKTRACE", "0");
    match end {
        Some(end) => command.env("FIXTURE_END", end),
        None => command.env_remove("FIXTURE_END"),
    };
    command
}

/// A text without what differs from run to run, and without the one word that Orbit adds: itself, where cargo
/// shows the command line that failed.
fn comparable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text).replace(&format!("{ORBIT} orbit runner -- "), "");
    // Said when another cargo happens to run on this machine.
    let lines = text
        .lines()
        .filter(|line| !line.contains("Blocking waiting for file lock"));
    let lines: Vec<String> = lines.map(without_numbers).collect();
    lines.join("\n")
}

/// `line` with each time in seconds, and each thread's number, replaced.
fn without_numbers(line: &str) -> String {
    let is_time = |word: &str| {
        let number = word.trim_end_matches(';').strip_suffix('s');
        number.is_some_and(|number| number.parse::<f64>().is_ok())
    };
    let is_thread = |word: &str| {
        let number = word
            .strip_prefix('(')
            .and_then(|word| word.strip_suffix(')'));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let words: Vec<&str> = line
        .split(' ')
        .map(|word| {
            if is_time(word) || is_thread(word) {
                "#"
            } else {
                word
            }
        })
        .collect();
    words.join(" ")
}

#[test]
fn whatever_is_asked_is_answered_as_cargo_answers_it() {
    let mut differences = Vec::new();
    for case in CASES {
        // The first builds, and says so; what it says is not compared.
        run(case, false);
        let (expected, found) = (run(case, false), run(case, true));
        if expected.status.code() != found.status.code() {
            differences.push(format!(
                "{case:?}: {}, not {}",
                found.status, expected.status
            ));
        }
        for (name, expected, found) in [
            ("stdout", &expected.stdout, &found.stdout),
            ("stderr", &expected.stderr, &found.stderr),
        ] {
            let (expected, found) = (comparable(expected), comparable(found));
            // What cannot be built is told with a line of Orbit's before cargo's own.
            let found = found
                .strip_prefix("orbit: cargo cannot say where the workspace lies:\n")
                .unwrap_or(&found);
            if expected != found {
                differences.push(format!(
                    "{case:?}, {name}:\n{found}\n--- and not:\n{expected}"
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

#[test]
fn a_command_line_not_understood_is_told_as_cargo_tells_it() {
    let output = run(&("--bogus", None), true);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with("error: unexpected argument '--bogus' found"),
        "{text}"
    );
}

/// A doctest marked `should_panic` would take a container that could not be made for a panic.
#[test]
fn tests_that_could_not_be_started_are_never_taken_for_tests_that_passed() {
    let host = env::consts::ARCH.to_uppercase();
    let output = command(&("--doc -p mixed", None), true)
        .env(
            format!("CARGO_TARGET_{host}_UNKNOWN_LINUX_GNU_RUNNER"),
            "no-such-emulator",
        )
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(
        text.contains("could not be started in a container and did not run"),
        "{text}"
    );
    assert!(text.contains("no-such-emulator"), "{text}");
}
