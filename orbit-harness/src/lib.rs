//! Throwaway containers inside Rust tests: no daemon, no root, about a millisecond.

#![deny(unsafe_code)]

mod units;

mod spec;

mod image;

#[cfg(feature = "images")]
#[allow(dead_code, unused_imports)] // what uses it is not written yet
mod store;

mod outcome;

mod error;

pub use error::Error;
pub use outcome::{LeakedProcess, Outcome, Status, Usage};
pub use spec::{ImageRef, Init, Mount, NetworkMode, SpecFault};
pub use units::{Bytes, CpuQuota, UnitError};
