//! Samples, their median, and the line that tells of it.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

/// Times of one thing.
#[derive(Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Times `action`, which must succeed.
    pub(crate) fn time(&mut self, action: impl FnOnce() -> Result<()>) -> Result<()> {
        let started = Instant::now();
        action()?;
        self.add(started.elapsed());
        Ok(())
    }

    pub(crate) fn median(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// Tells their median, in seconds.
    pub(crate) fn tell(&self, name: &str) {
        tell(name, self.median().as_secs_f64(), self.0.len());
    }
}

/// One figure, as xtask reads it.
pub(crate) fn tell(name: &str, value: f64, samples: usize) {
    println!(
        "{}",
        json!({ "figure": name, "value": value, "samples": samples })
    );
}

/// Starts the program without any isolation, and waits for its end: what everything else is measured in.
pub(crate) fn plain_spawn(rootfs: &Path) -> Result<()> {
    let program = rootfs.join("bin/true");
    let status = Command::new(&program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    ensure!(status.success(), "{}: {status}", program.display());
    Ok(())
}
