//! Manifests, indexes and configurations: OCI's and Docker's schema 2.
//!
//! Pure parsing of what somebody else wrote. Only the fields that Orbit uses are read; sizes are bounded by the
//! caller, and every digest by [`Digest`].
//!
//! Source: OCI Image Specification, "Image Manifest", "Image Index", "Image Configuration"; Docker Registry HTTP
//! API, "Image Manifest V 2, Schema 2".

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};

use super::{digest::Digest, error::StoreError, platform::Platform};
use crate::image::{HealthCheck, ImageConfig};

/// Larger documents are no manifests: registries themselves take no more.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Overlayfs takes no more in one mount.
const MAX_LAYERS: usize = 500;
/// An index in an index is legal; a chain of them is an attack on patience.
pub(super) const MAX_INDEX_DEPTH: u32 = 4;
/// Where the tags of a layout are.
pub(super) const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// What a registry is asked for.
pub(super) const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// A blob as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) platform: Option<DescribedPlatform>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DescribedPlatform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl DescribedPlatform {
    fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone().filter(|v| !v.is_empty()),
        }
    }
}

impl Descriptor {
    pub(super) fn tag(&self) -> Option<&str> {
        self.annotations.get(TAG_ANNOTATION).map(String::as_str)
    }
}

/// What a reference or a layout leads to.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u32>,
    #[serde(default, deserialize_with = "null_is_default")]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// Go writes an empty list as `null`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Document {
    /// Reads a manifest or an index of `image`.
    pub(super) fn parse(content: &[u8], image: &str) -> Result<Self, StoreError> {
        let malformed = |why: String| StoreError::malformed("manifest", image, why);
        let raw: RawDocument = serde_json::from_slice(content)
            .map_err(|e| malformed(format!("it is not a manifest: {e}")))?;
        match raw.schema_version {
            Some(2) => {}
            Some(1) => {
                return Err(malformed(
                    "it has Docker's schema 1, which was retired in 2019; build or push the image again with a current tool"
                        .to_owned(),
                ));
            }
            _ => return Err(malformed("its schemaVersion is not 2".to_owned())),
        }
        match (raw.manifests, raw.config, raw.layers) {
            // Something that claims to be both would be read by its media type alone, if at all.
            (Some(manifests), None, None)
                if !matches!(&*raw.media_type, OCI_MANIFEST | DOCKER_MANIFEST) =>
            {
                Ok(Self::Index(manifests))
            }
            (None, Some(config), layers)
                if !matches!(&*raw.media_type, OCI_INDEX | DOCKER_LIST) =>
            {
                let layers = layers.unwrap_or_default();
                if layers.len() > MAX_LAYERS {
                    return Err(malformed(format!(
                        "it has {} layers, and Linux stacks {MAX_LAYERS} at most",
                        layers.len()
                    )));
                }
                check_media_types(&config, &layers).map_err(malformed)?;
                Ok(Self::Manifest { config, layers })
            }
            _ => Err(malformed(
                "it is neither an index of manifests nor a manifest of layers".to_owned(),
            )),
        }
    }
}

/// Refuses what is no image: charts, signatures, attestations.
fn check_media_types(config: &Descriptor, layers: &[Descriptor]) -> Result<(), String> {
    if !matches!(
        &*config.media_type,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
            | ""
    ) {
        return Err(format!(
            "it is not a container image but an artifact of the type `{}`",
            config.media_type
        ));
    }
    for layer in layers {
        let kind = &*layer.media_type;
        if kind.contains("foreign") {
            return Err(format!(
                "the layer {} is kept elsewhere (`{kind}`), as only Windows images do",
                layer.digest
            ));
        }
        let is_layer = kind.starts_with("application/vnd.oci.image.layer.")
            || kind.starts_with("application/vnd.docker.image.rootfs.diff.tar")
            || kind.is_empty();
        if !is_layer {
            return Err(format!(
                "the layer {} has the unknown type `{kind}`",
                layer.digest
            ));
        }
        if kind.contains("+encrypted") {
            return Err(format!("the layer {} is encrypted", layer.digest));
        }
    }
    Ok(())
}

/// The entry of an index that runs on `wanted`.
pub(super) fn choose<'a>(
    entries: &'a [Descriptor],
    wanted: &Platform,
    image: &str,
) -> Result<&'a Descriptor, StoreError> {
    // Of equally good ones the first, as other tools choose. Without a platform, only where there is no choice.
    let best = entries
        .iter()
        .rev()
        .filter_map(|entry| Some((wanted.fit(&entry.platform.as_ref()?.platform())?, entry)))
        .max_by_key(|(fit, _)| *fit)
        .map(|(_, entry)| entry);
    match (best, entries) {
        (Some(entry), _) => Ok(entry),
        (None, [only]) if only.platform.is_none() => Ok(only),
        _ => {
            let mut offered: Vec<String> = entries
                .iter()
                .filter_map(|entry| Some(entry.platform.as_ref()?.platform().to_string()))
                // What attestations call themselves.
                .filter(|platform| platform != "unknown/unknown")
                .collect();
            offered.dedup();
            Err(StoreError::WrongPlatform {
                image: image.to_owned(),
                wanted: wanted.clone(),
                offered: if offered.is_empty() {
                    "no platform at all".to_owned()
                } else {
                    offered.join(", ")
                },
            })
        }
    }
}

/// An image's configuration: what to run, and what its layers unpack to.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(super) config: ImageConfig,
    pub(super) diff_ids: Vec<Digest>,
    /// As it was written.
    pub(super) document: String,
}

#[derive(Deserialize)]
struct RawConfiguration {
    #[serde(default, deserialize_with = "null_is_default")]
    os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    architecture: String,
    #[serde(default, deserialize_with = "null_is_default")]
    config: RawConfig,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    user: String,
    #[serde(deserialize_with = "null_is_default")]
    /// In Go a set is a map to nothing.
    exposed_ports: BTreeMap<String, serde_json::Value>,
    stop_signal: Option<String>,
    healthcheck: Option<RawHealthcheck>,
}

/// Durations are in nanoseconds; 0 is what was not given.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawHealthcheck {
    #[serde(deserialize_with = "null_is_default")]
    test: Vec<String>,
    interval: u64,
    timeout: u64,
    start_period: u64,
    retries: u32,
}

impl RawHealthcheck {
    /// `None` where there is none, or it is switched off (`["NONE"]`).
    fn check(self) -> Option<HealthCheck> {
        let mut check = match self.test.split_first()? {
            (kind, words) if kind == "CMD" && !words.is_empty() => HealthCheck::new(words),
            (kind, [line]) if kind == "CMD-SHELL" => HealthCheck::shell(line),
            _ => return None,
        };
        let given =
            |nanoseconds| Some(Duration::from_nanos(nanoseconds)).filter(|it| !it.is_zero());
        check.interval = given(self.interval).unwrap_or(check.interval);
        check.timeout = given(self.timeout).unwrap_or(check.timeout);
        check.start_period = Duration::from_nanos(self.start_period);
        check.retries = Some(self.retries)
            .filter(|it| *it > 0)
            .unwrap_or(check.retries);
        Some(check)
    }
}

impl Configuration {
    /// Reads the configuration of `image`, which must be for `wanted` and for `layers` layers.
    pub(super) fn parse(
        content: &[u8],
        wanted: &Platform,
        layers: usize,
        image: &str,
    ) -> Result<Self, StoreError> {
        let malformed = |why: String| StoreError::malformed("configuration", image, why);
        let raw: RawConfiguration = serde_json::from_slice(content)
            .map_err(|e| malformed(format!("it is not an image's configuration: {e}")))?;
        if !wanted.accepts(&raw.os, &raw.architecture) {
            return Err(StoreError::WrongPlatform {
                image: image.to_owned(),
                wanted: wanted.clone(),
                offered: format!("{}/{}", raw.os, raw.architecture),
            });
        }
        if raw.rootfs.diff_ids.len() != layers {
            return Err(malformed(format!(
                "it lists {} layers, and the manifest {layers}",
                raw.rootfs.diff_ids.len()
            )));
        }
        let config = raw.config;
        Ok(Self {
            config: ImageConfig {
                env: config.env,
                entrypoint: config.entrypoint,
                cmd: config.cmd,
                working_dir: config.working_dir,
                user: config.user,
                exposed_ports: config.exposed_ports.into_keys().collect(),
                stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
                healthcheck: config.healthcheck.and_then(RawHealthcheck::check),
            },
            diff_ids: raw.rootfs.diff_ids,
            document: String::from_utf8_lossy(content).into_owned(),
        })
    }
}
