//! How the supervisor comes to an init for a sandbox: one that has made it already, one that stands by, or a fresh one.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::event::epoll;

use super::{
    ahead::{Kind, Order},
    channel::Channel,
    children::{Child, Role},
    init,
    launch::Launch,
    make::Mounted,
    prepared,
    protocol::{Event, Failure},
    serve::{READY, Supervisor, say_failed},
    spare,
    way_out::WayOut,
};
use crate::{
    plan::{Isolation, Plan},
    sys::Fork,
};

/// The namespaces that every sandbox has of its own.
const ALWAYS_OWN: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// With a lower limit of them nothing is made ahead, which holds three here, and a dozen of its own with what it is given.
const ENOUGH_DESCRIPTORS: u64 = 64;

/// What a fork is that waits for what it is for, with its end of the channel on which that comes.
enum Waiting {
    /// This process.
    Init(Channel),
    /// The child that is known by this number.
    Child(u64, Channel),
}

impl Supervisor {
    pub(super) fn launch(
        &mut self,
        key: u64,
        launch: &Launch,
        mut fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        self.spare.launches();
        let (kind, outdated) = self.pool.note(launch);
        for id in outdated {
            self.let_go(id);
        }
        // Not one that brings more than its streams.
        let kind = kind.filter(|_| fds.len() == 4);
        if !launch.shares && self.launch_waiting(key, launch, kind, &mut fds) {
            return Ok(());
        }
        let Ok(plan) = launch.plan() else {
            return Ok(()); // As an invalid message.
        };
        let first_network = 4 + usize::from(plan.cgroup.is_some());
        if fds.len() < first_network {
            return Ok(()); // Likewise.
        }
        let shared = self.shared.make(&plan.steps);
        // What failed may have mounted something before.
        let mounted = shared.unwrap_or(Mounted::Others);
        if mounted == Mounted::Others {
            for id in self.pool.take_all_that_share() {
                self.let_go(id);
            }
        }
        let mut network = None;
        if mounted != Mounted::Nothing {
            // It has none of that; its network is as good as before.
            network = self.network_of_spare(&plan);
            self.renew_spare();
        }
        if let Err((number, errno)) = shared {
            let failure = Failure {
                line: number + 1,
                cause: errno.into(),
            };
            // Who asked may be gone.
            let _ = Channel::from_fd(fds.remove(0)).send(&Event::Failed(failure), &[]);
            return Ok(());
        }
        if launch.shares && self.launch_waiting(key, launch, kind, &mut fds) {
            return Ok(());
        }
        self.launch_fresh(key, &plan, network, fds, first_network)
    }

    /// Makes a sandbox, in a process of its own.
    fn launch_fresh(
        &mut self,
        key: u64,
        plan: &Plan,
        network: Option<OwnedFd>,
        mut fds: Vec<OwnedFd>,
        first_network: usize,
    ) -> io::Result<()> {
        let networks = fds.split_off(first_network);
        let networks = networks.into_iter().map(Channel::from_fd).collect();
        let cgroup = plan.cgroup.as_ref().and_then(|_| fds.pop());
        let stdio = fds.split_off(1);
        let events = Channel::from_fd(fds.remove(0));
        let started = Instant::now();
        let mut namespaces = ALWAYS_OWN;
        // The root of a new cgroup namespace is where the process is that makes it: one that is born into a
        // control group does so itself.
        if cgroup.is_none() {
            namespaces |= libc::CLONE_NEWCGROUP;
        }
        let network = network.or_else(|| self.network_of_spare(plan));
        if cgroup.is_some() {
            // This process may have moved to another control group for it, and that has not.
            self.renew_spare();
        }
        if plan.network == Isolation::Own && network.is_none() {
            namespaces |= libc::CLONE_NEWNET;
        }
        let (way_out, helper) = match WayOut::of(plan).transpose() {
            Ok(pair) => pair.unzip(),
            Err(error) => {
                say_failed(&events, &error);
                return Ok(());
            }
        };
        let filter = match self.filters.of(plan.program.filter()) {
            Ok(filter) => filter,
            Err(error) => {
                let _ = events.send(&Event::Failed(init::no_filter(plan, &error)), &[]);
                return Ok(());
            }
        };
        let born_in = cgroup.as_ref().map(AsFd::as_fd);
        match self.single_threaded.fork(namespaces, born_in) {
            Ok(Fork::Child) => {
                let given = init::Given {
                    events,
                    stdio,
                    networks,
                    network,
                    helper,
                    common: &self.common,
                    filter,
                };
                init::run(self.single_threaded, plan, given)
            }
            Ok(Fork::Parent { pid, pidfd }) => {
                drop(helper);
                let adopted = self.adopt(Child {
                    events: Some(events),
                    started,
                    timeout: plan.timeout,
                    ..Child::unwatched(pid, pidfd, Role::Init { key })
                });
                let Some(sandbox) = adopted else {
                    return Ok(());
                };
                // Where it cannot be started its output ends, which is how the init learns of it.
                if let Some(Ok((pid, pidfd))) = way_out.map(|it| it.start(self.single_threaded)) {
                    self.adopt(Child::unwatched(pid, pidfd, Role::WayOut { sandbox }));
                }
                Ok(())
            }
            Err(error) => {
                say_failed(&events, &error);
                Ok(())
            }
        }
    }

    /// Gives a launch to an init that waits for one, where there is one for it: best one that has made all but the program.
    fn launch_waiting(
        &mut self,
        key: u64,
        launch: &Launch,
        kind: Option<Kind>,
        fds: &mut Vec<OwnedFd>,
    ) -> bool {
        if let Some((id, post)) = kind.and_then(|kind| self.pool.take(kind))
            && self.give(id, key, launch, fds, |fds| {
                post.send_written(&launch.gift.0, fds)
            })
        {
            return true;
        }
        if launch.network == Isolation::Own {
            self.spare.ask();
        }
        if launch.fits_spare
            && let Some((id, post)) = self.spare.take()
            && self.give(id, key, launch, fds, |fds| post.send(launch, fds))
        {
            // The next one finds it compiled. What cannot be compiled is told by who needs it.
            let _ = self.filters.of(launch.filter);
            self.spare.note(launch);
            return true;
        }
        false
    }

    /// Has `send` give the init `id` what came for it, and takes the event channel. Whether somebody took it.
    fn give(
        &mut self,
        id: u64,
        key: u64,
        launch: &Launch,
        fds: &mut Vec<OwnedFd>,
        send: impl FnOnce(&[BorrowedFd<'_>]) -> io::Result<()>,
    ) -> bool {
        let given: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let sent = send(&given);
        if fds.is_empty() || self.children.get(id).is_none() || sent.is_err() {
            return false; // It has ended meanwhile, and is reaped as others are; or what came is no launch.
        }
        let events = Channel::from_fd(fds.remove(0));
        let tag = epoll::EventData::new_u64(id);
        if let Err(errno) = epoll::add(&self.epoll, &events, tag, epoll::EventFlags::RDHUP) {
            self.let_go(id);
            say_failed(&events, &errno.into());
            return true;
        }
        self.children.give(id, key, events, launch.timeout);
        true
    }

    /// Begins to make a sandbox for which there is no program yet.
    pub(super) fn make_ahead(&mut self, order: &Order) {
        let (plan, kind) = (&*order.plan, order.kind);
        let mut namespaces = ALWAYS_OWN | libc::CLONE_NEWCGROUP;
        if plan.network == Isolation::Own {
            namespaces |= libc::CLONE_NEWNET;
        }
        match self.fork_waiting(namespaces) {
            Some(Waiting::Init(post)) => {
                let filters = &mut self.filters;
                prepared::run(self.single_threaded, plan, post, &self.common, filters)
            }
            Some(Waiting::Child(id, post)) => self.pool.add(id, kind, post),
            // The next launch says what is wrong.
            None => self.pool.give_up(kind),
        }
    }

    /// Makes an init of which the sandbox is not known yet.
    pub(super) fn make_spare(&mut self) {
        let namespaces = ALWAYS_OWN | libc::CLONE_NEWCGROUP | libc::CLONE_NEWNET;
        match self.fork_waiting(namespaces) {
            Some(Waiting::Init(post)) => {
                let (last, filters) = (self.spare.last(), &mut self.filters);
                spare::run(self.single_threaded, post, last, &self.common, filters)
            }
            Some(Waiting::Child(id, post)) => self.spare.add(id, post),
            None => self.spare.give_up(),
        }
    }

    /// Ends what nobody has asked for, and makes no more of it before the next launch.
    pub(super) fn end_all_ahead(&mut self) {
        self.renew_spare();
        self.spare.give_up();
        for id in self.pool.take_all_and_rest() {
            self.let_go(id);
        }
    }

    /// Forks an init that waits for what it is for. `None` where there is none.
    fn fork_waiting(&mut self, namespaces: i32) -> Option<Waiting> {
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        if most.is_some_and(|most| most < ENOUGH_DESCRIPTORS) {
            return None;
        }
        let (ours, theirs) = Channel::pair().ok()?;
        let (pid, pidfd) = match self.single_threaded.fork(namespaces, None).ok()? {
            Fork::Child => return Some(Waiting::Init(theirs)),
            Fork::Parent { pid, pidfd } => (pid, pidfd),
        };
        let id = self.adopt(Child::unwatched(pid, pidfd, Role::Ahead))?;
        let once = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        let tag = epoll::EventData::new_u64(id | READY);
        if epoll::add(&self.epoll, &ours, tag, once).is_err() {
            self.let_go(id);
            return None;
        }
        Some(Waiting::Child(id, ours))
    }

    /// The network of the init that stands by, for a sandbox that has one of its own and has to be made itself; what is left
    /// of that ends.
    fn network_of_spare(&mut self, plan: &Plan) -> Option<OwnedFd> {
        if plan.network != Isolation::Own {
            return None;
        }
        let (id, network) = self.spare.take_network()?;
        self.let_go(id);
        Some(network)
    }

    /// Ends the init that stands by, which has a copy of what this process was when it was made.
    pub(super) fn renew_spare(&mut self) {
        if let Some(id) = self.spare.outdate() {
            self.let_go(id);
        }
    }
}
