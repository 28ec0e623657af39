//! Sandboxes made ahead: which are wanted, and which stand ready. Knows of processes nothing but their numbers.
//!
//! A sandbox is made for a *kind*, see [`Launch`]. One that stands ready is given away once, to a launch of its kind, and
//! another, for a program like that, is made when the supervisor has nothing else to do: at once where fewer than half of
//! those wanted are there, else after [`REST`], so that it is not made at the very moment at which the one that was given
//! away needs the processors.

use std::{rc::Rc, time::Duration};

use super::{
    channel::Channel,
    launch::{Launch, Packed},
};
use crate::plan::Plan;

/// How many kinds are kept; with one more, what was made of the kind that was not launched for longest is ended.
const MAX_KINDS: usize = 4;

/// How many are made at a time: more than one, as the kernel waits for itself on the way.
const MAX_MAKING: usize = 2;

/// How long nothing is to happen before one more is made that is not needed soon.
const REST: Duration = Duration::from_millis(5);

/// What is wanted and what is there.
#[derive(Default)]
pub(super) struct Pool {
    /// What was launched last is last.
    wanted: Vec<Wanted>,
    standing: Vec<Standing>,
    last_kind: u64,
}

/// A kind of which some are to stand ready.
struct Wanted {
    kind: Kind,
    packed: Packed,
    /// What was asked for last.
    gift: Packed,
    /// It, but for its program, which is put into it when one is made.
    plan: Rc<Plan>,
    is_current: bool,
    count: usize,
}

/// What stands for all plans of a kind, which are long to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    number: u64,
    /// Whether it has layers which all share.
    shares: bool,
}

/// One that is to be made.
pub(super) struct Order {
    pub(super) kind: Kind,
    pub(super) plan: Rc<Plan>,
    /// How long nothing else is to happen before.
    pub(super) after: Duration,
}

/// An init that makes, or has made, all of its sandbox but the program.
struct Standing {
    id: u64,
    kind: Kind,
    /// On which it says that it is ready, and is given a program.
    post: Channel,
    is_ready: bool,
}

impl Wanted {
    /// The plan, with the program that was launched last.
    fn plan_of_last(&mut self) -> Rc<Plan> {
        if !self.is_current {
            self.is_current = true;
            self.gift.put_into(Rc::make_mut(&mut self.plan));
        }
        Rc::clone(&self.plan)
    }
}

impl Pool {
    /// Takes note of a launch that wants `ahead` more of its kind to be there. Gives its kind, where any of that was
    /// wanted, and the ids of those that nobody is likely to want any more.
    pub(super) fn note(&mut self, launch: &Launch) -> (Option<Kind>, Vec<u64>) {
        let known = self.wanted.iter().position(|it| it.packed == launch.kind);
        if launch.ahead == 0 {
            return (known.map(|at| self.wanted[at].kind), Vec::new());
        }
        let known = known.map(|at| self.wanted.remove(at));
        let Some(mut wanted) = known.or_else(|| self.new_kind(launch)) else {
            return (None, Vec::new());
        };
        wanted.count = launch.ahead;
        if wanted.gift != launch.gift {
            wanted.gift.clone_from(&launch.gift);
            wanted.is_current = false;
        }
        let kind = wanted.kind;
        self.wanted.push(wanted);
        if self.wanted.len() <= MAX_KINDS {
            return (Some(kind), Vec::new());
        }
        let oldest = self.wanted.remove(0).kind;
        (Some(kind), self.take_all(|it| it == oldest))
    }

    /// `None` for what is no plan.
    fn new_kind(&mut self, launch: &Launch) -> Option<Wanted> {
        let plan = launch.plan().ok()?;
        self.last_kind += 1;
        Some(Wanted {
            kind: Kind {
                number: self.last_kind,
                shares: launch.shares,
            },
            packed: launch.kind.clone(),
            gift: launch.gift.clone(),
            plan: Rc::new(plan),
            is_current: true,
            count: 0,
        })
    }

    /// The ids of those of certain kinds, which are given to nobody any more.
    fn take_all(&mut self, is_meant: impl Fn(Kind) -> bool) -> Vec<u64> {
        let (gone, kept) = std::mem::take(&mut self.standing)
            .into_iter()
            .partition(|it: &Standing| is_meant(it.kind));
        self.standing = kept;
        let gone = gone.into_iter().map(|it: Standing| it.id);
        gone.collect()
    }

    /// What to make next: what is needed soonest, and of that what was launched last.
    pub(super) fn next(&mut self) -> Option<Order> {
        if self.standing.iter().filter(|it| !it.is_ready).count() >= MAX_MAKING {
            return None;
        }
        let standing = &self.standing;
        let lacking = self.wanted.iter_mut().rev().filter_map(|wanted| {
            let of_kind = standing.iter().filter(|it| it.kind == wanted.kind);
            let there = of_kind.count();
            let is_soon = there * 2 < wanted.count;
            let after = if is_soon { Duration::ZERO } else { REST };
            (there < wanted.count).then_some((after, wanted))
        });
        let (after, wanted) = lacking.min_by_key(|(after, _)| *after)?;
        Some(Order {
            kind: wanted.kind,
            plan: wanted.plan_of_last(),
            after,
        })
    }

    pub(super) fn add(&mut self, id: u64, kind: Kind, post: Channel) {
        self.standing.push(Standing {
            id,
            kind,
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

    /// One of `kind` that is ready, with the channel on which it waits.
    pub(super) fn take(&mut self, kind: Kind) -> Option<(u64, Channel)> {
        let fits = |it: &Standing| it.is_ready && it.kind == kind;
        let at = self.standing.iter().position(fits)?;
        let Standing { id, post, .. } = self.standing.remove(at);
        Some((id, post))
    }

    /// The ids of those that have layers which all share: others are made in their place.
    pub(super) fn take_all_that_share(&mut self) -> Vec<u64> {
        self.take_all(|kind| kind.shares)
    }

    /// The ids of all; no others are made before the next launch.
    pub(super) fn take_all_and_rest(&mut self) -> Vec<u64> {
        for wanted in &mut self.wanted {
            wanted.count = 0;
        }
        self.take_all(|_| true)
    }

    /// The init `id` has ended and was given to nobody. Where it could not even be made, no other is tried before the
    /// next launch, which says what is wrong.
    pub(super) fn lose(&mut self, id: u64) {
        if let Some(at) = self.standing.iter().position(|it| it.id == id) {
            let lost = self.standing.remove(at);
            if !lost.is_ready {
                self.give_up(lost.kind);
            }
        }
    }

    /// Makes no more of this kind until one is launched.
    pub(super) fn give_up(&mut self, kind: Kind) {
        if let Some(wanted) = self.wanted.iter_mut().find(|it| it.kind == kind) {
            wanted.count = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan::tests::planned, step::Step};

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
        let order = pool.next().expect("one is wanted");
        let (post, init) = Channel::pair().expect("a pair of sockets");
        pool.add(id, order.kind, post);
        init.send(&(), &[]).expect("somebody listens");
        pool.hear(id);
    }

    /// What a launch of `plan` is given.
    fn take(pool: &mut Pool, plan: &Plan) -> Option<u64> {
        let kind = launch(plan).kind;
        let kind = pool.wanted.iter().find(|it| it.packed == kind)?.kind;
        pool.take(kind).map(|(id, _)| id)
    }

    /// Which are let go as one is launched.
    fn note(pool: &mut Pool, plan: &Plan) -> Vec<u64> {
        pool.note(&launch(plan)).1
    }

    fn launch(plan: &Plan) -> Launch {
        Launch::of(plan).expect("a plan can be written")
    }

    #[test]
    fn what_shares_layers_is_made_anew_where_those_are() {
        let mut pool = Pool::default();
        let mut sharing = kind("shares", 1);
        sharing.steps.push(Step::Shared {
            at: "/usr".into(),
            owner: 1,
        });
        for (id, plan) in [(1, kind("own", 1)), (2, sharing.clone())] {
            note(&mut pool, &plan);
            make(&mut pool, id);
        }
        assert_eq!(pool.take_all_that_share(), [2]);
        assert_eq!(take(&mut pool, &kind("own", 1)), Some(1));
        assert_eq!(take(&mut pool, &sharing), None);
        note(&mut pool, &sharing);
        make(&mut pool, 3);
        assert_eq!(take(&mut pool, &sharing), Some(3));
    }

    #[test]
    fn each_is_given_away_once_and_replaced() {
        let mut pool = Pool::default();
        let plan = kind("web", 2);
        assert!(take(&mut pool, &plan).is_none());
        assert_eq!(note(&mut pool, &plan), Vec::<u64>::new());
        make(&mut pool, 1);
        make(&mut pool, 2);
        assert!(pool.next().is_none(), "there are as many as were wanted");
        let mut other_program = plan.clone();
        other_program.program.argv = vec!["false".into()];
        assert_eq!(take(&mut pool, &other_program), Some(1));
        assert!(
            take(&mut pool, &kind("other", 2)).is_none(),
            "of another kind"
        );
        assert_eq!(take(&mut pool, &plan), Some(2));
        assert!(take(&mut pool, &plan).is_none());
        make(&mut pool, 3);
        assert_eq!(take(&mut pool, &plan), Some(3));
    }

    #[test]
    fn one_is_made_for_a_program_like_the_last() {
        let mut pool = Pool::default();
        let mut plan = kind("web", 2);
        note(&mut pool, &plan);
        make(&mut pool, 1);
        plan.program.argv = vec!["other".into()];
        note(&mut pool, &plan);
        let order = pool.next().expect("one is wanted");
        assert_eq!(order.plan.program, plan.program);
        assert_eq!(order.plan.steps, plan.steps);
    }

    #[test]
    fn few_are_made_at_a_time() {
        let mut pool = Pool::default();
        note(&mut pool, &kind("web", 8));
        let mut inits = Vec::new();
        for id in 0..MAX_MAKING as u64 {
            let (post, init) = Channel::pair().expect("a pair of sockets");
            let kind = pool.next().expect("one is wanted").kind;
            pool.add(id, kind, post);
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
        pool.note(&launch(&plan));
        let (post, init) = Channel::pair().expect("a pair of sockets");
        let order = pool.next().expect("one is wanted");
        pool.add(1, order.kind, post);
        assert!(take(&mut pool, &plan).is_none());
        drop(init);
        pool.hear(1);
        assert!(take(&mut pool, &plan).is_none(), "it has ended");
        pool.lose(1);
        assert!(pool.next().is_none(), "not again before the next launch");
        pool.note(&launch(&plan));
        assert!(pool.next().is_some());
    }

    #[test]
    fn the_kinds_are_few_and_the_oldest_goes() {
        let mut pool = Pool::default();
        for id in 0..MAX_KINDS as u64 {
            assert_eq!(
                note(&mut pool, &kind(&format!("h{id}"), 1)),
                Vec::<u64>::new()
            );
            make(&mut pool, id);
        }
        // The first is not the oldest any more.
        assert_eq!(note(&mut pool, &kind("h0", 1)), Vec::<u64>::new());
        assert_eq!(note(&mut pool, &kind("new", 1)), [1]);
        assert!(take(&mut pool, &kind("h0", 1)).is_some());
        assert!(take(&mut pool, &kind("h1", 1)).is_none());
    }

    #[test]
    fn who_wants_none_gets_none_made() {
        let mut pool = Pool::default();
        assert_eq!(note(&mut pool, &kind("web", 0)), Vec::<u64>::new());
        assert!(pool.next().is_none());
    }

    #[test]
    fn the_last_launch_takes_one_and_wants_no_other() {
        let mut pool = Pool::default();
        note(&mut pool, &kind("web", 1));
        make(&mut pool, 1);
        let (of, _) = pool.note(&launch(&kind("web", 0)));
        assert_eq!(pool.take(of.expect("it is known")).map(|it| it.0), Some(1));
    }

    #[test]
    fn what_is_not_needed_soon_waits_until_nothing_happens() {
        let mut pool = Pool::default();
        let after = |pool: &mut Pool| pool.next().map(|order| order.after);
        note(&mut pool, &kind("web", 3));
        for (id, rest) in [(1, Duration::ZERO), (2, Duration::ZERO), (3, REST)] {
            assert_eq!(after(&mut pool), Some(rest));
            make(&mut pool, id);
        }
        assert_eq!(after(&mut pool), None);
    }

    #[test]
    fn what_is_needed_soon_goes_before_what_was_launched_last() {
        let mut pool = Pool::default();
        note(&mut pool, &kind("older", 2));
        note(&mut pool, &kind("newer", 2));
        make(&mut pool, 1);
        let order = pool.next().expect("both lack some");
        assert!(
            order.after.is_zero() && launch(&order.plan).kind == launch(&kind("older", 2)).kind
        );
    }
}
