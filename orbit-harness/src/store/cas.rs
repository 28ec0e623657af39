//! The store on disk: documents by their digest, records of images by their reference.
//!
//! ```text
//! ROOT/v1/                    mode 0700
//!   blobs/HEX                 manifests and configurations, by digest
//!   images/HEX.json           which manifest a reference led to, by the digest of the reference
//!   images/HEX.lock           exclusive while somebody asks the registry: the others wait for the answer
//!   images/HEX.use            shared while the image is in use, exclusive while it is removed; nobody waits for it
//!   partial/HEX               a layer's blob on its way; exclusive while it is written or unpacked
//!   layers/KEY/…              see `layers`
//!   tmp/NAME                  documents being written; locked as long as their writer lives
//! ```
//!
//! Compressed layers are not kept once they are unpacked: they would double the disk a cache takes, and only a
//! second id map would ever need them again (then they are downloaded again). Everything here is made durable
//! before its name appears, so that what a name leads to is whole, also after a power cut; documents are verified
//! at each reading all the same, since it costs microseconds.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};

use super::{
    digest::Digest,
    error::StoreError,
    lock::{FileLock, Mode},
    manifest::{Descriptor, MAX_DOCUMENT_BYTES},
    platform::Platform,
};

/// A store of another layout gets another directory.
const VERSION: &str = "v1";

#[derive(Clone, Debug)]
pub(super) struct Cas {
    root: PathBuf,
}

/// Which manifest a reference led to when it was last asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) reference: String,
    pub(super) platform: Platform,
    /// The manifest of the platform, not an index.
    pub(super) manifest: Descriptor,
}

/// A record in use.
#[derive(Debug)]
pub(super) struct LeasedRecord {
    pub(super) record: ImageRecord,
    pub(super) lock: FileLock,
}

impl Cas {
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let root = root.join(VERSION);
        // The common case makes nothing: one look instead of five.
        if !root.join("tmp").is_dir() {
            make_directory(&root)?;
            for name in ["blobs", "images", "partial", "layers", "tmp"] {
                make_directory(&root.join(name))?;
            }
        }
        Ok(Self { root })
    }

    pub(super) fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A document, if it is there and is what its name says.
    pub(super) fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.blob_path(digest);
        Ok(read_bounded(&path, MAX_DOCUMENT_BYTES)?
            .filter(|content| Digest::of(content) == *digest))
    }

    pub(super) fn write_blob(&self, digest: &Digest, content: &[u8]) -> Result<(), StoreError> {
        self.write(&self.blob_path(digest), content)
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    pub(super) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(digest.hex())
    }

    /// The name under which a reference for a platform is recorded.
    pub(super) fn record_name(reference: &str, platform: &Platform) -> String {
        Digest::of(format!("{reference} {platform}").as_bytes()).hex()
    }

    /// The right to ask the registry where a reference leads; waits for whoever asks already.
    pub(super) fn lock_record(&self, name: &str) -> Result<FileLock, StoreError> {
        let path = self.record_file(name, "lock");
        FileLock::take(&path, Mode::Exclusive, || ()).map_err(StoreError::io("lock", path))
    }

    /// Keeps a record from being removed. Not the lock above: who uses an image must not keep others from asking
    /// what its tag leads to by now.
    pub(super) fn use_record(&self, name: &str) -> Result<FileLock, StoreError> {
        let path = self.record_file(name, "use");
        let mut lock =
            FileLock::take(&path, Mode::Shared, || ()).map_err(StoreError::io("lock", path))?;
        lock.touch();
        Ok(lock)
    }

    /// The record, where there is one and nobody is about to change it, kept from being removed.
    pub(super) fn lease_record(&self, name: &str) -> Result<Option<LeasedRecord>, StoreError> {
        let path = self.record_file(name, "use");
        if !path.exists() {
            return Ok(None);
        }
        let lock =
            FileLock::try_take(&path, Mode::Shared).map_err(StoreError::io("lock", &path))?;
        let Some(mut lock) = lock else {
            return Ok(None);
        };
        lock.touch();
        let record = self.read_record(name)?;
        Ok(record.map(|record| LeasedRecord { record, lock }))
    }

    /// `json`, `lock` or `use`: see above.
    pub(super) fn record_file(&self, name: &str, suffix: &str) -> PathBuf {
        self.root.join("images").join(format!("{name}.{suffix}"))
    }

    /// What is recorded, if it can be read: a damaged record is as good as none, the registry knows better.
    pub(super) fn read_record(&self, name: &str) -> Result<Option<ImageRecord>, StoreError> {
        let content = read_bounded(&self.record_file(name, "json"), MAX_DOCUMENT_BYTES)?;
        Ok(content.and_then(|content| serde_json::from_slice(&content).ok()))
    }

    pub(super) fn write_record(&self, name: &str, record: &ImageRecord) -> Result<(), StoreError> {
        let path = self.record_file(name, "json");
        let content = serde_json::to_vec(record)
            .map_err(|error| StoreError::io("write", &path)(io::Error::other(error)))?;
        self.write(&path, &content)
    }

    /// Writes a file whole or not at all, durably.
    pub(super) fn write(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = self
            .root
            .join("tmp")
            .join(format!("{}-{number}", std::process::id()));
        let written = (|| {
            // Held until the file has its name: what lies here unlocked has no writer any more.
            let lock = FileLock::take(&temporary, Mode::Exclusive, || ())?;
            let mut file = lock.file();
            file.set_len(0)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        })();
        if written.is_err() {
            // What is reported is the first error; a file that stays is reaped later.
            let _ = fs::remove_file(&temporary);
        }
        written.map_err(StoreError::io("write", path))?;
        sync_parent(path).map_err(StoreError::io("write", path))
    }

    /// Opens the file a layer's blob is downloaded to, alone: whoever comes second finds it done, or goes on.
    pub(super) fn open_partial(
        &self,
        digest: &Digest,
        on_wait: impl FnOnce(),
    ) -> Result<FileLock, StoreError> {
        let path = self.partial_path(digest);
        FileLock::take(&path, Mode::Exclusive, on_wait).map_err(StoreError::io("open", path))
    }
}

/// Makes `path` durable where it is: its directory's entry, that is.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Nobody else looks into the store: layers hold setuid files, which must not be reachable on the host.
pub(super) fn make_directory(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StoreError::io("create the directory", path))
}

/// Reads a file that may not be there and must not be larger than `limit`.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let fault = |error| StoreError::io("read", path)(error);
    // A layout may come from anywhere: a fifo in it must not be waited on.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(fault)?,
    };
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(fault)?;
    if content.len() as u64 > limit {
        return Err(fault(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {limit} bytes"),
        )));
    }
    Ok(Some(content))
}
