//! A snapshot as an image: an OCI image layout, with a layer for each in the store.
//!
//! Source: OCI Image Layout Specification; OCI Image Configuration.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    error::Error,
    image::Image,
    images::host,
    layer::Exported,
    sandbox,
    spec::{ImageRef, Spec, SpecFault},
    store::{Digest, Platform},
    supervisor::{Request, Supervisor},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Writes `image` to the directory `path`. It appears whole or not at all: it is made beside, and renamed.
pub(super) fn save(image: &Image, spec: &Spec, path: &Path) -> Result<(), Error> {
    let fault = |why: &str| {
        let given = path.display().to_string();
        Err(Error::spec(vec![SpecFault::new("save", given, why)]))
    };
    if spec.image == ImageRef::Host {
        return fault(
            "the sandbox was one over the host's files, and those are no image; start from an image",
        );
    }
    if fs::symlink_metadata(path).is_ok() {
        return fault("something is there already; choose another place, or remove it");
    }
    let Some(name) = path.file_name() else {
        return fault("it names no directory");
    };
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", sandbox::random_id()));
    let work = path.with_file_name(beside);
    let written = write_layout(image, spec, &work)
        .and_then(|()| fs::rename(&work, path).map_err(|error| cannot_write(path, error)));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&work);
    }
    written
}

fn cannot_write(path: &Path, error: io::Error) -> Error {
    Error::io(
        format!("cannot write the image to {}", path.display()),
        error,
    )
}

fn write_layout(image: &Image, spec: &Spec, work: &Path) -> Result<(), Error> {
    let blobs = work.join("blobs/sha256");
    let cannot = |error| cannot_write(work, error);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&blobs)
        .map_err(cannot)?;
    let mut directories: Vec<PathBuf> = Vec::new();
    if let ImageRef::Dir(base) = &spec.image {
        directories.push(base.clone());
    }
    directories.extend(image.layers.iter().map(|name| image.layers_dir.join(name)));
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for directory in &directories {
        let layer = export(directory, &blobs)?;
        layers.push(descriptor(LAYER, &layer.blob, layer.blob_bytes));
        diff_ids.push(layer.diff_id.to_string());
    }
    let write = |content: &Value| -> Result<(Digest, u64), Error> {
        let bytes = content.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        fs::write(blobs.join(digest.hex()), &bytes).map_err(cannot)?;
        Ok((digest, bytes.len() as u64))
    };
    let (config, config_bytes) = write(&configuration(image, &diff_ids))?;
    let (manifest, manifest_bytes) = write(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config, config_bytes),
        "layers": layers,
    }))?;
    let mut entry = descriptor(MANIFEST, &manifest, manifest_bytes);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    fs::write(work.join("index.json"), index.to_string()).map_err(cannot)?;
    let version = json!({ "imageLayoutVersion": "1.0.0" });
    fs::write(work.join("oci-layout"), version.to_string()).map_err(cannot)
}

/// Packs a layer, in a process that sees the owners of its files.
fn export(directory: &Path, blobs: &Path) -> Result<Exported, Error> {
    let temporary = blobs.join("new");
    let file = File::create(&temporary).map_err(|error| cannot_write(&temporary, error))?;
    let request = Request::Export {
        layer: directory.to_owned(),
    };
    let reply = Supervisor::get(host()?)?.ask(&request, &[file.as_fd()])?;
    let exported: Exported = sandbox::written(&reply)?;
    let place = blobs.join(exported.blob.hex());
    fs::rename(&temporary, &place).map_err(|error| cannot_write(&place, error))?;
    Ok(exported)
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// The image's own, with other layers; what a directory's would be, where it was none.
fn configuration(image: &Image, diff_ids: &[String]) -> Value {
    let known = serde_json::from_str(&image.document).ok();
    let mut config = if let Some(Value::Object(fields)) = known {
        Value::Object(fields)
    } else {
        let platform = Platform::host();
        json!({ "os": platform.os, "architecture": platform.architecture, "config": {} })
    };
    config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
    let history = diff_ids.iter().map(|_| json!({ "created_by": "orbit" }));
    config["history"] = history.collect();
    config
}
