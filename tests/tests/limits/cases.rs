//! Limits that are kept: each is reached, and must hold.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orbit::{Bytes, Note, Outcome, Sandbox, SandboxBuilder, Status, UsageSource};

use crate::{Test, again};

pub(crate) const CASES: [(&str, Test); 18] = [
    ("a_hog_is_killed_at_its_limit", a_hog_is_killed_at_its_limit),
    (
        "a_child_that_hogs_ends_the_sandbox",
        a_child_that_hogs_ends_the_sandbox,
    ),
    (
        "what_fits_is_not_killed_and_is_billed",
        what_fits_is_not_killed_and_is_billed,
    ),
    (
        "too_little_to_start_in_is_an_end_too",
        too_little_to_start_in_is_an_end_too,
    ),
    (
        "a_fork_bomb_stops_at_its_limit",
        a_fork_bomb_stops_at_its_limit,
    ),
    (
        "pids_count_what_the_caller_starts",
        pids_count_what_the_caller_starts,
    ),
    ("half_a_cpu_is_half_a_cpu", half_a_cpu_is_half_a_cpu),
    (
        "a_set_of_cpus_is_all_there_is",
        a_set_of_cpus_is_all_there_is,
    ),
    (
        "a_disk_is_written_at_its_rate",
        a_disk_is_written_at_its_rate,
    ),
    (
        "memory_set_while_it_runs_takes_effect",
        memory_set_while_it_runs_takes_effect,
    ),
    (
        "memory_set_below_what_is_used_ends_all",
        memory_set_below_what_is_used_ends_all,
    ),
    (
        "a_refused_limit_takes_no_other_along",
        a_refused_limit_takes_no_other_along,
    ),
    (
        "cpu_set_while_it_runs_takes_effect",
        cpu_set_while_it_runs_takes_effect,
    ),
    (
        "frozen_is_frozen_until_it_thaws",
        frozen_is_frozen_until_it_thaws,
    ),
    ("a_limit_costs_little", a_limit_costs_little),
    (
        "every_process_is_born_in_the_group",
        every_process_is_born_in_the_group,
    ),
    (
        "an_end_in_order_leaves_nothing",
        an_end_in_order_leaves_nothing,
    ),
    (
        "a_killed_harness_leaves_nothing_to_the_next",
        a_killed_harness_leaves_nothing_to_the_next,
    ),
];

const SPIN: [&str; 3] = ["sh", "-c", "while :; do :; done"];

/// Touches this much memory, and nothing else.
fn hog(mib: u32) -> SandboxBuilder {
    Sandbox::builder().cmd([
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        &format!("bs={mib}M"),
        "count=1",
    ])
}

fn ensure_oom(outcome: &Outcome, wanted: Bytes, name: &str) -> Result<()> {
    let Status::OomKilled {
        limit,
        peak,
        process,
    } = outcome.status
    else {
        anyhow::bail!("{outcome:?}");
    };
    crate::figure!("{}", outcome.status);
    ensure!(limit == wanted, "{outcome:?}");
    let (peak, limit) = (peak.as_u64(), limit.as_u64());
    ensure!(
        peak <= limit && peak >= limit / 100 * 95,
        "peak {peak} of {limit}"
    );
    ensure!(process.to_string() == name, "{process}");
    ensure!(outcome.status.shell_code() == 137);
    Ok(())
}

fn a_hog_is_killed_at_its_limit() -> Result<()> {
    let outcome = hog(256).memory("64M").run()?;
    ensure_oom(&outcome, Bytes::mib(64), "dd")?;
    ensure!(outcome.usage.source == UsageSource::Cgroup);
    // The harness, and its other sandboxes, go on.
    ensure!(
        Sandbox::builder()
            .cmd(["true"])
            .memory("64M")
            .run()?
            .success()
    );
    Ok(())
}

/// Half a sandbox helps nobody: all of it goes.
fn a_child_that_hogs_ends_the_sandbox() -> Result<()> {
    let script = "dd if=/dev/zero of=/dev/null bs=256M count=1; echo still here; sleep 60";
    let outcome = Sandbox::builder()
        .cmd(["sh", "-c", script])
        .memory("64M")
        .run()?;
    ensure_oom(&outcome, Bytes::mib(64), "sh")?;
    ensure!(outcome.stdout.is_empty(), "{outcome:?}");
    Ok(())
}

fn what_fits_is_not_killed_and_is_billed() -> Result<()> {
    let outcome = hog(32).memory("64M").memory_high("60M").pids(8).run()?;
    ensure!(outcome.success(), "{outcome:?}");
    let usage = outcome.usage;
    crate::figure!("{usage:?}");
    ensure!(usage.source == UsageSource::Cgroup, "{usage:?}");
    // dd itself, and what the init and the filesystems in memory take beside it.
    let peak = usage
        .memory_peak_bytes
        .context("memory.peak is there since 5.19")?;
    ensure!((32 << 20..48 << 20).contains(&peak), "{usage:?}");
    ensure!(
        usage.cpu_user + usage.cpu_system > Duration::ZERO,
        "{usage:?}"
    );
    ensure!(usage.pressure.is_some(), "{usage:?}");
    ensure!(usage.io_written_bytes.is_some(), "{usage:?}");
    ensure!(
        outcome.notes.is_empty() && outcome.warnings.is_empty(),
        "{outcome:?}"
    );
    Ok(())
}

fn too_little_to_start_in_is_an_end_too() -> Result<()> {
    let outcome = hog(64).memory("1M").run()?;
    ensure!(
        matches!(outcome.status, Status::OomKilled { .. }),
        "{outcome:?}"
    );
    Ok(())
}

fn a_fork_bomb_stops_at_its_limit() -> Result<()> {
    let mut bomb = Sandbox::builder()
        .cmd(["sh", "-c", "bomb() { bomb & bomb & wait; }; bomb"])
        .pids(32)
        .memory("128M")
        .timeout(Duration::from_secs(20))
        .stderr(orbit::Output::Null)
        .start()?;
    let until = Instant::now() + Duration::from_secs(4);
    let mut most = 0;
    let mut others = 0;
    while Instant::now() < until {
        most = most.max(bomb.usage().pids.unwrap_or(0));
        // The harness goes on beside it.
        ensure!(Sandbox::builder().cmd(["true"]).pids(4).run()?.success());
        others += 1;
    }
    bomb.kill();
    let outcome = bomb.wait()?;
    crate::figure!(
        "at most {most} processes, {others} other sandboxes meanwhile, {:?}",
        outcome.notes
    );
    // With the init.
    ensure!(most <= 33, "{most}");
    let refused = outcome
        .notes
        .iter()
        .any(|note| matches!(note, Note::PidsLimit { limit: 32, refused } if *refused > 0));
    ensure!(refused, "{outcome:?}");
    Ok(())
}

fn pids_count_what_the_caller_starts() -> Result<()> {
    // The shell, and three that sleep.
    let script = "sleep 1 & sleep 1 & sleep 1 & wait; echo done";
    let outcome = Sandbox::builder().cmd(["sh", "-c", script]).pids(4).run()?;
    ensure!(outcome.stdout_text() == "done\n", "{outcome:?}");
    ensure!(outcome.notes.is_empty(), "{outcome:?}");
    let outcome = Sandbox::builder().cmd(["sh", "-c", script]).pids(3).run()?;
    ensure!(outcome.notes.len() == 1, "{outcome:?}");
    Ok(())
}

/// CPUs used over two seconds.
fn cpus_used(sandbox: &Sandbox) -> f64 {
    let used = || {
        let usage = sandbox.usage();
        (usage.cpu_user + usage.cpu_system, Instant::now())
    };
    let (before, since) = used();
    thread::sleep(Duration::from_secs(2));
    let (after, until) = used();
    after.saturating_sub(before).as_secs_f64() / until.duration_since(since).as_secs_f64()
}

fn half_a_cpu_is_half_a_cpu() -> Result<()> {
    let mut sandbox = Sandbox::builder().cmd(SPIN).cpus(0.5).start()?;
    thread::sleep(Duration::from_millis(300));
    let cpus = cpus_used(&sandbox);
    crate::figure!("{cpus:.3} CPUs");
    ensure!((0.45..=0.55).contains(&cpus), "{cpus}");
    sandbox.kill();
    let outcome = sandbox.wait()?;
    let throttled = outcome
        .notes
        .iter()
        .any(|note| matches!(note, Note::Throttled { time } if *time > Duration::from_millis(500)));
    ensure!(throttled, "{outcome:?}");
    Ok(())
}

fn a_set_of_cpus_is_all_there_is() -> Result<()> {
    let outcome = Sandbox::builder()
        .cmd(["grep", "Cpus_allowed_list", "/proc/self/status"])
        .cpuset("0")
        .run()?;
    ensure!(
        outcome.stdout_text().trim_end().ends_with("\t0"),
        "{outcome:?}"
    );
    let refused = Sandbox::builder().cmd(["true"]).cpuset("0,4000").run();
    let error = refused.err().context("there is no such CPU")?;
    ensure!(
        error.is_limit() && error.to_string().contains("4000 cannot be used"),
        "{error}"
    );
    Ok(())
}

fn a_disk_is_written_at_its_rate() -> Result<()> {
    let directory = tempfile::tempdir_in("/srv")?;
    let path = directory.path().display().to_string();
    let script = "dd if=/dev/zero of=/out/file bs=64k count=48 oflag=direct";
    let outcome = Sandbox::builder()
        .cmd(["sh", "-c", script])
        .mount(orbit::Mount::bind(directory.path(), "/out"))
        .io_max(&path, "wbps=1M")
        .run()?;
    ensure!(outcome.success(), "{outcome:?}");
    crate::figure!("3 MiB at 1 MiB/s took {:?}", outcome.wall_time);
    ensure!(outcome.wall_time >= Duration::from_secs(2), "{outcome:?}");
    ensure!(
        outcome.usage.io_written_bytes >= Some(3 << 20),
        "{outcome:?}"
    );
    Ok(())
}

fn memory_set_while_it_runs_takes_effect() -> Result<()> {
    let script = "sleep 1; exec dd if=/dev/zero of=/dev/null bs=128M count=1";
    let start = |limit: &str| {
        Sandbox::builder()
            .cmd(["sh", "-c", script])
            .memory(limit)
            .start()
    };
    let mut sandbox = start("256M")?;
    sandbox.set_memory("32M")?;
    ensure_oom(&sandbox.wait()?, Bytes::mib(32), "sh")?;
    let mut sandbox = start("32M")?;
    sandbox.set_memory("256M")?;
    let outcome = sandbox.wait()?;
    ensure!(outcome.success(), "{outcome:?}");
    let error = sandbox.set_memory("1 potato").err().context("no amount")?;
    ensure!(error.is_spec(), "{error}");
    Ok(())
}

/// Of a sandbox that had no limit before: the kernel must know that all of it goes together when it is told the limit.
fn memory_set_below_what_is_used_ends_all() -> Result<()> {
    let script = "dd if=/dev/zero of=/dev/null bs=100M count=1000000; exec sleep 60";
    let mut sandbox = Sandbox::builder()
        .cmd(["sh", "-c", script])
        .accounting(true)
        .timeout(Duration::from_secs(50))
        .start()?;
    let used = || sandbox.usage().memory_peak_bytes.unwrap_or(0);
    let patience = Instant::now() + Duration::from_secs(30);
    while used() < 100 << 20 {
        ensure!(Instant::now() < patience, "it uses {} bytes", used());
        thread::sleep(Duration::from_millis(20));
    }
    sandbox.set_memory("32M")?;
    let outcome = sandbox.wait()?;
    ensure!(
        matches!(outcome.status, Status::OomKilled { .. }),
        "{outcome:?}"
    );
    Ok(())
}

/// There is no such device: that limit cannot be kept, and the others are.
fn a_refused_limit_takes_no_other_along() -> Result<()> {
    let outcome = Sandbox::builder()
        .cmd(["dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1"])
        .memory("32M")
        .io_max("7:250", "wbps=1M")
        .best_effort(true)
        .run()?;
    ensure_oom(&outcome, Bytes::mib(32), "dd")?;
    let [warning] = &outcome.warnings[..] else {
        anyhow::bail!("one warning, of io.max: {:?}", outcome.warnings);
    };
    ensure!(warning.contains("io.max=7:250"), "{warning}");
    Ok(())
}

fn cpu_set_while_it_runs_takes_effect() -> Result<()> {
    let sandbox = Sandbox::builder().cmd(SPIN).accounting(true).start()?;
    sandbox.set_cpus(0.25)?;
    thread::sleep(Duration::from_millis(300));
    let cpus = cpus_used(&sandbox);
    crate::figure!("{cpus:.3} CPUs");
    ensure!((0.2..=0.3).contains(&cpus), "{cpus}");
    Ok(())
}

fn frozen_is_frozen_until_it_thaws() -> Result<()> {
    let mut sandbox = Sandbox::builder().cmd(SPIN).accounting(true).start()?;
    sandbox.freeze()?;
    let frozen = cpus_used(&sandbox);
    sandbox.thaw()?;
    let thawed = cpus_used(&sandbox);
    crate::figure!("{frozen:.3} CPUs frozen, {thawed:.3} thawed");
    ensure!(frozen < 0.01 && thawed > 0.3, "{frozen} {thawed}");
    // What is frozen can be ended.
    sandbox.freeze()?;
    sandbox.kill();
    ensure!(sandbox.wait()?.status == Status::Signaled(9));
    Ok(())
}

fn an_end_in_order_leaves_nothing() -> Result<()> {
    let pid = again::run_one()?;
    let left = again::owned_by(pid);
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn a_killed_harness_leaves_nothing_to_the_next() -> Result<()> {
    let pid = again::killed_after(50)?;
    let before = again::owned_by(pid);
    ensure!(
        !before.is_empty(),
        "the harness had no cgroup, so this shows nothing"
    );
    again::run_one()?;
    let left = again::owned_by(pid);
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// A control group is two directories' work, not another sandbox's.
fn a_limit_costs_little() -> Result<()> {
    let median = |limited: bool| -> Result<Duration> {
        let mut times = Vec::new();
        for _ in 0..15 {
            let started = Instant::now();
            let mut builder = Sandbox::builder().cmd(["true"]);
            if limited {
                builder = builder.memory("64M").pids(8).cpus(1.0);
            }
            ensure!(builder.run()?.success());
            times.push(started.elapsed());
        }
        times.sort();
        Ok(times[times.len() / 2])
    };
    let (without, with) = (median(false)?, median(true)?);
    crate::figure!("median of 15: {without:?} without limits, {with:?} with three");
    ensure!(with < without * 3, "{without:?} {with:?}");
    Ok(())
}

/// The cgroup that a namespace was made in is its root: process 1 was in the sandbox's before it did anything.
fn every_process_is_born_in_the_group() -> Result<()> {
    let outcome = Sandbox::builder()
        .cmd(["cat", "/proc/1/cgroup", "/proc/self/cgroup"])
        .memory("64M")
        .run()?;
    ensure!(outcome.stdout_text() == "0::/\n0::/\n", "{outcome:?}");
    Ok(())
}
