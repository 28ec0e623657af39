//! The registry that pull tests use: that it serves what was pushed, and counts.

use std::fs;

use anyhow::{Result, ensure};
use orbit_tests::{Case, Context, Program, Registry, images};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("registry::serves_and_counts_blobs", serves_and_counts_blobs)
            .needs(Registry::NEEDS),
        Case::new("registry::leaves_nothing", leaves_nothing).needs(Registry::NEEDS),
    ]
}

fn serves_and_counts_blobs(context: &Context) -> Result<()> {
    let registry = Registry::start()?;
    let pushed = registry.push(&images::layout("layers")?, "orbit/layers:v1")?;
    ensure!(
        registry.blob_gets() == 0,
        "pushing reads blobs:\n{}",
        registry.log()
    );

    let copy = context.work().join("copy");
    Program::new("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
        ])
        .arg("--dest-oci-accept-uncompressed-layers")
        .arg(format!("docker://{pushed}"))
        .arg(format!("oci:{}:latest", copy.display()))
        .run()?
        .success()?;
    // 15 layers and a config, each once.
    ensure!(
        registry.blob_gets() == 16,
        "{} blobs read:\n{}",
        registry.blob_gets(),
        registry.log()
    );
    let blobs = |layout: &std::path::Path| -> Result<Vec<_>> {
        let mut names = fs::read_dir(layout.join("blobs/sha256"))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    ensure!(
        blobs(&copy)? == blobs(&images::layout("layers")?)?,
        "the digests changed on the way"
    );
    Ok(())
}

fn leaves_nothing(context: &Context) -> Result<()> {
    let audit = context.audit();
    let registry = Registry::start()?;
    let port = registry.host().to_owned();
    let left = audit
        .check()
        .err()
        .map(|leaks| leaks.to_string())
        .unwrap_or_default();
    ensure!(
        left.contains(&format!("listening port tcp {port}")),
        "the audit does not see {port}: {left}"
    );
    drop(registry);
    audit.check()?;
    Ok(())
}
