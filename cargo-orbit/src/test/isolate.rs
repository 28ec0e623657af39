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
use orbit::{
    __private::{SANDBOX_OF, SANDBOX_OF_TEST},
    Mount, Output, Sandbox, SandboxBuilder, Stdin,
};
use serde::{Deserialize, Serialize};

/// Files in `CARGO_HOME` that let their reader publish.
const CREDENTIALS: &[&str] = &["credentials.toml", "credentials"];

/// Where a test process finds the others of its session, as to networks that they share. Not root's own place: what
/// is there is of the host's network.
const MEETING: &str = "/run/orbit-session";

/// What of the host's files tests see, beside the system's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct View {
    /// Where an empty home directory is put.
    pub(crate) home: Option<PathBuf>,
    /// Seen where they are; writes are thrown away.
    pub(crate) work: Vec<PathBuf>,
    /// Seen where they are; writes fail.
    pub(crate) toolchain: Vec<PathBuf>,
    /// Not seen, though they lie in what is.
    pub(crate) hidden: Vec<PathBuf>,
    /// Where processes of the session meet that share networks.
    pub(crate) meeting: Option<PathBuf>,
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
            hidden,
            meeting: None,
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

/// What a bundle of doctests needs to run each of them in a process of its own: the path of the bundle.
///
/// Rustdoc sets it, except for a bundle that it starts through a runner; without it they all run in one
/// process, and the first that exits ends them all.
///
/// Source: rust-lang/rust, src/librustdoc/doctest.rs, `run_test`; doctest/runner.rs, `ENV_BIN`.
const DOCTEST_BUNDLE: &str = "RUSTDOC_DOCTEST_BIN_PATH";

impl Program {
    /// What rustdoc would have set if it had started the program itself.
    fn variables_of_rustdoc(&self) -> Option<(&'static str, &Path)> {
        let directory = self.binary.parent()?.file_name()?.to_str()?;
        directory
            .starts_with("rustdoctest")
            .then_some((DOCTEST_BUNDLE, self.binary.as_path()))
    }
}

/// The sandbox for `program`: the host's own files as `view` says, nothing but loopback, and the streams of
/// whoever started this.
pub(crate) fn sandbox(view: &View, program: Program) -> SandboxBuilder {
    let mut sandbox = Sandbox::builder()
        .name(name(&program.binary))
        .image("host")
        // What a test may do on the host it may do here: also to make namespaces, and sandboxes.
        .nested(true)
        .env_clear()
        .envs(program.variables_of_rustdoc())
        .envs(for_one_test(&program.command))
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
    if let Some(directory) = &view.meeting {
        sandbox = sandbox
            .mount(Mount::bind(directory, MEETING))
            .env("ORBIT_RUNTIME_DIR", MEETING);
    }
    sandbox = view.hidden.iter().fold(sandbox, SandboxBuilder::hide);
    sandbox
        .cmd(program.command)
        .working_dir(program.working_dir)
}

/// What tells a test that this sandbox is its own, so that it needs no other: where the program is asked to run
/// just one, as nextest asks.
fn for_one_test(command: &[OsString]) -> Option<(&'static str, &'static str)> {
    // The program comes first, and what it is started through before it; only arguments can be `--exact`.
    let exact = command.iter().position(|word| word == "--exact")?;
    let is_name = |word: &&OsString| !word.as_encoded_bytes().starts_with(b"-");
    // nextest: `PROGRAM --exact NAME --nocapture`; a person: `PROGRAM NAME --exact`.
    let after = command[exact + 1..].iter().filter(is_name).count();
    let before = command[1..exact].iter().filter(is_name).count();
    (before + after == 1).then_some((SANDBOX_OF, SANDBOX_OF_TEST))
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

#[cfg(test)]
mod tests {
    use cargo_metadata::MetadataCommand;

    use super::*;

    fn fixture() -> Metadata {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../fixtures/workspace-mixed/Cargo.toml"
        );
        MetadataCommand::new().manifest_path(path).exec().unwrap()
    }

    fn toolchain(cargo_home: &str, sysroot: &str) -> Toolchain {
        let variables = |name: &str| (name == "CARGO_HOME").then(|| cargo_home.into());
        Toolchain::find(sysroot.into(), Some("/home/me".into()), variables)
    }

    #[test]
    fn homes_are_where_variables_or_the_users_home_say() {
        let found = toolchain("/c", "/s");
        assert_eq!(found.cargo_home, Some("/c".into()));
        assert_eq!(found.rustup_home, Some("/home/me/.rustup".into()));
        let empty = toolchain("", "/s");
        assert_eq!(empty.cargo_home, Some("/home/me/.cargo".into()));
        let homeless = Toolchain::find("/usr".into(), None, |_| None);
        assert_eq!((homeless.cargo_home, homeless.rustup_home), (None, None));
    }

    #[test]
    fn a_package_outside_of_the_workspace_is_seen() {
        let metadata = fixture();
        let view = View::new(&metadata, &toolchain("/c", "/s"), |_| false);
        let root = metadata.workspace_root.as_std_path();
        assert_eq!(view.work[0], root);
        assert!(
            view.work.contains(&root.with_file_name("mixed-outside")),
            "{view:?}"
        );
        // Those inside it need no line of their own.
        assert!(
            view.work[1..].iter().all(|path| !path.starts_with(root)),
            "{view:?}"
        );
    }

    #[test]
    fn credentials_are_hidden_and_what_is_not_there_is_not_shown() {
        let there = ["/c", "/c/credentials.toml"].map(Path::new);
        let seen = |sysroot: &str| {
            View::new(&fixture(), &toolchain("/c", sysroot), |path| {
                there.contains(&path)
            })
        };
        let view = seen("/c/toolchain");
        assert_eq!(view.hidden, [PathBuf::from("/c/credentials.toml")]);
        assert_eq!(view.toolchain, [PathBuf::from("/c")]);
        assert_eq!(
            view.variables,
            [("CARGO_HOME".to_owned(), PathBuf::from("/c"))]
        );
        assert_eq!(
            seen("/opt/rust").toolchain,
            ["/c", "/opt/rust"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_doctest_is_told_where_its_bundle_lies() {
        let variables = |binary: &str| {
            let program = Program {
                command: Vec::new(),
                binary: binary.into(),
                working_dir: "/".into(),
                variables: BTreeMap::new(),
            };
            program
                .variables_of_rustdoc()
                .map(|(_, path)| path.to_owned())
        };
        let bundle = "/tmp/rustdoctestAbC/rust_out";
        assert_eq!(variables(bundle), Some(bundle.into()));
        assert_eq!(variables("/w/target/debug/deps/a-0123456789abcdef"), None);
        assert_eq!(variables("/"), None);
    }

    #[test]
    fn a_sandbox_for_one_test_says_so() {
        let alone = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
            for_one_test(&words).is_some()
        };
        assert!(alone("/t/a --exact t::one --nocapture"));
        assert!(alone("/t/a t::one --exact"));
        for line in [
            "/t/a",
            "/t/a t::one",
            "/t/a --exact",
            "/t/a one two --exact",
            "/t/a --exact one two",
        ] {
            assert!(!alone(line), "{line}");
        }
    }

    #[test]
    fn a_sandbox_is_called_after_its_binary() {
        assert_eq!(name(Path::new("/d/my-test-0123456789abcdef")), "my-test");
        assert_eq!(name(Path::new("/d/my-test")), "my-test");
        assert_eq!(name(Path::new("/d/rust_out")), "rust_out");
        assert_eq!(name(Path::new("/")), "");
    }
}
