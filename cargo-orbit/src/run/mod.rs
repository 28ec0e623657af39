//! `cargo orbit run`: one program in a throwaway container, in the foreground.
//!
//! Flags become a [`SandboxBuilder`] without IO ([`sandbox`]); this file must not know how a sandbox is made.

pub(crate) mod args;
mod terminal;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use orbit::{
    Init, Network, NetworkMode, Outcome, Output, PullPolicy, Sandbox, SandboxBuilder, Stdin,
};
use rustix::process::Pid;

use self::{
    args::{Args, Pull},
    terminal::Connection,
};
use crate::{exit, signals, variables};

/// The program where neither `--cmd` nor `--entrypoint` nor `-- CMD` says otherwise.
const DEFAULT_CMD: &str = "sh";

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

    let sandbox = sandbox(args)?.envs(environment);
    let outcome = join(sandbox, args)
        .map_err(Into::into)
        .and_then(|sandbox| in_foreground(sandbox, args.interactive));
    match outcome {
        Ok(outcome) => {
            report(&outcome);
            Ok(exit::of_outcome(&outcome).into())
        }
        Err(error) => match error.downcast::<orbit::Error>() {
            Ok(error) => {
                tell!("orbit: {error}");
                Ok(exit::of_error(&error).into())
            }
            Err(other) => Err(other),
        },
    }
}

/// Runs the sandbox to its end, with its terminal on this one, and with the signals that this process gets.
pub(crate) fn in_foreground(sandbox: SandboxBuilder, interactive: bool) -> anyhow::Result<Outcome> {
    let signals = signals::Taken::new().context("cannot take the signals of this process")?;
    let mut sandbox = sandbox.start()?;
    // Where the program has ended already there is nobody to pass signals on to.
    if let Some(program) = sandbox
        .pid()
        .and_then(|pid| Pid::from_raw(pid.try_into().ok()?))
    {
        signals
            .pass_on_to(program)
            .context("cannot pass signals on to the program")?;
    }
    let terminal = match sandbox.take_terminal() {
        Some(program) => Some(
            Connection::new(program, interactive)
                .context("cannot connect this terminal to the program's")?,
        ),
        None => None,
    };
    let outcome = sandbox.wait()?;
    if let Some(terminal) = terminal {
        terminal.finish();
    }
    Ok(outcome)
}

/// Says what the program's own output cannot: limits that were not kept, and those it ran into.
pub(crate) fn report(outcome: &Outcome) {
    for warning in &outcome.warnings {
        tell!("orbit: warning: {warning}");
    }
    if matches!(outcome.status, orbit::Status::OomKilled { .. }) {
        tell!("orbit: {}", outcome.status);
    }
    for denied in outcome.denied() {
        tell!("orbit: refused {denied}");
    }
    for note in &outcome.notes {
        // Being slowed down is what was asked for.
        if !matches!(note, orbit::Note::Throttled { .. }) {
            tell!("orbit: {note}");
        }
    }
}

/// What `args` ask for, except its variables, which need the host's.
fn sandbox(args: &Args) -> anyhow::Result<SandboxBuilder> {
    let mut sandbox = Sandbox::builder()
        .unique_name(&args.name)
        .image(&args.image)
        .pull(match args.pull {
            Pull::Missing => PullPolicy::Missing,
            Pull::Always => PullPolicy::Always,
            Pull::Never => PullPolicy::Never,
        })
        .read_only(args.read_only)
        .network(mode(args)?)
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
    if let Some(name) = &args.bridge {
        sandbox = sandbox.bridge(name);
    }
    if let Some(subnet) = args.bridge_cidr {
        sandbox = sandbox.bridge_cidr(&subnet.to_string());
    }
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
    if let Some(limit) = args.memory_high {
        sandbox = sandbox.memory_high(&limit.to_string());
    }
    for limit in &args.io_max {
        let Some((device, rates)) = limit.trim().split_once(' ') else {
            bail!(
                "--io-max {limit}: expected a device or a path, a space, and rates, such as \"/srv wbps=1M\""
            );
        };
        sandbox = sandbox.io_max(device, rates.trim_start());
    }
    // `max` is no limit: it must work where limits cannot be kept.
    if args.cpu.quota_us().is_some() {
        sandbox = sandbox.cpu(&args.cpu.to_string());
    }
    if let Some(cpus) = &args.cpuset_cpus {
        sandbox = sandbox.cpuset(cpus);
    }
    if let Some(limit) = args.pids_limit {
        sandbox = sandbox.pids(limit);
    }
    if let Some(limit) = args.disk {
        sandbox = sandbox.disk(&limit.to_string());
    }
    sandbox = args
        .ulimit
        .iter()
        .fold(sandbox, |sandbox, limit| sandbox.ulimit_str(limit));
    sandbox = sandbox.best_effort(args.best_effort);
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
    sandbox = args.publish.iter().fold(sandbox, SandboxBuilder::publish);
    sandbox = args
        .network_alias
        .iter()
        .fold(sandbox, SandboxBuilder::network_alias);
    if !args.egress.is_empty() {
        sandbox = sandbox.egress(&args.egress.join(","));
    }
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

fn mode(args: &Args) -> anyhow::Result<NetworkMode> {
    let bridge_asked = args.bridge.is_some() || args.bridge_cidr.is_some();
    let named = matches!(args.network, Some(args::Network::Named(_)));
    if args.subnet.is_some() && !named {
        bail!(
            "--subnet describes the network that --network names; for a bridge, give --bridge-cidr"
        );
    }
    let asked = args.network.as_ref().map(|network| match network {
        args::Network::Mode(mode) => mode.clone(),
        // Beside the network, loopback.
        args::Network::Named(_) => NetworkMode::None,
    });
    match (asked, bridge_asked) {
        (None, true) | (Some(NetworkMode::Bridge), _) => Ok(NetworkMode::Bridge),
        (Some(_), true) => bail!(
            "--bridge and --bridge-cidr describe a bridge, but --network asks for another network; \
             leave one of them out"
        ),
        (asked, false) => Ok(asked.unwrap_or_default()),
    }
}

/// Puts the sandbox on the network that is named, where one is.
fn join(sandbox: SandboxBuilder, args: &Args) -> Result<SandboxBuilder, orbit::Error> {
    let Some(args::Network::Named(name)) = &args.network else {
        return Ok(sandbox);
    };
    let mut network = Network::builder().name(name).shared(true);
    if let Some(subnet) = args.subnet {
        network = network.subnet(&subnet.to_string());
    }
    Ok(sandbox.network(&network.create()?))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn parse(line: &str) -> Args {
        let words = shell_words::split(&format!("cargo-orbit run {line}")).unwrap();
        match Cli::<Verb>::try_parse_from(words).unwrap().verb {
            Verb::Run(args) => *args,
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_original() {
        let args = parse("");
        assert_eq!(
            (args.image.as_str(), args.name.as_str()),
            ("busybox", "myctr")
        );
        assert_eq!(command(&args), ["sh"]);
        assert_eq!(args.cpu.quota_us(), None);
        assert_eq!(mode(&args).unwrap(), NetworkMode::None);
        assert!(!args.tty && !args.interactive && !args.read_only && !args.no_init);
    }

    #[test]
    fn the_program_is_what_was_said_most_plainly() {
        let said = |line| command(&parse(line));
        assert_eq!(said("--cmd 'echo \"a b\"'"), ["echo", "a b"]);
        assert_eq!(
            said("--cmd sh -- echo 'a b' --image"),
            ["echo", "a b", "--image"]
        );
        assert!(said("--entrypoint /bin/x").is_empty());
        assert_eq!(said("--entrypoint /bin/x --cmd 'a b'"), ["a", "b"]);
        // The image's entrypoint is taken away: something must run all the same.
        assert_eq!(said("--entrypoint ''"), ["sh"]);
    }

    #[test]
    fn lists_take_commas_and_repetition() {
        let args = parse("--publish 8080:80,4443:443 --publish 1:1 --cap-add A,B --cap-drop ALL");
        assert_eq!(args.publish, ["8080:80", "4443:443", "1:1"]);
        assert_eq!(
            (args.cap_add, args.cap_drop),
            (vec!["A".into(), "B".into()], vec!["ALL".to_owned()])
        );
    }

    #[test]
    fn a_bridge_is_asked_for_by_describing_it() {
        let asked = |line| mode(&parse(line));
        assert_eq!(asked("--bridge myruntime0").unwrap(), NetworkMode::Bridge);
        assert_eq!(
            asked("--bridge-cidr 172.25.0.0/16").unwrap(),
            NetworkMode::Bridge
        );
        assert_eq!(asked("--network host").unwrap(), NetworkMode::Host);
        assert!(asked("--network none --bridge myruntime0").is_err());
        assert_eq!(asked("--network lab").unwrap(), NetworkMode::None);
        assert!(asked("--network lab --bridge myruntime0").is_err());
        assert!(asked("--network lab --subnet 10.9.0.0/24").is_ok());
        assert!(asked("--network bridge --subnet 10.9.0.0/24").is_err());
    }

    #[test]
    fn flags_may_be_written_together() {
        let args =
            parse("-it -v /a:/b:ro -e A=1 -e B -u 1000:1000 -w /b --timeout 1m30s --memory 100M");
        assert!(args.interactive && args.tty);
        assert_eq!(args.mount, [orbit::Mount::bind_read_only("/a", "/b")]);
        assert_eq!(args.env.len(), 2);
        assert_eq!(args.timeout, Some(std::time::Duration::from_secs(90)));
        assert_eq!(args.memory, Some(orbit::Bytes::mib(100)));
    }

    #[test]
    fn limits_have_the_names_of_docker() {
        let args = parse(
            "--pids-limit 64 --cpuset-cpus 0-1 --disk 256M --ulimit nofile=64:128 --ulimit core=0 --best-effort",
        );
        assert_eq!(
            (args.pids_limit, args.disk),
            (Some(64), Some(orbit::Bytes::mib(256)))
        );
        assert_eq!(args.cpuset_cpus.as_deref(), Some("0-1"));
        assert_eq!(args.ulimit, ["nofile=64:128", "core=0"]);
        assert!(args.best_effort && !parse("").best_effort);
    }

    #[test]
    fn a_faulty_text_is_told_with_what_was_expected() {
        let refused = |line: &str| {
            let words = shell_words::split(&format!("cargo-orbit run {line}")).unwrap();
            Cli::<Verb>::try_parse_from(words).unwrap_err().to_string()
        };
        insta::assert_snapshot!(refused("--memory 10Q"));
        insta::assert_snapshot!(refused("-v /a"));
        insta::assert_snapshot!(refused("-e =x"));
        insta::assert_snapshot!(refused("--timeout soon"));
    }
}
