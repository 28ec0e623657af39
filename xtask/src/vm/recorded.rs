//! What cargo says of the fixture whose test is killed for want of memory, taken down where there is a compiler.
//!
//! `cargo orbit test` asks cargo what there is and has it build. A compiler is too much for an emulated processor, so the
//! fixture is built here, by the real one, and in the machine a script repeats its words. All that comes after them is
//! no different there: the sandbox, its limit, the verdict.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::output;
use crate::workspace;

const FIXTURE: &str = "fixtures/verdicts";

/// Stands for the directory that the caller's `CARGO_TARGET_DIR` names.
const TARGET_DIRECTORY: &str = "@TARGET_DIRECTORY@";

/// A directory with a `cargo` and a `rustc` that repeat what they said, and what must lie in the machine for them.
pub(super) struct Recorded {
    pub(super) directory: PathBuf,
    pub(super) files: Vec<PathBuf>,
}

/// Builds the fixture's test below `directory`, and takes down what was said.
pub(super) fn cargo(directory: &Path) -> Result<Recorded> {
    let directory = directory.join("recorded");
    let target = directory.join("target");
    fs::create_dir_all(&target)?;
    let fixture = workspace().join(FIXTURE);
    let cargo = || {
        let mut command = crate::run::cargo();
        command
            .current_dir(&fixture)
            .env("CARGO_TARGET_DIR", &target);
        command
    };
    let version = output(cargo().arg("-vV"))?;
    let metadata = output(cargo().args(["metadata", "--format-version=1"]))?;
    let metadata = metadata.replace(&target.display().to_string(), TARGET_DIRECTORY);
    let built = output(cargo().args([
        "test",
        "--quiet",
        "--no-run",
        "--test=hungry",
        "--message-format=json-render-diagnostics",
    ]))?;
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let compiler = output(rustc.current_dir(&fixture).arg("-vV"))?;
    let test = built
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|said| said["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo names no test of {FIXTURE}:\n{built}"))?;

    let mut files = vec![test, fixture.join("Cargo.toml")];
    let mut place = |name: &str, content: &str, mode: u32| -> Result<()> {
        let path = directory.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        files.push(path);
        Ok(())
    };
    place("metadata.json", &metadata, 0o644)?;
    place("built.json", &built, 0o644)?;
    place("cargo-version", &version, 0o644)?;
    place("rustc-version", &compiler, 0o644)?;
    place("cargo", &said_by_cargo(&directory), 0o755)?;
    let host = compiler
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .with_context(|| format!("rustc does not say for what it builds:\n{compiler}"))?;
    place("rustc", &said_by_rustc(&directory, host), 0o755)?;
    Ok(Recorded { directory, files })
}

fn said_by_cargo(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "#!/bin/sh\n\
         case $1 in\n\
         metadata)\n\
         # `cargo test` makes it, which has it among its arguments.\n\
         mkdir -p \"$CARGO_TARGET_DIR\"\n\
         exec sed \"s|{TARGET_DIRECTORY}|$CARGO_TARGET_DIR|g\" '{directory}/metadata.json' ;;\n\
         test) exec cat '{directory}/built.json' ;;\n\
         -vV | --version) exec cat '{directory}/cargo-version' ;;\n\
         *) echo \"cargo was not asked for this when it was recorded: $*\" >&2; exit 101 ;;\n\
         esac\n"
    )
}

fn said_by_rustc(directory: &Path, host: &str) -> String {
    let directory = directory.display();
    // There is no standard library to show to the test, which is linked with all it needs.
    format!(
        "#!/bin/sh\n\
         case \"$*\" in\n\
         '--print sysroot --print host-tuple') printf '%s\\n' '{directory}' '{host}' ;;\n\
         *) exec cat '{directory}/rustc-version' ;;\n\
         esac\n"
    )
}
