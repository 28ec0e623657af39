//! Sandboxes made ahead: which are wanted, and which stand ready. Knows of processes nothing but their numbers.
//!
//! A sandbox is made for a *kind*: everything that a plan says but the program, see [`Plan::is_of_kind`]. One that
//! stands ready is given away once, to a launch of its kind, and another is made when the supervisor has nothing else to
//! do.

use std::rc::Rc;

use super::channel::Channel;
use crate::plan::Plan;

/// How many kinds are kept; with one more, what was made of the kind that was not launched for longest is ended.
const MAX_KINDS: usize = 4;

/// How many are made at a time: more than one, as the kernel waits for itself on the way.
const MAX_MAKING: usize = 2;

/// What is wanted and what is there.
#[derive(Default)]
pub(super) struct Pool {
    /// What was launched last is last.
    wanted: Vec<Rc<Plan>>,
    standing: Vec<Standing>,
}

/// An init that makes, or has made, all of its sandbox but the program.
struct Standing {
    id: u64,
    plan: Rc<Plan>,
    /// On which it says that it is ready, and is given a program.
    post: Channel,
    is_ready: bool,
}

impl Pool {
    /// Takes note of a launch that wants `plan.ahead` more of its kind to be there. Gives the ids of those that nobody is
    /// likely to want any more.
    pub(super) fn note(&mut self, plan: &Plan) -> Vec<u64> {
        if plan.ahead == 0 {
            return Vec::new();
        }
        match self.wanted.iter().position(|it| it.is_of_kind(plan)) {
            Some(at) => {
                let mut known = self.wanted.remove(at);
                if known.ahead != plan.ahead {
                    known = Rc::new(plan.clone());
                }
                self.wanted.push(known);
            }
            None => self.wanted.push(Rc::new(plan.clone())),
        }
        if self.wanted.len() <= MAX_KINDS {
            return Vec::new();
        }
        let oldest = self.wanted.remove(0);
        let (gone, kept) = std::mem::take(&mut self.standing)
            .into_iter()
            .partition(|it: &Standing| it.plan.is_of_kind(&oldest));
        self.standing = kept;
        gone.into_iter().map(|it: Standing| it.id).collect()
    }

    /// What to make next.
    pub(super) fn next(&self) -> Option<Rc<Plan>> {
        if self.standing.iter().filter(|it| !it.is_ready).count() >= MAX_MAKING {
            return None;
        }
        let lacks = |plan: &&Rc<Plan>| {
            let there = self
                .standing
                .iter()
                .filter(|it| it.plan.is_of_kind(plan))
                .count();
            there < plan.ahead
        };
        self.wanted.iter().rev().find(lacks).cloned()
    }

    pub(super) fn add(&mut self, id: u64, plan: Rc<Plan>, post: Channel) {
        self.standing.push(Standing {
            id,
            plan,
            post,
            is_ready: false,
        });
    }

    /// The init `id` has written: that it is ready, and nothing else.
    pub(super) fn hear(&mut self, id: u64) {
        if let Some(standing) = self.standing.iter_mut().find(|it| it.id == id) {
            standing.is_ready = matches!(standing.post.recv::<()>(), Ok(Some(_)));
        }
    }

    /// One that is ready for `plan`, with the channel on which it waits.
    pub(super) fn take(&mut self, plan: &Plan) -> Option<(u64, Channel)> {
        let fits = |it: &Standing| it.is_ready && it.plan.is_of_kind(plan);
        let at = self.standing.iter().position(fits)?;
        let Standing { id, post, .. } = self.standing.remove(at);
        Some((id, post))
    }

    /// The init `id` has ended and was given to nobody. Where it could not even be made, no other is tried before the
    /// next launch, which says what is wrong.
    pub(super) fn lose(&mut self, id: u64) {
        if let Some(at) = self.standing.iter().position(|it| it.id == id) {
            let lost = self.standing.remove(at);
            if !lost.is_ready {
                self.give_up(&lost.plan);
            }
        }
    }

    /// Makes no more of this kind until one is launched.
    pub(super) fn give_up(&mut self, plan: &Plan) {
        self.wanted.retain(|it| !it.is_of_kind(plan));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::planned;

    fn kind(name: &str, ahead: usize) -> Plan {
        planned(
            crate::Sandbox::builder()
                .cmd(["true"])
                .hostname(name)
                .prepare_ahead(ahead),
            1000,
        )
        .unwrap()
    }

    /// Makes one as the supervisor does, and has it say that it is ready.
    fn make(pool: &mut Pool, id: u64) {
        let plan = pool.next().expect("one is wanted");
        let (post, init) = Channel::pair().expect("a pair of sockets");
        pool.add(id, plan, post);
        init.send(&(), &[]).expect("somebody listens");
        pool.hear(id);
    }

    #[test]
    fn each_is_given_away_once_and_replaced() {
        let mut pool = Pool::default();
        let plan = kind("web", 2);
        assert!(pool.take(&plan).is_none());
        assert_eq!(pool.note(&plan), Vec::<u64>::new());
        make(&mut pool, 1);
        make(&mut pool, 2);
        assert!(pool.next().is_none(), "there are as many as were wanted");
        let mut other_program = plan.clone();
        other_program.program.argv = vec!["false".into()];
        assert_eq!(pool.take(&other_program).map(|it| it.0), Some(1));
        assert!(pool.take(&kind("other", 2)).is_none(), "of another kind");
        assert_eq!(pool.take(&plan).map(|it| it.0), Some(2));
        assert!(pool.take(&plan).is_none());
        make(&mut pool, 3);
        assert_eq!(pool.take(&plan).map(|it| it.0), Some(3));
    }

    #[test]
    fn few_are_made_at_a_time() {
        let mut pool = Pool::default();
        pool.note(&kind("web", 8));
        let mut inits = Vec::new();
        for id in 0..MAX_MAKING as u64 {
            let (post, init) = Channel::pair().expect("a pair of sockets");
            pool.add(id, pool.next().expect("one is wanted"), post);
            inits.push(init);
        }
        assert!(pool.next().is_none());
        inits[0].send(&(), &[]).expect("somebody listens");
        pool.hear(0);
        assert!(pool.next().is_some());
    }

    #[test]
    fn one_that_is_not_ready_is_given_to_nobody() {
        let mut pool = Pool::default();
        let plan = kind("web", 1);
        pool.note(&plan);
        let (post, init) = Channel::pair().expect("a pair of sockets");
        pool.add(1, pool.next().expect("one is wanted"), post);
        assert!(pool.take(&plan).is_none());
        drop(init);
        pool.hear(1);
        assert!(pool.take(&plan).is_none(), "it has ended");
        pool.lose(1);
        assert!(pool.next().is_none(), "not again before the next launch");
        pool.note(&plan);
        assert!(pool.next().is_some());
    }

    #[test]
    fn the_kinds_are_few_and_the_oldest_goes() {
        let mut pool = Pool::default();
        for id in 0..MAX_KINDS as u64 {
            assert_eq!(pool.note(&kind(&format!("h{id}"), 1)), Vec::<u64>::new());
            make(&mut pool, id);
        }
        // The first is not the oldest any more.
        assert_eq!(pool.note(&kind("h0", 1)), Vec::<u64>::new());
        assert_eq!(pool.note(&kind("new", 1)), [1]);
        assert!(pool.take(&kind("h0", 1)).is_some());
        assert!(pool.take(&kind("h1", 1)).is_none());
    }

    #[test]
    fn who_wants_none_gets_none_made() {
        let mut pool = Pool::default();
        assert_eq!(pool.note(&kind("web", 0)), Vec::<u64>::new());
        assert!(pool.next().is_none());
    }
}
