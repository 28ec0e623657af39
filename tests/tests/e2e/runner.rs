//! `cargo orbit runner` where people already are: cargo, and the real nextest, with and without it.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit_tests::{Case, Context, Finished, Program, Skip};

const DEADLINE: Duration = Duration::from_secs(600);
const FIXTURE: &str = "fixtures/workspace-mixed";
/// Nextest cannot list binaries without a test harness, with or without a runner.
const SELECTED: [&str; 8] = [
    "--lib",
    "--bins",
    "--test",
    "ends",
    "--test",
    "environment",
    "--example",
    "tested",
];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "runner::nextest_says_the_same_with_and_without",
            nextest_says_the_same_with_and_without,
        )
        .deadline(DEADLINE),
        Case::new("runner::cargo_says_the_same", cargo_says_the_same)
            .needs_toolchain()
            .deadline(DEADLINE),
        Case::new("runner::nothing_outlives_nextest", nothing_outlives_nextest).deadline(DEADLINE),
        Case::new(
            "runner::settings_hold_under_nextest",
            settings_hold_under_nextest,
        )
        .deadline(DEADLINE),
    ]
}

/// The name and the value of what `cargo orbit env` prints.
pub(crate) fn runner(context: &Context) -> Result<(String, String)> {
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
    Ok((name.to_owned(), value.to_owned()))
}

fn target(context: &Context) -> PathBuf {
    context.work().join("target")
}

fn cargo(context: &Context, words: &[&str]) -> Result<Program> {
    Ok(context
        .cargo()?
        .args(words)
        // Where cargo reads the configuration of the fixture.
        .current_dir(context.in_workspace(FIXTURE))
        .env("CARGO_TARGET_DIR", target(context))
        .env("RUST_BACKTRACE", "0")
        .env("ORBIT_PASS_ENV", "FIXTURE_END,FIXTURE_MARK")
        .deadline(DEADLINE))
}

fn nextest(context: &Context, end: &str) -> Result<Program> {
    let words = ["nextest", "run", "--no-fail-fast", "--color=never"];
    let words: Vec<&str> = words.into_iter().chain(SELECTED).collect();
    Ok(cargo(context, &words)?.env("FIXTURE_END", end))
}

pub(crate) fn need_nextest() -> Result<()> {
    match Program::new("cargo-nextest").arg("--version").run() {
        Ok(_) => Ok(()),
        Err(_) => Err(Skip::because("needs cargo-nextest")),
    }
}

/// `PASS [   0.009s] (1/8) mixed::ends ends_as_asked`: by name, what became of it.
fn verdicts(finished: &Finished) -> BTreeMap<String, String> {
    let verdict = |line: &str| {
        let (verdict, rest) = line.trim_start().split_once(" [")?;
        let (_, name) = rest.split_once(") ")?;
        let is_verdict = verdict.bytes().all(|byte| byte.is_ascii_uppercase());
        is_verdict.then(|| (name.to_owned(), verdict.to_owned()))
    };
    finished.stderr.lines().filter_map(verdict).collect()
}

fn nextest_says_the_same_with_and_without(context: &Context) -> Result<()> {
    need_nextest()?;
    let (name, value) = runner(context)?;
    let written = target(context).join("tmp/written-by-a-test");
    for end in ["", "fail", "exit", "abort", "segv"] {
        let plain = nextest(context, end)?.run()?;
        let expected = verdicts(&plain);
        ensure!(expected.len() == 9, "{plain}");
        ensure!(
            (expected["mixed::ends ends_as_asked"] == "PASS") == end.is_empty(),
            "{plain}"
        );
        // A test without a sandbox has written it.
        if let Err(error) = fs::remove_file(&written) {
            bail!("{}: {error}\n{plain}", written.display());
        }
        let orbit = nextest(context, end)?.env(&name, &value).run()?;
        ensure!(
            verdicts(&orbit) == expected && orbit.status == plain.status,
            "with FIXTURE_END={end}: {expected:?}\n{plain}\n{orbit}"
        );
        ensure!(!written.exists(), "a write was not thrown away: {orbit}");
    }
    // Cargo was asked once for all of them.
    let kept = target(context).join("orbit/workspace.json");
    let inode = || fs::metadata(&kept).map(|found| found.ino());
    let before = inode().context("what is kept of the workspace")?;
    nextest(context, "")?.env(&name, &value).run()?.success()?;
    ensure!(before == inode()?, "cargo was asked again");

    let words: Vec<&str> = [
        "nextest",
        "list",
        "--message-format",
        "oneline",
        "--color=never",
    ]
    .into_iter()
    .chain(SELECTED)
    .collect();
    let plain = cargo(context, &words)?.run()?.success()?;
    let orbit = cargo(context, &words)?
        .env(&name, &value)
        .run()?
        .success()?;
    ensure!(
        plain.stdout == orbit.stdout && plain.stdout.contains("ends_as_asked"),
        "{plain}\n{orbit}"
    );
    Ok(())
}

fn cargo_says_the_same(context: &Context) -> Result<()> {
    let (name, value) = runner(context)?;
    // The times differ, and the order of doctests.
    let lines = |finished: &Finished| {
        let mut lines: Vec<String> = finished
            .stdout
            .lines()
            .filter(|line| line.starts_with("test ") || line.contains("harness"))
            .filter(|line| !line.starts_with("test result"))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    let words = ["test", "--workspace", "--no-fail-fast"];
    let plain = cargo(context, &words)?.run()?.success()?;
    let orbit = cargo(context, &words)?
        .env(&name, &value)
        .run()?
        .success()?;
    ensure!(
        lines(&plain) == lines(&orbit) && plain.stdout.contains("(line 7) ... ok"),
        "{plain}\n{orbit}"
    );
    let words = ["bench", "-p", "mixed", "--bench", "timed"];
    let bench = cargo(context, &words)?
        .env(&name, &value)
        .run()?
        .success()?;
    ensure!(bench.stdout.contains("bench: [\"--bench\"]"), "{bench}");
    let words = ["run", "-q", "-p", "mixed", "--bin", "greet"];
    let run = cargo(context, &words)?
        .env(&name, &value)
        .run()?
        .success()?;
    ensure!(run.stdout == "hello\n", "{run}");
    Ok(())
}

/// By nextest's own timeout, by Ctrl-C, and by the death of nextest.
fn nothing_outlives_nextest(context: &Context) -> Result<()> {
    need_nextest()?;
    let (name, value) = runner(context)?;
    let config = context.work().join("nextest.toml");
    fs::write(
        &config,
        "[profile.default]\nslow-timeout = { period = '3s', terminate-after = 1, grace-period = '2s' }\n",
    )?;
    let audit = context.audit();
    let timed_out = nextest(context, "hang")?
        .env(&name, &value)
        .arg("--config-file")
        .arg(&config)
        .run()?
        .code(100)?;
    ensure!(
        verdicts(&timed_out)["mixed::ends ends_as_asked"] == "TIMEOUT",
        "{timed_out}"
    );
    ensure!(!timed_out.output_held_open, "{timed_out}");
    audit.check()?;

    let directory = context.work().join("marks");
    fs::create_dir_all(&directory)?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mark = directory.join(signal.as_str());
        let mut child = Command::new("cargo-nextest")
            .args(["nextest", "run", "--test", "ends", "--color=never"])
            .env("CARGO_NET_OFFLINE", "true")
            .env("CARGO_TARGET_DIR", target(context))
            .env("FIXTURE_END", "hang")
            .env("FIXTURE_MARK", &mark)
            .env("ORBIT_PASS_ENV", "FIXTURE_END,FIXTURE_MARK")
            .env("ORBIT_WRITABLE", &directory)
            .env("CARGO", env::var_os("CARGO").context("main sets CARGO")?)
            .env(&name, &value)
            .current_dir(context.in_workspace(FIXTURE))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let started = wait_for(&mark);
        kill(Pid::from_raw(child.id().try_into()?), signal)?;
        let began = Instant::now();
        let ended = loop {
            if child.try_wait()?.is_some() {
                break Ok(());
            }
            if began.elapsed() > Duration::from_secs(30) {
                child.kill()?;
                child.wait()?;
                break Err(anyhow::anyhow!("nextest did not end by {signal}"));
            }
            thread::sleep(Duration::from_millis(10));
        };
        started.with_context(|| format!("before {signal}"))?;
        ended?;
        audit.check().with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}

fn wait_for(path: &Path) -> Result<()> {
    let began = Instant::now();
    while !path.exists() {
        if began.elapsed() > Duration::from_secs(120) {
            bail!("the test did not begin");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The configuration reaches the one test that it is for.
fn settings_hold_under_nextest(context: &Context) -> Result<()> {
    need_nextest()?;
    let (name, value) = runner(context)?;
    // In the user's own file, as the fixture is not to be changed.
    let file = context.home().join(".config/orbit/config.toml");
    fs::create_dir_all(file.parent().context("a parent")?)?;
    let config = |text: &str| fs::write(&file, text);

    config("[[override]]\nfilter = 'binary(ends)'\ntimeout = '2s'\n")?;
    let ended = nextest(context, "hang")?
        .env(&name, &value)
        .run()?
        .code(100)?;
    let said = verdicts(&ended);
    ensure!(
        said["mixed::ends ends_as_asked"] == "FAIL"
            && ended
                .stderr
                .contains("orbit: killed after its timeout of 2s"),
        "{ended}"
    );
    ensure!(said["mixed::environment variables"] == "PASS", "{ended}");

    config("[[override]]\nfilter = 'test(variables)'\nenv = { FROM_CONFIG = 'yes' }\n")?;
    let shown = nextest(context, "")?
        .env(&name, &value)
        .arg("--success-output=immediate")
        .run()?
        .success()?;
    ensure!(shown.stderr.contains("VARIABLE FROM_CONFIG=yes"), "{shown}");
    // Another cargo inside would look for the runner in vain.
    ensure!(!shown.stderr.contains("_RUNNER="), "{shown}");

    config("memroy = '1M'\n")?;
    let wrong = nextest(context, "")?.env(&name, &value).run()?;
    ensure!(
        !wrong.status.success()
            && wrong
                .stderr
                .contains("config.toml:1:1: there is no key `memroy` here; did you mean `memory`?"),
        "{wrong}"
    );
    Ok(())
}
