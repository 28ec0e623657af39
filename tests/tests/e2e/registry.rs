//! The registry that pull tests use: that it serves what was pushed, and counts.

use std::fs;

use anyhow::{Result, ensure};
use orbit_tests::{Case, Context, Program, Registry, images};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("registry::serves_and_counts_blobs", serves_and_counts_blobs)
            .needs(Registry::NEEDS),
        Case::new("registry::leaves_nothing", leaves_nothing).needs(Registry::NEEDS),
        Case::new(
            "registry::runs_what_another_client_pushed",
            runs_what_another_client_pushed,
        )
        .needs(Registry::NEEDS),
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

/// An image that oci-client, a client that shares no code with ours, pulled and pushed under another name.
fn runs_what_another_client_pushed(context: &Context) -> Result<()> {
    use oci_client::{
        Client, Reference,
        client::{ClientConfig, ClientProtocol, Config, ImageLayer},
        manifest::{IMAGE_CONFIG_MEDIA_TYPE, IMAGE_LAYER_GZIP_MEDIA_TYPE},
        secrets::RegistryAuth,
    };

    // oci-client makes a TLS client even where it speaks HTTP. An error: there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = Registry::start()?;
    let pushed: Reference = registry
        .push(&images::layout("busybox")?, "orbit/busybox:v1")?
        .parse()?;
    let copied: Reference = format!("{}/orbit/copied:v1", registry.host()).parse()?;
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    });
    let copy = async {
        let kinds = vec![IMAGE_LAYER_GZIP_MEDIA_TYPE];
        let image = client
            .pull(&pushed, &RegistryAuth::Anonymous, kinds)
            .await?;
        let layers: Vec<ImageLayer> = image
            .layers
            .into_iter()
            .map(|layer| ImageLayer::oci_v1_gzip(layer.data, None))
            .collect();
        let config = Config::new(image.config.data, IMAGE_CONFIG_MEDIA_TYPE.to_owned(), None);
        client
            .push(&copied, &layers, config, &RegistryAuth::Anonymous, None)
            .await?;
        client
            .fetch_manifest_digest(&copied, &RegistryAuth::Anonymous)
            .await
    };
    let digest = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(copy)?;
    for reference in [
        copied.to_string(),
        format!(
            "{}@{digest}",
            copied.resolve_registry().to_owned() + "/orbit/copied"
        ),
    ] {
        let ran = context
            .orbit("run")?
            .args(["--image", &reference, "--", "echo", "hi"])
            .run()?
            .success()?;
        ensure!(ran.stdout == "hi\n", "{reference}: {ran}");
    }
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
