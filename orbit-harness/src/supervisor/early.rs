//! A supervisor that starts before it is asked for, as a fork: for a process of ours that will want one.
//!
//! A program that links Orbit has threads when its first sandbox starts, and memory that is nobody's business, so its
//! supervisor is a fresh execution of the same file ([`client`](super::client)). `cargo orbit run` has neither when its `main`
//! begins: a fork of it is spared what the dynamic loader does, which is a millisecond, and starts while the command line is
//! read. The fork then knows of this process what an execution would know: no words, no variables, no streams.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{Mutex, PoisonError},
};

use rustix::fs::{Mode, OFlags};

use super::{channel::Channel, client::greet, start};
use crate::{
    host::Host,
    sys::{self, Fork, SUPERVISOR_NAME, SingleThreaded},
};

/// A starter that has been greeted.
pub(super) struct Early {
    pub(super) control: Channel,
    pub(super) starter: i32,
}

static EARLY: Mutex<Option<Early>> = Mutex::new(None);

/// Has the supervisor of this process start, if it has one thread, and has not started another since.
///
/// Where that is not so, or something fails, nothing has happened: the first sandbox starts one, and says what is wrong.
pub fn fork_supervisor() {
    if let Some(single_threaded) = SingleThreaded::find_out() {
        *EARLY.lock().unwrap_or_else(PoisonError::into_inner) = fork(single_threaded);
    }
}

/// The one that was started, for who asks first.
pub(super) fn take() -> Option<Early> {
    EARLY.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn fork(single_threaded: SingleThreaded) -> Option<Early> {
    let (control, theirs) = Channel::pair().ok()?;
    let pid = match single_threaded.fork(0, None).ok()? {
        Fork::Child => {
            drop(control);
            sys::exit_now(begin(single_threaded, &theirs));
        }
        Fork::Parent { pid, .. } => pid,
    };
    drop(theirs);
    let greeted = Host::get().and_then(|host| greet(&control, host));
    if greeted.is_err() {
        // It ends, as nobody is there any more.
        drop(control);
        sys::wait_end(pid);
        return None;
    }
    Some(Early {
        control,
        starter: pid,
    })
}

/// The fork: becomes what a fresh execution would be.
fn begin(single_threaded: SingleThreaded, control: &Channel) -> i32 {
    let debug = std::env::var_os("ORBIT_DEBUG").is_some();
    let forgotten = sys::forget_words(single_threaded, SUPERVISOR_NAME);
    let closed = sys::close_inherited(&mut [control.as_fd().as_raw_fd()]);
    match closed.and_then(|()| leave_streams(debug)) {
        Ok(()) if forgotten => start::run_on(single_threaded, control),
        Ok(()) => libc::ENOSYS,
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
