//! The suites: unit tests and doctests, unit tests as the ordinary user, end-to-end tests, limits.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    beside::{Beside, Means, Task},
    checks, is_root, run,
    tally::{Suite, Tally},
    vm,
};

/// The suites with a main function of their own, each run as root and as the ordinary users.
const SUITES: [(&str, &str); 5] = [
    ("end to end", "e2e"),
    ("networks", "network"),
    ("services", "services"),
    ("reports", "report"),
    ("limits on this machine", "limits"),
];

/// Tests of the limits that the attribute sets, which the virtual machine alone runs: they are not skipped where none are kept.
const FOR_VM: &str = "attribute_limits";

/// `cargo test` with the features that all of the workspace has together, as everything here is built: with another
/// selection of packages, all dependencies would be built once more.
pub(crate) fn cargo_test() -> Command {
    let mut command = run::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command
}

/// Runs them all, whatever the first says.
pub(crate) fn all(tally: &mut Tally) -> Result<()> {
    let mut units = cargo_test();
    units.args(["--lib", "--bins", "--examples"]);
    for test in other_tests()? {
        units.args(["--test", &test]);
    }
    one(
        tally,
        "unit tests and doctests",
        &mut [&mut units, cargo_test().arg("--doc")],
    )?;
    // All that the machine needs is compiled by now.
    let mut tasks = Vec::new();
    match vm::unavailable() {
        Some(why) => skip_vm(tally, &why),
        None => tasks.push(vm_beside()?),
    }
    for mut lint in checks::slow() {
        // A processor is left for the suites.
        lint.command.env("CARGO_BUILD_JOBS", "1");
        tasks.push(lint);
    }
    let beside = Beside::start(tasks);
    unit_tests_as_user(tally)?;
    for (name, test) in SUITES {
        one(tally, name, &mut [cargo_test().args(["--test", test])])?;
    }
    beside.end(tally)
}

/// The names of the integration tests that are no suites.
fn other_tests() -> Result<BTreeSet<String>> {
    let metadata = run::output(run::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_slice(&metadata).context("what cargo knows")?;
    Ok(tests_of(&metadata)
        .filter(|name| *name != FOR_VM && SUITES.iter().all(|(_, suite)| suite != name))
        .map(str::to_owned)
        .collect())
}

fn tests_of(metadata: &Value) -> impl Iterator<Item = &str> {
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| target["name"].as_str())
}

const IN_VM: &str = "limits and sandboxes in a virtual machine";

/// The tests in the virtual machine, in a process of their own.
fn vm_beside() -> Result<Task> {
    let mut command = run::command(&env::current_exe()?.to_string_lossy());
    command.arg("vm");
    Ok(Task {
        name: IN_VM,
        command,
        means: Means::Tests,
    })
}

/// Limits on a kernel that can keep them, and the sandbox suite there too. `filter` is passed on to the tests.
pub(crate) fn all_in_vm(tally: &mut Tally, filter: &[&str]) {
    let filter = owned(filter);
    in_vm(tally, IN_VM, |see| vm::tests(&filter, see));
}

/// One program in the virtual machine, as root; its lines are counted as a test's where they are one's.
pub(crate) fn once_in_vm(tally: &mut Tally, program: &Path, arguments: &[&str]) {
    let extra: Vec<PathBuf> = env::var_os("ORBIT_VM_EXTRA")
        .map(|paths| env::split_paths(&paths).collect())
        .unwrap_or_default();
    in_vm(tally, &program.display().to_string(), |see| {
        vm::once(program, &owned(arguments), &extra, see)
    });
}

fn skip_vm(tally: &mut Tally, why: &str) {
    let mut suite = Suite::new(IN_VM);
    suite.skip("the virtual machine", why);
    tally.add(suite);
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn in_vm(tally: &mut Tally, name: &str, run: impl FnOnce(&mut dyn FnMut(&str)) -> Result<bool>) {
    let started = Instant::now();
    let mut suite = Suite::new(name);
    if let Some(why) = vm::unavailable() {
        suite.skip("the virtual machine", &why);
    } else {
        let (success, how) = match run(&mut |line| suite.read(line)) {
            Ok(success) => (success, "a program in the machine failed".to_owned()),
            Err(fault) => (false, format!("{fault:#}")),
        };
        suite.end(success, &how, started.elapsed());
    }
    tally.add(suite);
}

fn one(tally: &mut Tally, name: &str, commands: &mut [&mut Command]) -> Result<()> {
    let mut suite = Suite::new(name);
    for command in commands {
        let started = Instant::now();
        let status = run::watch(command, |line| suite.read(line))?;
        let how = format!("{}: {status}", run::line_of(command));
        suite.end(status.success(), &how, started.elapsed());
    }
    tally.add(suite);
    Ok(())
}

/// Packages whose unit tests run cargo, which is root's alone.
const NEED_A_TOOLCHAIN: [&str; 3] = ["tests", "xtask", "cargo-orbit"];

/// What is unit-tested as root above also holds for an ordinary user: the test binaries of libraries,
/// which need no toolchain, run again. Where we are no root they ran as such a user already.
fn unit_tests_as_user(tally: &mut Tally) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let messages = run::output(
        cargo_test()
            .args(["--lib", "--bins", "--no-run", "--quiet"])
            .arg("--message-format=json"),
    )?;
    let mut commands: Vec<Command> = test_binaries(&messages)
        .into_iter()
        .filter(|(_, package)| !NEED_A_TOOLCHAIN.iter().any(|name| package.ends_with(name)))
        .map(as_user)
        .collect();
    one(
        tally,
        "unit tests as orbit-test",
        &mut commands.iter_mut().collect::<Vec<_>>(),
    )
}

/// Executable and package directory of each test binary that cargo names.
fn test_binaries(messages: &[u8]) -> BTreeSet<(PathBuf, PathBuf)> {
    let lines = messages.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| {
            let message: Value = serde_json::from_slice(line).ok()?;
            // A procedural macro's tests need the compiler's own libraries.
            let kinds = message["target"]["kind"].as_array()?;
            let test = message["profile"]["test"].as_bool()?
                && !kinds.iter().any(|kind| kind == "proc-macro");
            let manifest = PathBuf::from(message["manifest_path"].as_str()?);
            let executable = PathBuf::from(message["executable"].as_str()?);
            test.then(|| Some((executable, manifest.parent()?.to_owned())))?
        })
        .collect()
}

fn as_user((executable, package): (PathBuf, PathBuf)) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=orbit-test",
            "--regid=orbit-test",
            "--init-groups",
            "--inh-caps=-all",
            "--reset-env",
            "--",
        ])
        .arg("env")
        // insta asks cargo for these two otherwise, and this user has no cargo.
        .arg(format!(
            "INSTA_WORKSPACE_ROOT={}",
            crate::workspace().display()
        ))
        .arg(format!("CARGO_MANIFEST_DIR={}", package.display()))
        .arg("INSTA_UPDATE=no")
        .arg(executable)
        .current_dir(package);
    command
}

#[cfg(test)]
mod tests {
    use super::test_binaries;

    #[test]
    fn finds_test_binaries_among_cargos_messages() {
        let messages = br#"{"reason":"compiler-artifact","manifest_path":"/w/a/Cargo.toml","target":{"kind":["lib"]},"profile":{"test":true},"executable":"/t/a-1"}
{"reason":"compiler-artifact","manifest_path":"/w/b/Cargo.toml","target":{"kind":["bin"]},"profile":{"test":false},"executable":"/t/b"}
{"reason":"compiler-artifact","manifest_path":"/w/c/Cargo.toml","target":{"kind":["lib"]},"profile":{"test":true},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/w/d/Cargo.toml","target":{"kind":["proc-macro"]},"profile":{"test":true},"executable":"/t/d-1"}
{"reason":"build-finished","success":true}
"#;
        let found = test_binaries(messages);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("/t/a-1".into(), "/w/a".into())]
        );
    }
}
