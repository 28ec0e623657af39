//! What cargo knows of a workspace, asked once and kept in its target directory: a runner starts for each test, and
//! cannot spend a tenth of a second on the same question each time.
//!
//! What is kept is believed as long as no file or variable that the answer depends on has changed.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use cargo_metadata::MetadataCommand;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    filter::Workspace,
    test::isolate::{Toolchain, View},
};

/// Under the target directory.
const FILE: &str = "orbit/workspace.json";

/// Variables that decide what cargo and rustup answer.
const VARIABLES: &[&str] = &[
    "CARGO_HOME",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "HOME",
    "RUSTC",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
];

/// What is known of a workspace.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) view: View,
    pub(crate) workspace: Workspace,
    depends_on: DependsOn,
}

/// What the answer depends on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DependsOn {
    /// Another version may ask for other things, and write them down otherwise.
    version: String,
    variables: Vec<Option<OsString>>,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// Changes when a file does.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

impl DependsOn {
    fn now(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let stamped = |path: PathBuf| {
            let stamp = Stamp::of(&path);
            (path, stamp)
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            variables: VARIABLES.iter().map(env::var_os).collect(),
            files: files.into_iter().map(stamped).collect(),
        }
    }

    fn still_holds(&self) -> bool {
        let files = self.files.iter().map(|(path, _)| path.clone());
        *self == Self::now(files)
    }
}

/// What is known of the workspace of the package at `package`; kept in `target_directory`, where there is one.
///
/// # Errors
/// Where cargo cannot say. That nothing can be kept is none: then the next one asks again.
pub(crate) fn known(package: &Path, target_directory: Option<&Path>) -> anyhow::Result<Known> {
    let Some(target_directory) = target_directory else {
        return ask(package);
    };
    let path = target_directory.join(FILE);
    if let Some(known) = read(&path, package) {
        return Ok(known);
    }
    // Of many that start at a time, one asks.
    let lock = lock(&path);
    if lock.is_ok()
        && let Some(known) = read(&path, package)
    {
        return Ok(known);
    }
    let known = ask(package)?;
    if lock.is_ok() {
        // A target directory that cannot be written to makes it slow, and no less right.
        let _ = write(&path, &known);
    }
    Ok(known)
}

fn read(path: &Path, package: &Path) -> Option<Known> {
    let known: Known = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let has_package = known
        .workspace
        .packages
        .iter()
        .any(|of_workspace| of_workspace.manifest.parent() == Some(package));
    (has_package && known.depends_on.still_holds()).then_some(known)
}

fn lock(path: &Path) -> io::Result<File> {
    let directory = path.parent().unwrap_or(path);
    fs::create_dir_all(directory)?;
    let file = File::create(directory.join("workspace.lock"))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Whole or not at all, as others read it meanwhile.
fn write(path: &Path, known: &Known) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let written = File::create(&new)
        .and_then(|mut file| file.write_all(&serde_json::to_vec(known)?))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&new);
    }
    written
}

fn ask(package: &Path) -> anyhow::Result<Known> {
    let manifest = package.join("Cargo.toml");
    let mut command = MetadataCommand::new();
    if let Some(cargo) = env::var_os("CARGO") {
        command.cargo_path(PathBuf::from(cargo));
    }
    command.manifest_path(&manifest).current_dir(package);
    // Building has fetched what is needed; where not all is at hand, the workspace's own packages suffice.
    command.other_options(vec!["--offline".to_owned()]);
    let metadata = command
        .exec()
        .or_else(|_| command.no_deps().exec())
        .with_context(|| {
            format!(
                "cargo cannot say what the workspace of {} is",
                manifest.display()
            )
        })?;
    let toolchain = Toolchain::find(sysroot(package)?, env::home_dir(), |name| env::var_os(name));
    let workspace = Workspace::new(&metadata);
    let root = &workspace.root;
    let by_path = metadata
        .packages
        .iter()
        .filter(|package| package.source.is_none())
        .map(|package| package.manifest_path.clone().into_std_path_buf());
    // Cargo reads its configuration from all directories above.
    let above = package.ancestors().flat_map(|directory| {
        ["config.toml", "config"].map(|name| directory.join(".cargo").join(name))
    });
    let toolchain_files = package.ancestors().flat_map(|directory| {
        ["rust-toolchain.toml", "rust-toolchain"].map(|name| directory.join(name))
    });
    let of_home = toolchain
        .cargo_home
        .iter()
        .map(|home| home.join("config.toml"));
    let of_rustup = toolchain
        .rustup_home
        .iter()
        .map(|home| home.join("settings.toml"));
    let mut files: Vec<PathBuf> = by_path
        .chain([root.join("Cargo.toml"), root.join("Cargo.lock")])
        .chain(above)
        .chain(toolchain_files)
        .chain(of_home)
        .chain(of_rustup)
        .collect();
    files.sort();
    files.dedup();
    Ok(Known {
        view: View::new(&metadata, &toolchain, Path::exists),
        depends_on: DependsOn::now(files),
        workspace,
    })
}

fn sysroot(directory: &Path) -> anyhow::Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc)
        .args(["--print", "sysroot"])
        .current_dir(directory)
        .output()
        .with_context(|| format!("cannot run `{} --print sysroot`", rustc.display()))?;
    let path = String::from_utf8_lossy(&output.stdout);
    match path.trim_end() {
        path if output.status.success() && !path.is_empty() => Ok(path.into()),
        _ => bail!(
            "cannot run `{} --print sysroot`: {}",
            rustc.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_believed_until_something_changes() {
        let directory = tempfile::tempdir().unwrap();
        let package = directory.path().join("p");
        fs::create_dir_all(package.join("src")).unwrap();
        fs::write(package.join("src/lib.rs"), "").unwrap();
        let manifest = package.join("Cargo.toml");
        let text = "[package]\nname = 'p'\nversion = '0.0.0'\n[workspace]\n";
        fs::write(&manifest, text).unwrap();
        let target = directory.path().join("target");

        let first = known(&package, Some(&target)).unwrap();
        assert_eq!(first.workspace.root, package);
        let file = target.join(FILE);
        let stamp = Stamp::of(&file);
        assert!(stamp.is_some());
        known(&package, Some(&target)).unwrap();
        assert_eq!(Stamp::of(&file), stamp, "it was asked again");
        // Another package is not of this workspace.
        assert!(read(&file, directory.path()).is_none());

        fs::write(&manifest, format!("{text}[package.metadata.orbit]\n")).unwrap();
        let changed = known(&package, Some(&target)).unwrap();
        assert!(changed.workspace.packages[0].has_metadata);
        assert_ne!(Stamp::of(&file), stamp);
        // What is half there is not believed.
        fs::write(&file, "{").unwrap();
        known(&package, Some(&target)).unwrap();
        assert!(read(&file, &package).is_some());
    }
}
