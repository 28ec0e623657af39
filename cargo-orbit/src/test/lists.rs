//! Which tests a binary has, as it said when it was asked last: as long as it is the same file, it has the same.
//!
//! That holds for the standard test harness, whose list is compiled into the binary, and not for a `main` of its own,
//! which may read its tests from files. Who replaces the harness by `#![test_runner]`, which is unstable, has to have a
//! list that is compiled in, too.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use serde::{Deserialize, Serialize};

/// A test's name, and whether it is ignored.
pub(crate) type Tests = Vec<(String, bool)>;

/// What is known of binaries, by their paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lists(BTreeMap<String, Known>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    tests: Tests,
}

/// What a file has no more once it is another, or was written to: the time of its last change is the system's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// That of the file at `path`.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl Lists {
    /// The tests of the binary at `path`, where it is the file that was asked.
    pub(crate) fn of(&self, path: &Path, stamp: Stamp) -> Option<Tests> {
        let known = self.0.get(path.to_str()?)?;
        (known.stamp == stamp).then(|| known.tests.clone())
    }

    /// Takes note of what the binary at `path` said that was `stamp` before it was asked.
    pub(crate) fn learn(&mut self, path: &Path, stamp: Stamp, tests: Tests) {
        if let Some(path) = path.to_str() {
            self.0.insert(path.to_owned(), Known { stamp, tests });
        }
    }

    /// What is known of files that are still there as they were.
    pub(crate) fn forget_gone(&mut self) {
        self.0
            .retain(|path, known| Stamp::of(Path::new(path)).is_ok_and(|it| it == known.stamp));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests() -> Tests {
        vec![("one".to_owned(), false), ("two".to_owned(), true)]
    }

    #[test]
    fn the_same_file_has_the_same_tests() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("binary");
        fs::write(&path, "1").unwrap();
        let stamp = Stamp::of(&path).unwrap();
        let mut lists = Lists::default();
        assert_eq!(lists.of(&path, stamp), None);
        lists.learn(&path, stamp, tests());
        lists.forget_gone();
        assert_eq!(lists.of(&path, stamp), Some(tests()));
    }

    #[test]
    fn another_file_or_what_was_written_to_is_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("binary");
        fs::write(&path, "1").unwrap();
        let before = Stamp::of(&path).unwrap();
        let mut lists = Lists::default();
        lists.learn(&path, before, tests());

        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        // As cargo writes it anew, and as who would hide that.
        let other = directory.path().join("other");
        fs::write(&other, "2").unwrap();
        fs::rename(&other, &path).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(modified).unwrap();
        let replaced = Stamp::of(&path).unwrap();
        assert_eq!(lists.of(&path, replaced), None);
        lists.forget_gone();
        assert_eq!(lists, Lists::default());

        lists.learn(&path, replaced, tests());
        fs::remove_file(&path).unwrap();
        lists.forget_gone();
        assert_eq!(lists, Lists::default());
    }
}
