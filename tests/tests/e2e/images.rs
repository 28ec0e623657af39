//! The test images themselves, read by programs that are not ours.

use std::time::Duration;

use anyhow::{Result, ensure};
use orbit_tests::{Case, Context, Program, Who, images};
use serde_json::Value;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("images::skopeo_reads_them", skopeo_reads_them).needs(&["skopeo"]),
        Case::new(
            "images::umoci_unpacks_layers_as_the_manifest_says",
            umoci_unpacks_layers_as_the_manifest_says,
        )
        .who(&[Who::Root])
        .needs(&["umoci", "jq", "zstd", "python3"])
        .deadline(Duration::from_secs(60)),
    ]
}

fn skopeo_reads_them(_: &Context) -> Result<()> {
    for (image, layers) in [
        ("busybox", 1),
        ("layers", 15),
        ("redis", 1),
        ("postgres", 1),
    ] {
        let inspected = Program::new("skopeo")
            .args(["--insecure-policy", "inspect"])
            .arg(images::reference(image)?)
            .run()?
            .success()?;
        let found: Value = serde_json::from_str(&inspected.stdout)?;
        ensure!(
            found["Layers"].as_array().map_or(0, Vec::len) == layers,
            "{image}: {found}"
        );
    }
    Ok(())
}

fn umoci_unpacks_layers_as_the_manifest_says(context: &Context) -> Result<()> {
    let bundle = context.work().join("bundle");
    Program::new(context.in_workspace("images/reference.sh"))
        .arg(images::layout("layers")?)
        .arg(&bundle)
        .run()?
        .success()?;
    let verified = Program::new("python3")
        .arg("-B")
        .arg(context.in_workspace("images/layers/layers.py"))
        .arg("verify")
        .arg(bundle.join("rootfs"))
        .run()?
        .success()?;
    ensure!(verified.stdout.contains(" 0 differences"), "{verified}");
    // The script in the image says the same, read by busybox from inside.
    let inside = Program::new("chroot")
        .arg(bundle.join("rootfs"))
        .args(["/bin/sh", "/verify.sh"])
        .run()?
        .success()?;
    ensure!(inside.stdout.contains(" 0 differ,"), "{inside}");
    Ok(())
}
