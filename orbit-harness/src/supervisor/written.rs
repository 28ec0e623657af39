//! What is done with what a sandbox wrote, in a short-lived process of its own inside the user namespace, as the
//! owners of the files have their meaning there: it is read, sealed as a layer, or written out as an archive.

#[cfg(feature = "images")]
use std::fs::File;
use std::{os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::home::HOST;
use crate::{
    changes::Changes,
    layer::{self, Below, Fault, Writable},
};

/// Which files were written to `writable`, which lies in `scratch`.
pub(super) fn changes(writable: &Writable, scratch: Option<OwnedFd>) -> Result<Changes, Fault> {
    layer::read(writable, given(scratch)?, open_below)
}

/// Copies what was written into the host's directory `destination`.
#[cfg(feature = "images")]
pub(super) fn seal(
    writable: &Writable,
    destination: &Path,
    scratch: Option<OwnedFd>,
) -> Result<layer::Sealed, Fault> {
    let destination = open_host(destination)?;
    layer::seal(writable, given(scratch)?, destination)
}

/// Writes the layer that is the host's directory `layer` to `output`.
#[cfg(feature = "images")]
pub(super) fn export(layer: &Path, output: Option<OwnedFd>) -> Result<layer::Exported, Fault> {
    let directory = open_host(layer)?;
    layer::export(directory, File::from(given(output)?))
}

fn given(descriptor: Option<OwnedFd>) -> Result<OwnedFd, Fault> {
    descriptor.ok_or_else(|| Fault::new("read the sandbox's files", "", Errno::BADF))
}

#[cfg(feature = "images")]
fn open_host(path: &Path) -> Result<OwnedFd, Fault> {
    open_below(&Below {
        root: path.to_owned(),
        inside: std::path::PathBuf::new(),
    })
    .map_err(|errno| Fault::new("open", path, errno))
}

/// By its path, as the owners of the host's files have their meaning only in the supervisor's own mounts. What lies
/// in a sealed layer is resolved within that: a link there leads nowhere else.
fn open_below(below: &Below) -> Result<OwnedFd, Errno> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |within: &OwnedFd, path: &Path, flags| {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = path.strip_prefix("/").unwrap_or(path);
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        rustix::fs::openat2(within, path, flags | directory, Mode::empty(), resolve)
    };
    let host = rustix::fs::open(HOST, OFlags::PATH | directory, Mode::empty())?;
    let root = open(&host, &below.root, OFlags::RDONLY)?;
    if below.inside.as_os_str().is_empty() {
        return Ok(root);
    }
    open(&root, &below.inside, OFlags::RDONLY)
}
