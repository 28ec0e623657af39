//! The runner on its own: started by `cargo test`, `cargo nextest run`, `cargo bench`, `cargo run` or an editor,
//! because Cargo's setting `target.TRIPLE.runner` names it.
//!
//! What it has to know, it finds out by itself, and fast: under nextest it starts once for each test.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::process::parent_id},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
};

use anyhow::Context as _;
use orbit::{Outcome, SandboxBuilder};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    end_by_signal,
    ended::Ended,
    host,
    keeper::{self, Run},
    kept,
    which::Which,
};
use crate::{
    config::{Config, args::SettingsArgs, settings::Settings},
    env::is_runner,
    exit,
    services::{Needed, Services},
    signals,
    test::{
        environment,
        isolate::{self, Program, View},
    },
};

/// Runs `command` in a sandbox of its own, to its end.
pub(super) fn run(through: Vec<OsString>, command: Vec<OsString>) -> anyhow::Result<ExitCode> {
    end_with_parent().context("cannot watch who started this")?;
    let signals = signals::Taken::new().context("cannot take the signals of this process")?;
    let binary = std::path::absolute(PathBuf::from(&command[0])).context("the program")?;
    let here = env::current_dir().context("the directory to run the program in")?;
    let package = package(&binary, &here);
    let target_directory = target_directory(&binary, &package);
    let known = kept::known(&package, target_directory.as_deref())?;
    let config = Config::load(&known.workspace, &SettingsArgs::default(), env::vars_os())?;
    let which = Which::find(&known.workspace, &package, &binary, &command[1..]);
    let settings = config.settings(&which.facts());
    let services = Services::new(config.services());
    // Whoever only lists its tests needs nothing for it.
    let is_listing = command.iter().any(|word| word == "--list");
    let needed = if is_listing || which.is_doctest() || settings.services.is_empty() {
        Ok(Needed::default())
    } else {
        match Run::of(which.test.as_deref()) {
            Ok(Some(run)) => {
                let from = (package.as_path(), target_directory.as_deref());
                keeper::need(&run, &config, &settings, &known.workspace.root, from)
            }
            // A signal ends this process meanwhile, and with it what it has started.
            Ok(None) => services.need(&settings, &|_| Box::new(|| ())),
            Err(orphaned) => Err(orphaned.to_string()),
        }
    };
    let needed = match needed {
        Ok(needed) => needed,
        Err(why) => {
            tell!("orbit: {why}");
            return Ok(exit::SETUP_FAILED.into());
        }
    };

    let given: Vec<(OsString, OsString)> = env::vars_os()
        .filter(|(name, value)| !is_runner(name, value))
        .collect();
    let program = Program {
        command: through.into_iter().chain(command).collect(),
        variables: environment::of_test(
            given.iter().cloned(),
            &host::variables(&given),
            &settings.variables(),
        ),
        binary,
        working_dir: here,
    };
    let sandbox = recorded(sandbox_over(&known.view, &settings, program), &settings);
    let mut sandbox = needed.give_to(sandbox, &settings);
    // Of several tests nobody knows here which is running.
    if let (Some(limit), Some(_)) = (settings.timeout(), &which.test) {
        sandbox = sandbox.timeout(limit);
    }
    match to_its_end(sandbox, &signals, &needed) {
        Ok(outcome) => {
            if !outcome.success() {
                needed.ended().iter().for_each(|how| tell!("orbit: {how}"));
            }
            let ended = Ended::of(&outcome, None, &settings);
            ended.tell();
            // A signal would leave its place on a network to be cleared away by others.
            drop(needed);
            ended.signal.into_iter().for_each(end_by_signal);
            Ok(ended.code.into())
        }
        Err(Failed::Orbit(error)) => {
            tell!("orbit: {error}");
            Ok(exit::of_error(&error).into())
        }
        Err(Failed::Watch(error)) => Err(error),
    }
}

/// Which program `binary` is, and what holds for it, when `flags` were given.
pub(super) fn settings(
    flags: &SettingsArgs,
    binary: &Path,
    here: &Path,
    arguments: &[OsString],
) -> anyhow::Result<(Which, Arc<Settings>)> {
    let package = package(binary, here);
    let known = kept::known(&package, target_directory(binary, &package).as_deref())?;
    let config = Config::load(&known.workspace, flags, env::vars_os())?;
    let which = Which::find(&known.workspace, &package, binary, arguments);
    let settings = config.settings(&which.facts());
    Ok((which, settings))
}

/// The sandbox for a program that needs to see `shown`.
pub(crate) fn sandbox_over(
    shown: &View,
    settings: &Settings,
    mut program: Program,
) -> SandboxBuilder {
    let image = settings.image().is_some();
    // Another user's is found in the password file, as the caller's would be if that were root.
    if let (false, None, Some(home)) = (image, settings.user(), &shown.home) {
        let variable = program.variables.entry("HOME".into());
        variable.or_insert_with(|| home.clone().into());
    }
    // Over an image there is nothing of the host's but the work.
    let view = if image {
        View::default()
    } else {
        shown.clone()
    };
    let directory = program.binary.parent().map(Path::to_owned);
    let work = &shown.work;
    let mut sandbox = isolate::sandbox(&view, program);
    if image {
        let outside = directory.filter(|path| !work.iter().any(|shown| path.starts_with(shown)));
        for path in work.iter().chain(&outside) {
            sandbox = sandbox.mount(orbit::Mount::overlay(path, path));
        }
    }
    settings.apply(sandbox)
}

/// Where it tries to reach is recorded, but for who is on the host's network, and refused nothing.
pub(super) fn recorded(sandbox: SandboxBuilder, settings: &Settings) -> SandboxBuilder {
    if settings.is_on_host_network() {
        sandbox
    } else {
        sandbox.record_denied(true)
    }
}

enum Failed {
    Orbit(orbit::Error),
    Watch(anyhow::Error),
}

fn to_its_end(
    sandbox: SandboxBuilder,
    signals: &signals::Taken,
    needed: &Needed,
) -> Result<Outcome, Failed> {
    let mut sandbox = sandbox.start().map_err(Failed::Orbit)?;
    let killer = sandbox.killer().map_err(Failed::Orbit)?;
    needed
        .watch(move || killer.kill())
        .context("cannot watch the services")
        .map_err(Failed::Watch)?;
    let pid = sandbox
        .pid()
        .and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    // Where the program has ended already there is nobody to pass signals on to.
    if let Some(pid) = pid {
        signals
            .pass_on_to(pid)
            .context("cannot pass signals on to the program")
            .map_err(Failed::Watch)?;
    }
    sandbox.wait().map_err(Failed::Orbit)
}

/// The directory of the package that a program belongs to: cargo and nextest say; else the manifest nearest to where
/// it was started, or to where it lies.
fn package(binary: &Path, here: &Path) -> PathBuf {
    let said = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let has_manifest = |directory: &&Path| directory.join("Cargo.toml").is_file();
    let found = |from: &Path| from.ancestors().find(has_manifest).map(Path::to_owned);
    said.filter(|directory| has_manifest(&directory.as_path()))
        .or_else(|| found(here))
        .or_else(|| found(binary))
        .unwrap_or_else(|| here.to_owned())
}

/// Cargo marks its target directory. A doctest lies elsewhere, but cargo's libraries do not.
fn target_directory(binary: &Path, package: &Path) -> Option<PathBuf> {
    let is_marked = |directory: &&Path| directory.join("CACHEDIR.TAG").is_file();
    let above = |path: &Path| path.ancestors().find(is_marked).map(Path::to_owned);
    let libraries = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    above(binary)
        .or_else(|| env::var_os("OUT_DIR").and_then(|path| above(Path::new(&path))))
        .or_else(|| env::split_paths(&libraries).find_map(|path| above(&path)))
        .or_else(|| {
            package
                .ancestors()
                .map(|directory| directory.join("target"))
                .find(|directory| is_marked(&directory.as_path()))
        })
}

/// Ends this process when the one that started it does, however it does, and with it the sandbox. Not by
/// PR_SET_PDEATHSIG, which is about the thread that started it: nextest has many, and they come and go.
fn end_with_parent() -> io::Result<()> {
    let Some(pid) = Pid::from_raw(parent_id().try_into().unwrap_or(0)) else {
        // It has ended, or is outside of this pid namespace, where nobody can see it.
        return Ok(());
    };
    let parent = pidfd_open(pid, PidfdFlags::empty())?;
    if parent_id() != u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0) {
        return Err(io::Error::other("it has ended"));
    }
    end_with(parent)
}

/// Ends this process when that one does.
pub(super) fn end_with(process: OwnedFd) -> io::Result<()> {
    thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            loop {
                let mut polled = [PollFd::new(&process, PollFlags::IN)];
                if poll(&mut polled, None).is_ok_and(|ready| ready > 0) {
                    std::process::exit(exit::SETUP_FAILED.into());
                }
            }
        })?;
    Ok(())
}

/// The variables that a program would see, for whoever only wants to know.
pub(crate) fn placeholder(binary: PathBuf, working_dir: PathBuf, test: Option<&str>) -> Program {
    let mut command = vec![binary.clone().into_os_string()];
    if let Some(test) = test {
        command.extend(["--exact", test].map(OsString::from));
    }
    Program {
        command,
        binary,
        working_dir,
        variables: BTreeMap::new(),
    }
}
