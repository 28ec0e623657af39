//! The first sandbox of a process, with which its supervisor starts.

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Stage,
    samples::{Samples, plain_spawn},
    start,
};

const ROUNDS: usize = 60;

/// Each sample is of a process of its own, in turns with plain spawns.
pub(crate) fn all(stage: &Stage) -> Result<()> {
    let itself = env::current_exe()?;
    let (mut plain, mut ours) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        plain.time(|| plain_spawn(&stage.rootfs()))?;
        let output = Command::new(&itself)
            .arg("first-one")
            .arg(&stage.0)
            .output()
            .context("start a process of its own")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let nanos = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        ours.add(Duration::from_nanos(nanos));
    }
    plain.tell("first plain spawn");
    ours.tell("first sandbox");
    Ok(())
}

/// In that process: how long its first sandbox takes, in nanoseconds.
pub(crate) fn one(stage: &Stage) -> Result<()> {
    let started = Instant::now();
    start::run(stage)?;
    println!("{}", started.elapsed().as_nanos());
    Ok(())
}
