//! A place to meet for the test processes of one `cargo orbit test`, and for nobody else.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

const SESSIONS: &str = "sessions";
const LOCK: &str = "lock";

/// A directory that is removed when this is dropped; one of a process that was killed, by the next that makes one.
#[derive(Debug)]
pub struct SessionDirectory {
    directory: TempDir,
    _lock: File,
}

impl SessionDirectory {
    /// In the directory for what lives as long as processes, or else in that for temporary files.
    ///
    /// # Errors
    /// Where neither can be written to.
    pub fn make() -> io::Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let runtime = crate::host::runtime_dir(uid).map(|runtime| runtime.join(SESSIONS));
        let made = runtime.and_then(|sessions| Self::make_in(&sessions).ok());
        made.map_or_else(|| Self::make_in(&std::env::temp_dir()), Ok)
    }

    fn make_in(parent: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        if parent.ends_with(SESSIONS) {
            sweep(parent)?;
        }
        let directory = tempfile::Builder::new()
            .prefix("orbit-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        let lock = File::create(directory.path().join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}

/// Removes what killed processes left.
fn sweep(sessions: &Path) -> io::Result<()> {
    for entry in fs::read_dir(sessions)? {
        let path = entry?.path();
        // One without a lock is about to get it.
        let Ok(lock) = File::open(path.join(LOCK)) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Another may be at it too.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_by_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let sessions = parent.path().join(SESSIONS);
        let lives = SessionDirectory::make_in(&sessions).unwrap();
        let left = sessions.join("orbit-left");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        let next = SessionDirectory::make_in(&sessions).unwrap();
        assert!(!left.exists() && lives.path().exists() && next.path() != lives.path());
        drop((lives, next));
        assert_eq!(fs::read_dir(&sessions).unwrap().count(), 0);
    }
}
