//! Images from registries, over the OCI distribution protocol.
//!
//! A small blocking client of our own, on `ureq`. The one there is for Rust (`oci-client`) needs an async runtime
//! and 178 crates where this needs 27, hides the `Retry-After` header, keeps a manifest of any size in memory,
//! and neither resumes nor repeats a request.
//!
//! The registry is not trusted: each document and each blob is what its digest says, or is refused.

mod challenge;
mod credentials;
mod download;
mod error;
mod http;
mod pace;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use ureq::http::StatusCode;

use self::{download::Download, http::Client};
pub(crate) use self::{error::RegistryError, pace::Timing};
use super::{
    ImageLease, PullPolicy, Store,
    cas::{Cas, ImageRecord},
    digest::Digest,
    error::StoreError,
    manifest::{self, Descriptor, MAX_DOCUMENT_BYTES},
    platform::Platform,
    progress::{Event, Phase, Progress},
    pull::Hands,
    reference::Reference,
    source::{DocumentKind, LayerBlob, Source, check, describe},
};
use crate::image::Image;

/// An image in a registry, as far as it is not in the store yet.
struct RegistrySource<'a> {
    cas: &'a Cas,
    reference: &'a Reference,
    name: String,
    timing: Timing,
    is_offline: bool,
    /// Made when the first request is: a warm store needs no certificates and no login.
    client: OnceLock<Client>,
}

impl RegistrySource<'_> {
    fn client(&self) -> Result<&Client, StoreError> {
        if self.is_offline {
            return Err(StoreError::NotPulled {
                reference: self.name.clone(),
            });
        }
        Ok(self
            .client
            .get_or_init(|| Client::new(self.reference, self.timing)))
    }

    /// Asks which manifest the reference leads to now; keeps it.
    fn ask(&self) -> Result<Descriptor, StoreError> {
        let name = self.reference.manifest_name();
        let content = self.get(&format!("manifests/{name}"), &manifest::ACCEPTED.join(", "))?;
        let descriptor = Descriptor::of(&content);
        if let Some(pinned) = self.reference.digest()
            && *pinned != descriptor.digest
        {
            return Err(RegistryError::Mismatch {
                url: self.client()?.url(&format!("manifests/{name}")),
                what: "another manifest",
                expected: pinned.to_string(),
                found: descriptor.digest.to_string(),
            }
            .into());
        }
        self.cas.write_blob(&descriptor.digest, &content)?;
        Ok(descriptor)
    }

    fn get(&self, what: &str, accept: &str) -> Result<Vec<u8>, StoreError> {
        let client = self.client()?;
        let url = client.url(what);
        let response = client.get(&url, accept, 0)?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(RegistryError::Protocol {
                url,
                why: format!("status {status} to a request for a whole document"),
            }
            .into());
        }
        Ok(client.read_document(&url, response, MAX_DOCUMENT_BYTES)?)
    }
}

impl Source for RegistrySource<'_> {
    fn image(&self) -> &str {
        &self.name
    }

    fn document(
        &self,
        descriptor: &Descriptor,
        kind: DocumentKind,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(content) = self.cas.read_blob(&descriptor.digest)? {
            return Ok(Some(content));
        }
        let (what, accept) = match kind {
            DocumentKind::Manifest => ("manifests", manifest::ACCEPTED.join(", ")),
            DocumentKind::Configuration => ("blobs", String::new()),
        };
        let content = self.get(&format!("{what}/{}", descriptor.digest), &accept)?;
        check(&content, descriptor, kind.name(), &self.name)?;
        self.cas.write_blob(&descriptor.digest, &content)?;
        Ok(Some(content))
    }

    fn layer(
        &self,
        descriptor: &Descriptor,
        progress: &dyn Progress,
    ) -> Result<LayerBlob, StoreError> {
        let client = self.client()?;
        let label = descriptor.digest.label();
        let tell = |phase, done_bytes| {
            progress.report(&Event {
                layer: &label,
                phase,
                done_bytes,
                total_bytes: descriptor.size,
            });
        };
        let lock = self
            .cas
            .open_partial(&descriptor.digest, || tell(Phase::Waiting, 0))?;
        let path = self.cas.partial_path(&descriptor.digest);
        Download {
            client,
            descriptor,
            file: lock.file(),
            path: &path,
            tell: &|done| tell(Phase::Downloading, done),
        }
        .run()?;
        let file = lock
            .file()
            .try_clone()
            .map_err(StoreError::io("open", &path))?;
        Ok(LayerBlob {
            file,
            offset: 0,
            is_verified: true,
            lock: Some(lock),
        })
    }
}

impl Descriptor {
    /// What a document that was asked for by its tag is: its own content says.
    fn of(content: &[u8]) -> Self {
        Self {
            media_type: String::new(),
            digest: Digest::of(content),
            size: content.len() as u64,
            annotations: std::collections::BTreeMap::new(),
            platform: None,
        }
    }
}

impl Store {
    /// Waits less, and tries less often, than people do.
    #[cfg(test)]
    pub(super) fn with_timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    pub(super) fn resolve_registry(
        &self,
        text: &str,
        platform: &Platform,
        hands: Hands<'_>,
    ) -> Result<(Image, ImageLease), StoreError> {
        let reference: Reference = text.parse()?;
        let name = reference.to_string();
        let record_name = Cas::record_name(&name, platform);
        let source = RegistrySource {
            cas: &self.cas,
            reference: &reference,
            name: name.clone(),
            timing: self.timing,
            is_offline: self.policy == PullPolicy::Never,
            client: OnceLock::new(),
        };
        if self.policy != PullPolicy::Always
            && let Some(known) = self.cas.lease_record(&record_name)?
        {
            let manifest = known.record.manifest;
            return self.bring(&source, manifest, platform, hands, Some(known.lock));
        }
        if self.policy == PullPolicy::Never {
            return Err(StoreError::NotPulled { reference: name });
        }

        // Alone, so that of many processes that want the same image one asks for it.
        let asking = self.cas.lock_record(&record_name)?;
        let recorded = match self.policy {
            PullPolicy::Missing => self.cas.read_record(&record_name)?,
            _ => None,
        };
        let manifest = if let Some(record) = recorded {
            record.manifest
        } else {
            // The image of its platform, where an index was asked for: what is recorded needs no choice.
            let manifest = describe(&source, source.ask()?, platform)?.manifest;
            let record = ImageRecord {
                reference: name,
                platform: platform.clone(),
                manifest: manifest.clone(),
            };
            self.cas.write_record(&record_name, &record)?;
            manifest
        };
        let lock = self.cas.use_record(&record_name)?;
        drop(asking);
        self.bring(&source, manifest, platform, hands, Some(lock))
    }
}
