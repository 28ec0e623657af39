//! Throwaway containers inside Rust tests: no daemon, no root, about a millisecond.
//!
//! [`Sandbox::builder`] says what a container should be; [`SandboxBuilder::run`] runs a program in it to its
//! end, [`SandboxBuilder::start`] gives a [`Sandbox`] that ends when it is dropped, or when this process dies,
//! however it dies. Without an image the container shows the host's own files, with every write thrown away:
//!
//! ```
//! let outcome = orbit::Sandbox::builder()
//!     .cmd(["sh", "-c", "echo here > /tmp/orbit; cat /tmp/orbit"])
//!     .run()?;
//! assert_eq!(outcome.stdout_text(), "here\n");
//! // It was another /tmp, and is gone.
//! assert!(!std::path::Path::new("/tmp/orbit").exists());
//! # Ok::<(), orbit::Error>(())
//! ```
//!
//! Features: `registry` (default) pulls images from registries; `images` reads OCI layouts and archives.

#![deny(unsafe_code)]

// In this order: a module imports only from what stands above it.
mod units;

mod net;

mod resources;

mod spec;

mod image;

mod cache;

#[cfg(feature = "images")]
#[cfg_attr(
    not(feature = "registry"),
    expect(dead_code, reason = "some of it is for pulled images alone")
)]
mod store;

mod changes;

mod outcome;

mod bounded;

mod security;

mod sys;

mod logs;

mod wait;

mod netlink;

mod netfilter;

mod host;

mod names;

mod dependencies;

mod cgroup;

mod step;

mod layer;

mod rootfs;

mod plan;

mod supervisor;

mod publish;

mod bridge;

mod meeting;

mod entry;

mod error;

mod network;

mod builder;

mod capture;

mod limited;

mod way_out;

#[cfg(feature = "images")]
pub mod images;

mod sandbox;

#[cfg(feature = "images")]
mod snapshot;

mod scenario;

mod shared;

mod wire;

mod variables;

mod attribute;

mod checked;

mod diagnosis;

#[doc(hidden)]
pub mod __private;

pub use attribute::sandboxed;
#[cfg(feature = "libtest-mimic")]
pub use attribute::trial::trial;
pub use builder::{IntoEgress, IntoNetwork, IntoPortMap, Output, SandboxBuilder, Stdin};
pub use changes::{Change, ChangeKind, Changes, FileKind};
pub use error::Error;
pub use image::HealthCheck;
pub use logs::{LogLine, LogStream, Logs};
pub use net::{
    addresses::{Subnet, SubnetError},
    denied::{Denied, Transport},
    egress::{Egress, EgressError},
    ports::{PortError, PortMap, Protocol},
    rate::Rate,
};
pub use network::{Network, NetworkBuilder};
pub use outcome::{
    LeakedProcess, Note, Outcome, OutputStream, Pressure, ProcessName, Status, Usage, UsageSource,
};
pub use publish::Port;
pub use sandbox::{Exec, ExecBuilder, Inspect, Killer, Paused, Sandbox, State};
pub use scenario::{Scenario, ScenarioBuilder};
pub use shared::{Shared, SharedGuard};
#[cfg(feature = "images")]
#[doc(hidden)]
pub use snapshot::kept;
#[cfg(feature = "images")]
pub use snapshot::{NamedSnapshot, Snapshot};
pub use spec::{Content, ImageRef, Init, Mount, NetworkMode, PullPolicy, SpecFault};
pub use units::{Bytes, CpuQuota, UnitError};
pub use wait::Wait;
pub use wire::{IntoRate, WireBuilder};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// And so do those of the guide for who comes from testcontainers.
#[cfg(doctest)]
#[doc = include_str!("../../docs/testcontainers.md")]
struct Testcontainers;
