//! Copies what was written into a layer of its own, which later sandboxes have under theirs.
//!
//! The parts of a sandbox over the host's files become one tree, each at its place. Whiteouts and opaque directories
//! stay what they are: overlayfs reads them as it wrote them. What cannot last is left out: sockets, devices, and
//! the files of `/etc` that name one sandbox.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::{Component, Path},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps,
        Uid, XattrFlags,
    },
    io::Errno,
};

use super::{
    Part, Writable,
    tree::{Fault, OPAQUE_XATTR, Tree, child, is_opaque, is_whiteout, names, stat_in, type_of},
};
use crate::{changes::joined, store::UnpackStats};

const COPY_BYTES: usize = 256 << 10;

/// What a sealed layer holds.
pub(crate) type Sealed = UnpackStats;

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Copies `writable` in the tmpfs `scratch` into the empty directory `destination`.
///
/// # Errors
/// The first file that could not be copied; the destination then holds some of the layer, and must be removed.
pub(crate) fn seal(
    writable: &Writable,
    scratch: OwnedFd,
    destination: OwnedFd,
) -> Result<Sealed, Fault> {
    let scratch = Tree(scratch);
    let mut sealer = Sealer {
        writable,
        stats: Sealed::default(),
        links: HashMap::new(),
        buffer: vec![0; COPY_BYTES],
    };
    let destination = Tree(destination);
    // The outer first: what is written to an inner one later would change the times of directories otherwise, but
    // those of a part are set when it is copied, and an inner one's place in an outer one is Orbit's own.
    for part in &writable.parts {
        let fault = |errno| Fault::new("seal the writable layer of", &part.at, errno);
        let from = Tree(scratch.directory(OsStr::new(&part.name)).map_err(fault)?);
        let to = Tree(place_of(&destination, &part.at).map_err(fault)?);
        sealer.part(part, &from, &to)?;
    }
    Ok(sealer.stats)
}

/// Copies a layer, whiteouts and all, into the empty directory `destination`.
///
/// # Errors
/// The first file that could not be copied.
pub(crate) fn copy(layer: OwnedFd, destination: OwnedFd) -> Result<(), Fault> {
    let mut sealer = Sealer {
        writable: &Writable::default(),
        stats: Sealed::default(),
        links: HashMap::new(),
        buffer: vec![0; COPY_BYTES],
    };
    let part = Part {
        name: String::new(),
        at: "/".into(),
        below: Vec::new(),
        is_overlay: true,
        is_temporary: false,
    };
    sealer.part(&part, &Tree(layer), &Tree(destination))
}

/// The directory `at` in the layer. Links in it are followed within it, as in the sandbox.
fn place_of(root: &Tree, at: &Path) -> Result<OwnedFd, Errno> {
    let mut current = rustix::fs::openat(&root.0, c".", OPEN_DIRECTORY, Mode::empty())?;
    let mut walked = OsString::new();
    let parts = at.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    for name in parts {
        walked = child(&walked, name);
        let open = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            rustix::fs::openat2(&root.0, &*walked, flags, Mode::empty(), resolve)
        };
        current = match open() {
            Err(Errno::NOENT) => {
                let mode = Mode::from_raw_mode(0o755);
                rustix::fs::mkdirat(&current, name, mode)?;
                rustix::fs::chmodat(&current, name, mode, AtFlags::empty())?;
                open()?
            }
            other => other?,
        };
    }
    Ok(current)
}

struct Sealer<'a> {
    writable: &'a Writable,
    stats: Sealed,
    /// Where a file with several names was copied to, by its number in the tmpfs: the part's name and the path in it.
    links: HashMap<u64, (String, OsString)>,
    buffer: Vec<u8>,
}

impl Sealer<'_> {
    fn part(&mut self, part: &Part, from: &Tree, to: &Tree) -> Result<(), Fault> {
        let mut todo = vec![OsString::new()];
        let mut copied = Vec::new();
        while let Some(path) = todo.pop() {
            let fault = |errno| Fault::new("seal", joined(&part.at, &path), errno);
            let source = from.directory(&path).map_err(fault)?;
            let target = to.directory(&path).map_err(fault)?;
            for name in names(&source).map_err(fault)? {
                let inside = child(&path, &name);
                let fault = |errno| Fault::new("seal", joined(&part.at, &inside), errno);
                let Some(stat) = stat_in(&source, &name).map_err(fault)? else {
                    continue;
                };
                if self.is_left_out(&joined(&part.at, &inside), &stat) {
                    continue;
                }
                self.stats.entries += 1;
                if type_of(&stat) == FileType::Directory {
                    self.directory(&target, &name).map_err(fault)?;
                    todo.push(inside);
                } else {
                    let entry = Entry {
                        part,
                        source: &source,
                        target: &target,
                        name: &name,
                        inside: &inside,
                        stat: &stat,
                    };
                    self.file(&entry, to).map_err(fault)?;
                }
            }
            copied.push(path);
        }
        // Deepest first: what is put into a directory changes its times, and a mode may take away the right to.
        for path in copied.iter().rev() {
            let fault = |errno| Fault::new("seal", joined(&part.at, path), errno);
            let source = from.directory(path).map_err(fault)?;
            let target = to.directory(path).map_err(fault)?;
            self.finish_directory(part, &source, &target)
                .map_err(fault)?;
        }
        Ok(())
    }

    /// The files that name one sandbox, and what Orbit mounts on.
    fn is_left_out(&self, path: &Path, stat: &Stat) -> bool {
        let is_file = type_of(stat) == FileType::RegularFile;
        is_file
            && self.writable.is_made(path)
            && (stat.st_size == 0 || self.writable.etc_at(path).is_some())
    }

    /// The mode is set when it is full.
    #[expect(clippy::unused_self, reason = "one of several that copy")]
    fn directory(&self, target: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        match rustix::fs::mkdirat(target, name, Mode::RWXU) {
            // The place of a part in another one.
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    fn finish_directory(
        &mut self,
        part: &Part,
        source: &OwnedFd,
        target: &OwnedFd,
    ) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(source)?;
        self.set_all(source.as_fd(), target.as_fd(), &stat)?;
        if part.is_overlay && is_opaque(source) {
            rustix::fs::fsetxattr(target, OPAQUE_XATTR, b"y", XattrFlags::empty())?;
            self.stats.opaque_directories += 1;
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, to: &Tree) -> Result<(), Errno> {
        let Entry {
            part,
            target,
            name,
            inside,
            stat,
            ..
        } = *entry;
        match type_of(stat) {
            FileType::CharacterDevice if part.is_overlay && is_whiteout(stat) => {
                rustix::fs::mknodat(target, name, FileType::CharacterDevice, Mode::empty(), 0)?;
                self.stats.whiteouts += 1;
                return Ok(());
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Socket => {
                self.stats.devices_skipped += 1;
                return Ok(());
            }
            _ => {}
        }
        if stat.st_nlink > 1 {
            let known = self
                .links
                .get(&stat.st_ino)
                .filter(|known| known.0 == part.name);
            if let Some((_, first)) = known {
                return rustix::fs::linkat(&to.0, &**first, target, name, AtFlags::empty());
            }
            self.links
                .insert(stat.st_ino, (part.name.clone(), inside.to_owned()));
        }
        match type_of(stat) {
            FileType::RegularFile => self.regular(entry),
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(entry.source, name, Vec::new())?;
                rustix::fs::symlinkat(&*link, target, name)?;
                set_by_name(entry)
            }
            FileType::Fifo => {
                rustix::fs::mknodat(target, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
                set_by_name(entry)?;
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::chmodat(target, name, mode, AtFlags::empty())?;
                set_times_by_name(entry)
            }
            _ => Ok(()),
        }
    }

    fn regular(&mut self, entry: &Entry<'_>) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = rustix::fs::openat(entry.source, entry.name, flags, Mode::empty())?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(entry.target, entry.name, flags, Mode::RUSR | Mode::WUSR)?;
        let (from, to) = (File::from(from), File::from(to));
        let size = u64::try_from(entry.stat.st_size).unwrap_or(0);
        rustix::fs::ftruncate(&to, size)?;
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let mut offset = 0;
        // Holes stay holes.
        while let Some((start, end)) = next_data(&from, offset, size)? {
            let mut at = start;
            while at < end {
                let wanted = usize::try_from(end - at)
                    .unwrap_or(usize::MAX)
                    .min(self.buffer.len());
                let count = from
                    .read_at(&mut self.buffer[..wanted], at)
                    .map_err(errno)?;
                if count == 0 {
                    break;
                }
                to.write_all_at(&self.buffer[..count], at).map_err(errno)?;
                at += count as u64;
                self.stats.content_bytes += count as u64;
            }
            offset = end;
        }
        self.stats.files += 1;
        self.set_all(from.as_fd(), to.as_fd(), entry.stat)
    }

    /// Owner, attributes, mode and times, in this order: each would undo what comes after it.
    fn set_all(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Stat,
    ) -> Result<(), Errno> {
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(to, Some(owner.0), Some(owner.1))?;
        self.copy_xattrs(from, to)?;
        rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        rustix::fs::futimens(to, &times(stat))
    }

    fn copy_xattrs(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
        for (name, value) in xattrs(from)? {
            match rustix::fs::fsetxattr(to, &*name, &value, XattrFlags::empty()) {
                Ok(()) => {}
                // The store's file system keeps none of this kind, as with layers of images.
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {
                    self.stats.xattrs_skipped += 1;
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// A file to be copied.
#[derive(Clone, Copy)]
struct Entry<'a> {
    part: &'a Part,
    source: &'a OwnedFd,
    target: &'a OwnedFd,
    name: &'a OsStr,
    inside: &'a OsStr,
    stat: &'a Stat,
}

fn set_by_name(entry: &Entry<'_>) -> Result<(), Errno> {
    let owner = (
        Uid::from_raw(entry.stat.st_uid),
        Gid::from_raw(entry.stat.st_gid),
    );
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(
        entry.target,
        entry.name,
        Some(owner.0),
        Some(owner.1),
        flags,
    )?;
    set_times_by_name(entry)
}

fn set_times_by_name(entry: &Entry<'_>) -> Result<(), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(entry.target, entry.name, &times(entry.stat), flags)
}

#[expect(
    clippy::cast_possible_wrap,
    clippy::unnecessary_cast,
    reason = "the types differ by architecture"
)]
fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime as i64,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime as i64,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

/// The next piece of `file` from `offset` on that is no hole: its start and its end.
pub(super) fn next_data(file: &File, offset: u64, size: u64) -> Result<Option<(u64, u64)>, Errno> {
    if offset >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        // Nothing but a hole up to the end.
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL) => return Ok(Some((offset, size))),
        Err(errno) => return Err(errno),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(size))))
}

/// The name and the value of an extended attribute.
type Attribute = (Vec<u8>, Vec<u8>);

/// The extended attributes of an open file, without those in which overlayfs keeps its own books.
pub(super) fn xattrs(file: BorrowedFd<'_>) -> Result<Vec<Attribute>, Errno> {
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(file, &mut list) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        match rustix::fs::fgetxattr(file, OsStr::from_bytes(name), &mut value) {
            Ok(length) => {
                value.truncate(length);
                found.push((name.to_vec(), value));
            }
            // Of another id map, or gone meanwhile.
            Err(Errno::NODATA | Errno::OVERFLOW | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}
