//! What an image is once it lies in the store: layers on disk and the configuration it came with.
//!
//! Plain data between `store`, which makes it, and `plan`, which reads it.

use std::{
    any::Any,
    panic::{RefUnwindSafe, UnwindSafe},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What keeps the layers of an image where they are, for as long as somebody has it.
pub(crate) type Held = Option<Arc<dyn Any + Send + Sync + UnwindSafe + RefUnwindSafe>>;

/// An image whose layers are unpacked and verified. Over the host's files, or over a plain directory, the layers are
/// what earlier sandboxes wrote there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    /// What people call it, for messages: the reference as given, or the path of the layout.
    pub(crate) name: String,
    /// Digest of the manifest, `sha256:…`; empty for a plain directory.
    pub(crate) digest: String,
    /// The directory that holds every layer, and the name of each layer in it, lowest first. Names are
    /// relative so that a mount of a hundred layers fits in a page of options.
    pub(crate) layers_dir: PathBuf,
    pub(crate) layers: Vec<String>,
    pub(crate) config: ImageConfig,
    /// Whether the topmost `/etc` of the layers is a directory, or there is none, where that was looked up. What was sealed
    /// over them may have another.
    #[serde(skip)]
    pub(crate) has_plain_etc: Option<bool>,
    /// How many of the topmost layers are what earlier sandboxes wrote: in each of them lies what was written to their
    /// mounts, too.
    pub(crate) sealed: usize,
    /// The image's whole configuration, as it was written; empty where there is none.
    pub(crate) document: String,
}

/// The `config` object of an image: what runs where nothing else is asked.
///
/// Source: OCI Image Configuration, "config".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageConfig {
    /// `NAME=value`, as written.
    pub(crate) env: Vec<String>,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) working_dir: String,
    /// `user[:group]`, names or numbers; empty is root.
    pub(crate) user: String,
    /// `6379/tcp`, as written.
    pub(crate) exposed_ports: Vec<String>,
    pub(crate) stop_signal: Option<String>,
    #[serde(default)]
    pub(crate) healthcheck: Option<HealthCheck>,
}

/// How to tell whether a service is well: Docker's `HEALTHCHECK`. A program that exits with 0 where it is.
///
/// Source: Dockerfile reference, "HEALTHCHECK"; Docker Image Specification v1.2, `Healthcheck`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The program and its arguments.
    pub(crate) words: Vec<String>,
    /// Between two checks.
    pub(crate) interval: Duration,
    /// For one check.
    pub(crate) timeout: Duration,
    /// In which failures do not count.
    pub(crate) start_period: Duration,
    /// Failures in a row until it is unwell.
    pub(crate) retries: u32,
}

impl HealthCheck {
    /// This program: every 30 s, given up after 30 s, unwell after 3 failures, unless told otherwise.
    pub fn new(words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            words: words.into_iter().map(Into::into).collect(),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            start_period: Duration::ZERO,
            retries: 3,
        }
    }

    /// This line for `sh -c`.
    pub fn shell(line: &str) -> Self {
        Self::new(["/bin/sh", "-c", line])
    }

    /// The time between two checks.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// The time that one check may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The time from the start in which failures do not count.
    #[must_use]
    pub fn start_period(mut self, period: Duration) -> Self {
        self.start_period = period;
        self
    }

    /// How many failures in a row make it unwell.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }
}
