//! The host's mounts, where the caller is privileged: which of them a supervisor gets, opened on one side, attached on the other.
//!
//! What is handed over is a copy of each mount, with the supervisor's id map laid over it, so that the container's ids mean
//! the host's in the host's files and nowhere else. Each takes a little of a supervisor's start, and of each init's, which
//! gets a copy of the supervisor's mount namespace. So the kernel's own filesystems, most of the mounts of many machines, come
//! [late](Share::Late): when a plan may show one of them.

use std::{
    borrow::Cow,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    mount::{MoveMountFlags, OpenTreeFlags},
};

use super::{
    channel::MAX_FDS,
    home::below_host,
    protocol::{StartFailure, StartStep},
    start::is_lack,
};
use crate::{
    host::{read_mount_points, read_mountinfo},
    plan::Plan,
    step::{Lower, Step},
    sys,
};

/// Below these lie filesystems of the kernel's own, which hold no files that a store, a layer or a workspace could lie in.
/// Of `/sys` only what is mounted in it: the kernel lets a sandbox have a sysfs where its supervisor sees one.
///
/// Source: Linux, fs/namespace.c, `mnt_already_visible`.
const LATE: [&str; 4] = ["/proc", "/dev/pts", "/dev/mqueue", "/dev/hugepages"];
const LATE_WITHIN: &str = "/sys";

/// A part of the host's mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// What each supervisor gets as it starts.
    Early,
    /// What it gets with the first plan that may show some of it.
    Late,
}

impl Share {
    /// That which the mount at `path` is in.
    fn of(path: &Path) -> Self {
        let is_late = LATE.iter().any(|late| path.starts_with(late))
            || (path.starts_with(LATE_WITHIN) && path != Path::new(LATE_WITHIN));
        if is_late { Self::Late } else { Self::Early }
    }

    /// Where the mounts of this share are, each once, what is mounted on before what is mounted on it, which the order of
    /// `mountinfo` does not promise.
    fn mount_points(self, mountinfo: &[u8]) -> Vec<PathBuf> {
        let mut paths = read_mount_points(mountinfo);
        paths.retain(|path| Self::of(path) == self);
        paths.sort_by_cached_key(|path| (path.components().count(), path.clone()));
        paths.dedup();
        paths
    }
}

/// Opens the mounts of a share, seen through the id map of the user namespace `namespace`, and gives them to `send` by as
/// many as a message takes beside one more descriptor. Of the early ones the first is that of the root, once more, to stand by itself.
///
/// Filesystems that take no id map (`proc`, `sysfs`, `devtmpfs`, …) go as they are: their files then belong to
/// nobody inside. The root filesystem must take one.
pub(super) fn open<E: From<StartFailure>>(
    share: Share,
    namespace: BorrowedFd<'_>,
    mut send: impl FnMut(Vec<PathBuf>, &[BorrowedFd<'_>]) -> Result<(), E>,
) -> Result<(), E> {
    let fail = |error: io::Error| StartFailure::new(StartStep::HostView, &error);
    let mountinfo = read_mountinfo().map_err(fail)?;
    let mut paths = share.mount_points(&mountinfo);
    if share == Share::Early {
        paths.insert(0, "/".into());
    }
    let mut mounts = Vec::with_capacity(paths.len());
    for path in paths {
        if let Some(mount) = open_one(&path, namespace)? {
            mounts.push((path, mount));
        }
    }
    // That, and the file that long paths travel in.
    for batch in mounts.chunks(MAX_FDS - 2) {
        let paths = batch.iter().map(|(path, _)| path.clone()).collect();
        let fds: Vec<BorrowedFd<'_>> = batch.iter().map(|(_, mount)| mount.as_fd()).collect();
        send(paths, &fds)?;
    }
    Ok(())
}

/// `None`: a mount that another covers, or that is gone by now, cannot be reached by its path.
fn open_one(path: &Path, namespace: BorrowedFd<'_>) -> Result<Option<OwnedFd>, StartFailure> {
    let fail = |error: io::Error| StartFailure {
        detail: path.display().to_string(),
        ..StartFailure::new(StartStep::HostView, &error)
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = match rustix::mount::open_tree(CWD, path, flags) {
        Ok(tree) => tree,
        // The second: who asks has given up the privilege.
        Err(errno) if is_lack(errno.raw_os_error()) || errno == rustix::io::Errno::PERM => {
            return Err(fail(errno.into()));
        }
        Err(_) => return Ok(None),
    };
    // Either makes it private: a copy is in the same peer group as the original, and what is unmounted below the one would
    // be gone below the other too, that is, on the host.
    if let Err(error) = sys::set_mount_attributes(tree.as_fd(), 0, Some(namespace), false) {
        // Without its map a filesystem's files belong to nobody inside: for want of one, not for want of memory.
        if path == Path::new("/") || is_lack(error.raw_os_error().unwrap_or(0)) {
            return Err(fail(error));
        }
        sys::set_mount_attributes(tree.as_fd(), 0, None, false).map_err(fail)?;
    }
    Ok(Some(tree))
}

/// Puts what the host has at `path` at `target`, in the supervisor.
pub(super) fn attach(path: &Path, target: &Path, mount: &OwnedFd) -> Result<(), StartFailure> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    match rustix::mount::move_mount(mount, "", CWD, target, flags) {
        Ok(()) => Ok(()),
        // Its place lies in a directory that the container's root may not enter, or is gone: then nothing in
        // a sandbox could be asked for below it either.
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::NOENT) if path != Path::new("/") => {
            Ok(())
        }
        Err(error) => Err(StartFailure {
            detail: path.display().to_string(),
            ..StartFailure::new(StartStep::HostView, &error.into())
        }),
    }
}

/// Puts each of the host's mounts where it belongs.
pub(super) fn attach_all(paths: &[PathBuf], mounts: &[OwnedFd]) -> Result<(), StartFailure> {
    paths
        .iter()
        .zip(mounts)
        .try_for_each(|(path, mount)| attach(path, &below_host(path), mount))
}

/// Whether `plan` may show mounts that come late.
pub(super) fn wants_late(plan: &Plan) -> bool {
    plan.steps.iter().any(|step| match step {
        // A program of the host's, over all its files.
        Step::Egress { .. } | Step::Sys { fresh: false } => true,
        Step::Bind { source, .. } => real(source).is_ok_and(|it| shows_late(&it)),
        // These show nothing of what is mounted below.
        Step::Overlay { source, .. } => is_late(source),
        Step::OverlaySealed { source, .. } => source.as_deref().is_some_and(is_late),
        Step::OverlayRoot { lower, .. } => match lower {
            Lower::Directory(path) => is_late(path),
            Lower::Layers { base, .. } => base.as_deref().is_some_and(is_late),
        },
        _ => false,
    })
}

/// Whether `source` of the host is in a mount that comes late.
fn is_late(source: &Path) -> bool {
    real(source).is_ok_and(|it| Share::of(&it) == Share::Late)
}

/// Whether what is really at `path` is in such a mount, or has one below it.
fn shows_late(path: &Path) -> bool {
    let mut late = LATE.iter().chain([&LATE_WITHIN]).map(Path::new);
    Share::of(path) == Share::Late || late.any(|late| late.starts_with(path))
}

/// Where `source` leads. Links are followed, as they are when it is shown. What is not there shows nothing.
fn real(source: &Path) -> io::Result<Cow<'_, Path>> {
    let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if source.is_absolute() && source.components().all(is_plain) {
        // Most have no links in them, which takes two calls to see, where each part of a path takes one to be looked at.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let no_links = ResolveFlags::NO_SYMLINKS;
        if openat2(CWD, source, flags, Mode::empty(), no_links).is_ok() {
            return Ok(source.into());
        }
    }
    fs::canonicalize(source).map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"1 0 0:1 / /sys/fs/cgroup/cpu rw - cgroup none rw\n\
        2 0 0:2 / /dev/pts rw - devpts none rw\n\
        3 0 0:3 / /dev rw - devtmpfs none rw\n\
        4 0 0:4 / / rw - ext4 none rw\n\
        5 0 0:5 / /sys rw - sysfs none rw\n\
        6 0 0:6 / /data/proc rw - ext4 none rw\n\
        7 0 0:7 / /dev/shm rw - tmpfs none rw\n\
        8 0 0:8 / /sys/fs/cgroup rw - tmpfs none rw\n\
        9 0 0:9 / /proc rw - proc none rw\n\
        10 0 0:10 / /dev/pts rw - devpts none rw\n\
        11 0 0:11 / /process rw - ext4 none rw\n";

    fn paths(share: Share) -> Vec<String> {
        let all = share.mount_points(MOUNTINFO);
        all.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn what_the_kernel_has_of_its_own_comes_late() {
        assert_eq!(
            paths(Share::Early),
            ["/", "/dev", "/process", "/sys", "/data/proc", "/dev/shm"]
        );
        assert_eq!(
            paths(Share::Late),
            ["/proc", "/dev/pts", "/sys/fs/cgroup", "/sys/fs/cgroup/cpu"]
        );
    }

    fn shows_late(source: &Path) -> bool {
        real(source).is_ok_and(|it| super::shows_late(&it))
    }

    #[test]
    fn a_source_shows_what_is_in_it_and_what_it_links_to() {
        for late in [
            "/",
            "/proc",
            "/proc/self/status",
            "/dev",
            "/sys",
            "/sys/kernel",
        ] {
            assert!(shows_late(Path::new(late)), "{late}");
        }
        for early in ["/usr", "/tmp", "/dev/null", "/not/there"] {
            assert!(!shows_late(Path::new(early)), "{early}");
        }
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/sys/fs", &link).unwrap();
        assert!(is_late(&link) && !shows_late(directory.path()));
        assert!(is_late(&link.join("cgroup/..")) && is_late(Path::new("/usr/../proc")));
        assert!(!is_late(Path::new("/")) && !is_late(Path::new("/sys")));
    }
}
