//! An init that stands by: it is in namespaces of its own before anybody has asked for a sandbox, and is used once.
//!
//! Its making takes the kernel longer than most of what a sandbox takes that is asked for, a network namespace above all;
//! and the supervisor has nothing to do while a program runs. What it will make it hears when it is asked for, unlike one
//! that has made all of it ahead ([`prepared`](super::prepared)).

use std::{
    ffi::CStr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use super::{
    channel::Channel,
    filters::Filters,
    init::{self, Ground},
    launch::Launch,
    program::{Bearing, Common, Words},
};
use crate::{
    plan::Isolation,
    sys::{self, SingleThreaded},
};

/// How long nothing is to happen after a sandbox has ended before one is made: whoever will start the next at once has asked
/// for it by then.
const REST: Duration = Duration::from_millis(1);

/// How long nothing is to happen after a launch. What is launched makes its mounts until then, and executes its program, or
/// has ended: one that was made meanwhile would have both wait for locks of the kernel that a new network namespace takes.
const REST_AFTER_LAUNCH: Duration = Duration::from_millis(5);

/// A launch that is longer is not read ahead.
const MAX_REHEARSED_BYTES: usize = 16 << 10;

/// The names of a process that stands by, and of an init: that of the supervisor.
const STANDS_BY: &CStr = c"orbit-spare";
pub(super) const INIT: &CStr = c"orbit";

/// The one that is there, if any.
#[derive(Default)]
pub(super) struct Spare {
    init: Option<StandsBy>,
    /// How many were asked for.
    asked: u64,
    /// That there was none, or not for long, since one was asked for. Who then has to have its own made says why.
    is_refused: bool,
    /// Whether no sandbox has ended since one was launched.
    is_launching: bool,
    /// Whether one was ended for what has changed, and more may change.
    is_outdated: bool,
    /// What one was given last.
    last: Option<Launch>,
}

struct StandsBy {
    id: u64,
    /// On which it waits for its launch.
    post: Channel,
    /// Once it has said that it is there.
    network: Option<OwnedFd>,
}

impl Spare {
    /// How long nothing is to happen before one is made; `None` where none is wanted. A process that starts one sandbox
    /// wants no second; one that has started two will start more.
    pub(super) fn is_due_after(&self) -> Option<Duration> {
        if self.init.is_some() || self.is_refused {
            return None;
        }
        match self.asked {
            0 if !self.is_outdated => Some(Duration::ZERO),
            // Of sandboxes on the host's network none wants one.
            0 | 1 => None,
            _ if self.is_launching => Some(REST_AFTER_LAUNCH),
            _ => Some(REST),
        }
    }

    pub(super) fn add(&mut self, id: u64, post: Channel) {
        self.init = Some(StandsBy {
            id,
            post,
            network: None,
        });
    }

    /// Makes no more until one is asked for.
    pub(super) fn give_up(&mut self) {
        self.is_refused = true;
    }

    /// What the next one will most likely be given something like, where that is not long to read.
    pub(super) fn note(&mut self, launch: &Launch) {
        if launch.size_bytes() <= MAX_REHEARSED_BYTES {
            self.last = Some(launch.clone());
        }
    }

    pub(super) fn last(&self) -> Option<&Launch> {
        self.last.as_ref()
    }

    /// The init `id` has written: that it is there, with its network.
    pub(super) fn hear(&mut self, id: u64) {
        if let Some(init) = self.init.as_mut().filter(|it| it.id == id)
            && let Ok(Some(((), mut fds))) = init.post.recv()
        {
            init.network = fds.pop();
        }
    }

    /// A sandbox with a network of its own is launched, for which nothing was made ahead.
    pub(super) fn ask(&mut self) {
        self.asked += 1;
        self.is_refused = false;
    }

    /// Takes the one that is there, with the channel on which it waits.
    pub(super) fn take(&mut self) -> Option<(u64, Channel)> {
        self.init.take().map(|init| (init.id, init.post))
    }

    /// Takes the network of the one that is there, which has no use for itself then.
    pub(super) fn take_network(&mut self) -> Option<(u64, OwnedFd)> {
        let StandsBy { id, network, .. } = self.init.take_if(|it| it.network.is_some())?;
        Some((id, network?))
    }

    /// What it has a copy of has changed. Gives the one to be ended, if there is one.
    pub(super) fn outdate(&mut self) -> Option<u64> {
        self.is_outdated = true;
        self.init.take().map(|init| init.id)
    }

    /// A sandbox is launched, by whatever.
    pub(super) fn launches(&mut self) {
        self.is_launching = true;
    }

    /// A sandbox has ended.
    pub(super) fn ends(&mut self) {
        self.is_launching = false;
    }

    /// The child `id` has ended: this one, or another.
    pub(super) fn lose(&mut self, id: u64) {
        if self.init.take_if(|it| it.id == id).is_some() {
            self.give_up();
        }
    }
}

/// Waits on `post` for a [`Launch`], with its event channel, its standard streams and then a channel for each link, and is
/// its sandbox's process 1.
pub(super) fn run(
    single_threaded: SingleThreaded,
    post: Channel,
    last: Option<&Launch>,
    common: &Common,
    filters: &mut Filters,
) -> ! {
    let mut keep = vec![post.as_fd().as_raw_fd()];
    keep.extend(common.descriptor());
    if sys::close_inherited(&mut keep).is_err() {
        sys::exit_now(0);
    }
    // How it is told from one that is somebody's, by who looks at processes.
    let _ = rustix::thread::set_name(STANDS_BY);
    let ground = Ground::of(Isolation::Own);
    let network = ground.as_ref().ok().and_then(Ground::network);
    // It may not listen any more: it gives a launch to one that is not here yet.
    let _ = post.send(&(), network.as_slice());
    if let Ok(ground) = &ground {
        ground.tread();
    }
    if let Some(last) = last {
        rehearse(last, common, filters);
    }
    let Ok(Some((launch, mut fds))) = post.recv_request::<Launch>() else {
        sys::exit_now(0)
    };
    // What is no launch is closed with its event channel, which says enough.
    let (Ok(plan), 4..) = (launch.plan(), fds.len()) else {
        sys::exit_now(0)
    };
    drop(post);
    let _ = rustix::thread::set_name(INIT);
    let networks = fds.split_off(4).into_iter().map(Channel::from_fd);
    let stdio = fds.split_off(1);
    let events = Channel::from_fd(fds.remove(0));
    let ran = ground
        // What was lacking then may be there now.
        .or_else(|_| Ground::of(Isolation::Own))
        .map_err(|error| init::no_ground(&error))
        .and_then(|ground| init::make(&plan, ground, networks.collect(), None))
        .and_then(|made| {
            let filter = filters
                .of(plan.program.filter())
                .map_err(|error| init::no_filter(&plan, &error))?;
            let program = made.ready(&plan, stdio, common, filter)?;
            init::begin(single_threaded, &plan, program, &events)
        });
    init::end(ran, &events)
}

/// Reads a launch like the one that will come, without what comes of it: a process that has just been forked finds neither
/// its code nor its memory where it looks for them.
fn rehearse(last: &Launch, common: &Common, filters: &mut Filters) {
    if let Ok(plan) = last.plan()
        && let Ok(filter) = filters.of(plan.program.filter())
        // Of a user who is named this finds no account here.
        && let Ok(bearing) = Bearing::new(&plan.program, common, filter)
    {
        let _ = Words::new(&plan.program, &bearing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds one, and gives what it would hold.
    fn stand_by(spare: &mut Spare, id: u64) -> Channel {
        let (post, init) = Channel::pair().expect("a pair of sockets");
        spare.add(id, post);
        init
    }

    #[test]
    fn one_is_made_for_the_first_and_from_the_third_on() {
        let mut spare = Spare::default();
        let is_due = |spare: &Spare| spare.is_due_after().is_some();
        assert_eq!(spare.is_due_after(), Some(Duration::ZERO));
        spare.ask();
        assert!(spare.take().is_none() && spare.take_network().is_none());
        assert!(!is_due(&spare), "it may be the only one");
        spare.ask();
        assert!(is_due(&spare));
        stand_by(&mut spare, 2);
        assert!(!is_due(&spare));
        assert_eq!(spare.take().map(|(id, _)| id), Some(2));
        assert!(is_due(&spare));
    }

    #[test]
    fn one_is_made_later_while_another_starts_or_something_changes() {
        let mut spare = Spare::default();
        stand_by(&mut spare, 2);
        assert_eq!(spare.outdate(), Some(2));
        assert_eq!(spare.is_due_after(), None, "nobody has asked for one");
        spare.launches();
        spare.ask();
        spare.ask();
        spare.lose(2);
        assert_eq!(spare.is_due_after(), Some(REST_AFTER_LAUNCH));
        spare.ends();
        assert_eq!(spare.is_due_after(), Some(REST));
    }

    #[test]
    fn what_the_kernel_refuses_is_not_tried_until_one_is_asked_for() {
        let mut spare = Spare {
            asked: 2,
            ..Spare::default()
        };
        spare.give_up();
        assert_eq!(spare.is_due_after(), None);
        spare.ask();
        assert_eq!(spare.is_due_after(), Some(REST));
        stand_by(&mut spare, 2);
        spare.lose(3);
        assert!(spare.init.is_some(), "another has ended");
        spare.lose(2);
        assert_eq!(spare.is_due_after(), None);
    }

    #[test]
    fn its_network_is_there_once_it_has_said_so() {
        let mut spare = Spare::default();
        let init = stand_by(&mut spare, 2);
        assert!(spare.take_network().is_none() && spare.init.is_some());
        let network = std::fs::File::open("/dev/null").expect("a file");
        init.send(&(), &[network.as_fd()])
            .expect("somebody listens");
        spare.hear(2);
        assert_eq!(spare.take_network().map(|(id, _)| id), Some(2));
        assert!(spare.init.is_none());
    }
}
