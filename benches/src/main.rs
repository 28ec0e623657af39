//! What `cargo xtask bench` times inside a process that uses Orbit: one group of figures a run.
//!
//! ```text
//! orbit-benches GROUP STAGE
//! ```
//!
//! `STAGE` is the directory that xtask prepared: a root filesystem `rootfs` with static programs in it, and
//! `floor`, the C program. Each figure is one line of JSON: its name, its value, and how many samples it is the
//! median of. A program of our own rather than one of the well-known harnesses, as what is compared must be timed
//! in turns, within one run: the machine's pace changes from minute to minute, and a ratio of medians that were
//! measured one after the other changes with it.

mod alive;
mod first;
mod floor;
mod layers;
mod ports;
mod postgres;
mod samples;
mod start;
mod together;

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};

/// Where xtask prepared what the figures need.
struct Stage(PathBuf);

impl Stage {
    /// A directory with `bin/true` and `bin/pause`, both static.
    fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    /// A sandbox over the root filesystem, whose output nobody reads.
    fn sandbox(&self, program: &str) -> orbit::SandboxBuilder {
        orbit::Sandbox::builder()
            .image(&format!("dir:{}", self.rootfs().display()))
            .cmd([program])
            .stdout(orbit::Output::Null)
            .stderr(orbit::Output::Null)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let [group, stage] = &words[..] else {
        eprintln!("usage: orbit-benches GROUP STAGE");
        return ExitCode::from(2);
    };
    match run(group, &Stage(stage.into())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {group}: {fault:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(group: &str, stage: &Stage) -> Result<()> {
    match group {
        "start" => start::small(stage),
        "start-large" => start::large(stage),
        "ahead" => start::ahead(stage),
        "first" => first::all(stage),
        "first-one" => first::one(stage),
        "together" => together::all(stage),
        "alive" => alive::all(stage),
        "layers" => layers::all(stage),
        "ports" => ports::all(stage),
        "postgres" => postgres::all(stage),
        "serve" => ports::serve(),
        _ => bail!("there is no such group"),
    }
}
