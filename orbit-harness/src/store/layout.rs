//! OCI image layouts: directories, and tar files of them.
//!
//! A layout is asked each time, by digest, so that one that was built again is picked up. Its layers are unpacked
//! straight from where they lie: nothing is copied. An archive is read in place, too: its blobs are found once by
//! their headers and then read at their offsets.
//!
//! Source: OCI Image Layout Specification.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    cas::read_bounded,
    digest::Digest,
    error::StoreError,
    manifest::{self, Descriptor, MAX_DOCUMENT_BYTES},
    platform::Platform,
    progress::Progress,
    source::{DocumentKind, LayerBlob, Source},
    unpack::Compression,
    worker::BlobReader,
};

/// The members of an archive that are looked at: more blobs than any layout has.
const MAX_MEMBERS: usize = 100_000;

/// An opened layout.
#[derive(Debug)]
pub(super) struct Layout {
    path: PathBuf,
    /// As people wrote it.
    name: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Directory,
    Archive {
        file: File,
        /// Offset and length of each regular file, by its name.
        members: HashMap<String, (u64, u64)>,
    },
}

#[derive(Deserialize)]
struct LayoutFile {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

impl Layout {
    pub(super) fn open_directory(path: &Path, name: String) -> Result<Self, StoreError> {
        let layout = Self {
            path: path.to_owned(),
            name,
            kind: Kind::Directory,
        };
        if !path.is_dir() {
            let why = if path.exists() {
                "it is not a directory; a tar file of a layout is `oci-archive:PATH`"
            } else {
                "there is nothing at this path"
            };
            return Err(layout.fault(why));
        }
        layout.check_version()?;
        Ok(layout)
    }

    pub(super) fn open_archive(path: &Path, name: String) -> Result<Self, StoreError> {
        let file = open_regular(path).map_err(StoreError::io("open", path))?;
        let mut layout = Self {
            path: path.to_owned(),
            name,
            kind: Kind::Directory,
        };
        let members = scan(&file).map_err(|why| layout.fault(&why))?;
        layout.kind = Kind::Archive { file, members };
        layout.check_version()?;
        Ok(layout)
    }

    fn fault(&self, why: &str) -> StoreError {
        StoreError::Layout {
            path: self.path.clone(),
            why: why.to_owned(),
        }
    }

    fn check_version(&self) -> Result<(), StoreError> {
        let content = self
            .read("oci-layout")?
            .ok_or_else(|| self.fault("it has no file `oci-layout`; `docker save` archives are not layouts, convert them with skopeo"))?;
        let file: LayoutFile = serde_json::from_slice(&content)
            .map_err(|e| self.fault(&format!("its file `oci-layout` cannot be read: {e}")))?;
        if file.version.starts_with("1.") {
            Ok(())
        } else {
            Err(self.fault(&format!(
                "its version is {}, and Orbit reads 1.x",
                file.version
            )))
        }
    }

    /// The image with this tag, or the only one there is.
    pub(super) fn choose(
        &self,
        tag: Option<&str>,
        platform: &Platform,
    ) -> Result<Descriptor, StoreError> {
        let content = self
            .read("index.json")?
            .ok_or_else(|| self.fault("it has no file `index.json`"))?;
        let index: Index = serde_json::from_slice(&content)
            .map_err(|e| self.fault(&format!("its file `index.json` cannot be read: {e}")))?;
        let entries: Vec<Descriptor> = match tag {
            Some(tag) => index
                .manifests
                .iter()
                .filter(|entry| has_tag(entry, tag))
                .cloned()
                .collect(),
            None => index.manifests.clone(),
        };
        match &entries[..] {
            [only] => return Ok(only.clone()),
            [] if index.manifests.is_empty() => return Err(self.fault("it holds no image")),
            [] => {}
            // One image for several platforms, without an index of its own.
            several => {
                let names_one = several.iter().all(|entry| entry.tag() == several[0].tag());
                if names_one && several.iter().all(|entry| entry.platform.is_some()) {
                    return manifest::choose(several, platform, &self.name).cloned();
                }
            }
        }
        let mut tags: Vec<&str> = index.manifests.iter().filter_map(Descriptor::tag).collect();
        tags.sort_unstable();
        tags.dedup();
        Err(StoreError::ChooseTag {
            path: self.path.clone(),
            count: index.manifests.len(),
            asked: match tag {
                Some(tag) if entries.is_empty() => format!("none has the tag `{tag}`"),
                Some(tag) => format!("several have the tag `{tag}`"),
                None => "no tag was asked for".to_owned(),
            },
            tags: if tags.is_empty() {
                "there are none".to_owned()
            } else {
                tags.join(", ")
            },
        })
    }

    /// A small file of the layout.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.kind {
            Kind::Directory => read_bounded(&self.path.join(name), MAX_DOCUMENT_BYTES),
            Kind::Archive { file, members } => {
                let Some((offset, length)) = members.get(name) else {
                    return Ok(None);
                };
                if *length > MAX_DOCUMENT_BYTES {
                    return Err(self.fault(&format!("its file `{name}` has {length} bytes")));
                }
                let mut content = Vec::new();
                file.try_clone()
                    .and_then(|file| {
                        BlobReader::new(file, *offset, *length).read_to_end(&mut content)
                    })
                    .map_err(StoreError::io("read", &self.path))?;
                Ok(Some(content))
            }
        }
    }

    fn missing(&self, digest: &Digest) -> StoreError {
        StoreError::MissingBlob {
            image: self.name.clone(),
            digest: *digest,
        }
    }
}

fn has_tag(entry: &Descriptor, tag: &str) -> bool {
    entry.tag().is_some_and(|known| {
        // Some tools write the whole reference where others write its tag.
        known == tag
            || known
                .rsplit_once(':')
                .is_some_and(|(_, last)| last == tag && !last.contains('/'))
    })
}

impl Source for Layout {
    fn image(&self) -> &str {
        &self.name
    }

    fn document(
        &self,
        descriptor: &Descriptor,
        _: DocumentKind,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(&format!("blobs/sha256/{}", descriptor.digest.hex()))
    }

    fn layer(&self, descriptor: &Descriptor, _: &dyn Progress) -> Result<LayerBlob, StoreError> {
        let name = format!("blobs/sha256/{}", descriptor.digest.hex());
        let (file, offset, length) = match &self.kind {
            Kind::Directory => {
                let path = self.path.join(name);
                let file = match open_regular(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Err(self.missing(&descriptor.digest));
                    }
                    other => other.map_err(StoreError::io("open", &path))?,
                };
                let length = file
                    .metadata()
                    .map_err(StoreError::io("read", &path))?
                    .len();
                (file, 0, length)
            }
            Kind::Archive { file, members } => {
                let (offset, length) = *members
                    .get(&name)
                    .ok_or_else(|| self.missing(&descriptor.digest))?;
                let file = file
                    .try_clone()
                    .map_err(StoreError::io("open", &self.path))?;
                (file, offset, length)
            }
        };
        if length != descriptor.size {
            return Err(StoreError::Mismatch {
                what: "layer",
                image: self.name.clone(),
                expected: format!("{} bytes", descriptor.size),
                found: format!("{length} bytes"),
                hint: "the layout is damaged; copy the image again",
            });
        }
        Ok(LayerBlob {
            file,
            offset,
            is_verified: false,
            lock: None,
        })
    }
}

/// Opens a file that is no fifo to wait on and no device to be harmed by reading.
fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

/// Finds the files of an archive. Nothing is written, so a name can do no harm; one that could in other readers
/// is refused all the same: nobody packs a layout like that in good faith.
fn scan(file: &File) -> Result<HashMap<String, (u64, u64)>, String> {
    let mut start = [0; Compression::MAGIC_BYTES];
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let _ =
        BlobReader::new(file.try_clone().map_err(|e| e.to_string())?, 0, length).read(&mut start);
    if Compression::sniff(&start) != Compression::None {
        return Err("it is compressed as a whole; decompress it first".to_owned());
    }
    let unreadable = |error: io::Error| format!("it is not a tar file, or is damaged: {error}");
    let mut archive = tar::Archive::new(file.try_clone().map_err(|e| e.to_string())?);
    let mut members = HashMap::new();
    let mut count = 0;
    for entry in archive.entries_with_seek().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        count += 1;
        if count > MAX_MEMBERS {
            return Err(format!("it holds more than {MAX_MEMBERS} files"));
        }
        let path = entry.path_bytes();
        let name = String::from_utf8_lossy(&path);
        let name = name.trim_start_matches("./").trim_end_matches('/');
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            return Err(format!("it holds the name `{}`", name.escape_debug()));
        }
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let (offset, size) = (entry.raw_file_position(), entry.size());
                if offset.checked_add(size).is_none_or(|end| end > length) {
                    return Err(format!(
                        "it ends in the middle of `{}`",
                        name.escape_debug()
                    ));
                }
                members.insert(name.to_owned(), (offset, size));
            }
            tar::EntryType::Directory | tar::EntryType::XGlobalHeader => {}
            _ => {
                return Err(format!(
                    "`{}` in it is neither a file nor a directory",
                    name.escape_debug()
                ));
            }
        }
    }
    Ok(members)
}
