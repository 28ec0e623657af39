//! Where the runners of a run find its keeper: a directory of this user's alone.
//!
//! ```text
//! RUNTIME/runs/KEY/        locked while a runner looks for a keeper, or starts one
//! RUNTIME/runs/KEY/kept    locked by the keeper as long as it lives
//! RUNTIME/runs/KEY/sock    where it takes connections
//! ```
//!
//! The keeper removes it. One whose keeper was killed is removed by the next keeper, of whichever run.

use std::{
    fmt,
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use orbit::__private::runtime_dir;
use ring::digest::{SHA256, digest};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::nextest::RunId;
use crate::config::service::Service;

const RUNS: &str = "runs";
const KEPT: &str = "kept";
const SOCKET: &str = "sock";
/// The socket, until it takes connections.
const NEW: &str = "new";

/// Which keeper a runner looks for: of this run, with these services, and of this very build of this program.
///
/// Where a file of the configuration is changed while the run goes on, the tests that start then have services as it says
/// now, of a second keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key(String);

impl Key {
    pub(super) fn new(
        run: &RunId,
        workspace: &Path,
        services: &[Arc<Service>],
    ) -> io::Result<Self> {
        let program = fs::metadata("/proc/self/exe")?;
        let build = (program.dev(), program.ino(), program.mtime_nsec());
        let build = (env!("CARGO_PKG_VERSION"), build, program.mtime());
        // Nobody reads what is digested.
        let same = (build, workspace, services);
        let digest = digest(&SHA256, format!("{same:?}").as_bytes());
        let mut start = [0; 8];
        start.copy_from_slice(&digest.as_ref()[..8]);
        Ok(Self(format!("{run}-{:016x}", u64::from_be_bytes(start))))
    }

    /// The name of the network of its services.
    pub(super) fn network(&self) -> String {
        format!("run-{}", self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error("there is no place for it: set ORBIT_RUNTIME_DIR to an absolute path")]
    None,
    #[error(
        "the directory {} is not this user's alone, as one must be in which processes meet: \
         `chmod 700` it, or set ORBIT_RUNTIME_DIR to another", .0.display()
    )]
    NotPrivate(PathBuf),
    #[error("cannot use the directory {}: {source}; ORBIT_RUNTIME_DIR names another place for it", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The directory.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    directory: File,
}

impl Place {
    /// Makes it where it is not there.
    pub(super) fn open(key: &Key) -> Result<Self, PlaceError> {
        let runtime = runtime_dir().ok_or(PlaceError::None)?;
        Self::open_in(&runtime, key)
    }

    fn open_in(runtime: &Path, key: &Key) -> Result<Self, PlaceError> {
        let path = runtime.join(RUNS).join(&key.0);
        let failed = |source| PlaceError::Io {
            path: path.clone(),
            source,
        };
        let directory = loop {
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(&path);
            match made.and_then(|()| File::open(&path)) {
                Ok(directory) => break directory,
                // Another process swept it just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        };
        let found = directory.metadata().map_err(failed)?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
            return Err(PlaceError::NotPrivate(path));
        }
        Ok(Self { path, directory })
    }

    /// Waits until no other runner looks for the keeper; until this is dropped none does.
    pub(super) fn look(&self) -> Result<(), PlaceError> {
        rustix::io::retry_on_intr(|| flock(&self.directory, FlockOperation::LockExclusive))
            .map_err(|error| self.failed(error.into()))
    }

    /// A connection with the keeper; `None` where there is none that lives.
    pub(super) fn connect(&self) -> Result<Option<UnixStream>, PlaceError> {
        match UnixStream::connect(self.short(SOCKET)) {
            Ok(stream) => Ok(Some(stream)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// A path in it that fits into an address, which takes 107 bytes.
    fn short(&self, name: &str) -> PathBuf {
        let directory = self.directory.as_raw_fd();
        format!("/proc/self/fd/{directory}/{name}").into()
    }

    fn failed(&self, source: io::Error) -> PlaceError {
        let path = self.path.clone();
        PlaceError::Io { path, source }
    }

    /// Takes it for this process; `None` where a keeper that lives has it.
    pub(super) fn claim(self) -> Result<Option<Claimed>, PlaceError> {
        let claimed = claim(&self.path).map_err(|error| self.failed(error))?;
        let Some(lock) = claimed else {
            return Ok(None);
        };
        if let Some(runs) = self.path.parent() {
            sweep(runs, &self.path);
        }
        let socket = self.path.join(SOCKET);
        let is_successor = socket.exists();
        let listen = || {
            // What a keeper left that was killed while it came.
            let _ = fs::remove_file(self.path.join(NEW));
            let listener = UnixListener::bind(self.short(NEW))?;
            listener.set_nonblocking(true)?;
            // Who finds it finds it listening.
            fs::rename(self.path.join(NEW), &socket)?;
            Ok(listener)
        };
        let listener = listen().map_err(|error| self.failed(error))?;
        Ok(Some(Claimed {
            path: self.path,
            listener,
            is_successor,
            _lock: lock,
        }))
    }
}

/// The keeper's own hold on it. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Claimed {
    path: PathBuf,
    pub(super) listener: UnixListener,
    /// Whether a keeper was there before, and was killed.
    pub(super) is_successor: bool,
    _lock: File,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// The lock that a keeper holds, where no other does.
fn claim(directory: &Path) -> io::Result<Option<File>> {
    let path = directory.join(KEPT);
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let held = lock.metadata()?;
    // Swept between the two: another keeper may have made it anew.
    let is_current =
        fs::metadata(&path).is_ok_and(|it| (it.dev(), it.ino()) == (held.dev(), held.ino()));
    Ok(is_current.then_some(lock))
}

/// Removes what it holds, by who has claimed it.
fn remove(directory: &Path) {
    // In this order: as long as the lock is there, nobody else claims it. Each may be gone already.
    for name in [SOCKET, NEW, KEPT] {
        let _ = fs::remove_file(directory.join(name));
    }
    // ENOTEMPTY: another keeper has come, or another run's is there.
    for directory in directory.ancestors().take(2) {
        let _ = fs::remove_dir(directory);
    }
}

/// Removes what is left of runs whose keeper, or whose runner before there was one, was killed.
fn sweep(runs: &Path, own: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let path = entry.path();
        if path == own {
            continue;
        }
        if !path.join(KEPT).exists() {
            // Where it is empty, and else not. Who is about to use it makes it again.
            let _ = fs::remove_dir(&path);
        } else if let Ok(Some(_lock)) = claim(&path) {
            remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(runtime: &Path, key: &str) -> Place {
        Place::open_in(runtime, &Key(key.to_owned())).unwrap()
    }

    #[test]
    fn one_keeper_has_it_and_leaves_nothing() {
        let runtime = tempfile::tempdir().unwrap();
        assert!(open(runtime.path(), "a").connect().unwrap().is_none());
        let keeper = open(runtime.path(), "a").claim().unwrap().unwrap();
        assert!(!keeper.is_successor);
        assert!(open(runtime.path(), "a").claim().unwrap().is_none());
        assert!(open(runtime.path(), "a").connect().unwrap().is_some());
        let other = open(runtime.path(), "b").claim().unwrap().unwrap();
        drop(keeper);
        assert!(open(runtime.path(), "b").connect().unwrap().is_some());
        drop(other);
        assert!(!runtime.path().join(RUNS).exists());
    }

    #[test]
    fn who_comes_after_one_that_was_killed_knows_it() {
        let runtime = tempfile::tempdir().unwrap();
        // Files stay, and what was open goes.
        let killed = |key| {
            let place = open(runtime.path(), key);
            fs::write(place.path.join(KEPT), "").unwrap();
            drop(UnixListener::bind(place.path.join(SOCKET)).unwrap());
            place.path
        };
        killed("a");
        let left = killed("b");
        fs::create_dir(left.with_file_name("empty")).unwrap();
        assert!(open(runtime.path(), "a").connect().unwrap().is_none());
        let next = open(runtime.path(), "a").claim().unwrap().unwrap();
        assert!(next.is_successor && !left.exists());
        assert!(open(runtime.path(), "a").connect().unwrap().is_some());
        drop(next);
        assert!(!runtime.path().join(RUNS).exists());
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let runtime = tempfile::tempdir().unwrap();
        let path = runtime.path().join(RUNS).join("a");
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = Place::open_in(runtime.path(), &Key("a".to_owned()));
        assert!(matches!(refused, Err(PlaceError::NotPrivate(_))));
    }
}
