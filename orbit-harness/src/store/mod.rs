//! Images: from a reference to unpacked layers on disk.
//!
//! [`Store::resolve`] finds an image (in a registry, or in an OCI layout), verifies every byte of it against its
//! digest, has each layer unpacked once by a [`LayerWorker`], and leases the layers to the caller. Many processes
//! use one store at once; what the first of them brings, the others wait for.
//!
//! What must not happen here: nothing is unpacked in this process but by a worker that says so; nothing that an
//! image holds is run or loaded; nothing unverified gets a name under which it would be used.
//!
//! The way of an image, and of this module: `reference` → `registry` or `layout` (a `source`) → `manifest` →
//! `cas` and `layers` → `unpack`.

mod cas;
mod digest;
mod error;
mod gc;
mod known;
mod layers;
mod layout;
mod lock;
mod manifest;
mod platform;
mod progress;
mod pull;
mod reference;
#[cfg(feature = "registry")]
mod registry;
mod sealed;
mod source;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod unpack;
mod worker;

use std::path::Path;

#[cfg(test)]
pub(crate) use self::worker::InProcessWorker;
use self::{cas::Cas, known::Locks, layers::Layers, lock::FileLock};
pub(crate) use self::{
    digest::{Digest, Hasher},
    error::StoreError,
    gc::Removal,
    platform::Platform,
    progress::{Event, NoProgress, Phase, Progress},
    sealed::{SealedKind, SealedRecord, Sealing},
    unpack::{OwnershipPolicy, UnpackLimits, UnpackOrder, UnpackStats, remove_tree},
    worker::{LayerWorker, UnpackJob, Unpacked, WorkerError},
};
use crate::spec::PullPolicy;

/// The id map under which layers are unpacked: owners on disk depend on it, so each has layers of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdKey {
    name: String,
    ownership: OwnershipPolicy,
}

impl IdKey {
    /// A short text that tells this map from others, such as `range-1000-100000`, and whether owners are kept.
    pub(crate) fn new(name: &str, ownership: OwnershipPolicy) -> Result<Self, StoreError> {
        let is_good = (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if is_good {
            Ok(Self {
                name: name.to_owned(),
                ownership,
            })
        } else {
            Err(StoreError::IdKey(name.to_owned()))
        }
    }
}

/// The images and layers that one user keeps on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    cas: Cas,
    layers: Layers,
    ids: IdKey,
    policy: PullPolicy,
    limits: UnpackLimits,
    #[cfg(feature = "registry")]
    timing: registry::Timing,
}

/// Keeps the layers of an image from being removed: as long as this lives, and not longer than the process.
///
/// The descriptors close on exec. A supervisor that outlives the caller takes a lease of its own.
#[derive(Debug)]
pub(crate) struct ImageLease {
    _layers: Locks,
    /// Of the record that a registry's reference leads to.
    _record: Option<FileLock>,
}

impl ImageLease {
    fn new(layers: impl Into<Locks>, record: Option<FileLock>) -> Self {
        Self {
            _layers: layers.into(),
            _record: record,
        }
    }
}

impl Store {
    /// Opens the store in `root`, and makes it where there is none.
    pub(crate) fn open(root: &Path, ids: IdKey) -> Result<Self, StoreError> {
        let cas = Cas::open(root)?;
        Ok(Self {
            layers: Layers::open(&cas.directory("layers"), &ids)?,
            cas,
            ids,
            policy: PullPolicy::default(),
            limits: UnpackLimits::default(),
            #[cfg(feature = "registry")]
            timing: registry::Timing::default(),
        })
    }

    #[must_use]
    pub(crate) fn with_policy(mut self, policy: PullPolicy) -> Self {
        self.policy = policy;
        self
    }

    #[cfg(test)]
    /// Where the unpacked layers of this store are, each in a directory of its own.
    pub(crate) fn layers_dir(&self) -> &Path {
        self.layers.directory()
    }
}
