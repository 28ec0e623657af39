//! What an image is once it lies in the store: layers on disk and the configuration it came with.
//!
//! Plain data between `store`, which makes it, and `plan`, which reads it.

use std::{
    any::Any,
    panic::{RefUnwindSafe, UnwindSafe},
    path::PathBuf,
    sync::Arc,
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
}
