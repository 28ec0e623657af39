//! Published crates whose own tests must end the same in sandboxes as without.

mod table;
mod verdicts;

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Gid, Uid};
use serde_json::Value;
use tempfile::TempDir;

pub use self::table::CRATES;
pub use self::verdicts::{Verdict, Verdicts};
use crate::{Finished, Program, target_dir};

/// A published crate, and what is known of its tests.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Its name.
    pub name: &'static str,
    /// Its exact version.
    pub version: &'static str,
    /// Arguments for `cargo test`; empty where the whole suite builds.
    pub flags: &'static [&'static str],
    /// How many tests, doctests included, pass under plain `cargo test`.
    pub passed: usize,
    /// What of the system its tests use.
    pub uses: &'static str,
    /// What is left out, and why; empty where nothing is.
    pub note: &'static str,
}

/// How long building and running one suite may take.
pub const DEADLINE: Duration = Duration::from_secs(600);

impl Published {
    /// `NAME-VERSION`.
    pub fn slug(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// Where [`fetch`](Self::fetch) puts the sources.
    pub fn sources(&self) -> PathBuf {
        directory().join("sources").join(self.slug())
    }

    /// Gets the sources as cargo fetches them, with all that building their tests needs, so that what
    /// follows works offline. Does nothing where they are there.
    ///
    /// # Errors
    /// What cargo said.
    pub fn fetch(&self) -> Result<PathBuf> {
        let sources = self.sources();
        if sources.exists() {
            return Ok(sources);
        }
        let scratch = TempDir::with_prefix("fetch-")?;
        fs::create_dir(scratch.path().join("src"))?;
        fs::write(scratch.path().join("src/lib.rs"), "")?;
        fs::write(
            scratch.path().join("Cargo.toml"),
            format!(
                "[package]\nname = \"scratch\"\nedition = \"2024\"\n\n[dependencies]\n{} = \"={}\"\n",
                self.name, self.version
            ),
        )?;
        let cargo = |verb: &str| Program::new("cargo").arg(verb).deadline(DEADLINE);
        cargo("fetch")
            .current_dir(scratch.path())
            .run()?
            .success()?;
        let metadata = cargo("metadata")
            .args(["--format-version=1", "--offline"])
            .current_dir(scratch.path())
            .run()?
            .success()?;
        let metadata: Value = serde_json::from_str(&metadata.stdout)?;
        let manifest = metadata["packages"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|package| package["name"] == self.name && package["version"] == self.version)
            .and_then(|package| package["manifest_path"].as_str())
            .with_context(|| format!("cargo did not fetch {}", self.slug()))?;
        let unpacked = Path::new(manifest)
            .parent()
            .context("a manifest is in a directory")?;

        fs::create_dir_all(directory().join("sources"))?;
        // Beside, then renamed: sources that are there are whole, and their dependencies are fetched.
        let beside = TempDir::with_prefix_in(".fetch-", directory().join("sources"))?;
        let copy = beside.path().join(self.slug());
        Program::new("cp")
            .arg("-r")
            .arg(unpacked)
            .arg(&copy)
            .run()?
            .success()?;
        // The dev-dependencies, which a dependant does not fetch. Writes Cargo.lock where none is published.
        cargo("fetch").current_dir(&copy).run()?.success()?;
        fs::rename(&copy, &sources)?;
        Ok(sources)
    }

    /// A copy of the sources, with a target directory beside it, for one account: tests write to both.
    /// Made anew where the sources changed hands; what was built is kept from run to run.
    ///
    /// # Errors
    /// Where it cannot be copied, or given to the account.
    pub fn copy_for(&self, uid: Uid, gid: Gid) -> Result<PathBuf> {
        let home = directory().join(format!("uid-{uid}"));
        let copy = home.join(self.slug());
        fs::create_dir_all(home.join("target"))?;
        if !copy.exists() {
            Program::new("cp")
                .arg("-r")
                .arg(self.fetch()?)
                .arg(&copy)
                .run()?
                .success()?;
        }
        if Uid::effective().is_root() {
            chown(&home, Some(uid.as_raw()), Some(gid.as_raw()))?;
            for path in [&copy, &home.join("target")] {
                let owner = format!("{uid}:{gid}");
                Program::new("chown")
                    .args(["-R", "--no-dereference", &owner])
                    .arg(path)
                    .run()?
                    .success()?;
            }
        }
        Ok(copy)
    }

    /// Where [`copy_for`](Self::copy_for) put the copy.
    pub fn copy_of(&self, uid: Uid) -> PathBuf {
        directory().join(format!("uid-{uid}")).join(self.slug())
    }
}

/// `cargo test`, or `cargo orbit test`, ready for the arguments that both know.
pub type Runner<'a> = &'a dyn Fn() -> Result<Program>;

/// Runs the suite of a crate and reads how each test ended.
///
/// # Errors
/// Where it does not build, or its output is not what libtest prints. Failed tests are verdicts.
pub fn cargo_test_verdicts(krate: &Published, copy: &Path, runner: Runner<'_>) -> Result<Verdicts> {
    verdicts(krate, copy, runner()?, Verdicts::parse)
}

/// The same of `cargo orbit test`.
///
/// # Errors
/// As [`cargo_test_verdicts`].
pub fn orbit_test_verdicts(krate: &Published, copy: &Path, runner: Runner<'_>) -> Result<Verdicts> {
    let orbit = runner()?.args(["--message-format", "json"]);
    verdicts(krate, copy, orbit, Verdicts::of_orbit)
}

fn verdicts(
    krate: &Published,
    copy: &Path,
    runner: Program,
    read: fn(&str) -> Result<Verdicts>,
) -> Result<Verdicts> {
    let target = copy
        .parent()
        .context("a copy is in a directory")?
        .join("target");
    let finished = runner
        .arg("--manifest-path")
        .arg(copy.join("Cargo.toml"))
        // Not by the environment, which cargo run by a test would see too (duct has such tests).
        .arg("--target-dir")
        .arg(target)
        .args(["--offline", "--no-fail-fast"])
        .args(krate.flags)
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_INCREMENTAL", "0")
        .current_dir(copy)
        .deadline(DEADLINE)
        .run()?;
    let read = read_verdicts(&finished, read);
    read.with_context(|| finished.to_string())
}

fn read_verdicts(finished: &Finished, read: fn(&str) -> Result<Verdicts>) -> Result<Verdicts> {
    let verdicts = read(&finished.stdout)?;
    ensure!(!verdicts.is_empty(), "no test ran");
    let success = finished.status.success();
    ensure!(
        success == (verdicts.count(Verdict::Failed) == 0),
        "the exit code does not fit the verdicts"
    );
    Ok(verdicts)
}

fn directory() -> PathBuf {
    target_dir().join("published")
}
