//! Which job is next: the longest first, as far as there is room for it.
//!
//! Pure. A job takes as many of the slots as it has threads, and of the memory what its limit allows it.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

/// What is known of a job before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// How long it took the last time; unknown ones may be long, and come first.
    pub(crate) expected: Option<Duration>,
    /// How many slots it takes, at least one.
    pub(crate) slots: usize,
    /// Its memory limit, where it has one.
    pub(crate) memory_bytes: Option<u64>,
}

/// Whether unknown, then how long, then who came first.
type Rank = (bool, Reverse<Duration>, u64);

/// A job that waits.
#[derive(Debug)]
struct Waiting<J> {
    size: Size,
    /// How many that needed fewer slots were taken before it.
    overtaken: usize,
    job: J,
}

/// Jobs that wait, and room for those that run.
#[derive(Debug)]
pub(crate) struct Queue<J> {
    /// `None` for `--shuffle`, which has an order of its own: then they come as they were pushed.
    by_length: bool,
    waiting: BTreeMap<Rank, Waiting<J>>,
    pushed: u64,
    /// One entry for each slot: whether it is free. The lowest free ones are taken, so that a timeline has few lanes.
    free: Vec<bool>,
    memory_bytes: u64,
    memory_used_bytes: u64,
    running: usize,
}

/// The room that a running job has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Room {
    lanes: Vec<usize>,
    memory_bytes: u64,
}

impl Room {
    /// The first of its lanes.
    pub(crate) fn lane(&self) -> usize {
        self.lanes[0]
    }

    /// Where each of its threads runs.
    pub(crate) fn lanes(&self) -> &[usize] {
        &self.lanes
    }

    /// The part of it that `lane` is; one is kept to the end.
    pub(crate) fn without(&mut self, lane: usize) -> Option<Self> {
        let at = self.lanes.iter().position(|it| *it == lane)?;
        (self.lanes.len() > 1).then(|| Self {
            lanes: vec![self.lanes.remove(at)],
            memory_bytes: 0,
        })
    }

    #[cfg(test)]
    pub(crate) fn slots(&self) -> usize {
        self.lanes.len()
    }
}

impl<J> Queue<J> {
    /// Room for `slots` jobs of one slot, and for limits that add up to `memory_bytes`.
    pub(crate) fn new(slots: usize, memory_bytes: u64, by_length: bool) -> Self {
        Self {
            by_length,
            waiting: BTreeMap::new(),
            pushed: 0,
            free: vec![true; slots.max(1)],
            memory_bytes,
            memory_used_bytes: 0,
            running: 0,
        }
    }

    pub(crate) fn push(&mut self, size: Size, job: J) {
        self.pushed += 1;
        let rank = if self.by_length {
            (
                size.expected.is_some(),
                Reverse(size.expected.unwrap_or_default()),
                self.pushed,
            )
        } else {
            (false, Reverse(Duration::ZERO), self.pushed)
        };
        let waiting = Waiting {
            size,
            overtaken: 0,
            job,
        };
        self.waiting.insert(rank, waiting);
    }

    /// The next job that there is room for. What is too large for all there is runs once nothing else does.
    pub(crate) fn next(&mut self) -> Option<(Room, J)> {
        let free = self.free.iter().filter(|free| **free).count();
        if free == 0 {
            return None;
        }
        let left = self.memory_bytes.saturating_sub(self.memory_used_bytes);
        let is_idle = self.running == 0;
        let slots_of = |size: &Size| size.slots.clamp(1, self.free.len());
        // A job that waits for its slots lets as many smaller ones pass as it has slots, so that the lanes it waits for are
        // not idle, and it does not wait for ever. Only memory lets others pass always.
        let mut passed = Vec::new();
        let mut found = None;
        for (rank, waiting) in &self.waiting {
            let slots = slots_of(&waiting.size);
            if slots > free && !is_idle {
                if waiting.overtaken >= slots {
                    break;
                }
                passed.push(*rank);
            } else if is_idle || waiting.size.memory_bytes.unwrap_or(0) <= left {
                found = Some(*rank);
                break;
            }
        }
        let rank = found?;
        for rank in passed {
            if let Some(waiting) = self.waiting.get_mut(&rank) {
                waiting.overtaken += 1;
            }
        }
        let Waiting { size, job, .. } = self.waiting.remove(&rank)?;
        let memory_bytes = size.memory_bytes.unwrap_or(0);
        let wanted = size.slots.clamp(1, self.free.len());
        let lanes: Vec<usize> = (0..self.free.len())
            .filter(|lane| self.free[*lane])
            .take(wanted)
            .collect();
        for lane in &lanes {
            self.free[*lane] = false;
        }
        self.memory_used_bytes = self.memory_used_bytes.saturating_add(memory_bytes);
        self.running += 1;
        Some((
            Room {
                lanes,
                memory_bytes,
            },
            job,
        ))
    }

    /// Takes back a part of the room of a job that still runs.
    #[expect(clippy::needless_pass_by_value, reason = "it is given back")]
    pub(crate) fn give_back(&mut self, part: Room) {
        for lane in &part.lanes {
            self.free[*lane] = true;
        }
    }

    /// Takes back the room of a job that has ended.
    #[expect(clippy::needless_pass_by_value, reason = "it is given back")]
    pub(crate) fn done(&mut self, room: Room) {
        for lane in &room.lanes {
            self.free[*lane] = true;
        }
        self.memory_used_bytes = self.memory_used_bytes.saturating_sub(room.memory_bytes);
        self.running -= 1;
    }

    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes everything that waits.
    pub(crate) fn take_all(&mut self) -> Vec<J> {
        std::mem::take(&mut self.waiting)
            .into_values()
            .map(|waiting| waiting.job)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(expected_ms: Option<u64>, slots: usize, memory_bytes: Option<u64>) -> Size {
        Size {
            expected: expected_ms.map(Duration::from_millis),
            slots,
            memory_bytes,
        }
    }

    #[test]
    fn unknown_ones_come_first_and_then_the_longest() {
        let mut queue = Queue::new(1, 0, true);
        queue.push(size(Some(1), 1, None), "short");
        queue.push(size(Some(9), 1, None), "long");
        queue.push(size(None, 1, None), "new");
        let mut order = Vec::new();
        while let Some((room, job)) = queue.next() {
            assert!(queue.next().is_none(), "there is one slot");
            order.push(job);
            queue.done(room);
        }
        assert_eq!(order, ["new", "long", "short"]);
    }

    #[test]
    fn shuffled_ones_come_as_they_were_pushed() {
        let mut queue = Queue::new(2, 0, false);
        queue.push(size(Some(1), 1, None), 1);
        queue.push(size(Some(9), 1, None), 2);
        assert_eq!(queue.next().unwrap().1, 1);
        assert_eq!(queue.next().unwrap().1, 2);
    }

    #[test]
    fn limits_add_up_to_what_there_is() {
        let mut queue = Queue::new(4, 100, true);
        queue.push(size(Some(9), 1, Some(60)), "large");
        queue.push(size(Some(8), 1, Some(60)), "large too");
        queue.push(size(Some(7), 1, Some(40)), "small");
        let (large, job) = queue.next().unwrap();
        assert_eq!(job, "large");
        assert_eq!(queue.next().unwrap().1, "small");
        assert!(queue.next().is_none());
        queue.done(large);
        assert_eq!(queue.next().unwrap().1, "large too");
    }

    #[test]
    fn what_is_too_large_for_everything_runs_alone() {
        let mut queue = Queue::new(2, 100, true);
        queue.push(size(Some(9), 7, Some(500)), "huge");
        queue.push(size(Some(1), 1, None), "small");
        let (room, job) = queue.next().unwrap();
        assert_eq!((job, room.slots()), ("huge", 2));
        assert!(queue.next().is_none());
    }

    #[test]
    fn what_waits_for_slots_is_not_overtaken_for_ever() {
        let mut queue = Queue::new(2, 0, true);
        queue.push(size(Some(1), 1, None), "small");
        let (mut small, _) = queue.next().unwrap();
        queue.push(size(Some(9), 2, None), "wide");
        for _ in 0..3 {
            queue.push(size(Some(1), 1, None), "small too");
        }
        for _ in 0..2 {
            let (room, job) = queue.next().unwrap();
            assert_eq!(job, "small too");
            queue.done(std::mem::replace(&mut small, room));
        }
        assert!(queue.next().is_none(), "it has waited long enough");
        queue.done(small);
        assert_eq!(queue.next().unwrap().1, "wide");
    }

    #[test]
    fn lanes_that_a_job_needs_no_more_are_for_others() {
        let mut queue = Queue::new(2, 0, true);
        queue.push(size(Some(9), 2, None), "wide");
        queue.push(size(Some(1), 1, None), "small");
        let (mut wide, _) = queue.next().unwrap();
        assert!(queue.next().is_none());
        let part = wide.without(0).unwrap();
        assert_eq!((wide.lanes(), part.lanes()), (&[1][..], &[0][..]));
        assert!(wide.without(1).is_none(), "the last is kept");
        queue.give_back(part);
        let (small, job) = queue.next().unwrap();
        assert_eq!((job, small.lane()), ("small", 0));
        queue.done(wide);
        queue.done(small);
        assert_eq!(queue.running(), 0);
    }

    proptest::proptest! {
        #[test]
        fn everything_runs_once_and_within_what_there_is(
            sizes in proptest::collection::vec((proptest::option::of(0u64..50), 1usize..5, proptest::option::of(0u64..200)), 0..40),
            slots in 1usize..5,
        ) {
            let mut queue = Queue::new(slots, 100, true);
            for (index, (expected, slots, memory)) in sizes.iter().enumerate() {
                queue.push(size(*expected, *slots, *memory), index);
            }
            let mut seen = Vec::new();
            let mut running = Vec::new();
            loop {
                while let Some((room, job)) = queue.next() {
                    seen.push(job);
                    running.push(room);
                    let used: usize = running.iter().map(Room::slots).sum();
                    proptest::prop_assert!(used <= slots);
                    let memory: u64 = running.iter().map(|room| room.memory_bytes).sum();
                    // One that is too large for everything has all the memory, and no other that is limited beside it.
                    let limited = running.iter().filter(|room| room.memory_bytes > 0).count();
                    proptest::prop_assert!(memory <= 100 || limited == 1);
                }
                // The one that began last ends first.
                match running.pop() {
                    Some(room) => queue.done(room),
                    None => break,
                }
            }
            seen.sort_unstable();
            proptest::prop_assert_eq!(seen, (0..sizes.len()).collect::<Vec<_>>());
            proptest::prop_assert!(queue.is_empty());
        }
    }
}
