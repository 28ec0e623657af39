//! Why an image could not be had from the store.
//!
//! Each message names the thing, what was expected of it, and what to do next.

use std::{io, path::PathBuf};

use super::{digest::Digest, platform::Platform, reference::ReferenceError, worker::WorkerError};
use crate::cache;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("{0} is not an image of the store: it needs no pulling and no unpacking")]
    NotStored(String),
    #[error(
        "cannot tell where to keep images: none of ORBIT_CACHE_DIR, XDG_CACHE_HOME and HOME is set to an absolute path; set ORBIT_CACHE_DIR"
    )]
    NoCacheDirectory,
    #[error(
        "`{0}` is not a key of an id map: expected up to 64 lower-case letters, digits and dashes"
    )]
    IdKey(String),
    #[error("cannot {doing} {}: {source}{}", path.display(), cache::advice(source))]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the image {reference} is not in the store and the pull policy is `never`; pull it first with `cargo orbit pull {reference}`"
    )]
    NotPulled { reference: String },
    #[error("the image {0} is in use, by a sandbox or a pull; forget it once that has ended")]
    InUse(String),
    #[cfg(not(feature = "registry"))]
    #[error(
        "`{reference}` names an image in a registry, and this build of Orbit has no registry support; build it with the feature `registry`, or use `oci:PATH`"
    )]
    NoRegistrySupport { reference: String },
    #[error("{} is not an OCI image layout: {why}", path.display())]
    Layout { path: PathBuf, why: String },
    #[error(
        "{} holds {count} images and {asked}; choose one of its tags: {tags}", path.display()
    )]
    ChooseTag {
        path: PathBuf,
        count: usize,
        asked: String,
        tags: String,
    },
    #[error(
        "the {what} of {image} is not what it should be: expected {expected}, found {found}; {hint}"
    )]
    Mismatch {
        what: &'static str,
        image: String,
        expected: String,
        found: String,
        hint: &'static str,
    },
    #[error("the {what} of {image} cannot be used: {why}")]
    Malformed {
        what: &'static str,
        image: String,
        why: String,
    },
    #[error(
        "{image} is not made for {wanted}: it is for {offered}; ask for one of those platforms, or for another image"
    )]
    WrongPlatform {
        image: String,
        wanted: Platform,
        offered: String,
    },
    #[error("{image} lacks the blob {digest}: the layout is incomplete; copy the image again")]
    MissingBlob { image: String, digest: Digest },
    #[error("cannot unpack the layer {layer} of {image}: {source}; nothing of it was kept")]
    Unpack {
        image: String,
        layer: Digest,
        source: WorkerError,
    },
    #[error("cannot remove {}: {source}", path.display())]
    Remove { path: PathBuf, source: WorkerError },
    #[cfg(feature = "registry")]
    #[error(transparent)]
    Registry(#[from] super::registry::RegistryError),
}

impl StoreError {
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    /// Whether this process had no descriptor left, or the machine none.
    pub(super) fn is_lack_of_descriptors(&self) -> bool {
        matches!(
            self,
            Self::Io { source, .. }
                if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
        )
    }

    pub(super) fn malformed(what: &'static str, image: &str, why: impl Into<String>) -> Self {
        Self::Malformed {
            what,
            image: image.to_owned(),
            why: why.into(),
        }
    }
}
