//! From start to end of a program that does nothing: plain, in a sandbox, and under the C floor.

use std::{
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    Stage,
    floor::{Ask, Floor},
    samples::{Samples, plain_spawn},
};

const WARM_UP: usize = 20;
const ROUNDS: usize = 300;

/// From a process as small as they get.
pub(crate) fn small(stage: &Stage) -> Result<()> {
    rounds(stage, "")
}

/// From a process with a gibibyte in memory, and 64 threads.
pub(crate) fn large(stage: &Stage) -> Result<()> {
    const BYTES: usize = 1 << 30;
    const THREADS: usize = 64;
    let memory = vec![1_u8; BYTES];
    let done = Arc::new(Barrier::new(THREADS + 1));
    for _ in 0..THREADS {
        let done = Arc::clone(&done);
        thread::spawn(move || done.wait());
    }
    rounds(stage, "large ")?;
    done.wait();
    // It was there until now.
    ensure!(std::hint::black_box(memory)[BYTES - 1] == 1);
    Ok(())
}

fn rounds(stage: &Stage, of: &str) -> Result<()> {
    let rootfs = stage.rootfs();
    let mut floor = Floor::start(stage, &rootfs)?;
    let [mut plain, mut beneath, mut networked, mut ours, mut next]: [Samples; 5] =
        Default::default();
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            [plain, beneath, networked, ours, next] = Default::default();
        }
        plain.time(|| plain_spawn(&rootfs))?;
        beneath.add(floor.ask(Ask::ToItsEnd)?);
        floor.ask(Ask::Network)?;
        networked.add(floor.ask(Ask::ToItsEnd)?);
        ours.time(|| run(stage))?;
        // For which nothing was made.
        next.time(|| run(stage))?;
        have_made_ahead();
    }
    plain.tell(&format!("{of}plain spawn"));
    beneath.tell(&format!("{of}floor"));
    networked.tell(&format!("{of}floor with a network made ahead"));
    ours.tell(&format!("{of}sandbox"));
    next.tell(&format!("{of}next sandbox"));
    floor.end()
}

/// Lets the supervisor make what it makes ahead of the next sandbox, which is in nobody's time then. This process does not
/// sleep meanwhile: after that, everything takes a machine longer.
pub(crate) fn have_made_ahead() {
    /// Some times as long as a supervisor waits for something else to happen, and takes to make it.
    const ENOUGH: Duration = Duration::from_millis(4);

    let begun = Instant::now();
    while begun.elapsed() < ENOUGH {
        std::hint::spin_loop();
    }
}

/// One of those that are prepared ahead, with a pause before each in which it is, and before each plain spawn as well: a
/// machine that has been idle takes a little longer for everything.
pub(crate) fn ahead(stage: &Stage) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut floor = Floor::start(stage, stage.rootfs())?;
    let (mut plain, mut beneath, mut ours) =
        (Samples::default(), Samples::default(), Samples::default());
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            (plain, beneath, ours) = Default::default();
        }
        thread::sleep(PAUSE);
        plain.time(|| plain_spawn(&stage.rootfs()))?;
        floor.ask(Ask::Ahead)?;
        thread::sleep(PAUSE);
        beneath.add(floor.ask(Ask::Go)?);
        thread::sleep(PAUSE);
        ours.time(|| {
            let outcome = stage.sandbox("/bin/true").prepare_ahead(2).run()?;
            ensure!(outcome.success(), "{}", outcome.status);
            Ok(())
        })?;
    }
    plain.tell("plain spawn after a pause");
    beneath.tell("prepared floor");
    ours.tell("prepared sandbox");
    floor.end()
}

/// One sandbox, from asking for it to its end, with nothing of it left.
pub(crate) fn run(stage: &Stage) -> Result<()> {
    let outcome = stage.sandbox("/bin/true").run()?;
    ensure!(outcome.success(), "{}", outcome.status);
    Ok(())
}
