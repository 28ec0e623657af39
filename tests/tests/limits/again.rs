//! This very binary as another harness: one that is killed, and one that comes after it.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use orbit::{Sandbox, SandboxBuilder};

/// Says what a child of this binary is to do.
const ROLE: &str = "ORBIT_LIMITS_ROLE";

/// Does what a parent asked for. `None`: nobody did.
pub(crate) fn run_as_child() -> Option<ExitCode> {
    let role = env::var(ROLE).ok()?;
    if role == "parallelism" {
        parallelism();
        return Some(ExitCode::SUCCESS);
    }
    let done = match role.as_str() {
        "many" => many(),
        "one" => one(),
        _ => return Some(ExitCode::from(2)),
    };
    if let Err(error) = done {
        println!("failed: {error}");
        return Some(ExitCode::FAILURE);
    }
    Some(ExitCode::SUCCESS)
}

/// A hundred sandboxes with limits; who reads the numbers ends this in their midst.
fn many() -> Result<(), orbit::Error> {
    let mut sandboxes = Vec::new();
    for number in 1..=100 {
        let sandbox = Sandbox::builder()
            .cmd(["sleep", "600"])
            .memory("16M")
            .pids(8);
        sandboxes.push(sandbox.start()?);
        println!("{number}");
    }
    drop(sandboxes);
    Ok(())
}

fn one() -> Result<(), orbit::Error> {
    Sandbox::builder()
        .cmd(["true"])
        .memory("16M")
        .run()
        .map(drop)
}

/// What a program takes for the number of CPUs.
fn parallelism() {
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{count}");
}

/// A sandbox whose program is this binary in a role.
pub(crate) fn sandbox(role: &str) -> Result<SandboxBuilder> {
    let program = env::current_exe()?;
    Ok(Sandbox::builder().cmd([program]).env(ROLE, role))
}

/// Starts this binary in a role.
pub(crate) fn start(role: &str) -> Result<Child> {
    Command::new(env::current_exe()?)
        .env(ROLE, role)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start this binary again")
}

/// Starts a harness with many sandboxes, and kills it once it has made `count` of them. Its process number.
pub(crate) fn killed_after(count: usize) -> Result<u32> {
    let mut harness = start("many")?;
    let output = harness.stdout.take().context("it is piped")?;
    let mut made = 0;
    for line in BufReader::new(output).lines() {
        let line = line?;
        ensure!(!line.starts_with("failed"), "{line}");
        made += 1;
        if made == count {
            harness.kill()?;
        }
    }
    harness.wait()?;
    ensure!(made >= count, "it ended after {made}");
    Ok(harness.id())
}

/// Runs a harness to its end.
pub(crate) fn run_one() -> Result<u32> {
    let harness = start("one")?;
    let pid = harness.id();
    let output = harness.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(pid)
}

/// The cgroups that process `pid` owns, or owned.
pub(crate) fn owned_by(pid: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if is_owned_by(&entry.path(), pid) {
                    found.push(entry.path());
                }
                left.push(entry.path());
            }
        }
    }
    found
}

fn is_owned_by(path: &Path, pid: u32) -> bool {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let parts: Vec<&str> = name.split('-').collect();
    matches!(parts[..], ["orbit", _, owner, _] if owner == pid.to_string())
}
