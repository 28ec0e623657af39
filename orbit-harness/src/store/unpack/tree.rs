//! The directory a layer is unpacked into: every operation is relative to its descriptor.
//!
//! Parents are opened by `openat2` beneath the root without following any link, and the last part of a path is
//! only ever touched by calls that do not follow it. So nothing outside changes, whatever the archive holds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{
    error::{Reason, UnpackError, UnpackStep},
    remove,
};

pub(super) const IMPLICIT_DIRECTORY_MODE: u32 = 0o755;

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

pub(super) struct Tree {
    root: OwnedFd,
    /// Consecutive entries mostly share their directory.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            last_parent: None,
        }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory `path` and makes what is missing of it; the root is the empty path.
    pub(super) fn directory(
        &mut self,
        path: &[u8],
        entry: &[u8],
    ) -> Result<BorrowedFd<'_>, UnpackError> {
        if path.is_empty() {
            return Ok(self.root.as_fd());
        }
        let is_cached = matches!(&self.last_parent, Some((known, _)) if known == path);
        if !is_cached {
            let opened = match self.open_beneath(path, OPEN_DIRECTORY) {
                Err(Errno::NOENT) => self.make_directories(path),
                other => other,
            };
            let fd = opened.map_err(|errno| parent_fault(entry, errno))?;
            self.last_parent = Some((path.to_vec(), fd));
        }
        Ok(match &self.last_parent {
            Some((_, fd)) => fd.as_fd(),
            None => self.root.as_fd(),
        })
    }

    /// Opens what is at `path`, which may not lead through any link.
    pub(super) fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(
                &self.root,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                // The kernel could not prove that a concurrent rename led nowhere; EINTR is a signal's.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// A directory that the archive does not mention before its content.
    fn make_directories(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut current = rustix::fs::openat(&self.root, c".", OPEN_DIRECTORY, Mode::empty())?;
        for part in path.split(|b| *b == b'/') {
            match rustix::fs::mkdirat(&current, part, Mode::from_raw_mode(IMPLICIT_DIRECTORY_MODE))
            {
                Ok(()) => {
                    let made = rustix::fs::openat(&current, part, OPEN_DIRECTORY, Mode::empty())?;
                    // Not left to the umask.
                    rustix::fs::fchmod(&made, Mode::from_raw_mode(IMPLICIT_DIRECTORY_MODE))?;
                    current = made;
                }
                Err(Errno::EXIST) => {
                    current = rustix::fs::openat(&current, part, OPEN_DIRECTORY, Mode::empty())?;
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(current)
    }

    /// What is at `name` in `parent`, itself and not what it links to.
    pub(super) fn kind_of(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileType>, Errno> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Removes what is at `name` in the directory `parent`, with all that is in it.
    ///
    /// Returns whether it was a directory.
    pub(super) fn remove(
        &mut self,
        parent: &[u8],
        name: &[u8],
        entry: &[u8],
    ) -> Result<bool, UnpackError> {
        let fd = self.directory(parent, entry)?;
        match rustix::fs::unlinkat(fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(false),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(UnpackError::system(UnpackStep::RemoveOld, entry, errno)),
        }
        remove::remove_tree(fd, name)
            .map_err(|errno| UnpackError::system(UnpackStep::RemoveOld, entry, errno))?;
        // The descriptor kept may be of a directory that is gone.
        self.last_parent = None;
        Ok(true)
    }
}

/// A parent that is a link or a file is the archive's doing; anything else is the system's.
fn parent_fault(entry: &[u8], errno: Errno) -> UnpackError {
    match errno {
        Errno::LOOP | Errno::NOTDIR | Errno::XDEV => {
            UnpackError::new(UnpackStep::OpenParent, entry, Reason::ThroughSymlink)
        }
        errno => UnpackError::system(UnpackStep::OpenParent, entry, errno),
    }
}
