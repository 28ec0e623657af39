//! Checks that run no test: formatting, lints, documentation, locks of fixtures, licences and origins of dependencies.

use std::{
    fs,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::Result;

use crate::{
    beside::{Means, Task},
    licences, run,
    tally::Tally,
    workspace,
};

/// Runs them all, whatever the first says.
pub(crate) fn all(tally: &mut Tally) -> Result<()> {
    quick(tally)?;
    for mut task in slow() {
        check(tally, task.name, &mut task.command)?;
    }
    Ok(())
}

/// Those that take seconds.
pub(crate) fn quick(tally: &mut Tally) -> Result<()> {
    check(
        tally,
        "formatting",
        run::cargo().args(["fmt", "--all", "--check"]),
    )?;
    locks(tally)?;
    dependencies(tally)
}

/// Those that compile. They do so in a place of their own: nobody else who builds waits for them, or they for others.
pub(crate) fn slow() -> [Task; 2] {
    let cargo = |verb: &str, words: &[&str]| {
        let mut command = run::cargo();
        command
            .args([verb, "--workspace", "--quiet", "--target-dir"])
            .arg(workspace().join("target/check"))
            .args(words);
        command
    };
    let clippy = cargo("clippy", &["--all-targets", "--", "-D", "warnings"]);
    let mut documentation = cargo("doc", &["--no-deps"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    [("clippy", clippy), ("documentation", documentation)].map(|(name, command)| Task {
        name,
        command,
        means: Means::Check,
    })
}

/// The locks of the crates that tests run Orbit on, which depend on ours: a test that builds one as an ordinary user cannot
/// write it.
fn locks(tally: &mut Tally) -> Result<()> {
    for entry in fs::read_dir(workspace().join("fixtures"))? {
        let fixture = entry?.path();
        if fixture.join("Cargo.lock").exists() {
            let name = format!(
                "lock of {}",
                fixture.file_name().unwrap_or_default().display()
            );
            let mut metadata = run::cargo();
            metadata
                .args(["metadata", "--locked", "--format-version=1"])
                .current_dir(&fixture)
                .stdout(Stdio::null());
            check(tally, &name, &mut metadata)?;
        }
    }
    Ok(())
}

fn check(tally: &mut Tally, name: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let status = run::status(command)?;
    tally.checked(
        name,
        status.success(),
        &status.to_string(),
        started.elapsed(),
    );
    Ok(())
}

/// cargo-deny where it is installed (building it takes longer than all our tests); else the same question
/// asked by ourselves, of the same `deny.toml`: it is never skipped.
fn dependencies(tally: &mut Tally) -> Result<()> {
    let name = "dependencies";
    if Command::new("cargo-deny")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        return check(
            tally,
            name,
            run::cargo().args(["deny", "check", "licenses", "bans", "sources"]),
        );
    }
    let started = Instant::now();
    let faults = licences::faults()?;
    for fault in &faults {
        println!("{fault}");
    }
    tally.checked(
        name,
        faults.is_empty(),
        &faults.join("; "),
        started.elapsed(),
    );
    Ok(())
}
