//! What the figures are measured on: programs built for release, a root filesystem, crates of tests.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{packages, run, workspace};

/// How many tests the sample crate has.
pub(crate) const TESTS: usize = 300;
/// How many test binaries the other one has.
/// So many that what is paid once for a run hardly counts to what each takes.
pub(crate) const BINARIES: usize = 40;

/// The directory of all this, in the target directory: a sandbox does not hide it, and `cargo clean` removes it.
pub(crate) struct Stage {
    pub(crate) root: PathBuf,
    target: PathBuf,
}

impl Stage {
    pub(crate) fn prepare() -> Result<Self> {
        packages::install_for_benches()?;
        let mut build = run::cargo();
        build.args(["build", "--release", "--quiet"]);
        run::success(build.args(["--package", "cargo-orbit", "--package", "orbit-benches"]))?;
        let target = target_directory()?;
        let stage = Self {
            root: target.join("bench"),
            target,
        };
        stage.remove()?;
        for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(stage.rootfs().join(directory))?;
        }
        stage.compile_text("true", "int main(void) { return 0; }\n")?;
        let pause = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n";
        stage.compile_text("pause", pause)?;
        compile(
            &workspace().join("benches/floor.c"),
            &stage.root.join("floor"),
        )?;
        stage.write_tests()?;
        stage.write_binaries()?;
        Ok(stage)
    }

    /// A directory with static programs and nothing else.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.root.join("rootfs")
    }

    /// One of the programs that were built for release.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// A command with a cache of its own, so that nothing of this stays in the user's.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("ORBIT_CACHE_DIR", self.root.join("cache"))
            .env("CARGO_TARGET_DIR", self.root.join("target"))
            .current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            // Of the cargo that runs us; the crates here are others.
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Removes all of it. Layers belong to the ids of sandboxes, and root may remove those.
    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.root.display()))
            }
            _ => Ok(()),
        }
    }

    fn compile_text(&self, name: &str, text: &str) -> Result<()> {
        let source = self.root.join(format!("{name}.c"));
        fs::write(&source, text)?;
        compile(&source, &self.rootfs().join("bin").join(name))
    }

    fn write_tests(&self) -> Result<()> {
        let mut source = String::new();
        for number in 0..TESTS {
            write!(source, "#[test]\nfn test_{number}() {{}}\n")?;
        }
        // Doctests are not what is compared: nextest runs none.
        write_crate(
            &self.root.join("tests"),
            "tests",
            "[lib]\ndoctest = false\n",
        )?;
        fs::write(self.root.join("tests/src/lib.rs"), source)?;
        Ok(())
    }

    fn write_binaries(&self) -> Result<()> {
        let root = self.root.join("binaries");
        write_crate(&root, "binaries", "[lib]\ntest = false\ndoctest = false\n")?;
        fs::write(root.join("src/lib.rs"), "")?;
        fs::create_dir_all(root.join("tests"))?;
        for number in 0..BINARIES {
            let test = "#[test]\nfn test() {}\n";
            fs::write(root.join(format!("tests/binary_{number}.rs")), test)?;
        }
        Ok(())
    }
}

/// A crate that is its own workspace, as a user's is.
pub(crate) fn write_crate(root: &Path, name: &str, more: &str) -> Result<()> {
    fs::create_dir_all(root.join("src"))?;
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n\n{more}"
    );
    Ok(fs::write(root.join("Cargo.toml"), manifest)?)
}

fn compile(source: &Path, program: &Path) -> Result<()> {
    let mut compiler = run::command("cc");
    compiler.args(["-O2", "-Wall", "-static", "-o"]);
    run::success(compiler.arg(program).arg(source))
}

fn target_directory() -> Result<PathBuf> {
    let metadata = run::output(run::cargo().args([
        "metadata",
        "--offline",
        "--no-deps",
        "--format-version=1",
    ]))?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata)?;
    let directory = metadata["target_directory"].as_str();
    let directory = PathBuf::from(directory.context("cargo names no target directory")?);
    ensure!(directory.is_absolute(), "{}", directory.display());
    Ok(directory)
}
