//! A network namespace that is made before it is asked for, and used once: it takes the kernel longer than all else of a
//! sandbox that is asked for, and the supervisor has nothing to do while a program runs.

use std::{os::fd::OwnedFd, time::Duration};

use crate::sys::{self, SingleThreaded};

/// How long nothing is to happen before one is made: until then the init that was started last makes its mounts, and waits
/// for locks of the kernel that a new network namespace takes too. Measured: made at once, a start took 0.96 of its time
/// without a spare one; made after a millisecond, 0.90.
const REST: Duration = Duration::from_millis(1);

/// The one that is there, if any.
#[derive(Default)]
pub(super) struct Spare {
    network: Option<OwnedFd>,
    /// How many were asked for.
    asked: u64,
    /// That the kernel made none since one was asked for. Who then has to have its own made says why.
    is_refused: bool,
}

impl Spare {
    /// How long nothing is to happen before one is made; `None` where none is wanted. A process that starts one sandbox
    /// wants no second; one that has started two will start more.
    pub(super) fn is_due_after(&self) -> Option<Duration> {
        if self.network.is_some() || self.is_refused {
            return None;
        }
        match self.asked {
            0 => Some(Duration::ZERO),
            1 => None,
            _ => Some(REST),
        }
    }

    /// Takes the one that is there, for a sandbox that wants one of its own.
    pub(super) fn take(&mut self) -> Option<OwnedFd> {
        self.asked += 1;
        self.is_refused = false;
        self.network.take()
    }

    pub(super) fn make(&mut self, single_threaded: SingleThreaded) {
        self.network = sys::new_network_namespace(single_threaded).ok();
        self.is_refused = self.network.is_none();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_made_for_the_first_and_from_the_third_on() {
        let mut spare = Spare::default();
        let is_due = |spare: &Spare| spare.is_due_after().is_some();
        assert_eq!(spare.is_due_after(), Some(Duration::ZERO));
        assert!(spare.take().is_none() && !is_due(&spare));
        assert!(spare.take().is_none() && is_due(&spare));
        spare.network = Some(std::fs::File::open("/dev/null").unwrap().into());
        assert!(!is_due(&spare));
        assert!(spare.take().is_some() && is_due(&spare));
    }

    #[test]
    fn what_the_kernel_refuses_is_not_tried_until_one_is_asked_for() {
        let mut spare = Spare {
            is_refused: true,
            asked: 2,
            ..Spare::default()
        };
        assert_eq!(spare.is_due_after(), None);
        assert!(spare.take().is_none());
        assert_eq!(spare.is_due_after(), Some(REST));
    }
}
