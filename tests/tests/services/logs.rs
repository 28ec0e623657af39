//! What a program writes: as it comes, to whoever follows, and where a test fails.

use std::{
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Result, ensure};
use orbit::LogStream;
use orbit_tests::{Case, Context, Who};

use crate::support::{ROLE, VIEWS, View, case, describe, has, until};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "logs::lines_come_as_they_are_written",
            lines_come_as_they_are_written,
        ),
        case(
            "logs::whoever_it_runs_as_may_open_its_outputs",
            whoever_it_runs_as_may_open_its_outputs,
        ),
        case(
            "logs::a_program_that_writes_much_is_not_held_up",
            a_program_that_writes_much_is_not_held_up,
        ),
        case(
            "logs::followers_and_consumers_see_every_line",
            followers_and_consumers_see_every_line,
        ),
        case(
            "logs::a_panicking_test_shows_its_log",
            a_panicking_test_shows_its_log,
        ),
        case(
            "logs::a_failing_service_shows_its_log",
            a_failing_service_shows_its_log,
        ),
    ]
}

fn lines_come_as_they_are_written(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view
            .sh("echo one; echo two >&2; printf three; touch /tmp/three; exec sleep 1000")?
            .start()?;
        let mut logs = sandbox.logs().follow_for(Duration::from_secs(10));
        let mut lines: Vec<_> = logs.by_ref().take(2).collect();
        lines.sort_by_key(|line| line.stream == LogStream::Stderr);
        ensure!(
            lines[0].text == "one" && lines[0].stream == LogStream::Stdout,
            "{lines:?}"
        );
        ensure!(
            lines[1].text == "two" && lines[1].stream == LogStream::Stderr,
            "{lines:?}"
        );
        until("it wrote the rest", || {
            Ok(sandbox.read_file("/tmp/three").is_ok())
        })?;
        // Half a line is none yet.
        ensure!(sandbox.logs().count() == 2);
        sandbox.kill();
        let outcome = sandbox.wait()?;
        ensure!(logs.next().is_some_and(|line| line.text == "three") && logs.next().is_none());
        ensure!(outcome.stdout_text() == "one\nthree" && outcome.stderr_text() == "two\n");
    }
    Ok(())
}

/// A server opens its log by this name, and is another user than who made the pipe behind it.
fn whoever_it_runs_as_may_open_its_outputs(context: &Context) -> Result<()> {
    let script = "id -u; echo one >> /dev/stdout; echo two >> /dev/stderr";
    let users: &[&str] = match context.who {
        Who::Single => &["root"],
        Who::Root | Who::User => &["root", "user"],
    };
    for user in users {
        let outcome = View::Image.sh(script)?.user(user).run()?;
        ensure!(outcome.success(), "{user}: {}", describe(&outcome));
        has(&outcome.stdout_text(), &["one\n"])?;
        ensure!(outcome.stderr_text() == "two\n");
        let sandbox = View::Image.idle()?;
        let outcome = sandbox.exec(["sh", "-c", script]).user(user).run()?;
        ensure!(outcome.success(), "{user}: {}", describe(&outcome));
    }
    Ok(())
}

fn a_program_that_writes_much_is_not_held_up(_: &Context) -> Result<()> {
    let sandbox = View::Host
        .sh("head -c 3000000 /dev/zero | tr '\\0' x; echo; touch /tmp/done; exec sleep 1000")?
        .start()?;
    // Nobody waits for it, and no pipe holds as much.
    until("it wrote all", || {
        Ok(sandbox.read_file("/tmp/done").is_ok())
    })?;
    ensure!(
        sandbox
            .logs()
            .follow_for(Duration::from_secs(10))
            .next()
            .is_some_and(|line| line.text.len() == 3_000_000)
    );
    Ok(())
}

fn followers_and_consumers_see_every_line(_: &Context) -> Result<()> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    let mut sandbox = View::Host
        .sh("i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done")?
        .on_log(move |line| keep.lock().expect("no panic").push(line.text.clone()))
        .on_log(|_| panic!("a consumer's own fault"))
        .start()?;
    let follower = std::thread::spawn({
        let logs = sandbox.logs().follow();
        move || logs.map(|line| line.text).collect::<Vec<_>>()
    });
    ensure!(sandbox.wait()?.success());
    let wanted: Vec<String> = (0..2000).map(|number: u32| number.to_string()).collect();
    ensure!(
        follower.join().expect("no panic") == wanted,
        "the follower missed something"
    );
    ensure!(
        *seen.lock().expect("no panic") == wanted,
        "the consumer missed something"
    );
    Ok(())
}

fn a_panicking_test_shows_its_log(_: &Context) -> Result<()> {
    let output = Command::new(std::env::current_exe()?)
        .env(ROLE, "panic")
        .output()?;
    ensure!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    has(
        &text,
        &[
            "the assertion failed",
            "`doomed`",
            "stdout| first-line",
            "stderr| the-reason",
            "whose program exited with code 9",
            "stdout| last-words",
        ],
    )?;
    ensure!(!text.contains("not-shown"), "{text}");
    Ok(())
}

/// A test that fails by an error drops its sandboxes as one that passes does.
fn a_failing_service_shows_its_log(_: &Context) -> Result<()> {
    let run = |logs: &str| -> Result<String> {
        let output = Command::new(std::env::current_exe()?)
            .env(ROLE, "error")
            .env("ORBIT_LOGS", logs)
            .output()?;
        ensure!(!output.status.success());
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let text = run("failed")?;
    let ended = [
        "`gone`",
        "whose program exited with code 9",
        "stdout| last-words",
    ];
    has(&text, &ended)?;
    ensure!(!text.contains("still-well"), "{text}");
    let text = run("always")?;
    has(&text, &ended)?;
    has(&text, &["stdout| still-well"])
}
