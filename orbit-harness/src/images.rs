//! From what a spec says of an image to the image, in the store of this user.
//!
//! The store decides; what must happen in the containers' user namespace is done by the supervisor.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use crate::{
    error::Error,
    host::Host,
    image::Image,
    security::idmap::plan::Writer,
    spec::{ImageRef, PullPolicy},
    store::{
        IdKey, ImageLease, LayerWorker, NoProgress, OwnershipPolicy, Platform, Store, StoreError,
        UnpackJob, UnpackStats, Unpacked, WorkerError,
    },
    supervisor::{Channel, Request, Supervisor},
};

/// The image that `reference` names, with all its layers on disk, and what keeps them there.
pub(crate) fn resolve(
    reference: &ImageRef,
    policy: PullPolicy,
    host: &'static Host,
) -> Result<(Image, Option<ImageLease>), Error> {
    let store = open(host)?.with_policy(policy);
    let worker = SupervisorWorker { host };
    let (image, lease) = store.resolve(reference, &Platform::host(), &worker, &NoProgress)?;
    Ok((image, Some(lease)))
}

fn open(host: &Host) -> Result<Store, StoreError> {
    let ownership = match host.ids.writer {
        // With a single id there is but one owner a file can have.
        Writer::Caller(_) => OwnershipPolicy::Squash,
        Writer::Helpers | Writer::Privileged => OwnershipPolicy::Keep,
    };
    Store::open(
        &crate::host::cache_dir().ok_or(StoreError::NoCacheDirectory)?,
        IdKey::new(host.ids.key(), ownership)?,
    )
}

/// Has layers unpacked and removed by the supervisor.
struct SupervisorWorker {
    host: &'static Host,
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
