//! The log of a service is in what a failing test prints, where libtest and nextest show it, and in no other test's.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Case, Context, Finished, Who};

use super::runner::need_nextest;

const DEADLINE: Duration = Duration::from_secs(600);
const MANIFEST: &str = "fixtures/failing/Cargo.toml";

/// Each failing test of the fixture, and what its output has beside the log, which says `of-TEST`.
const TESTS: [(&str, &str); 5] = [
    ("ends_by_error", "exited with code 3"),
    ("ends_by_unwrap", "exited with code 4"),
    ("silent", "500ms"),
    ("panics", "--- the end of the log of the sandbox `well`"),
    ("ended_meanwhile", "exited with code 5"),
];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("failing::the_log_is_in_what_the_test_prints", printed)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(DEADLINE),
    ]
}

/// One after the other over the same build, which is what takes the time.
fn printed(context: &Context) -> Result<()> {
    libtest(context)?;
    need_nextest()?;
    nextest(context)
}

fn cargo(context: &Context, words: &[&str]) -> Result<Finished> {
    context
        .cargo()?
        .args(words)
        .arg("--manifest-path")
        .arg(context.in_workspace(MANIFEST))
        .env("CARGO_TARGET_DIR", context.work().join("target"))
        .env("RUST_BACKTRACE", "0")
        .deadline(DEADLINE)
        .run()
}

/// `---- tests::NAME stdout ----`, and what follows.
fn libtest(context: &Context) -> Result<()> {
    let finished = cargo(context, &["test", "--no-fail-fast", "--lib"])?.code(101)?;
    let begins = |line: &str| {
        let name = line.strip_prefix("---- tests::")?;
        Some(name.strip_suffix(" stdout ----")?.to_owned())
    };
    compare(&finished, &finished.stdout, begins, "failures:")
}

/// `FAIL [   0.009s] (1/6) failing tests::NAME`, and what follows.
fn nextest(context: &Context) -> Result<()> {
    let words = [
        "nextest",
        "run",
        "--no-fail-fast",
        "--color=never",
        "--failure-output=immediate",
    ];
    let finished = cargo(context, &words)?.code(100)?;
    let begins = |line: &str| {
        let (verdict, name) = line.trim_start().split_once(" failing tests::")?;
        let is_end = verdict.starts_with("FAIL [") || verdict.starts_with("PASS [");
        is_end.then(|| name.to_owned())
    };
    compare(&finished, &finished.stderr, begins, "────────────")
}

/// Of each test, what is between where its output `begins`, and that of another, or the line `end`.
fn compare(
    finished: &Finished,
    text: &str,
    begins: impl Fn(&str) -> Option<String>,
    end: &str,
) -> Result<()> {
    let mut printed: BTreeMap<String, String> = BTreeMap::new();
    let mut of = None;
    for line in text.lines() {
        if line == end {
            of = None;
        } else if let Some(name) = begins(line) {
            of = Some(name);
        } else if let Some(name) = &of {
            let text = printed.entry(name.clone()).or_default();
            text.push_str(line);
            text.push('\n');
        }
    }
    for (test, why) in TESTS {
        let text = printed
            .get(test)
            .with_context(|| format!("{test}: {finished}"))?;
        let own = format!("of-{}", test.replace('_', "-"));
        // The script that writes it is told too, in the plan of who failed.
        let log = |line: &str| {
            line.trim().trim_start_matches("stdout| ") == own
                || line.trim().trim_start_matches("stderr| ") == own
        };
        ensure!(
            text.lines().any(log) && text.contains(why),
            "{test}: no {own:?}, or no {why:?}, in {text}\n{finished}"
        );
        let of_others = text.matches("of-").count() - text.matches(&own).count();
        ensure!(of_others == 0, "{test} shows a log of another test: {text}");
    }
    ensure!(!finished.to_string().contains("of-passes"), "{finished}");
    Ok(())
}
