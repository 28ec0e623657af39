//! Signals that ask `cargo orbit` to end, once and twice: it ends as a shell expects it to, and leaves nothing.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit_tests::{Case, Context, LeakAudit, images, orbit_cli};

use crate::kit::end_of;

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("asked_to_end::{name}"), run).deadline(Duration::from_secs(60))
    };
    vec![
        case("a_run_ends_as_its_program", a_run_ends_as_its_program),
        case("a_pull_ends_at_once", a_pull_ends_at_once),
        case(
            "a_full_standard_error_changes_no_exit_code",
            a_full_standard_error_changes_no_exit_code,
        ),
    ]
}

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

fn orbit(context: &Context, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(orbit_cli::binary()?);
    command
        .arg("orbit")
        .args(words)
        .current_dir(context.work())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

fn ask(child: &Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(child.id() as i32), signal)?;
    Ok(())
}

/// What a shell would say of it.
fn code(status: ExitStatus) -> Option<i32> {
    status.code().or(status.signal().map(|it| 128 + it))
}

fn a_run_ends_as_its_program(context: &Context) -> Result<()> {
    let image = images::reference("busybox")?;
    for signal in SIGNALS {
        for (script, expected, times) in [
            ("echo up; exec sleep 600", 128 + signal as i32, 1),
            ("echo up; exec sleep 600", 128 + signal as i32, 2),
            // One that cleans up is given the time to.
            (
                "trap 'sleep 0.1; exit 9' INT TERM HUP; echo up; while :; do sleep 0.05; done",
                9,
                2,
            ),
        ] {
            let audit = LeakAudit::adopting([context.tmp()], [context.cache().join("run")]);
            let words = ["run", "--image", &image, "--", "sh", "-c", script];
            let mut child = orbit(context, &words)?.spawn()?;
            let mut line = String::new();
            BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
            ensure!(line == "up\n", "{line:?}");
            for _ in 0..times {
                ask(&child, signal)?;
            }
            let status = end_of(&mut child)?;
            ensure!(
                code(status) == Some(expected),
                "{signal} {times} times, {script}: {status}"
            );
            drop(child);
            audit
                .check()
                .with_context(|| format!("{signal}: {script}"))?;
        }
    }
    Ok(())
}

/// From a registry that takes the request and never answers.
fn a_pull_ends_at_once(context: &Context) -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let image = format!("{}/orbit/x:v1", silent.local_addr()?);
    for signal in SIGNALS {
        for words in [
            &["pull", &image][..],
            &["run", "--image", &image, "--", "true"],
        ] {
            let audit = LeakAudit::adopting(
                [context.tmp(), context.cache().join("v1/tmp")],
                [context.cache().join("run")],
            );
            let mut child = orbit(context, words)?.spawn()?;
            let (connection, _) = silent.accept()?;
            let asked = Instant::now();
            ask(&child, signal)?;
            let status = end_of(&mut child)?;
            ensure!(
                code(status) == Some(128 + signal as i32),
                "{signal}, {words:?}: {status}"
            );
            ensure!(
                asked.elapsed() < Duration::from_secs(3),
                "{words:?}: {:?}",
                asked.elapsed()
            );
            drop((connection, child));
            audit
                .check()
                .with_context(|| format!("{signal}: {words:?}"))?;
        }
    }
    Ok(())
}

/// Nobody can be told what is wrong, but for the exit code.
fn a_full_standard_error_changes_no_exit_code(context: &Context) -> Result<()> {
    for (words, expected) in [
        (
            &["run", "--image", "oci:/no/such/layout", "--", "true"][..],
            125,
        ),
        (&["pull", "oci:/no/such/layout"], 1),
    ] {
        let full = File::options().write(true).open("/dev/full")?;
        let status = orbit(context, words)?.stderr(full).status()?;
        ensure!(status.code() == Some(expected), "{words:?}: {status}");
    }
    Ok(())
}
