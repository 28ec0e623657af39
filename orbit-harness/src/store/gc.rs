//! What is in the store, and the removal of what nobody needs.
//!
//! Whatever is in use is locked by its user, and stays: each removal first takes the lock exclusively, and where it
//! does not get it goes on to the next.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{
    Store,
    cas::ImageRecord,
    error::StoreError,
    known,
    layers::{LayerClaim, LayerMeta},
    lock::{FileLock, Mode},
    platform::Platform,
    worker::LayerWorker,
};

/// An image of a registry that the store knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredImage {
    pub(crate) reference: String,
    pub(crate) platform: Platform,
    /// Of the manifest.
    pub(crate) digest: String,
    pub(crate) pulled: SystemTime,
}

/// What to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Layers and images that nobody used for this long, and what dead processes left.
    UnusedFor(Duration),
    /// Everything that is not in use now.
    Everything,
    /// Only what dead processes left.
    #[cfg(test)]
    Leftovers,
}

/// What was removed, and what was left because somebody uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GcReport {
    pub(crate) images: u64,
    pub(crate) layers: u64,
    /// The content of the layers removed.
    pub(crate) bytes: u64,
    pub(crate) in_use: u64,
    /// Named snapshots and kept sandboxes.
    pub(crate) sealed: u64,
}

impl Store {
    /// The images that were pulled, sorted by reference.
    pub(crate) fn list(&self) -> Result<Vec<StoredImage>, StoreError> {
        let mut images = Vec::new();
        for name in self.record_names()? {
            let Some(record) = self.cas.read_record(&name)? else {
                continue;
            };
            let path = self.cas.record_file(&name, "json");
            let pulled = fs::metadata(&path).and_then(|meta| meta.modified());
            images.push(StoredImage {
                reference: record.reference,
                platform: record.platform,
                digest: record.manifest.digest.to_string(),
                pulled: pulled.unwrap_or(SystemTime::UNIX_EPOCH),
            });
        }
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(images)
    }

    /// Forgets the image of this reference, in the form in which [`Store::list`] shows it, for every platform.
    /// Its layers stay until [`Store::gc`] finds them unused. Returns whether there was one.
    ///
    /// # Errors
    /// Where it is in use, too.
    pub(crate) fn remove_image(&self, reference: &str) -> Result<bool, StoreError> {
        // What only this process's earlier sandboxes used is not in use.
        known::let_go(self.layers.directory());
        let mut found = false;
        for name in self.record_names()? {
            let is_it = self
                .cas
                .read_record(&name)?
                .is_some_and(|record| record.reference == reference);
            if is_it {
                found |= self
                    .remove_record(&name, |_| true)?
                    .ok_or_else(|| StoreError::InUse(reference.to_owned()))?;
            }
        }
        Ok(found)
    }

    /// Removes what `removal` says and nobody uses.
    pub(crate) fn gc(
        &self,
        removal: Removal,
        worker: &dyn LayerWorker,
    ) -> Result<GcReport, StoreError> {
        // What only this process's earlier sandboxes used is not in use.
        known::let_go(self.layers.directory());
        let mut report = GcReport::default();
        let is_due = |used: SystemTime| match removal {
            #[cfg(test)]
            Removal::Leftovers => false,
            Removal::Everything => true,
            // A time in the future is a clock that was set back: not due.
            Removal::UnusedFor(age) => used.elapsed().is_ok_and(|since| since >= age),
        };
        for name in self.record_names()? {
            match self.remove_record(&name, is_due)? {
                Some(true) => report.images += 1,
                Some(false) => {}
                None => report.in_use += 1,
            }
        }
        report.sealed = self.gc_sealed(is_due)?;
        for name in self.layers.names()? {
            let Some(claim) = self.layers.try_claim_name(&name)? else {
                report.in_use += 1;
                continue;
            };
            collect(claim, is_due, worker, &mut report)?;
        }
        self.remove_unnamed_blobs()?;
        for directory in ["partial", "tmp"] {
            remove_unlocked_files(&self.cas.directory(directory))?;
        }
        Ok(report)
    }

    /// What dead processes left half unpacked: looked for before a layer is brought, which costs more anyway.
    pub(super) fn sweep_dead(&self, worker: &dyn LayerWorker) -> Result<(), StoreError> {
        for entry in fs::read_dir(self.layers.directory())
            .into_iter()
            .flatten()
            .flatten()
        {
            let file_name = entry.file_name();
            let text = file_name.to_string_lossy();
            if let Some((name, "new" | "old")) = text.split_once('.')
                && let Some(claim) = self.layers.try_claim_name(name)?
            {
                claim.sweep(worker)?;
            }
        }
        remove_unlocked_files(&self.cas.directory("tmp"))
    }

    fn record_names(&self) -> Result<Vec<String>, StoreError> {
        let directory = self.cas.directory("images");
        let fault = |error| StoreError::io("list", &directory)(error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&directory).map_err(fault)? {
            let file_name = entry.map_err(fault)?.file_name();
            if let Some(name) = file_name.to_string_lossy().strip_suffix(".json") {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Whether the record was removed; `None` where it is in use.
    fn remove_record(
        &self,
        name: &str,
        is_due: impl Fn(SystemTime) -> bool,
    ) -> Result<Option<bool>, StoreError> {
        let mut locks = Vec::new();
        for suffix in ["lock", "use"] {
            let path = self.cas.record_file(name, suffix);
            let taken = FileLock::try_take(&path, Mode::Exclusive);
            let Some(lock) = taken.map_err(StoreError::io("lock", path))? else {
                return Ok(None);
            };
            locks.push(lock);
        }
        // Each use touches the second.
        let used = locks[1].file().metadata().and_then(|meta| meta.modified());
        if !is_due(used.unwrap_or(SystemTime::UNIX_EPOCH)) {
            return Ok(Some(false));
        }
        for suffix in ["json", "use", "lock"] {
            remove_file(&self.cas.record_file(name, suffix))?;
        }
        Ok(Some(true))
    }

    /// Documents to which no record leads. One that a pull just wrote, before its record, would be lost and asked
    /// for again: those younger than a day stay.
    fn remove_unnamed_blobs(&self) -> Result<(), StoreError> {
        let records: Vec<ImageRecord> = self
            .record_names()?
            .iter()
            .filter_map(|name| self.cas.read_record(name).transpose())
            .collect::<Result<_, _>>()?;
        let mut needed: Vec<String> = records
            .iter()
            .map(|record| record.manifest.digest.hex())
            .collect();
        for record in &records {
            let Some(content) = self.cas.read_blob(&record.manifest.digest)? else {
                continue;
            };
            if let Ok(super::manifest::Document::Manifest { config, .. }) =
                super::manifest::Document::parse(&content, &record.reference)
            {
                needed.push(config.digest.hex());
            }
        }
        for entry in fs::read_dir(self.cas.directory("blobs"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let is_old = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|time| {
                    time.elapsed()
                        .is_ok_and(|age| age > Duration::from_secs(86_400))
                });
            if is_old
                && !needed
                    .iter()
                    .any(|name| *name == entry.file_name().to_string_lossy())
            {
                remove_file(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn collect(
    claim: LayerClaim,
    is_due: impl Fn(SystemTime) -> bool,
    worker: &dyn LayerWorker,
    report: &mut GcReport,
) -> Result<(), StoreError> {
    match claim.made() {
        Some((_, used)) if !is_due(used) => claim.sweep(worker),
        Some((LayerMeta { stats, .. }, _)) => {
            if claim.remove(worker)? {
                report.layers += 1;
                report.bytes += stats.content_bytes;
            } else {
                report.in_use += 1;
            }
            Ok(())
        }
        // Never finished: nobody can use it.
        None => claim.remove(worker).map(drop),
    }
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes the files whose writer is dead: the living hold a lock.
fn remove_unlocked_files(directory: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Ok(Some(_lock)) = FileLock::try_take(&path, Mode::Exclusive) {
            remove_file(&path)?;
        }
    }
    Ok(())
}
