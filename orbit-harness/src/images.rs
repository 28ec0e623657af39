//! Images in the store of this user: pulled with the first sandbox that needs them, or ahead of need.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! let redis = orbit::images::pull("redis:7", orbit::PullPolicy::Always)?;
//! println!("{} is {}", redis.reference, redis.digest);
//! let removed = orbit::images::remove_unused(Duration::from_secs(30 * 24 * 3600))?;
//! println!("{} bytes freed", removed.bytes);
//! # Ok::<(), orbit::Error>(())
//! ```
//!
//! The store is in `$ORBIT_CACHE_DIR`, else in `orbit` of `$XDG_CACHE_HOME` or of `~/.cache`. All processes of a
//! user share it.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use crate::{
    error::Error,
    host::Host,
    image::Image,
    security::idmap::plan::Writer,
    spec::{ImageRef, PullPolicy},
    store::{
        Event, IdKey, ImageLease, LayerWorker, NoProgress, OwnershipPolicy, Phase, Platform,
        Progress, Removal, Store, StoreError, UnpackJob, UnpackStats, Unpacked, WorkerError,
    },
    supervisor::{Channel, Request, Supervisor},
};

/// An image that is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredImage {
    /// What it was asked for by; of an image of a registry the whole reference.
    pub reference: String,
    /// Of its manifest: `sha256:…`.
    pub digest: String,
    /// What it runs on: `linux/amd64`.
    pub platform: String,
    /// When its tag was last looked up.
    pub pulled: SystemTime,
}

/// How far one layer of an image is on its way to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullProgress {
    /// The first twelve digits of the layer's digest.
    pub layer: String,
    /// What happens to it.
    pub phase: PullPhase,
    /// How much of it was done, in bytes of the compressed layer.
    pub done_bytes: u64,
    /// How much there is to do.
    pub total_bytes: u64,
}

/// What happens to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullPhase {
    /// Another process brings it.
    Waiting,
    /// It is downloaded.
    Downloading,
    /// It is verified and unpacked.
    Unpacking,
    /// It is in the store.
    Done,
}

struct Teller<'a>(&'a (dyn Fn(PullProgress) + Sync));

impl Progress for Teller<'_> {
    fn report(&self, event: &Event<'_>) {
        (self.0)(PullProgress {
            layer: event.layer.to_owned(),
            phase: match event.phase {
                Phase::Waiting => PullPhase::Waiting,
                Phase::Downloading => PullPhase::Downloading,
                Phase::Unpacking => PullPhase::Unpacking,
                Phase::Done => PullPhase::Done,
            },
            done_bytes: event.done_bytes,
            total_bytes: event.total_bytes,
        });
    }
}

/// What was removed from the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// How many images are not known any more.
    pub images: u64,
    /// How many layers were removed.
    pub layers: u64,
    /// The content of those layers, in bytes.
    pub bytes: u64,
    /// How many images and layers stayed because a sandbox uses them, or a process used them last and may again.
    pub in_use: u64,
    /// How many named snapshots and kept sandboxes were removed.
    pub snapshots: u64,
}

/// Brings the image that `reference` names into the store, if it is not there: so that a later sandbox starts at
/// once. `reference` is read as [`SandboxBuilder::image`](crate::SandboxBuilder::image) reads it.
///
/// # Errors
/// Where the image cannot be had, with the reason; where `reference` names no image.
pub fn pull(reference: &str, policy: PullPolicy) -> Result<StoredImage, Error> {
    pull_telling(reference, policy, &|_| {})
}

/// As [`pull`], with the feature `tokio`. Given up, the image is brought all the same.
///
/// # Errors
/// As [`pull`].
#[cfg(feature = "tokio")]
pub async fn pull_async(
    reference: impl Into<String>,
    policy: PullPolicy,
) -> Result<StoredImage, Error> {
    let reference = reference.into();
    crate::sys::blocking(move || pull(&reference, policy))
        .await
        .map_err(|error| Error::io("cannot go on with the image", error))?
}

/// As [`pull`]; `tell` is called while it runs, from several threads at once and many times a second, and must not
/// block.
///
/// # Errors
/// As [`pull`].
pub fn pull_telling(
    reference: &str,
    policy: PullPolicy,
    tell: &(dyn Fn(PullProgress) + Sync),
) -> Result<StoredImage, Error> {
    let parsed: ImageRef = reference
        .parse()
        .map_err(|fault| Error::spec(vec![fault]))?;
    let (image, _lease) = resolve_telling(&parsed, policy, host()?, &Teller(tell))?;
    Ok(StoredImage {
        reference: image.name,
        digest: image.digest,
        platform: Platform::host().to_string(),
        pulled: SystemTime::now(),
    })
}

/// The images of registries that are in the store, by reference.
///
/// # Errors
/// Where the store cannot be read.
pub fn list() -> Result<Vec<StoredImage>, Error> {
    let images = open(host()?)?.list()?;
    Ok(images
        .into_iter()
        .map(|image| StoredImage {
            reference: image.reference,
            digest: image.digest,
            platform: image.platform.to_string(),
            pulled: image.pulled,
        })
        .collect())
}

/// Forgets the image of `reference`, which must be written as [`list`] shows it. Its layers stay until
/// [`remove_unused`] finds them unused. Whether there was one.
///
/// # Errors
/// Where a sandbox or a pull uses it, or the store cannot be read or written.
pub fn forget(reference: &str) -> Result<bool, Error> {
    Ok(open(host()?)?.remove_image(reference)?)
}

/// Removes images and layers that no sandbox used for `age`, and what dead processes left. Nothing that is in
/// use is removed, so [`Duration::ZERO`] removes all but that. In use, too, are the images that another process which is
/// still there used last: as many as have 128 layers.
///
/// # Errors
/// Where the store cannot be read, or something of it not be removed.
pub fn remove_unused(age: Duration) -> Result<Removed, Error> {
    let host = host()?;
    let removal = if age.is_zero() {
        Removal::Everything
    } else {
        Removal::UnusedFor(age)
    };
    let report = open(host)?.gc(removal, &SupervisorWorker { host })?;
    Ok(Removed {
        images: report.images,
        layers: report.layers,
        bytes: report.bytes,
        in_use: report.in_use,
        snapshots: report.sealed,
    })
}

pub(crate) fn host() -> Result<&'static Host, Error> {
    Host::get().map_err(|error| Error::io("cannot read the facts of this machine", error))
}

/// The image that `reference` names, with all its layers on disk, and what keeps them there.
pub(crate) fn resolve(
    reference: &ImageRef,
    policy: PullPolicy,
    host: &'static Host,
) -> Result<(Image, Option<ImageLease>), Error> {
    resolve_telling(reference, policy, host, &NoProgress)
}

fn resolve_telling(
    reference: &ImageRef,
    policy: PullPolicy,
    host: &'static Host,
    progress: &dyn Progress,
) -> Result<(Image, Option<ImageLease>), Error> {
    let store = open(host)?.with_policy(policy);
    let worker = SupervisorWorker { host };
    let (image, lease) = store.resolve(reference, &Platform::host(), &worker, progress)?;
    Ok((image, Some(lease)))
}

pub(crate) fn open(host: &Host) -> Result<Store, StoreError> {
    let ownership = match host.ids.writer {
        // With a single id there is but one owner a file can have.
        Writer::Caller(_) => OwnershipPolicy::Squash,
        Writer::Helpers | Writer::Privileged => OwnershipPolicy::Keep,
    };
    Store::open(
        &crate::cache::directory().ok_or(StoreError::NoCacheDirectory)?,
        IdKey::new(host.ids.key(), ownership)?,
    )
}

/// Has layers unpacked and removed by the supervisor.
pub(crate) struct SupervisorWorker {
    pub(crate) host: &'static Host,
}

impl SupervisorWorker {
    fn ask(&self, request: &Request, blob: Option<&fs::File>) -> io::Result<Channel> {
        let supervisor = Supervisor::get(self.host).map_err(io::Error::other)?;
        let fds: Vec<_> = blob.iter().map(|file| file.as_fd()).collect();
        supervisor.ask(request, &fds).map_err(io::Error::other)
    }
}

impl LayerWorker for SupervisorWorker {
    fn unpack(&self, job: UnpackJob) -> Result<UnpackStats, WorkerError> {
        let unpacked = || -> io::Result<Unpacked> {
            let destination = path_of(&job.destination)?;
            let request = Request::Unpack {
                order: job.order.clone(),
                destination,
            };
            answer::<Unpacked>(&self.ask(&request, Some(&job.blob))?)
        };
        Ok(unpacked().map_err(WorkerError::Lost)??)
    }

    fn remove_tree(&self, parent: OwnedFd, name: &str) -> Result<(), WorkerError> {
        let removed = || {
            let request = Request::RemoveTree {
                parent: path_of(&parent)?,
                name: name.to_owned(),
            };
            answer::<()>(&self.ask(&request, None)?)
        };
        removed().map_err(WorkerError::Lost)
    }
}

fn answer<T: serde::de::DeserializeOwned>(channel: &Channel) -> io::Result<T> {
    match channel.recv::<Result<T, i32>>()? {
        Some((Ok(done), _)) => Ok(done),
        Some((Err(errno), _)) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("it ended without an answer")),
    }
}

/// Where the directory behind `fd` is by now.
fn path_of(fd: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
