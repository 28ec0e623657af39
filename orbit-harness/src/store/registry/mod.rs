//! placeholder
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {}
