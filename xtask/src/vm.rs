//! `cargo xtask vm`: runs tests in a virtual machine whose kernel has cgroup version 2 to itself.
//!
//! The build machine's controllers may be bound to version 1, and a test of limits must neither depend on that nor
//! touch the machine's own cgroups. So: QEMU, Debian's cloud kernel, and a disk that holds the test binaries, what
//! they load, busybox, and three accounts to run them as. Nothing is installed; all lies in `target/vm`.
//!
//! Hardware acceleration is only used after a probe with a deadline, since it can open and then hang; plain
//! emulation takes some seconds to boot.

mod cpio;
mod guest;
mod kernel;
mod qemu;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

pub(crate) use guest::Job;

/// How long everything may take, the boot included.
const DEADLINE: Duration = Duration::from_secs(900);

/// Where all of it lies.
fn directory() -> PathBuf {
    workspace().join("target/vm")
}

/// Why this machine cannot run another, if it cannot.
pub(crate) fn unavailable() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("its kernel is for x86-64 alone".to_owned());
    }
    let packages = [
        (qemu::PROGRAM, "qemu-system-x86"),
        ("mke2fs", "e2fsprogs"),
        ("busybox", "busybox-static"),
    ];
    let is_there = |name: &str| {
        ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|directory| Path::new(directory).join(name).exists())
    };
    if let Some((_, package)) = packages.iter().find(|(name, _)| !is_there(name)) {
        return Some(format!("install the package {package}"));
    }
    // Without a network there may be no kernel.
    kernel::get(&directory())
        .err()
        .map(|fault| format!("there is no kernel for it: {fault:#}"))
}

/// Builds the tests of limits and runs them as everyone they are for. `filter` is passed on to them.
///
/// Each line that the tests print is shown to `see`. Whether all passed.
///
/// # Errors
/// Where there is no machine to run them in, or it does not end in time.
pub(crate) fn limits(filter: &[String], see: &mut dyn FnMut(&str)) -> Result<bool> {
    let binary = test_binary("limits")?;
    let jobs = guest::Who::ALL
        .iter()
        .map(|who| Job::new(*who, binary.clone(), filter.to_vec()));
    run(&jobs.collect::<Vec<_>>(), see)
}

/// Runs a program once in the machine, as root: `e2e`, with whatever else it needs in `extra`, at the same paths.
///
/// # Errors
/// As [`limits`].
pub(crate) fn once(
    program: &Path,
    arguments: &[String],
    extra: &[PathBuf],
    see: &mut dyn FnMut(&str),
) -> Result<bool> {
    let mut job = Job::new(guest::Who::Root, program.to_owned(), arguments.to_vec());
    job.extra = extra.to_vec();
    run(&[job], see)
}

fn run(jobs: &[Job], see: &mut dyn FnMut(&str)) -> Result<bool> {
    let started = Instant::now();
    let kernel = kernel::get(&directory())?;
    let image = guest::disk(&directory(), jobs)?;
    let initramfs = guest::initramfs(&directory(), &kernel)?;
    let acceleration = qemu::acceleration(&directory(), &kernel.image, &initramfs)?;
    let machine = qemu::Machine {
        kernel: kernel.image,
        initramfs,
        disk: Some(image),
        acceleration,
    };
    println!(
        "vm: {} job(s), acceleration {}, prepared in {:.1} s",
        jobs.len(),
        machine.acceleration,
        started.elapsed().as_secs_f64()
    );
    let mut codes = Vec::new();
    let mut ended = false;
    let end = machine.run(DEADLINE, |line| match guest::Said::read(line) {
        Some(guest::Said::Exit(name, code)) => {
            println!(
                "vm: {name} exited with {code}, at {:.1} s",
                started.elapsed().as_secs_f64()
            );
            codes.push(code);
        }
        Some(guest::Said::End) => ended = true,
        None => {
            println!("{line}");
            see(line);
        }
    })?;
    if !ended {
        bail!("the machine stopped ({end}) before all had run; its console is above");
    }
    Ok(codes.len() == jobs.len() && codes.iter().all(|code| *code == 0))
}

/// The executable of a test target of `orbit-tests`, built.
fn test_binary(name: &str) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args([
            "test",
            "--no-run",
            "--package",
            "orbit-tests",
            "--test",
            name,
        ])
        .output()
        .context("start cargo")?;
    // Cargo names what it built: `Executable tests/limits.rs (target/debug/deps/limits-0123)`.
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("the tests do not build:\n{said}");
    }
    let path = said
        .lines()
        .filter(|line| line.trim_start().starts_with("Executable"))
        .find_map(|line| line.rsplit_once('(')?.1.strip_suffix(')'))
        .with_context(|| format!("cargo names no executable:\n{said}"))?;
    Ok(workspace().join(path))
}

/// Runs a command that must succeed, and returns what it wrote.
fn output(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let done = command.output().with_context(|| format!("start {line}"))?;
    if !done.status.success() {
        bail!(
            "{line}: {}\n{}",
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
