//! What it costs to depend on us: crates, and CPU time of a clean build, against testcontainers.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    figures::Figures,
    stage::{Stage, write_crate},
};
use crate::{run, workspace};

/// The version that is compared with, so that the figure changes when we do.
const TESTCONTAINERS: &str = "0.25";

pub(crate) fn measure(stage: &Stage, figures: &mut Figures) -> Result<()> {
    let ours = workspace().join("orbit-harness");
    let path = ours.display();
    let dependencies = [
        (
            "orbit-harness",
            format!("orbit-harness = {{ path = \"{path}\" }}"),
        ),
        (
            "orbit-harness, no features",
            format!("orbit-harness = {{ path = \"{path}\", default-features = false }}"),
        ),
        (
            "testcontainers",
            format!("testcontainers = \"{TESTCONTAINERS}\""),
        ),
    ];
    for (name, dependency) in dependencies {
        let directory = stage.root.join("build");
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        let section = format!("[dev-dependencies]\n{dependency}\n");
        write_crate(&directory, "depends", &section)?;
        fs::write(directory.join("src/lib.rs"), "")?;
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        match crates(stage, &directory) {
            Ok(count) => figures.add(format!("crates of {name}"), count as f64),
            Err(fault) => {
                figures.skip(format!("crates of {name}"), format!("{fault:#}"));
                figures.skip(format!("build of {name}"), "its crates cannot be had");
                continue;
            }
        }
        figures.add(format!("build of {name}"), build(stage, &directory)?);
    }
    Ok(())
}

/// How many crates cargo builds for it on this machine, but for the crate that depends.
fn crates(stage: &Stage, directory: &Path) -> Result<usize> {
    let mut tree = stage.command("cargo");
    tree.args([
        "tree",
        "--edges=normal,build,dev",
        "--prefix=none",
        "--no-dedupe",
    ])
    .args(["--format={p}"])
    .current_dir(directory);
    let output = run::output(&mut tree)?;
    let text = String::from_utf8(output)?;
    let names: std::collections::BTreeSet<_> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("depends "))
        .map(|line| line.trim_end_matches(" (proc-macro)"))
        .collect();
    Ok(names.len())
}

/// CPU seconds of a clean build, as hyperfine sums them up over all processes.
fn build(stage: &Stage, directory: &Path) -> Result<f64> {
    let export = stage.root.join("build.json");
    let mut hyperfine = stage.command("hyperfine");
    hyperfine
        .current_dir(directory)
        .args(["--shell=none", "--style=none", "--runs=1"])
        .args(["--prepare", "rm -rf clean", "--export-json"])
        .arg(&export)
        .arg("cargo test --no-run --offline --quiet --target-dir clean")
        // As a crate of a registry is built, which ours is to who depends on it: what lies at a path is prepared to be
        // built again in parts, which takes a fifth more.
        .env("CARGO_INCREMENTAL", "0");
    run::success(&mut hyperfine)?;
    let export: Value = serde_json::from_slice(&fs::read(&export)?)?;
    let result = &export["results"][0];
    let user = result["user"].as_f64().context("hyperfine told no time")?;
    Ok(user + result["system"].as_f64().unwrap_or_default())
}
