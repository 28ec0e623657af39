//! A supervisor that starts before it is asked for, as a fork: for a process of ours that will want one.
//!
//! A program that links Orbit has threads when its first sandbox starts, and memory that is nobody's business, so its
//! supervisor is a fresh execution of the same file ([`client`](super::client)). `cargo orbit run` has neither when its `main`
//! begins: a fork of it is spared what the dynamic loader does, and starts while the command line is read. The fork is
//! made like an execution: its arguments and its environment are overwritten, all descriptors closed, signals reset. What else
//! lies in its memory, as in that of every init, no program in a sandbox can read.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{Mutex, PoisonError},
};

use rustix::fs::{Mode, OFlags};

use super::{channel::Channel, client::greet, start};
use crate::{
    host::Host,
    sys::{self, SUPERVISOR_NAME, SingleThreaded},
};

/// A starter that has been greeted.
pub(super) struct Early {
    pub(super) control: Channel,
    pub(super) starter: i32,
    /// A fork of this process has not started it.
    owner: u32,
}

static EARLY: Mutex<Option<Early>> = Mutex::new(None);

/// Has the supervisor of this process start, if this is its only thread.
///
/// Where it is not, or something fails, the first sandbox starts one, and says what is wrong.
pub fn fork_supervisor() {
    // Nobody needs to know why not.
    let early = fork().ok().flatten();
    *EARLY.lock().unwrap_or_else(PoisonError::into_inner) = early;
}

/// The one that was started, for who asks first.
pub(super) fn take() -> Option<Early> {
    let early = EARLY.lock().unwrap_or_else(PoisonError::into_inner).take();
    early.filter(|early| early.owner == std::process::id())
}

fn fork() -> io::Result<Option<Early>> {
    let (control, theirs) = Channel::pair()?;
    let debug = std::env::var_os("ORBIT_DEBUG").is_some();
    let child = |single_threaded| begin(single_threaded, &theirs, debug);
    let Some(starter) = sys::fork_as(SUPERVISOR_NAME, child)? else {
        return Ok(None);
    };
    drop(theirs);
    if let Err(error) = Host::get().and_then(|host| greet(&control, host)) {
        // It ends, as nobody is there any more.
        drop(control);
        sys::wait_end(starter);
        return Err(error);
    }
    Ok(Some(Early {
        control,
        starter,
        owner: std::process::id(),
    }))
}

/// The fork: becomes what a fresh execution would be.
fn begin(single_threaded: SingleThreaded, control: &Channel, debug: bool) -> i32 {
    let closed = sys::close_inherited(&mut [control.as_fd().as_raw_fd()]);
    match closed.and_then(|()| leave_streams(debug)) {
        Ok(()) => start::run_on(single_threaded, control),
        Err(error) => start::code_of(&error),
    }
}

/// The standard streams are the caller's, and go to `/dev/null`, but for where it is told what is wrong.
fn leave_streams(debug: bool) -> io::Result<()> {
    let nowhere = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&nowhere)?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    if !debug {
        rustix::stdio::dup2_stderr(&nowhere)?;
    }
    Ok(())
}
