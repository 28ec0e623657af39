//! A snapshot as an image: an OCI image layout, with a layer for each in the store.
//!
//! Source: OCI Image Layout Specification; OCI Image Configuration.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    error::Error,
    image::{HealthCheck, Image},
    images::host,
    layer::Exported,
    sandbox,
    spec::{ImageRef, Spec, SpecFault},
    store::{Digest, Platform},
    supervisor::{Request, Supervisor},
    wait::Readying,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Writes `image` to the directory `path`. It appears whole or not at all: it is made beside, and renamed.
pub(super) fn save(image: &Image, spec: &Spec, ready: &Readying, path: &Path) -> Result<(), Error> {
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
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", sandbox::random_id()));
    let work = path.with_file_name(beside);
    let written = write_layout(image, spec, ready, &work)
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

fn write_layout(image: &Image, spec: &Spec, ready: &Readying, work: &Path) -> Result<(), Error> {
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
    let (config, config_bytes) = write(&configuration(image, spec, ready, &diff_ids))?;
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

/// The image's own, with other layers, and with what the sandbox was told in place of that; what a directory's would be,
/// where it was none.
fn configuration(image: &Image, spec: &Spec, ready: &Readying, diff_ids: &[String]) -> Value {
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
    if !config["config"].is_object() {
        config["config"] = json!({});
    }
    // What the image itself said is there as it was written.
    let own = image.config.healthcheck.as_ref();
    let check = ready.healthcheck.as_ref().filter(|it| Some(*it) != own);
    committed(&mut config["config"], spec, check);
    config
}

/// Lays what was asked of a sandbox over the configuration that it came with.
///
/// Source: OCI Image Configuration, "config"; Docker Image Specification v1.2, `Healthcheck`; `docker commit`, which writes
/// what the container was started with.
fn committed(config: &mut Value, spec: &Spec, check: Option<&HealthCheck>) {
    let words = |words: &[OsString]| -> Value {
        let texts = words.iter().map(|word| word.to_string_lossy().into());
        Value::Array(texts.collect())
    };
    // Docker's rule: who gives another entrypoint does without the image's command.
    if let Some(entrypoint) = &spec.entrypoint {
        config["Entrypoint"] = words(entrypoint);
        config["Cmd"] = Value::Null;
    }
    if let Some(cmd) = &spec.cmd {
        config["Cmd"] = words(cmd);
    }
    if !spec.args.is_empty() {
        let mut all = config["Cmd"].as_array().cloned().unwrap_or_default();
        all.extend(words(&spec.args).as_array().into_iter().flatten().cloned());
        config["Cmd"] = all.into();
    }
    let mut env: Vec<String> = Vec::new();
    if !spec.env_clear {
        let texts = config["Env"].as_array().into_iter().flatten();
        env.extend(texts.filter_map(|pair| pair.as_str().map(str::to_owned)));
    }
    for (name, value) in &spec.env {
        let name = name.to_string_lossy();
        let pair = format!("{name}={}", value.to_string_lossy());
        let is_it = |known: &&mut String| known.split('=').next() == Some(&*name);
        match env.iter_mut().find(is_it) {
            Some(known) => *known = pair,
            None => env.push(pair),
        }
    }
    config["Env"] = env.into();
    if let Some(path) = &spec.working_dir {
        config["WorkingDir"] = path.to_string_lossy().into();
    }
    if let Some(user) = &spec.user {
        config["User"] = user.as_str().into();
    }
    if let Some(signal) = spec.stop_signal {
        config["StopSignal"] = signal.to_string().into();
    }
    let mut set = |field: &str, name: &str, value: Value| {
        if !config[field].is_object() {
            config[field] = json!({});
        }
        config[field][name] = value;
    };
    for (name, value) in &spec.labels {
        set("Labels", name, value.as_str().into());
    }
    for port in &spec.expose {
        set("ExposedPorts", &format!("{port}/tcp"), json!({}));
    }
    for published in spec.publish.iter().flat_map(|map| map.each()) {
        let port = format!("{}/{}", published.port, published.protocol);
        set("ExposedPorts", &port, json!({}));
    }
    if let Some(check) = check {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let test: Vec<&str> = ["CMD"]
            .into_iter()
            .chain(check.words.iter().map(String::as_str))
            .collect();
        config["Healthcheck"] = json!({
            "Test": test,
            "Interval": ns(check.interval),
            "Timeout": ns(check.timeout),
            "StartPeriod": ns(check.start_period),
            "Retries": check.retries,
        });
    }
    if let Value::Object(fields) = config {
        fields.retain(|_, value| !value.is_null());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Sandbox;

    #[test]
    fn what_the_sandbox_was_told_is_what_its_image_does() {
        let image = Image {
            document: json!({
                "os": "linux",
                "config": {
                    "Entrypoint": ["serve"], "Cmd": ["--quick"], "Env": ["PATH=/bin", "MODE=a"],
                    "Labels": { "from": "base" }, "WorkingDir": "/srv", "Volumes": { "/data": {} },
                },
            })
            .to_string(),
            ..Image::default()
        };
        let of = |builder: crate::SandboxBuilder| {
            let ready = Readying {
                healthcheck: builder.healthcheck.clone(),
                ..Readying::default()
            };
            assert!(builder.faults.is_empty(), "{:?}", builder.faults);
            configuration(&image, &builder.spec, &ready, &["sha256:0".to_owned()])["config"].clone()
        };
        let config = of(Sandbox::builder());
        assert_eq!(config["Entrypoint"], json!(["serve"]));
        assert_eq!(config["Cmd"], json!(["--quick"]));
        assert_eq!(config["Env"], json!(["PATH=/bin", "MODE=a"]));
        let check = HealthCheck::new(["ok"]).interval(Duration::from_secs(1));
        let config = of(Sandbox::builder()
            .cmd(["--slow"])
            .env("MODE", "b")
            .env("NEW", "x=y")
            .label("team", "storage")
            .user("app")
            .working_dir("/data")
            .stop_signal(3)
            .expose(5432)
            .healthcheck(check));
        assert_eq!(
            config,
            json!({
                "Entrypoint": ["serve"], "Cmd": ["--slow"], "Env": ["PATH=/bin", "MODE=b", "NEW=x=y"],
                "Labels": { "from": "base", "team": "storage" }, "WorkingDir": "/data", "User": "app",
                "Volumes": { "/data": {} }, "StopSignal": "3", "ExposedPorts": { "5432/tcp": {} },
                "Healthcheck": {
                    "Test": ["CMD", "ok"], "Interval": 1_000_000_000, "Timeout": 30_000_000_000_u64,
                    "StartPeriod": 0, "Retries": 3,
                },
            })
        );
        let config = of(Sandbox::builder().entrypoint(["other"]));
        assert_eq!(
            (&config["Entrypoint"], &config["Cmd"]),
            (&json!(["other"]), &Value::Null)
        );
    }
}
