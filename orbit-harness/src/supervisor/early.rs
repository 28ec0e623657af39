//! A supervisor that starts before it is asked for, as a fork: for a process of ours that will want one.
//!
//! A program that links Orbit has threads when its first sandbox starts, and memory that is nobody's business, so its
//! supervisor is a fresh execution of the same file ([`client`](super::client)). `cargo orbit run` has neither when its `main`
//! begins: a fork of it is spared what the dynamic loader does, needs no starter between, and settles while the command line
//! is read. The fork is made like an execution: its arguments and its environment are overwritten, all descriptors closed,
//! signals reset. What else lies in its memory, as in that of every init, no program in a sandbox can read.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{Mutex, PoisonError},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fs::{Mode, OFlags},
};

use super::{
    channel::Channel,
    client::{greet, hello},
    home,
    protocol::StartFailure,
    start::{self, NAMESPACES, provide},
};
use crate::{
    host::Host,
    sys::{self, SUPERVISOR_NAME, SingleThreaded},
};

/// A supervisor that is about to be ready, and its number; or what kept it from that.
type Begun = Result<(Channel, i32), StartFailure>;

/// With the process that started it: a fork of that has not.
static EARLY: Mutex<Option<(Begun, u32)>> = Mutex::new(None);

/// Has the supervisor of this process start, if this is its only thread.
///
/// Where it is not, or cannot be forked, the first sandbox starts one, and says what is wrong.
pub fn fork_supervisor() {
    // Nobody needs to know why not.
    let early = fork().ok().flatten();
    let early = early.map(|begun| (begun, std::process::id()));
    *EARLY.lock().unwrap_or_else(PoisonError::into_inner) = early;
}

/// The one that was started, for who asks first.
pub(super) fn take() -> Option<Begun> {
    let early = EARLY.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (begun, owner) = early?;
    (owner == std::process::id()).then_some(begun)
}

fn fork() -> io::Result<Option<Begun>> {
    let (control, theirs) = Channel::pair()?;
    let (to_supervisor, from_starter) = Channel::pair()?;
    let begun = eventfd(0, EventfdFlags::CLOEXEC)?;
    // Opened here: what is opened in the fork's own mount namespace would keep a mount of it.
    let nowhere = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let debug = std::env::var_os("ORBIT_DEBUG").is_some();
    let streams = Streams { nowhere, debug };
    let child = |single_threaded| begin(single_threaded, theirs, from_starter, &begun, &streams);
    let Some(pid) = sys::fork_as(SUPERVISOR_NAME, NAMESPACES, child)? else {
        return Ok(None);
    };
    let failed = match bring_up(pid, &begun, &control, &to_supervisor) {
        Ok(Ok(())) => return Ok(Some(Ok((control, pid)))),
        Ok(Err(failure)) => Ok(Some(Err(failure))),
        Err(error) => Err(error),
    };
    // It ends, as nobody is there any more.
    drop((control, to_supervisor));
    sys::wait_for(pid);
    failed
}

/// Does for the supervisor `pid` what its starter does for one that is executed. The outer error may not keep an execution from
/// starting one; the inner would.
fn bring_up(
    pid: i32,
    begun: &OwnedFd,
    control: &Channel,
    to_supervisor: &Channel,
) -> io::Result<Result<(), StartFailure>> {
    await_start(begun, control)?;
    let hello = hello(Host::get()?);
    greet(control, &hello)?;
    let provided = provide(pid, &hello, to_supervisor);
    if provided.is_err() && !control.is_open() {
        // It has ended by itself.
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(provided)
}

/// Waits until the fork runs, or has ended. The kernel often puts a fork behind its parent, on the same processor, where it
/// would start when the parent first waits for something, a millisecond later: so the parent waits at once, and is woken on
/// another. Not by a message: who is sent one over a socket is woken where the sender is, which the kernel takes to be about
/// to wait.
///
/// Source: Linux, net/unix/af_unix.c and net/core/sock.c, `sock_def_readable`; kernel/sched/fair.c, `WF_SYNC`.
fn await_start(begun: &OwnedFd, control: &Channel) -> io::Result<()> {
    let mut fds = [
        PollFd::new(begun, PollFlags::IN),
        PollFd::new(control, PollFlags::empty()),
    ];
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    if fds[0].revents().contains(PollFlags::IN) {
        Ok(())
    } else {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

/// The fork: becomes what a fresh execution would be.
fn begin(
    single_threaded: SingleThreaded,
    control: Channel,
    from_starter: Channel,
    begun: &OwnedFd,
    streams: &Streams,
) -> i32 {
    let mut keep = [&control, &from_starter].map(|channel| channel.as_fd().as_raw_fd());
    let left = rustix::io::write(begun, &1_u64.to_ne_bytes())
        .map_err(io::Error::from)
        .and_then(|_| streams.leave())
        .and_then(|()| sys::close_inherited(&mut keep));
    if let Err(error) = left {
        return start::code_of(&error);
    }
    sys::reset_signals();
    match start::greeting(&control) {
        Ok((hello, caller)) => {
            home::settle(single_threaded, control, &caller, from_starter, &hello)
        }
        Err(code) => code,
    }
}

/// The standard streams are the caller's, and go to `/dev/null`, but for where it is told what is wrong.
struct Streams {
    nowhere: OwnedFd,
    debug: bool,
}

impl Streams {
    fn leave(&self) -> io::Result<()> {
        rustix::stdio::dup2_stdin(&self.nowhere)?;
        rustix::stdio::dup2_stdout(&self.nowhere)?;
        if !self.debug {
            rustix::stdio::dup2_stderr(&self.nowhere)?;
        }
        Ok(())
    }
}
