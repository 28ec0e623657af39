//! Unpacked layers on disk, for one id map.
//!
//! ```text
//! layers/KEY/NAME        the layer; NAME is half of its diff id in hexadecimal. It is there or it is not: what
//!                        has this name is complete, verified and durable
//! layers/KEY/NAME.use    what the layer is, as JSON; locked shared while it is in use, exclusively while it is
//!                        removed
//! layers/KEY/NAME.make   locked exclusively by whoever makes or removes the layer
//! layers/KEY/NAME.new    being unpacked by whoever has `.make`. Found by somebody who just got it, it is what a
//!                        dead process left
//! layers/KEY/NAME.old    being removed; the same holds
//! ```
//!
//! So no temporary name needs its owner's pid, and what a kill leaves behind is found by its lock being free.
//!
//! **No deadlock.** Only `.make` is ever waited for, and whoever has one waits for no other; a layer in use is
//! locked by `.use`, which nobody waits for. With one lock for both, two processes that each had one layer of an
//! image in use and wanted to make the other's would wait forever.
//!
//! **Durability.** Files are not synced one by one. When a layer is unpacked, one `syncfs` writes it and its
//! `.use` file out; only then is it renamed, and then the directory synced. A power cut leaves the whole layer or
//! a `.new` directory.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{
    IdKey,
    cas::make_directory,
    digest::Digest,
    error::StoreError,
    lock::{FileLock, Mode, Stamp},
    unpack::UnpackStats,
    worker::{LayerWorker, WorkerError},
};

const MAX_META_BYTES: u64 = 4096;

/// What this process has read of `.use` files. It holds as long as such a file is the same: who makes a layer anew writes
/// it. Whether the layer is there is another question: who is killed while it removes one leaves the file.
static SEEN: Mutex<BTreeMap<PathBuf, (Stamp, LayerMeta)>> = Mutex::new(BTreeMap::new());

/// What a layer is: beside it, so that looking at a layer touches nothing that an image chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerMeta {
    pub(super) diff_id: Digest,
    pub(super) stats: UnpackStats,
}

/// The layers of one id map.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    directory: PathBuf,
}

/// A layer that is there and stays as long as this lives.
#[derive(Debug)]
pub(super) struct LayerLease {
    pub(super) name: String,
    pub(super) meta: LayerMeta,
    pub(super) lock: FileLock,
}

impl Layers {
    pub(super) fn open(parent: &Path, ids: &IdKey) -> Result<Self, StoreError> {
        let directory = parent.join(&ids.name);
        if !directory.is_dir() {
            make_directory(&directory)?;
            // The worker may be somebody else, and comes here through a descriptor: nobody comes by the path.
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
                .map_err(StoreError::io("set the mode of", &directory))?;
        }
        Ok(Self { directory })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, name: &str, suffix: &str) -> PathBuf {
        self.directory.join(format!("{name}{suffix}"))
    }

    /// The layer, where it is there and nobody is about to remove it.
    pub(super) fn lease(&self, diff_id: &Digest) -> Result<Option<LayerLease>, StoreError> {
        let lease = self.lease_name(&diff_id.short_name())?;
        Ok(lease.filter(|lease| lease.meta.diff_id == *diff_id))
    }

    /// What has this name, in the same way.
    pub(super) fn lease_name(&self, name: &str) -> Result<Option<LayerLease>, StoreError> {
        let name = name.to_owned();
        let path = self.path(&name, ".use");
        let fault = |error| StoreError::io("lock", &path)(error);
        // Nothing is created: a miss leaves nothing behind, and works on a read-only store.
        let Some(mut lock) = FileLock::try_share(&path).map_err(fault)? else {
            return Ok(None);
        };
        let stamp = lock.stamp();
        let known = {
            let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = seen.get(&path).filter(|(before, _)| *before == stamp);
            seen.map(|(_, meta)| meta.clone())
        };
        let meta = match known {
            Some(meta) => meta,
            None => match read_meta(lock.file()).map_err(fault)? {
                Some(meta) => {
                    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.insert(path, (stamp, meta.clone()));
                    meta
                }
                None => return Ok(None),
            },
        };
        if !self.directory.join(&name).is_dir() {
            return Ok(None);
        }
        lock.touch();
        Ok(Some(LayerLease { name, meta, lock }))
    }

    /// The right to make the layer, or to remove it; waits for whoever has it.
    pub(super) fn claim(
        &self,
        diff_id: &Digest,
        on_wait: impl FnOnce(),
    ) -> Result<LayerClaim, StoreError> {
        let name = diff_id.short_name();
        let path = self.path(&name, ".make");
        let lock = FileLock::take(&path, Mode::Exclusive, on_wait)
            .map_err(StoreError::io("lock", &path))?;
        Ok(LayerClaim {
            layers: self.clone(),
            name,
            _lock: lock,
        })
    }

    /// The right to remove what has this name, where nobody makes it.
    pub(super) fn try_claim_name(&self, name: &str) -> Result<Option<LayerClaim>, StoreError> {
        let path = self.path(name, ".make");
        let lock =
            FileLock::try_take(&path, Mode::Exclusive).map_err(StoreError::io("lock", &path))?;
        Ok(lock.map(|lock| LayerClaim {
            layers: self.clone(),
            name: name.to_owned(),
            _lock: lock,
        }))
    }

    /// Names of layers, complete or not, sorted.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let fault = |error| StoreError::io("list", &self.directory)(error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(fault)? {
            let file_name = entry.map_err(fault)?.file_name();
            let text = file_name.to_string_lossy();
            let name = text.split('.').next().unwrap_or_default();
            if name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// The one process that may make or remove a layer.
#[derive(Debug)]
pub(super) struct LayerClaim {
    layers: Layers,
    name: String,
    _lock: FileLock,
}

impl LayerClaim {
    fn path(&self, suffix: &str) -> PathBuf {
        self.layers.path(&self.name, suffix)
    }

    /// What the layer is and when it was last used, where it is there.
    pub(super) fn made(&self) -> Option<(LayerMeta, SystemTime)> {
        let file = File::open(self.path(".use")).ok()?;
        let meta = read_meta(&file).ok()??;
        let used = file.metadata().ok()?.modified().ok()?;
        self.path("").is_dir().then_some((meta, used))
    }

    /// An empty directory to unpack into; what a dead process left there is removed.
    pub(super) fn prepare(&self, worker: &dyn LayerWorker) -> Result<OwnedFd, StoreError> {
        self.sweep(worker)?;
        // Where a layer lies under the name but is not the one claimed, it is damaged.
        if fs::rename(self.path(""), self.path(".old")).is_ok() {
            self.sweep(worker)?;
        }
        let path = self.path(".new");
        let fault = |error| StoreError::io("create the directory", &path)(error);
        // The root of a layer that says nothing about it; never the umask's choice.
        DirBuilder::new().mode(0o755).create(&path).map_err(fault)?;
        let directory = File::open(&path).map_err(fault)?;
        directory
            .set_permissions(fs::Permissions::from_mode(0o755))
            .map_err(fault)?;
        Ok(directory.into())
    }

    /// Gives the unpacked directory its name. From here on others find it.
    pub(super) fn publish(&self, meta: &LayerMeta) -> Result<(), StoreError> {
        let path = self.path("");
        let published = (|| {
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(self.path(".use"))?;
            file.write_all(&serde_json::to_vec(meta).map_err(io::Error::other)?)?;
            rustix::fs::syncfs(&file)?;
            fs::rename(self.path(".new"), &path)?;
            File::open(&self.layers.directory)?.sync_all()
        })();
        published.map_err(StoreError::io("put in place the layer", path))
    }

    /// Removes the layer, what is half made of it, and its locks. Returns whether it did: a layer in use stays.
    pub(super) fn remove(self, worker: &dyn LayerWorker) -> Result<bool, StoreError> {
        let in_use = self.path(".use");
        let lock = FileLock::try_take(&in_use, Mode::Exclusive);
        let Some(_lock) = lock.map_err(StoreError::io("lock", &in_use))? else {
            return Ok(false);
        };
        self.sweep(worker)?;
        let path = self.path("");
        match fs::rename(&path, self.path(".old")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(StoreError::io("remove", &path))?,
        }
        self.remove_tree(".old", worker)?;
        for path in [in_use, self.path(".make")] {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
        Ok(true)
    }

    /// Removes what is half made or half removed: whoever has the claim knows that its maker is dead.
    pub(super) fn sweep(&self, worker: &dyn LayerWorker) -> Result<(), StoreError> {
        self.remove_tree(".new", worker)?;
        self.remove_tree(".old", worker)
    }

    fn remove_tree(&self, suffix: &str, worker: &dyn LayerWorker) -> Result<(), StoreError> {
        let path = self.path(suffix);
        // lstat: nothing here is ever a link, and nothing would be followed.
        if fs::symlink_metadata(&path).is_err() {
            return Ok(());
        }
        let directory = &self.layers.directory;
        let parent = File::open(directory).map_err(StoreError::io("open", directory))?;
        let removed = worker.remove_tree(parent.into(), &format!("{}{suffix}", self.name));
        // The worker may not be allowed to write this directory; then an empty one is left to us.
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let source = removed.err().unwrap_or(WorkerError::Lost(error));
                Err(StoreError::Remove { path, source })
            }
            _ => Ok(()),
        }
    }
}

/// `None` where the layer was never finished.
fn read_meta(mut file: &File) -> io::Result<Option<LayerMeta>> {
    let mut content = Vec::with_capacity(512);
    io::Seek::rewind(&mut file)?;
    file.take(MAX_META_BYTES).read_to_end(&mut content)?;
    Ok(serde_json::from_slice(&content).ok())
}
