//! What `cargo orbit test` reports, read by programs that are not ours: a browser, and readers of JUnit and JSON.
//!
//! The sample is the one of cargo-orbit's own tests, written by one of them: a run with every verdict in it, and
//! with names and output from hostile hands; and a large one, with ten thousand tests. Beside it, reports of real runs.

mod files;
mod html;
mod real;

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use orbit_tests::{Program, Who, main_loop, orbit_cli, target_dir, workspace};

fn main() -> ExitCode {
    main_loop::run([html::cases(), files::cases(), real::cases()].concat())
}

/// Where the samples are.
fn samples() -> PathBuf {
    target_dir().join("report-sample")
}

/// Writes the samples, once, and as whoever runs the tests.
fn write_samples(_: Who) -> Result<()> {
    static WRITTEN: Mutex<bool> = Mutex::new(false);
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    if *written {
        return Ok(());
    }
    if samples().exists() {
        fs::remove_dir_all(samples())?;
    }
    Program::from_command(orbit_cli::cargo())
        .args(["test", "--quiet", "--workspace", "--bin"])
        .args(["cargo-orbit", "--target-dir"])
        .arg(target_dir())
        .args(["--", "--exact"])
        .arg("report::sample::tests::every_report_can_be_written")
        .env("ORBIT_REPORT_SAMPLE", samples())
        .current_dir(workspace())
        .deadline(Duration::from_secs(1200))
        .run()?
        .success()
        .context("write the samples")?;
    *written = true;
    Ok(())
}
