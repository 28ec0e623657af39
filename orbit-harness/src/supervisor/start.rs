//! The starter: from a fresh execution of the test binary, or a fork of ours, to a supervisor in its own namespaces.
//!
//! It runs with the caller's own privileges, writes the id maps that a process cannot write for itself, and,
//! as root, hands the supervisor the host's filesystems seen through the container's id map.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::OpenTreeFlags;
use serde::{Deserialize, Serialize};

use super::{
    channel::{Channel, MAX_FDS},
    home,
    protocol::{Hello, Mapping, StartFailure, StartStep, Welcome},
};
use crate::{
    security::idmap::IdMap,
    sys::{self, Fork, SingleThreaded},
};

/// What the starter tells the new supervisor, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Handover {
    /// Filesystems of the host, seen through the id map: where each belongs, and the mounts themselves. The very first is
    /// that of the root, to stand by itself.
    HostTrees(Vec<PathBuf>),
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

/// The same where the control channel is at hand; gives the exit code.
pub(super) fn run_on(single_threaded: SingleThreaded, control: &Channel) -> i32 {
    sys::reset_signals();
    let (hello, mut fds) = match control.recv::<Hello>() {
        Ok(Some(message)) => message,
        // Nobody is there any more.
        Ok(None) => return NO_FAULT,
        Err(error) => return code_of(&error),
    };
    let Some(caller) = fds.pop() else {
        return NO_FAULT;
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
    let namespaces = libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    let forked = single_threaded
        .fork_sibling(namespaces)
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
    write_maps(pid, hello)?;
    if hello.mapping == Mapping::Privileged {
        hand_over_host(pid, &to_supervisor)?;
    }
    to_supervisor
        .send(&Handover::Mapped { pid }, &[])
        .map_err(fail(StartStep::IdMap))
}

fn write_maps(pid: i32, hello: &Hello) -> Result<(), StartFailure> {
    let fail = |error: io::Error| StartFailure::new(StartStep::IdMap, &error);
    match hello.mapping {
        Mapping::Helpers => {
            run_helper("newuidmap", pid, &hello.ids.uid)?;
            run_helper("newgidmap", pid, &hello.ids.gid)
        }
        Mapping::Single => {
            // A process that could leave its groups could escape a group's denial (CVE-2014-8989).
            fs::write(format!("/proc/{pid}/setgroups"), "deny").map_err(fail)?;
            home::write_maps(&format!("/proc/{pid}"), &hello.ids).map_err(fail)
        }
        Mapping::Privileged => home::write_maps(&format!("/proc/{pid}"), &hello.ids).map_err(fail),
    }
}

fn run_helper(program: &str, pid: i32, map: &IdMap) -> Result<(), StartFailure> {
    let fail = |errno, detail: String| StartFailure {
        step: StartStep::IdMap,
        errno,
        detail,
    };
    // The environment was emptied by who started this process; the helpers live in the system's directories.
    let output = Command::new(program)
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin")
        .args(map.helper_args(pid))
        .output()
        .map_err(|error| fail(error.raw_os_error().unwrap_or(0), program.to_owned()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(fail(
        libc::EPERM,
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

/// Sends a copy of each mount of the host, with the supervisor's id map laid over it, so that the container's
/// ids mean the host's in the host's files and nowhere else.
///
/// Filesystems that take no id map (`proc`, `sysfs`, `devtmpfs`, …) go as they are: their files then belong to
/// nobody inside. The root filesystem must take one.
fn hand_over_host(pid: i32, to_supervisor: &Channel) -> Result<(), StartFailure> {
    let fail = |error: io::Error| StartFailure::new(StartStep::HostView, &error);
    let namespace = fs::File::open(format!("/proc/{pid}/ns/user")).map_err(fail)?;
    let mountinfo = fs::read("/proc/self/mountinfo").map_err(fail)?;
    let mut batch: (Vec<PathBuf>, Vec<OwnedFd>) = Default::default();
    let mut paths = crate::host::read_mount_points(&mountinfo);
    // What is mounted on comes before what is mounted on it, which the table's own order does not promise.
    paths.sort_by_key(|path| path.components().count());
    // Once more, to stand alone.
    paths.insert(0, "/".into());
    for path in paths {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = match rustix::mount::open_tree(rustix::fs::CWD, &path, flags) {
            Ok(tree) => tree,
            Err(errno) if is_lack(errno.raw_os_error()) => return Err(fail(errno.into())),
            // A mount that another covers, or that is gone by now, cannot be reached by its path.
            Err(_) => continue,
        };
        // A copy is in the same peer group as the original: what is unmounted below the one would be gone
        // below the other too, that is, on the host.
        sys::set_mount_attributes(tree.as_fd(), 0, None, false).map_err(fail)?;
        let mapped = sys::set_mount_attributes(tree.as_fd(), 0, Some(namespace.as_fd()), false);
        // Without its map a filesystem's files belong to nobody inside: for want of one, not for want of memory.
        if let Err(error) = mapped
            && (path == Path::new("/") || is_lack(error.raw_os_error().unwrap_or(0)))
        {
            return Err(StartFailure {
                detail: path.display().to_string(),
                ..StartFailure::new(StartStep::HostView, &error)
            });
        }
        batch.0.push(path);
        batch.1.push(tree);
        if batch.1.len() == MAX_FDS {
            send_trees(to_supervisor, &mut batch).map_err(fail)?;
        }
    }
    send_trees(to_supervisor, &mut batch).map_err(fail)
}

fn send_trees(to_supervisor: &Channel, batch: &mut (Vec<PathBuf>, Vec<OwnedFd>)) -> io::Result<()> {
    let (paths, trees) = std::mem::take(batch);
    let trees: Vec<BorrowedFd<'_>> = trees.iter().map(|tree| tree.as_fd()).collect();
    to_supervisor.send(&Handover::HostTrees(paths), &trees)
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
