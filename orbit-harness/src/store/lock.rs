//! Advisory locks on files, which end with the process that holds them, however it ends.
//!
//! A lock is a `flock` on a file of its own. The file may be removed by whoever holds it exclusively; whoever then
//! gets the lock on what was removed tries again, so two processes never hold "the same" lock on two files.

use std::{
    fs::{File, Metadata, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::{Duration, SystemTime},
};

/// How exact the time of last use is: for most uses no file is written.
const USE_GRANULARITY: Duration = Duration::from_secs(3600);

/// Which lock, and what to do where it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Shared,
    Exclusive,
}

/// A lock that is held; dropping it lets go.
#[derive(Debug)]
pub(super) struct FileLock {
    file: File,
    /// As it was when the lock was taken.
    metadata: Metadata,
    /// When its use was noted last, or could not be.
    used: Option<SystemTime>,
}

/// A state of a file: what was read of it once holds as long as this is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    /// Of its content, its times, its names, in seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileLock {
    /// Takes the lock, shared, where it is there and free; else `None`.
    pub(super) fn try_share(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Self::try_take_of(file, path, Mode::Shared),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the lock where it is free; `None` where it is not.
    pub(super) fn try_take(path: &Path, mode: Mode) -> io::Result<Option<Self>> {
        Self::try_take_of(open(path, mode)?, path, mode)
    }

    fn try_take_of(file: File, path: &Path, mode: Mode) -> io::Result<Option<Self>> {
        Self::take_with(file, path, mode, |file, mode| {
            let taken = match mode {
                Mode::Shared => file.try_lock_shared(),
                Mode::Exclusive => file.try_lock(),
            };
            match taken {
                Ok(()) => Ok(true),
                Err(TryLockError::WouldBlock) => Ok(false),
                Err(TryLockError::Error(error)) => Err(error),
            }
        })
    }

    /// Waits for the lock; `on_wait` is called once where there is something to wait for.
    pub(super) fn take(path: &Path, mode: Mode, on_wait: impl FnOnce()) -> io::Result<Self> {
        if let Some(lock) = Self::try_take(path, mode)? {
            return Ok(lock);
        }
        on_wait();
        let lock = Self::take_with(open(path, mode)?, path, mode, |file, mode| {
            loop {
                let taken = match mode {
                    Mode::Shared => file.lock_shared(),
                    Mode::Exclusive => file.lock(),
                };
                match taken {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => return other.map(|()| true),
                }
            }
        })?;
        // A blocking lock is taken or is an error.
        lock.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn take_with(
        mut file: File,
        path: &Path,
        mode: Mode,
        take: impl Fn(&File, Mode) -> io::Result<bool>,
    ) -> io::Result<Option<Self>> {
        loop {
            if !take(&file, mode)? {
                return Ok(None);
            }
            let metadata = file.metadata()?;
            if metadata.nlink() > 0 {
                let used = metadata.modified().ok();
                return Ok(Some(Self {
                    file,
                    metadata,
                    used,
                }));
            }
            file = open(path, mode)?;
        }
    }

    /// Notes the use, for `gc`. A store that cannot be written is one that nothing is removed from either.
    pub(super) fn touch(&mut self) {
        if self.is_noted() {
            return;
        }
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        // On a descriptor that is not open for writing this is allowed to the file's owner.
        let _ = rustix::fs::futimens(&self.file, &times);
        self.used = Some(SystemTime::now());
    }

    /// Whether its use was noted so lately that it need not be again.
    pub(super) fn is_noted(&self) -> bool {
        self.used
            .is_some_and(|used| used.elapsed().is_ok_and(|age| age < USE_GRANULARITY))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether its file still has a name: only who holds it exclusively may remove it, but who removes a whole directory
    /// does not ask.
    pub(super) fn is_there(&self) -> bool {
        self.file.metadata().is_ok_and(|it| it.nlink() > 0)
    }

    pub(super) fn stamp(&self) -> Stamp {
        Stamp {
            device: self.metadata.dev(),
            inode: self.metadata.ino(),
            changed: (self.metadata.ctime(), self.metadata.ctime_nsec()),
        }
    }
}

/// A lock that is only shared may be on a file system that is mounted read-only.
fn open(path: &Path, mode: Mode) -> io::Result<File> {
    if mode == Mode::Shared {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc, thread};

    use super::*;

    #[test]
    fn a_lock_excludes_and_ends_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = FileLock::try_take(&path, Mode::Shared).unwrap().unwrap();
        let second = FileLock::try_take(&path, Mode::Shared).unwrap().unwrap();
        assert!(
            FileLock::try_take(&path, Mode::Exclusive)
                .unwrap()
                .is_none()
        );
        drop((first, second));
        let _own = FileLock::try_take(&path, Mode::Exclusive).unwrap().unwrap();
        assert!(FileLock::try_take(&path, Mode::Shared).unwrap().is_none());
    }

    #[test]
    fn whoever_waited_on_a_removed_file_takes_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_take(&path, Mode::Exclusive).unwrap().unwrap();
        let (send, receive) = mpsc::channel();
        let waiter = thread::spawn({
            let path = path.clone();
            move || FileLock::take(&path, Mode::Exclusive, || send.send(()).unwrap()).unwrap()
        });
        receive.recv().unwrap();
        fs::remove_file(&path).unwrap();
        drop(held);
        let taken = waiter.join().unwrap();
        assert!(path.exists());
        assert_eq!(taken.file().metadata().unwrap().nlink(), 1);
        assert!(
            FileLock::try_take(&path, Mode::Exclusive)
                .unwrap()
                .is_none()
        );
    }
}
