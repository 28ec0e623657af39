//! The supervisor's own place: its ids, its mounts, its signals.
//!
//! Its root is a small tmpfs of a few directories, which every sandbox's init starts from:
//!
//! | path | what it is |
//! |---|---|
//! | `/host` | the host's files; as root, seen through the container's id map ([`host_mounts`]) |
//! | `/plain` | as root, the filesystem of the host's `/` without what is mounted in it, which an overlay takes |
//! | `/proc` | the processes of all sandboxes |
//! | `/stage` | where an init mounts its scratch |
//! | `/shared` | directories of the host under layers that take no writes, for all sandboxes |

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    process::DumpableBehavior,
};

use super::{
    channel::Channel,
    code,
    filters::Filters,
    host_mounts,
    make::MASK,
    program::Common,
    protocol::{Hello, Mapping, StartFailure, StartStep, Welcome},
    serve,
    spare::INIT,
    start::Handover,
};
use crate::{
    netfilter,
    security::idmap::IdMapPair,
    sys::{self, Fork, SingleThreaded},
};

/// Where the host's files are, for the supervisor and the inits.
pub(super) const HOST: &str = "/host";
/// The filesystem of the host's root, with nothing mounted in it.
pub(super) const PLAIN: &str = "/plain";
/// Where an init mounts its scratch.
pub(super) const STAGE: &str = "/stage";
/// Where directories of the host are that sandboxes share.
pub(super) const SHARED: &str = "/shared";

/// Makes this process, which is process 1 of new user, pid and mount namespaces, a supervisor. Never returns.
pub(super) fn settle(
    single_threaded: SingleThreaded,
    control: Channel,
    caller: &OwnedFd,
    from_starter: Channel,
    hello: &Hello,
) -> ! {
    // The starter has more to do before this process can go on.
    code::keep_for_forks();
    let filters = Filters::with_usual();
    let mut mounts = Vec::new();
    let pid = loop {
        match from_starter.recv::<Handover>() {
            Ok(Some((Handover::HostMounts(paths), fds))) => {
                mounts.extend(paths.into_iter().zip(fds));
            }
            Ok(Some((Handover::Mapped { pid }, _))) => break pid,
            // The starter failed, and says so, or starts another.
            Ok(None) => sys::exit_now(1),
            Err(error) => {
                let failure = StartFailure::new(StartStep::HostView, &error);
                let _ = control.send(&Welcome::Failed(failure), &[]);
                sys::exit_now(1);
            }
        }
    };
    drop(from_starter);
    let common = match prepare(single_threaded, hello, mounts) {
        Ok(common) => common,
        Err(failure) => {
            let _ = control.send(&Welcome::Failed(failure), &[]);
            sys::exit_now(1);
        }
    };
    let mut keep = vec![control.as_fd().as_raw_fd(), caller.as_raw_fd()];
    keep.extend(common.descriptor());
    let watching = sys::close_inherited(&mut keep).and_then(|()| serve::watch(&control, caller));
    let epoll = match watching {
        Ok(epoll) => epoll,
        Err(error) => {
            let failure = StartFailure::new(StartStep::Serve, &error);
            let _ = control.send(&Welcome::Failed(failure), &[]);
            sys::exit_now(1);
        }
    };
    if control.send(&Welcome::Ready { pid }, &[]).is_err() {
        sys::exit_now(1);
    }
    serve::serve(single_threaded, control, epoll, common, filters);
    sys::exit_now(0);
}

fn prepare(
    single_threaded: SingleThreaded,
    hello: &Hello,
    mounts: Vec<(PathBuf, OwnedFd)>,
) -> Result<Common, StartFailure> {
    let fail = |step| move |error: io::Error| StartFailure::new(step, &error);
    take_ids(hello.mapping).map_err(fail(StartStep::Ids))?;
    settle_root(hello.mapping, mounts)?;
    let caller_namespace = hello
        .caller_ids
        .as_ref()
        .map(|ids| namespace_of_caller(single_threaded, ids, hello.mapping))
        .transpose()
        .map_err(fail(StartStep::IdMap))?;
    // No namespace below this one may what this one may not. Source: user_namespaces(7).
    let groups_denied =
        fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny"));
    netfilter::prepare();
    isolate().map_err(fail(StartStep::Isolate))?;
    Ok(Common {
        caller_namespace,
        groups_denied,
    })
}

/// Root of the new user namespace, and in no group of the caller's.
fn take_ids(mapping: Mapping) -> io::Result<()> {
    let root = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    if mapping != Mapping::Single {
        nix::unistd::setgroups(&[])?;
    }
    nix::unistd::setresgid(root.1, root.1, root.1)?;
    nix::unistd::setresuid(root.0, root.0, root.0)?;
    Ok(())
}

/// Makes the tmpfs described above the root of this mount namespace.
fn settle_root(mapping: Mapping, mounts: Vec<(PathBuf, OwnedFd)>) -> Result<(), StartFailure> {
    let fail = |step| move |error: rustix::io::Errno| StartFailure::new(step, &error.into());
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(fail(StartStep::PrivateMounts))?;
    let base = mount_base().map_err(fail(StartStep::Root))?;
    let in_base = |name: &str| base.join(name.trim_start_matches('/'));
    for directory in [HOST, PLAIN, "/proc", STAGE, SHARED, "/original"] {
        rustix::fs::mkdir(in_base(directory), 0o755.into()).map_err(fail(StartStep::Root))?;
    }
    let privileged = mapping == Mapping::Privileged;
    let original = if privileged { "/original" } else { HOST };
    rustix::process::pivot_root(&base, in_base(original)).map_err(fail(StartStep::Root))?;
    rustix::process::chdir("/").map_err(fail(StartStep::Root))?;
    let proc_flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", proc_flags, None)
        .map_err(fail(StartStep::Proc))?;
    if privileged {
        for (number, (path, mount)) in mounts.into_iter().enumerate() {
            let target = if number == 0 {
                PLAIN.into()
            } else {
                below_host(&path)
            };
            host_mounts::attach(&path, &target, &mount)?;
        }
        rustix::mount::unmount("/original", UnmountFlags::DETACH)
            .map_err(fail(StartStep::HostView))?;
    }
    Ok(())
}

/// `path` of the host, as the supervisor sees it.
pub(super) fn below_host(path: &Path) -> PathBuf {
    Path::new(HOST).join(path.strip_prefix("/").unwrap_or(path))
}

/// Mounts the tmpfs on the first directory there is; what it covers stays reachable below `/host`.
fn mount_base() -> rustix::io::Result<PathBuf> {
    let mut answer = Err(rustix::io::Errno::NOENT);
    for directory in ["/tmp", "/var/tmp", "/mnt", "/run", "/usr", "/etc"] {
        answer = rustix::mount::mount(
            "orbit",
            directory,
            "tmpfs",
            MountFlags::NOSUID,
            c"size=64k,mode=755",
        )
        .map(|()| directory.into());
        if !matches!(
            answer,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS)
        ) {
            break;
        }
    }
    answer
}

/// A user namespace below this one, in which the caller's own ids mean the caller.
fn namespace_of_caller(
    single_threaded: SingleThreaded,
    ids: &IdMapPair,
    mapping: Mapping,
) -> io::Result<OwnedFd> {
    let (ours, theirs) = Channel::pair()?;
    match single_threaded.fork(libc::CLONE_NEWUSER, None)? {
        Fork::Child => {
            drop(ours);
            // Until the namespace is held by a descriptor.
            let _ = theirs.recv::<()>();
            sys::exit_now(0);
        }
        Fork::Parent { pid, .. } => {
            drop(theirs);
            let directory = format!("/proc/{pid}");
            if mapping == Mapping::Single {
                fs::write(format!("{directory}/setgroups"), "deny")?;
            }
            write_maps(&directory, ids)?;
            let namespace = fs::File::open(format!("{directory}/ns/user"))?;
            drop(ours);
            sys::wait_any(true)?;
            Ok(namespace.into())
        }
    }
}

/// Writes both id maps of the process that `directory` in `/proc` stands for.
pub(super) fn write_maps(directory: &str, ids: &IdMapPair) -> io::Result<()> {
    // The kernel takes a map in one write.
    fs::write(format!("{directory}/gid_map"), ids.gid.to_string())?;
    fs::write(format!("{directory}/uid_map"), ids.uid.to_string())
}

/// Lets go of the caller's session, and closes this process and its copies to the programs they start.
fn isolate() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::thread::set_name(INIT)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(MASK));
    // An init is a copy of this process until it has dropped its privileges, and stays one in memory: no
    // program may look into it, or reach this binary through its /proc/1/exe (CVE-2019-5736).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
