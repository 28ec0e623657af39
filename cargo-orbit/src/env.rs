//! `cargo orbit env`: what to set so that cargo, nextest and editors run programs in sandboxes.

use std::{env, ffi::OsStr, process::ExitCode};

use anyhow::{Context as _, ensure};
use cargo_config2::Config;
use clap::ValueEnum;

/// Prints what puts `cargo test`, `cargo nextest run`, `cargo bench`, `cargo run` and editors in sandboxes.
///
/// With a shell: eval "$(cargo orbit env)". It is Cargo's setting target.TRIPLE.runner, as a variable.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build target; by default those that cargo builds for. May be repeated.
    #[arg(long, value_name = "TRIPLE")]
    target: Vec<String>,

    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// `export NAME='VALUE'`, for sh, bash and zsh.
    #[default]
    Shell,
    /// `set -gx NAME 'VALUE'`.
    Fish,
    /// `NAME=VALUE`, to append to `$GITHUB_ENV`, or to a file of variables.
    Github,
    /// An object of names and values.
    Json,
    /// For .cargo/config.toml, which needs no variable.
    Cargo,
}

/// Prints it.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load().context("cannot read cargo's configuration")?;
    let host = config
        .host_triple()
        .context("cannot ask rustc what this machine is")?;
    let asked = args.target.iter().map(|target| match target.as_str() {
        "host-tuple" => host,
        other => other,
    });
    let targets = config
        .build_target_for_config(asked)
        .context("cannot tell what cargo builds for")?;
    let triples: Vec<String> = targets
        .iter()
        .map(|target| target.triple().to_owned())
        .collect();
    let program = env::current_exe().context("cannot find the program cargo-orbit itself")?;
    let program = program
        .to_str()
        .with_context(|| format!("the path {} is not UTF-8", program.display()))?;
    crate::write_out(&text(args.format, program, &triples)?)?;
    Ok(ExitCode::SUCCESS)
}

fn text(format: Format, program: &str, triples: &[String]) -> anyhow::Result<String> {
    let words = [program, "orbit", "runner", "--"];
    if matches!(format, Format::Cargo) {
        let words: Vec<String> = words
            .iter()
            .map(|word| serde_json::Value::from(*word).to_string())
            .collect();
        let words = words.join(", ");
        let tables: Vec<String> = triples
            .iter()
            .map(|triple| format!("[target.{triple}]\nrunner = [{words}]\n"))
            .collect();
        return Ok(tables.concat());
    }
    ensure!(
        !program.contains(char::is_whitespace),
        "cargo splits this variable at blanks, and the path {program} has one: use `cargo orbit env --format cargo` \
         for .cargo/config.toml instead"
    );
    let value = words.join(" ");
    let pairs: Vec<(String, &str)> = triples
        .iter()
        .map(|triple| (variable(triple), value.as_str()))
        .collect();
    let quoted = shell_words::quote(&value);
    let lines = pairs.iter().map(|(name, value)| match format {
        Format::Fish => format!("set -gx {name} {quoted}\n"),
        Format::Github => format!("{name}={value}\n"),
        _ => format!("export {name}={quoted}\n"),
    });
    Ok(match format {
        Format::Json => {
            let object: serde_json::Map<String, serde_json::Value> = pairs
                .iter()
                .map(|(name, value)| (name.clone(), (*value).into()))
                .collect();
            format!("{:#}\n", serde_json::Value::Object(object))
        }
        _ => lines.collect(),
    })
}

/// `CARGO_TARGET_<TRIPLE>_RUNNER`.
fn variable(triple: &str) -> String {
    let triple = triple.to_ascii_uppercase().replace(['-', '.'], "_");
    format!("CARGO_TARGET_{triple}_RUNNER")
}

/// Whether a variable puts this program before each that cargo starts. In a sandbox there is one already, and a
/// cargo that a test starts would look for it in vain.
pub(crate) fn is_runner(name: &OsStr, value: &OsStr) -> bool {
    let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
    name.starts_with("CARGO_TARGET_") && name.ends_with("_RUNNER") && value.contains("orbit runner")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_gets_its_syntax() {
        let triples = ["x86_64-unknown-linux-gnu".to_owned()];
        let printed = |format| text(format, "/b/cargo-orbit", &triples).unwrap();
        let name = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";
        let value = "/b/cargo-orbit orbit runner --";
        assert_eq!(printed(Format::Shell), format!("export {name}='{value}'\n"));
        assert_eq!(printed(Format::Fish), format!("set -gx {name} '{value}'\n"));
        assert_eq!(printed(Format::Github), format!("{name}={value}\n"));
        let json: serde_json::Value = serde_json::from_str(&printed(Format::Json)).unwrap();
        assert_eq!(json[name], value);
        let toml = printed(Format::Cargo);
        let read = toml::de::DeTable::parse(&toml).unwrap();
        let runner =
            read.get_ref()["target"].get_ref()["x86_64-unknown-linux-gnu"].get_ref()["runner"]
                .get_ref();
        assert_eq!(runner[0].get_ref().as_str(), Some("/b/cargo-orbit"));
        // Cargo would split it.
        assert!(text(Format::Shell, "/b b/cargo-orbit", &triples).is_err());
        assert!(text(Format::Cargo, "/b b/cargo-orbit", &triples).is_ok());
    }

    #[test]
    fn a_runner_is_known_by_its_words() {
        let name = OsStr::new("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER");
        assert!(is_runner(
            name,
            OsStr::new("/b/cargo-orbit orbit runner --")
        ));
        assert!(!is_runner(name, OsStr::new("qemu")));
        assert!(!is_runner(
            OsStr::new("CARGO_TARGET_DIR"),
            OsStr::new("/orbit runner")
        ));
    }
}
