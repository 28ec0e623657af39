//! Scaffold: the signatures `cargo-orbit` is written against. Thrown away at merge.
#![allow(missing_docs)]

use crate::builder::SandboxBuilder;

#[derive(Debug)]
pub struct Sandbox;

impl Sandbox {
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder::default()
    }
}
