//! Removing a tree of any depth with a handful of descriptors and no recursion.
//!
//! Relative to a descriptor throughout, following nothing. A directory found inside is first lifted to the top of
//! the tree, so that a layer nested two thousand deep needs neither two thousand descriptors nor a long path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes `name` in `parent`, and where it is a directory all that is in it. What is not there is removed.
///
/// # Errors
/// What the kernel said to the one operation that failed; some of the tree may be gone.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let top = match open_directory(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return rustix::fs::unlinkat(parent, name, AtFlags::empty());
        }
        Err(errno) => return Err(errno),
    };
    let mut lifted = 0;
    // Each round empties the directories at the top and lifts those in them; the depth sinks by one at least.
    loop {
        let directories = unlink_files(&top)?;
        if directories.is_empty() {
            break;
        }
        for directory in directories {
            empty_into(&top, &directory, &mut lifted)?;
            rustix::fs::unlinkat(&top, &*directory, AtFlags::REMOVEDIR)?;
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes all files of `directory`; returns the names of the directories in it.
fn unlink_files(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut directories = Vec::new();
    let mut entries = Dir::read_from(directory)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            directories.push(name.to_vec());
            continue;
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // A file system that does not tell the type when listing.
            Err(Errno::ISDIR) => directories.push(name.to_vec()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(directories)
}

/// Empties the directory `name` in `top`: its files are removed, its directories move up.
fn empty_into(top: &OwnedFd, name: &[u8], lifted: &mut u64) -> Result<(), Errno> {
    let directory = open_directory(top.as_fd(), name)?;
    for child in unlink_files(&directory)? {
        // Most are empty by now, or were always.
        match rustix::fs::unlinkat(&directory, &*child, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => lift(top, &directory, &child, lifted)?,
            other => other?,
        }
    }
    Ok(())
}

fn lift(top: &OwnedFd, directory: &OwnedFd, child: &[u8], lifted: &mut u64) -> Result<(), Errno> {
    loop {
        *lifted += 1;
        let name = format!(".orbit-lifted-{lifted}");
        match rustix::fs::renameat(directory, child, top, &*name) {
            // The name is the archive's own: take the next.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            // To move a directory is to write its `..`.
            Err(Errno::ACCESS) => make_writable(&open_directory(directory.as_fd(), child)?)?,
            other => return other,
        }
    }
}

/// Opens a directory so that its content can be removed. An image may hold directories that even their owner may
/// not write; in the user namespace of a worker that stops nobody, elsewhere the mode is in the way.
fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat(parent, name, OPEN_DIRECTORY, Mode::empty()) {
        Ok(directory) => {
            let mode = rustix::fs::fstat(&directory)?.st_mode;
            if mode & 0o300 != 0o300 {
                // Where the kernel refuses this, it will refuse the removal, and that error is reported.
                let _ = make_writable(&directory);
            }
            Ok(directory)
        }
        Err(Errno::ACCESS) => {
            let handle =
                rustix::fs::openat(parent, name, OFlags::PATH | OPEN_DIRECTORY, Mode::empty())?;
            // fchmod takes no O_PATH descriptor; the name in procfs leads to this very directory.
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle));
            rustix::fs::chmod(&*path, Mode::RWXU)?;
            rustix::fs::openat(parent, name, OPEN_DIRECTORY, Mode::empty())
        }
        Err(errno) => Err(errno),
    }
}

fn make_writable(directory: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fchmod(directory, Mode::RWXU)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_tree_deeper_than_a_path_may_be_long_is_removed() {
        let outside = tempfile::tempdir().unwrap();
        let keep = outside.path().join("keep");
        fs::write(&keep, "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let parent = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        rustix::fs::mkdirat(&parent, c"top", Mode::RWXU).unwrap();
        let mut current = open_directory(parent.as_fd(), b"top").unwrap();
        for depth in 0..3000 {
            rustix::fs::mkdirat(&current, c"d", Mode::RWXU).unwrap();
            rustix::fs::symlinkat(outside.path(), &current, c"link").unwrap();
            // A name that lifting would take.
            rustix::fs::mkdirat(&current, format!(".orbit-lifted-{depth}"), Mode::RWXU).unwrap();
            current = open_directory(current.as_fd(), b"d").unwrap();
        }
        remove_tree(parent.as_fd(), b"top").unwrap();
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
        assert!(keep.exists());
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("file"), "x").unwrap();
        symlink(&target, dir.path().join("link")).unwrap();
        let parent = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        remove_tree(parent.as_fd(), b"link").unwrap();
        remove_tree(parent.as_fd(), b"missing").unwrap();
        assert!(target.join("file").exists());
        assert!(!dir.path().join("link").exists());
    }
}
