//! The `#[orbit::sandboxed]` attribute.
