//! Throughput with 1, 8 and 64 sandboxes at a time.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{Stage, samples::tell, start};

const AT_A_TIME: [usize; 3] = [1, 8, 64];
const SANDBOXES: usize = 512;
const ROUNDS: usize = 9;

pub(crate) fn all(stage: &Stage) -> Result<()> {
    start::run(stage)?;
    let mut rates: [Vec<f64>; AT_A_TIME.len()] = Default::default();
    for _ in 0..ROUNDS {
        for (rates, at_a_time) in rates.iter_mut().zip(AT_A_TIME) {
            rates.push(rate(stage, at_a_time)?);
        }
    }
    for (mut rates, at_a_time) in rates.into_iter().zip(AT_A_TIME) {
        rates.sort_by(f64::total_cmp);
        tell(&format!("{at_a_time} at a time"), rates[ROUNDS / 2], ROUNDS);
    }
    Ok(())
}

/// Sandboxes a second, by as many threads as there are sandboxes at a time.
fn rate(stage: &Stage, at_a_time: usize) -> Result<f64> {
    let taken = AtomicUsize::new(0);
    let started = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_a_time)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while taken.fetch_add(1, Ordering::Relaxed) < SANDBOXES {
                        start::run(stage)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().ok().context("a thread panicked")?)
    })?;
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    Ok(SANDBOXES as f64 / started.elapsed().as_secs_f64())
}
