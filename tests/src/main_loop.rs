//! The main function of the end-to-end tests.
//!
//! Every case runs in a process of its own: this very binary, executed again as the case's identity with
//! a fresh home, temporary directory and cache, while the parent audits the machine around it. One at a
//! time by default, because the audit is of the whole machine.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::{
    Case, Context, LeakAudit, Program, Skip, Who, orbit_cli, packages,
    toolchain::{self, Toolchain, private_mounts},
    world::World,
};

/// Names the case that a re-executed process is to run; its directory is in the other variable.
const CASE: &str = "ORBIT_TESTS_CASE";
const DIRECTORY: &str = "ORBIT_TESTS_DIRECTORY";
/// A case's exit code for "skipped", as automake has it. The reason is the last line of standard output.
const SKIPPED: u8 = 77;
/// Set where there is no cargo, to the reason: cases that need one are skipped with it.
const WITHOUT_TOOLCHAIN: &str = "ORBIT_TESTS_WITHOUT_TOOLCHAIN";
/// How many times its deadline a case may take, where the machine is that much slower than others.
const PATIENCE: &str = "ORBIT_TESTS_PATIENCE";
/// Set where each case runs as one identity alone, an ordinary user where it may run as one, but for those that say
/// otherwise.
const ONCE: &str = "ORBIT_TESTS_ONCE";
/// What of the caller's environment a case sees.
const INHERITED: [&str; 7] = [
    "RUST_BACKTRACE",
    PATIENCE,
    "ORBIT_TESTS_RECORDED_CARGO",
    "ORBIT_IMAGES_DIR",
    "TERM",
    "LANG",
    "NO_COLOR",
];

/// Runs the cases, as `main` of a test target with `harness = false`.
pub fn run(cases: Vec<Case>) -> ExitCode {
    if let (Some(name), Some(directory)) = (env::var_os(CASE), env::var_os(DIRECTORY)) {
        return run_one(&cases, &name.to_string_lossy(), PathBuf::from(directory));
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let stage = if arguments.list {
        Ok(None)
    } else {
        Stage::set().map(Some)
    };
    let stage = match stage {
        Ok(stage) => Arc::new(stage),
        Err(fault) => {
            eprintln!("error: the end-to-end tests cannot start: {fault:#}");
            return ExitCode::from(101);
        }
    };
    let mut trials = Vec::new();
    let times = Arc::new(Mutex::new(Vec::new()));
    let once = env::var_os(ONCE).is_some();
    for case in cases {
        let every = case.identities(once);
        for &who in every {
            let (stage, times, case) = (Arc::clone(&stage), Arc::clone(&times), case.clone());
            trials.push(Trial::ignorable_test(case.name_as(who), move || {
                let stage = stage.as_ref().as_ref().ok_or("listing only")?;
                let started = Instant::now();
                let ended = stage.run(&case, who);
                let took = (started.elapsed(), case.name_as(who));
                times
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(took);
                ended.map_err(|fault| Failed::from(indented(&format!("{fault:#}"))))
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    tell_the_slowest(&mut times.lock().unwrap_or_else(PoisonError::into_inner));
    ExitCode::from(if conclusion.has_failed() { 101 } else { 0 })
}

/// Set in from the lines of the runner's own: what a case shows is often the output of one more test runner, whose verdicts
/// would be taken for ours.
fn indented(message: &str) -> String {
    message.replace('\n', "\n  ")
}

/// Where a run's time goes: it is to stay short.
fn tell_the_slowest(times: &mut [(Duration, String)]) {
    const TOLD: usize = 12;
    const WORTH_TELLING: Duration = Duration::from_secs(3);

    times.sort_by(|a, b| b.cmp(a));
    for (took, name) in times.iter().take(TOLD).filter(|it| it.0 > WORTH_TELLING) {
        println!("{:7.1} s  {name}", took.as_secs_f64());
    }
}

/// How many times as long as elsewhere things may take on this machine.
pub fn patience() -> u32 {
    let times = env::var(PATIENCE).ok();
    times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// What all cases share, made before the first thread starts.
struct Stage {
    exe: PathBuf,
    cargo_orbit: PathBuf,
    patience: u32,
    /// Or why there is none.
    toolchain: Result<Toolchain, String>,
}

impl Stage {
    fn set() -> Result<Self> {
        let cargo_orbit = orbit_cli::binary()?;
        let mut toolchain = match env::var(WITHOUT_TOOLCHAIN) {
            Ok(reason) => Err(reason),
            Err(_) => Ok(Toolchain::of_caller()?),
        };
        if geteuid().is_root() {
            private_mounts()?;
            if let Ok(toolchain) = &mut toolchain {
                *toolchain = toolchain.exposed()?;
            }
        }
        Ok(Self {
            exe: env::current_exe()?,
            cargo_orbit,
            patience: patience(),
            toolchain,
        })
    }

    fn run(&self, case: &Case, who: Who) -> Result<Completion> {
        let missing = packages::missing(case.needs);
        if !missing.is_empty() {
            return Ok(Completion::ignored_with(format!(
                "needs the packages {}",
                missing.join(" ")
            )));
        }
        if let Err(reason) = who.user() {
            return Ok(Completion::ignored_with(format!("{reason:#}")));
        }
        if let (true, Err(reason)) = (case.needs_toolchain, &self.toolchain) {
            return Ok(Completion::ignored_with(reason));
        }
        if let Some(((major, minor), brought)) = case.needs_kernel
            && crate::proc_fs::kernel_version()? < (major, minor)
        {
            return Ok(Completion::ignored_with(format!(
                "needs Linux {major}.{minor}, where {brought}"
            )));
        }
        if case.world.is_some() && !geteuid().is_root() {
            return Ok(Completion::ignored_with("needs root, to make namespaces"));
        }
        who.can_reach(&self.exe)?;

        if let Some(prepare) = &case.prepare {
            prepare(who).context("prepare")?;
        }
        let directory = CaseDirectory::make(who)?;
        let toolchain = self.toolchain_variables(&directory.path().join("home"))?;
        let audit = LeakAudit::adopting(
            [
                directory.path().join("tmp"),
                directory.path().join("cache/v1/tmp"),
            ],
            [directory.path().join("cache/run")],
        );
        let outcome = self.execute(case, who, directory.path(), &toolchain);
        let audited = audit.check();
        if audited.is_err() {
            audit.sweep();
        }
        directory.remove()?;
        match (outcome, audited) {
            (Ok(completion), Ok(())) => Ok(completion),
            (Ok(_), Err(leaks)) => Err(leaks.into()),
            (Err(fault), Ok(())) => Err(fault),
            (Err(fault), Err(leaks)) => Err(anyhow!("{fault:#}\n--- leaks\n{leaks}")),
        }
    }

    /// What a case finds cargo by, and with a `CARGO_HOME` in `home`.
    fn toolchain_variables(&self, home: &Path) -> Result<Vec<(&'static str, OsString)>> {
        let Ok(toolchain) = &self.toolchain else {
            return Ok(vec![("PATH", toolchain::SYSTEM_PATH.into())]);
        };
        Ok(vec![
            ("PATH", toolchain.path()),
            ("CARGO", toolchain.bin().join("cargo").into()),
            ("CARGO_HOME", toolchain.cargo_home(home)?.into()),
        ])
    }

    fn execute(
        &self,
        case: &Case,
        who: Who,
        directory: &Path,
        toolchain: &[(&str, OsString)],
    ) -> Result<Completion> {
        let user = who.user()?;
        let world = case
            .world
            .map(|server| World::make(&self.exe, server))
            .transpose()?;
        let mut command = who.command(&self.exe)?;
        if let Some(world) = &world {
            command = world.wrap(&command, &directory.join("work"));
        }
        // Errors say what was done; where they were made is for the asking.
        command.env_clear().env("RUST_LIB_BACKTRACE", "0");
        for name in INHERITED {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .current_dir(directory.join("work"))
            .env(CASE, case.name_as(who))
            .env(DIRECTORY, directory)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name)
            .env("HOME", directory.join("home"))
            .env("TMPDIR", directory.join("tmp"))
            .env("ORBIT_CACHE_DIR", directory.join("cache"))
            .envs(toolchain.iter().map(|(name, value)| (*name, value)))
            .env(orbit_cli::VARIABLE, &self.cargo_orbit)
            // What cargo builds in a case is run once.
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        let finished = Program::from_command(command)
            .deadline(case.deadline * self.patience)
            .run()?;
        match finished.status.code() {
            Some(0) if finished.output_held_open => {
                bail!("something held the output open: {finished}")
            }
            Some(0) => {
                // Figures, as a rule: what a case measured.
                for line in finished.stdout.lines() {
                    println!("    {}: {line}", case.name_as(who));
                }
                Ok(Completion::Completed)
            }
            Some(code) if code == i32::from(SKIPPED) => Ok(Completion::ignored_with(
                finished.stdout.lines().next_back().unwrap_or_default(),
            )),
            _ => bail!("{finished}"),
        }
    }
}

/// The directory of one run of one case.
struct CaseDirectory(TempDir);

impl CaseDirectory {
    fn make(who: Who) -> Result<Self> {
        let user = who.user()?;
        // Short, so that the paths of sockets in it fit in 108 bytes; on disk, as a real cache is.
        let directory = TempDir::with_prefix_in("oe.", "/var/tmp")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        for part in Context::PARTS {
            let path = directory.path().join(part);
            fs::create_dir(&path)?;
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        }
        Ok(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// As an ordinary user this fails where a cache holds files of subordinate ids, or directories that
    /// may not be written to: then they stay, and their place is printed.
    fn remove(self) -> Result<()> {
        let path = self.path().to_owned();
        match self.0.close() {
            Err(fault) if geteuid().is_root() => {
                Err(fault).with_context(|| format!("remove {}", path.display()))
            }
            Err(fault) => {
                eprintln!("note: {} stays: {fault}", path.display());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// The re-executed process: runs one case.
fn run_one(cases: &[Case], name: &str, directory: PathBuf) -> ExitCode {
    let found = cases.iter().find_map(|case| {
        let who = Who::from_suffix(name.strip_prefix(&case.name)?.strip_prefix("::")?)?;
        Some((case, who))
    });
    let Some((case, who)) = found else {
        eprintln!("no case {name}");
        return ExitCode::FAILURE;
    };
    match (case.run)(&Context::new(who, directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            if let Some(Skip(reason)) = fault.downcast_ref() {
                println!("{reason}");
                return ExitCode::from(SKIPPED);
            }
            eprintln!("{fault:?}");
            ExitCode::FAILURE
        }
    }
}
