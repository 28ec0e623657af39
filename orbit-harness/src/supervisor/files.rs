//! Files of a sandbox, read and written from outside of it by a short-lived fork of the supervisor: root of the
//! sandbox's user namespace, so that owners have their meaning, and in none of its other namespaces.
//!
//! Every path is resolved by `openat2` with `RESOLVE_IN_ROOT` against the root directory that the sandbox's init gave:
//! whatever links a program puts in the way, and however often it swaps them, they lead to something inside.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{
    channel::Channel,
    disk,
    protocol::{FileAnswer, FileFault, FileJob, FileMeta, Piece},
    transfer::{self, Destination},
};
use crate::security::user::UserSpec;

/// How often a path is resolved again that somebody renames meanwhile (EAGAIN of `openat2`).
const TRIES: u32 = 10_000;

/// More is no file of accounts.
const ACCOUNTS_MAX_BYTES: u64 = 4 << 20;

/// Where the root is.
pub(super) enum Root<'a> {
    Given(OwnedFd),
    /// That of this process, which has no init that could give it.
    Of(BorrowedFd<'a>),
}

/// Does `job`, and answers on `reply`.
pub(super) fn run(reply: &Channel, root: Root<'_>, job: FileJob, content: Option<OwnedFd>) {
    let sends = matches!(job, FileJob::CopyOut { .. });
    let done = enter(root).and_then(|root| act(reply, &root, job, content));
    // Who asked may be gone.
    let _ = match done {
        Ok(fd) => {
            let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
            reply.send(&FileAnswer::Ok(()), &fds)
        }
        // Who receives a tree hears of the end as part of it.
        Err(fault) if sends => reply.send(&Piece::Failed(fault), &[]),
        Err(fault) => reply.send(&FileAnswer::Err(fault), &[]),
    };
}

fn enter(root: Root<'_>) -> Result<OwnedFd, FileFault> {
    match root {
        Root::Given(root) => Ok(root),
        Root::Of(process) => {
            let fault = |errno: nix::Error| FileFault::Errno(errno as i32, None);
            setns(process, CloneFlags::CLONE_NEWNS).map_err(fault)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(rustix::fs::open("/", flags, Mode::empty())?)
        }
    }
}

fn act(
    reply: &Channel,
    root: &OwnedFd,
    job: FileJob,
    content: Option<OwnedFd>,
) -> Result<Option<OwnedFd>, FileFault> {
    match job {
        FileJob::Find { path } => open(root, &path, OFlags::PATH, 0).map(|_| None),
        FileJob::Read { path } => {
            let file = open_to_read(root, &path)?;
            if file_type(&file)? == FileType::RegularFile {
                Ok(Some(file))
            } else {
                Err(FileFault::NotAFile)
            }
        }
        FileJob::Write { path, file } => {
            let mut content = File::from(content.ok_or(FileFault::Malformed)?);
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            write(root, &path, &bytes, &file).map(|()| None)
        }
        FileJob::CopyIn { path, owner } => {
            let owner = owner.map(|owner| resolve(root, &owner)).transpose()?;
            let destination = Destination {
                directory: &|| {
                    let made = directory(root, &path)?;
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    Ok(rustix::fs::openat(&made, ".", flags, Mode::empty())?)
                },
                file: &|| {
                    let (parent, name) = split(root, &path)?;
                    Ok((parent, name.to_owned()))
                },
                owner,
            };
            transfer::receive_tree(reply, &destination).map(|()| None)
        }
        FileJob::CopyOut { path } => {
            transfer::send_tree(reply, &open_to_read(root, &path)?).map(|()| None)
        }
        FileJob::ReadOnly { at, read_only } => {
            disk::set_read_only(root, content, &at, read_only).map(|()| None)
        }
    }
}

/// Writes `content` to the file at `path`, which is made with its parents where it is not there.
pub(super) fn write(
    root: &OwnedFd,
    path: &Path,
    content: &[u8],
    meta: &FileMeta,
) -> Result<(), FileFault> {
    let owner = meta
        .owner
        .as_ref()
        .map(|owner| resolve(root, owner))
        .transpose()?;
    split(root, path)?;
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let (file, is_new) = match open(root, path, flags, 0) {
        Err(FileFault::Errno(libc::ENOENT, _)) => {
            (open(root, path, flags | OFlags::CREATE, 0o644)?, true)
        }
        // A pipe that nobody reads, or a socket.
        Err(FileFault::Errno(libc::ENXIO, _)) => return Err(FileFault::NotAFile),
        other => (other?, false),
    };
    if file_type(&file)? != FileType::RegularFile {
        return Err(FileFault::NotAFile);
    }
    let mut mode = meta.mode;
    if is_new {
        mode = mode.or(Some(0o644));
    }
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(gid),
        );
        rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    if let Some(mode) = mode {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
    }
    rustix::fs::ftruncate(&file, 0)?;
    let mut file = File::from(file);
    file.write_all(content)?;
    // A write takes set-user-id and set-group-id away.
    if let Some(mode) = meta.mode.filter(|mode| mode & 0o6000 != 0) {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
    }
    Ok(())
}

fn file_type(file: &OwnedFd) -> rustix::io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

fn open_to_read(root: &OwnedFd, path: &Path) -> Result<OwnedFd, FileFault> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    match open(root, path, flags, 0) {
        Err(FileFault::Errno(libc::ENXIO, _)) => Err(FileFault::NotAFile),
        other => other,
    }
}

/// Opens what `path` leads to inside of `root`, relative ones too. The one way from a path to a descriptor here.
fn open(root: &OwnedFd, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd, FileFault> {
    let path = if path.as_os_str().is_empty() {
        Path::new("/")
    } else {
        path
    };
    let (flags, mode) = (flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode));
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
            other => return Ok(other?),
        }
    }
}

/// The directory at `path`, made with its parents where it is not there.
fn directory(root: &OwnedFd, path: &Path) -> Result<OwnedFd, FileFault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open(root, path, flags, 0) {
        Err(FileFault::Errno(libc::ENOENT, _)) => {}
        other => return other,
    }
    let mut walked = PathBuf::new();
    let mut parent = open(root, Path::new("/"), flags, 0)?;
    for part in path.components() {
        let name = match part {
            Component::Normal(name) => name,
            Component::ParentDir => OsStr::new(".."),
            _ => continue,
        };
        walked.push(name);
        parent = match open(root, &walked, flags, 0) {
            Err(FileFault::Errno(libc::ENOENT, _)) => {
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {
                        let flags =
                            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let fresh = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
                        // The mask of this process holds for mkdir, not for chmod.
                        rustix::fs::fchmod(&fresh, Mode::from_raw_mode(0o755))?;
                    }
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(FileFault::Errno(errno.raw_os_error(), Some(walked))),
                }
                open(root, &walked, flags, 0)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// The directory that holds `path`, made where it is not there, and the name in it.
fn split<'a>(root: &OwnedFd, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), FileFault> {
    let name = path
        .file_name()
        .ok_or(FileFault::Errno(libc::EISDIR, None))?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok((directory(root, parent)?, name))
}

/// The numbers of `owner`, as the sandbox's own accounts have them.
fn resolve(root: &OwnedFd, owner: &str) -> Result<(u32, u32), FileFault> {
    let text = |path: &str| {
        let mut bytes = Vec::new();
        // What cannot be read names nobody; numbers still work.
        if let Ok(file) = open_to_read(root, Path::new(path))
            && file_type(&file).is_ok_and(|kind| kind == FileType::RegularFile)
        {
            let _ = File::from(file)
                .take(ACCOUNTS_MAX_BYTES)
                .read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let found = owner
        .parse::<UserSpec>()
        .and_then(|spec| spec.resolve(&text("/etc/passwd"), &text("/etc/group")))
        .map_err(FileFault::Owner)?;
    Ok((found.uid, found.gid))
}
