//! What the tests of this module build images from. Not compiled otherwise.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::*;

/// A tar archive, member by member.
pub(super) struct TarBuilder(Vec<u8>);

impl TarBuilder {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// One header as it stands, with its checksum made right, and the content padded.
    pub(super) fn raw(mut self, mut header: tar::Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A member of any kind, with any name: what `tar::Builder` would refuse too.
    pub(super) fn member(
        self,
        kind: u8,
        name: &str,
        link: &str,
        mode: u32,
        content: &[u8],
    ) -> Self {
        let mut header = header(kind, name, content.len() as u64);
        header.set_mode(mode);
        let field = &mut header.as_old_mut().linkname;
        field[..link.len()].copy_from_slice(link.as_bytes());
        self.raw(header, content)
    }

    pub(super) fn file(self, name: &str, content: &[u8]) -> Self {
        self.member(b'0', name, "", 0o644, content)
    }

    pub(super) fn directory(self, name: &str) -> Self {
        self.member(b'5', name, "", 0o755, b"")
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.member(b'2', name, target, 0o777, b"")
    }

    pub(super) fn hardlink(self, name: &str, target: &str) -> Self {
        self.member(b'1', name, target, 0o644, b"")
    }

    /// PAX records for the member that follows.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.member(b'x', "PaxHeaders/x", "", 0o644, &content)
    }

    /// Without the end: for archives that are cut.
    pub(super) fn cut(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn build(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(super) fn header(kind: u8, name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header
}

pub(super) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// An image in memory: blobs by digest, and the descriptor of the manifest.
#[derive(Clone, Debug, Default)]
pub(super) struct TestImage {
    pub(super) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(super) manifest: Vec<u8>,
    pub(super) layers: Vec<Digest>,
}

impl TestImage {
    /// An image of these tar archives, each compressed with gzip.
    pub(super) fn of(archives: &[Vec<u8>]) -> Self {
        let mut image = Self::default();
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for archive in archives {
            let blob = gzip(archive);
            let digest = Digest::of(&blob);
            diff_ids.push(format!("\"{}\"", Digest::of(archive)));
            descriptors.push(descriptor(
                "application/vnd.oci.image.layer.v1.tar+gzip",
                &blob,
            ));
            image.layers.push(digest);
            image.blobs.insert(digest, blob);
        }
        let platform = Platform::host();
        let config = format!(
            r#"{{"os":"linux","architecture":"{}","config":{{"Env":["A=b"],"Cmd":["/bin/sh"],"ExposedPorts":{{"80/tcp":{{}}}},"Entrypoint":null}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            platform.architecture,
            diff_ids.join(",")
        )
        .into_bytes();
        image.manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
            descriptor("application/vnd.oci.image.config.v1+json", &config),
            descriptors.join(",")
        )
        .into_bytes();
        image.blobs.insert(Digest::of(&config), config);
        image
            .blobs
            .insert(Digest::of(&image.manifest), image.manifest.clone());
        image
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Writes an OCI layout that holds this image, under a tag.
    pub(super) fn write_layout(&self, path: &Path, tag: &str) {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        for (digest, blob) in &self.blobs {
            fs::write(path.join("blobs/sha256").join(digest.hex()), blob).unwrap();
        }
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}}}]}}"#,
            self.digest(),
            self.manifest.len()
        );
        fs::write(path.join("index.json"), index).unwrap();
    }
}

pub(super) fn descriptor(media_type: &str, content: &[u8]) -> String {
    format!(
        r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#,
        Digest::of(content),
        content.len()
    )
}

/// A store in a directory of its own, with a worker in this process.
pub(super) struct TestStore {
    pub(super) directory: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) worker: CountingWorker,
}

impl TestStore {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store"), test_ids()).unwrap();
        Self {
            directory,
            store,
            worker: CountingWorker::default(),
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn resolve(
        &self,
        reference: &str,
    ) -> Result<(crate::image::Image, ImageLease), StoreError> {
        self.store.resolve(
            &reference.parse().unwrap(),
            &Platform::host(),
            &self.worker,
            &NoProgress,
        )
    }

    /// Whether something half made or half removed lies about.
    pub(super) fn has_leftovers(&self) -> bool {
        self.layer_files()
            .iter()
            .any(|name| matches!(name.split_once('.'), Some((_, "new" | "old"))))
    }

    /// Everything in the layers' directory, sorted.
    pub(super) fn layer_files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.store.layers_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

pub(super) fn test_ids() -> IdKey {
    IdKey::new("test", ownership()).unwrap()
}

/// Counts what it unpacks, and fails or dies on request.
#[derive(Default)]
pub(super) struct CountingWorker {
    pub(super) unpacked: AtomicUsize,
    /// Called before each job.
    pub(super) before: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl LayerWorker for CountingWorker {
    fn unpack(&self, job: UnpackJob) -> Result<UnpackStats, WorkerError> {
        if let Some(before) = &*self.before.lock().unwrap() {
            before();
        }
        self.unpacked.fetch_add(1, Ordering::Relaxed);
        InProcessWorker.unpack(job)
    }

    fn remove_tree(&self, parent: std::os::fd::OwnedFd, name: &str) -> Result<(), WorkerError> {
        InProcessWorker.remove_tree(parent, name)
    }
}

/// Only root can give files away; for everybody else there is no user namespace here to do it in.
pub(super) fn ownership() -> OwnershipPolicy {
    if nix::unistd::geteuid().is_root() {
        OwnershipPolicy::Keep
    } else {
        OwnershipPolicy::Squash
    }
}
