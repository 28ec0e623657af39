//! Paths: of the host, and of the new root; resolved to descriptors, and made where they are missing.

use std::{
    ffi::OsStr,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{
    Done, Maker,
    syscalls::{PATH, chown, fd_path, open_in},
};
use crate::supervisor::{
    home::{HOST, below_host},
    protocol::Cause,
};

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
        let mut walked = PathBuf::new();
        let mut parent = self.open_inside(Path::new("/"))?;
        for component in path
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
        {
            walked.push(component);
            let last = walked.as_os_str().len() == path.as_os_str().len().saturating_sub(1);
            parent = match self.open_inside(&walked) {
                Err(Cause::Errno(libc::ENOENT)) => {
                    let name = component.as_os_str();
                    let mode = Mode::from_raw_mode(if last { mode } else { 0o755 });
                    rustix::fs::mkdirat(&parent, name, mode)?;
                    // The mask of this process holds for mkdir, not for chmod.
                    rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
                    let made = self.open_inside(&walked)?;
                    self.give_to_system(&fd_path(&made))?;
                    made
                }
                other => other?,
            };
        }
        Ok(parent)
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
        Ok(rustix::fs::symlinkat(target, &parent, name)?)
    }

    pub(super) fn split<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Cause> {
        let name = path.file_name().ok_or(Cause::Errno(libc::EINVAL))?;
        Ok((
            self.directory(path.parent().unwrap_or(Path::new("/")), 0o755)?,
            name,
        ))
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
