//! `cargo orbit`: tests, and OCI images, in throwaway containers.
//!
//! One file, or directory, for each verb. Cargo starts `cargo-orbit orbit VERB …` for `cargo orbit VERB …`;
//! people may leave the doubled word out. Nothing here isolates anything by itself: the verbs fill an
//! [`orbit::SandboxBuilder`] and turn an [`orbit::Outcome`] into an exit code.

#![forbid(unsafe_code)]

/// Writes a line to standard error. Where that takes nothing, as a full disk, there is nobody to tell; the exit code still
/// says how it went, while `eprintln!` would panic, which exits with 101.
macro_rules! tell {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod cli;
mod config;
mod doctor;
mod env;
mod exit;
mod explain;
mod filter;
mod images;
mod report;
mod run;
mod runner;
mod screen;
mod services;
mod shell;
mod signals;
mod test;
mod variables;

use std::{
    ffi::OsString,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;

use crate::{cli::Verb, report::colour};

fn main() -> ExitCode {
    let words = without_doubled_word(std::env::args_os());
    if will_run(&words) {
        orbit::__private::fork_supervisor();
    }
    let name = words.get(1).cloned();
    let verb = match cli::parse(words) {
        Ok(verb) => verb,
        Err(error) => {
            say(&error);
            return if error.use_stderr() {
                exit::usage(name.as_deref())
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let (result, failed) = match verb {
        Verb::Run(args) => (run::run(&args), exit::SETUP_FAILED),
        Verb::Test(args) => (test::run(&args), exit::CARGO_FAILED),
        Verb::Pull(args) => (images::pull(&args), exit::FAILED),
        Verb::Images(args) => (images::images(&args), exit::FAILED),
        Verb::Gc(args) => (images::gc(&args), exit::FAILED),
        Verb::Shell(args) => (shell::run(&args), exit::SETUP_FAILED),
        Verb::Explain(args) => (explain::run(&args), exit::FAILED),
        Verb::Doctor(args) => (doctor::run(&args), exit::FAILED),
        Verb::Env(args) => (env::run(&args), exit::FAILED),
        Verb::Runner(args) => (runner::run(args), exit::SETUP_FAILED),
        Verb::KeepServices(args) => (runner::keeper::run(&args), exit::FAILED),
    };
    result.unwrap_or_else(|error| {
        tell!("orbit: {}", with_causes(&error));
        ExitCode::from(failed)
    })
}

/// Writes to standard output. Whoever reads it and is gone before its end, as `head` is, has read enough.
///
/// # Errors
/// Where it cannot be written otherwise, as to a full disk.
fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// An error, and of its causes those that it does not tell of by itself.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether the command line is one that will start one sandbox, unless something is wrong with it: then the supervisor
/// starts while the line is read.
fn will_run(words: &[OsString]) -> bool {
    cli::starts_at_once(words)
        && !words
            .iter()
            .take_while(|word| *word != "--")
            .any(|word| word == "--help" || word == "-h")
}

/// Writes a help, a version, or what is wrong with a command line: in one piece, where clap's own way would make a system
/// call of each line.
fn say(error: &clap::Error) {
    let is_terminal = if error.use_stderr() {
        std::io::stderr().is_terminal()
    } else {
        std::io::stdout().is_terminal()
    };
    let text = error.render();
    let text = if colour::wanted(None, |name| std::env::var_os(name), is_terminal) {
        text.ansi().to_string()
    } else {
        text.to_string()
    };
    // Where neither stream can be written to there is nobody to tell.
    let _ = if error.use_stderr() {
        std::io::stderr().write_all(text.as_bytes())
    } else {
        std::io::stdout().write_all(text.as_bytes())
    };
}

/// Takes the `orbit` out of `cargo-orbit orbit VERB …`.
fn without_doubled_word(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = words.collect();
    if words.get(1).is_some_and(|word| word == "orbit") {
        words.remove(1);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_and_people_are_understood_alike() {
        let words = |line: &str| without_doubled_word(line.split(' ').map(OsString::from));
        assert_eq!(
            words("cargo-orbit orbit run -- orbit"),
            words("cargo-orbit run -- orbit")
        );
        assert_eq!(words("cargo-orbit").len(), 1);
    }

    #[test]
    fn a_cause_is_told_once() {
        let refused = || std::io::Error::from_raw_os_error(13);
        let told = anyhow::Error::new(refused()).context("cannot read x");
        assert_eq!(with_causes(&told), format!("cannot read x: {}", refused()));
        let whole = format!("cannot read x: {}; make it readable", refused());
        let told = anyhow::Error::new(refused()).context(whole.clone());
        assert_eq!(with_causes(&told), whole);
    }

    #[test]
    fn a_supervisor_starts_for_who_will_use_it() {
        let will = |line: &str| will_run(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(will("cargo-orbit run --image redis -- redis-server --help"));
        assert!(will("cargo-orbit runner /target/test -- --help"));
        for not in [
            "cargo-orbit",
            "cargo-orbit run -h",
            "cargo-orbit run --image a --help",
            "cargo-orbit test",
        ] {
            assert!(!will(not), "{not}");
        }
    }
}
