//! What a pull tells while it runs.

/// Where one layer is on its way to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Another process is bringing this layer.
    Waiting,
    Downloading,
    Unpacking,
    Done,
}

/// One step of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event<'a> {
    /// The first twelve digits of the layer's digest.
    pub(crate) layer: &'a str,
    pub(crate) phase: Phase,
    /// Bytes of the compressed layer.
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
}

/// Told from several threads at once, many times a second; must not block.
pub(crate) trait Progress: Sync {
    fn report(&self, event: &Event<'_>);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _: &Event<'_>) {}
}
