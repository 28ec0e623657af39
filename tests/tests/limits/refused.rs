//! What holds where limits cannot be kept, and what needs no cgroup.

use anyhow::{Result, ensure};
use orbit::{Sandbox, Status, UsageSource};

use crate::Test;

pub(crate) const ANYWHERE: [(&str, Test); 4] = [
    ("ulimits_are_the_programs", ulimits_are_the_programs),
    (
        "a_ulimit_above_our_own_is_refused",
        a_ulimit_above_our_own_is_refused,
    ),
    ("a_full_disk_is_told", a_full_disk_is_told),
    ("every_fault_is_told_at_once", every_fault_is_told_at_once),
];

/// A test that is given the error.
type TestOf = fn(&str) -> Result<()>;

pub(crate) const REFUSED: [(&str, TestOf); 3] = [
    ("the_error_has_the_fix", the_error_has_the_fix),
    ("best_effort_is_a_warning", best_effort_is_a_warning),
    ("usage_says_who_counted", usage_says_who_counted),
];

fn ulimits_are_the_programs() -> Result<()> {
    let outcome = Sandbox::builder()
        .cmd(["sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c"])
        .ulimit("nofile", 64, 128)
        .ulimit_str("core=0")
        .run()?;
    ensure!(outcome.stdout_text() == "64\n128\n0\n", "{outcome:?}");
    Ok(())
}

fn a_ulimit_above_our_own_is_refused() -> Result<()> {
    let refused = Sandbox::builder()
        .cmd(["true"])
        .ulimit("nofile", 1, u64::MAX)
        .run();
    let error = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure!(error.contains("ulimit -H"), "{error}");
    Ok(())
}

/// The writable layer is a filesystem in memory, whose size needs no cgroup.
fn a_full_disk_is_told() -> Result<()> {
    let outcome = Sandbox::builder()
        .cmd(["dd", "if=/dev/zero", "of=/tmp/big", "bs=64k", "count=1000"])
        .disk("8M")
        .run()?;
    ensure!(outcome.status == Status::Exited(1), "{outcome:?}");
    ensure!(
        outcome.stderr_text().contains("No space left on device"),
        "{}",
        outcome.stderr_text()
    );
    let notes: Vec<String> = outcome.notes.iter().map(ToString::to_string).collect();
    ensure!(
        notes.contains(&"its writable layer of 8 MiB is full".to_owned()),
        "{notes:?}"
    );
    // One that is not full is not.
    let outcome = Sandbox::builder()
        .cmd(["dd", "if=/dev/zero", "of=/tmp/small", "bs=64k", "count=10"])
        .disk("8M")
        .run()?;
    ensure!(outcome.success() && outcome.notes.is_empty(), "{outcome:?}");
    Ok(())
}

fn every_fault_is_told_at_once() -> Result<()> {
    let refused = Sandbox::builder()
        .cmd(["true"])
        .memory("4k")
        .pids(0)
        .cpuset("3-1")
        .io_max("/", "rbps=0")
        .ulimit("files", 1, 1)
        .cpus(-1.0)
        .run();
    let error = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    for part in [
        "memory limit",
        "pids limit",
        "cpuset",
        "io limit",
        "ulimit",
        "cpu",
    ] {
        ensure!(error.contains(part), "{part} is not in: {error}");
    }
    Ok(())
}

fn the_error_has_the_fix(error: &str) -> Result<()> {
    let version_2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let fix = if version_2 {
        "systemd-run --user --scope -p Delegate=yes"
    } else {
        "systemd.unified_cgroup_hierarchy=1"
    };
    ensure!(error.contains(fix), "{fix} is not in: {error}");
    Ok(())
}

fn best_effort_is_a_warning(_: &str) -> Result<()> {
    let outcome = Sandbox::builder()
        .cmd(["true"])
        .memory("64M")
        .pids(8)
        .best_effort(true)
        .run()?;
    ensure!(outcome.success(), "{outcome:?}");
    ensure!(!outcome.warnings.is_empty(), "{outcome:?}");
    Ok(())
}

fn usage_says_who_counted(_: &str) -> Result<()> {
    let mut sandbox = Sandbox::builder()
        .cmd(["sleep", "60"])
        .accounting(true)
        .start()?;
    ensure!(
        sandbox.usage().source == UsageSource::Proc,
        "{:?}",
        sandbox.usage()
    );
    ensure!(sandbox.usage().max_rss_bytes > 0, "{:?}", sandbox.usage());
    let refused = sandbox.freeze().err().map(|error| error.to_string());
    ensure!(
        refused
            .as_deref()
            .is_some_and(|error| error.contains("no control group")),
        "{refused:?}"
    );
    sandbox.kill();
    let outcome = sandbox.wait()?;
    ensure!(outcome.usage.source == UsageSource::Wait4, "{outcome:?}");
    ensure!(outcome.warnings.is_empty(), "{outcome:?}");
    Ok(())
}
