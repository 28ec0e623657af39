//! `cargo orbit runner`: what cargo, nextest, rustdoc or an editor starts instead of a program.
//!
//! It puts that program into a fresh container and ends as the program ended, so that whoever started it prints
//! about it what it always prints. During `cargo orbit test` it is told what to do; else it [finds out](alone).

pub(crate) mod alone;
mod doctest;
mod ended;
mod host;
pub(crate) mod keeper;
pub(crate) mod kept;
mod which;

use std::{
    env,
    ffi::OsString,
    path::{self, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use rustix::process::{
    PidfdFlags, Resource, Rlimit, Signal, getpid, getrlimit, kill_process, pidfd_open,
    set_parent_process_death_signal, setrlimit,
};

use self::ended::Ended;
use crate::{
    exit,
    test::{
        environment,
        event::{BinaryId, Used},
        isolate::Program,
        session::{Guest, NotRun, Ran, Report},
    },
};

/// Runs one program in a fresh container: a runner for Cargo's setting `target.TRIPLE.runner`.
///
/// `cargo orbit env` prints what to set. Settings come from the configuration, and from variables ORBIT_*.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A word to start the program through, such as an emulator; the user's own runner, word by word.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    through: Vec<OsString>,

    /// The program and its arguments.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "PROGRAM"
    )]
    command: Vec<OsString>,
}

/// Runs the program of `args` in a container, to its end.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match env::var(environment::SESSION) {
        Ok(address) => in_session(args, &address),
        Err(_) => alone::run(args.through, args.command),
    }
}

/// Runs it as the `cargo orbit test` at `address` says.
fn in_session(args: Args, address: &str) -> anyhow::Result<ExitCode> {
    // Cargo does not pass on the signal that ends it: without this a test would outlive it.
    set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot ask to be ended together with cargo")?;
    let guest = Guest::join(address)?;
    // Nor does rustdoc know when `cargo orbit test` is gone.
    let host = pidfd_open(guest.host, PidfdFlags::empty()).context("cannot watch the session")?;
    alone::end_with(host).context("cannot watch the session")?;

    let binary = path::absolute(PathBuf::from(&args.command[0])).context("the test program")?;
    let here = env::current_dir().context("the directory to run the test program in")?;
    let (which, settings) =
        alone::settings(&guest.session.settings, &binary, &here, &args.command[1..])?;
    let program = Program {
        command: args.through.into_iter().chain(args.command).collect(),
        working_dir: here,
        variables: environment::of_test(
            env::vars_os(),
            &guest.session.host_variables,
            &settings.variables(),
        ),
        binary: binary.clone(),
    };
    let sandbox = alone::sandbox_over(&guest.session.view, &settings, program);
    let sandbox = alone::recorded(sandbox, &settings);
    match doctest::run(sandbox, settings.timeout()) {
        Ok((outcome, timed_out)) => {
            let ended = Ended::of(&outcome, timed_out, &settings);
            ended.tell();
            guest.report(&Report::Ran(Ran {
                binary: BinaryId(which.binary_id),
                used: Used::of(&outcome.usage),
                verdict: ended.verdict,
                leaked: ended.leaked,
                denied: ended.denied,
            }))?;
            ended.signal.into_iter().for_each(end_by_signal);
            Ok(ended.code.into())
        }
        Err(error) => {
            tell!("orbit: {error}");
            guest.report(&Report::NotRun(NotRun {
                program: binary,
                why: error.to_string(),
            }))?;
            Ok(exit::of_error(&error).into())
        }
    }
}

/// Ends this process as the program ended, so that cargo can say `signal: 6, SIGABRT`.
///
/// Returns where the signal does not end it; the exit code must say it then.
fn end_by_signal(number: i32) {
    let Some(signal) = Signal::from_named_raw(number) else {
        return;
    };
    // The program has left its core where cores are asked for; a second one, of this process, helps nobody.
    let no_core = Rlimit {
        current: Some(0),
        ..getrlimit(Resource::Core)
    };
    if setrlimit(Resource::Core, no_core).is_err() {
        return;
    }
    // Twice: Rust's own handler of SIGSEGV and SIGBUS, for stack overflows, only takes itself away at first.
    for _ in 0..2 {
        if kill_process(getpid(), signal).is_err() {
            return;
        }
    }
}
