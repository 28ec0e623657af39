//! The supervisor's loop: launches what it is asked for, ends what was let go, reaps what ended.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use rustix::event::{Timespec, epoll};

use super::{
    ahead::Pool,
    broker,
    channel::Channel,
    children::{Child, Children, Role},
    enter, files,
    filters::Filters,
    host_mounts,
    make::SharedLayers,
    program::Common,
    protocol::{
        Answer, Cause, Event, ExecEvent, ExecOrder, Failure, FileAnswer, FileFault, FileJob,
        Request,
    },
    spare::Spare,
};
use crate::{
    outcome::{Status, Usage},
    sys::{self, Fork, SingleThreaded, Waited},
};

/// What the loop waits for; sandboxes and workers are told apart by a number that counts up.
const CONTROL: u64 = 0;
const CALLER: u64 = 1;
const FIRST_ID: u64 = 2;

/// Set in the tag of a sandbox's pidfd, clear in that of its event channel.
const PROCESS: u64 = 1 << 63;

/// Set in the tag of the channel on which a sandbox that is made ahead says that it is ready.
pub(super) const READY: u64 = 1 << 62;

/// How often orphans are looked for where there may be some: nothing tells of their end.
const LOOK_AROUND: Duration = Duration::from_millis(100);

pub(super) struct Supervisor {
    pub(super) single_threaded: SingleThreaded,
    control: Channel,
    pub(super) common: Common,
    pub(super) epoll: OwnedFd,
    pub(super) children: Children,
    /// Inits that ended while somebody was still at work in their sandboxes.
    ended: HashMap<u64, (Child, Waited)>,
    pub(super) filters: Filters,
    next_id: u64,
    /// Sandboxes of which a worker was killed, and may have left a program. That is this process's child then, as it is
    /// process 1 of the worker's namespace; and the sandbox is not gone before it is reaped.
    bereaved: HashSet<u64>,
    pub(super) pool: Pool,
    pub(super) spare: Spare,
    pub(super) shared: SharedLayers,
}

/// What to wait with for requests, and for the end of the test process `caller`.
pub(super) fn watch(control: &Channel, caller: &OwnedFd) -> io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let watch = |fd: BorrowedFd<'_>, tag, events| {
        epoll::add(&epoll, fd, epoll::EventData::new_u64(tag), events)
    };
    watch(control.as_fd(), CONTROL, epoll::EventFlags::IN)?;
    watch(caller.as_fd(), CALLER, epoll::EventFlags::IN)?;
    Ok(epoll)
}

/// Serves until the test process is gone. What then still runs ends with this process, which is process 1.
pub(super) fn serve(
    single_threaded: SingleThreaded,
    control: Channel,
    epoll: OwnedFd,
    common: Common,
    filters: Filters,
) {
    // There is nobody to tell: the test process sees the control channel close, and says so.
    let _ = try_serve(single_threaded, control, epoll, common, filters);
}

fn try_serve(
    single_threaded: SingleThreaded,
    control: Channel,
    epoll: OwnedFd,
    common: Common,
    filters: Filters,
) -> io::Result<()> {
    let (children, ended) = Default::default();
    let mut supervisor = Supervisor {
        single_threaded,
        control,
        common,
        epoll,
        children,
        ended,
        filters,
        next_id: FIRST_ID,
        bereaved: HashSet::new(),
        pool: Pool::default(),
        spare: Spare::default(),
        shared: SharedLayers::default(),
    };
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        let next_ahead = supervisor.pool.next();
        // What is made ahead is made when there is nothing else to do.
        let rest = next_ahead.as_ref().map(|order| order.after);
        let rest = rest.or(supervisor.spare.is_due_after());
        let timeout = supervisor.until_something_is_due(rest);
        match epoll::wait(
            &supervisor.epoll,
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64() {
                CALLER => return Ok(()),
                CONTROL => {
                    if !supervisor.take_request()? {
                        return Ok(());
                    }
                }
                tag if tag & PROCESS != 0 => supervisor.reap(tag & !PROCESS)?,
                tag if tag & READY != 0 => {
                    supervisor.spare.hear(tag & !READY);
                    supervisor.pool.hear(tag & !READY);
                }
                id => supervisor.let_go(id),
            }
        }
        supervisor.reap_orphans()?;
        supervisor.children.end_timed_out();
        if !events.is_empty() {
            continue;
        }
        if let Some(order) = next_ahead {
            supervisor.make_ahead(&order);
        } else if supervisor.spare.is_due_after().is_some() {
            supervisor.make_spare();
        }
    }
}

impl Supervisor {
    /// Whether the test process is still there.
    fn take_request(&mut self) -> io::Result<bool> {
        let (request, fds) = match self.control.recv_request::<Request>() {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(false),
            // A message whose descriptors did not fit, or that does not parse: its sender was told, or sees its channel
            // close. What nobody has asked for takes no room from the next.
            Err(_) => {
                self.end_all_ahead();
                return Ok(true);
            }
        };
        match request {
            Request::Launch { key, launch } => self.launch(key, &launch, fds)?,
            Request::Exec(order) => self.exec(&order, fds)?,
            Request::Files {
                sandbox,
                has_root,
                job,
            } => self.files(sandbox, has_root, job, fds)?,
            Request::Namespace => give_namespace(fds),
            Request::HostMounts(paths) => {
                attach_mounts(&paths, fds);
                self.renew_spare();
            }
            Request::Broker => self.start_broker(fds)?,
            Request::Resize(room) => {
                self.work(fds, |mut fds| super::disk::resize(fds.pop(), room))?;
            }
            Request::Changes(writable) => {
                self.work(fds, |mut fds| super::written::changes(&writable, fds.pop()))?;
            }
            #[cfg(feature = "images")]
            Request::Seal {
                writable,
                destination,
            } => {
                self.work(fds, |mut fds| {
                    super::written::seal(&writable, &destination, fds.pop())
                })?;
            }
            #[cfg(feature = "images")]
            Request::Export { layer } => {
                self.work(fds, |mut fds| super::written::export(&layer, fds.pop()))?;
            }
            #[cfg(feature = "images")]
            Request::Unpack { order, destination } => {
                self.work(fds, |mut fds| {
                    super::work::unpack(order, &destination, fds.pop())
                })?;
            }
            #[cfg(feature = "images")]
            Request::RemoveTree { parent, name } => {
                self.work(fds, |_| super::work::remove(&parent, &name))?;
            }
        }
        Ok(true)
    }

    /// Starts a further program in a sandbox.
    fn exec(&mut self, order: &ExecOrder, mut fds: Vec<OwnedFd>) -> io::Result<()> {
        let first_namespace = 4 + usize::from(order.in_cgroup);
        if fds.len() < first_namespace {
            return Ok(()); // As an invalid message.
        }
        let namespaces = fds.split_off(first_namespace);
        let cgroup = if order.in_cgroup { fds.pop() } else { None };
        let stdio = fds.split_off(1);
        let channel = Channel::from_fd(fds.remove(0));
        let fail = |cause| {
            // Who asked may be gone.
            let _ = channel.send(&ExecEvent::Failed(cause), &[]);
            Ok(())
        };
        let Some((id, init)) = self.children.init_of(order.sandbox) else {
            return fail(Cause::Errno(libc::ESRCH));
        };
        let filter = match self.filters.of(order.program.filter()) {
            Ok(filter) => filter,
            Err(error) => return fail(Cause::Filter(error.to_string())),
        };
        match self.single_threaded.fork(0, None) {
            Ok(Fork::Child) => {
                let given = enter::Given {
                    channel,
                    stdio,
                    cgroup,
                    namespaces,
                    init: init.pidfd.as_fd(),
                    common: &self.common,
                    filter,
                };
                enter::run(self.single_threaded, order, given)
            }
            Ok(Fork::Parent { pid, pidfd }) => {
                self.adopt(Child::unwatched(pid, pidfd, Role::Exec { sandbox: id }));
                Ok(())
            }
            Err(error) => fail(Cause::Errno(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }

    /// Reads or writes files of a sandbox.
    fn files(
        &mut self,
        sandbox: u64,
        has_root: bool,
        job: FileJob,
        mut fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        if fds.len() < 1 + usize::from(has_root) {
            return Ok(()); // As an invalid message.
        }
        let reply = Channel::from_fd(fds.remove(0));
        let root = has_root.then(|| fds.remove(0));
        let content = fds.pop();
        let fail = |errno| {
            let _ = reply.send(&FileAnswer::Err(FileFault::Errno(errno, None)), &[]);
            Ok(())
        };
        let Some((id, init)) = self.children.init_of(sandbox) else {
            return fail(libc::ESRCH);
        };
        match self.single_threaded.fork(0, None) {
            Ok(Fork::Child) => {
                let init = init.pidfd.as_fd();
                let mut keep = vec![reply.as_fd().as_raw_fd(), init.as_raw_fd()];
                keep.extend(root.iter().chain(&content).map(AsRawFd::as_raw_fd));
                if sys::close_inherited(&mut keep).is_ok() {
                    let root = root.map_or(files::Root::Of(init), files::Root::Given);
                    files::run(&reply, root, job, content);
                }
                sys::exit_now(0)
            }
            Ok(Fork::Parent { pid, pidfd }) => {
                self.adopt(Child::unwatched(pid, pidfd, Role::Files { sandbox: id }));
                Ok(())
            }
            Err(error) => fail(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    /// Forks the broker, into a network namespace of its own.
    fn start_broker(&mut self, mut fds: Vec<OwnedFd>) -> io::Result<()> {
        let Some(control) = fds.pop().map(Channel::from_fd) else {
            return Ok(()); // As an invalid message.
        };
        match self.single_threaded.fork(libc::CLONE_NEWNET, None) {
            Ok(Fork::Child) => {
                if sys::close_inherited(&mut [control.as_fd().as_raw_fd()]).is_ok() {
                    broker::serve(control);
                }
                sys::exit_now(0)
            }
            Ok(Fork::Parent { pid, pidfd }) => {
                self.adopt(Child::unwatched(pid, pidfd, Role::Other));
                Ok(())
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                // Who asked may be gone.
                let _ = control.send(&Err::<(), i32>(errno), &[]);
                Ok(())
            }
        }
    }

    /// Runs `task` in a process of its own, with the first of `fds` as its reply channel.
    fn work<T: serde::Serialize>(
        &mut self,
        mut fds: Vec<OwnedFd>,
        task: impl FnOnce(Vec<OwnedFd>) -> T,
    ) -> io::Result<()> {
        if fds.is_empty() {
            return Ok(());
        }
        let rest = fds.split_off(1);
        let reply = Channel::from_fd(fds.remove(0));
        // Where no process can be made the reply channel closes unanswered, and the caller says so.
        match self.single_threaded.fork(0, None) {
            Ok(Fork::Child) => {
                let mut keep: Vec<_> = rest.iter().map(AsRawFd::as_raw_fd).collect();
                keep.push(reply.as_fd().as_raw_fd());
                // It says what failed; and no program comes of it, which would have it so too.
                sys::survive_file_size_limit();
                if sys::close_inherited(&mut keep).is_ok() {
                    let _ = reply.send(&task(rest), &[]);
                }
                sys::exit_now(0)
            }
            Ok(Fork::Parent { pid, pidfd }) => {
                self.adopt(Child::unwatched(pid, pidfd, Role::Other));
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// Watches a new child. One that cannot be watched is ended, with its channels: that is its caller's error, and no
    /// matter of the other sandboxes.
    pub(super) fn adopt(&mut self, child: Child) -> Option<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let watch = |fd: BorrowedFd<'_>, tag, events| {
            epoll::add(&self.epoll, fd, epoll::EventData::new_u64(tag), events)
        };
        let watched =
            watch(child.pidfd.as_fd(), id | PROCESS, epoll::EventFlags::IN).and_then(|()| {
                match &child.events {
                    // The init reads what arrives; only the end matters here.
                    Some(events) => watch(events.as_fd(), id, epoll::EventFlags::RDHUP),
                    None => Ok(()),
                }
            });
        if let Err(errno) = watched {
            child.kill();
            // Nothing would tell of its end.
            sys::wait_for(child.pid);
            if let Some(events) = &child.events {
                say_failed(events, &errno.into());
            }
            return None;
        }
        self.children.insert(id, child);
        Some(id)
    }

    /// The test process let a sandbox go: kill its process 1, and with it all.
    pub(super) fn let_go(&mut self, id: u64) {
        if let Some(child) = self.children.get(id) {
            child.kill();
            if let Some(events) = &child.events {
                let _ = epoll::delete(&self.epoll, events);
            }
        }
    }

    /// Until the next child's time is over, and not longer than `rest`.
    fn until_something_is_due(&self, rest: Option<Duration>) -> Option<Timespec> {
        let orphans = (!self.bereaved.is_empty()).then_some(LOOK_AROUND);
        let due = [self.children.time_left(), orphans, rest];
        let left = due.into_iter().flatten().min()?;
        Some(Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        }))
    }

    /// Takes the end of the child `id`.
    ///
    /// It alone is asked for: the kernel, asked for any, looks at all of them.
    fn reap(&mut self, id: u64) -> io::Result<()> {
        let Some(child) = self.children.get(id) else {
            return Ok(());
        };
        if let Some(waited) = sys::wait_child(child.pid)? {
            self.ended(id, waited);
        }
        Ok(())
    }

    /// Takes the end of whoever has ended: of what killed workers left, too.
    fn reap_orphans(&mut self) -> io::Result<()> {
        while !self.bereaved.is_empty() {
            match sys::wait_any(false) {
                Ok(Some(waited)) => {
                    if let Some(id) = self.children.of_pid(waited.pid) {
                        self.ended(id, waited);
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn ended(&mut self, id: u64, waited: Waited) {
        if let Some(child) = self.children.remove(id) {
            self.pool.lose(id);
            self.spare.lose(id);
            if matches!(child.role, Role::Init { .. }) {
                self.spare.ends();
            }
            let sandbox = child.role.sandbox();
            self.bereaved
                .extend(sandbox.filter(|_| waited.signal.is_some()));
            self.take_end(id, child, waited);
        }
    }

    /// Says of a sandbox that it is gone once its process 1 is, nobody is at work in it any more, and the program that
    /// led out of it has ended: until then its network is there.
    fn take_end(&mut self, id: u64, child: Child, waited: Waited) {
        if let Some(sandbox) = child.role.sandbox() {
            if !self.is_entered(sandbox)
                && let Some((init, waited)) = self.ended.remove(&sandbox)
            {
                self.bereaved.remove(&sandbox);
                init.report(&waited);
            }
        } else if self.is_entered(id) {
            // All programs inside are dead, so those who see to them end. Who reads or writes files may wait for
            // a filesystem that one of those programs served, and the way out does not end by itself.
            for worker in self.children.workers(id) {
                if matches!(worker.role, Role::Files { .. } | Role::WayOut { .. }) {
                    worker.kill();
                }
            }
            let _ = epoll::delete(&self.epoll, &child.pidfd);
            if let Some(events) = &child.events {
                // Where it was let go before, it is not watched any more.
                let _ = epoll::delete(&self.epoll, events);
            }
            self.ended.insert(id, (child, waited));
        } else {
            self.bereaved.remove(&id);
            child.report(&waited);
        }
    }

    fn is_entered(&self, sandbox: u64) -> bool {
        self.children.workers(sandbox).next().is_some()
    }
}

/// Gives the user namespace of all sandboxes.
fn give_namespace(mut fds: Vec<OwnedFd>) {
    let Some(reply) = fds.pop().map(Channel::from_fd) else {
        return; // As an invalid message.
    };
    // Who asked may be gone.
    let _ = match std::fs::File::open("/proc/self/ns/user") {
        Ok(namespace) => reply.send(&Answer::Ok(()), &[namespace.as_fd()]),
        Err(error) => reply.send(&Answer::Err(error.raw_os_error().unwrap_or(0)), &[]),
    };
}

fn attach_mounts(paths: &[PathBuf], mut fds: Vec<OwnedFd>) {
    if fds.is_empty() {
        return; // As an invalid message.
    }
    let mounts = fds.split_off(1);
    let attached = host_mounts::attach_all(paths, &mounts);
    // Who asked may be gone.
    let _ = Channel::from_fd(fds.remove(0)).send(&attached, &[]);
}

/// Says that not even the namespaces of a sandbox could be made.
pub(super) fn say_failed(events: &Channel, error: &io::Error) {
    let cause = Cause::Errno(error.raw_os_error().unwrap_or(0));
    // Who asked may be gone.
    let _ = events.send(&Event::Failed(Failure { line: 0, cause }), &[]);
}

impl From<&Waited> for Usage {
    fn from(waited: &Waited) -> Self {
        Self {
            cpu_user: waited.cpu_user,
            cpu_system: waited.cpu_system,
            max_rss_bytes: waited.max_rss_bytes,
            ..Self::default()
        }
    }
}

impl From<&Waited> for Status {
    fn from(waited: &Waited) -> Self {
        match waited.signal {
            Some(signal) => Self::Signaled(signal),
            None => Self::Exited(waited.code),
        }
    }
}
