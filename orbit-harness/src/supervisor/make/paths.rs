//! Paths: of the host, and of the new root; resolved to descriptors, and made where they are missing.

use std::{
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid},
    io::Errno,
};

use super::{
    Done, Maker,
    syscalls::{PATH, chown, open_in},
};
use crate::supervisor::{
    home::{HOST, below_host},
    protocol::Cause,
};

/// The mask of the supervisor and its inits, for the modes of new files.
pub(in crate::supervisor) const MASK: u32 = 0o022;

/// A directory of the new root: most are in the root itself, which is open already.
pub(super) enum Parent<'a> {
    Root(&'a OwnedFd),
    Opened(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => fd.as_fd(),
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

impl Maker {
    /// A path of the host: links are followed as on the host, and nothing but the host is seen.
    pub(super) fn open_host(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = below_host(path);
        let inside = path.strip_prefix(HOST).unwrap_or(&path);
        let inside = if inside.as_os_str().is_empty() {
            Path::new(".")
        } else {
            inside
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.host, inside, PATH, Mode::empty(), resolve)
    }

    /// A path of the sandbox; relative ones are to its root.
    pub(super) fn open_inside(&self, path: &Path) -> Result<OwnedFd, Cause> {
        Ok(open_in(self.root()?, path)?)
    }

    /// The directory at `path`, made with its parents where it is not there.
    pub(super) fn directory(&self, path: &Path, mode: u32) -> Result<OwnedFd, Cause> {
        match self.open_inside(path) {
            Err(Cause::Errno(libc::ENOENT)) => {}
            other => return other,
        }
        let (parent, name) = self.split(path)?;
        let bits = Mode::from_raw_mode(mode);
        rustix::fs::mkdirat(&parent, name, bits)?;
        if mode & MASK != 0 {
            // The mask of this process holds for mkdir, not for chmod.
            rustix::fs::chmodat(&parent, name, bits, AtFlags::empty())?;
        }
        let made = self.open_inside(path)?;
        if self.system != 0 {
            let (uid, gid) = (Uid::from_raw(self.system), Gid::from_raw(self.system));
            rustix::fs::chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        Ok(made)
    }

    /// The file at `path`, made empty with its parents where nothing is there.
    pub(super) fn empty_file(&self, path: &Path) -> Result<OwnedFd, Cause> {
        match self.open_inside(path) {
            Err(Cause::Errno(libc::ENOENT)) => {}
            other => return other,
        }
        let (parent, name) = self.split(path)?;
        rustix::fs::openat(
            &parent,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )?;
        self.open_inside(path)
    }

    /// What this process makes is id 0's.
    pub(super) fn give_to_system(&self, path: &str) -> rustix::io::Result<()> {
        if self.system == 0 {
            Ok(())
        } else {
            chown(path, self.system, self.system)
        }
    }

    pub(super) fn symlink(&self, path: &Path, target: &Path) -> Done {
        let (parent, name) = self.split(path)?;
        match rustix::fs::symlinkat(target, &parent, name) {
            // A sealed layer has it, or what the program put there.
            Err(Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    /// The directory that `path` lies in, made with its parents where it is not there, and its name in it.
    pub(super) fn split<'a>(&self, path: &'a Path) -> Result<(Parent<'_>, &'a OsStr), Cause> {
        let name = path.file_name().ok_or(Cause::Errno(libc::EINVAL))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        let parent = if parent == Path::new("/") || parent.as_os_str().is_empty() {
            Parent::Root(self.root()?)
        } else {
            Parent::Opened(self.directory(parent, 0o755)?)
        };
        Ok((parent, name))
    }

    /// A directory of `/` that Orbit mounts on: it must be one, and no link to somewhere else.
    pub(super) fn own_directory(&self, name: &str) -> Result<OwnedFd, Cause> {
        let root = self.root()?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let flags = PATH | OFlags::DIRECTORY;
        let open = || rustix::fs::openat2(root, name, flags, Mode::empty(), resolve);
        match open() {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))?;
                Ok(open()?)
            }
            Err(Errno::LOOP | Errno::NOTDIR) => {
                Err(Cause::NotADirectory(Path::new("/").join(name)))
            }
            other => Ok(other?),
        }
    }
}
