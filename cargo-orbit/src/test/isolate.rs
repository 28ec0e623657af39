//! What of the host a test sees, and the sandbox that shows it just that.
//!
//! The files a test needs lie where cargo put them: the workspace, the target directory and the packages are
//! there with writes thrown away; the toolchain is there read-only; credentials are not there.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use cargo_metadata::Metadata;
use orbit::{Mount, Output, Sandbox, SandboxBuilder, Stdin};
use serde::{Deserialize, Serialize};

/// Files in `CARGO_HOME` that let their reader publish.
const CREDENTIALS: &[&str] = &["credentials.toml", "credentials"];

/// What of the host's files tests see, beside the system's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct View {
    /// Where an empty home directory is put.
    pub(crate) home: Option<PathBuf>,
    /// Seen where they are; writes are thrown away.
    pub(crate) work: Vec<PathBuf>,
    /// Seen where they are; writes fail.
    pub(crate) toolchain: Vec<PathBuf>,
    /// Seen where they are; writes are kept.
    pub(crate) writable: Vec<PathBuf>,
    /// Not seen, though they lie in what is.
    pub(crate) hidden: Vec<PathBuf>,
    /// Where the toolchain's own variables must point, since the home directory is another.
    pub(crate) variables: Vec<(String, PathBuf)>,
}

/// Directories of this user's toolchain.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    pub(crate) home: Option<PathBuf>,
    pub(crate) cargo_home: Option<PathBuf>,
    pub(crate) rustup_home: Option<PathBuf>,
    pub(crate) sysroot: PathBuf,
}

impl Toolchain {
    /// Finds the homes of cargo and rustup as they find them themselves.
    pub(crate) fn find(
        sysroot: PathBuf,
        home: Option<PathBuf>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let under = |name: &str, directory: &str| match variable(name) {
            Some(path) if !path.is_empty() => Some(PathBuf::from(path)),
            _ => home.as_ref().map(|home| home.join(directory)),
        };
        Self {
            cargo_home: under("CARGO_HOME", ".cargo"),
            rustup_home: under("RUSTUP_HOME", ".rustup"),
            home,
            sysroot,
        }
    }
}

impl View {
    /// What tests of the workspace that `metadata` describe need to see. `exists` tells what is there.
    pub(crate) fn new(
        metadata: &Metadata,
        toolchain: &Toolchain,
        writable: Vec<PathBuf>,
        exists: impl Fn(&Path) -> bool,
    ) -> Self {
        let root = metadata.workspace_root.clone().into_std_path_buf();
        let mut work = vec![metadata.target_directory.clone().into_std_path_buf()];
        // Packages of a registry or of git lie in cargo's home; those with a path may lie anywhere.
        let by_path = metadata
            .packages
            .iter()
            .filter(|package| package.source.is_none());
        work.extend(by_path.filter_map(|package| {
            package
                .manifest_path
                .parent()
                .map(|directory| directory.to_owned().into_std_path_buf())
        }));
        work.sort();
        work.dedup();
        work.retain(|path| !path.starts_with(&root));
        work.insert(0, root);

        let homes = [
            ("CARGO_HOME", &toolchain.cargo_home),
            ("RUSTUP_HOME", &toolchain.rustup_home),
        ];
        let variables: Vec<(String, PathBuf)> = homes
            .into_iter()
            .filter_map(|(name, path)| Some((name.to_owned(), path.clone()?)))
            .filter(|(_, path)| exists(path))
            .collect();
        let mut shown: Vec<PathBuf> = variables.iter().map(|(_, path)| path.clone()).collect();
        if !shown.iter().any(|path| toolchain.sysroot.starts_with(path)) {
            shown.push(toolchain.sysroot.clone());
        }
        let hidden = toolchain
            .cargo_home
            .iter()
            .flat_map(|home| CREDENTIALS.iter().map(|name| home.join(name)))
            .filter(|path| exists(path))
            .collect();
        Self {
            home: toolchain.home.clone(),
            work,
            toolchain: shown,
            writable,
            hidden,
            variables,
        }
    }
}

/// One program that cargo, or rustdoc, would start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// The program and its arguments, with what it is started through before it.
    pub(crate) command: Vec<OsString>,
    /// The test binary itself.
    pub(crate) binary: PathBuf,
    pub(crate) working_dir: PathBuf,
    pub(crate) variables: BTreeMap<OsString, OsString>,
}

/// The sandbox for `program`: the host's own files as `view` says, nothing but loopback, and the streams of
/// whoever started this.
pub(crate) fn sandbox(view: &View, program: Program) -> SandboxBuilder {
    let mut sandbox = Sandbox::builder()
        .name(name(&program.binary))
        .image("host")
        .env_clear()
        .envs(program.variables)
        .envs(view.variables.iter().cloned())
        .stdin(Stdin::Inherit)
        .stdout(Output::Inherit)
        .stderr(Output::Inherit);
    // From the general to the particular: what comes later may lie in what came before.
    if let Some(home) = &view.home {
        sandbox = sandbox.home(home);
    }
    sandbox = view
        .toolchain
        .iter()
        .fold(sandbox, SandboxBuilder::host_path_read_only);
    sandbox = view.work.iter().fold(sandbox, SandboxBuilder::host_path);
    // A doctest's binary lies in a temporary directory of rustdoc's.
    if let Some(directory) = program.binary.parent()
        && !view.work.iter().any(|path| directory.starts_with(path))
    {
        sandbox = sandbox.host_path_read_only(directory);
    }
    sandbox = view.writable.iter().fold(sandbox, |sandbox, path| {
        sandbox.mount(Mount::bind(path, path))
    });
    sandbox = view.hidden.iter().fold(sandbox, SandboxBuilder::hide);
    sandbox
        .cmd(program.command)
        .working_dir(program.working_dir)
}

/// A binary's name without the hash that cargo adds to it.
fn name(binary: &Path) -> String {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    match name.rsplit_once('-') {
        Some((stem, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            stem.to_owned()
        }
        _ => name.into_owned(),
    }
}
