//! Whole commands, timed by hyperfine in turns.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    figures::{Figures, median},
    stage::Stage,
};
use crate::run;

/// A command line, and the figure that it gives.
pub(crate) struct Timed {
    pub(crate) name: &'static str,
    pub(crate) line: String,
}

impl Timed {
    pub(crate) fn new(name: &'static str, line: String) -> Self {
        Self { name, line }
    }
}

/// How often: hyperfine measures one command after the other, so it is asked several times for a few runs each.
pub(crate) struct Turns {
    pub(crate) count: usize,
    pub(crate) runs: usize,
    pub(crate) warm_up: usize,
}

/// Times `commands` in `directory`, and adds the median of each. One that does not run here is skipped by name: it must
/// not take the others along.
pub(crate) fn time(
    stage: &Stage,
    directory: &Path,
    commands: &[Timed],
    turns: &Turns,
    figures: &mut Figures,
) -> Result<()> {
    let export = stage.root.join("hyperfine.json");
    let mut run_here = Vec::new();
    for command in commands {
        match try_once(stage, directory, &command.line) {
            Ok(()) => run_here.push(command),
            Err(why) => figures.skip(command.name, format!("does not run here: {why:#}")),
        }
    }
    let commands = run_here;
    let mut times = vec![Vec::new(); commands.len()];
    for _ in 0..turns.count {
        let mut hyperfine = stage.command("hyperfine");
        hyperfine
            .current_dir(directory)
            .args(["--shell=none", "--style=none", "--time-unit=millisecond"])
            .args(["--warmup", &turns.warm_up.to_string()])
            .args(["--runs", &turns.runs.to_string(), "--export-json"])
            .arg(&export)
            .args(commands.iter().map(|it| &it.line))
            .stdout(std::process::Stdio::null());
        run::success(&mut hyperfine)?;
        let results = read(&export)?;
        for (times, result) in times.iter_mut().zip(results) {
            times.extend(result);
        }
    }
    for (command, times) in commands.iter().zip(times) {
        let median = median(times).with_context(|| format!("no times of {}", command.line))?;
        figures.add(command.name, median);
    }
    Ok(())
}

/// Runs a command, which must succeed; else the last that it said.
fn try_once(stage: &Stage, directory: &Path, line: &str) -> Result<()> {
    let mut shell = stage.command("sh");
    let done = shell
        .current_dir(directory)
        .args(["-c", &format!("exec {line}")])
        .output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    let last = said.trim_end().lines().next_back().unwrap_or_default();
    ensure!(done.status.success(), "{}: {last}", done.status);
    Ok(())
}

/// The times of each command, in seconds.
fn read(export: &Path) -> Result<Vec<Vec<f64>>> {
    let export: Value = serde_json::from_slice(&fs::read(export)?)?;
    let results = export["results"].as_array().context("no results")?;
    results
        .iter()
        .map(|result| {
            let times = result["times"].as_array().context("no times")?;
            Ok(times.iter().filter_map(Value::as_f64).collect())
        })
        .collect()
}
