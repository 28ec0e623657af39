//! Scaffold: the signatures `cargo-orbit` is written against. Thrown away at merge.
#![allow(missing_docs)]

use crate::builder::SandboxBuilder;

#[derive(Debug)]
pub struct Sandbox;

impl Sandbox {
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder::default()
    }

    pub fn pid(&self) -> Option<u32> {
        None
    }
    pub fn wait(&mut self) -> Result<crate::Outcome, crate::Error> {
        Err(crate::Error::io("wait", std::io::ErrorKind::Unsupported))
    }
    pub fn take_terminal(&mut self) -> Option<std::os::fd::OwnedFd> {
        None
    }
}
