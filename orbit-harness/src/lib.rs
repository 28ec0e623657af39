//! Throwaway containers inside Rust tests: no daemon, no root, about a millisecond.

#![deny(unsafe_code)]

// In this order: a module imports only from what stands above it.
mod units;

mod net;

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

mod step;

mod rootfs;

mod plan;

mod supervisor;

mod publish;

mod error;

mod capture;

#[cfg(feature = "images")]
mod images;

mod sandbox;

pub use builder::{IntoPortMap, Output, SandboxBuilder, Stdin};
pub use error::Error;
pub use net::{
    addresses::{Subnet, SubnetError},
    ports::{PortError, PortMap, Protocol},
};
pub use outcome::{LeakedProcess, Outcome, Status, Usage};
pub use publish::Port;
pub use sandbox::Sandbox;
pub use spec::{ImageRef, Init, Mount, NetworkMode, PullPolicy, SpecFault};
pub use units::{Bytes, CpuQuota, UnitError};
