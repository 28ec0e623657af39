//! `cargo orbit test`: `cargo test`, with every test program in a fresh container.
//!
//! The parts: [`args`] is what was asked; [`cargo`] starts `cargo test` with [`crate::runner`] before each
//! program; [`session`] carries what they all need; for each program [`environment`] chooses its variables
//! and [`isolate`] its view of the host.

pub(crate) mod args;
mod cargo;
pub(crate) mod environment;
#[allow(
    dead_code,
    reason = "what reports are made from; the engine comes next"
)]
pub(crate) mod event;
pub(crate) mod isolate;
pub(crate) mod session;

use std::{
    collections::BTreeMap,
    env, io,
    os::unix::process::ExitStatusExt as _,
    path::{self, Path, PathBuf},
    process::{ExitCode, ExitStatus},
};

use anyhow::Context as _;
use cargo_config2::Config;
use rustix::process::Pid;

use self::{
    args::Args,
    environment::HostVariables,
    isolate::{Toolchain, View},
    session::{Host, NotRun, Session},
};
use crate::{exit, signals};

/// Builds and runs the tests that `args` ask for.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load().map_err(cargo::CargoError::from)?;
    // A process of the toolchain has to answer it, so it is asked first and needed last.
    let sysroot = cargo::Sysroot::ask(&config)?;
    let targets = cargo::targets(&config, &args.cargo.targets)?;
    let metadata = cargo::metadata(&args.cargo, &targets)?;
    let toolchain = Toolchain::find(sysroot.answer()?, env::home_dir(), |name| env::var_os(name));
    let session = Session {
        view: View::new(&metadata, &toolchain, writable(args)?, Path::exists),
        host_variables: HostVariables::new(env::vars_os()),
        variables: args.env.clone(),
    };
    let mut host = Host::new(&session)?;

    let runner = env::current_exe().context("cannot find the program cargo-orbit itself")?;
    let signals = signals::Taken::new().context("cannot take the signals of this process")?;
    let mut cargo = cargo::test_command(&args.cargo, &runner, &targets)?
        .env(environment::SESSION, host.address())
        .spawn()
        .context("cannot start cargo; is it in PATH?")?;
    signals
        .pass_on_to(Pid::from_child(&cargo))
        .context("cannot pass signals on to cargo")?;
    let status = cargo.wait().context("cannot wait for cargo")?;
    drop(signals);

    let not_run = host.reports()?;
    if not_run.is_empty() {
        return Ok(code(status).into());
    }
    eprint!("\n{}", not_run_text(&not_run));
    Ok(exit::SETUP_FAILED.into())
}

/// What was asked with `--writable`, as whole paths.
fn writable(args: &Args) -> anyhow::Result<Vec<PathBuf>> {
    let absolute = |path: &PathBuf| {
        let found = path::absolute(path).and_then(|path| {
            if path.try_exists()? {
                Ok(path)
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        });
        found.with_context(|| format!("--writable {}", path.display()))
    };
    args.writable.iter().map(absolute).collect()
}

/// Cargo's own exit code; 128 + signal where a signal ended it.
fn code(status: ExitStatus) -> u8 {
    let number = status.code().or(status.signal().map(|signal| 128 + signal));
    number.map_or(exit::CARGO_FAILED, exit::of_number)
}

/// The end of the output where not everything could run: each reason once, however many tests it hit.
fn not_run_text(not_run: &[NotRun]) -> String {
    let mut by_reason: BTreeMap<&str, usize> = BTreeMap::new();
    for report in not_run {
        *by_reason.entry(&report.why).or_default() += 1;
    }
    let reasons: Vec<String> = by_reason
        .iter()
        .map(|(why, count)| format!("  {count} × {}\n", why.replace('\n', "\n      ")))
        .collect();
    let reasons = reasons.concat();
    let programs = match not_run.len() {
        1 => "1 test program".to_owned(),
        count => format!("{count} test programs"),
    };
    format!(
        "orbit: {programs} could not be started in a container and did not run; what is said of the tests \
         above is incomplete:\n{reasons}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once() {
        let not_run = |program: &str, why: &str| NotRun {
            program: program.into(),
            why: why.to_owned(),
        };
        insta::assert_snapshot!(
            not_run_text(&[not_run("/a", "no\nnamespaces"), not_run("/b", "full"), not_run("/c", "full")]),
            @r"
        orbit: 3 test programs could not be started in a container and did not run; what is said of the tests above is incomplete:
          2 × full
          1 × no
              namespaces
        "
        );
    }
}
