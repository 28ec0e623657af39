//! The cargo that builds and starts the tests: which it is, what it is told, and what it knows.
//!
//! `cargo test` itself decides what to build, in which order to run it, with which variables and in which
//! directory, what to print, and with which code to end. Orbit only asks, with `target.TRIPLE.runner` of
//! cargo's configuration, to be put before each program. Doctests come the same way: cargo hands the runner
//! to rustdoc as `--test-runtool`.
//!
//! Source: The Cargo Book, "Configuration", `target.<triple>.runner`; rustdoc's book, `--test-runtool`.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use cargo_config2::{Config, PathAndArgs};
use cargo_metadata::{Metadata, MetadataCommand, PackageId};
use serde::Deserialize;

use super::args::CargoArgs;

/// Why cargo could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CargoError {
    #[error("cannot read cargo's configuration")]
    Config(#[from] cargo_config2::Error),
    /// Cargo's own words, which begin with `error:`.
    #[error("cargo cannot say where the workspace lies:\n{}", .0.trim_end())]
    Metadata(String),
    #[error("cannot run `cargo metadata`")]
    MetadataUnread(#[source] cargo_metadata::Error),
    #[error("the path {} is not UTF-8, which cargo's configuration cannot hold", .0.display())]
    NotText(PathBuf),
    #[error("cannot run `{program} --print sysroot`: {why}")]
    Sysroot { program: String, why: String },
}

/// What a target's programs are started through, as the user configured it: empty for most.
type Through = Vec<String>;

/// Whether tests are built for several targets, those that were `asked` for or those of the configuration.
pub(crate) fn are_several(config: &Config, asked: &[String]) -> bool {
    match asked {
        [] => config.build.target.as_ref().is_some_and(|it| it.len() > 1),
        asked => asked.len() > 1,
    }
}

/// The targets that tests are built for, each with what its programs are started through. `host` is the compiler's own.
pub(crate) fn targets(
    config: &Config,
    asked: &[String],
    host: &str,
) -> Result<Vec<(String, Through)>, CargoError> {
    let is_for_host = asked.is_empty() && config.build.target.as_ref().is_none_or(Vec::is_empty);
    let asked: Vec<&str> = if is_for_host {
        vec![host]
    } else {
        let asked = asked.iter().map(|target| match target.as_str() {
            "host-tuple" => host,
            other => other,
        });
        asked.collect()
    };
    let mut targets = Vec::new();
    for target in config.build_target_for_config(asked)? {
        let mut through = Vec::new();
        if let Some(runner) = config.runner(&target)? {
            for word in std::iter::once(runner.path.into_os_string()).chain(runner.args) {
                through.push(text(Path::new(&word))?.to_owned());
            }
            if let Some(theirs) = through_of_ours(&through) {
                through = theirs;
            }
        }
        targets.push((target.triple().to_owned(), through));
    }
    Ok(targets)
}

/// What this program's own runner, as `cargo orbit env` sets it, starts programs through; `None` where `words` are another's.
/// Each program has its sandbox here already.
fn through_of_ours(words: &[String]) -> Option<Through> {
    let ours = words
        .windows(2)
        .position(|pair| pair == ["orbit", "runner"])?;
    let options = words[ours + 2..].iter().take_while(|word| *word != "--");
    let theirs = options.filter_map(|word| word.strip_prefix("--through="));
    Some(theirs.map(str::to_owned).collect())
}

/// `cargo test --doc` with a runner before each program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DoctestCommand {
    options: Vec<OsString>,
    /// Which packages the user chose.
    packages: Vec<OsString>,
    /// For rustdoc's harness.
    pub(crate) words: Vec<OsString>,
    /// Set, or taken away.
    pub(crate) variables: Vec<(OsString, Option<OsString>)>,
}

impl DoctestCommand {
    /// With `runner` before each program of each of `targets`.
    ///
    /// # Errors
    /// [`CargoError::NotText`] where the runner's path is not text.
    pub(crate) fn new(
        args: &CargoArgs,
        runner: &Path,
        targets: &[(String, Through)],
    ) -> Result<Self, CargoError> {
        let mut options = Vec::new();
        let mut variables = Vec::new();
        for (triple, through) in targets {
            options.push("--config".into());
            options.push(runner_setting(triple, text(runner)?, through).into());
            // Before cargo 1.93 a variable won over `--config`; what it held is in `through`.
            variables.push((runner_variable(triple).into(), None));
        }
        options.extend(args.doc_options.iter().cloned());
        Ok(Self {
            options,
            packages: args.package_options.clone(),
            words: Vec::new(),
            variables,
        })
    }

    /// For one package, by its id, or for all that the user chose. Words for rustdoc's harness may follow.
    pub(crate) fn command(&self, package: Option<&str>) -> Command {
        let mut command = Command::new(program());
        command
            .args(["test", "--doc", "--no-fail-fast"])
            .args(&self.options);
        match package {
            Some(id) => command.args(["--package", id]),
            None => command.args(&self.packages),
        };
        command.arg("--").args(&self.words);
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

/// The setting that makes cargo start a target's programs with `cargo-orbit orbit runner`.
fn runner_setting(triple: &str, runner: &str, through: &[String]) -> String {
    let words = [runner, "orbit", "runner"].map(str::to_owned);
    let through = through.iter().map(|word| format!("--through={word}"));
    let quoted: Vec<String> = words
        .into_iter()
        .chain(through)
        .chain(["--".to_owned()])
        .map(|word| toml_text(&word))
        .collect();
    format!("target.{}.runner=[{}]", toml_text(triple), quoted.join(","))
}

/// `text` as a basic string of TOML.
fn toml_text(text: &str) -> String {
    // JSON's escapes are a part of TOML's, except that TOML has no `\/`, which serde_json never writes,
    // and wants DEL escaped.
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007f")
}

/// `CARGO_TARGET_<TRIPLE>_RUNNER`.
fn runner_variable(triple: &str) -> String {
    let triple = triple.to_ascii_uppercase().replace(['-', '.'], "_");
    format!("CARGO_TARGET_{triple}_RUNNER")
}

/// The workspace, and every package that its tests for `targets` may be built from.
///
/// Where not every package is at hand, as may be offline though all that the tests need is, the workspace's
/// own packages alone.
///
/// # Errors
/// [`CargoError::Metadata`] with cargo's own words where there is no workspace that it can read.
pub(crate) fn metadata(
    args: &CargoArgs,
    targets: &[(String, Through)],
) -> Result<(Metadata, RustVersions), CargoError> {
    let mut options = Vec::new();
    for word in &args.metadata_options {
        options.push(text(Path::new(word))?.to_owned());
    }
    // Without it cargo would download what only other systems need.
    let platforms = targets
        .iter()
        .map(|(triple, _)| format!("--filter-platform={triple}"));
    let all: Vec<String> = options.iter().cloned().chain(platforms).collect();

    let ask = |options: Vec<String>, no_deps| {
        let mut command = MetadataCommand::new();
        // It has no option for it, as `cargo test` has.
        if let Some(directory) = &args.target_dir {
            command.env("CARGO_TARGET_DIR", directory);
        }
        command.cargo_path(program()).other_options(options);
        if no_deps {
            command.no_deps();
        }
        let output = command.cargo_command().output()?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(cargo_metadata::Error::CargoMetadata { stderr });
        }
        let text = str::from_utf8(&output.stdout)?;
        Ok((MetadataCommand::parse(text)?, rust_versions(text)?))
    };
    ask(all, false)
        .or_else(|_| ask(options, true))
        .map_err(|error| match error {
            cargo_metadata::Error::CargoMetadata { stderr } => CargoError::Metadata(stderr),
            other => CargoError::MetadataUnread(other),
        })
}

/// `rust-version` of each package that has one, as it is written: `1.89`, which [`Metadata`] makes a `1.89.0` of.
pub(crate) type RustVersions = HashMap<PackageId, String>;

fn rust_versions(metadata: &str) -> serde_json::Result<RustVersions> {
    #[derive(Deserialize)]
    struct Packages {
        packages: Vec<Versioned>,
    }
    #[derive(Deserialize)]
    struct Versioned {
        id: PackageId,
        rust_version: Option<String>,
    }
    let found: Packages = serde_json::from_str(metadata)?;
    let versions = found.packages.into_iter();
    Ok(versions
        .filter_map(|package| Some((package.id, package.rust_version?)))
        .collect())
}

/// The compiler, as it says itself.
pub(crate) struct Compiler {
    /// Where it, the standard library and their like lie.
    pub(crate) sysroot: PathBuf,
    /// What it builds for where nothing is said.
    pub(crate) host: String,
}

/// The question what the compiler is: asked, and not yet answered.
///
/// Cargo could be asked for the host too, but `cargo -vV` also finds out which distribution this is, by several programs.
pub(crate) struct Asked {
    rustc: PathAndArgs,
    process: Child,
}

impl Asked {
    pub(crate) fn compiler(config: &Config) -> Result<Self, CargoError> {
        let rustc = config.rustc().clone();
        let process = print(&rustc, &["sysroot", "host-tuple"])?;
        Ok(Self { rustc, process })
    }

    pub(crate) fn answer(self, config: &Config) -> Result<Compiler, CargoError> {
        let said = printed(&self.rustc, self.process);
        if let Ok(said) = &said
            && let Some((sysroot, host)) = said.split_once('\n')
        {
            return Ok(Compiler {
                sysroot: sysroot.into(),
                host: host.to_owned(),
            });
        }
        // Before Rust 1.84 it does not know `host-tuple`; one that fails for another reason says why now.
        let sysroot = printed(&self.rustc, print(&self.rustc, &["sysroot"])?)?;
        Ok(Compiler {
            sysroot: sysroot.into(),
            host: config.host_triple()?.to_owned(),
        })
    }
}

fn print(rustc: &PathAndArgs, what: &[&str]) -> Result<Child, CargoError> {
    Command::new(&rustc.path)
        .args(&rustc.args)
        .args(what.iter().flat_map(|what| ["--print", what]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| CargoError::sysroot(&rustc.path, &error))
}

fn printed(rustc: &PathAndArgs, process: Child) -> Result<String, CargoError> {
    let output = process
        .wait_with_output()
        .map_err(|error| CargoError::sysroot(&rustc.path, &error))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    match stdout.trim_end() {
        said if output.status.success() && !said.is_empty() => Ok(said.to_owned()),
        _ => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(CargoError::sysroot(&rustc.path, &stderr.trim_end()))
        }
    }
}

impl CargoError {
    fn sysroot(rustc: &Path, why: &dyn fmt::Display) -> Self {
        Self::Sysroot {
            program: rustc.display().to_string(),
            why: why.to_string(),
        }
    }
}

/// The cargo that started us, or the one in `PATH`.
pub(crate) fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| OsStr::new("cargo").to_owned())
}

fn text(path: &Path) -> Result<&str, CargoError> {
    path.to_str()
        .ok_or_else(|| CargoError::NotText(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_told_in_toml() {
        let through = ["sudo".to_owned(), "-E".to_owned()];
        assert_eq!(
            runner_setting("x86_64-unknown-linux-gnu", "/a \"b\"/cargo-orbit", &through),
            r#"target."x86_64-unknown-linux-gnu".runner=["/a \"b\"/cargo-orbit","orbit","runner","--through=sudo","--through=-E","--"]"#
        );
    }

    #[test]
    fn our_own_runner_is_not_run_through() {
        let of = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            through_of_ours(&words)
        };
        assert_eq!(of("/b/cargo-orbit orbit runner --"), Some(Vec::new()));
        let with_theirs = "/b/cargo-orbit orbit runner --through=qemu --through=-L -- --through=x";
        assert_eq!(
            of(with_theirs),
            Some(vec!["qemu".to_owned(), "-L".to_owned()])
        );
        assert_eq!(of("qemu -L /usr"), None);
    }

    #[test]
    fn the_users_own_variable_makes_room() {
        assert_eq!(
            runner_variable("thumbv7em-none-eabihf"),
            "CARGO_TARGET_THUMBV7EM_NONE_EABIHF_RUNNER"
        );
        let args = CargoArgs {
            doc_options: vec!["--release".into()],
            package_options: vec!["--workspace".into()],
            ..CargoArgs::default()
        };
        let targets = [("t".to_owned(), Vec::new())];
        let doctests = DoctestCommand::new(&args, Path::new("/o"), &targets).unwrap();
        let of_one = doctests.command(Some("path+file:///w#a@0.1.0"));
        let of_one: Vec<_> = of_one.get_args().collect();
        assert_eq!(of_one[6..], ["--package", "path+file:///w#a@0.1.0", "--"]);
        let command = doctests.command(None);
        let words: Vec<_> = command.get_args().collect();
        assert_eq!(
            words,
            [
                "test",
                "--doc",
                "--no-fail-fast",
                "--config",
                r#"target."t".runner=["/o","orbit","runner","--"]"#,
                "--release",
                "--workspace",
                "--"
            ]
        );
        let removed: Vec<_> = command.get_envs().collect();
        assert_eq!(removed, [(OsStr::new("CARGO_TARGET_T_RUNNER"), None)]);
    }
}
