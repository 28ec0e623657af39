//! The faults of security.md: a harness that ends in every way there is, at any moment, or runs out of
//! something. Nothing may be left, and nothing may hang.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit_tests::{Case, Context, LeakAudit, Who};

use crate::kit::harness;

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("faults::{name}"), run).deadline(Duration::from_secs(60))
    };
    vec![
        case(
            "a_harness_ended_by_any_signal_leaves_nothing",
            a_harness_ended_by_any_signal_leaves_nothing,
        ),
        case("exit_and_abort_leave_nothing", exit_and_abort_leave_nothing),
        case(
            "a_panic_ends_what_its_test_held",
            a_panic_ends_what_its_test_held,
        ),
        case(
            "fifty_launches_killed_at_random",
            fifty_launches_killed_at_random,
        ),
        case(
            "a_supervisor_that_is_killed_takes_its_sandboxes",
            a_supervisor_that_is_killed_takes_its_sandboxes,
        ),
        case(
            "few_descriptors_are_an_error_and_no_hang",
            few_descriptors_are_an_error_and_no_hang,
        ),
    ]
}

/// Waits until the harness has said that it is ready.
fn ready(child: &mut Child) -> Result<()> {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("piped")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "{line:?}: {}", said(child));
    Ok(())
}

fn said(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        // What there is, for the message.
        let _ = pipe.read_to_string(&mut text);
    }
    text
}

/// An audit that also sees what loses its parents.
fn audit(context: &Context) -> LeakAudit {
    LeakAudit::adopting([context.tmp()], [context.cache().join("run")])
}

fn a_harness_ended_by_any_signal_leaves_nothing(context: &Context) -> Result<()> {
    for signal in [
        Signal::SIGKILL,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGABRT,
        Signal::SIGPIPE,
    ] {
        let audit = audit(context);
        let mut child = harness("harness-sleep")?;
        ready(&mut child)?;
        kill(Pid::from_raw(child.id() as i32), signal)?;
        // Rust ignores SIGPIPE: then it is killed in earnest.
        if signal == Signal::SIGPIPE {
            thread::sleep(Duration::from_millis(50));
            child.kill()?;
        }
        let status = child.wait()?;
        drop(child);
        audit
            .check()
            .with_context(|| format!("{signal}: {status}"))?;
    }
    Ok(())
}

fn finish(mut child: Child, limit: Duration) -> Result<(ExitStatus, String, String)> {
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("it hangs; it said:\n{}", said(&mut child));
        }
        thread::sleep(Duration::from_millis(5));
    };
    let mut out = String::new();
    child
        .stdout
        .take()
        .context("piped")?
        .read_to_string(&mut out)?;
    let error = said(&mut child);
    Ok((status, out, error))
}

fn exit_and_abort_leave_nothing(context: &Context) -> Result<()> {
    for (role, code) in [("harness-exit", Some(3)), ("harness-abort", None)] {
        let audit = audit(context);
        let (status, _, error) = finish(harness(role)?, Duration::from_secs(20))?;
        ensure!(status.code() == code, "{role}: {status}\n{error}");
        audit.check().context(role)?;
    }
    Ok(())
}

fn a_panic_ends_what_its_test_held(context: &Context) -> Result<()> {
    let audit = audit(context);
    let (status, out, error) = finish(harness("harness-panic")?, Duration::from_secs(20))?;
    ensure!(status.success(), "{status}: {error}");
    let (pid, rest) = out.split_once('\n').context("two lines")?;
    ensure!(rest == "on\n", "{out}");
    ensure!(
        !fs::exists(format!("/proc/{pid}"))?,
        "the sandbox of the test that panicked lives on"
    );
    ensure!(error.contains("as tests fail"), "{error}");
    audit.check()?;
    Ok(())
}

/// At moments that differ from run to run: each is printed where it fails.
fn fifty_launches_killed_at_random(context: &Context) -> Result<()> {
    let mut seed = u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15;
    for round in 0..50 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let after = Duration::from_micros(seed % 60_000);
        let audit = audit(context);
        let mut child = harness("harness-loop")?;
        if round % 2 == 0 {
            ready(&mut child)?;
        }
        thread::sleep(after);
        let ended = child.try_wait()?;
        ensure!(
            ended.is_none(),
            "it ended by itself: {ended:?}\n{}",
            said(&mut child)
        );
        child.kill()?;
        child.wait()?;
        drop(child);
        audit
            .check()
            .with_context(|| format!("round {round}, killed after {after:?}"))?;
    }
    Ok(())
}

fn a_supervisor_that_is_killed_takes_its_sandboxes(context: &Context) -> Result<()> {
    let audit = audit(context);
    let mut sandbox = orbit::Sandbox::builder().cmd(["sleep", "600"]).start()?;
    let own = std::process::id() as i32;
    let supervisor = orbit_tests::proc_fs::descendants(own)
        .into_iter()
        .find(|process| process.parent == own)
        .context("a supervisor")?;
    kill(Pid::from_raw(supervisor.pid), Signal::SIGKILL)?;
    let started = Instant::now();
    let error = sandbox.wait().err().context("the sandbox ended well")?;
    ensure!(error.to_string().contains("supervisor"), "{error}");
    ensure!(started.elapsed() < Duration::from_secs(5));
    drop(sandbox);
    // The next sandbox gets another one.
    let outcome = orbit::Sandbox::builder().cmd(["echo", "again"]).run()?;
    ensure!(outcome.stdout == b"again\n");
    let left = audit
        .check()
        .err()
        .map(|leaks| leaks.to_string())
        .unwrap_or_default();
    ensure!(
        !left.contains("sleep") && !left.contains("zombie"),
        "{left}"
    );
    Ok(())
}

fn few_descriptors_are_an_error_and_no_hang(context: &Context) -> Result<()> {
    // As root each mount of the host takes a descriptor on its way, and what there is none for is no mount less, but an
    // error.
    let enough = if context.who == Who::Root { 48 } else { 16 };
    for few in [8, 10, 11, 12, 13, 14, 16, 24, 48] {
        let audit = audit(context);
        let (status, out, error) = finish(
            harness(&format!("harness-files {few}"))?,
            Duration::from_secs(20),
        )
        .with_context(|| format!("{few} descriptors"))?;
        // Either there was room for the last one, or an error that a person can read: never a panic.
        ensure!(!error.contains("panicked"), "{few}: {error}");
        ensure!(
            status.success() && out.ends_with("again\n") || error.contains("os error 24"),
            "{few}: {status}\n{out}{error}"
        );
        if few >= enough {
            ensure!(
                out.ends_with("again\n"),
                "{few}: it does not recover: {out}{error}"
            );
            ensure!(!out.contains("refused 0"), "{few}: nothing ran out: {out}");
        }
        audit
            .check()
            .with_context(|| format!("{few} descriptors"))?;
    }
    Ok(())
}
