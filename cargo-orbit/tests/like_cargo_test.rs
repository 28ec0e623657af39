//! `cargo orbit test` understands what `cargo test` understands: the same tests end the same, whatever is asked.
//!
//! Against the real cargo, on a workspace with one of everything, and on a real kernel: this needs a host on
//! which Orbit can make a sandbox.

use std::{
    collections::BTreeMap,
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
        command.args([
            "orbit",
            "test",
            "--no-fail-fast",
            "--message-format",
            "json",
            "--env",
            "FIXTURE_END",
        ]);
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

/// The name in a line `test NAME ... VERDICT`.
fn of_line(line: &str) -> &str {
    let name = line.strip_prefix("test ").unwrap_or(line);
    name.rsplit_once(" ... ").map_or(name, |(name, _)| name)
}

/// `test NAME ... VERDICT`, of cargo.
fn of_cargo(output: &Output) -> BTreeMap<String, String> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let verdict = |line: &str| {
        let (name, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        let word = verdict.split([',', ' ']).next()?;
        // What is to be done with a test is not of its name, by which it is listed.
        let how = [" - should panic", " - compile fail", " - compile"];
        let name = how.iter().find_map(|how| name.strip_suffix(how));
        let name = name.unwrap_or_else(|| of_line(line));
        Some((name.to_owned(), word.to_ascii_lowercase()))
    };
    stdout.lines().filter_map(verdict).collect()
}

/// The same of Orbit's events.
fn of_orbit(output: &Output) -> BTreeMap<String, String> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let verdict = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = event["test"]["name"].as_str()?;
        let word = match event["class"].as_str()? {
            "passed" => "ok",
            other => other,
        };
        Some((name.to_owned(), word.to_owned()))
    };
    stdout
        .lines()
        .filter(|line| line.contains("\"test-finished\""))
        .filter_map(verdict)
        .collect()
}

#[test]
fn whatever_is_asked_ends_as_under_cargo() {
    let mut differences = Vec::new();
    for case in CASES {
        let (expected, found) = (run(case, false), run(case, true));
        if expected.status.success() != found.status.success() {
            let said = String::from_utf8_lossy(&found.stderr);
            differences.push(format!(
                "{case:?}: {}, not {}\n{said}",
                found.status, expected.status
            ));
        }
        // Cargo says nothing of tests whose process was ended by another, or that came after it; Orbit does.
        let told = of_orbit(&found);
        for (name, verdict) in of_cargo(&expected) {
            if told.get(&name) != Some(&verdict) {
                let found = told.get(&name);
                differences.push(format!("{case:?}, {name}: {found:?}, not {verdict}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

/// What the engine works out is what cargo would have given: no variable less, none more, none otherwise.
#[test]
fn a_test_has_the_variables_that_cargo_gives() {
    let variables = |under_orbit| -> BTreeMap<String, String> {
        let case = ("--test environment variables -- --nocapture", None);
        let mut command = command(&case, under_orbit);
        // Cargo's own for this test, which are not to be taken for the host's.
        for (name, _) in env::vars().filter(|(name, _)| {
            name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || ["LD_LIBRARY_PATH", "OUT_DIR", "CARGO"].contains(&name.as_str())
        }) {
            command.env_remove(name);
        }
        let output = command.output().expect("start cargo");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let lines = stdout
            .lines()
            .filter_map(|line| line.strip_prefix("VARIABLE "));
        let found: BTreeMap<_, _> = lines
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        assert!(!found.is_empty(), "{output:?}");
        found
    };
    let (cargo, orbit) = (variables(false), variables(true));
    let of_host = |name: &str| env::var_os(name).is_some();
    let mut differences = Vec::new();
    for name in cargo.keys().chain(orbit.keys()) {
        let (expected, found) = (cargo.get(name), orbit.get(name));
        // Of the host's, tests see some and not others; that is tried elsewhere.
        let is_cargos = !of_host(name)
            || name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || ["LD_LIBRARY_PATH", "OUT_DIR"].contains(&name.as_str());
        let is_orbits = name.starts_with("ORBIT_");
        if is_cargos && !is_orbits && expected != found {
            differences.push(format!("{name}: {found:?}, not {expected:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
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
    assert!(text.contains("no-such-emulator"), "{text}");
}
