//! Trees of files, from one process to another: names, permissions, and descriptors of their content.
//!
//! One side walks a tree that a program may change meanwhile, the other makes one where a program may put links in the
//! way. So both sides hold a descriptor of each directory on the way down, take one name at a time, and follow no link
//! (CVE-2018-15664, CVE-2019-14271). Nothing of a tree is ever executed or loaded.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::PathBuf,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{
    channel::Channel,
    protocol::{FileFault, Piece},
};

/// The permissions that a copy has of its original: no set-user-id, nobody's but its owner's.
const PERMISSIONS: u32 = 0o777;

/// How often a name is tried that somebody else makes again and again.
const TRIES: u32 = 64;

impl From<Errno> for FileFault {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno.raw_os_error(), None)
    }
}

impl From<io::Error> for FileFault {
    fn from(error: io::Error) -> Self {
        Self::Errno(error.raw_os_error().unwrap_or(libc::EIO), None)
    }
}

impl FileFault {
    /// Says what it was about, where nothing closer has.
    fn at(self, name: &OsStr) -> Self {
        match self {
            Self::Errno(errno, None) => Self::Errno(errno, Some(name.into())),
            Self::Errno(errno, Some(path)) => {
                Self::Errno(errno, Some(PathBuf::from(name).join(path)))
            }
            other => other,
        }
    }
}

/// Sends what `top` is, a regular file or a directory opened for reading. Devices, pipes and sockets in it are left
/// out.
///
/// # Errors
/// What cannot be read; where nobody receives any more.
pub(crate) fn send_tree(channel: &Channel, top: &OwnedFd) -> Result<(), FileFault> {
    let stat = rustix::fs::fstat(top)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => send_file(channel, OsString::new(), stat.st_mode, top)?,
        FileType::Directory => send_directory(channel, OsString::new(), stat.st_mode, top)?,
        _ => return Err(FileFault::NotAFile),
    }
    Ok(channel.send(&Piece::End, &[])?)
}

fn send_file(
    channel: &Channel,
    name: OsString,
    mode: u32,
    file: &OwnedFd,
) -> Result<(), FileFault> {
    let mode = mode & PERMISSIONS;
    Ok(channel.send(&Piece::File { name, mode }, &[file.as_fd()])?)
}

fn send_directory(
    channel: &Channel,
    name: OsString,
    mode: u32,
    directory: &OwnedFd,
) -> Result<(), FileFault> {
    let mode = mode & PERMISSIONS;
    channel.send(&Piece::Enter { name, mode }, &[])?;
    for entry in Dir::read_from(directory)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            send_entry(channel, directory, &name).map_err(|fault| fault.at(&name))?;
        }
    }
    Ok(channel.send(&Piece::Leave, &[])?)
}

fn send_entry(channel: &Channel, directory: &OwnedFd, name: &OsStr) -> Result<(), FileFault> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let entry = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(entry) => entry,
        Err(Errno::LOOP) => {
            let target = match rustix::fs::readlinkat(directory, name, Vec::new()) {
                Ok(target) => target,
                // It is none any more: somebody changes this.
                Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let link = Piece::Link {
                name: name.to_owned(),
                target: OsString::from_vec(target.into_bytes()).into(),
            };
            return Ok(channel.send(&link, &[])?);
        }
        // It went meanwhile, or is a socket.
        Err(Errno::NOENT | Errno::NXIO) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let stat = rustix::fs::fstat(&entry)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => send_file(channel, name.to_owned(), stat.st_mode, &entry),
        FileType::Directory => send_directory(channel, name.to_owned(), stat.st_mode, &entry),
        _ => Ok(()),
    }
}

/// Where a tree is received.
pub(crate) struct Destination<'a> {
    /// Gives the directory that the tree becomes, made where it is not there.
    pub(crate) directory: &'a dyn Fn() -> Result<OwnedFd, FileFault>,
    /// Gives the directory of a single file, and its name there.
    pub(crate) file: &'a dyn Fn() -> Result<(OwnedFd, OsString), FileFault>,
    /// Whose everything is to be, where that is not who makes it.
    pub(crate) owner: Option<(u32, u32)>,
}

/// Receives what [`send_tree`] sends: over what is there, as far as it has no such names.
///
/// # Errors
/// What the sender met; what cannot be made; what is no tree.
pub(crate) fn receive_tree(
    channel: &Channel,
    destination: &Destination<'_>,
) -> Result<(), FileFault> {
    // From the top down, with the names they have.
    let mut open: Vec<(OwnedFd, OsString)> = Vec::new();
    loop {
        let (piece, mut fds) = channel.recv::<Piece>()?.ok_or(FileFault::Malformed)?;
        let made = match piece {
            Piece::End if open.is_empty() => return Ok(()),
            Piece::End => Err(FileFault::Malformed),
            Piece::Failed(fault) => return Err(fault),
            Piece::Leave => open.pop().map(drop).ok_or(FileFault::Malformed),
            Piece::File { name, mode } => {
                let mut content = File::from(fds.pop().ok_or(FileFault::Malformed)?);
                match (open.last(), name.is_empty()) {
                    (Some((directory, _)), false) => Ok((directory.try_clone()?, name)),
                    (None, true) => (destination.file)(),
                    _ => Err(FileFault::Malformed),
                }
                .and_then(|(directory, name)| {
                    let file =
                        fresh_file(directory.as_fd(), &name).map_err(|fault| fault.at(&name))?;
                    fill(&file, &mut content)?;
                    finish(&file, mode, destination.owner).map_err(|fault| fault.at(&name))
                })
            }
            Piece::Link { name, target } => match open.last() {
                Some((directory, _)) => fresh_link(directory, &name, &target, destination.owner)
                    .map_err(|fault| fault.at(&name)),
                None => Err(FileFault::Malformed),
            },
            Piece::Enter { name, mode } => match (open.last(), name.is_empty()) {
                (None, true) => (destination.directory)(),
                (Some((parent, _)), false) => {
                    directory_in(parent, &name).map_err(|fault| fault.at(&name))
                }
                _ => Err(FileFault::Malformed),
            }
            .and_then(|directory| {
                finish_directory(&directory, mode, destination.owner)?;
                open.push((directory, name));
                Ok(())
            }),
        };
        if let Err(fault) = made {
            let names = open.iter().rev().map(|(_, name)| name);
            return Err(names
                .filter(|name| !name.is_empty())
                .fold(fault, |fault, name| fault.at(name)));
        }
    }
}

/// Whether it is the name of something in a directory, and nothing that leads out of it.
fn is_name(name: &OsStr) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.as_bytes().contains(&b'/')
}

/// A new file of this name, in place of what is there, if that is no directory.
fn fresh_file(directory: BorrowedFd<'_>, name: &OsStr) -> Result<File, FileFault> {
    make_fresh(directory, name, || {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
    })
}

fn fresh_link(
    directory: &OwnedFd,
    name: &OsStr,
    target: &std::path::Path,
    owner: Option<(u32, u32)>,
) -> Result<(), FileFault> {
    make_fresh(directory.as_fd(), name, || {
        rustix::fs::symlinkat(target, directory, name)
    })?;
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(gid),
        );
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(directory, name, Some(uid), Some(gid), flags)?;
    }
    Ok(())
}

fn make_fresh<T>(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    make: impl Fn() -> rustix::io::Result<T>,
) -> Result<T, FileFault> {
    if !is_name(name) {
        return Err(FileFault::Malformed);
    }
    for _ in 0..TRIES {
        match make() {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EXIST.into())
}

/// The directory of this name, made where nothing is there; never what a link leads to.
fn directory_in(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, FileFault> {
    if !is_name(name) {
        return Err(FileFault::Malformed);
    }
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(
        parent,
        name,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

/// Writes all of `content`, from where it stands, to `file`: as much as there is now, however fast it grows.
pub(super) fn fill(file: &File, content: &mut File) -> Result<(), FileFault> {
    use io::Read as _;
    let size = content.metadata()?.len();
    let mut to = file;
    io::copy(&mut content.take(size), &mut to)?;
    Ok(())
}

fn finish(file: &File, mode: u32, owner: Option<(u32, u32)>) -> Result<(), FileFault> {
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(gid),
        );
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    Ok(rustix::fs::fchmod(
        file,
        Mode::from_raw_mode(mode & PERMISSIONS),
    )?)
}

fn finish_directory(
    directory: &OwnedFd,
    mode: u32,
    owner: Option<(u32, u32)>,
) -> Result<(), FileFault> {
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(gid),
        );
        rustix::fs::fchown(directory, Some(uid), Some(gid))?;
    }
    // Who makes it must be able to fill it.
    Ok(rustix::fs::fchmod(
        directory,
        Mode::from_raw_mode(mode & PERMISSIONS | 0o700),
    )?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;

    fn receive(channel: &Channel, to: &Path) -> Result<(), FileFault> {
        let open = || Ok(File::open(to)?.into());
        receive_tree(
            channel,
            &Destination {
                directory: &open,
                file: &|| Ok((open()?, "single".into())),
                owner: None,
            },
        )
    }

    #[test]
    fn a_tree_arrives_as_it_was() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        fs::write(from.path().join("a/b/file"), vec![7; 300_000]).unwrap();
        fs::set_permissions(
            from.path().join("a/b/file"),
            fs::Permissions::from_mode(0o640),
        )
        .unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.path().join("a/link")).unwrap();
        // What is there gives way, unless it is a directory.
        fs::create_dir(to.path().join("a")).unwrap();
        fs::write(to.path().join("a/link"), "old").unwrap();
        let (ours, theirs) = Channel::pair().unwrap();
        send_tree(&ours, &File::open(from.path()).unwrap().into()).unwrap();
        receive(&theirs, to.path()).unwrap();
        let file = to.path().join("a/b/file");
        assert_eq!(fs::read(&file).unwrap(), vec![7; 300_000]);
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
            0o640
        );
        assert_eq!(
            fs::read_link(to.path().join("a/link")).unwrap(),
            Path::new("/etc/passwd")
        );
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let to = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", to.path().join("out")).unwrap();
        let null = File::open("/dev/null").unwrap();
        for name in ["..", ".", "../x", "a/b", "/x"] {
            let (ours, theirs) = Channel::pair().unwrap();
            let top = Piece::Enter {
                name: "".into(),
                mode: 0o755,
            };
            ours.send(&top, &[]).unwrap();
            let file = Piece::File {
                name: name.into(),
                mode: 0o644,
            };
            ours.send(&file, &[null.as_fd()]).unwrap();
            assert_eq!(
                receive(&theirs, to.path()),
                Err(FileFault::Malformed),
                "{name}"
            );
        }
        let (ours, theirs) = Channel::pair().unwrap();
        for name in ["", "out"] {
            ours.send(
                &Piece::Enter {
                    name: name.into(),
                    mode: 0o755,
                },
                &[],
            )
            .unwrap();
        }
        assert!(matches!(
            receive(&theirs, to.path()),
            Err(FileFault::Errno(libc::ELOOP | libc::ENOTDIR, _))
        ));
    }
}
