//! Support for the end-to-end tests: identities, leak audits, a registry, programs with a deadline.
//!
//! The tests themselves are in `tests/e2e`, one module for each subject. A test is a plain function of a
//! [`Context`], registered as a [`Case`] for the identities it runs as. Root runs every case as each of
//! them; an ordinary user runs the ones for ordinary users, and names the others as skipped.
//!
//! Nothing here isolates anything: these helpers must find what Orbit leaves behind, so they use the
//! machine's own tools and never Orbit itself; but for [`view`], which makes what is tested.

#![forbid(unsafe_code)]

pub mod audit;
pub mod case;
pub mod images;
pub mod main_loop;
pub mod orbit_cli;
pub mod packages;
pub mod proc_fs;
pub mod process;
pub mod published;
pub mod registry;
pub mod toolchain;
pub mod view;
pub mod who;
pub mod world;

use std::path::PathBuf;

pub use audit::LeakAudit;
pub use case::{Case, Context, Skip};
pub use process::{Finished, Program};
pub use registry::Registry;
pub use who::Who;

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .map_or_else(|| package.clone(), PathBuf::from)
}

/// Cargo's target directory: where the running binary lies, so that `CARGO_TARGET_DIR` is heeded.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    // target/debug/deps/e2e-0123456789abcdef
    exe.ancestors()
        .nth(3)
        .map_or_else(|| workspace().join("target"), PathBuf::from)
}
