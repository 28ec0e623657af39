//! Which directories of `/` are foreign: the caller may write nothing in them, and has nothing there.
//!
//! As far as is looked, which is not far: two directories deep, and in the system's own in what the administrator has
//! installed. The rest of those is of packages, and too much to look at.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD},
    io::Errno,
};

use super::{Host, TopLevel, is_same};

/// Where systems have their programs and settings.
///
/// Source: Filesystem Hierarchy Standard 3.0, chapters 3 and 4.
const SYSTEM: [&str; 7] = ["/bin", "/boot", "/etc", "/lib", "/lib64", "/sbin", "/usr"];

/// How many names are looked at in and below another directory, at most: each takes a microsecond or two.
const MOST_NAMES: usize = 256;

impl Host {
    /// Looks which directories of `/` are foreign, of those that `may_be`; the first time that somebody asks. Nothing is
    /// for root, nor where `/` cannot be looked at, which the plan says then.
    pub(crate) fn find_foreign(&self, may_be: impl Fn(&Path) -> bool) {
        if self.foreign.get().is_none()
            && let Ok(found) = self.look(may_be)
        {
            // Somebody else may have been sooner.
            let _ = self.foreign.set(found);
        }
    }

    /// Whether this directory of `/` was found to be foreign.
    pub(crate) fn is_foreign(&self, top: &Path) -> bool {
        self.foreign.get().is_some_and(|found| found.contains(top))
    }

    fn look(&self, may_be: impl Fn(&Path) -> bool) -> io::Result<BTreeSet<PathBuf>> {
        if self.uid == 0 {
            return Ok(BTreeSet::new());
        }
        let files = self.files()?;
        let directories = files
            .top_level
            .iter()
            .filter(|(_, kind)| **kind == TopLevel::Directory)
            .map(|(path, _)| path);
        Ok(directories
            .filter(|path| may_be(path) && !files.is_mount_point(path))
            .filter(|path| !files.has_mounts_below(path) && self.has_nothing_in(path))
            .cloned()
            .collect())
    }

    /// Whether the caller has nothing in this directory of `/`, and may write nothing.
    fn has_nothing_in(&self, path: &Path) -> bool {
        let is_systems = SYSTEM.iter().any(|it| is_same(path, Path::new(it)));
        let mut names_left = if is_systems { usize::MAX } else { MOST_NAMES };
        if self.may_have(path) {
            return false;
        }
        let Some(children) = self.children(path, &mut names_left) else {
            return false;
        };
        let deeper = if is_systems {
            vec![path.join("local")]
        } else {
            children
        };
        deeper.iter().all(|child| {
            // What is no directory, or one that nobody may enter, has nothing for anybody.
            !is_directory(child)
                || access(child, Access::EXEC_OK) == Err(Errno::ACCESS)
                || self.children(child, &mut names_left).is_some()
        })
    }

    /// What lies in a directory, but for links. None where the caller has some of it, where there may be more than is seen, and
    /// where it is too much to look at.
    fn children(&self, path: &Path, names_left: &mut usize) -> Option<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(path).ok()? {
            *names_left = names_left.checked_sub(1)?;
            let entry = entry.ok()?;
            // To follow one might be to mount a filesystem of the network, or to wait for its server.
            if entry.file_type().ok()?.is_symlink() {
                continue;
            }
            let child = entry.path();
            if self.may_have(&child) {
                return None;
            }
            found.push(child);
        }
        Some(found)
    }

    /// Whether it is the caller's, or the caller may write to it, or might where it is not mounted read-only.
    fn may_have(&self, path: &Path) -> bool {
        let is_callers = fs::symlink_metadata(path).is_ok_and(|it| it.uid() == self.uid);
        is_callers || matches!(access(path, Access::WRITE_OK), Ok(()) | Err(Errno::ROFS))
    }
}

fn access(path: &Path, access: Access) -> rustix::io::Result<()> {
    rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS)
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|it| it.is_dir())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::host::Files;

    #[test]
    fn what_is_roots_is_foreign_to_others_alone() {
        let host = Host::get().unwrap().clone();
        let files = Files {
            mount_points: vec!["/".into()],
            ..host.files().unwrap().clone()
        };
        let host = Host {
            looked_up: files.into(),
            ..host
        };
        host.find_foreign(|path| path == Path::new("/usr") || path == Path::new("/tmp"));
        assert_eq!(host.is_foreign(Path::new("/usr")), host.uid != 0);
        assert!(!host.is_foreign(Path::new("/tmp")) && !host.is_foreign(Path::new("/var")));
    }

    /// Also where it may not be written to as it is. Root may write to all.
    #[test]
    fn what_is_the_callers_is_found_two_directories_deep() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        let all = [&deep, deep.parent().unwrap(), directory.path()];
        let set = |mode| {
            for path in all {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
        };
        set(0o555);
        let mut host = Host::get().unwrap().clone();
        let is_root = host.uid == 0;
        assert!(!host.has_nothing_in(directory.path()));
        // Some other user's.
        host.uid = 4_000_000_000;
        assert_eq!(host.has_nothing_in(directory.path()), !is_root);
        set(0o755);
        assert!(!host.has_nothing_in(directory.path()));
    }

    #[test]
    fn it_is_not_looked_at_more_than_so_many_names() {
        let mut host = Host::get().unwrap().clone();
        host.uid = 4_000_000_000;
        let names = |most| host.children(Path::new("/proc/self/ns"), &mut { most });
        assert_eq!(names(1), None);
        assert_eq!(names(100), Some(Vec::new()), "links are not looked at");
        assert_eq!(host.children(Path::new("/not there"), &mut 1), None);
    }
}
