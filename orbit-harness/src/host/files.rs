//! What the host has of files, as far as a sandbox over them depends on it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Read as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use super::is_same;

/// What lies in `/`, and what is mounted there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    /// What lies in `/`, by name.
    pub(crate) top_level: BTreeMap<PathBuf, TopLevel>,
    /// Where filesystems are mounted, as absolute paths.
    pub(crate) mount_points: Vec<PathBuf>,
    /// Whether a file in memory takes attributes of users, by which a layer there hides what is below it.
    pub(crate) hides_in_memory: bool,
}

/// One name in `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TopLevel {
    Directory,
    /// One with nothing in it, as the system makes them: root's, with mode 755.
    EmptyDirectory,
    Symlink(PathBuf),
    Other,
}

impl Files {
    pub(super) fn probe() -> io::Result<Self> {
        Ok(Self {
            top_level: read_top_level()?,
            mount_points: read_mount_points(&read_mountinfo()?),
            hides_in_memory: takes_attributes(),
        })
    }

    /// Whether a filesystem is mounted at `path`, which is normal.
    pub(crate) fn is_mount_point(&self, path: &Path) -> bool {
        self.mount_points.iter().any(|mount| is_same(mount, path))
    }

    /// Whether a filesystem is mounted somewhere below `path`, which is normal, and not at it.
    pub(crate) fn has_mounts_below(&self, path: &Path) -> bool {
        let path = path.as_os_str().as_bytes();
        let path = path.strip_suffix(b"/").unwrap_or(path);
        self.mount_points
            .iter()
            .filter_map(|mount| mount.as_os_str().as_bytes().strip_prefix(path))
            .any(|rest| rest.len() > 1 && rest.starts_with(b"/"))
    }
}

/// Whether a tmpfs keeps attributes in `user.` (Linux 6.6): a memfd is a file of one.
fn takes_attributes() -> bool {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create(c"orbit", flags).is_ok_and(|file| {
        rustix::fs::fsetxattr(&file, c"user.orbit", b"y", rustix::fs::XattrFlags::empty()).is_ok()
    })
}

fn read_top_level() -> io::Result<BTreeMap<PathBuf, TopLevel>> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let found = if kind.is_dir() {
            if is_plain_and_empty(&entry.path()) {
                TopLevel::EmptyDirectory
            } else {
                TopLevel::Directory
            }
        } else if kind.is_symlink() {
            TopLevel::Symlink(fs::read_link(entry.path())?)
        } else {
            TopLevel::Other
        };
        entries.insert(entry.path(), found);
    }
    Ok(entries)
}

/// Whether a fresh directory would look the same. One that cannot be read is not known to be empty.
fn is_plain_and_empty(path: &Path) -> bool {
    let is_plain = fs::symlink_metadata(path)
        .is_ok_and(|it| (it.uid(), it.gid(), it.mode() & 0o7777) == (0, 0, 0o755));
    is_plain && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// The mount table that this thread sees. In few calls: with each the kernel looks again for where it had stopped.
pub(crate) fn read_mountinfo() -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(16 * 1024);
    fs::File::open("/proc/thread-self/mountinfo")?.read_to_end(&mut text)?;
    Ok(text)
}

/// The mount points in the text of a mountinfo file: its fifth column, with octal escapes.
///
/// Source: proc_pid_mountinfo(5).
pub(crate) fn read_mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    let fifth = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(unescape);
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(fifth)
        .collect()
}

fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u32, |value, digit| {
                (b'0'..=b'7')
                    .contains(digit)
                    .then(|| value * 8 + u32::from(digit - b'0'))
            })
        });
        let escaped = octal.and_then(|value| u8::try_from(value).ok());
        path.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let text = b"22 1 0:20 / /proc rw - proc proc rw\n\
            23 1 0:21 / /mnt/with\\040space\\134x rw shared:1 - ext4 /dev/vda rw\n";
        assert_eq!(
            read_mount_points(text),
            [PathBuf::from("/proc"), PathBuf::from("/mnt/with space\\x")]
        );
    }

    #[test]
    fn an_incomplete_escape_stays_as_it_is() {
        assert_eq!(unescape(b"/a\\04"), PathBuf::from("/a\\04"));
        assert_eq!(unescape(b"/a\\777"), PathBuf::from("/a\\777"));
    }

    #[test]
    fn this_machine_has_a_root() {
        let files = Files::probe().unwrap();
        assert!(files.top_level.contains_key(Path::new("/usr")));
        assert!(files.mount_points.contains(&PathBuf::from("/")));
        assert!(files.has_mounts_below(Path::new("/")));
        assert!(files.is_mount_point(Path::new("/proc")));
    }

    #[test]
    fn a_mount_is_below_a_directory_and_not_below_its_namesake() {
        let mut files = Files {
            mount_points: ["/", "/mnt/disk", "/home"].map(PathBuf::from).to_vec(),
            ..Files::default()
        };
        let below = |path| files.has_mounts_below(Path::new(path));
        assert!(below("/") && below("/mnt"));
        assert!(!below("/mnt/disk") && !below("/mnt/dis") && !below("/home") && !below("/m"));
        assert!(files.is_mount_point(Path::new("/")) && !files.is_mount_point(Path::new("/mnt")));
        files.mount_points = vec!["/".into()];
        assert!(!files.has_mounts_below(Path::new("/")));
    }
}
