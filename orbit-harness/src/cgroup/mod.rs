//! Limits on what a sandbox may use, and the bill of what it used: control groups, version 2.
//!
//! ```text
//! BASE/                        a subtree of our own: /sys/fs/cgroup/orbit as root, the delegated one as a user
//!   orbit-NS-PID-START/        of one test process; the name tells when its owner is dead
//!     supervisor/              where its supervisor lives, and sandboxes without limits
//!     1/ 2/ …                  one for each limited sandbox, whose process 1 is born in it
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | `limits` | from what was asked to files and values; pure |
//! | `place` | where the subtree comes from, and what keeps it from being there |
//! | `scope`, `bus` | asks the user's systemd for it, over D-Bus |
//! | `directory` | makes, writes, reads, kills and removes one control group |
//! | `reap` | removes what dead owners left |
//! | `usage` | reads the bill; its parsers are pure |
//!
//! The test process does all of this, as it has the privileges; the supervisor only gets a descriptor of the
//! directory in which a sandbox is to be born. No descriptor of it gets into the sandbox.
//!
//! Source: Linux, Documentation/admin-guide/cgroup-v2.rst.

mod bus;
mod directory;
mod error;
mod limits;
mod place;
mod reap;
mod scope;
mod usage;

pub(crate) use directory::Directory;
pub(crate) use error::LimitError;
pub(crate) use limits::{
    Controller, Setting, UNKEPT_V1, cpu_while_running, memory_while_running, settings, with_device,
};
pub(crate) use place::Place;
pub(crate) use reap::reap;
pub(crate) use usage::{Bill, bill};
