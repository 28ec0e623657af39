//! `cargo orbit shell`: looks into sandboxes that were kept when they failed.
//!
//! The sandbox is made again as it was, over the files that it left, with a shell in place of its program. What is done
//! there is thrown away, so that the next look finds the same.

mod busybox;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    path::Path,
    process::ExitCode,
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use orbit::{Init, Output, SandboxBuilder, Stdin, kept};

use crate::{exit, images::age, run};

const EXAMPLES: &str = "\
Examples:
  cargo orbit test --keep-failed       keep what failing tests leave
  cargo orbit shell                    list what is kept
  cargo orbit shell 3f2a90c1b7d4       look into one of them
  cargo orbit shell 3f2a90c1b7d4 -- cat /tmp/server.log";

/// Opens a shell in a sandbox that was kept when it failed.
///
/// Without an id it lists those there are. The shell sees the files as the failed program left them, with its user, its environment and its limits. What it
/// writes is thrown away when it ends.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The sandbox, as the list names it; as much of its id as tells it from the others.
    #[arg(value_name = "ID")]
    id: Option<String>,

    /// Remove this one.
    #[arg(long, requires = "id", conflicts_with = "command")]
    remove: bool,

    /// Run this in place of a shell.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Lists, removes, or opens.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(asked) = &args.id else {
        return list();
    };
    match begin(asked, args) {
        // What a program that is not there exits with, as in `run`.
        Err(error) if is_missing(&error) => {
            let code = error
                .downcast_ref()
                .map_or(exit::SETUP_FAILED, exit::of_error);
            tell!("orbit: {}", crate::with_causes(&error));
            Ok(code.into())
        }
        other => other,
    }
}

/// Removes or opens the sandbox that was `asked` for.
fn begin(asked: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let found = find(asked)?;
    if args.remove {
        kept::remove(&found.id)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.command.is_empty() {
        return open(&found, &args.command, |builder| builder);
    }
    let own = found.shell.iter().cloned();
    let usual = ["/bin/bash", "/bin/sh"].map(OsString::from);
    for shell in own.chain(usual) {
        match open(&found, &[shell], |builder| builder) {
            Err(error) if is_missing(&error) => {}
            other => return other,
        }
    }
    let Some(busybox) = busybox::find() else {
        bail!(
            "the sandbox {} has no shell of its own, and this machine no static busybox to lend it; \
             install one (package busybox-static)",
            found.id
        );
    };
    tell!("orbit: there is no shell in it; this is busybox, lent from this machine");
    let words = [busybox::program().into(), "sh".into()];
    open(&found, &words, |builder| busybox::lend(builder, &busybox))
}

fn list() -> anyhow::Result<ExitCode> {
    let kept = kept::list()?;
    if kept.is_empty() {
        tell!("orbit: no sandbox is kept; `cargo orbit test --keep-failed` keeps those that fail");
    }
    for one in kept {
        let since = age(one.made, SystemTime::now());
        crate::write_out(&format!(
            "{} {} ({}), {since} ago, {} bytes\n",
            one.id,
            one.title.escape_debug(),
            one.image,
            one.bytes
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The one whose id begins with `asked`.
fn find(asked: &str) -> anyhow::Result<kept::Kept> {
    let mut found = kept::list()?
        .into_iter()
        .filter(|one| one.id.starts_with(asked));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => {
            bail!("more than one kept sandbox has an id that begins with {asked}")
        }
        _ => bail!("no sandbox {asked} is kept; `cargo orbit shell` lists those there are"),
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<orbit::Error>();
    error.is_some_and(|error| error.is_program_not_found() || error.is_program_not_executable())
}

fn open(
    kept: &kept::Kept,
    words: &[OsString],
    change: impl FnOnce(SandboxBuilder) -> SandboxBuilder,
) -> anyhow::Result<ExitCode> {
    let on_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let mut sandbox = kept::builder(&kept.id)
        .with_context(|| format!("cannot make the sandbox {} again", kept.id))?
        .entrypoint(words)
        .init(Init::Orbit)
        .tty(on_terminal)
        .stdin(Stdin::Inherit)
        .stdout(Output::Inherit)
        .stderr(Output::Inherit);
    if let Some(terminal) = std::env::var_os("TERM").filter(|_| on_terminal) {
        sandbox = sandbox.env("TERM", terminal);
    }
    let outcome = run::in_foreground(change(sandbox), on_terminal)?;
    run::report(&outcome);
    Ok(exit::of_outcome(&outcome).into())
}

/// Whether the file at `path` is there, for everybody to run.
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o1 != 0)
}
