//! The test binaries that cargo builds, and what cargo would start each of them with.
//!
//! Cargo starts test binaries only when all of them are built, one after the other. To start them as soon as they
//! are there, what it would give them has to be worked out here: their directory, their variables. A test compares that
//! with what cargo itself gives.
//!
//! Pure, but for the manifests, which say what has a `main` of its own.
//!
//! Source: The Cargo Book, "Environment Variables", those that Cargo sets for crates and for `cargo test`;
//! rust-lang/cargo, src/cargo/core/compiler/compilation.rs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use cargo_config2::Config;
use cargo_metadata::{Artifact, BuildScript, Metadata, Package, PackageId, TargetKind};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{cargo::RustVersions, event::BinaryId};

/// A test binary that is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestBinary {
    pub(crate) id: BinaryId,
    pub(crate) package_id: String,
    pub(crate) package: String,
    /// `lib`, `bin`, `test`, `example`, `bench` or `proc-macro`.
    pub(crate) kind: &'static str,
    /// The target's name.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Whether it has the standard test harness, and not a `main` of its own.
    pub(crate) has_harness: bool,
    pub(crate) working_dir: PathBuf,
    /// Beside those of the host.
    pub(crate) variables: BTreeMap<OsString, OsString>,
}

/// What is the same for all binaries of a build.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The cargo that builds.
    pub(crate) cargo: PathBuf,
    pub(crate) sysroot: PathBuf,
    /// Of the host that runs the tests; there is no runner for another.
    pub(crate) target: String,
    pub(crate) target_directory: PathBuf,
    /// As each package writes its own.
    pub(crate) rust_versions: RustVersions,
    /// `[env]` of cargo's configuration.
    pub(crate) env: Vec<ConfiguredVariable>,
    /// The host's own library path.
    pub(crate) library_path: Option<OsString>,
}

/// An entry of `[env]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfiguredVariable {
    name: OsString,
    value: OsString,
    /// Also where the host has it.
    force: bool,
}

/// `[env]` of cargo's configuration.
pub(crate) fn configured(config: &Config) -> Vec<ConfiguredVariable> {
    config
        .env
        .iter()
        .map(|(name, entry)| ConfiguredVariable {
            name: name.into(),
            value: entry.value.clone(),
            force: entry.force,
        })
        .collect()
}

/// What cargo has told of the build so far.
#[derive(Debug, Default)]
pub(crate) struct Built {
    scripts: HashMap<PackageId, BuildScript>,
    /// Binaries of each package by name: integration tests may start them.
    programs: HashMap<PackageId, BTreeMap<String, PathBuf>>,
    /// Targets without the standard harness, by kind and name: `cargo metadata` does not tell.
    without_harness: HashMap<PackageId, BTreeSet<(String, String)>>,
}

impl Built {
    /// Takes note of a build script that has run.
    pub(crate) fn script(&mut self, script: BuildScript) {
        self.scripts.insert(script.package_id.clone(), script);
    }

    /// Takes note of what was built, where it is a program.
    pub(crate) fn program(&mut self, artifact: &Artifact) {
        let is_program = artifact.target.kind.contains(&TargetKind::Bin) && !artifact.profile.test;
        if let (true, Some(path)) = (is_program, &artifact.executable) {
            self.programs
                .entry(artifact.package_id.clone())
                .or_default()
                .insert(artifact.target.name.clone(), path.into());
        }
    }

    /// Whether all is known that a test binary may start: cargo tells in no certain order of what is fresh.
    pub(crate) fn has_programs_of(&self, artifact: &Artifact, metadata: &Metadata) -> bool {
        if !artifact.profile.test || !may_start_programs(kind_of(&artifact.target.kind)) {
            return true;
        }
        let known = self.programs.get(&artifact.package_id);
        metadata
            .packages
            .iter()
            .filter(|package| package.id == artifact.package_id)
            .flat_map(|package| &package.targets)
            .filter(|target| target.is_bin())
            .all(|target| known.is_some_and(|known| known.contains_key(&target.name)))
    }

    /// A test binary that was built; none where it is something else.
    pub(crate) fn test(
        &mut self,
        artifact: &Artifact,
        metadata: &Metadata,
        around: &Surroundings,
        is_set: impl Fn(&OsString) -> bool,
    ) -> Option<Arc<TestBinary>> {
        let path = artifact.executable.as_ref()?.as_std_path();
        if !artifact.profile.test {
            return None;
        }
        let package = metadata
            .packages
            .iter()
            .find(|package| package.id == artifact.package_id)?;
        let kind = kind_of(&artifact.target.kind)?;
        let name = &artifact.target.name;
        let id = match kind {
            "lib" | "proc-macro" => package.name.to_string(),
            "test" => format!("{}::{name}", package.name),
            other => format!("{}::{other}/{name}", package.name),
        };
        let without_harness = self
            .without_harness
            .entry(package.id.clone())
            .or_insert_with(|| without_harness(package.manifest_path.as_std_path()));
        let target = match kind {
            "lib" | "proc-macro" => LIBRARY.map(str::to_owned).into(),
            _ => (kind.to_owned(), name.clone()),
        };
        let has_harness = !without_harness.contains(&target);
        Some(Arc::new(TestBinary {
            has_harness,
            id: BinaryId(id),
            package_id: package.id.repr.clone(),
            package: package.name.to_string(),
            kind,
            name: name.clone(),
            path: path.to_owned(),
            working_dir: directory(package).to_owned(),
            variables: self.variables(package, kind, path, around, is_set),
        }))
    }

    fn variables(
        &self,
        package: &Package,
        kind: &str,
        path: &Path,
        around: &Surroundings,
        is_set: impl Fn(&OsString) -> bool,
    ) -> BTreeMap<OsString, OsString> {
        let mut variables: BTreeMap<OsString, OsString> = BTreeMap::new();
        for entry in &around.env {
            if entry.force || !is_set(&entry.name) {
                variables.insert(entry.name.clone(), entry.value.clone());
            }
        }
        variables.insert("CARGO".into(), around.cargo.clone().into());
        for (name, value) in of_package(package, &around.rust_versions) {
            variables.insert(name.into(), value.into());
        }
        if let Some(script) = self.scripts.get(&package.id) {
            variables.insert("OUT_DIR".into(), script.out_dir.as_str().into());
            for (name, value) in &script.env {
                variables.insert(name.into(), value.into());
            }
        }
        if may_start_programs(Some(kind)) {
            for (name, program) in self.programs.get(&package.id).into_iter().flatten() {
                variables.insert(format!("CARGO_BIN_EXE_{name}").into(), program.into());
            }
        }
        variables.insert("LD_LIBRARY_PATH".into(), self.library_path(path, around));
        variables
    }

    /// Where the dynamic linker looks: what build scripts linked to below the target directory, the directories of
    /// the build, the toolchain's, and what the host says.
    fn library_path(&self, binary: &Path, around: &Surroundings) -> OsString {
        let deps = binary.parent().unwrap_or(Path::new("/"));
        let output = deps.parent().unwrap_or(deps);
        let mut native: Vec<PathBuf> = self
            .scripts
            .values()
            .flat_map(|script| &script.linked_paths)
            .map(|path| {
                let path = path.as_str();
                // `native=/path`, `framework=…`
                PathBuf::from(path.split_once('=').map_or(path, |(_, path)| path))
            })
            .filter(|path| path.starts_with(&around.target_directory))
            .collect();
        native.sort();
        native.dedup();
        let toolchain = around
            .sysroot
            .join("lib/rustlib")
            .join(&around.target)
            .join("lib");
        let mut paths = native;
        paths.extend([output.to_owned(), deps.to_owned(), toolchain]);
        if let Some(host) = &around.library_path {
            paths.extend(std::env::split_paths(host));
        }
        let mut text = OsString::new();
        for (index, path) in paths.iter().enumerate() {
            if index > 0 {
                text.push(":");
            }
            text.push(path);
        }
        text
    }
}

/// Whether cargo gives `CARGO_BIN_EXE_*` to a target of this kind.
fn may_start_programs(kind: Option<&str>) -> bool {
    matches!(kind, Some("test" | "bench"))
}

/// What kind of target it is, in one word.
fn kind_of(kinds: &[TargetKind]) -> Option<&'static str> {
    kinds.iter().find_map(|kind| {
        Some(match kind {
            TargetKind::Bin => "bin",
            TargetKind::Test => "test",
            TargetKind::Example => "example",
            TargetKind::Bench => "bench",
            TargetKind::ProcMacro => "proc-macro",
            TargetKind::Lib
            | TargetKind::RLib
            | TargetKind::DyLib
            | TargetKind::CDyLib
            | TargetKind::StaticLib => "lib",
            _ => return None,
        })
    })
}

/// What a package has one of, whatever it is called.
const LIBRARY: [&str; 2] = ["lib", ""];

/// The targets for which a manifest says `harness = false`, by kind and name.
///
/// Source: The Cargo Book, "Cargo Targets", the `harness` field.
fn without_harness(manifest: &Path) -> BTreeSet<(String, String)> {
    let text = std::fs::read_to_string(manifest).unwrap_or_default();
    targets_without_harness(&text)
}

fn targets_without_harness(manifest: &str) -> BTreeSet<(String, String)> {
    let Ok(table) = DeTable::parse(manifest) else {
        // Cargo has read it, so what is unknown here is of no harm.
        return BTreeSet::new();
    };
    let mut found = BTreeSet::new();
    let library = table.get_ref().get("lib").map(Spanned::get_ref);
    let harness = library.and_then(|it| it.as_table()?.get("harness"));
    if harness.and_then(|it| it.get_ref().as_bool()) == Some(false) {
        found.insert(LIBRARY.map(str::to_owned).into());
    }
    for kind in ["bin", "test", "example", "bench"] {
        let targets = table
            .get_ref()
            .get(kind)
            .and_then(|it| it.get_ref().as_array());
        for target in targets.into_iter().flatten() {
            let field = |name: &str| target.get_ref().get(name).map(Spanned::get_ref);
            let harness = field("harness").and_then(DeValue::as_bool);
            let name = field("name").and_then(DeValue::as_str);
            if let (Some(false), Some(name)) = (harness, name) {
                found.insert((kind.to_owned(), name.to_owned()));
            }
        }
    }
    found
}

/// Where a package lies.
pub(crate) fn directory(package: &Package) -> &Path {
    let manifest = package.manifest_path.as_std_path();
    manifest.parent().unwrap_or(Path::new("/"))
}

/// `CARGO_PKG_*` and `CARGO_MANIFEST_*`.
fn of_package(package: &Package, rust_versions: &RustVersions) -> Vec<(&'static str, String)> {
    let version = &package.version;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let path = |path: &Option<cargo_metadata::camino::Utf8PathBuf>| {
        path.as_ref().map(ToString::to_string).unwrap_or_default()
    };
    vec![
        (
            "CARGO_MANIFEST_DIR",
            directory(package).to_string_lossy().into_owned(),
        ),
        ("CARGO_MANIFEST_PATH", package.manifest_path.to_string()),
        ("CARGO_PKG_VERSION", version.to_string()),
        ("CARGO_PKG_VERSION_MAJOR", version.major.to_string()),
        ("CARGO_PKG_VERSION_MINOR", version.minor.to_string()),
        ("CARGO_PKG_VERSION_PATCH", version.patch.to_string()),
        ("CARGO_PKG_VERSION_PRE", version.pre.to_string()),
        ("CARGO_PKG_AUTHORS", package.authors.join(":")),
        ("CARGO_PKG_NAME", package.name.to_string()),
        ("CARGO_PKG_DESCRIPTION", text(&package.description)),
        ("CARGO_PKG_HOMEPAGE", text(&package.homepage)),
        ("CARGO_PKG_REPOSITORY", text(&package.repository)),
        ("CARGO_PKG_LICENSE", text(&package.license)),
        ("CARGO_PKG_LICENSE_FILE", path(&package.license_file)),
        (
            "CARGO_PKG_RUST_VERSION",
            text(&rust_versions.get(&package.id).cloned()),
        ),
        ("CARGO_PKG_README", path(&package.readme)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_of_its_own_is_known_from_the_manifest() {
        let manifest = "
            [package]
            name = 'a'
            [[test]]
            name = 'own'
            harness = false
            [[test]]
            name = 'usual'
            [[bench]]
            name = 'own'
            harness = true
        ";
        let found = targets_without_harness(manifest);
        assert_eq!(found, [("test".to_owned(), "own".to_owned())].into());
        assert!(targets_without_harness("[[test]").is_empty());
        let library = targets_without_harness("[lib]\nharness = false\n");
        assert_eq!(library, [LIBRARY.map(str::to_owned).into()].into());
        assert!(targets_without_harness("[lib]\nname = 'x'\n").is_empty());
    }
}
