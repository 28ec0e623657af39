//! Sandboxes that were kept when they had ended, to be looked into: their files, and what they were asked to be.
//!
//! For `cargo orbit test --keep-failed` and `cargo orbit shell`. Not part of what is promised.

use std::{
    ffi::OsString,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{must_last, named, not_found, now_s};
use crate::{
    builder::SandboxBuilder,
    error::Error,
    images::{SupervisorWorker, host, open},
    sandbox::{self, Sandbox},
    spec::{ImageRef, MountKind, Spec},
    store::{SealedKind, SealedRecord},
};

/// A sandbox that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// What `cargo orbit shell` is told.
    pub id: String,
    /// What it was: the name of a test.
    pub title: String,
    /// When it was kept.
    pub made: SystemTime,
    /// The content of the files it wrote, in bytes.
    pub bytes: u64,
    /// The root that it was over, as `--image` names it.
    pub image: String,
    /// The shell that its environment names.
    pub shell: Option<OsString>,
}

impl From<SealedRecord> for Kept {
    fn from(record: SealedRecord) -> Self {
        Self {
            made: record.made(),
            image: record.spec.image.to_string(),
            shell: record
                .env
                .iter()
                .find(|(name, _)| name == "SHELL")
                .map(|(_, value)| value.clone()),
            id: record.id,
            title: record.title,
            bytes: record.bytes,
        }
    }
}

/// Keeps `sandbox`, which has ended: the files it wrote are sealed in the store, with all that it takes to make another
/// one like it. Its id.
///
/// # Errors
/// As [`Sandbox::snapshot`].
pub fn keep(sandbox: &mut Sandbox, title: &str) -> Result<String, Error> {
    let made = sandbox.snapshot()?;
    must_last(&made, title)?;
    let store = open(host()?)?;
    let id = sandbox::random_id();
    let _lock = store.lock_sealed(&id)?;
    let spec = spec_of(sandbox, &made.spec);
    made.publish()?;
    let made = super::Snapshot {
        spec: std::sync::Arc::new(spec),
        ..made
    };
    let record = named::record(&made, id.clone(), SealedKind::Kept, title.to_owned());
    store.write_sealed(&record)?;
    Ok(id)
}

/// What was asked, without what depended on the process that asked.
fn spec_of(sandbox: &Sandbox, asked: &Spec) -> Spec {
    let (_, plan, _) = sandbox.made_of();
    let program = &plan.program;
    let mut spec = asked.clone();
    spec.env = program.env.clone();
    spec.env_clear = true;
    spec.working_dir = Some(program.working_dir.clone());
    spec.timeout = None;
    spec.record_changes = false;
    if spec.image == ImageRef::Host {
        let around = sandbox::surroundings(&spec.image);
        let shown = [Some(around.working_dir), around.executable_dir];
        spec.host_view.paths.extend(shown.into_iter().flatten());
    }
    spec
}

/// Those that are kept, the oldest first.
///
/// # Errors
/// Where the store cannot be read.
pub fn list() -> Result<Vec<Kept>, Error> {
    let all = open(host()?)?.list_sealed()?;
    let kept = all
        .into_iter()
        .filter(|record| record.kind == SealedKind::Kept);
    Ok(kept.map(Kept::from).collect())
}

/// Another sandbox like the one kept as `id`, over its files.
///
/// # Errors
/// Where there is none, or what it was over is gone from the store.
pub fn builder(id: &str) -> Result<SandboxBuilder, Error> {
    let found = if is_id(id) {
        named::find(&open(host()?)?, id)?
    } else {
        None
    };
    let snapshot = found.ok_or_else(|| not_found(&format!("a kept sandbox {id}")))?;
    let mut builder = snapshot.builder();
    // Directories that are gone meanwhile, as a temporary one, are no reason to show nothing.
    let is_there = |path: &PathBuf| path.exists();
    builder.spec.host_view.paths.retain(is_there);
    builder.spec.host_view.read_only_paths.retain(is_there);
    builder.spec.mounts.retain(|mount| match &mount.kind {
        MountKind::Bind { source, .. } | MountKind::Overlay { source } => source.exists(),
        MountKind::Tmpfs { .. } => true,
    });
    builder.spec.entrypoint = None;
    builder.spec.cmd = None;
    builder.spec.args.clear();
    Ok(builder)
}

/// Removes the one kept as `id`. Whether there was one.
///
/// # Errors
/// Where the store cannot be read or written.
pub fn remove(id: &str) -> Result<bool, Error> {
    let host = host()?;
    let store = open(host)?;
    if !is_id(id)
        || !store
            .list_sealed()?
            .iter()
            .any(|it| it.id == id && it.kind == SealedKind::Kept)
    {
        return Ok(false);
    }
    Ok(store.remove_sealed(id, &SupervisorWorker { host })?)
}

/// Removes all that were kept for `age` at least. How many.
///
/// # Errors
/// As [`remove`].
pub fn remove_older_than(age: Duration) -> Result<u64, Error> {
    let mut removed = 0;
    for kept in list()? {
        let since = now_s().saturating_sub(
            kept.made
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |made| made.as_secs()),
        );
        if since >= age.as_secs() && remove(&kept.id)? {
            removed += 1;
        }
    }
    Ok(removed)
}

/// What people type becomes part of a path.
fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}
