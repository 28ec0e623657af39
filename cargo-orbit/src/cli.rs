//! What can be said on the command line: the verbs, and the texts of `--help`.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::{doctor, env, explain, images, run, runner, shell, test};

const EXAMPLES: &str = "\
Examples:
  cargo orbit test                     each test binary in a fresh container
  cargo orbit test -p api --test http  the same, with cargo test's own options
  cargo orbit run -it                  a shell in busybox
  cargo orbit run --image redis:7 --publish 6379:6379 -- redis-server";

/// Runs tests, and OCI images, in throwaway containers: no daemon, no root.
///
/// Whatever runs in a container sees its own files, processes and network, and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "cargo-orbit", bin_name = "cargo orbit", version, after_help = EXAMPLES)]
#[command(styles = colours_of_cargo())]
pub(crate) struct Cli<V: Subcommand = Verb> {
    #[command(subcommand)]
    pub(crate) verb: V,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(Box<run::args::Args>),
    Test(Box<test::args::Args>),
    Pull(images::PullArgs),
    Images(images::ImagesArgs),
    Gc(images::GcArgs),
    Shell(shell::Args),
    Explain(Box<explain::Args>),
    Doctor(doctor::Args),
    Env(env::Args),
    Runner(runner::Args),
    #[command(hide = true)]
    KeepServices(runner::keeper::Args),
}

/// What [`starts_at_once`]: clap makes the arguments of each verb it is told of, for which all of them take it as long
/// as the kernel takes for a sandbox.
#[derive(Debug, Subcommand)]
enum Starting {
    Run(Box<run::args::Args>),
    Runner(runner::Args),
}

/// Whether the verb is one that starts a sandbox at once.
pub(crate) fn starts_at_once(words: &[OsString]) -> bool {
    let verb = words.get(1);
    verb.is_some_and(|verb| verb == "run" || verb == "runner")
}

/// Reads a command line, without the doubled word.
///
/// # Errors
/// What is to be said, where that is not what is to be done: a help, a version, or what is wrong.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Verb, clap::Error> {
    if !starts_at_once(&words) {
        return Ok(Cli::<Verb>::try_parse_from(words)?.verb);
    }
    Ok(match Cli::<Starting>::try_parse_from(words)?.verb {
        Starting::Run(args) => Verb::Run(args),
        Starting::Runner(args) => Verb::Runner(args),
    })
}

/// The colours of cargo's own help, so that `cargo orbit` does not look like a stranger.
fn colours_of_cargo() -> clap::builder::Styles {
    use clap::builder::styling::{AnsiColor, Styles};
    Styles::styled()
        .header(AnsiColor::BrightGreen.on_default().bold())
        .usage(AnsiColor::BrightGreen.on_default().bold())
        .literal(AnsiColor::BrightCyan.on_default().bold())
        .placeholder(AnsiColor::Cyan.on_default())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Help as an 80-column terminal shows it.
    fn help(verb: &[&str]) -> String {
        let mut command = Cli::<Verb>::command().term_width(80);
        command.build();
        let found = verb.iter().fold(&mut command, |command, verb| {
            command.find_subcommand_mut(verb).expect("a verb")
        });
        found.render_long_help().to_string()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::<Verb>::command().debug_assert();
    }

    #[test]
    fn a_verb_by_itself_is_read_as_among_the_others() {
        for line in [
            "run --help",
            "run -h",
            "run --no-such",
            "run --image",
            "run --memory many",
            "run --imgae redis",
            "runner",
            "runner --help",
        ] {
            let words = || ["cargo-orbit"].into_iter().chain(line.split(' '));
            let alone = parse(words().map(OsString::from).collect()).unwrap_err();
            let among = Cli::<Verb>::try_parse_from(words()).unwrap_err();
            assert_eq!(alone.to_string(), among.to_string(), "{line}");
        }
        let words = ["cargo-orbit", "run", "--image", "redis:7"].map(OsString::from);
        assert!(matches!(parse(words.into()), Ok(Verb::Run(_))));
    }

    #[test]
    fn help_of_orbit() {
        insta::assert_snapshot!(help(&[]));
    }

    #[test]
    fn help_of_run() {
        insta::assert_snapshot!(help(&["run"]));
    }

    #[test]
    fn help_of_test() {
        insta::assert_snapshot!(help(&["test"]));
    }
}
