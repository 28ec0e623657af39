//! Lets an ordinary user run cargo, where the toolchain lies under a home that only root can enter.
//!
//! In a mount namespace of our own the toolchain and cargo's registry appear, read-only, under
//! `target/toolchain`, which everyone can enter. A user's own `CARGO_HOME` then links to that registry and
//! is theirs for everything else, locks above all. rustup is not needed: `cargo` and `rustc` are called
//! where they lie, in the toolchain's own `bin`.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{Program, target_dir};

/// Where Debian's programs are.
pub(crate) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A toolchain that the identities under test can reach.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// With `bin/cargo` and `bin/rustc` in it.
    sysroot: PathBuf,
    /// Cargo's registry: index, archives and sources.
    registry: PathBuf,
}

/// A mount namespace for the calling process and all it starts from now on, in which mounts propagate as
/// on an ordinary machine (shared), but not out of it.
///
/// # Errors
/// Without the right to (root), or with more than one thread.
pub fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
    for propagation in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | propagation,
            None::<&str>,
        )
        .context("set the propagation of mounts")?;
    }
    Ok(())
}

impl Toolchain {
    /// The toolchain of whoever runs this, where it lies.
    ///
    /// # Errors
    /// Where `rustc` does not answer.
    pub fn of_caller() -> Result<Self> {
        let sysroot = Program::new("rustc")
            .args(["--print", "sysroot"])
            .run()?
            .success()?;
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home
            .or_else(|| Some(env::home_dir()?.join(".cargo")))
            .context("no CARGO_HOME and no home")?;
        Ok(Self {
            sysroot: sysroot.stdout.trim_end().into(),
            registry: home.join("registry"),
        })
    }

    /// The same toolchain where everyone can reach it. Call [`private_mounts`] first: these mounts must
    /// not appear to others.
    ///
    /// # Errors
    /// Where the mounts fail: without root.
    pub fn exposed(&self) -> Result<Self> {
        let base = target_dir().join("toolchain");
        let there = Self {
            sysroot: base.join("sysroot"),
            registry: base.join("registry"),
        };
        bind_read_only(&self.sysroot, &there.sysroot)?;
        bind_read_only(&self.registry, &there.registry)?;
        Ok(there)
    }

    /// The directory of `cargo` and `rustc`.
    pub fn bin(&self) -> PathBuf {
        self.sysroot.join("bin")
    }

    /// Makes a `CARGO_HOME` in `home` that works offline with what was fetched already.
    ///
    /// # Errors
    /// Where `home` cannot be written to.
    pub fn cargo_home(&self, home: &Path) -> Result<PathBuf> {
        let cargo_home = home.join(".cargo");
        fs::create_dir_all(&cargo_home)?;
        symlink(&self.registry, cargo_home.join("registry"))?;
        Ok(cargo_home)
    }

    /// `PATH` with the toolchain first, and without the caller's shims.
    pub fn path(&self) -> OsString {
        let mut path = self.bin().into_os_string();
        path.push(":");
        path.push(SYSTEM_PATH);
        path
    }
}

fn bind_read_only(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    let step = || format!("bind {} to {}", from.display(), to.display());
    mount(Some(from), to, None::<&str>, bind, None::<&str>).with_context(step)?;
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, to, None::<&str>, read_only, None::<&str>).with_context(step)
}
