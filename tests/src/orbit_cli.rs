//! `cargo orbit`, as a user calls it.

use std::{env, path::PathBuf, process::Command, sync::OnceLock};

use anyhow::{Context as _, Result};

use crate::{Program, target_dir, workspace};

/// Where main puts the path of the binary, for the processes it starts; a caller may set it too.
pub const VARIABLE: &str = "ORBIT_TESTS_CARGO_ORBIT";

/// Cargo, as if it were called from a shell. A test that cargo runs has variables about its package, and a build
/// script that asks for one of them, as ring's does, would run again with everything that needs it.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// The `cargo-orbit` binary: the one named by [`VARIABLE`], else the one beside the running test, built
/// first so that it is never an old one.
///
/// # Errors
/// Where it does not build.
pub fn binary() -> Result<PathBuf> {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = env::var_os(VARIABLE) {
        return Ok(path.into());
    }
    if let Some(path) = BINARY.get() {
        return Ok(path.clone());
    }
    Program::from_command(cargo())
        // It is built for this test, with the features that all of the workspace has together: else every dependency would
        // be built once more.
        .args(["test", "--workspace", "--no-run", "--quiet"])
        .args(["--test", "like_cargo_test", "--target-dir"])
        .arg(target_dir())
        .current_dir(workspace())
        .deadline(std::time::Duration::from_secs(1200))
        .run()?
        .success()
        .context("build cargo-orbit")?;
    Ok(BINARY
        .get_or_init(|| target_dir().join("debug/cargo-orbit"))
        .clone())
}

/// `cargo-orbit orbit VERB`, as cargo would call it.
///
/// # Errors
/// As [`binary`].
pub fn orbit(verb: &str) -> Result<Program> {
    Ok(Program::new(binary()?).args(["orbit", verb]))
}
