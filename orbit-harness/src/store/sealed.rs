//! Layers that sandboxes wrote: those of a snapshot that goes with its process, and those that stay, with a record of
//! what they belong to.
//!
//! ```text
//! layers/KEY/NAME.new        a snapshot in use by the process that has NAME.make: what a dead one left is swept, as
//!                            a half-unpacked layer is
//! layers/KEY/NAME            one that stays
//! sealed/KEY/ID.json         which layers it consists of, and what sandbox it was
//! sealed/KEY/ID.lock         exclusive while it is made: the others wait, and find it, or make it after all
//! ```
//!
//! A record is written when its layer is in place, and removed before that is: so a record leads to a layer, or to
//! nothing, and then to who makes it again.

use std::{
    ffi::OsString,
    fs, io,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    ImageLease, Store,
    cas::{make_directory, read_bounded},
    digest::Digest,
    error::StoreError,
    layers::{LayerClaim, LayerMeta},
    lock::{FileLock, Mode},
    manifest::MAX_DOCUMENT_BYTES,
    unpack::UnpackStats,
    worker::LayerWorker,
};
use crate::{image::Image, spec::Spec};

/// Why a sandbox's files stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SealedKind {
    /// A snapshot with a name.
    Named,
    /// A sandbox that was kept to be looked into.
    Kept,
}

/// What is known of files that stay.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SealedRecord {
    pub(crate) id: String,
    pub(crate) kind: SealedKind,
    /// What people call it.
    pub(crate) title: String,
    /// What another sandbox like it would be; without its environment.
    pub(crate) spec: Spec,
    /// Apart: its names need not be text, as keys of JSON must.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Without the directory of its layers, which is this store's.
    pub(crate) image: Image,
    /// When it counted as ready, in the form of whoever wrote it; records of before have none.
    #[serde(default)]
    pub(crate) ready: serde_json::Value,
    /// The content of its own layer, in bytes.
    pub(crate) bytes: u64,
    /// Since 1970, in seconds.
    pub(crate) made_s: u64,
}

impl SealedRecord {
    pub(crate) fn made(&self) -> SystemTime {
        UNIX_EPOCH + std::time::Duration::from_secs(self.made_s)
    }
}

/// Held by the one who makes a record.
#[derive(Debug)]
pub(crate) struct SealedLock {
    _lock: FileLock,
}

/// A directory for a layer that is being written, or that goes with this value's owner.
#[derive(Debug)]
pub(crate) struct Sealing {
    claim: LayerClaim,
    digest: Digest,
}

impl Sealing {
    /// The name of its directory among the layers.
    pub(crate) fn name(&self) -> String {
        format!("{}.new", self.digest.short_name())
    }

    /// Makes it one that stays; its name then, and what keeps it from being removed.
    pub(crate) fn publish(
        self,
        store: &Store,
        stats: UnpackStats,
    ) -> Result<(String, ImageLease), StoreError> {
        let meta = LayerMeta {
            diff_id: self.digest,
            stats,
        };
        self.claim.publish(&meta)?;
        // Leased before the claim is let go of: nobody can remove it in between.
        let lease = store.layers.lease(&self.digest)?;
        let lease = lease.ok_or_else(|| {
            let path = store.layers.directory().join(self.digest.short_name());
            StoreError::io("use the new layer", path)(io::ErrorKind::NotFound.into())
        })?;
        Ok((lease.name, ImageLease::new(vec![lease.lock], None)))
    }

    /// Removes it.
    pub(crate) fn remove(self, worker: &dyn LayerWorker) -> Result<(), StoreError> {
        self.claim.remove(worker).map(drop)
    }
}

impl Store {
    /// A directory for a layer of nobody's image.
    pub(crate) fn begin_sealing(&self, worker: &dyn LayerWorker) -> Result<Sealing, StoreError> {
        self.sweep_dead(worker)?;
        let mut bytes = [0; 32];
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        let digest = Digest::of(&bytes);
        let claim = self.layers.claim(&digest, || ())?;
        claim.prepare(worker)?;
        Ok(Sealing { claim, digest })
    }

    /// Where layers are.
    pub(crate) fn directory_of_layers(&self) -> PathBuf {
        self.layers.directory().to_owned()
    }

    fn sealed_directory(&self) -> PathBuf {
        self.cas.directory("sealed").join(&self.ids.name)
    }

    fn sealed_file(&self, id: &str, suffix: &str) -> PathBuf {
        self.sealed_directory().join(format!("{id}.{suffix}"))
    }

    /// The right to make the record `id`; waits for whoever has it.
    pub(crate) fn lock_sealed(&self, id: &str) -> Result<SealedLock, StoreError> {
        make_directory(&self.sealed_directory())?;
        let path = self.sealed_file(id, "lock");
        let lock = FileLock::take(&path, Mode::Exclusive, || ());
        let lock = lock.map_err(StoreError::io("lock", path))?;
        Ok(SealedLock { _lock: lock })
    }

    /// The record, and its layers leased; `None` where something of it is missing.
    pub(crate) fn find_sealed(
        &self,
        id: &str,
    ) -> Result<Option<(SealedRecord, Image, ImageLease)>, StoreError> {
        let Some(record) = self.read_sealed(id)? else {
            return Ok(None);
        };
        let mut locks = Vec::new();
        for name in &record.image.layers {
            match self.layers.lease_name(name)? {
                Some(lease) => locks.push(lease.lock),
                None => return Ok(None),
            }
        }
        let image = Image {
            layers_dir: self.layers.directory().to_owned(),
            ..record.image.clone()
        };
        Ok(Some((record, image, ImageLease::new(locks, None))))
    }

    fn read_sealed(&self, id: &str) -> Result<Option<SealedRecord>, StoreError> {
        let content = read_bounded(&self.sealed_file(id, "json"), MAX_DOCUMENT_BYTES)?;
        // One that cannot be read is as good as none.
        Ok(content.and_then(|content| serde_json::from_slice(&content).ok()))
    }

    pub(crate) fn write_sealed(&self, record: &SealedRecord) -> Result<(), StoreError> {
        make_directory(&self.sealed_directory())?;
        let path = self.sealed_file(&record.id, "json");
        let content = serde_json::to_vec(record)
            .map_err(|error| StoreError::io("write", &path)(io::Error::other(error)))?;
        self.cas.write(&path, &content)
    }

    /// All records, the oldest first.
    pub(crate) fn list_sealed(&self) -> Result<Vec<SealedRecord>, StoreError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.sealed_directory())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".json")) {
                found.extend(self.read_sealed(id)?);
            }
        }
        found.sort_by(|a, b| (a.made_s, &a.id).cmp(&(b.made_s, &b.id)));
        Ok(found)
    }

    /// Forgets the record, and removes its own layer unless a sandbox uses it: then `gc` does. Whether there was one.
    pub(crate) fn remove_sealed(
        &self,
        id: &str,
        worker: &dyn LayerWorker,
    ) -> Result<bool, StoreError> {
        let Some(record) = self.read_sealed(id)? else {
            return Ok(false);
        };
        self.forget_sealed(id)?;
        if let Some(name) = record.image.layers.last()
            && let Some(claim) = self.layers.try_claim_name(name)?
        {
            claim.remove(worker)?;
        }
        Ok(true)
    }

    fn forget_sealed(&self, id: &str) -> Result<(), StoreError> {
        let path = self.sealed_file(id, "json");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Forgets records whose layers are gone, or were not used for long: their layers go with the others.
    pub(super) fn gc_sealed(&self, is_due: impl Fn(SystemTime) -> bool) -> Result<u64, StoreError> {
        let mut removed = 0;
        for entry in fs::read_dir(self.sealed_directory())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let Some((id, suffix)) = name.to_str().and_then(|name| name.rsplit_once('.')) else {
                continue;
            };
            // Whoever makes it, or waits for it, stays undisturbed.
            let path = self.sealed_file(id, "lock");
            let taken = FileLock::try_take(&path, Mode::Exclusive);
            let Some(_lock) = taken.map_err(StoreError::io("lock", &path))? else {
                continue;
            };
            let is_needed = suffix == "json"
                && self.read_sealed(id)?.is_some_and(|record| {
                    let layer = record.image.layers.last().map(|name| {
                        let used = self.layers.directory().join(format!("{name}.use"));
                        fs::metadata(used).and_then(|meta| meta.modified())
                    });
                    layer.is_some_and(|used| used.is_ok_and(|used| !is_due(used)))
                });
            if suffix == "json" && !is_needed {
                self.forget_sealed(id)?;
                removed += 1;
            }
            if !self.sealed_file(id, "json").exists() {
                // It is ours, so nobody else's new one.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(removed)
    }
}
