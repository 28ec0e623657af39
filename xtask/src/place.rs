//! Where the tests run: a place that ordinary users can enter and that sandboxes do not hide.
//!
//! The tests run as several users, and over the host view, in which homes and `/tmp` are empty. A checkout in
//! such a place, or in a directory that only its owner can enter, is run where it is bound to instead, in a
//! mount namespace of its own.

use std::{
    env, fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result};

/// Set for the run that has been moved.
const MOVED: &str = "ORBIT_XTASK_MOVED";

/// Places that a sandbox over the host's files has of its own.
const HIDDEN: [&str; 5] = ["/tmp", "/var/tmp", "/home", "/root", "/run"];

/// Runs `cargo xtask VERB` on this checkout from another place, where this one does not do. `None`: it does.
pub(crate) fn elsewhere(verb: &str) -> Result<Option<ExitStatus>> {
    let workspace = crate::workspace();
    if !crate::is_root() || env::var_os(MOVED).is_some() || does(&workspace) {
        return Ok(None);
    }
    let place = PathBuf::from(format!("/srv/orbit-workspace-{}", std::process::id()));
    println!(
        "{} is not for everyone: running in {}",
        workspace.display(),
        place.display()
    );
    fs::DirBuilder::new()
        .mode(0o755)
        .recursive(true)
        .create(&place)
        .with_context(|| format!("make {}", place.display()))?;
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount --bind \"$1\" \"$2\" && cd \"$2\" && exec cargo xtask \"$3\"")
        .arg("sh")
        .args([&workspace, &place])
        .arg(verb)
        .env(MOVED, "1")
        .status();
    // The mount is gone with its namespace.
    fs::remove_dir(&place).with_context(|| format!("remove {}", place.display()))?;
    Ok(Some(status.context("start unshare")?))
}

/// Whether everyone can enter `path`, and a sandbox shows it.
fn does(path: &Path) -> bool {
    let is_hidden = HIDDEN.iter().any(|hidden| path.starts_with(hidden));
    let enters = |directory: &Path| {
        fs::metadata(directory).is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
    };
    !is_hidden && path.ancestors().all(enters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_and_temporary_places_do_not_do() {
        assert!(does(Path::new("/usr")));
        assert!(!does(Path::new("/tmp")));
        assert!(!does(Path::new("/home/somebody/orbit")));
        assert!(!does(Path::new("/no/such/place")));
    }
}
