//! Which program cargo, nextest or an editor wants run, found by what they say and by where the program lies: its
//! package, its binary, and the one test, where it is one.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use crate::filter::{Package, Platform, Target, TestFacts, Workspace};

/// A program, as settings know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Which {
    package_id: String,
    pub(crate) binary_id: String,
    binary_name: String,
    kind: String,
    platform: Platform,
    /// The one test it is to run.
    pub(crate) test: Option<String>,
}

impl Which {
    pub(crate) fn facts(&self) -> TestFacts<'_> {
        TestFacts {
            package_id: &self.package_id,
            binary_id: &self.binary_id,
            binary_name: &self.binary_name,
            kind: &self.kind,
            platform: self.platform,
            test: self.test.as_deref(),
        }
    }

    pub(crate) fn is_doctest(&self) -> bool {
        self.kind == "doc"
    }

    /// Of `binary`, which is started in `package` with `arguments`. A program that is none of the workspace's has
    /// the settings that hold for all.
    pub(crate) fn find(
        workspace: &Workspace,
        package: &Path,
        binary: &Path,
        arguments: &[OsString],
    ) -> Self {
        let test = one_test(arguments);
        let Some(package) = workspace
            .packages
            .iter()
            .find(|of_workspace| of_workspace.manifest.parent() == Some(package))
        else {
            return Self {
                test,
                ..Self::default()
            };
        };
        let target = if is_of_rustdoc(binary) {
            Some(Target::doctests(&package.name))
        } else {
            target(workspace, package, binary)
        };
        let Some(target) = target else {
            return Self {
                package_id: package.id.clone(),
                test,
                ..Self::default()
            };
        };
        Self {
            package_id: package.id.clone(),
            binary_id: target.binary_id(&package.name),
            // Tests of macros are built for the machine that compiles.
            platform: if target.kind == "proc-macro" {
                Platform::Host
            } else {
                Platform::Target
            },
            binary_name: target.name,
            kind: target.kind,
            test,
        }
    }
}

/// Rustdoc puts its programs in a directory of its own.
fn is_of_rustdoc(binary: &Path) -> bool {
    binary
        .parent()
        .and_then(Path::file_name)
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"rustdoctest"))
}

/// Cargo names a file after its target, with `_` for `-`, and a hash where several may lie side by side.
fn target(workspace: &Workspace, package: &Package, binary: &Path) -> Option<Target> {
    let file = binary.file_stem()?.to_str()?;
    let stem = match file.rsplit_once('-') {
        Some((stem, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            stem
        }
        _ => file,
    };
    let underscored = |name: &str| name.replace('-', "_");
    let in_examples = binary
        .parent()
        .and_then(Path::file_name)
        .is_some_and(|name| name == "examples");
    let is_whole = stem == file;
    let candidates: Vec<&Target> = package
        .targets
        .iter()
        .filter(|target| underscored(&target.name) == underscored(stem))
        // Without a hash it is no test, but what `cargo run` starts.
        .filter(|target| !is_whole || matches!(target.kind.as_str(), "bin" | "example"))
        .filter(|target| !in_examples || target.kind == "example")
        .collect();
    match candidates[..] {
        [] => None,
        [one] => Some(one.clone()),
        // A library and a program may have the same name: rustc has written down what it read.
        _ => {
            let sources = sources(&workspace.root, binary);
            let found = candidates
                .iter()
                .find(|target| sources.contains(&target.source));
            found.or(candidates.first()).map(|target| (*target).clone())
        }
    }
}

/// The files that a binary was made from, as its dep-info file has them.
fn sources(root: &Path, binary: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(binary.with_extension("d")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_suffix(':'))
        // Blanks are escaped.
        .map(|path| root.join(path.replace("\\ ", " ")))
        .collect()
}

/// The test of `PROGRAM --exact NAME --nocapture`, as nextest asks, or of `PROGRAM NAME --exact`, as people do.
fn one_test(arguments: &[OsString]) -> Option<String> {
    arguments
        .iter()
        .find(|word| *word == OsStr::new("--exact"))?;
    let mut names = arguments
        .iter()
        .filter(|word| !word.as_encoded_bytes().starts_with(b"-"));
    match (names.next(), names.next()) {
        (Some(name), None) => name.to_str().map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::workspace;

    fn found(binary: &str, arguments: &[&str]) -> Which {
        let workspace = workspace();
        let package = workspace.root.join("mixed");
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Which::find(&workspace, &package, Path::new(binary), &arguments)
    }

    #[test]
    fn a_program_is_known_by_its_file() {
        let id = |binary: &str| {
            let which = found(binary, &[]);
            format!("{} {}", which.kind, which.binary_id)
        };
        let hash = "0123456789abcdef";
        assert_eq!(id(&format!("/t/debug/deps/mixed-{hash}")), "lib mixed");
        assert_eq!(
            id(&format!("/t/debug/deps/ends-{hash}")),
            "test mixed::ends"
        );
        assert_eq!(
            id(&format!("/t/debug/deps/timed-{hash}")),
            "bench mixed::bench/timed"
        );
        assert_eq!(
            id(&format!("/t/debug/deps/greet-{hash}")),
            "bin mixed::bin/greet"
        );
        assert_eq!(id("/t/debug/greet"), "bin mixed::bin/greet");
        assert_eq!(
            id(&format!("/t/debug/examples/tested-{hash}")),
            "example mixed::example/tested"
        );
        assert_eq!(id("/tmp/rustdoctestAbC/rust_out"), "doc mixed::doc");
        assert_eq!(id("/bin/true"), " ");
    }

    #[test]
    fn of_a_library_and_a_program_of_one_name_rustc_knows() {
        let directory = tempfile::tempdir().unwrap();
        let mut workspace = workspace();
        let root = workspace.root.clone();
        let package = workspace
            .packages
            .iter_mut()
            .find(|package| package.name == "mixed")
            .unwrap();
        package.targets.push(Target {
            kind: "bin".into(),
            name: "mixed".into(),
            source: root.join("mixed/src/main.rs"),
        });
        let binary = directory.path().join("mixed-0123456789abcdef");
        let kind = |source: &str| {
            let text = format!("{}: {source}\n\n{source}:\n", binary.display());
            fs::write(binary.with_extension("d"), text).unwrap();
            Which::find(&workspace, &root.join("mixed"), &binary, &[]).kind
        };
        assert_eq!(kind("mixed/src/main.rs"), "bin");
        assert_eq!(kind("mixed/src/lib.rs"), "lib");
    }

    #[test]
    fn one_test_is_told_from_several() {
        let test = |arguments: &[&str]| found("/x", arguments).test;
        let name = || Some("a::b".to_owned());
        assert_eq!(test(&["--exact", "a::b", "--nocapture"]), name());
        assert_eq!(test(&["a::b", "--exact"]), name());
        assert_eq!(test(&["a::b"]), None);
        assert_eq!(test(&["--list", "--format", "terse"]), None);
        assert_eq!(test(&["--exact", "a", "b"]), None);
    }
}
