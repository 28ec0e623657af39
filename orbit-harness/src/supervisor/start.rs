//! The starter: from a fresh execution of the test binary to a supervisor in its own namespaces.
//!
//! It runs with the caller's own privileges, writes the id maps that a process cannot write for itself, and,
//! as root, hands the supervisor the host's filesystems seen through the container's id map.

use std::{
    ffi::c_int,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{
    channel::Channel,
    home,
    host_mounts::{self, Share},
    protocol::{Hello, Mapping, StartFailure, StartStep, Welcome},
};
use crate::{
    security::idmap::IdMap,
    sys::{self, Fork, SingleThreaded},
};

/// What the starter tells the new supervisor, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Handover {
    /// Mounts of the host, seen through the id map: where each belongs. The very first is that of the root, to stand by
    /// itself. Descriptors: the mounts.
    HostMounts(Vec<PathBuf>),
    /// The maps are written and nothing more will come; the supervisor's number, as its parent knows it.
    Mapped { pid: i32 },
}

/// The main function of a process that was started as a supervisor. Its standard input is the control channel.
pub(crate) fn run(single_threaded: SingleThreaded) -> i32 {
    match take_standard_input() {
        Ok(input) => run_on(single_threaded, &Channel::from_fd(input)),
        Err(error) => code_of(&error),
    }
}

/// Waits to be greeted, with a pidfd of the caller: else gives the exit code.
pub(super) fn greeting(control: &Channel) -> Result<(Hello, OwnedFd), i32> {
    match control.recv::<Hello>() {
        Ok(Some((hello, mut fds))) => Ok((hello, fds.pop().ok_or(NO_FAULT)?)),
        // Nobody is there any more.
        Ok(None) => Err(NO_FAULT),
        Err(error) => Err(code_of(&error)),
    }
}

fn run_on(single_threaded: SingleThreaded, control: &Channel) -> i32 {
    sys::reset_signals();
    let (hello, caller) = match greeting(control) {
        Ok(greeted) => greeted,
        Err(code) => return code,
    };
    match start(single_threaded, control, &caller, &hello) {
        Ok(()) => 0,
        Err(failure) => {
            // Nobody is left to tell where the caller is gone.
            let _ = control.send(&Welcome::Failed(failure), &[]);
            1
        }
    }
}

/// What the starter exits with where its exit code says nothing.
const NO_FAULT: i32 = 255;

/// How the starter says what is wrong where it has no channel to say it on: the error's number, as its exit code.
pub(super) fn code_of(error: &io::Error) -> i32 {
    let errno = error.raw_os_error();
    errno
        .filter(|it| (1..NO_FAULT).contains(it))
        .unwrap_or(NO_FAULT)
}

/// What a starter that ended with `code`, and had said nothing, meant by that.
pub(super) fn fault_of(code: i32) -> Option<io::Error> {
    // 1 is what it ends with after it has said what is wrong.
    (2..NO_FAULT)
        .contains(&code)
        .then(|| io::Error::from_raw_os_error(code))
}

/// What standard input is, as a descriptor that is closed on exec; 0 goes on as `/dev/null`.
fn take_standard_input() -> io::Result<OwnedFd> {
    let taken = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(fs::File::open("/dev/null")?)?;
    Ok(taken)
}

fn start(
    single_threaded: SingleThreaded,
    control: &Channel,
    caller: &OwnedFd,
    hello: &Hello,
) -> Result<(), StartFailure> {
    let fail = |step| move |error: io::Error| StartFailure::new(step, &error);
    let (to_supervisor, from_starter) = Channel::pair().map_err(fail(StartStep::Namespaces))?;
    let forked = single_threaded
        .fork_sibling(NAMESPACES)
        .map_err(fail(StartStep::Namespaces))?;
    let pid = match forked {
        Fork::Child => {
            drop(to_supervisor);
            let control = control.try_clone().unwrap_or_else(|error| {
                let failure = StartFailure::new(StartStep::Isolate, &error);
                let _ = control.send(&Welcome::Failed(failure), &[]);
                sys::exit_now(1)
            });
            home::settle(single_threaded, control, caller, from_starter, hello);
        }
        Fork::Parent { pid, .. } => pid,
    };
    drop(from_starter);
    provide(pid, hello, &to_supervisor)
}

/// The namespaces of a supervisor, below which are those of all its sandboxes.
pub(super) const NAMESPACES: c_int = libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS;

/// Gives the new supervisor `pid` what it cannot have by itself.
pub(super) fn provide(
    pid: i32,
    hello: &Hello,
    to_supervisor: &Channel,
) -> Result<(), StartFailure> {
    write_maps(pid, hello)?;
    if hello.mapping == Mapping::Privileged {
        hand_over_host(pid, to_supervisor)?;
    }
    to_supervisor
        .send(&Handover::Mapped { pid }, &[])
        .map_err(|error| StartFailure::new(StartStep::IdMap, &error))
}

fn write_maps(pid: i32, hello: &Hello) -> Result<(), StartFailure> {
    let fail = |error: io::Error| StartFailure::new(StartStep::IdMap, &error);
    match hello.mapping {
        Mapping::Helpers => {
            // At the same time: together they take twice as long as the rest of a start.
            let uids = start_helper("newuidmap", pid, &hello.ids.uid);
            let gids = start_helper("newgidmap", pid, &hello.ids.gid);
            let (uids, gids) = (uids.and_then(end_helper), gids.and_then(end_helper));
            uids.and(gids)
        }
        Mapping::Single => {
            // A process that could leave its groups could escape a group's denial (CVE-2014-8989).
            fs::write(format!("/proc/{pid}/setgroups"), "deny").map_err(fail)?;
            home::write_maps(&format!("/proc/{pid}"), &hello.ids).map_err(fail)
        }
        Mapping::Privileged => home::write_maps(&format!("/proc/{pid}"), &hello.ids).map_err(fail),
    }
}

/// A helper that runs, and what it is called.
type Helper = (&'static str, Child);

fn start_helper(program: &'static str, pid: i32, map: &IdMap) -> Result<Helper, StartFailure> {
    let started = Command::new(program)
        .args(map.helper_args(pid))
        // Where the system's programs are, whatever the caller's environment says.
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    match started {
        Ok(child) => Ok((program, child)),
        Err(error) => Err(helper_failure(program.to_owned(), &error)),
    }
}

fn end_helper((program, child): Helper) -> Result<(), StartFailure> {
    let output = child
        .wait_with_output()
        .map_err(|error| helper_failure(program.to_owned(), &error))?;
    if output.status.success() {
        return Ok(());
    }
    let refused = io::Error::from_raw_os_error(libc::EPERM);
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(helper_failure(said, &refused))
}

fn helper_failure(detail: String, error: &io::Error) -> StartFailure {
    StartFailure {
        detail,
        ..StartFailure::new(StartStep::IdMap, error)
    }
}

/// Sends those mounts of the host that every supervisor gets.
fn hand_over_host(pid: i32, to_supervisor: &Channel) -> Result<(), StartFailure> {
    let fail = |error: io::Error| StartFailure::new(StartStep::HostView, &error);
    let namespace = fs::File::open(format!("/proc/{pid}/ns/user")).map_err(fail)?;
    host_mounts::open(Share::Early, namespace.as_fd(), |paths, mounts| {
        let sent = to_supervisor.send(&Handover::HostMounts(paths), mounts);
        sent.map_err(fail)
    })
}

/// Whether the machine has too little of something, which says nothing about what was asked of it.
pub(super) fn is_lack(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::ENOSPC | libc::EDQUOT
    )
}

impl StartFailure {
    pub(super) fn new(step: StartStep, error: &io::Error) -> Self {
        Self {
            step,
            errno: error.raw_os_error().unwrap_or(0),
            detail: String::new(),
        }
    }
}
