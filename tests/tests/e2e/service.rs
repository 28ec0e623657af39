//! `[[service]]` of the configuration: under `cargo orbit test`, one start for all tests that need it, and an end with
//! the run.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit_tests::{Case, Context, Who, images, orbit_cli};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(600);
const FIXTURE: &str = "fixtures/served";

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("service::{name}"), run)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(DEADLINE)
    };
    vec![
        case("one_start_serves_every_test_that_needs_it", one_start),
        case("none_starts_that_no_test_needs", none_needed),
        case("one_that_fails_fails_its_tests_and_no_others", failing),
        case("nothing_is_left_however_the_run_ends", ended),
        case("what_is_wrong_is_told_before_anything_is_run", wrong),
        case(
            "under_the_runner_each_program_has_its_own",
            under_the_runner,
        ),
    ]
}

/// A copy of the fixture, whose services are of the image that is there.
pub(crate) fn fixture(context: &Context) -> Result<PathBuf> {
    let copy = context.work().join("served");
    let from = context.in_workspace(FIXTURE);
    for directory in ["src", "tests", ".config", "seen"] {
        fs::create_dir_all(copy.join(directory))?;
    }
    for file in [
        "Cargo.toml",
        "Cargo.lock",
        "src/lib.rs",
        "tests/shop.rs",
        "tests/plain.rs",
        "tests/broken.rs",
        "tests/mourning.rs",
        "tests/waiting.rs",
    ] {
        fs::copy(from.join(file), copy.join(file))?;
    }
    let config = fs::read_to_string(from.join(".config/orbit.toml"))?;
    let config = config.replace("IMAGE", &images::reference("busybox")?);
    fs::write(copy.join(".config/orbit.toml"), config)?;
    Ok(copy)
}

fn command(context: &Context, directory: &Path, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(orbit_cli::binary()?);
    command
        .args([
            "orbit",
            "test",
            "--no-fail-fast",
            "--offline",
            "--message-format",
            "json",
        ])
        .arg("--target-dir")
        .arg(context.work().join("target"))
        .args(words)
        .current_dir(directory)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    Ok(command)
}

/// Each test's name and last attempt.
fn finished(output: &Output) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for line in std::str::from_utf8(&output.stdout)?.lines() {
        let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if event["event"] == "test-finished" {
            let name = event["test"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let attempts = event["attempts"].as_array().cloned().unwrap_or_default();
            found.push((name, attempts.last().cloned().unwrap_or_default()));
        }
    }
    ensure!(
        !found.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(found)
}

pub(crate) fn seen(copy: &Path) -> Result<BTreeSet<String>> {
    let names = fs::read_dir(copy.join("seen"))?;
    names
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

pub(crate) fn starts(copy: &Path) -> Result<usize> {
    Ok(seen(copy)?
        .iter()
        .filter(|name| name.starts_with("started-"))
        .count())
}

fn one_start(context: &Context) -> Result<()> {
    let copy = fixture(context)?;
    for (run, words) in [["--isolate", "binary"], ["--isolate", "test"]]
        .iter()
        .enumerate()
    {
        let output = command(
            context,
            &copy,
            &[words, &["--test", "shop", "--test", "plain"][..]].concat(),
        )?
        .output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{words:?}: {text}");
        ensure!(
            starts(&copy)? == run + 1,
            "{words:?}: {:?}\n{text}",
            seen(&copy)?
        );
        let mut ids = BTreeSet::new();
        for test in ["by_address", "by_name", "on_the_hosts_network"] {
            let path = copy.join("seen").join(test);
            ids.insert(fs::read_to_string(&path)?);
            fs::remove_file(path)?;
        }
        ensure!(ids.len() == 1, "{words:?}: {ids:?}");
    }
    Ok(())
}

fn none_needed(context: &Context) -> Result<()> {
    let copy = fixture(context)?;
    for words in [
        &["--test", "plain"][..],
        &["--test", "shop", "no_such_test"],
        &["--list"],
    ] {
        let output = command(context, &copy, words)?.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() && starts(&copy)? == 0,
            "{words:?}: {text}"
        );
    }
    Ok(())
}

fn failing(context: &Context) -> Result<()> {
    let copy = fixture(context)?;
    let words = [
        "--isolate",
        "test",
        "--test",
        "broken",
        "--test",
        "plain",
        "--test",
        "mourning",
    ];
    let output = command(context, &copy, &words)?.output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let finished = finished(&output)?;
    let attempt = |test: &str| -> Result<&Value> {
        let found = finished.iter().find(|(name, _)| name == test);
        Ok(&found.with_context(|| format!("{test}: {finished:?}"))?.1)
    };
    ensure!(
        attempt("needs_nothing")?["verdict"]["kind"] == "passed",
        "{text}"
    );
    for test in ["one", "another"] {
        let verdict = &attempt(test)?["verdict"];
        ensure!(verdict["kind"] == "setup-failed", "{verdict}\n{text}");
        let why = verdict.to_string();
        for part in [
            "the service `broken`",
            "orbit.toml:",
            "exited with code 3",
            "no such table",
        ] {
            ensure!(why.contains(part), "no {part:?} in {why}");
        }
    }
    ensure!(text.contains("stderr| no such table"), "{text}");
    let attempt = attempt("fails")?;
    ensure!(attempt["verdict"]["kind"] == "failed", "{attempt}");
    for part in [
        "the service `mortal`",
        "has ended: its program exited with code 9",
        "out of ink",
    ] {
        ensure!(
            attempt["notes"].to_string().contains(part),
            "no {part:?} in {attempt}"
        );
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    Ok(())
}

fn wait(child: &mut Child) -> Result<Option<i32>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if began.elapsed() > Duration::from_secs(30) {
            child.kill()?;
            child.wait()?;
            bail!("it did not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn ended(context: &Context) -> Result<()> {
    let copy = fixture(context)?;
    let told = context.work().join("told");
    let audit = context.audit();
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        let words = ["--test", "shop", "--", "--ignored", "hangs"];
        let mut child = command(context, &copy, &words)?
            .stdout(Stdio::null())
            .stderr(fs::File::create(&told)?)
            .spawn()?;
        let began = Instant::now();
        let hangs = copy.join("seen/hangs");
        while !hangs.exists() {
            let is_over = child.try_wait()?.is_some() || began.elapsed() > DEADLINE / 4;
            ensure!(
                !is_over,
                "no test has begun: {}",
                fs::read_to_string(&told)?
            );
            thread::sleep(Duration::from_millis(10));
        }
        kill(Pid::from_raw(child.id().try_into()?), signal)?;
        ensure!(wait(&mut child)? == code, "{signal}");
        fs::remove_file(hangs)?;
        audit.check().with_context(|| format!("after {signal}"))?;
    }
    ensure!(starts(&copy)? == 2);
    Ok(())
}

/// Under cargo one binary is one program. Under nextest one test is, but the run has one service: `keeper`.
fn under_the_runner(context: &Context) -> Result<()> {
    let copy = fixture(context)?;
    let printed = context
        .orbit("env")?
        .args(["--format", "github"])
        .run()?
        .success()?;
    let (name, value) = printed
        .stdout
        .trim_end()
        .split_once('=')
        .context("NAME=VALUE")?;
    let cargo = |words: &[&str]| -> Result<_> {
        Ok(context
            .cargo()?
            .args(words)
            .current_dir(&copy)
            .env("CARGO_TARGET_DIR", context.work().join("target"))
            .env("CARGO_NET_OFFLINE", "true")
            .env("RUST_BACKTRACE", "0")
            .env(name, value)
            .deadline(DEADLINE))
    };
    // On the host's network it would be told of the host's ports, but a binary has one sandbox for all its tests.
    let skip = [
        "test",
        "--test",
        "shop",
        "--",
        "--skip",
        "on_the_hosts_network",
    ];
    cargo(&skip)?.run()?.success()?;
    ensure!(starts(&copy)? == 1, "{:?}", seen(&copy)?);
    cargo(&["test", "--test", "plain"])?.run()?.success()?;
    ensure!(starts(&copy)? == 1, "{:?}", seen(&copy)?);
    let broken = cargo(&["test", "--test", "broken"])?.run()?;
    for part in ["orbit: the service `broken`", "stderr| no such table"] {
        ensure!(
            !broken.status.success() && broken.stderr.contains(part),
            "{broken}"
        );
    }
    let mourning = cargo(&["test", "--test", "mourning"])?.run()?;
    ensure!(mourning.stderr.contains("out of ink"), "{mourning}");
    Ok(())
}

fn wrong(context: &Context) -> Result<()> {
    let copy = fixture(context)?;
    let config = copy.join(".config/orbit.toml");
    let good = fs::read_to_string(&config)?;
    fs::write(
        &config,
        good.replace("after = [\"stock-1\"]", "after = [\"stock\"]\nport = 1"),
    )?;
    let output = command(context, &copy, &["--test", "plain"])?.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && output.stdout.is_empty(),
        "{text}"
    );
    ensure!(
        text.contains("there is no key `port` in a service; did you mean `ports`?"),
        "{text}"
    );
    fs::write(
        &config,
        good.replace("after = [\"stock-1\"]", "after = [\"stock\"]"),
    )?;
    let output = command(context, &copy, &["--test", "plain"])?.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        text.contains("there is no service `stock`; did you mean `stock-1`?"),
        "{text}"
    );
    ensure!(text.contains("after = [\"stock\"]"), "{text}");
    Ok(())
}
