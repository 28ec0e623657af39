//! `#[orbit::sandboxed]` and `orbit::trial`: the fixture's tests end as its table says, under each runner.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use anyhow::{Result, ensure};
use orbit_tests::{
    Case, Context, Program, Skip, Who,
    published::{Verdict, Verdicts},
};

const DEADLINE: Duration = Duration::from_secs(600);
const MANIFEST: &str = "fixtures/sandboxed/Cargo.toml";

/// Under `cargo orbit test` its sandbox is in a sandbox in a sandbox, and the kernel stacks two overlays at most.
///
/// Source: Linux, include/linux/fs.h, `FILESYSTEM_MAX_STACK_DEPTH`.
const THIRD: &str = "tests::has_sandboxes_of_its_own";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("attribute::ends_as_the_table_says", ends_as_the_table_says)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(DEADLINE)
            // The tests themselves are offline.
            .prepare(|_| {
                Program::new("cargo")
                    .args(["fetch", "--manifest-path"])
                    .arg(orbit_tests::workspace().join(MANIFEST))
                    .deadline(DEADLINE)
                    .run()?
                    .success()
                    .map(drop)
            }),
    ]
}

/// One after the other over the same build, which is what takes the time.
fn ends_as_the_table_says(context: &Context) -> Result<()> {
    let table = fs::read_to_string(context.in_workspace("fixtures/sandboxed/expected.txt"))?;
    let cargo = |words: &[&str]| run(context.cargo()?, context, words);
    let plain = cargo(&["test", "--no-fail-fast"])?;
    compare("cargo test", &table, &libtest_verdicts(&plain), &plain)?;

    // Each test in the sandbox of its program, and in its own in that.
    let orbit = run(
        context.orbit("test")?,
        context,
        &[
            "--no-fail-fast",
            "--env",
            "FIXTURE_SECRET",
            "--message-format",
            "json",
        ],
    )?;
    let mut verdicts = orbit_verdicts(&orbit)?;
    ensure!(
        verdicts.insert(THIRD.to_owned(), "ok") == Some("failed")
            && orbit.contains("The kernel stacks two overlays at most"),
        "{THIRD} has a third sandbox, or does not say why it has none:\n{orbit}"
    );
    compare("cargo orbit test", &table, &verdicts, &orbit)?;

    ensure!(
        !context
            .work()
            .join("target/debug/deps/written-inside")
            .exists(),
        "a write of a test was not thrown away"
    );

    if Program::new("cargo-nextest")
        .arg("--version")
        .run()
        .is_err()
    {
        return Err(Skip::because("the rest needs cargo-nextest"));
    }
    let nextest = cargo(&["nextest", "run", "--no-fail-fast", "--color=never"])?;
    compare(
        "cargo nextest",
        &table,
        &nextest_verdicts(&nextest),
        &nextest,
    )
}

fn run(program: Program, context: &Context, words: &[&str]) -> Result<String> {
    let finished = program
        .args(words)
        .arg("--manifest-path")
        .arg(context.in_workspace(MANIFEST))
        .env("CARGO_TARGET_DIR", context.work().join("target"))
        .env("FIXTURE_SECRET", "s")
        .env("RUST_BACKTRACE", "0")
        .deadline(DEADLINE)
        .run()?;
    Ok(finished.stdout + &finished.stderr)
}

/// `test NAME ... ok`, of libtest and of libtest-mimic.
fn libtest_verdicts(output: &str) -> BTreeMap<String, &'static str> {
    let verdict = |line: &str| {
        let (name, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        let verdict = match verdict.split([' ', ',']).next()? {
            "ok" => "ok",
            "FAILED" => "failed",
            "ignored" => "ignored",
            _ => return None,
        };
        let name = name.trim_end().trim_end_matches(" - should panic");
        Some((name.to_owned(), verdict))
    };
    output.lines().filter_map(verdict).collect()
}

/// The events come first, a line each; then what people are told.
fn orbit_verdicts(output: &str) -> Result<BTreeMap<String, &'static str>> {
    let events: Vec<&str> = output
        .lines()
        .take_while(|line| line.starts_with('{'))
        .collect();
    let verdicts = Verdicts::of_orbit(&events.join("\n"))?;
    Ok(verdicts
        .names()
        .map(|name| {
            let verdict = match verdicts.of(name) {
                Some(Verdict::Passed) => "ok",
                Some(Verdict::Ignored) => "ignored",
                Some(Verdict::Failed) | None => "failed",
            };
            (name.to_owned(), verdict)
        })
        .collect())
}

/// `PASS [   0.009s] ( 1/31) sandboxed NAME`. What it skips, it only counts.
fn nextest_verdicts(output: &str) -> BTreeMap<String, &'static str> {
    let verdict = |line: &str| {
        let line = line.trim_start();
        let verdict = match line.split(' ').next()? {
            "PASS" => "ok",
            "FAIL" => "failed",
            _ => return None,
        };
        let (_, rest) = line.split_once(") sandboxed")?;
        let (_, name) = rest.split_once(' ')?;
        Some((name.to_owned(), verdict))
    };
    let mut verdicts: BTreeMap<_, _> = output.lines().filter_map(verdict).collect();
    if output.contains(" 1 skipped") {
        verdicts.insert("tests::is_ignored".to_owned(), "ignored");
    }
    verdicts
}

fn compare(
    runner: &str,
    table: &str,
    found: &BTreeMap<String, &'static str>,
    output: &str,
) -> Result<()> {
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let cells: Vec<&str> = line.splitn(3, '|').map(str::trim).collect();
        let &[name, expected, shown] = &cells[..] else {
            wrong.push(format!("not a line of the table: {line}"));
            continue;
        };
        known.insert(name);
        match found.get(name) {
            Some(verdict) if *verdict == expected => {}
            verdict => wrong.push(format!("{name}: expected {expected}, found {verdict:?}")),
        }
        if !output.contains(shown) {
            wrong.push(format!("{name}: nothing says `{shown}`"));
        }
    }
    let unknown = found.keys().filter(|name| !known.contains(name.as_str()));
    wrong.extend(unknown.map(|name| format!("{name}: not in the table")));
    ensure!(
        wrong.is_empty(),
        "{runner}:\n{}\n\n{output}",
        wrong.join("\n")
    );
    Ok(())
}
