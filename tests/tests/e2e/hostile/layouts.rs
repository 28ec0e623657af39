//! Image layouts that a case makes: busybox, and what is hostile about it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use orbit_tests::{Context, images};
use serde_json::{Value, json};

use crate::run::sha256;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A copy of the image with busybox, to be spoilt and written.
#[derive(Debug)]
pub(super) struct Layout {
    path: PathBuf,
    manifest: Value,
    /// The image's configuration, as it will be written.
    pub(super) config: Value,
}

impl Layout {
    /// Under this name in the case's directory.
    pub(super) fn of_busybox(context: &Context, name: &str) -> Result<Self> {
        let from = images::layout("busybox")?;
        let path = context.work().join(name);
        fs::create_dir_all(path.join("blobs/sha256"))?;
        fs::copy(from.join("oci-layout"), path.join("oci-layout"))?;
        let index: Value = read(&from.join("index.json"))?;
        let manifest: Value = read(&blob(&from, &index["manifests"][0]["digest"])?)?;
        let config = read(&blob(&from, &manifest["config"]["digest"])?)?;
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let digest = &layer["digest"];
            fs::copy(blob(&from, digest)?, blob(&path, digest)?)?;
        }
        Ok(Self {
            path,
            manifest,
            config,
        })
    }

    /// Adds a layer on top; `archive` is the SHA-256 of what is in `content` once it is decompressed.
    pub(super) fn add_layer(&mut self, content: &[u8], kind: &str, archive: &str) -> Result<()> {
        let kind = format!("application/vnd.oci.image.layer.v1.{kind}");
        let layer = self.keep(content, &kind)?;
        let layers = self.manifest["layers"].as_array_mut();
        layers.context("layers")?.push(layer);
        let ids = self.config["rootfs"]["diff_ids"].as_array_mut();
        ids.context("diff_ids")?
            .push(format!("sha256:{archive}").into());
        Ok(())
    }

    /// Adds one that is not compressed.
    pub(super) fn add_plain_layer(&mut self, archive: &[u8]) -> Result<()> {
        let digest = self.digest(archive)?;
        self.add_layer(archive, "tar", &digest)
    }

    /// Writes all of it, and says how it is referred to. May be done again after a change.
    pub(super) fn write(&mut self) -> Result<String> {
        self.manifest["config"] = self.keep(self.config.to_string().as_bytes(), CONFIG)?;
        let mut entry = self.keep(self.manifest.to_string().as_bytes(), MANIFEST)?;
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(self.path.join("index.json"), index.to_string())?;
        Ok(format!("oci:{}", self.path.display()))
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The SHA-256 of the manifest, in hexadecimal digits, once it is written.
    pub(super) fn manifest_digest(&self) -> Result<String> {
        self.digest(self.manifest.to_string().as_bytes())
    }

    /// The SHA-256 of `content`, in hexadecimal digits.
    pub(super) fn digest(&self, content: &[u8]) -> Result<String> {
        let file = self.path.join("content");
        fs::write(&file, content)?;
        let digest = sha256(&file)?;
        fs::remove_file(file)?;
        Ok(digest)
    }

    fn keep(&self, content: &[u8], media_type: &str) -> Result<Value> {
        let digest = self.digest(content)?;
        fs::write(self.path.join("blobs/sha256").join(&digest), content)?;
        Ok(json!({
            "mediaType": media_type,
            "digest": format!("sha256:{digest}"),
            "size": content.len(),
        }))
    }
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&text)?)
}

fn blob(layout: &Path, digest: &Value) -> Result<PathBuf> {
    let digest = digest.as_str().context("no digest")?;
    let hex = digest.strip_prefix("sha256:").context("another digest")?;
    Ok(layout.join("blobs/sha256").join(hex))
}

/// A ustar archive with one file, whose content is `content`, of mode 0644 and root's.
pub(super) fn archive_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = header(b'0', name, content.len() as u64);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

/// A ustar header. A size that octal digits cannot say is written in base 256, as GNU tar does.
pub(super) fn header(kind: u8, name: &str, size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put =
        |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(136, "07346545000");
    put(148, "        ");
    put(257, "ustar\x0000");
    if size < 1 << 33 {
        put(124, &format!("{size:011o}"));
    }
    if size >= 1 << 33 {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    block[156] = kind;
    checksum(&mut block);
    block
}

/// Makes the checksum of a header right.
pub(super) fn checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
