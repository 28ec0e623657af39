//! A directory and what lies below it, reached by paths that follow no link and leave no filesystem.
//!
//! Each directory is opened by its path, not from its parent's descriptor: a tree may be as deep as a path is long,
//! and a process has few descriptors.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::changes::FileKind;

/// As overlayfs writes it where mounted with `userxattr`.
pub(super) const OPAQUE_XATTR: &[u8] = b"user.overlay.opaque";

/// What could not be read or written of a layer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) doing: String,
    /// In the layer, for people.
    pub(crate) path: String,
    pub(crate) errno: i32,
}

impl Fault {
    pub(crate) fn new(doing: &str, path: impl AsRef<OsStr>, errno: Errno) -> Self {
        Self {
            doing: doing.to_owned(),
            path: path.as_ref().to_string_lossy().into_owned(),
            errno: errno.raw_os_error(),
        }
    }

    #[cfg(feature = "images")]
    pub(crate) fn io(doing: &str, path: impl AsRef<OsStr>, error: &std::io::Error) -> Self {
        Self::new(
            doing,
            path,
            Errno::from_io_error(error).unwrap_or(Errno::IO),
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = std::io::Error::from_raw_os_error(self.errno);
        write!(f, "cannot {}", self.doing)?;
        if !self.path.is_empty() {
            write!(f, " /{}", self.path.trim_start_matches('/').escape_debug())?;
        }
        write!(f, ": {why}")
    }
}

impl std::error::Error for Fault {}

/// The root of a tree.
#[derive(Debug)]
pub(super) struct Tree(pub(super) OwnedFd);

impl Tree {
    /// Opens what is at `path`, which is relative; the root is the empty path.
    pub(super) fn open(&self, path: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() {
            OsStr::new(".")
        } else {
            path
        };
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    pub(super) fn directory(&self, path: &OsStr) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// What is at `path`, itself and not what it links to.
    pub(super) fn stat(&self, path: &OsStr) -> Result<Option<Stat>, Errno> {
        match self.open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(fd) => rustix::fs::fstat(&fd).map(Some),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether the directory at `path` hides what lies below it in lower layers.
    pub(super) fn is_opaque(&self, path: &OsStr) -> bool {
        self.directory(path).is_ok_and(|fd| is_opaque(&fd))
    }

    /// The names in the directory at `path`, sorted.
    pub(super) fn names(&self, path: &OsStr) -> Result<Vec<OsString>, Errno> {
        names(&self.directory(path)?)
    }
}

pub(super) fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0; 4];
    rustix::fs::fgetxattr(directory, OPAQUE_XATTR, &mut value)
        .is_ok_and(|length| value[..length] == *b"y")
}

/// The names in `directory`, sorted.
pub(super) fn names(directory: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut found = Vec::new();
    let mut entries = Dir::read_from(directory)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            found.push(OsStr::from_bytes(name).to_owned());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// `name` in the directory `path`, both relative.
pub(super) fn child(path: &OsStr, name: &OsStr) -> OsString {
    if path.is_empty() {
        name.to_owned()
    } else {
        Path::new(path).join(name).into_os_string()
    }
}

pub(super) fn stat_in(directory: &OwnedFd, name: &OsStr) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(super) fn type_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn kind_of(stat: &Stat) -> FileKind {
    match type_of(stat) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

/// Whether a file of an overlay's upper layer says that the one below it is hidden.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    type_of(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}
