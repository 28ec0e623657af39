//! The supervisor's children: which there are, whose work they do, and when their time is over. However many there are,
//! nothing here looks at all of them.

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};

use super::{
    channel::Channel,
    protocol::{Event, Gone},
};
use crate::{
    outcome::{Status, Usage},
    sys::Waited,
};

/// An init, or a worker.
pub(super) struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) role: Role,
    /// Of a sandbox; a worker answers for itself.
    pub(super) events: Option<Channel>,
    pub(super) started: Instant,
    pub(super) timeout: Option<Duration>,
    pub(super) timed_out: bool,
}

/// What a child is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Process 1 of the sandbox that requests know by this key.
    Init {
        key: u64,
    },
    /// Sees to a further program in the sandbox of this child.
    Exec {
        sandbox: u64,
    },
    /// Does something with the files of the sandbox of this child.
    Files {
        sandbox: u64,
    },
    /// Leads out of the network of the sandbox of this child.
    WayOut {
        sandbox: u64,
    },
    /// Process 1 of a sandbox that nobody has asked for yet.
    Ahead,
    Other,
}

impl Role {
    /// The sandbox that is not gone before this child is.
    pub(super) fn sandbox(self) -> Option<u64> {
        match self {
            Self::Exec { sandbox } | Self::Files { sandbox } | Self::WayOut { sandbox } => {
                Some(sandbox)
            }
            Self::Init { .. } | Self::Ahead | Self::Other => None,
        }
    }
}

/// All of them, by numbers that count up.
#[derive(Default)]
pub(super) struct Children {
    by_id: HashMap<u64, Child>,
    by_pid: HashMap<i32, u64>,
    /// Inits, by the keys of their sandboxes.
    inits: HashMap<u64, u64>,
    /// Who is at work in which sandbox.
    workers: HashMap<u64, Vec<u64>>,
    /// When whose time is over.
    deadlines: BTreeSet<(Instant, u64)>,
}

impl Children {
    pub(super) fn insert(&mut self, id: u64, child: Child) {
        self.by_pid.insert(child.pid, id);
        self.deadlines
            .extend(child.deadline().map(|deadline| (deadline, id)));
        if let Role::Init { key } = child.role {
            self.inits.insert(key, id);
        }
        if let Some(sandbox) = child.role.sandbox() {
            self.workers.entry(sandbox).or_default().push(id);
        }
        self.by_id.insert(id, child);
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Child> {
        let child = self.by_id.remove(&id)?;
        self.by_pid.remove(&child.pid);
        if let Some(deadline) = child.deadline() {
            self.deadlines.remove(&(deadline, id));
        }
        if let Role::Init { key } = child.role {
            self.inits.remove(&key);
        }
        if let Some(sandbox) = child.role.sandbox()
            && let Some(workers) = self.workers.get_mut(&sandbox)
        {
            workers.retain(|worker| *worker != id);
            if workers.is_empty() {
                self.workers.remove(&sandbox);
            }
        }
        Some(child)
    }

    pub(super) fn get(&self, id: u64) -> Option<&Child> {
        self.by_id.get(&id)
    }

    pub(super) fn of_pid(&self, pid: i32) -> Option<u64> {
        self.by_pid.get(&pid).copied()
    }

    /// The child that is process 1 of the sandbox that requests know by `key`.
    pub(super) fn init_of(&self, key: u64) -> Option<(u64, &Child)> {
        let id = *self.inits.get(&key)?;
        Some((id, self.by_id.get(&id)?))
    }

    /// Whoever is at work in a sandbox.
    pub(super) fn workers(&self, sandbox: u64) -> impl Iterator<Item = &Child> {
        let ids = self.workers.get(&sandbox).into_iter().flatten();
        ids.filter_map(|id| self.by_id.get(id))
    }

    /// Gives the init `id`, which was made ahead, to who asked for the sandbox `key`; its time begins.
    pub(super) fn give(&mut self, id: u64, key: u64, events: Channel, timeout: Option<Duration>) {
        if let Some(child) = self.remove(id) {
            let given = Child {
                role: Role::Init { key },
                events: Some(events),
                started: Instant::now(),
                timeout,
                ..child
            };
            self.insert(id, given);
        }
    }

    /// Until the next one's time is over.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let (deadline, _) = self.deadlines.first()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Kills those whose time is over.
    pub(super) fn end_timed_out(&mut self) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= Instant::now()
        {
            self.deadlines.pop_first();
            // One that has ended in time is only not reaped yet.
            if let Some(child) = self.by_id.get_mut(&id).filter(|child| !child.has_ended()) {
                child.timed_out = true;
                child.kill();
            }
        }
    }
}

impl Child {
    /// One that nobody asks of, and that may take as long as it likes.
    pub(super) fn unwatched(pid: i32, pidfd: OwnedFd, role: Role) -> Self {
        Self {
            pid,
            pidfd,
            role,
            events: None,
            started: Instant::now(),
            timeout: None,
            timed_out: false,
        }
    }

    pub(super) fn kill(&self) {
        // ESRCH: it is gone already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn has_ended(&self) -> bool {
        let now = Timespec::default();
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// None where it is further away than the clock counts.
    fn deadline(&self) -> Option<Instant> {
        self.started
            .checked_add(self.timeout.filter(|_| !self.timed_out)?)
    }

    /// Tells the test process that nothing of the sandbox is left.
    pub(super) fn report(self, waited: &Waited) {
        let Some(events) = self.events else { return };
        let status = match self.timeout {
            Some(timeout) if self.timed_out => Status::TimedOut(timeout),
            _ => Status::from(waited),
        };
        let gone = Gone {
            status,
            usage: Usage::from(waited),
            wall_time: self.started.elapsed(),
        };
        // Whoever let the sandbox go may not be listening any more.
        let _ = events.send(&Event::Gone(gone), &[]);
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// One with a descriptor that is of no process, and so can be killed by nothing here; it has not ended.
    fn child(pid: i32, role: Role, timeout: Option<Duration>) -> Child {
        let pidfd = eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor");
        Child {
            timeout,
            ..Child::unwatched(pid, pidfd, role)
        }
    }

    fn pids<'a>(children: impl Iterator<Item = &'a Child>) -> Vec<i32> {
        children.map(|child| child.pid).collect()
    }

    #[test]
    fn a_child_is_found_by_all_that_it_is_known_by_until_it_is_removed() {
        let mut children = Children::default();
        children.insert(2, child(12, Role::Init { key: 7 }, None));
        children.insert(3, child(13, Role::Exec { sandbox: 2 }, None));
        children.insert(4, child(14, Role::WayOut { sandbox: 2 }, None));
        assert_eq!(
            children.init_of(7).map(|(id, it)| (id, it.pid)),
            Some((2, 12))
        );
        assert_eq!(children.of_pid(13), Some(3));
        assert_eq!(pids(children.workers(2)), [13, 14]);
        assert!(children.remove(3).is_some() && children.remove(3).is_none());
        assert_eq!(pids(children.workers(2)), [14]);
        assert!(children.of_pid(13).is_none() && children.get(3).is_none());
        children.remove(4);
        children.remove(2);
        assert!(children.init_of(7).is_none() && children.workers(2).next().is_none());
        assert!(children.workers.is_empty() && children.inits.is_empty());
    }

    #[test]
    fn the_next_time_that_is_over_is_the_nearest() {
        let hours = |number: u64| Some(Duration::from_secs(number * 3600));
        let mut children = Children::default();
        assert_eq!(children.time_left(), None);
        children.insert(2, child(12, Role::Init { key: 7 }, hours(3)));
        children.insert(3, child(13, Role::Init { key: 8 }, hours(1)));
        children.insert(4, child(14, Role::Init { key: 9 }, Some(Duration::MAX)));
        assert!(children.time_left() <= hours(1) && children.time_left() > hours(0));
        children.remove(3);
        assert!(children.time_left() <= hours(3) && children.time_left() > hours(2));
        children.end_timed_out();
        assert!(!children.by_id[&2].timed_out);
        children.remove(2);
        assert_eq!(children.time_left(), None, "the other's is never over");
    }

    #[test]
    fn whose_time_is_over_is_ended_once() {
        let mut children = Children::default();
        children.insert(2, child(12, Role::Init { key: 7 }, Some(Duration::ZERO)));
        assert_eq!(children.time_left(), Some(Duration::ZERO));
        children.end_timed_out();
        assert!(children.by_id[&2].timed_out);
        assert_eq!(children.time_left(), None);
        assert!(children.remove(2).is_some());
    }

    #[test]
    fn who_ended_in_time_is_not_timed_out_for_being_reaped_late() {
        let mut children = Children::default();
        let ended = eventfd(1, EventfdFlags::CLOEXEC).expect("a descriptor");
        let child = child(12, Role::Init { key: 7 }, Some(Duration::ZERO));
        children.insert(
            2,
            Child {
                pidfd: ended,
                ..child
            },
        );
        children.end_timed_out();
        assert!(!children.by_id[&2].timed_out);
    }

    #[test]
    fn the_time_of_one_that_was_made_ahead_begins_when_it_is_given() {
        let mut children = Children::default();
        children.insert(2, child(12, Role::Ahead, None));
        assert_eq!(children.time_left(), None);
        let (events, _ours) = Channel::pair().expect("a pair of sockets");
        children.give(2, 7, events, Some(Duration::from_secs(3600)));
        assert!(children.time_left().is_some());
        assert_eq!(children.init_of(7).map(|(id, _)| id), Some(2));
        assert_eq!(children.of_pid(12), Some(2));
    }
}
