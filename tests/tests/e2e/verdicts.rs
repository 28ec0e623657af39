//! Every way that a test can end is told as the fixture's table says, with a sandbox for each binary and for each test.

use std::{collections::BTreeMap, env, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use orbit::Sandbox;
use orbit_tests::{Case, Context, Skip, Who};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(600);
const FIXTURE: &str = "fixtures/verdicts";

pub(crate) fn cases() -> Vec<Case> {
    let case = |isolation: &'static str| {
        Case::new(format!("verdicts::of_each_{isolation}"), move |context| {
            are_as_the_table_says(context, isolation)
        })
        .who(Who::RANGED)
        .needs_toolchain()
        .deadline(DEADLINE)
    };
    vec![
        case("binary"),
        case("test"),
        Case::new("verdicts::selection", selection)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(DEADLINE),
        Case::new("verdicts::the_second_run_runs_what_failed", failed_again)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(DEADLINE),
        Case::new("verdicts::of_want_of_memory", of_want_of_memory)
            .who(Who::RANGED)
            .always_as_all(),
    ]
}

/// What is told, by test.
type Told = BTreeMap<String, String>;

/// A directory with a `cargo` and a `rustc` that repeat what they said elsewhere of the fixture's test `hungry`: set by
/// the virtual machine, which has no compiler.
const RECORDED_CARGO: &str = "ORBIT_TESTS_RECORDED_CARGO";

/// Runs the fixture's tests. Its own verdicts are no fault of the run, so its exit code is given back.
fn run(context: &Context, words: &[&str]) -> Result<(Told, Option<i32>, String)> {
    run_within(context, "3s", words)
}

/// The same with another timeout for each test than that of the table.
fn run_within(
    context: &Context,
    timeout: &str,
    words: &[&str],
) -> Result<(Told, Option<i32>, String)> {
    let flaky = context.work().join("flaky");
    // The first time is the first of each run.
    let _ = fs::remove_dir_all(&flaky);
    fs::create_dir_all(&flaky)?;
    let mut command = context.orbit("test")?;
    if let Some(directory) = env::var_os(RECORDED_CARGO).map(PathBuf::from) {
        let system = env::var_os("PATH").unwrap_or_default();
        let first = env::join_paths([directory].into_iter().chain(env::split_paths(&system)))?;
        command = command.env("PATH", first);
    }
    let finished = command
        .args([
            "--no-fail-fast",
            "--offline",
            "--retries",
            "1",
            "--timeout",
            timeout,
        ])
        .args(["--message-format", "json"])
        .arg("--env")
        .arg(format!("FLAKY_DIR={}", flaky.display()))
        .arg("--writable")
        .arg(&flaky)
        .arg("--target-dir")
        .arg(context.work().join("target"))
        .args(words)
        .current_dir(context.in_workspace(FIXTURE))
        .env("RUST_BACKTRACE", "0")
        .deadline(DEADLINE)
        .run()?;
    let told = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| finished.to_string()))
        .collect::<Result<Vec<Value>>>()?;
    let told = told
        .iter()
        .filter(|event| event["event"] == "test-finished")
        .map(one)
        .collect();
    Ok((told, finished.status.code(), finished.stderr))
}

/// A finished test's name, and what is told of it.
fn one(event: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let test = &event["test"];
    let name = format!("{} {}", text(&test["binary"]), text(&test["name"]));
    let last = event["attempts"].as_array().and_then(|all| all.last());
    let mut told = match (event["class"].as_str(), last) {
        (Some("failed"), Some(attempt)) => text(&attempt["verdict"]["phrase"]),
        (class, _) => class.unwrap_or_default().to_owned(),
    };
    let list = |name: &str| {
        last.and_then(|it| it[name].as_array())
            .cloned()
            .unwrap_or_default()
    };
    for process in list("leaked") {
        told.push_str(", left ");
        told.push_str(&text(&process));
    }
    for denied in list("denied") {
        told.push_str(", tried to reach ");
        told.push_str(&text(&denied["to"]));
    }
    (name.trim_end().to_owned(), told)
}

fn are_as_the_table_says(context: &Context, isolation: &str) -> Result<()> {
    let (told, code, stderr) = run(context, &["--isolate", isolation])?;
    let table = fs::read_to_string(context.in_workspace(FIXTURE).join("expected.txt"))?;
    let mut expected = Told::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let cells: Vec<&str> = line.split(" | ").collect();
        let cell = match (isolation, &cells[..]) {
            (_, [_, both]) => both,
            ("binary", [_, binary, _]) => binary,
            ("test", [_, _, test]) => test,
            _ => anyhow::bail!("not a line of the table: {line}"),
        };
        if *cell != "absent" {
            expected.insert(cells[0].to_owned(), (*cell).to_owned());
        }
    }
    let mut wrong = Vec::new();
    for name in expected.keys().chain(told.keys()) {
        if expected.get(name) != told.get(name) {
            wrong.push(format!(
                "{name}: told {:?}, not {:?}",
                told.get(name),
                expected.get(name)
            ));
        }
    }
    wrong.sort();
    wrong.dedup();
    ensure!(wrong.is_empty(), "{}\n\n{stderr}", wrong.join("\n"));
    ensure!(code == Some(101), "exit code {code:?}\n{stderr}");
    Ok(())
}

/// The row of the table that only a host with limits can show.
fn of_want_of_memory(context: &Context) -> Result<()> {
    let limited = Sandbox::builder().cmd(["true"]).memory("64M").run();
    if let Err(error) = limited {
        ensure!(error.is_limit() || error.is_spec(), "{error}");
        return Err(Skip::because(
            "limits cannot be kept here; `cargo xtask vm` runs it where they can",
        ));
    }
    for isolation in ["binary", "test"] {
        let words = ["--isolate", isolation, "--test", "hungry"];
        let limited = ["--memory", "64M", "--", "--include-ignored"];
        // An emulated processor takes seconds to fill so much memory.
        let words = [&words[..], &limited].concat();
        let (told, code, stderr) = run_within(context, "60s", &words)?;
        let phrase = told
            .get("verdicts::hungry eats_memory")
            .with_context(|| format!("{told:?}\n{stderr}"))?;
        ensure!(
            phrase.starts_with("killed by the memory limit of 64 MiB, peak "),
            "{isolation}: {phrase}\n{stderr}"
        );
        ensure!(code == Some(101), "exit code {code:?}\n{stderr}");
    }
    Ok(())
}

/// What was asked for runs, and nothing else.
fn selection(context: &Context) -> Result<()> {
    let names = |words: &[&str]| -> Result<Vec<String>> {
        let (told, _, _) = run(context, words)?;
        // Without what is a binary's, and no test's.
        let ran = told
            .into_iter()
            .filter(|(name, how)| how != "ignored" && name.contains(' '));
        Ok(ran.map(|(name, _)| name).collect())
    };
    let all_tests: &[&str] = &["--lib", "--tests"];
    let with = |words: &[&'static str]| -> Vec<&'static str> { [all_tests, words].concat() };
    let check = |words: &[&'static str], expected: &[&str]| -> Result<()> {
        let found = names(&with(words))?;
        ensure!(found == expected, "{words:?}: {found:?}, not {expected:?}");
        Ok(())
    };
    check(
        &["one_passes"],
        &[
            "verdicts::violent a_first_one_passes",
            "verdicts::violent z_last_one_passes",
        ],
    )?;
    check(&["passes", "--", "--exact"], &[])?;
    check(
        &["--lib", "--", "--exact", "tests::passes"],
        &["verdicts tests::passes"],
    )?;
    check(
        &["one_passes", "--", "--skip", "first"],
        &["verdicts::violent z_last_one_passes"],
    )?;
    check(
        &["-E", "binary(=quiet) and test(reaches)"],
        &["verdicts::quiet reaches_out"],
    )?;
    check(
        &["-E", "test(/^tests::should/)", "-E", "binary(flaky)"],
        &[
            "verdicts tests::should_panic_and_does",
            "verdicts tests::should_panic_and_does_not",
            "verdicts::flaky passes_the_second_time",
        ],
    )?;
    check(
        &["--ignored"],
        &[
            "verdicts tests::is_ignored",
            "verdicts::hungry eats_memory",
            "verdicts::violent heeds_no_signal",
        ],
    )?;

    let violent = ["--test", "violent", "-E", "test(passes)"];
    let mut shares = Vec::new();
    for share in ["count:1/2", "count:2/2"] {
        shares.extend(names(&[&violent[..], &["--partition", share]].concat())?);
    }
    shares.sort();
    ensure!(shares == names(&violent)?, "the shares hold {shares:?}");

    let repeated = names(&[&violent[..], &["--repeat", "3", "--shuffle=7"]].concat())?;
    ensure!(repeated.len() == 2, "{repeated:?}");
    Ok(())
}

/// `--failed` runs what failed the last time, and forgets what passes.
fn failed_again(context: &Context) -> Result<()> {
    let (first, code, _) = run(context, &["--lib"])?;
    ensure!(code == Some(101) && first.len() == 6, "{first:?}");
    let (second, _, _) = run(context, &["--lib", "--failed"])?;
    let names: Vec<&String> = second.keys().collect();
    ensure!(
        names
            == [
                "verdicts tests::panics",
                "verdicts tests::returns_an_error",
                "verdicts tests::should_panic_and_does_not"
            ],
        "{names:?}"
    );
    Ok(())
}
