//! Throwaway containers inside Rust tests: no daemon, no root, about a millisecond.

#![deny(unsafe_code)]

// In this order: a module imports only from what stands above it.
mod units;

mod resources;

mod spec;

mod image;

#[cfg(feature = "images")]
#[allow(dead_code, unused_imports)] // what uses it is not written yet
mod store;

mod outcome;

mod builder;

mod security;

mod sys;

mod host;

mod cgroup;

mod step;

mod rootfs;

mod plan;

mod supervisor;

mod error;

mod capture;

mod limited;

#[cfg(feature = "images")]
mod images;

mod sandbox;

pub use builder::{Output, SandboxBuilder, Stdin};
pub use error::Error;
pub use outcome::{
    LeakedProcess, Note, Outcome, Pressure, ProcessName, Status, Usage, UsageSource,
};
pub use sandbox::Sandbox;
pub use spec::{ImageRef, Init, Mount, NetworkMode, PullPolicy, SpecFault};
pub use units::{Bytes, CpuQuota, UnitError};
