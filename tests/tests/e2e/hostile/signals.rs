//! `cargo orbit shell` that is asked to end, or is killed: the shell ends, and what it was opened over is as it was.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    pty::openpty,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit::kept;
use orbit_tests::{Case, Context, LeakAudit, orbit_cli};

use super::case;
use crate::kit::{VIEWS, View, end_of, end_within};

pub(super) fn cases() -> Vec<Case> {
    let case = |name, run| case(name, run).deadline(Duration::from_secs(90));
    vec![
        case(
            "a_shell_that_gets_a_signal_leaves_nothing",
            a_shell_that_gets_a_signal_leaves_nothing,
        ),
        case(
            "a_shell_whose_terminal_goes_leaves_nothing",
            a_shell_whose_terminal_goes_leaves_nothing,
        ),
    ]
}

/// A sandbox that failed and was kept.
fn keep(view: View) -> Result<String> {
    let mut sandbox = view.sh("echo why >/tmp/log; exit 3")?.start()?;
    ensure!(!sandbox.wait()?.success());
    Ok(kept::keep(&mut sandbox, "tests::fails")?)
}

fn shell(id: &str, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(orbit_cli::binary()?);
    command.args(["orbit", "shell", id]).args(words);
    Ok(command)
}

/// As of now, with what was kept among what was there before.
fn audit(context: &Context) -> LeakAudit {
    LeakAudit::adopting(
        [context.tmp(), context.cache().join("v1/tmp")],
        [context.cache().join("run")],
    )
}

/// As [`end_of`], with the signal sent once more each second: a shell that was just about to wait for a key has not noticed it.
fn end_by(child: &mut Child, signal: Option<Signal>) -> Result<ExitStatus> {
    let pid = Pid::from_raw(child.id() as i32);
    for _ in 0..10 {
        if let Some(status) = end_within(child, Duration::from_secs(1))? {
            return Ok(status);
        }
        if let Some(signal) = signal {
            kill(pid, signal)?;
        }
    }
    end_of(child)
}

/// The next look finds what the program left, and nothing of the look that was ended.
fn check_as_it_was(context: &Context, id: &str) -> Result<()> {
    let script = "cat /tmp/log; ls /tmp/mess 2>/dev/null; true";
    let finished = context
        .orbit("shell")?
        .args([id, "--", "sh", "-c", script])
        .run()?
        .success()?;
    ensure!(finished.stdout == "why\n", "{finished}");
    Ok(())
}

/// Into a program that does as signals say, into one that has something to do first, and into one with children that do
/// not care. Were the sandbox not to end with the command, the audit would name its `sleep`.
fn a_shell_that_gets_a_signal_leaves_nothing(context: &Context) -> Result<()> {
    const OBEYS: &str = "echo x >/tmp/mess; rm -f /tmp/log; echo up; exec sleep 600";
    const CLEANS: &str =
        "trap 'sleep 0.1; exit 9' INT TERM HUP QUIT; echo up; while :; do sleep 0.05; done";
    const HOLDS: &str =
        "(trap '' INT TERM HUP QUIT; setsid sleep 601 & exec sleep 602) & echo up; exec sleep 600";
    let ids = VIEWS.map(keep);
    for id in ids {
        let id = id?;
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGKILL,
        ] {
            let by_itself = 128 + signal as i32;
            for (script, times, expected) in [
                (OBEYS, 1, by_itself),
                (OBEYS, 2, by_itself),
                (CLEANS, 2, 9),
                (HOLDS, 1, by_itself),
            ] {
                // Of the two that are not passed on, the command ends by itself, and its program with it.
                let is_passed_on = ![Signal::SIGQUIT, Signal::SIGKILL].contains(&signal);
                let expected = if is_passed_on { expected } else { by_itself };
                let audit = audit(context);
                let mut child = shell(&id, &["--", "sh", "-c", script])?
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()?;
                let mut line = String::new();
                let output = child.stdout.take().context("piped")?;
                BufReader::new(output).read_line(&mut line)?;
                ensure!(line == "up\n", "{line:?}");
                for _ in 0..times {
                    kill(Pid::from_raw(child.id() as i32), signal)?;
                }
                let told = || format!("{signal} {times} times: {script}");
                let status = end_of(&mut child).with_context(told)?;
                let code = status.code().or(status.signal().map(|it| 128 + it));
                ensure!(code == Some(expected), "{}: {status}", told());
                drop(child);
                audit.check().with_context(told)?;
            }
        }
        check_as_it_was(context, &id)?;
        // At any moment: also before there is a sandbox, and while it is made.
        for after in (0..12).map(|round| Duration::from_millis(round * 4)) {
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                let audit = audit(context);
                let mut child = shell(&id, &["--", "sleep", "600"])?
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()?;
                thread::sleep(after);
                kill(Pid::from_raw(child.id() as i32), signal)?;
                let told = || format!("{signal} after {after:?}");
                end_of(&mut child).with_context(told)?;
                drop(child);
                audit.check().with_context(told)?;
            }
        }
        check_as_it_was(context, &id)?;
    }
    Ok(())
}

/// A shell that reads from a terminal ignores SIGTERM, as its manual says; the end of its terminal it cannot ignore.
fn a_shell_whose_terminal_goes_leaves_nothing(context: &Context) -> Result<()> {
    for view in VIEWS {
        let id = keep(view)?;
        for way in [
            "closed",
            "closed, and nobody's",
            "SIGHUP",
            "SIGKILL",
            "SIGTERM and closed",
        ] {
            let audit = audit(context);
            let pair = openpty(None, None)?;
            // Closed when something is executed, unlike that of openpty: nobody else keeps the terminal.
            let mut terminal = File::from(pair.master.try_clone()?);
            drop(pair.master);
            let stream = || -> Result<Stdio> { Ok(Stdio::from(pair.slave.try_clone()?)) };
            // In a session of its own, as a terminal's own program has it: the kernel tells that of its end, where the terminal
            // is the session's.
            let mut command = Command::new("setsid");
            command
                .args((!way.contains("nobody")).then_some("-c"))
                .arg(orbit_cli::binary()?)
                .args(["orbit", "shell", &id]);
            command.stdin(stream()?).stdout(stream()?).stderr(stream()?);
            let mut child = command.spawn()?;
            drop(command);
            drop(pair.slave);
            terminal.write_all(b"echo x >/tmp/mess; sleep 600 & echo $((40+2))$((40+2))\n")?;
            let mut shown = Vec::new();
            let mut buffer = [0; 4096];
            while !String::from_utf8_lossy(&shown).contains("4242") {
                let count = terminal.read(&mut buffer)?;
                ensure!(count > 0, "it ended by itself: {shown:?}");
                shown.extend(&buffer[..count]);
            }
            let pid = Pid::from_raw(child.id() as i32);
            let signal = match way {
                "SIGHUP" => Some(Signal::SIGHUP),
                "SIGKILL" => Some(Signal::SIGKILL),
                way if way.starts_with("closed") => None,
                _ => Some(Signal::SIGTERM),
            };
            if let Some(signal) = signal {
                kill(pid, signal)?;
            }
            if way.contains("closed") {
                drop(terminal);
                end_of(&mut child).context(way)?;
            } else {
                end_by(&mut child, signal).context(way)?;
                drop(terminal);
            }
            drop(child);
            audit.check().context(way)?;
            check_as_it_was(context, &id)?;
        }
    }
    Ok(())
}
