//! Starts of an image of sixty layers, in turns with one of two.

use std::{ffi::OsString, fmt::Write as _, fs, path::Path};

use anyhow::{Result, ensure};
use orbit::{Output, PullPolicy, Sandbox};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tar::EntryType;

use crate::{
    Stage,
    floor::{Ask, Floor},
    samples::Samples,
    start,
};

const FEW: usize = 2;
const MANY: usize = 60;
const ROUNDS: usize = 150;

pub(crate) fn all(stage: &Stage) -> Result<()> {
    let mut figures = Vec::new();
    for count in [FEW, MANY] {
        let layout = stage.0.join(format!("layers-{count}"));
        write_image(&layout, &stage.rootfs(), count)?;
        let reference = format!("oci:{}", layout.display());
        // Unpacked ahead, which is no part of a start.
        orbit::images::pull(&reference, PullPolicy::Missing)?;
        let floor = Floor::start(stage, directories(stage, count)?)?;
        let (ours, beneath) = (Samples::default(), Samples::default());
        figures.push((count, reference, floor, ours, beneath));
    }
    for _ in 0..ROUNDS {
        for (_, reference, floor, samples, beneath) in &mut figures {
            beneath.add(floor.ask(Ask::ToItsEnd)?);
            samples.time(|| {
                let sandbox = Sandbox::builder()
                    .image(reference)
                    .stdout(Output::Null)
                    .stderr(Output::Null);
                let outcome = sandbox.run()?;
                ensure!(outcome.success(), "{}", outcome.status);
                Ok(())
            })?;
            start::have_made_ahead();
        }
    }
    for (count, _, floor, samples, beneath) in figures {
        samples.tell(&format!("{count} layers"));
        beneath.tell(&format!("floor over {count} layers"));
        floor.end()?;
    }
    Ok(())
}

/// As many directories as the image has layers, as the floor wants them: the root filesystem below, and above it such
/// with a file of its own each.
fn directories(stage: &Stage, count: usize) -> Result<OsString> {
    let mut all = OsString::new();
    for number in 1..count {
        let path = stage.0.join(format!("l{count}/{number}"));
        fs::create_dir_all(path.join("layers"))?;
        fs::write(path.join(format!("layers/{number}")), "")?;
        all.push(path);
        all.push(":");
    }
    all.push(stage.rootfs());
    Ok(all)
}

/// An OCI layout whose first layer has the program and the usual directories, and each other one a file of its own.
///
/// Source: OCI image specification, "Image Layout", "Image Manifest", "Image Configuration".
fn write_image(layout: &Path, rootfs: &Path, count: usize) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for number in 0..count {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: String, kind, mode, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            tar.append_data(&mut header, path, content)
        };
        if number == 0 {
            // As those have that others are built upon.
            for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
                add(directory.to_owned(), EntryType::Directory, 0o755, b"")?;
            }
            let program = fs::read(rootfs.join("bin/true"))?;
            add("bin/true".to_owned(), EntryType::Regular, 0o755, &program)?;
        } else {
            let (path, text) = (format!("layers/{number}"), format!("of layer {number}\n"));
            add(path, EntryType::Regular, 0o644, text.as_bytes())?;
        }
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let layer = write_blob(&blobs, kind, &tar.into_inner()?)?;
        diff_ids.push(layer["digest"].clone());
        layers.push(layer);
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": ["/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let kind = "application/vnd.oci.image.config.v1+json";
    let config = write_blob(&blobs, kind, config.to_string().as_bytes())?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
    let manifest = write_blob(&blobs, kind, manifest.to_string().as_bytes())?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}

/// Writes a blob, and gives its descriptor.
fn write_blob(blobs: &Path, kind: &str, content: &[u8]) -> Result<Value> {
    let mut hex = String::new();
    for byte in digest(&SHA256, content).as_ref() {
        write!(hex, "{byte:02x}")?;
    }
    fs::write(blobs.join(&hex), content)?;
    Ok(json!({ "mediaType": kind, "digest": format!("sha256:{hex}"), "size": content.len() }))
}
