//! What a sandbox wrote: the files that were made, changed or removed in its writable layer, as data.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What became of a file; `docker diff` has the same three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It was not there when the sandbox was started.
    Added,
    /// It was there, and something of it was written: content, owner, mode, or another file took its place.
    Modified,
    /// It was there, and is not any more.
    Removed,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A fifo, a socket or a device.
    Other,
}

/// One file that a sandbox wrote, or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Change {
    /// Inside the sandbox.
    #[serde(serialize_with = "write_path", deserialize_with = "read_path")]
    pub path: PathBuf,
    /// What became of it.
    pub kind: ChangeKind,
    /// What it is; of one that was removed, what it was.
    pub file: FileKind,
    /// Its length in bytes, where it is a regular file that is there.
    pub bytes: u64,
    /// Whether it lies in a directory for temporary files: `/tmp`, `/var/tmp`, `/run`, `/dev/shm`, `$TMPDIR`, and over
    /// the host's files the private `$HOME`.
    pub temporary: bool,
}

/// `A /path`, `C /path` or `D /path`: as `docker diff` prints them.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            ChangeKind::Added => 'A',
            ChangeKind::Modified => 'C',
            ChangeKind::Removed => 'D',
        };
        // A name may hold anything, and is shown on terminals.
        write!(f, "{letter} {}", self.path.to_string_lossy().escape_debug())
    }
}

/// What a sandbox wrote: [`Sandbox::changes`](crate::Sandbox::changes).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Changes {
    /// By path. At most [`MAX_ENTRIES`](Self::MAX_ENTRIES), and as many more in directories for temporary files.
    pub entries: Vec<Change>,
    /// How many more there were outside of directories for temporary files.
    pub omitted: u64,
    /// How many more there were in those.
    pub omitted_temporary: u64,
}

impl Changes {
    /// How many changes are named; the rest is counted.
    pub const MAX_ENTRIES: usize = 10_000;

    /// Those outside of directories for temporary files.
    ///
    /// ```
    /// let outcome = orbit::Sandbox::builder()
    ///     .cmd(["sh", "-c", "echo 1 > /tmp/scratch; echo 2 > left-behind"])
    ///     .record_changes(true)
    ///     .run()?;
    /// let changes = outcome.changes.expect("asked for");
    /// let left: Vec<_> = changes.lasting().filter_map(|change| change.path.file_name()).collect();
    /// assert_eq!(left, ["left-behind"]);
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn lasting(&self) -> impl Iterator<Item = &Change> {
        self.entries.iter().filter(|change| !change.temporary)
    }

    /// Whether nothing was written at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.omitted == 0 && self.omitted_temporary == 0
    }

    /// Notes `change`, or counts it where too many are noted.
    pub(crate) fn push(&mut self, noted: &mut [usize; 2], change: Change) {
        let slot = &mut noted[usize::from(change.temporary)];
        if *slot < Self::MAX_ENTRIES {
            *slot += 1;
            self.entries.push(change);
        } else if change.temporary {
            self.omitted_temporary += 1;
        } else {
            self.omitted += 1;
        }
    }
}

/// Text for people, bytes between processes: a name need not be text.
fn write_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        path.to_string_lossy().serialize(serializer)
    } else {
        path.as_os_str().as_bytes().serialize(serializer)
    }
}

fn read_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    if deserializer.is_human_readable() {
        return String::deserialize(deserializer).map(PathBuf::from);
    }
    Vec::<u8>::deserialize(deserializer).map(|bytes| OsString::from_vec(bytes).into())
}

/// `base` and what lies in it under `inside`, which is relative; the root stays one slash.
pub(crate) fn joined(base: &Path, inside: &OsStr) -> PathBuf {
    if inside.is_empty() {
        base.to_owned()
    } else {
        base.join(inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &[u8]) -> Change {
        Change {
            path: OsStr::from_bytes(path).into(),
            kind: ChangeKind::Modified,
            file: FileKind::File,
            bytes: 3,
            temporary: false,
        }
    }

    #[test]
    fn a_name_that_is_no_text_crosses_between_processes_and_harms_no_terminal() {
        let odd = change(b"/a\xff\x1b[31m\n");
        let bytes = postcard::to_stdvec(&odd).unwrap();
        assert_eq!(postcard::from_bytes::<Change>(&bytes).unwrap(), odd);
        assert_eq!(odd.to_string(), "C /a\u{fffd}\\u{1b}[31m\\n");
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut changes = Changes::default();
        let mut noted = [0; 2];
        for number in 0..Changes::MAX_ENTRIES + 3 {
            changes.push(&mut noted, change(format!("/{number}").as_bytes()));
        }
        let mut temporary = change(b"/tmp/x");
        temporary.temporary = true;
        changes.push(&mut noted, temporary);
        assert_eq!((changes.omitted, changes.omitted_temporary), (3, 0));
        assert_eq!(changes.entries.len(), Changes::MAX_ENTRIES + 1);
    }
}
