//! The async forms, under both kinds of runtime, and that none is needed for an end.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
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
        case("async::every_call_that_blocks", every_call_that_blocks),
        case("async::faults_on_the_wire", faults_on_the_wire),
        case("async::snapshots", snapshots),
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

fn every_call_that_blocks(context: &Context) -> Result<()> {
    for runtime in runtimes()? {
        for view in VIEWS {
            let script = "echo up; (sleep 0.1; touch /tmp/late) & \
                          exec nc -ll -p 8093 -e echo hello";
            let script = match view {
                View::Image => script,
                View::Host => "echo up; (sleep 0.1; touch /tmp/late) & exec sleep 1000",
            };
            let builder = view.sh(script)?.wait_for(Wait::log("up"));
            let seed = context.work().join("seed");
            std::fs::write(&seed, "seed")?;
            runtime.block_on(async {
                let mut sandbox = builder.start_async().await?;
                let patience = Duration::from_secs(10);
                sandbox
                    .wait_for_async(&Wait::file("/tmp/late"), patience)
                    .await?;
                let never = sandbox
                    .wait_for_async(&Wait::file("/tmp/never"), Duration::from_millis(50))
                    .await;
                ensure!(never.is_err_and(|error| error.is_not_ready()));
                // A wait that is given up can be begun again.
                let never = Wait::log("never");
                let wait = sandbox.wait_for_async(&never, patience);
                ensure!(
                    tokio::time::timeout(Duration::from_millis(50), wait)
                        .await
                        .is_err()
                );
                if view == View::Image {
                    sandbox.wait_for_async(&Wait::port(8093), patience).await?;
                    let stream = sandbox.connect_async(8093).await?;
                    let mut bytes = [0; 6];
                    while stream.readable().await.is_ok() {
                        match stream.try_read(&mut bytes) {
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                            read => {
                                ensure!(read? == 6 && &bytes == b"hello\n");
                                break;
                            }
                        }
                    }
                }
                ensure!(sandbox.connect_async(8092).await.is_err());
                sandbox.copy_in_as_async("0:0", &seed, "/tmp/seed").await?;
                sandbox.pause_async().await?;
                ensure!(sandbox.restart_async(patience).await.is_err());
                sandbox.unpause_async().await?;
                sandbox.fill_disk_async().await?;
                ensure!(sandbox.write_file_async("/tmp/more", "x").await.is_err());
                sandbox.free_disk_async().await?;
                sandbox.set_disk_async("64M").await?;
                sandbox.set_read_only_async(true).await?;
                ensure!(sandbox.write_file_async("/tmp/more", "x").await.is_err());
                sandbox.set_read_only_async(false).await?;
                sandbox.write_file_async("/tmp/more", "x").await?;
                sandbox.restart_async(patience).await?;
                let mut logs = sandbox.logs().follow();
                for _ in 0..2 {
                    let line = logs.next_async().await?;
                    ensure!(
                        line.as_ref().is_some_and(|line| line.text == "up"),
                        "{line:?}"
                    );
                }
                let none = tokio::time::timeout(Duration::from_millis(50), logs.next_async()).await;
                ensure!(none.is_err(), "there was a third line");
                let changes = sandbox.changes_async().await?;
                let is_there = |path: &str| {
                    let path = std::path::Path::new(path);
                    changes.entries.iter().any(|change| change.path == path)
                };
                ensure!(
                    is_there("/tmp/seed") && is_there("/tmp/more"),
                    "{changes:?}"
                );
                sandbox.stop_async(patience).await?;
                ensure!(logs.next_async().await?.is_none());
                Ok(())
            })?;
        }
        runtime.block_on(async {
            let network = orbit::Network::builder().create_async().await?;
            let scenario = orbit::Scenario::builder()
                .network(&network)
                .service("one", View::Host.sh("exec sleep 1000")?)
                .service("two", View::Host.sh("exec sleep 1000")?)
                .after("two", ["one"])
                .start_async()
                .await?;
            let ended = scenario.stop_async(Duration::from_secs(5)).await?;
            let names: Vec<_> = ended.iter().map(|(name, _)| name.as_str()).collect();
            ensure!(names == ["two", "one"], "{names:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Each is felt as soon as it is awaited, and by a connection that is made then.
fn faults_on_the_wire(_: &Context) -> Result<()> {
    for runtime in runtimes()? {
        runtime.block_on(async {
            let network = orbit::Network::builder().create_async().await?;
            let server = View::Image.sh("exec nc -ll -p 8093 -e echo hello")?;
            let server = server.network(&network).wait_for(Wait::port(8093));
            let server = server.start_async().await?;
            let client = View::Image.sh("exec sleep 1000")?.network(&network);
            let client = client.start_async().await?;
            let address = server.address(&network).context("on the network")?;
            let script = format!("nc -w 1 {address} 8093 </dev/null");
            let hears = async || -> Result<bool> {
                let outcome = client.exec(["sh", "-c", &script]).run_async().await?;
                Ok(outcome.stdout_text() == "hello\n")
            };
            ensure!(hears().await?);
            network.partition_async(&client, &server).await?;
            ensure!(!hears().await?, "parted");
            network.heal_async().await?;
            ensure!(hears().await?, "healed");
            network.partition_one_way_async(&server, &client).await?;
            ensure!(!hears().await?, "parted one way");
            network.link(&server, &client).heal_async().await?;
            ensure!(hears().await?, "the link is healed");
            let latency = Duration::from_millis(100);
            let link = || network.link(&client, &server).latency(latency);
            link().apply_async().await?;
            let began = Instant::now();
            // A round trip for the connection, and one for the answer.
            ensure!(hears().await? && began.elapsed() >= 2 * latency);
            let wrong = link().loss(2.0).apply_async().await;
            ensure!(wrong.is_err_and(|error| error.is_spec()));
            // A task of a runtime of many threads may do it.
            let (network, other) = (network.clone(), View::Image.idle()?);
            let done = tokio::spawn(async move {
                let alone = network.partition_async(&client, &other).await;
                let healed = network.link(&client, &server).one_way().heal_async().await;
                (alone, healed)
            });
            let (alone, healed) = done.await?;
            ensure!(alone.is_err_and(|error| error.is_spec()));
            healed.map_err(Into::into)
        })?;
    }
    Ok(())
}

fn snapshots(context: &Context) -> Result<()> {
    for (number, runtime) in runtimes()?.into_iter().enumerate() {
        let reference = orbit_tests::images::reference("busybox")?;
        let layout = context.work().join(format!("saved-{number}"));
        runtime.block_on(async {
            orbit::images::pull_async(&reference, orbit::PullPolicy::Missing).await?;
            let named = orbit::Snapshot::named("async").image(&reference);
            ensure!(named.get_async().await?.is_none());
            let golden = named
                .get_or_create_async(|| async {
                    let mut first = View::Image.sh("echo made > /data")?.start_async().await?;
                    first.wait_async().await?;
                    Ok::<_, anyhow::Error>(first.snapshot_async().await?)
                })
                .await?;
            golden.save_async(&layout).await?;
            let found = named
                .get_or_create_async(|| async { anyhow::bail!("it is there") })
                .await?;
            for snapshot in [golden, found] {
                let mut clone = snapshot.start_async().await?;
                ensure!(clone.wait_async().await?.success());
                ensure!(clone.changes_async().await?.entries.len() == 1);
            }
            ensure!(named.remove_async().await? && !named.remove_async().await?);
            Ok(())
        })?;
        ensure!(layout.join("index.json").exists());
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
