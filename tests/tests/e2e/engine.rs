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
use orbit_tests::{Case, Context, Who};
use serde_json::Value;

use crate::told::{self, events};

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
        // The building of them takes minutes, and the engine is one for all.
        case("a_hundred_binaries_need_little_memory", a_hundred_binaries).who(&[Who::User]),
    ]
}

fn command(context: &Context, directory: &Path) -> Result<Command> {
    let mut command = told::command(context, directory)?;
    command.arg("--no-fail-fast");
    Ok(command)
}

/// What each of them is asked of.
const ISOLATIONS: [&str; 2] = ["binary", "test"];

/// Starts the fixture's tests that hang, and returns once they run: what has been told by then is in the file `told`.
fn hanging(context: &Context, told: &Path, isolation: &str, name: &str) -> Result<Child> {
    let child = command(context, &context.in_workspace(FIXTURE))?
        .args(["--isolate", isolation, "--timeout", "300s"])
        .arg("--junit")
        .arg(context.work().join("junit.xml"))
        .args(["--test", "violent", name, "--", "--include-ignored"])
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
    for isolation in ISOLATIONS {
        for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
            let what = || format!("{isolation}, {signal}");
            let mut child = hanging(context, &told, isolation, "hangs")?;
            let ended = end(&mut child, signal)?;
            ensure!(ended == Some(code), "{}: exit code {ended:?}", what());
            was_interrupted(context, &fs::read(&told)?).with_context(what)?;
            audit.check().with_context(what)?;
        }
    }
    Ok(())
}

/// What is told of a run that a signal has ended: the test that ran, and all reports to their end.
fn was_interrupted(context: &Context, told: &[u8]) -> Result<()> {
    let events = events(told)?;
    let last = events.last().context("nothing was told")?;
    ensure!(last["event"] == "run-finished", "{last}");
    let mut finished = events
        .iter()
        .filter(|event| event["event"] == "test-finished");
    let verdict = finished.any(|event| event["attempts"][0]["verdict"]["kind"] == "interrupted");
    ensure!(verdict, "{events:?}");
    let junit = context.work().join("junit.xml");
    let text = fs::read_to_string(&junit)?;
    ensure!(text.trim_end().ends_with("</testsuites>"), "{text}");
    Ok(fs::remove_file(junit)?)
}

/// A test that heeds no signal is given time after the first, and none after the second.
fn ctrl_c_twice(context: &Context) -> Result<()> {
    let told = context.work().join("told");
    let audit = context.audit();
    for isolation in ISOLATIONS {
        let mut child = hanging(context, &told, isolation, "heeds_no_signal")?;
        let pid = Pid::from_raw(child.id().try_into()?);
        kill(pid, Signal::SIGINT)?;
        thread::sleep(Duration::from_secs(1));
        ensure!(
            child.try_wait()?.is_none(),
            "{isolation}: the test was given no time"
        );
        let began = Instant::now();
        let ended = end(&mut child, Signal::SIGINT)?;
        let took = began.elapsed();
        ensure!(ended == Some(130), "{isolation}: exit code {ended:?}");
        was_interrupted(context, &fs::read(&told)?).with_context(|| isolation.to_owned())?;
        // Without the second it has ten seconds, of which one is over.
        let most = Duration::from_secs(5);
        ensure!(took < most, "{isolation}: it ended {took:?} later");
        audit.check().with_context(|| isolation.to_owned())?;
    }
    Ok(())
}

fn killed(context: &Context) -> Result<()> {
    let told = context.work().join("told");
    let audit = context.audit();
    for isolation in ISOLATIONS {
        let mut child = hanging(context, &told, isolation, "hangs")?;
        end(&mut child, Signal::SIGKILL)?;
        audit.check().with_context(|| isolation.to_owned())?;
    }
    Ok(())
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

/// One package with a hundred test binaries: what the engine holds grows neither with them nor with what they print.
fn a_hundred_binaries(context: &Context) -> Result<()> {
    const BINARIES: u64 = 100;
    const MIB: u64 = 1 << 20;
    let package = context.work().join("hundred");
    fs::create_dir_all(package.join("src"))?;
    fs::create_dir_all(package.join("tests"))?;
    fs::write(
        package.join("Cargo.toml"),
        "[package]\nname = \"hundred\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[profile.dev]\ndebug = false\n\n[workspace]\n",
    )?;
    fs::write(package.join("src/lib.rs"), "")?;
    // Past the harness, which would hold it.
    let text = "
        #[test]
        fn speaks() {
            use std::io::Write as _;
            let number = |name| std::env::var(name).unwrap().parse::<usize>().unwrap();
            let line = [&[b'x'; 1023][..], b\"\\n\"].concat();
            let mut out = std::io::stdout().lock();
            for _ in 0..number(\"BYTES\") >> 10 {
                out.write_all(&line).unwrap();
            }
            assert!(number(\"FAILS\") == 0, \"as it was told\");
        }";
    for number in 0..BINARIES {
        fs::write(package.join(format!("tests/t{number:03}.rs")), text)?;
    }
    let (junit, page) = (
        context.work().join("junit.xml"),
        context.work().join("page"),
    );
    for (isolation, bytes_each, fails, reports, most_mib) in [
        ("binary", MIB, false, false, 96),
        ("test", MIB, false, false, 96),
        ("binary", 8 * MIB, false, true, 128),
        ("test", MIB, false, true, 128),
        ("test", 8 * MIB, false, true, 128),
        // Of those that failed, up to 256 KiB each are in the JUnit file, which is made in memory.
        ("test", MIB, true, true, 256),
        ("test", 8 * MIB, true, true, 256),
    ] {
        let mut command = command(context, &package)?;
        command
            .args(["--tests", "--quiet", "--jobs", "2", "--isolate", isolation])
            .args(["--env", &format!("BYTES={bytes_each}")])
            .args(["--env", &format!("FAILS={}", u8::from(fails))]);
        if reports {
            command
                .arg("--junit")
                .arg(&junit)
                .arg("--report")
                .arg(&page);
        }
        let run = told::measured(context, &mut command)?;
        let said = || fs::read_to_string(&run.said);
        let code = if fails { 101 } else { 0 };
        ensure!(run.status.code() == Some(code), "{}", said()?);
        let ended = last_line(&run.told)?;
        let count = ended[if fails { "failed" } else { "passed" }].as_u64();
        ensure!(count == Some(BINARIES), "{ended}\n{}", said()?);
        if reports {
            let cases = fs::read_to_string(&junit)?.matches("<testcase ").count();
            ensure!(cases as u64 == BINARIES, "{cases} are in the JUnit file");
            fs::remove_file(&junit)?;
        }
        let most_kib = run.most_kib;
        let what = format!(
            "--isolate {isolation}, {} MiB each, fail: {fails}, reports: {reports}",
            bytes_each / MIB
        );
        println!("{what}: at most {} MiB resident", most_kib >> 10);
        ensure!(
            most_kib > 0 && most_kib < most_mib << 10,
            "{what}: {most_kib} KiB were resident, expected less than {most_mib} MiB"
        );
    }
    Ok(())
}

/// The last event of a run, of which a gigabyte may be told.
fn last_line(told: &Path) -> Result<Value> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    const END_BYTES: u64 = 4096;
    let mut file = fs::File::open(told)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(END_BYTES)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let end = String::from_utf8_lossy(&end);
    let line = end.lines().last().context("nothing was told")?;
    serde_json::from_str(line).with_context(|| line.to_owned())
}
