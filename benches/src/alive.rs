//! A thousand sandboxes alive at once: whether they fit, their private memory, and how long the last ones take.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orbit::Sandbox;

use crate::{
    Stage,
    floor::{Ask, Floor},
    samples::{Samples, tell},
    start,
};

const COUNT: usize = 1000;
/// As many at each end are timed: one alone says nothing.
const ENDS: usize = 25;

pub(crate) fn all(stage: &Stage) -> Result<()> {
    raise_descriptor_limit()?;
    start::run(stage)?;
    let mut times = Vec::with_capacity(COUNT);
    let mut sandboxes = Vec::with_capacity(COUNT);
    for number in 0..COUNT {
        let started = Instant::now();
        let sandbox = stage.sandbox("/bin/pause").start();
        sandboxes.push(sandbox.with_context(|| format!("sandbox {number}"))?);
        times.push(started.elapsed());
    }
    tell_ends(&times, ["first alive", "thousandth alive"]);
    let mut bytes = sandboxes
        .iter()
        .map(init_bytes)
        .collect::<Result<Vec<u64>>>()?;
    bytes.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    tell("private bytes", bytes[COUNT / 2] as f64, COUNT);
    let alive = sandboxes
        .iter()
        .filter(|sandbox| sandbox.pid().is_some())
        .count();
    ensure!(alive == COUNT, "{alive} of {COUNT} are alive");
    drop(sandboxes);
    let mut floor = Floor::start(stage, stage.rootfs())?;
    floor.ask(Ask::ToItsEnd)?;
    let times = (0..COUNT).map(|_| floor.ask(Ask::ToStay));
    let times = times.collect::<Result<Vec<_>>>()?;
    tell_ends(&times, ["first floor alive", "thousandth floor alive"]);
    floor.end()
}

/// Tells of the first and of the last of `times`.
fn tell_ends(times: &[Duration], [first_name, last_name]: [&str; 2]) {
    let (mut first, mut last) = (Samples::default(), Samples::default());
    times.iter().take(ENDS).for_each(|time| first.add(*time));
    times
        .iter()
        .rev()
        .take(ENDS)
        .for_each(|time| last.add(*time));
    first.tell(first_name);
    last.tell(last_name);
}

/// Memory that only this sandbox's init has: all of a sandbox's memory in user space beyond its program's own.
fn init_bytes(sandbox: &Sandbox) -> Result<u64> {
    let program = sandbox.pid().context("its program runs")?;
    let status = fs::read_to_string(format!("/proc/{program}/status"))?;
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .context("it has a parent")?;
    let path = format!("/proc/{}/smaps_rollup", parent.trim());
    let rollup =
        fs::read_to_string(&path).with_context(|| format!("read {path}; this needs root"))?;
    let kibibytes = rollup.lines().filter_map(|line| {
        let value = line
            .strip_prefix("Private_Clean:")
            .or_else(|| line.strip_prefix("Private_Dirty:"))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    Ok(kibibytes.sum::<u64>() * 1024)
}

/// Each sandbox takes a few descriptors.
fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
