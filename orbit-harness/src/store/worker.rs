//! Who unpacks and removes layers.
//!
//! The owners of a layer's files have their meaning in the user namespace of the containers, so both happen in a
//! process in there. The store decides what, when and under which lock; the worker gets descriptors and data.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use super::unpack::{self, UnpackError, UnpackOrder, UnpackStats};

/// A layer to unpack: the order crosses to the worker as data, the descriptors as descriptors.
#[derive(Debug)]
pub(crate) struct UnpackJob {
    /// The file that holds the blob.
    pub(crate) blob: File,
    /// An empty directory.
    pub(crate) destination: OwnedFd,
    pub(crate) order: UnpackOrder,
}

/// What comes of a job.
pub(crate) type Unpacked = Result<UnpackStats, UnpackError>;

impl UnpackJob {
    /// Does the job here and now: what a worker's process calls.
    pub(crate) fn run(self) -> Unpacked {
        let blob = BlobReader {
            file: self.blob,
            offset: self.order.blob_offset,
            left: self.order.blob_bytes,
        };
        unpack::unpack_layer(blob, &self.order, self.destination)
    }
}

/// Why a worker did not do its job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    /// Boxed: it is large, and every result of the store would be.
    #[error("{0}")]
    Unpack(Box<UnpackError>),
    /// The worker could not be started or reached, or died.
    #[error("the process that unpacks layers could not do its work: {0}")]
    Lost(#[source] io::Error),
}

impl From<UnpackError> for WorkerError {
    fn from(error: UnpackError) -> Self {
        Self::Unpack(Box::new(error))
    }
}

/// Unpacks and removes layers; called from several threads at once, where one layer is unpacked while another is.
pub(crate) trait LayerWorker: Sync {
    /// Unpacks a layer into the empty directory of the job. What is left after an error is removed by the caller.
    fn unpack(&self, job: UnpackJob) -> Result<UnpackStats, WorkerError>;

    /// Removes all that is in the directory `name` of `parent`; and `name` itself, unless the worker may not write
    /// `parent`: then the caller does.
    fn remove_tree(&self, parent: OwnedFd, name: &str) -> Result<(), WorkerError>;
}

#[cfg(test)]
/// Works in this very process: where no user namespace is between, as for a root that maps nothing, and in tests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InProcessWorker;

#[cfg(test)]
impl LayerWorker for InProcessWorker {
    fn unpack(&self, job: UnpackJob) -> Result<UnpackStats, WorkerError> {
        Ok(job.run()?)
    }

    fn remove_tree(&self, parent: OwnedFd, name: &str) -> Result<(), WorkerError> {
        unpack::remove_tree(std::os::fd::AsFd::as_fd(&parent), name.as_bytes())
            .map_err(|errno| WorkerError::Lost(errno.into()))
    }
}

/// A part of a file, read without moving the file's own position: several readers share one archive.
#[derive(Debug)]
pub(crate) struct BlobReader {
    file: File,
    offset: u64,
    left: u64,
}

impl BlobReader {
    pub(crate) fn new(file: File, offset: u64, length: u64) -> Self {
        Self {
            file,
            offset,
            left: length,
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let length = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}
