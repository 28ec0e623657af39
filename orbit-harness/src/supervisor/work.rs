//! What is done inside the user namespace but outside of any sandbox: layers are unpacked and removed, in a
//! short-lived process of its own, as their owners have their meaning there.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::home::HOST;
use crate::store::{UnpackJob, UnpackOrder, Unpacked, remove_tree};

/// Unpacks `blob` into the host's directory `destination`. The outer error is of what comes before.
pub(super) fn unpack(
    order: UnpackOrder,
    destination: &Path,
    blob: Option<OwnedFd>,
) -> Result<Unpacked, i32> {
    let blob = File::from(blob.ok_or(libc::EBADF)?);
    let destination = open_host_directory(destination).map_err(Errno::raw_os_error)?;
    Ok(UnpackJob {
        blob,
        destination,
        order,
    }
    .run())
}

/// Removes `name` in the host's directory `parent`, and all that is in it.
pub(super) fn remove(parent: &Path, name: &str) -> Result<(), i32> {
    let removed =
        open_host_directory(parent).and_then(|parent| remove_tree(parent.as_fd(), name.as_bytes()));
    removed.map_err(Errno::raw_os_error)
}

/// By its path, and not by a descriptor of the test process: as root, only what is seen through the supervisor's
/// own mounts has the container's owners.
fn open_host_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let host = rustix::fs::open(
        HOST,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let inside = path.strip_prefix("/").unwrap_or(path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(&host, inside, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}
