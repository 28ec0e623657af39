//! What `cargo orbit doctor` tells of this machine that no sandbox shows by itself.

use std::{io, path::PathBuf};

use crate::{
    cache,
    host::{self, Host},
    security::idmap::plan::Writer,
};

/// How the ids of sandboxes come about here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// This process may write any map.
    Privileged {
        /// How many ids a sandbox has.
        count: u32,
    },
    /// By newuidmap(1) and newgidmap(1), from what `/etc/subuid` and `/etc/subgid` give this user.
    Helpers {
        /// How many ids a sandbox has.
        count: u32,
    },
    /// There is one: that of this user.
    Single {
        /// Why there are no more.
        because: String,
        /// What gives this user more: a command, or a package.
        fix: String,
    },
}

/// Finds out how the ids of sandboxes come about here.
///
/// # Errors
/// Where the facts of this machine cannot be read.
pub fn ids() -> io::Result<Ids> {
    let plan = &Host::get()?.ids;
    let count = plan.uids.count().min(plan.gids.count());
    Ok(match &plan.writer {
        Writer::Privileged => Ids::Privileged { count },
        Writer::Helpers => Ids::Helpers { count },
        Writer::Caller(single) => Ids::Single {
            because: single.to_string(),
            fix: single.fix(),
        },
    })
}

/// Where images and snapshots are kept, where there is such a place.
#[must_use]
pub fn cache_dir() -> Option<PathBuf> {
    cache::directory()
}

/// Where processes of this user meet, where there is such a place.
#[must_use]
pub fn runtime_dir() -> Option<PathBuf> {
    host::runtime_dir(rustix::process::geteuid().as_raw())
}
