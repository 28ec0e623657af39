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
mod recorded;
mod script;
mod systemd;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{suites::cargo_test, workspace};

use script::{Job, Said, Who};

/// How long everything may take, the boot included: four times what it takes beside the other suites on two processors.
const DEADLINE: Duration = Duration::from_secs(2400);

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

/// Builds the tests of limits and the whole sandbox suite, and runs them as everyone they are for. `filter` is passed
/// on to them.
///
/// Each line that the tests print is shown to `see`. Whether all passed.
///
/// # Errors
/// Where there is no machine to run them in, or it does not end in time.
pub(crate) fn tests(filter: &[String], see: &mut dyn FnMut(&str)) -> Result<bool> {
    if matches!(filter, [word] if word == SYSTEMD) {
        return run(&[under_systemd(test_binary("limits")?)], see);
    }
    let mut jobs = limits(filter)?;
    jobs.extend(suites(filter)?);
    run(&jobs, see)
}

/// Each alone, as they measure time.
fn limits(filter: &[String]) -> Result<Vec<Job>> {
    let binary = test_binary("limits")?;
    let job = |who| Job::new(who, binary.clone(), filter.to_vec());
    let mut jobs: Vec<Job> = Who::ALL.into_iter().map(job).collect();
    // The cgroup of this one is nobody's to divide, and limits are kept all the same.
    if filter.is_empty() && systemd::is_here() {
        jobs.push(under_systemd(binary.clone()));
    }
    let attribute = test_binary("attribute_limits")?;
    for who in Who::ALL {
        let mut arguments = vec!["--include-ignored".to_owned()];
        // Nobody keeps the others for it, which is an error that the tests of limits look at.
        arguments.extend((who == Who::Undelegated).then(|| "best_effort".to_owned()));
        arguments.extend(filter.iter().cloned());
        jobs.push(Job::new(who, attribute.clone(), arguments));
    }
    // Some of them once more at the top of a container's tree, in which the processes are that divide it.
    if filter.is_empty() {
        for (who, name) in [
            (Who::Root, "container"),
            (Who::Delegated, "container-of-user"),
        ] {
            let few = vec!["killed".to_owned()];
            let job = Job::new(who, binary.clone(), few).boxed(name);
            jobs.push(job.env("ORBIT_TESTS_AS", name));
        }
    }
    Ok(jobs)
}

/// The filter that means this job alone.
const SYSTEMD: &str = "systemd";

fn under_systemd(limits: PathBuf) -> Job {
    // It writes to a terminal there.
    let few = vec!["killed".to_owned(), "--color=never".to_owned()];
    Job::new(Who::Undelegated, limits, few).with_systemd(SYSTEMD)
}

/// The whole sandbox suite once: as a user whose cgroup is delegated, and at the same time, as root, the cases that are
/// root's alone.
///
/// An emulated processor is slow, and what differs for each of the identities has little to do with control groups: the
/// suite on this machine runs as all of them.
///
/// A compiler is too much for an emulated processor, so what runs cargo is skipped, by name.
fn suites(filter: &[String]) -> Result<Vec<Job>> {
    let binary = test_binary("e2e")?;
    let cargo_orbit = cargo_orbit()?;
    let mut extra = vec![cargo_orbit.clone()];
    extra.extend(
        ["busybox", "layers", "redis"].map(|name| workspace().join("target/images").join(name)),
    );
    // A client of registries wants some, though the registry here has none.
    extra.push("/etc/ssl/certs/ca-certificates.crt".into());
    extra.retain(|path| path.exists());
    let recorded = recorded::cargo(&directory())?;
    extra.extend(recorded.files);
    let halves = [
        (Who::Root, "suite-as-root", "--skip=::as_user"),
        (Who::Delegated, "suite", "--skip=::as_root"),
    ];
    let job = |(who, name, skip): (Who, &str, &str)| {
        let mut arguments = vec![skip.to_owned()];
        arguments.extend(filter.iter().cloned());
        Job::new(who, binary.clone(), arguments)
            .boxed(name)
            .env("ORBIT_TESTS_ONCE", "1")
            .env("ORBIT_TESTS_CARGO_ORBIT", cargo_orbit.display().to_string())
            .env(
                "ORBIT_TESTS_WITHOUT_TOOLCHAIN",
                "runs cargo, which is too slow on an emulated processor",
            )
            .env(
                "ORBIT_TESTS_RECORDED_CARGO",
                recorded.directory.display().to_string(),
            )
            .env("ORBIT_TESTS_PATIENCE", "4")
            .extra(extra.clone())
    };
    Ok(halves.into_iter().map(job).collect())
}

/// Runs a program once in the machine, as root: `e2e`, with whatever else it needs in `extra`, at the same paths.
///
/// # Errors
/// As [`tests`].
pub(crate) fn once(
    program: &Path,
    arguments: &[String],
    extra: &[PathBuf],
    see: &mut dyn FnMut(&str),
) -> Result<bool> {
    let job = Job::new(Who::Root, program.to_owned(), arguments.to_vec());
    run(&[job.extra(extra.to_vec())], see)
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
    let end = machine.run(DEADLINE, |line| match Said::read(line) {
        Some(Said::Exit(name, code)) => {
            println!(
                "vm: {name} exited with {code}, at {:.1} s",
                started.elapsed().as_secs_f64()
            );
            codes.push(code);
        }
        Some(Said::End) => ended = true,
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
    let output = cargo_test()
        .args(["--no-run", "--test", name])
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

/// The subcommand, built.
fn cargo_orbit() -> Result<PathBuf> {
    // It is built for this test, with the features that all is built with here.
    output(cargo_test().args(["--no-run", "--quiet", "--test", "like_cargo_test"]))?;
    Ok(workspace().join("target/debug/cargo-orbit"))
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
