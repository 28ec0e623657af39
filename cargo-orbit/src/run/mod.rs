//! `cargo orbit run`: one program in a throwaway container, in the foreground.
//!
//! Flags become a [`SandboxBuilder`] without IO ([`sandbox`]); this file must not know how a sandbox is made.

pub(crate) mod args;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    net::Ipv4Addr,
    process::ExitCode,
};

use anyhow::bail;
use orbit::{Init, NetworkMode, Output, PullPolicy, Sandbox, SandboxBuilder, Stdin};

use self::args::{Args, Cidr, Pull};
use crate::{exit, variables};

/// The program where neither `--cmd` nor `--entrypoint` nor `-- CMD` says otherwise.
const DEFAULT_CMD: &str = "sh";

const DEFAULT_BRIDGE: &str = "myruntime0";
const DEFAULT_BRIDGE_CIDR: Cidr = Cidr {
    address: Ipv4Addr::new(172, 25, 0, 0),
    prefix: 16,
};

/// Runs what `args` ask for, to its end.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.tty && args.interactive && !io::stdin().is_terminal() {
        bail!(
            "--tty and --interactive were given, but the standard input is not a terminal; \
             leave --tty out where input comes from a pipe or a file"
        );
    }
    let mut environment = Vec::new();
    for file in &args.env_file {
        environment.extend(variables::read_file(file)?);
    }
    environment.extend(args.env.iter().cloned());
    let environment = environment
        .iter()
        .filter_map(|variable| variable.resolve(|name| std::env::var_os(name)));

    let result = in_foreground(sandbox(args)?.envs(environment));
    if let Err(error) = &result {
        eprintln!("orbit: {error}");
    }
    Ok(exit::code(&result).into())
}

/// Waits for the sandbox to end.
///
/// A Ctrl-C at the terminal reaches every process of the foreground's group by itself. Signals that are
/// sent to this process alone are not passed on: it ends, and the sandbox ends with it.
fn in_foreground(sandbox: SandboxBuilder) -> Result<orbit::Outcome, orbit::Error> {
    sandbox.run()
}

/// What `args` ask for, except its variables, which need the host's.
fn sandbox(args: &Args) -> anyhow::Result<SandboxBuilder> {
    let mut sandbox = Sandbox::builder()
        .name(&args.name)
        .image(&args.image)
        .pull(match args.pull {
            Pull::Missing => PullPolicy::Missing,
            Pull::Always => PullPolicy::Always,
            Pull::Never => PullPolicy::Never,
        })
        .read_only(args.read_only)
        .network(network(args)?)
        .init(if args.no_init {
            Init::Program
        } else {
            Init::Orbit
        })
        .tty(args.tty)
        .stdin(if args.interactive {
            Stdin::Inherit
        } else {
            Stdin::Null
        })
        .stdout(Output::Inherit)
        .stderr(Output::Inherit);

    if let Some(program) = &args.entrypoint {
        sandbox = sandbox.entrypoint(Some(program).filter(|program| !program.is_empty()));
    }
    sandbox = sandbox.cmd(command(args));
    if let Some(user) = &args.user {
        sandbox = sandbox.user(user);
    }
    if let Some(name) = &args.hostname {
        sandbox = sandbox.hostname(name);
    }
    if let Some(directory) = &args.workdir {
        sandbox = sandbox.working_dir(directory);
    }
    if let Some(limit) = args.timeout {
        sandbox = sandbox.timeout(limit);
    }
    if let Some(limit) = args.memory {
        sandbox = sandbox.memory(&limit.to_string());
    }
    // `max` is no limit: it must work where limits cannot be kept.
    if args.cpu.quota_us().is_some() {
        sandbox = sandbox.cpu(&args.cpu.to_string());
    }
    sandbox = args
        .mount
        .iter()
        .cloned()
        .fold(sandbox, SandboxBuilder::mount);
    sandbox = args
        .cap_add
        .iter()
        .fold(sandbox, |sandbox, name| sandbox.cap_add(name));
    sandbox = args
        .cap_drop
        .iter()
        .fold(sandbox, |sandbox, name| sandbox.cap_drop(name));
    sandbox = args
        .publish
        .iter()
        .fold(sandbox, |sandbox, ports| sandbox.publish(ports));
    Ok(sandbox)
}

/// What follows `--`, or `--cmd`, or the default; nothing beside an entrypoint that was given alone.
fn command(args: &Args) -> Vec<OsString> {
    match (&args.command[..], &args.cmd, &args.entrypoint) {
        ([], Some(words), _) => words.iter().map(OsString::from).collect(),
        ([], None, Some(program)) if !program.is_empty() => Vec::new(),
        ([], None, _) => vec![DEFAULT_CMD.into()],
        (command, _, _) => command.to_vec(),
    }
}

fn network(args: &Args) -> anyhow::Result<NetworkMode> {
    refuse_other_bridges(args)?;
    let bridge_asked = args.bridge.is_some() || args.bridge_cidr.is_some();
    match &args.network {
        None if bridge_asked => Ok(NetworkMode::Bridge),
        None => Ok(NetworkMode::None),
        Some(NetworkMode::Bridge) => Ok(NetworkMode::Bridge),
        Some(_) if bridge_asked => bail!(
            "--bridge and --bridge-cidr describe a bridge, but --network asks for another network; \
             leave one of them out"
        ),
        Some(mode) => Ok(mode.clone()),
    }
}

/// Refuses a bridge the library cannot make: it has one, and cannot be told of another yet.
fn refuse_other_bridges(args: &Args) -> anyhow::Result<()> {
    if let Some(name) = args
        .bridge
        .as_deref()
        .filter(|name| *name != DEFAULT_BRIDGE)
    {
        bail!(
            "--bridge {name}: there is only the bridge {DEFAULT_BRIDGE} so far; leave --bridge out"
        );
    }
    if args
        .bridge_cidr
        .is_some_and(|cidr| cidr != DEFAULT_BRIDGE_CIDR)
    {
        bail!(
            "--bridge-cidr: the bridge {DEFAULT_BRIDGE} is always 172.25.0.0/16 so far; leave it out"
        );
    }
    Ok(())
}
