//! A thousand sandboxes alive at once: whether they fit, their private memory, and how long the last ones take.

use std::{
    fs, thread,
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

/// Rounds of all of it: the machine is another from one second to the next.
const ROUNDS: usize = 5;
/// How long the kernel has to end what was let go.
const REST: Duration = Duration::from_secs(2);

pub(crate) fn all(stage: &Stage) -> Result<()> {
    raise_descriptor_limit()?;
    start::run(stage)?;
    let (mut ours, mut floors) = (Ends::default(), Ends::default());
    let mut private = Vec::new();
    for _ in 0..ROUNDS {
        let sandboxes = start_all(stage, &mut ours)?;
        for sandbox in &sandboxes {
            private.push(init_bytes(sandbox)?);
        }
        drop(sandboxes);
        thread::sleep(REST);
        let mut floor = Floor::start(stage, stage.rootfs())?;
        floor.ask(Ask::ToItsEnd)?;
        let times = (0..COUNT).map(|_| floor.ask(Ask::ToStay));
        floors.add(&times.collect::<Result<Vec<_>>>()?);
        floor.end()?;
        thread::sleep(REST);
    }
    ours.tell(["first alive", "thousandth alive"]);
    private.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    tell(
        "private bytes",
        private[private.len() / 2] as f64,
        private.len(),
    );
    floors.tell(["first floor alive", "thousandth floor alive"]);
    Ok(())
}

fn start_all(stage: &Stage, ends: &mut Ends) -> Result<Vec<Sandbox>> {
    let mut times = Vec::with_capacity(COUNT);
    let mut sandboxes = Vec::with_capacity(COUNT);
    for number in 0..COUNT {
        let started = Instant::now();
        let sandbox = stage.sandbox("/bin/pause").start();
        sandboxes.push(sandbox.with_context(|| format!("sandbox {number}"))?);
        times.push(started.elapsed());
    }
    let is_alive = |sandbox: &&Sandbox| sandbox.pid().is_some();
    let alive = sandboxes.iter().filter(is_alive).count();
    ensure!(alive == COUNT, "{alive} of {COUNT} are alive");
    ends.add(&times);
    Ok(sandboxes)
}

/// What the first of each round took, and the last.
#[derive(Default)]
struct Ends {
    first: Samples,
    last: Samples,
}

impl Ends {
    fn add(&mut self, times: &[Duration]) {
        times
            .iter()
            .take(ENDS)
            .for_each(|time| self.first.add(*time));
        let last = times.iter().rev().take(ENDS);
        last.for_each(|time| self.last.add(*time));
    }

    fn tell(self, [first, last]: [&str; 2]) {
        self.first.tell(first);
        self.last.tell(last);
    }
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
