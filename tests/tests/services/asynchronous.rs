//! The async forms, under both kinds of runtime, and that none is needed for an end.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orbit::{Sandbox, Status, Wait};
use orbit_tests::{Case, Context};
use tokio::runtime::{Builder, Runtime};

use crate::support::{VIEWS, View, case, until};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "async::everything_under_both_runtimes",
            everything_under_both_runtimes,
        ),
        case("async::waits_hold_no_thread", waits_hold_no_thread),
        case("async::what_is_given_up_is_gone", what_is_given_up_is_gone),
        case("async::an_end_needs_no_runtime", an_end_needs_no_runtime),
    ]
}

fn runtimes() -> Result<[Runtime; 2]> {
    Ok([
        Builder::new_current_thread().enable_all().build()?,
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?,
    ])
}

fn everything_under_both_runtimes(context: &Context) -> Result<()> {
    for runtime in runtimes()? {
        for view in VIEWS {
            let (builder, short) = (
                view.sh("echo up; exec sleep 1000")?,
                view.sh("head -c 3000000 /dev/zero; exit 3")?,
            );
            let out = context.work().join("out");
            runtime.block_on(async {
                let outcome = short.run_async().await?;
                ensure!(outcome.status == Status::Exited(3) && outcome.stdout.len() == 3_000_000);
                let mut sandbox = builder.wait_for(Wait::log("up")).start_async().await?;
                let (one, other) = tokio::join!(
                    sandbox
                        .exec(["sh", "-c", "head -c 3000000 /dev/zero"])
                        .run_async(),
                    sandbox.exec(["sh", "-c", "sleep 0.05; exit 4"]).run_async(),
                );
                ensure!(one?.stdout.len() == 3_000_000 && other?.status == Status::Exited(4));
                let limit = Duration::from_millis(100);
                let late = sandbox
                    .exec(["sleep", "1000"])
                    .timeout(limit)
                    .run_async()
                    .await?;
                ensure!(late.status == Status::TimedOut(limit));
                sandbox.write_file_async("/tmp/t/f", "x").await?;
                ensure!(sandbox.read_file_async("/tmp/t/f").await? == b"x");
                sandbox.copy_out_async("/tmp/t", &out).await?;
                sandbox.copy_in_async(&out, "/tmp/u").await?;
                ensure!(sandbox.read_file_async("/tmp/u/f").await? == b"x");
                let outcome = sandbox.stop_async(Duration::from_secs(5)).await?;
                ensure!(outcome.status == Status::Signaled(15) && outcome.stdout_text() == "up\n");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A hundred waits on one thread, beside a timer that is on time.
fn waits_hold_no_thread(_: &Context) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()?;
    let sandbox = View::Host.idle()?;
    runtime.block_on(async {
        let mut waits = Vec::new();
        for _ in 0..20 {
            let mut exec = sandbox.exec(["sleep", "0.3"]).start_async().await?;
            waits.push(tokio::spawn(async move { exec.wait_async().await }));
        }
        let started = Instant::now();
        tokio::time::sleep(Duration::from_millis(20)).await;
        ensure!(
            started.elapsed() < Duration::from_millis(200),
            "the runtime stood still"
        );
        for wait in waits {
            ensure!(wait.await??.success());
        }
        Ok(())
    })
}

fn what_is_given_up_is_gone(_: &Context) -> Result<()> {
    for runtime in runtimes()? {
        let mut sandbox = View::Host.idle()?;
        runtime.block_on(async {
            let short = Duration::from_millis(50);
            let given_up = tokio::time::timeout(short, sandbox.wait_async()).await;
            ensure!(given_up.is_err());
            let given_up =
                tokio::time::timeout(short, sandbox.exec(["sleep", "555"]).run_async()).await;
            ensure!(given_up.is_err());
            let never = View::Host
                .sh("exec sleep 1000")?
                .wait_for(Wait::file("/tmp/never"));
            let given_up = tokio::time::timeout(short * 4, never.start_async()).await;
            ensure!(given_up.is_err());
            Ok(())
        })?;
        let left = sandbox.exec(["pgrep", "-f", "sleep 555"]).run()?;
        ensure!(left.stdout.is_empty(), "{}", left.stdout_text());
        // The same sandbox can be waited for again.
        sandbox.kill();
        ensure!(runtime.block_on(sandbox.wait_async())?.status == Status::Signaled(9));
        // The end of a runtime waits for its threads: none waits for what will never be ready.
        let began = Instant::now();
        drop(runtime);
        ensure!(began.elapsed() < Duration::from_secs(10), "a start went on");
    }
    Ok(())
}

fn an_end_needs_no_runtime(_: &Context) -> Result<()> {
    let alive = || -> Result<bool> {
        Ok(Command::new("pgrep")
            .args(["-f", "sleep 4[4]4"])
            .status()?
            .success())
    };
    for runtime in runtimes()? {
        let start = || Sandbox::builder().cmd(["sleep", "444"]).start_async();
        // Dropped inside of the runtime, outside of one, and after it ended.
        runtime.block_on(async { start().await.map(drop) })?;
        ensure!(!alive()?);
        let sandbox = runtime.block_on(start())?;
        // A program runs a moment before its command line can be read.
        until("it is seen", alive)?;
        drop(sandbox);
        ensure!(!alive()?);
        let sandbox = runtime.block_on(start())?;
        drop(runtime);
        drop(sandbox);
        ensure!(!alive()?);
    }
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    ensure!(threads == 1, "{threads} threads are left");
    Ok(())
}
