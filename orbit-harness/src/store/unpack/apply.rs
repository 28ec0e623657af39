//! Members of an archive become files of a layer.
//!
//! What depends on the order of members is done at the end: whiteouts, which hide what *lower* layers have and
//! never what this layer brings, and the modes and times of directories, which their content changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    ops::Bound,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, XattrFlags},
    io::Errno,
};
use tar::EntryType;

use super::{
    UnpackOrder, UnpackStats,
    error::{Reason, UnpackError, UnpackStep},
    member::{Member, Members},
    metadata::Metadata,
    path::{CleanPath, Meaning},
    tree::Tree,
};

const COPY_BYTES: usize = 128 << 10;
/// What the sets below take for an entry, about.
const KEPT_BESIDE_A_NAME_BYTES: u64 = 100;
/// As overlayfs writes it where mounted with `userxattr`.
const OPAQUE_XATTR: &[u8] = b"user.overlay.opaque";

pub(super) struct Applier<'a> {
    order: &'a UnpackOrder,
    tree: Tree,
    stats: UnpackStats,
    /// Directories whose mode and times are set at the end.
    directories: BTreeMap<CleanPath, Metadata>,
    whiteouts: BTreeSet<CleanPath>,
    opaque: BTreeSet<CleanPath>,
    /// What those three have taken.
    kept_bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Applier<'a> {
    pub(super) fn new(order: &'a UnpackOrder, destination: OwnedFd) -> Self {
        Self {
            order,
            tree: Tree::new(destination),
            stats: UnpackStats::default(),
            directories: BTreeMap::new(),
            whiteouts: BTreeSet::new(),
            opaque: BTreeSet::new(),
            kept_bytes: 0,
            buffer: vec![0; COPY_BYTES],
        }
    }

    pub(super) fn apply(
        &mut self,
        mut member: Member,
        content: &mut Members<impl Read>,
    ) -> Result<(), UnpackError> {
        self.stats.entries += 1;
        let refuse = |reason| UnpackError::new(UnpackStep::CheckEntry, &member.path, reason);
        let limit = self.order.limits.max_entries;
        if self.stats.entries > limit {
            return Err(refuse(Reason::TooManyEntries { limit }));
        }
        let path = match Meaning::of(&member.path).map_err(refuse)? {
            Meaning::Entry(path) => path,
            Meaning::Whiteout(path) => {
                self.keeps(&path, &member.path)?;
                self.whiteouts.insert(path);
                return Ok(());
            }
            Meaning::Opaque(path) => {
                self.keeps(&path, &member.path)?;
                self.opaque.insert(path);
                return Ok(());
            }
            Meaning::Ignored => return Ok(()),
        };
        if path.is_root() && member.kind != EntryType::Directory {
            return Err(refuse(Reason::EmptyName));
        }
        match member.kind {
            EntryType::Directory => self.directory(path, &mut member),
            EntryType::Regular => self.file(&path, &mut member, content),
            EntryType::Symlink => self.symlink(&path, &mut member),
            EntryType::Link => self.hardlink(&path, &member),
            EntryType::Fifo => self.fifo(&path, &mut member),
            // A container's devices are Orbit's own; an image's cannot be made in a user namespace, and must not
            // be: 0:0 would pass for a whiteout.
            EntryType::Char | EntryType::Block => {
                self.stats.devices_skipped += 1;
                Ok(())
            }
            other => Err(refuse(Reason::UnknownType(other.as_byte()))),
        }
    }

    fn metadata(&mut self, member: &mut Member) -> Result<Metadata, UnpackError> {
        Metadata::take(member, self.order.ownership, &mut self.stats.xattrs_skipped)
    }

    fn directory(&mut self, path: CleanPath, member: &mut Member) -> Result<(), UnpackError> {
        let metadata = self.metadata(member)?;
        if path.is_root() {
            metadata.set_owner_and_xattrs(
                self.tree.root(),
                &member.path,
                &mut self.stats.xattrs_skipped,
            )?;
        } else {
            let entry = &member.path;
            let directory =
                self.make(&path, entry, UnpackStep::CreateDirectory, |parent, name| {
                    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
                        // A directory that is there stays, with its content; a link to one is replaced.
                        Err(Errno::EXIST)
                            if Tree::kind_of(parent.as_fd(), name)?
                                == Some(FileType::Directory) => {}
                        other => other?,
                    }
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(parent, name, flags, Mode::empty())
                })?;
            metadata.set_owner_and_xattrs(
                directory.as_fd(),
                entry,
                &mut self.stats.xattrs_skipped,
            )?;
        }
        self.keeps(&path, &member.path)?;
        self.directories.insert(path, metadata.without_xattrs());
        Ok(())
    }

    /// Counts a name that stays in memory to the end: entries may be many, and names long.
    fn keeps(&mut self, path: &CleanPath, entry: &[u8]) -> Result<(), UnpackError> {
        let limit = self.order.limits.max_names_bytes;
        self.kept_bytes += KEPT_BESIDE_A_NAME_BYTES + path.as_bytes().len() as u64;
        if self.kept_bytes > limit {
            let reason = Reason::NamesTooLong { limit };
            return Err(UnpackError::new(UnpackStep::CheckEntry, entry, reason));
        }
        Ok(())
    }

    fn file(
        &mut self,
        path: &CleanPath,
        member: &mut Member,
        content: &mut Members<impl Read>,
    ) -> Result<(), UnpackError> {
        let metadata = self.metadata(member)?;
        let entry = &member.path;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(
            self.make(path, entry, UnpackStep::CreateFile, |parent, name| {
                rustix::fs::openat(parent, name, flags, mode)
            })?,
        );
        match &member.sparse {
            None => self.copy(&file, 0, u64::MAX, entry, content)?,
            Some(map) => {
                let limit = self.order.limits.max_bytes;
                if map.real_size > limit {
                    return Err(UnpackError::new(
                        UnpackStep::CheckEntry,
                        entry,
                        Reason::TooManyBytes { limit },
                    ));
                }
                file.set_len(map.real_size)
                    .map_err(|e| UnpackError::io(UnpackStep::WriteFile, entry, &e))?;
                for (offset, length) in &map.pieces {
                    self.copy(&file, *offset, *length, entry, content)?;
                }
            }
        }
        self.stats.files += 1;
        metadata.set_all(file.as_fd(), entry, &mut self.stats.xattrs_skipped)
    }

    /// Writes up to `length` bytes of the member's content at `offset`.
    fn copy(
        &mut self,
        file: &File,
        mut offset: u64,
        mut length: u64,
        entry: &[u8],
        content: &mut Members<impl Read>,
    ) -> Result<(), UnpackError> {
        while length > 0 {
            let wanted = usize::try_from(length)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            let piece = match content.read(&mut self.buffer[..wanted]) {
                Ok(0) => return Ok(()),
                Ok(count) => &self.buffer[..count],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(UnpackError::io(UnpackStep::ReadArchive, entry, &error)),
            };
            file.write_all_at(piece, offset)
                .map_err(|e| UnpackError::io(UnpackStep::WriteFile, entry, &e))?;
            let count = piece.len() as u64;
            offset += count;
            length -= count;
            self.stats.content_bytes += count;
        }
        Ok(())
    }

    fn symlink(&mut self, path: &CleanPath, member: &mut Member) -> Result<(), UnpackError> {
        let metadata = self.metadata(member)?;
        let (entry, target) = (&member.path, &*member.link);
        // Where it leads is the container's business: nothing here follows it.
        self.make(path, entry, UnpackStep::CreateSymlink, |parent, name| {
            rustix::fs::symlinkat(target, parent, name)
        })?;
        let (parent, name) = path.split();
        let parent = self.tree.directory(parent, entry)?;
        metadata.set_by_name(parent, name, true, entry)
    }

    fn hardlink(&mut self, path: &CleanPath, member: &Member) -> Result<(), UnpackError> {
        let entry = &member.path;
        let step = UnpackStep::CreateHardlink;
        let refuse = |reason| UnpackError::new(step, entry, reason);
        let target = CleanPath::new(&member.link).map_err(refuse)?;
        let (target_parent, target_name) = target.split();
        let target_fd = match self
            .tree
            .open_beneath(target_parent, OFlags::PATH | OFlags::DIRECTORY)
        {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(refuse(Reason::LinkTargetMissing)),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                return Err(refuse(Reason::ThroughSymlink));
            }
            Err(errno) => return Err(UnpackError::system(step, entry, errno)),
        };
        if target.is_root() {
            return Err(refuse(Reason::LinkTargetDirectory));
        }
        match Tree::kind_of(target_fd.as_fd(), target_name) {
            Ok(None) => return Err(refuse(Reason::LinkTargetMissing)),
            Ok(Some(FileType::Directory)) => return Err(refuse(Reason::LinkTargetDirectory)),
            Ok(Some(_)) if target == *path => return Ok(()),
            Ok(Some(_)) => {}
            Err(errno) => return Err(UnpackError::system(step, entry, errno)),
        }
        let linked = self.make(path, entry, step, |parent, name| {
            // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is a second name of that.
            rustix::fs::linkat(&target_fd, target_name, parent, name, AtFlags::empty())
        });
        match linked {
            // The target lay in what this entry replaced.
            Err(error) if error.errno == Errno::NOENT.raw_os_error() => {
                Err(refuse(Reason::LinkTargetMissing))
            }
            other => other,
        }
    }

    fn fifo(&mut self, path: &CleanPath, member: &mut Member) -> Result<(), UnpackError> {
        let metadata = self.metadata(member)?;
        let entry = &member.path;
        self.make(path, entry, UnpackStep::CreateFifo, |parent, name| {
            rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        })?;
        let (parent, name) = path.split();
        let parent = self.tree.directory(parent, entry)?;
        metadata.set_by_name(parent, name, false, entry)
    }

    /// Runs `create` on the parent and the name of `path`. Where something is there already, it is removed first:
    /// the last entry of a name wins, and nothing is ever written through an earlier one.
    fn make<T>(
        &mut self,
        path: &CleanPath,
        entry: &[u8],
        step: UnpackStep,
        mut create: impl FnMut(rustix::fd::BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let (parent, name) = path.split();
        let parent_fd = self.tree.directory(parent, entry)?;
        match create(parent_fd, name) {
            Err(Errno::EXIST) => {
                if self.tree.remove(parent, name, entry)? {
                    self.forget_directories(path);
                }
                let parent_fd = self.tree.directory(parent, entry)?;
                create(parent_fd, name)
            }
            other => other,
        }
        .map_err(|errno| UnpackError::system(step, entry, errno))
    }

    /// A directory that is gone must not lend its mode to what stands in its place.
    fn forget_directories(&mut self, path: &CleanPath) {
        self.directories.remove(path);
        let below = [path.as_bytes(), b"/"].concat();
        let from = (Bound::Excluded(&*below), Bound::Unbounded);
        let gone = self.directories.range::<[u8], _>(from);
        let gone = gone.map(|(known, _)| known.clone());
        let gone: Vec<_> = gone
            .take_while(|known| known.as_bytes().starts_with(&below))
            .collect();
        for known in gone {
            self.directories.remove(&known);
        }
    }

    /// What had to wait for the last member.
    pub(super) fn finish(mut self) -> Result<UnpackStats, UnpackError> {
        for path in std::mem::take(&mut self.whiteouts) {
            self.whiteout(&path)?;
        }
        for path in std::mem::take(&mut self.opaque) {
            self.mark_opaque(&path)?;
        }
        // Deepest first: a mode may take away the right to go down.
        for (path, metadata) in std::mem::take(&mut self.directories).iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let entry = path.as_bytes();
            let directory = self
                .tree
                .open_beneath(entry, flags)
                .map_err(|errno| UnpackError::system(UnpackStep::SetMode, entry, errno))?;
            metadata.set_mode_and_times(directory.as_fd(), entry)?;
        }
        Ok(self.stats)
    }

    fn whiteout(&mut self, path: &CleanPath) -> Result<(), UnpackError> {
        let (parent, name) = path.split();
        let entry = path.as_bytes();
        let system = |errno| UnpackError::system(UnpackStep::CreateWhiteout, entry, errno);
        let fd = self.tree.directory(parent, entry)?;
        match Tree::kind_of(fd, name).map_err(system)? {
            None => {
                rustix::fs::mknodat(fd, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(system)?;
                self.stats.whiteouts += 1;
                Ok(())
            }
            // This layer has a directory of its own there: only what lies below it is hidden.
            Some(FileType::Directory) => self.mark_opaque(path),
            // A file of this layer hides by itself.
            Some(_) => Ok(()),
        }
    }

    fn mark_opaque(&mut self, path: &CleanPath) -> Result<(), UnpackError> {
        let entry = path.as_bytes();
        if path.is_root() {
            // Overlayfs reads no mark on the root of a layer: the store leaves out the layers below instead.
            self.stats.is_root_opaque = true;
            return Ok(());
        }
        let fd = self.tree.directory(entry, entry)?;
        rustix::fs::fsetxattr(fd, OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(|errno| UnpackError::system(UnpackStep::MarkOpaque, entry, errno))?;
        self.stats.opaque_directories += 1;
        Ok(())
    }
}
