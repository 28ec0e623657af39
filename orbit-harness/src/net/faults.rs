//! Faults on the wire: what is lost, what comes late, and how fast it goes. Pure: time and chance come from outside.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::rate::Rate;

/// What is wrong with a wire, in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Faults {
    /// How long each frame is on its way.
    pub(crate) latency: Duration,
    /// By how much that varies, evenly, to either side.
    pub(crate) jitter: Duration,
    /// The share of frames that are lost, from 0 to 1.
    pub(crate) loss: f64,
    /// How much goes through at most.
    pub(crate) rate: Option<Rate>,
}

impl Faults {
    /// Everything is lost.
    pub(crate) const PARTED: Self = Self {
        latency: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 1.0,
        rate: None,
    };
}

/// Frames on their way at once; what comes on top is lost, as where a switch has no room left.
const MOST_ON_THE_WAY: usize = 10_000;

/// What waits for a slow wire: at least this much, and as much as passes in this time.
const QUEUE_BYTES: u64 = 64 * 1024;
const QUEUE_TIME: Duration = Duration::from_millis(500);

/// One direction of a wire with faults.
#[derive(Debug)]
pub(crate) struct Shaper {
    faults: Faults,
    /// When what was taken has left, at the rate.
    free_at: Option<Instant>,
    /// When those that are on their way arrive, in order.
    arrivals: VecDeque<Instant>,
}

impl Shaper {
    pub(crate) fn new(faults: Faults) -> Self {
        Self {
            faults,
            free_at: None,
            arrivals: VecDeque::new(),
        }
    }

    /// When a frame of `bytes` that is sent `now` arrives. `None`: never. `chance` gives numbers from 0 up to 1.
    ///
    /// Frames do not overtake each other, whatever the jitter.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        bytes: usize,
        mut chance: impl FnMut() -> f64,
    ) -> Option<Instant> {
        let Faults {
            latency,
            jitter,
            loss,
            rate,
        } = self.faults;
        while self.arrivals.front().is_some_and(|at| *at <= now) {
            self.arrivals.pop_front();
        }
        // A loss of 1 is above each chance.
        if self.arrivals.len() >= MOST_ON_THE_WAY || (loss > 0.0 && chance() < loss) {
            return None;
        }
        let mut left = now;
        if let Some(rate) = rate {
            let begins = self.free_at.map_or(now, |free| free.max(now));
            let room = rate.time_for(QUEUE_BYTES).max(QUEUE_TIME);
            if begins.duration_since(now) > room {
                return None;
            }
            left = begins + rate.time_for(bytes as u64);
            self.free_at = Some(left);
        }
        // From the earliest, twice the jitter wide.
        let varies = if jitter.is_zero() {
            Duration::ZERO
        } else {
            (jitter * 2).mul_f64(chance())
        };
        let arrives = left + (latency + varies).saturating_sub(jitter);
        let arrives = self
            .arrivals
            .back()
            .map_or(arrives, |last| arrives.max(*last));
        self.arrivals.push_back(arrives);
        Some(arrives)
    }
}

/// Numbers by chance, from a seed: xorshift64*. Good enough for packets, and for nothing that is secret.
///
/// Source: S. Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// From 0 up to 1, which it never is.
    pub(crate) fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let number = bits as f64 / (1u64 << 53) as f64;
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn shaper(faults: Faults) -> Shaper {
        Shaper::new(faults)
    }

    #[test]
    fn a_frame_is_late_by_the_latency_and_jitter_keeps_the_order() {
        let (now, mut chance) = (Instant::now(), Chance::new(1));
        let mut late = shaper(Faults {
            latency: 50 * MS,
            ..Faults::default()
        });
        assert_eq!(late.take(now, 100, || 0.5), Some(now + 50 * MS));
        let mut varied = shaper(Faults {
            latency: 50 * MS,
            jitter: 20 * MS,
            ..Faults::default()
        });
        let (mut last, mut earliest, mut latest) = (now, 1000 * MS, Duration::ZERO);
        for round in 0..1000 {
            let sent = now + round * MS;
            let at = varied.take(sent, 100, || chance.next()).unwrap();
            assert!(at >= last);
            last = at;
            earliest = earliest.min(at - sent);
            latest = latest.max(at - sent);
        }
        assert!(earliest >= 30 * MS && latest <= 70 * MS);
        assert!(
            earliest < 45 * MS && latest > 60 * MS,
            "{earliest:?} {latest:?}"
        );
        // More jitter than latency is no time machine.
        let mut odd = shaper(Faults {
            jitter: 20 * MS,
            ..Faults::default()
        });
        assert_eq!(odd.take(now, 1, || 0.0), Some(now));
    }

    #[test]
    fn the_share_that_is_asked_for_is_lost() {
        let (now, mut chance) = (Instant::now(), Chance::new(7));
        for (loss, expected) in [(0.0, 0..=0), (0.3, 2800..=3200), (1.0, 10_000..=10_000)] {
            let mut lossy = shaper(Faults {
                loss,
                ..Faults::default()
            });
            let lost = (0..10_000)
                .filter(|_| lossy.take(now, 100, || chance.next()).is_none())
                .count();
            assert!(expected.contains(&lost), "{loss}: {lost}");
        }
    }

    #[test]
    fn a_rate_spaces_frames_and_bounds_what_waits() {
        let now = Instant::now();
        let mut slow = shaper(Faults {
            rate: Some("1mbit".parse().unwrap()),
            ..Faults::default()
        });
        // 125 bytes take a millisecond.
        assert_eq!(slow.take(now, 125, || 0.5), Some(now + MS));
        assert_eq!(slow.take(now, 250, || 0.5), Some(now + 3 * MS));
        let taken = (0..1000)
            .filter_map(|_| slow.take(now, 1250, || 0.5))
            .count();
        // 64 KiB at 1 mbit are 524 ms.
        assert!((50..=54).contains(&taken), "{taken}");
        // Later there is room again.
        assert!(slow.take(now + 600 * MS, 125, || 0.5).is_some());
    }

    #[test]
    fn what_is_on_its_way_is_bounded() {
        let now = Instant::now();
        let mut long = shaper(Faults {
            latency: 1000 * MS,
            ..Faults::default()
        });
        let taken = (0..20_000)
            .filter_map(|_| long.take(now, 60, || 0.5))
            .count();
        assert_eq!(taken, MOST_ON_THE_WAY);
        assert!(long.take(now + 1001 * MS, 60, || 0.5).is_some());
    }
}
