//! One service for many tests of a process: one start, and an end however the process ends.

use std::{
    env,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orbit::{Sandbox, Scenario, Shared, Wait};
use orbit_tests::{Case, Context};
use tokio::runtime::Builder;

use crate::support::{ROLE, View, case, has, read, until};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("shared::one_start_for_many_users", one_start_for_many_users),
        case(
            "shared::a_failed_start_is_told_to_each",
            a_failed_start_is_told_to_each,
        ),
        case(
            "shared::nothing_is_left_however_the_process_ends",
            nothing_is_left_however_the_process_ends,
        ),
        case("shared::the_async_form", the_async_form),
    ]
}

static SERVICE: Shared = Shared::new("service", || service().start());

/// Ended by nobody but the end of the process.
static KEPT: Shared<Scenario> = Shared::new("kept", || {
    Scenario::builder().service("one", service()).start()
})
.keep();

fn service() -> orbit::SandboxBuilder {
    Sandbox::builder()
        .cmd(["sh", "-c", "echo up; exec sleep 5151"])
        .wait_for(Wait::log("up"))
}

fn is_alive() -> Result<bool> {
    let found = Command::new("pgrep")
        .args(["-f", "sleep 51[5]1"])
        .output()?;
    Ok(found.status.success())
}

fn one_start_for_many_users(_: &Context) -> Result<()> {
    let users: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(|| -> Result<(String, String)> {
                let service = SERVICE.get()?;
                // All at the same service at the same time.
                thread::sleep(Duration::from_millis(100));
                Ok((service.id().to_owned(), read(&service, "echo hello")?))
            })
        })
        .collect();
    let mut ids = Vec::new();
    for user in users {
        let (id, said) = user.join().expect("no panic")?;
        ensure!(said == "hello\n");
        ids.push(id);
    }
    ids.dedup();
    ensure!(ids.len() == 1, "{ids:?}");
    ensure!(!is_alive()?, "the last user left it");
    let again = SERVICE.get()?;
    ensure!(ids[0] != again.id() && is_alive()?);
    drop(again);
    ensure!(!is_alive()?);

    let id = KEPT.get()?["one"].id().to_owned();
    ensure!(is_alive()? && KEPT.get()?["one"].id() == id);
    // That it ends with this process is the audit's to see.
    Ok(())
}

fn a_failed_start_is_told_to_each(_: &Context) -> Result<()> {
    static BAD: Shared<Sandbox, anyhow::Error> = Shared::new("db", || {
        Ok(View::Host
            .sh("sleep 0.2; echo no such table >&2; exit 3")?
            .wait_for(Wait::port(1))
            .start()?)
    });
    let waiting: Vec<_> = (0..4)
        .map(|_| thread::spawn(|| BAD.get().map(drop)))
        .collect();
    for one in waiting {
        let error = one.join().expect("no panic").expect_err("it failed");
        has(
            &error.to_string(),
            &[
                "the shared service `db` could not be started",
                "exited with code 3",
                "no such table",
            ],
        )?;
    }
    let started = Instant::now();
    ensure!(BAD.get().is_err());
    ensure!(
        started.elapsed() < Duration::from_millis(100),
        "it was tried again"
    );
    Ok(())
}

/// Ends in the way that is asked for, with a service that a static and another thread hold.
pub(crate) fn end_with_a_service(how: &str) -> Result<()> {
    let other = SERVICE.get()?;
    let ours = SERVICE.get()?;
    ensure!(is_alive()?);
    println!("up");
    match how {
        "exit" => std::process::exit(7),
        "panic" => {
            // As libtest: the thread of a test panics, others go on.
            let panicked = thread::spawn(move || {
                let _ours = ours;
                panic!("the assertion failed");
            });
            ensure!(panicked.join().is_err() && is_alive()?);
            std::mem::forget(other);
        }
        "return" => std::mem::forget((ours, other)),
        _ => thread::sleep(Duration::from_secs(1000)),
    }
    Ok(())
}

fn nothing_is_left_however_the_process_ends(_: &Context) -> Result<()> {
    for (how, status) in [
        ("exit", Some(7)),
        ("panic", Some(0)),
        ("return", Some(0)),
        ("kill", None),
    ] {
        let mut child = Command::new(env::current_exe()?)
            .env(ROLE, format!("shared {how}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if how == "kill" {
            until("the service is up", is_alive)?;
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == status,
            "{how}: {} {said}",
            output.status
        );
        ensure!(how != "kill" || output.status.signal() == Some(9));
        if how == "panic" {
            // Though another test still uses it.
            has(
                &said,
                &[
                    "the assertion failed",
                    "the end of the log of",
                    "stdout| up",
                ],
            )?;
        }
        until("the service is gone", || Ok(!is_alive()?))?;
    }
    Ok(())
}

fn the_async_form(_: &Context) -> Result<()> {
    for mut runtime in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let runtime = runtime.enable_all().build()?;
        runtime.block_on(async {
            let (one, other) = tokio::join!(SERVICE.get_async(), SERVICE.get_async());
            let (one, other) = (one?, other?);
            ensure!(one.id() == other.id() && is_alive()?);
            drop((one, other));
            ensure!(!is_alive()?);
            Ok(())
        })?;
    }
    Ok(())
}
