//! Where the pieces of an image come from: a layout, an archive of one, or a registry.

use super::{
    digest::Digest,
    error::StoreError,
    lock::FileLock,
    manifest::{self, Configuration, Descriptor, Document, MAX_DOCUMENT_BYTES},
    platform::Platform,
    progress::Progress,
};

/// A layer's blob in a file.
#[derive(Debug)]
pub(super) struct LayerBlob {
    pub(super) file: std::fs::File,
    pub(super) offset: u64,
    /// Whether the blob's digest was verified when it came here.
    pub(super) is_verified: bool,
    /// Held until the blob is unpacked; the file of a download is removed then.
    pub(super) lock: Option<FileLock>,
}

/// Which document: registries keep manifests and blobs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DocumentKind {
    Manifest,
    Configuration,
}

impl DocumentKind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Configuration => "configuration",
        }
    }
}

/// Gives out what a manifest names. Whatever it gives is checked by the caller.
pub(super) trait Source: Sync {
    /// What people call the image, for messages.
    fn image(&self) -> &str;

    /// A manifest, an index or a configuration; `None` where it is not there.
    fn document(
        &self,
        descriptor: &Descriptor,
        kind: DocumentKind,
    ) -> Result<Option<Vec<u8>>, StoreError>;

    /// The blob of a layer, of the size that its descriptor says.
    fn layer(
        &self,
        descriptor: &Descriptor,
        progress: &dyn Progress,
    ) -> Result<LayerBlob, StoreError>;
}

/// An image whose manifest and configuration are read and verified.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) manifest: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    pub(super) configuration: Configuration,
}

/// Follows `descriptor` to the image for `platform`.
pub(super) fn describe(
    source: &dyn Source,
    descriptor: Descriptor,
    platform: &Platform,
) -> Result<Described, StoreError> {
    let image = source.image();
    let mut manifest = descriptor;
    for _ in 0..manifest::MAX_INDEX_DEPTH {
        let content = verified(source, &manifest, DocumentKind::Manifest)?;
        match Document::parse(&content, image)? {
            Document::Index(entries) => {
                manifest = manifest::choose(&entries, platform, image)?.clone();
            }
            Document::Manifest { config, layers } => {
                let content = verified(source, &config, DocumentKind::Configuration)?;
                let configuration = Configuration::parse(&content, platform, layers.len(), image)?;
                return Ok(Described {
                    manifest,
                    layers,
                    configuration,
                });
            }
        }
    }
    Err(StoreError::malformed(
        "index",
        image,
        format!(
            "indexes lead to indexes more than {} deep",
            manifest::MAX_INDEX_DEPTH
        ),
    ))
}

fn verified(
    source: &dyn Source,
    descriptor: &Descriptor,
    kind: DocumentKind,
) -> Result<Vec<u8>, StoreError> {
    let image = source.image();
    let what = kind.name();
    if descriptor.size > MAX_DOCUMENT_BYTES {
        return Err(StoreError::malformed(
            what,
            image,
            format!(
                "it claims {} bytes, and Orbit reads {MAX_DOCUMENT_BYTES} at most",
                descriptor.size
            ),
        ));
    }
    let Some(content) = source.document(descriptor, kind)? else {
        return Err(StoreError::MissingBlob {
            image: image.to_owned(),
            digest: descriptor.digest,
        });
    };
    check(&content, descriptor, what, image)?;
    Ok(content)
}

/// Whether `content` is what `descriptor` promises.
pub(super) fn check(
    content: &[u8],
    descriptor: &Descriptor,
    what: &'static str,
    image: &str,
) -> Result<(), StoreError> {
    let mismatch = |expected: String, found: String| StoreError::Mismatch {
        what,
        image: image.to_owned(),
        expected,
        found,
        hint: "it is damaged or was tampered with, and nothing of it is used",
    };
    if content.len() as u64 != descriptor.size {
        return Err(mismatch(
            format!("{} bytes", descriptor.size),
            format!("{} bytes", content.len()),
        ));
    }
    let found = Digest::of(content);
    if found != descriptor.digest {
        return Err(mismatch(descriptor.digest.to_string(), found.to_string()));
    }
    Ok(())
}
