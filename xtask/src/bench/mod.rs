//! `cargo xtask bench`: measures Orbit against its peers, prints one table, and writes `docs/benchmarks.md`.
//!
//! Whole commands are timed with hyperfine, what happens inside a process by the program in `benches/`. Every
//! goal is a ratio of medians of one run, so that the machine's own pace matters little. What cannot run here is
//! skipped by name. A goal that is missed is a figure in the table, not a failure: times fail nothing in CI.

mod build;
mod commands;
mod figures;
mod page;
mod rows;
mod samples;
mod stage;

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Context as _, Result};

use self::{figures::Figures, rows::Group, stage::Stage};
use crate::{tally::Tally, workspace};

/// Runs the rows whose text or group contains one of `words`; all without any, but for the slow ones, which
/// `--slow` adds.
pub(crate) fn run(tally: &mut Tally, words: &[&str]) -> Result<()> {
    let slow = words.contains(&"--slow");
    let filter: Vec<&str> = words.iter().copied().filter(|it| *it != "--slow").collect();
    // A page has every row, also those that it has no figures for.
    let rows: Vec<&rows::Row> = rows::ROWS
        .iter()
        .filter(|row| row.is_asked(&filter, true))
        .collect();
    let mut figures = Figures::default();
    for row in rows.iter().filter(|row| !row.is_asked(&filter, slow)) {
        figures.skip(row.ours, "it takes minutes; run with `--slow`");
    }
    let asked = rows.iter().filter(|row| row.is_asked(&filter, slow));
    let groups: BTreeSet<Group> = asked.map(|row| row.group).collect();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let stage = Stage::prepare()?;
    for group in groups {
        println!("measuring: {}", group.name());
        let started = Instant::now();
        match commands::measure(group, &stage, &mut figures) {
            Ok(()) => tally.checked(group.name(), true, "", started.elapsed()),
            Err(fault) => {
                tally.checked(
                    group.name(),
                    false,
                    &format!("{fault:#}"),
                    started.elapsed(),
                );
            }
        }
    }
    let table = page::table(&rows, &figures);
    println!("\n{table}");
    if filter.is_empty() {
        let path = workspace().join("docs/benchmarks.md");
        std::fs::write(&path, page::page(&table, &figures, &stage, load.trim()))
            .with_context(|| format!("write {}", path.display()))?;
        println!("written: {}", path.display());
    } else {
        println!("docs/benchmarks.md is written by a run without a filter");
    }
    stage.remove()
}
