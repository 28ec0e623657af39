//! The engine of `cargo orbit test` beside its verdicts: how it ends, what it keeps, what it writes, how large it grows.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit_tests::{Case, Context, Who, orbit_cli};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(600);
const FIXTURE: &str = "fixtures/verdicts";

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("engine::{name}"), run)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(DEADLINE)
    };
    vec![
        case("ctrl_c_ends_the_tests_and_reports", ctrl_c),
        case("a_second_ctrl_c_kills_at_once", ctrl_c_twice),
        case("a_kill_leaves_nothing", killed),
        case("what_failed_is_kept_and_shown", kept),
        case("reports_are_written", reports),
        case("a_hundred_binaries_need_little_memory", a_hundred_binaries),
    ]
}

fn command(context: &Context, directory: &Path) -> Result<Command> {
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
        .current_dir(directory)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    Ok(command)
}

fn events(stdout: &[u8]) -> Result<Vec<Value>> {
    let text = std::str::from_utf8(stdout)?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

/// Starts the fixture's tests that hang, and returns once they run: what has been told by then is in the file `told`.
fn hanging(context: &Context, told: &Path, name: &str) -> Result<Child> {
    let child = command(context, &context.in_workspace(FIXTURE))?
        .args([
            "--isolate",
            "test",
            "--timeout",
            "300s",
            "--test",
            "violent",
            name,
            "--",
            "--include-ignored",
        ])
        .stdout(fs::File::create(told)?)
        .stderr(Stdio::null())
        .spawn()?;
    let began = Instant::now();
    while !fs::read_to_string(told)?.contains("test-started") {
        ensure!(began.elapsed() < DEADLINE / 2, "no test has begun");
        thread::sleep(Duration::from_millis(10));
    }
    // It is told as started a little before it is.
    thread::sleep(Duration::from_millis(300));
    Ok(child)
}

fn end(child: &mut Child, signal: Signal) -> Result<Option<i32>> {
    kill(Pid::from_raw(child.id().try_into()?), signal)?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if began.elapsed() > Duration::from_secs(30) {
            child.kill()?;
            child.wait()?;
            bail!("it did not end by {signal}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn ctrl_c(context: &Context) -> Result<()> {
    let told = context.work().join("told");
    let audit = context.audit();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut child = hanging(context, &told, "hangs")?;
        let ended = end(&mut child, signal)?;
        ensure!(ended == Some(code), "{signal}: exit code {ended:?}");
        let events = events(&fs::read(&told)?)?;
        let last = events.last().context("nothing was told")?;
        ensure!(last["event"] == "run-finished", "{signal}: {last}");
        let finished = events
            .iter()
            .find(|event| event["event"] == "test-finished");
        let verdict = finished.map(|event| event["attempts"][0]["verdict"]["kind"].clone());
        ensure!(
            verdict == Some("interrupted".into()),
            "{signal}: {finished:?}"
        );
        audit.check().with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}

/// A test that heeds no signal is given time after the first, and none after the second.
fn ctrl_c_twice(context: &Context) -> Result<()> {
    let told = context.work().join("told");
    let audit = context.audit();
    let mut child = hanging(context, &told, "heeds_no_signal")?;
    let pid = Pid::from_raw(child.id().try_into()?);
    kill(pid, Signal::SIGINT)?;
    thread::sleep(Duration::from_secs(1));
    ensure!(child.try_wait()?.is_none(), "the test was given no time");
    let began = Instant::now();
    let ended = end(&mut child, Signal::SIGINT)?;
    let took = began.elapsed();
    ensure!(ended == Some(130), "exit code {ended:?}");
    let told = String::from_utf8(fs::read(&told)?)?;
    ensure!(told.contains(r#""kind":"interrupted""#), "{told}");
    // Without the second it has ten seconds, of which one is over.
    ensure!(took < Duration::from_secs(5), "it ended {took:?} later");
    Ok(audit.check()?)
}

fn killed(context: &Context) -> Result<()> {
    let told = context.work().join("told");
    let audit = context.audit();
    let mut child = hanging(context, &told, "hangs")?;
    end(&mut child, Signal::SIGKILL)?;
    Ok(audit.check()?)
}

/// What a failed test wrote is listed, and can be looked at when all is over.
fn kept(context: &Context) -> Result<()> {
    let fixture = context.work().join("kept");
    for directory in ["src", "tests"] {
        fs::create_dir_all(fixture.join(directory))?;
    }
    for file in ["src/lib.rs", "tests/flaky.rs"] {
        fs::copy(context.in_workspace(FIXTURE).join(file), fixture.join(file))?;
    }
    fs::write(
        fixture.join("Cargo.toml"),
        "[package]\nname = \"kept\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n",
    )?;
    let written = fixture.join("src/been-here");
    let output = command(context, &fixture)?
        .args([
            "--isolate",
            "test",
            "--keep-failed",
            "--diff",
            "--test",
            "flaky",
        ])
        .arg("--env")
        .arg(format!("FLAKY_DIR={}", fixture.join("src").display()))
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(!written.exists(), "the host's directory was written to");
    let events = events(&output.stdout)?;
    let finished = events
        .iter()
        .find(|event| event["event"] == "test-finished")
        .with_context(|| stderr.to_string())?;
    let attempt = &finished["attempts"][0];
    let expected = format!("A {}", written.display());
    ensure!(
        attempt["wrote"] == Value::from(vec![expected.clone()]),
        "{} was not told, but {}\n{stderr}",
        expected,
        attempt["wrote"]
    );
    let id = attempt["kept"]
        .as_str()
        .with_context(|| format!("nothing was kept: {finished}\n{stderr}"))?;
    ensure!(
        stderr.contains(id),
        "nobody is told how to look at it:\n{stderr}"
    );

    let list = context.orbit("shell")?.run()?.success()?;
    ensure!(list.stdout.contains(id), "{list}");
    let look = context
        .orbit("shell")?
        .args([id, "--", "ls"])
        .arg(&written)
        .run()?
        .success()?;
    ensure!(look.stdout.trim() == written.to_string_lossy(), "{look}");
    context
        .orbit("shell")?
        .args(["--remove", id])
        .run()?
        .success()?;
    Ok(())
}

fn reports(context: &Context) -> Result<()> {
    let junit = context.work().join("reports/junit.xml");
    let page = context.work().join("reports/page");
    let output = command(context, &context.in_workspace(FIXTURE))?
        .args(["--lib", "--junit"])
        .arg(&junit)
        .arg("--report")
        .arg(&page)
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(101), "{stderr}");
    let checked = Command::new("xmllint")
        .arg("--noout")
        .arg(&junit)
        .output()?;
    ensure!(checked.status.success(), "{checked:?}");
    let text = fs::read_to_string(&junit)?;
    ensure!(
        text.contains(r#"tests="6""#) && text.contains(r#"failures="3""#),
        "{text}"
    );
    let html = fs::read_to_string(page.join("index.html"))?;
    for name in [
        "tests::panics",
        "tests::passes",
        "should_panic_and_does_not",
    ] {
        ensure!(html.contains(name), "{name} is not on the page");
    }
    Ok(())
}

/// One package with a hundred test binaries: what the engine holds does not grow with them.
fn a_hundred_binaries(context: &Context) -> Result<()> {
    const BINARIES: usize = 100;
    const MOST_KIB: u64 = 96 << 10;
    let package = context.work().join("hundred");
    fs::create_dir_all(package.join("src"))?;
    fs::create_dir_all(package.join("tests"))?;
    fs::write(
        package.join("Cargo.toml"),
        "[package]\nname = \"hundred\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[profile.dev]\ndebug = false\n\n[workspace]\n",
    )?;
    fs::write(package.join("src/lib.rs"), "")?;
    for number in 0..BINARIES {
        // Each says a mebibyte, which must not be held for all of them.
        fs::write(
            package.join(format!("tests/t{number:03}.rs")),
            "#[test]\nfn speaks() {\n    use std::io::Write as _;\n    std::io::stdout().write_all(&[b'x'; 1 << 20]).unwrap();\n}\n",
        )?;
    }
    let mut child = command(context, &package)?
        .args(["--tests"])
        .stdout(fs::File::create(context.work().join("told"))?)
        .stderr(fs::File::create(context.work().join("said"))?)
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut most_kib = 0;
    let ended = loop {
        // Monotonic, and gone when the process is.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok());
        most_kib = most_kib.max(peak.unwrap_or(0));
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said = fs::read_to_string(context.work().join("said"))?;
    ensure!(ended.success(), "{said}");
    let events = events(&fs::read(context.work().join("told"))?)?;
    let passed = &events.last().context("nothing was told")?["passed"];
    ensure!(
        passed.as_u64() == Some(BINARIES as u64),
        "{passed} passed\n{said}"
    );
    println!(
        "{BINARIES} binaries: at most {} MiB resident",
        most_kib >> 10
    );
    ensure!(
        most_kib > 0 && most_kib < MOST_KIB,
        "{most_kib} KiB were resident, expected less than {MOST_KIB}"
    );
    Ok(())
}
