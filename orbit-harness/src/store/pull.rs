//! Resolving: what an image reference names is brought into the store and leased.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::{FileExt, FileTypeExt as _, MetadataExt as _},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use super::{
    ImageLease, Store,
    error::StoreError,
    known,
    layers::{LayerLease, LayerMeta},
    layout::Layout,
    lock::FileLock,
    manifest::Descriptor,
    platform::Platform,
    progress::{Event, Phase, Progress},
    source::{Described, Source, describe},
    unpack::{Compression, UnpackOrder},
    worker::{LayerWorker, UnpackJob},
};
use crate::{image::Image, spec::ImageRef};

/// Layers that are downloaded at once; more would only wait for the same network.
const PARALLEL_LAYERS: usize = 3;
/// Layers that are unpacked at once: more than processors would only compete.
const PARALLEL_UNPACKS: usize = 2;
/// How often a layer that was there is looked for again after somebody removed it in between.
const MAX_ATTEMPTS: u32 = 8;

/// What brings a layer: who works and who is told.
#[derive(Clone, Copy)]
pub(super) struct Hands<'a> {
    pub(super) worker: &'a dyn LayerWorker,
    pub(super) progress: &'a dyn Progress,
}

impl Store {
    /// The image that `reference` names, with all its layers on disk, leased.
    pub(crate) fn resolve(
        &self,
        reference: &ImageRef,
        platform: &Platform,
        worker: &dyn LayerWorker,
        progress: &dyn Progress,
    ) -> Result<(Image, ImageLease), StoreError> {
        let hands = Hands { worker, progress };
        let name = reference.to_string();
        match reference {
            ImageRef::Host | ImageRef::Dir(_) => Err(StoreError::NotStored(name)),
            ImageRef::Oci(path, tag) => {
                let layout = Layout::open_directory(path, name)?;
                self.resolve_layout(&layout, tag.as_deref(), platform, hands)
            }
            ImageRef::OciArchive(path, tag) => {
                let layout = Layout::open_archive(path, name)?;
                self.resolve_layout(&layout, tag.as_deref(), platform, hands)
            }
            ImageRef::Registry(text) => self.resolve_registry(text, platform, hands),
        }
    }

    fn resolve_layout(
        &self,
        layout: &Layout,
        tag: Option<&str>,
        platform: &Platform,
        hands: Hands<'_>,
    ) -> Result<(Image, ImageLease), StoreError> {
        let chosen = layout.choose(tag, platform)?;
        self.bring(layout, chosen, platform, hands, None)
    }

    #[cfg(not(feature = "registry"))]
    #[expect(clippy::unused_self, reason = "with the feature `registry` it is used")]
    fn resolve_registry(
        &self,
        text: &str,
        _: &Platform,
        _: Hands<'_>,
    ) -> Result<(Image, ImageLease), StoreError> {
        let reference: super::reference::Reference = text.parse()?;
        Err(StoreError::NoRegistrySupport {
            reference: reference.to_string(),
        })
    }

    /// The image that `descriptor` leads to, with its layers, which are brought from `source` where they are missing.
    pub(super) fn bring(
        &self,
        source: &dyn Source,
        descriptor: Descriptor,
        platform: &Platform,
        hands: Hands<'_>,
        record: Option<FileLock>,
    ) -> Result<(Image, ImageLease), StoreError> {
        let key = known::Key {
            layers: self.layers.directory().to_owned(),
            digest: descriptor.digest,
            platform: platform.clone(),
        };
        let (mut image, layers) = if let Some(found) = known::find(&key) {
            found
        } else {
            let described = describe(source, descriptor, platform)?;
            let brought = match self.bring_layers(source, &described, hands) {
                // Others may have kept the descriptors that this takes.
                Err(error) if error.is_lack_of_descriptors() && known::let_go(&key.layers) => {
                    self.bring_layers(source, &described, hands)
                }
                brought => brought,
            };
            let (image, locks) = brought?;
            let locks = Arc::new(locks);
            known::keep(key, image.clone(), Arc::clone(&locks));
            (image, locks)
        };
        source.image().clone_into(&mut image.name);
        Ok((image, ImageLease::new(layers, record)))
    }

    /// Leases all layers of an image, and brings those that are missing from `source`.
    fn bring_layers(
        &self,
        source: &dyn Source,
        described: &Described,
        hands: Hands<'_>,
    ) -> Result<(Image, Vec<FileLock>), StoreError> {
        let wanted: Vec<(&Descriptor, _)> = described
            .layers
            .iter()
            .zip(&described.configuration.diff_ids)
            .collect();
        let mut leases: Vec<Option<LayerLease>> = Vec::with_capacity(wanted.len());
        let mut missing = VecDeque::new();
        for (index, (_, diff_id)) in wanted.iter().enumerate() {
            let lease = self.layers.lease(diff_id)?;
            // One layer may be in an image several times, as the empty one often is.
            let is_first = wanted[..index]
                .iter()
                .all(|(_, earlier)| earlier != diff_id);
            if lease.is_none() && is_first {
                missing.push_back(index);
            }
            leases.push(lease);
        }
        if !missing.is_empty() {
            self.sweep_dead(hands.worker)?;
            self.bring_missing(source, &wanted, missing, hands, &mut leases)?;
        }

        let mut names: Vec<String> = Vec::with_capacity(wanted.len());
        let mut locks = Vec::with_capacity(wanted.len());
        for (slot, (_, diff_id)) in leases.into_iter().zip(&wanted) {
            let lease = match slot {
                Some(lease) => lease,
                // A repetition of a layer that was missing: it is there now, and leased.
                None => self
                    .layers
                    .lease(diff_id)?
                    .ok_or_else(|| vanished(source, diff_id))?,
            };
            if lease.meta.stats.is_root_opaque {
                names.clear();
            }
            names.push(lease.name);
            locks.push(lease.lock);
        }
        let image = Image {
            name: source.image().to_owned(),
            digest: described.manifest.digest.to_string(),
            has_plain_etc: has_plain_etc(self.layers.directory(), &names),
            layers_dir: self.layers.directory().to_owned(),
            layers: names,
            config: described.configuration.config.clone(),
            sealed: 0,
            document: described.configuration.document.clone(),
        };
        Ok((image, locks))
    }

    fn bring_missing(
        &self,
        source: &dyn Source,
        wanted: &[(&Descriptor, &super::Digest)],
        missing: VecDeque<usize>,
        hands: Hands<'_>,
        leases: &mut [Option<LayerLease>],
    ) -> Result<(), StoreError> {
        let threads = missing.len().min(PARALLEL_LAYERS);
        let queue = Mutex::new(missing);
        let results = Mutex::new(Vec::new());
        let unpacks = Slots::new(PARALLEL_UNPACKS);
        let work = || {
            loop {
                let Some(index) = guard(&queue).pop_front() else {
                    return;
                };
                let (descriptor, diff_id) = wanted[index];
                let result = self.bring_layer(source, descriptor, diff_id, hands, &unpacks);
                if result.is_err() {
                    // What the others are at, they finish: it is of use next time. Nothing new is begun.
                    guard(&queue).clear();
                }
                guard(&results).push((index, result));
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        for (index, result) in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            leases[index] = Some(result?);
        }
        Ok(())
    }

    fn bring_layer(
        &self,
        source: &dyn Source,
        descriptor: &Descriptor,
        diff_id: &super::Digest,
        hands: Hands<'_>,
        unpacks: &Slots,
    ) -> Result<LayerLease, StoreError> {
        let label = descriptor.digest.label();
        let tell = |phase, done_bytes| {
            hands.progress.report(&Event {
                layer: &label,
                phase,
                done_bytes,
                total_bytes: descriptor.size,
            });
        };
        for _ in 0..MAX_ATTEMPTS {
            if let Some(lease) = self.layers.lease(diff_id)? {
                tell(Phase::Done, descriptor.size);
                return Ok(lease);
            }
            let claim = self.layers.claim(diff_id, || tell(Phase::Waiting, 0))?;
            if claim
                .made()
                .is_some_and(|(meta, _)| meta.diff_id == *diff_id)
            {
                continue;
            }
            let blob = source.layer(descriptor, hands.progress)?;
            let _slot = unpacks.take();
            tell(Phase::Unpacking, 0);
            let mut start = [0; Compression::MAGIC_BYTES];
            let sniffed = blob.file.read_at(&mut start, blob.offset);
            let length = sniffed.map_err(StoreError::io(
                "read",
                self.cas.partial_path(&descriptor.digest),
            ))?;
            let job = UnpackJob {
                order: UnpackOrder {
                    blob_offset: blob.offset,
                    blob_bytes: descriptor.size,
                    compression: Compression::sniff(&start[..length]),
                    blob_digest: (!blob.is_verified).then_some(descriptor.digest),
                    diff_id: *diff_id,
                    ownership: self.ids.ownership,
                    limits: self.limits,
                },
                blob: blob.file,
                destination: claim.prepare(hands.worker)?,
            };
            let unpacked = hands.worker.unpack(job);
            if blob.lock.is_some() {
                // Unpacked or bad: it is of no more use. Where it cannot be removed, gc will.
                let _ = fs::remove_file(self.cas.partial_path(&descriptor.digest));
            }
            match unpacked {
                Ok(stats) => claim.publish(&LayerMeta {
                    diff_id: *diff_id,
                    stats,
                })?,
                Err(error) => {
                    // The first error is the one to tell; what stays is swept by the next claim.
                    let _ = claim.sweep(hands.worker);
                    return Err(StoreError::Unpack {
                        image: source.image().to_owned(),
                        layer: descriptor.digest,
                        source: error,
                    });
                }
            }
        }
        Err(vanished(source, diff_id))
    }
}

/// Whether the topmost `/etc` of these layers is a directory, or there is none; `None` where they may not be looked into.
fn has_plain_etc(directory: &Path, names: &[String]) -> Option<bool> {
    for name in names.iter().rev() {
        match fs::symlink_metadata(directory.join(name).join("etc")) {
            // A whiteout, of device number 0, says that there is none.
            Ok(found) => {
                let hides = found.file_type().is_char_device() && found.rdev() == 0;
                return Some(hides || found.is_dir());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    Some(true)
}

fn vanished(source: &dyn Source, diff_id: &super::Digest) -> StoreError {
    StoreError::malformed(
        "layer",
        source.image(),
        format!(
            "{diff_id} was removed again and again while it was brought; is `cargo orbit gc` running in a loop?"
        ),
    )
}

/// Where a thread panicked, what it guarded is still whole: each use is one step.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many may be inside at once.
struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

struct Slot<'a>(&'a Slots);

impl Slots {
    fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(count),
            freed: Condvar::new(),
        }
    }

    fn take(&self) -> Slot<'_> {
        let mut free = guard(&self.free);
        while *free == 0 {
            free = self
                .freed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Slot(self)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *guard(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_topmost_etc_says_whether_it_is_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            path.join("etc")
        };
        layer("empty");
        fs::create_dir(layer("plain")).unwrap();
        symlink("/elsewhere", layer("link")).unwrap();
        let is_plain = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            has_plain_etc(directory.path(), &names)
        };
        assert_eq!(is_plain(&[]), Some(true));
        assert_eq!(is_plain(&["empty"]), Some(true));
        assert_eq!(is_plain(&["link", "plain", "empty"]), Some(true));
        assert_eq!(is_plain(&["plain", "link", "empty"]), Some(false));
        assert_eq!(is_plain(&["plain", "empty\0"]), None);
    }
}
