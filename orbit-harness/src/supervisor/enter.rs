//! A further program in a running sandbox: a fork of the supervisor that enters it, starts the program there, and sees
//! to it until it ends.
//!
//! ```text
//! supervisor ──fork──> this process, in the sandbox's namespaces ──fork──> the program, in its control group
//! ```
//!
//! The sandbox's init has let go of every privilege that this takes, and need not be asked for more than its
//! namespaces. This process stays outside of the sandbox's pid namespace and control group: nothing inside can see or
//! signal it. The program is made ready exactly as the first one is: ids, capabilities (none inheritable, which was
//! CVE-2022-27650), no_new_privs, seccomp.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use nix::sched::{CloneFlags, setns};
use rustix::{
    event::{PollFd, PollFlags},
    fs::{Mode, OFlags},
};
use serde::{Deserialize, Serialize};

use super::{
    channel::Channel,
    init,
    make::TerminalPair,
    program::{Common, Ready, Shown},
    protocol::{Cause, Control, ExecEvent, ExecOrder, Own},
};
use crate::{
    outcome::{Status, Usage},
    plan::ProgramPlan,
    security::seccomp::bpf::SockFilter,
    sys::{self, Fork, SingleThreaded},
};

/// What this process gets from the supervisor, whose copy it is.
pub(super) struct Given<'a> {
    /// To who asked: what happens, and what is to be done. Its end is the program's.
    pub(super) channel: Channel,
    pub(super) stdio: Vec<OwnedFd>,
    pub(super) cgroup: Option<OwnedFd>,
    /// As [`Control::Handles`] orders them, without the root. Empty where the program is process 1.
    pub(super) namespaces: Vec<OwnedFd>,
    /// Process 1 of the sandbox.
    pub(super) init: BorrowedFd<'a>,
    pub(super) common: &'a Common,
    pub(super) filter: &'a [SockFilter],
}

/// What the child says to its parent until it executes the program. Then the channel closes.
#[derive(Serialize, Deserialize)]
enum Birth {
    /// Descriptor: the caller's side of its terminal.
    Terminal,
    Failed(Cause),
}

/// Runs one program to its end.
pub(super) fn run(single_threaded: SingleThreaded, order: &ExecOrder, given: Given<'_>) -> ! {
    let own = given.stdio.iter().chain(&given.cgroup);
    let mut keep: Vec<_> = own
        .chain(&given.namespaces)
        .map(AsRawFd::as_raw_fd)
        .collect();
    keep.extend([given.channel.as_fd().as_raw_fd(), given.init.as_raw_fd()]);
    keep.extend(given.common.descriptor());
    // Without one, who asked sees the channel close.
    let Ok(channel) = given.channel.try_clone() else {
        sys::exit_now(1)
    };
    keep.push(channel.as_fd().as_raw_fd());
    let init = given.init;
    let ran = sys::close_inherited(&mut keep)
        .map_err(|error| cause(&error))
        .and_then(|()| start_and_watch(single_threaded, order, given));
    if let Err(mut cause) = ran {
        if has_ended(init, &cause) {
            cause = Cause::Errno(libc::ESRCH);
        }
        // Who asked may be gone.
        let _ = channel.send(&ExecEvent::Failed(cause), &[]);
    }
    sys::exit_now(0)
}

/// Whether the sandbox has, which then is why something failed.
fn has_ended(init: BorrowedFd<'_>, cause: &Cause) -> bool {
    /// What the kernel answers to a fork into a pid namespace that is dying: a moment later it is dead.
    const DYING: Cause = Cause::Errno(libc::ENOMEM);
    let patience = rustix::event::Timespec {
        tv_sec: i64::from(*cause == DYING),
        tv_nsec: 0,
    };
    let mut polled = [PollFd::from_borrowed_fd(init, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&patience)).is_ok_and(|ready| ready > 0)
}

fn cause(error: &io::Error) -> Cause {
    Cause::Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

fn start_and_watch(
    single_threaded: SingleThreaded,
    order: &ExecOrder,
    given: Given<'_>,
) -> Result<(), Cause> {
    enter(&given, order.own).map_err(|errno| Cause::Errno(errno as i32))?;
    // By the clock that it will be compared with.
    let started = Instant::now();
    let (birth, theirs) = Channel::pair().map_err(|error| cause(&error))?;
    let born_in = given.cgroup.as_ref().map(|fd| fd.as_fd());
    let (pid, pidfd) = match single_threaded.fork(0, born_in) {
        Ok(Fork::Child) => {
            drop(birth);
            let cause = become_program(single_threaded, &order.program, given, &theirs);
            let _ = theirs.send(&Birth::Failed(cause), &[]);
            sys::exit_now(127)
        }
        Ok(Fork::Parent { pid, pidfd }) => (pid, pidfd),
        Err(error) => return Err(cause(&error)),
    };
    let Given { channel, stdio, .. } = given;
    // Its streams are its own: who reads them sees their end when the program closes them.
    drop((theirs, stdio));
    let mut terminal = None;
    loop {
        match birth.recv::<Birth>() {
            Ok(Some((Birth::Terminal, mut fds))) => terminal = fds.pop(),
            Ok(Some((Birth::Failed(cause), _))) => {
                let _ = sys::wait_any(true);
                return Err(cause);
            }
            Ok(None) | Err(_) => break,
        }
    }
    let fds: Vec<_> = [Some(&pidfd), terminal.as_ref()]
        .into_iter()
        .flatten()
        .map(|fd| fd.as_fd())
        .collect();
    let _ = channel.send(&ExecEvent::Started, &fds);
    drop(terminal);
    watch(&channel, pid, &pidfd, started);
    Ok(())
}

/// Takes this process into the sandbox's namespaces; what it forks from now on is in its pid namespace too.
fn enter(given: &Given<'_>, own: Own) -> nix::Result<()> {
    match &given.namespaces[..] {
        [] => {
            let mut all = CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWNS;
            // Those of the host nobody may enter who is not root there.
            all.set(CloneFlags::CLONE_NEWNET, own.network);
            all.set(init::NEW_TIME, own.clock);
            setns(given.init, all)
        }
        [mount, pid, ipc, uts, _, others @ ..] => {
            setns(pid, CloneFlags::CLONE_NEWPID)?;
            setns(ipc, CloneFlags::CLONE_NEWIPC)?;
            setns(uts, CloneFlags::CLONE_NEWUTS)?;
            for other in others {
                setns(other, CloneFlags::empty())?;
            }
            // Last: from then on, every path is the sandbox's.
            setns(mount, CloneFlags::CLONE_NEWNS)
        }
        _ => Err(nix::Error::EINVAL),
    }
}

/// The child: inside of the sandbox, and about to be the program.
fn become_program(
    single_threaded: SingleThreaded,
    program: &ProgramPlan,
    given: Given<'_>,
    parent: &Channel,
) -> Cause {
    // Only here: a process can be born into a control group that it sees, and whoever entered sees none but the
    // sandbox's.
    let entered = match given.namespaces.get(4) {
        Some(cgroup) => setns(cgroup, CloneFlags::CLONE_NEWCGROUP),
        None => setns(given.init, CloneFlags::CLONE_NEWCGROUP),
    };
    if let Err(errno) = entered {
        return Cause::Errno(errno as i32);
    }
    let terminal = match program.tty.then(open_terminal).transpose() {
        Ok(terminal) => terminal,
        Err(errno) => return errno.into(),
    };
    if let Some(pair) = &terminal
        && let Err(error) = parent.send(&Birth::Terminal, &[pair.caller_side.as_fd()])
    {
        return cause(&error);
    }
    let shown = Shown {
        terminal,
        ..Shown::default()
    };
    match Ready::new(program, given.stdio, shown, given.common, given.filter) {
        Ok(ready) => Cause::Exec(ready.execute(single_threaded)),
        Err(cause) => cause,
    }
}

fn open_terminal() -> rustix::io::Result<TerminalPair> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    TerminalPair::open(&rustix::fs::open("/dev", flags, Mode::empty())?)
}

/// Signals the program as it is asked to, and says how it ended.
fn watch(channel: &Channel, pid: i32, pidfd: &OwnedFd, started: Instant) {
    let mut is_asked = true;
    loop {
        let mut polled = vec![PollFd::new(pidfd, PollFlags::IN)];
        if is_asked {
            polled.push(PollFd::new(channel, PollFlags::IN));
        }
        // Interrupted or not, both are looked at below.
        let _ = rustix::event::poll(&mut polled, None);
        if !polled[0].revents().is_empty() {
            break;
        }
        if polled.get(1).is_some_and(|it| !it.revents().is_empty()) {
            match channel.recv::<Control>() {
                Ok(Some((Control::Signal(libc::SIGKILL), _))) => kill(pid),
                Ok(Some((Control::Signal(number), _))) => drop(sys::signal_child(pid, number)),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    is_asked = false;
                    kill(pid);
                }
            }
        }
    }
    if let Ok(Some(waited)) = sys::wait_any(true) {
        let exited = ExecEvent::Exited {
            status: Status::from(&waited),
            usage: Usage::from(&waited),
            wall_time: started.elapsed(),
        };
        let _ = channel.send(&exited, &[]);
    }
}

/// Kills the program, and what it started and did not let go of: the group of which it is the first process.
fn kill(pid: i32) {
    // ESRCH, EPERM: it made no group of its own yet, or nothing is left of it.
    let _ = sys::signal_child(-pid, libc::SIGKILL);
    let _ = sys::signal_child(pid, libc::SIGKILL);
}
