//! Why a layer could not be unpacked, as data.
//!
//! Layers are unpacked in another process: what crosses the boundary is the step, the entry, the errno and a
//! reason, never prose. `Display` makes the prose where a person reads it.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use super::super::digest::Digest;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UnpackStep {
    ReadArchive,
    CheckEntry,
    OpenParent,
    RemoveOld,
    CreateDirectory,
    CreateFile,
    WriteFile,
    CreateSymlink,
    CreateHardlink,
    CreateFifo,
    CreateWhiteout,
    MarkOpaque,
    SetOwner,
    SetMode,
    SetXattr,
    SetTimes,
    Verify,
}

impl UnpackStep {
    const fn doing(self) -> &'static str {
        match self {
            Self::ReadArchive => "reading the archive",
            Self::CheckEntry => "checking an entry",
            Self::OpenParent => "opening the parent directory",
            Self::RemoveOld => "removing what an earlier entry put there",
            Self::CreateDirectory => "creating a directory",
            Self::CreateFile => "creating a file",
            Self::WriteFile => "writing a file",
            Self::CreateSymlink => "creating a symbolic link",
            Self::CreateHardlink => "creating a hard link",
            Self::CreateFifo => "creating a fifo",
            Self::CreateWhiteout => "creating a whiteout",
            Self::MarkOpaque => "marking a directory opaque",
            Self::SetOwner => "setting an owner",
            Self::SetMode => "setting a mode",
            Self::SetXattr => "setting an extended attribute",
            Self::SetTimes => "setting times",
            Self::Verify => "verifying the layer",
        }
    }
}

/// What was wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    /// The system refused; `errno` says how.
    System,
    /// The compressed stream is damaged or ends early.
    Damaged,
    /// zstd refuses it.
    WindowTooLarge,
    /// The archive, or its compressed stream, ends in the middle of an entry.
    Truncated,
    /// A header's checksum is wrong: this is no tar archive, or not any more.
    BadChecksum,
    /// A field of a header cannot be read.
    BadHeader,
    /// A PAX record cannot be read, or says what readers would understand in different ways.
    BadPax,
    /// A map of a sparse file contradicts itself.
    BadSparseMap,
    /// An entry that has no content says it has some: readers differ in what follows.
    AmbiguousSize,
    /// An entry's type is not known.
    UnknownType(u8),
    /// A name has `..` in it.
    DotDot,
    /// A name holds a NUL.
    Nul,
    /// A name, or a part of it, is longer than Linux takes.
    NameTooLong,
    /// A name is empty, or is the root's where a directory alone can stand.
    EmptyName,
    /// A whiteout names nothing that could be hidden.
    BadWhiteout,
    /// The path leads through a symbolic link that the layer itself made.
    ThroughSymlink,
    /// The owner has no number in the container's id map.
    UnmappedOwner {
        uid: u32,
        gid: u32,
    },
    /// A hard link's target is not in this layer.
    LinkTargetMissing,
    /// A hard link's target is a directory.
    LinkTargetDirectory,
    TooManyEntries {
        limit: u64,
    },
    TooManyBytes {
        limit: u64,
    },
    /// The archive's extended headers are larger than any real one.
    HeaderTooLarge {
        limit: u64,
    },
    /// The names of directories, and of what is to be hidden, are longer together than any real ones.
    NamesTooLong {
        limit: u64,
    },
    /// The image's configuration promises other content.
    WrongDiffId {
        expected: Digest,
        found: Digest,
    },
    /// The manifest promises another blob.
    WrongBlob {
        expected: Digest,
        found: Digest,
    },
    /// The blob is not as long as the manifest says.
    WrongLength {
        expected: u64,
        found: u64,
    },
}

/// Why a layer was not unpacked. Nothing of it may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnpackError {
    pub(crate) step: UnpackStep,
    /// The entry's name, as in the archive; empty where no entry is at fault.
    pub(crate) entry: Vec<u8>,
    /// Zero where the system has nothing to do with it.
    pub(crate) errno: i32,
    pub(crate) reason: Reason,
}

impl UnpackError {
    pub(super) fn new(step: UnpackStep, entry: &[u8], reason: Reason) -> Self {
        Self {
            step,
            // The longest name Linux takes: a longer one is cut, it is only shown.
            entry: entry[..entry.len().min(4096)].to_vec(),
            errno: 0,
            reason,
        }
    }

    pub(super) fn system(step: UnpackStep, entry: &[u8], errno: rustix::io::Errno) -> Self {
        Self {
            errno: errno.raw_os_error(),
            ..Self::new(step, entry, Reason::System)
        }
    }

    /// Errors of the stream below: those without an errno come from the decompressor.
    pub(super) fn io(step: UnpackStep, entry: &[u8], error: &io::Error) -> Self {
        if let Some(limit) = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<LimitReached>())
        {
            return Self::new(step, entry, Reason::TooManyBytes { limit: limit.0 });
        }
        match error.raw_os_error() {
            Some(errno) => Self {
                errno,
                ..Self::new(step, entry, Reason::System)
            },
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::new(step, entry, Reason::Truncated)
            }
            // Of zstd there is no more than its words.
            None if error.to_string().contains("too much memory") => {
                Self::new(step, entry, Reason::WindowTooLarge)
            }
            None => Self::new(step, entry, Reason::Damaged),
        }
    }
}

/// More bytes came out of a layer than its limit allows: carried through [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("the limit of {0} bytes is reached")]
pub(super) struct LimitReached(pub(super) u64);

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.step.doing())?;
        if !self.entry.is_empty() {
            // Escaped: an archive must not write control sequences to a terminal.
            write!(f, " for the entry `{}`", self.entry.escape_ascii())?;
        }
        f.write_str(": ")?;
        match &self.reason {
            Reason::System => write!(f, "{}", io::Error::from_raw_os_error(self.errno)),
            Reason::WindowTooLarge => f.write_str(
                "its compression needs more than 128 MiB of memory to be undone; compress it without --long",
            ),
            Reason::Damaged => f.write_str("the compressed data is damaged"),
            Reason::Truncated => f.write_str("the data ends in the middle of an entry"),
            Reason::BadChecksum => {
                f.write_str("a header's checksum is wrong, so this is not a tar archive")
            }
            Reason::BadHeader => f.write_str("a field of the header cannot be read"),
            Reason::BadPax => f.write_str("the PAX header is malformed or ambiguous"),
            Reason::BadSparseMap => f.write_str("the map of the sparse file contradicts itself"),
            Reason::AmbiguousSize => f.write_str(
                "an entry without content claims a size, which readers take differently",
            ),
            Reason::UnknownType(kind) => write!(
                f,
                "the type `{}` is not known",
                std::ascii::escape_default(*kind)
            ),
            Reason::DotDot => f.write_str("a name may not hold `..`"),
            Reason::Nul => f.write_str("a name may not hold a NUL"),
            Reason::NameTooLong => f.write_str("the name is longer than Linux takes"),
            Reason::EmptyName => f.write_str("the name is empty"),
            Reason::BadWhiteout => f.write_str("the whiteout names nothing that could be hidden"),
            Reason::ThroughSymlink => {
                f.write_str("the path leads through something that is not a directory")
            }
            Reason::UnmappedOwner { uid, gid } => write!(
                f,
                "user {uid} and group {gid} are not among the ids that containers of this user may use; \
                 add a range with `usermod --add-subuids` and `--add-subgids`, and install newuidmap"
            ),
            Reason::LinkTargetMissing => {
                f.write_str("the target of the hard link is not in this layer")
            }
            Reason::LinkTargetDirectory => {
                f.write_str("the target of the hard link is a directory")
            }
            Reason::TooManyEntries { limit } => write!(f, "there are more than {limit} entries"),
            Reason::TooManyBytes { limit } => {
                write!(f, "there are more than {limit} bytes of content")
            }
            Reason::HeaderTooLarge { limit } => {
                write!(f, "an extended header is larger than {limit} bytes")
            }
            Reason::NamesTooLong { limit } => write!(
                f,
                "the names of directories, and of what is to be hidden, take more than {limit} bytes together"
            ),
            Reason::WrongDiffId { expected, found } => write!(
                f,
                "the content is {found}, but the image's configuration says {expected}"
            ),
            Reason::WrongBlob { expected, found } => {
                write!(f, "the blob is {found}, but the manifest says {expected}")
            }
            Reason::WrongLength { expected, found } => write!(
                f,
                "the blob has {found} bytes, but the manifest says {expected}"
            ),
        }
    }
}

impl std::error::Error for UnpackError {}
