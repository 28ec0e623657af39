//! The images that `images/build.sh` (or `cargo xtask images`) builds.

use std::{env, path::PathBuf};

use anyhow::{Result, ensure};

use crate::workspace;

/// The OCI layout of the image `name`, as a path.
///
/// # Errors
/// Where it is not built.
pub fn layout(name: &str) -> Result<PathBuf> {
    let directory = env::var_os("ORBIT_IMAGES_DIR")
        .map_or_else(|| workspace().join("target/images"), PathBuf::from);
    let layout = directory.join(name);
    ensure!(
        layout.join("index.json").exists(),
        "no image {}: run images/build.sh {name}",
        layout.display()
    );
    Ok(layout)
}

/// The same as a reference that Orbit and skopeo read: `oci:PATH`.
///
/// # Errors
/// As [`layout`].
pub fn reference(name: &str) -> Result<String> {
    Ok(format!("oci:{}", layout(name)?.display()))
}
