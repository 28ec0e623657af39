//! Throwaway containers inside Rust tests: no daemon, no root, about a millisecond.

#![deny(unsafe_code)]

mod units;

mod spec;

mod image;

mod outcome;

mod error;

mod builder;

mod sandbox;

pub use builder::{Output, PullPolicy, SandboxBuilder, Stdin};
pub use error::Error;
pub use sandbox::Sandbox;
pub use outcome::{LeakedProcess, Outcome, Status, Usage};
pub use spec::{ImageRef, Init, Mount, NetworkMode, SpecFault};
pub use units::{Bytes, CpuQuota, UnitError};
