//! Runs of `cargo orbit test` as programs follow them, by `--message-format json`, and packages for them to run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Context, orbit_cli};
use serde_json::Value;

/// A package with these test binaries.
pub(crate) fn package(context: &Context, binaries: &[(&str, &str)]) -> Result<PathBuf> {
    let package = context.work().join("package");
    fs::create_dir_all(package.join("src"))?;
    fs::create_dir_all(package.join("tests"))?;
    fs::write(
        package.join("Cargo.toml"),
        "[package]\nname = \"package\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[profile.dev]\ndebug = false\n\n[workspace]\n",
    )?;
    fs::write(package.join("src/lib.rs"), "")?;
    for (name, text) in binaries {
        fs::write(package.join(format!("tests/{name}.rs")), text)?;
    }
    Ok(package)
}

/// `cargo orbit test` of the package in `directory`, which tells what it does as JSON.
pub(crate) fn command(context: &Context, directory: &Path) -> Result<Command> {
    let mut command = Command::new(orbit_cli::binary()?);
    command
        .args(["orbit", "test", "--offline", "--message-format", "json"])
        .arg("--target-dir")
        .arg(context.work().join("target"))
        .current_dir(directory)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    Ok(command)
}

/// What a run tells, in its order.
pub(crate) struct Told {
    pub(crate) events: Vec<Value>,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

impl Told {
    pub(crate) fn of(output: &Output) -> Result<Self> {
        Ok(Self {
            events: events(&output.stdout)?,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code(),
        })
    }

    /// The events of this kind; of tests, those of the one with this name.
    pub(crate) fn all<'a>(
        &'a self,
        kind: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| {
            let test = &event["test"];
            event["event"] == kind && (test.is_null() || test["name"] == name)
        })
    }

    pub(crate) fn one<'a>(&'a self, kind: &'a str, name: &'a str) -> Result<&'a Value> {
        let mut all = self.all(kind, name);
        let one = all.next();
        let one = one.with_context(|| format!("no {kind} of {name:?}: {}", self.stderr))?;
        ensure!(all.next().is_none(), "{kind} of {name:?} twice");
        Ok(one)
    }

    /// The only attempt at a test.
    pub(crate) fn attempt<'a>(&'a self, name: &'a str) -> Result<&'a Value> {
        let attempts = &self.one("test-finished", name)?["attempts"];
        ensure!(
            attempts.as_array().is_some_and(|it| it.len() == 1),
            "{attempts}"
        );
        Ok(&attempts[0])
    }

    pub(crate) fn ended(&self, name: &str) -> Result<f64> {
        let attempt = self.attempt(name)?;
        Ok(seconds(attempt, "started_seconds")? + seconds(attempt, "wall_seconds")?)
    }

    /// `BINARY NAME` of the tests of the events of this kind, in their order.
    pub(crate) fn names(&self, kind: &str) -> Vec<String> {
        let of_kind = self.events.iter().filter(|event| event["event"] == kind);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        of_kind
            .map(|event| {
                let test = &event["test"];
                format!("{} {}", text(&test["binary"]), text(&test["name"]))
            })
            .collect()
    }
}

/// The lines of a report as JSON.
pub(crate) fn events(stdout: &[u8]) -> Result<Vec<Value>> {
    let text = std::str::from_utf8(stdout)?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

pub(crate) fn seconds(value: &Value, name: &str) -> Result<f64> {
    value[name]
        .as_f64()
        .with_context(|| format!("no {name} in {value}"))
}

/// A run that has ended, and the most memory that its process had resident.
pub(crate) struct Measured {
    pub(crate) status: ExitStatus,
    pub(crate) most_kib: u64,
    /// Where standard output and standard error went.
    pub(crate) told: PathBuf,
    pub(crate) said: PathBuf,
}

/// Runs a command to its end, and asks the kernel all the while how much it has resident: of itself, without its children.
pub(crate) fn measured(context: &Context, command: &mut Command) -> Result<Measured> {
    let (told, said) = (context.work().join("told"), context.work().join("said"));
    let mut child = command
        .stdout(fs::File::create(&told)?)
        .stderr(fs::File::create(&said)?)
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut most_kib = 0;
    let ended = loop {
        // Monotonic, and gone when the process is.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok());
        most_kib = most_kib.max(peak.unwrap_or(0));
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        thread::sleep(Duration::from_millis(20));
    };
    Ok(Measured {
        status: ended,
        most_kib,
        told,
        said,
    })
}
