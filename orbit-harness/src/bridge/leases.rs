//! Who uses a bridge: one file for each sandbox, locked by the process that owns it for as long as it lives.
//!
//! ```text
//! /run/orbit/bridges/myruntime0/lock         held while anything here is changed
//! /run/orbit/bridges/myruntime0/bridge       number and subnet of the bridge that was made
//! /run/orbit/bridges/myruntime0/172.25.0.2   a lease: its owner's pid, and the sandbox's names
//! ```
//!
//! A lock says that the owner lives, and says it at once when it is killed; a pid could be another's by then.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::net::addresses::{Pool, Subnet};

const BRIDGES: &str = "/run/orbit/bridges";

/// The leases of one bridge, while nobody else changes them.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

/// A lease, as long as its owner holds it.
#[derive(Debug)]
pub(super) struct Held {
    _lock: File,
}

impl Directory {
    /// Waits until nobody else changes the leases of `bridge`.
    pub(super) fn lock(bridge: &str) -> io::Result<Self> {
        let path = Path::new(BRIDGES).join(bridge);
        loop {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)?;
            let lock = match open(&path.join("lock")) {
                // Removed by its last user meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))?;
            // The same, if what was locked is still the one that others will find.
            if let (Ok(found), held) = (
                rustix::fs::stat(path.join("lock")),
                rustix::fs::fstat(&lock)?,
            ) && (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)
            {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    /// The number and the subnet of the bridge that was made.
    pub(super) fn made(&self) -> Option<(u32, Subnet)> {
        let text = fs::read_to_string(self.path.join("bridge")).ok()?;
        let (index, subnet) = text.trim().split_once(' ')?;
        Some((index.parse().ok()?, subnet.parse().ok()?))
    }

    pub(super) fn remember(&self, index: u32, subnet: Subnet) -> io::Result<()> {
        fs::write(self.path.join("bridge"), format!("{index} {subnet}\n"))
    }

    /// Removes what is here, with the directory.
    pub(super) fn forget_bridge(&self) {
        // In this order: who finds the lock gone makes everything anew.
        for name in ["bridge", "last", "lock"] {
            let _ = fs::remove_file(self.path.join(name));
        }
        for directory in self.path.ancestors().take(3) {
            // ENOTEMPTY: another bridge's.
            let _ = fs::remove_dir(directory);
        }
    }

    /// Leases an address of `subnet` for this process. `None`: all are in use.
    pub(super) fn take(
        &self,
        subnet: Subnet,
        names: &[String],
    ) -> io::Result<Option<(Ipv4Addr, Held)>> {
        let last = fs::read_to_string(self.path.join("last")).ok();
        let last = last.and_then(|text| text.trim().parse().ok());
        let Some(address) = Pool::resumed(subnet, self.leases()?, last).take() else {
            return Ok(None);
        };
        let path = self.path.join(address.to_string());
        let mut lock = open(&path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        writeln!(lock, "{} {}", std::process::id(), names.join(" "))?;
        fs::write(self.path.join("last"), address.to_string())?;
        Ok(Some((address, Held { _lock: lock })))
    }

    /// Gives back a lease that is not held any more.
    pub(super) fn release(&self, address: Ipv4Addr) {
        let _ = fs::remove_file(self.path.join(address.to_string()));
    }

    /// Removes the leases of processes that are gone.
    pub(super) fn forget_dead(&self) -> io::Result<()> {
        for address in self.leases()? {
            let lock = open(&self.path.join(address.to_string()))?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => self.release(address),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) fn is_unused(&self) -> io::Result<bool> {
        Ok(self.leases()?.is_empty())
    }

    /// Every sandbox's names.
    pub(super) fn names(&self) -> io::Result<Vec<(Ipv4Addr, String)>> {
        let mut found = Vec::new();
        for address in self.leases()? {
            let text = fs::read_to_string(self.path.join(address.to_string()))?;
            let names = text.split_whitespace().skip(1);
            found.extend(names.map(|name| (address, name.to_owned())));
        }
        Ok(found)
    }

    fn leases(&self) -> io::Result<Vec<Ipv4Addr>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            found.extend(
                entry?
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<Ipv4Addr>().ok()),
            );
        }
        found.sort_unstable();
        Ok(found)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    options.open(path)
}
