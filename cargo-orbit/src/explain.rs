//! `cargo orbit explain`: what holds for a test, who said so, and what will be done to make its sandbox.
//!
//! Nothing is built and nothing is run. Which tests there are, only the built program knows; so a test's name is
//! taken as it is, and asked of every binary: those for which the same holds are told together.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use orbit::{__private::share_foreign, PullPolicy};

use crate::{
    config::{
        Config,
        args::SettingsArgs,
        keys::{KEYS, nearest},
        settings::Settings,
    },
    filter::{Filter, Platform, Target, TestFacts},
    runner::{
        alone,
        kept::{self, Known},
    },
};

/// Prints what holds for a test, where each value came from, and each step of making its sandbox.
///
/// Nothing is built: a test's name is taken as it is written.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A binary as nextest names it (`api`, `api::http`, `api::bin/serve`), the full name of a test, or both.
    #[arg(value_names = ["BINARY", "TEST"], num_args = 0..=2)]
    which: Vec<String>,

    /// Only binaries that may have a test that this filterset selects.
    #[arg(short = 'E', long, value_name = "FILTERSET")]
    filterset: Option<String>,

    /// Every key, also those that nobody set.
    #[arg(long)]
    all: bool,

    /// Not the steps.
    #[arg(long)]
    no_plan: bool,

    /// Path to Cargo.toml
    #[arg(long, value_name = "PATH")]
    manifest_path: Option<PathBuf>,

    #[command(flatten)]
    settings: SettingsArgs,
}

/// A binary of the workspace.
struct Binary {
    package_id: String,
    package_directory: PathBuf,
    id: String,
    target: Target,
}

impl Binary {
    fn facts<'a>(&'a self, test: Option<&'a str>) -> TestFacts<'a> {
        TestFacts {
            package_id: &self.package_id,
            binary_id: &self.id,
            binary_name: &self.target.name,
            kind: &self.target.kind,
            platform: if self.target.kind == "proc-macro" {
                Platform::Host
            } else {
                Platform::Target
            },
            test,
        }
    }
}

/// Prints it.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let known = kept::known(&package(args.manifest_path.as_deref())?, None)?;
    let config = Config::load(&known.workspace, &args.settings, env::vars_os())?;
    let all = binaries(&known);
    let (binary, test) = understand(&args.which, &all)?;
    let mut chosen: Vec<&Binary> = all
        .iter()
        .filter(|candidate| binary.is_none_or(|id| candidate.id == id))
        .collect();
    if let Some(text) = &args.filterset {
        let filter = match Filter::parse(text, &known.workspace) {
            Ok(filter) => filter,
            Err(error) => bail!(error.rendered(text)),
        };
        chosen.retain(|binary| match test {
            Some(_) => filter.matches(&binary.facts(test)),
            None => filter.may_match_in(&binary.facts(None)),
        });
        if chosen.is_empty() {
            bail!("no binary of this workspace has a test that `{text}` can select");
        }
    }
    // Those for which the same holds together; few enough to compare them all.
    let mut groups: Vec<(Arc<Settings>, Vec<&Binary>)> = Vec::new();
    for binary in chosen {
        let settings = config.settings(&binary.facts(test));
        match groups.iter_mut().find(|(other, _)| **other == *settings) {
            Some((_, members)) => members.push(binary),
            None => groups.push((settings, vec![binary])),
        }
    }
    let mut text = String::new();
    for (settings, members) in &groups {
        if !text.is_empty() {
            text.push('\n');
        }
        heading(&mut text, members, test, config.profile.as_deref());
        text.push_str(&table(settings, args.all));
        if !args.no_plan {
            text.push_str(&plan(&known, settings, members[0], test));
        }
    }
    crate::write_out(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The directory of the package, or workspace, that is asked about.
fn package(manifest_path: Option<&Path>) -> anyhow::Result<PathBuf> {
    let here = env::current_dir().context("the current directory")?;
    match manifest_path {
        Some(path) => {
            let path = std::path::absolute(path)?;
            let directory = path.parent().unwrap_or(Path::new("/"));
            Ok(directory.to_owned())
        }
        None => here
            .ancestors()
            .find(|directory| directory.join("Cargo.toml").is_file())
            .map(Path::to_owned)
            .with_context(|| {
                format!(
                    "there is no Cargo.toml in {} or above; name one with --manifest-path",
                    here.display()
                )
            }),
    }
}

fn binaries(known: &Known) -> Vec<Binary> {
    let mut binaries = Vec::new();
    for package in &known.workspace.packages {
        let has_library = package.targets.iter().any(|target| target.kind == "lib");
        let doctests = has_library.then(|| Target::doctests(&package.name));
        binaries.extend(
            package
                .targets
                .iter()
                .cloned()
                .chain(doctests)
                .map(|target| Binary {
                    package_id: package.id.clone(),
                    package_directory: package
                        .manifest
                        .parent()
                        .unwrap_or(Path::new("/"))
                        .to_owned(),
                    id: target.binary_id(&package.name),
                    target,
                }),
        );
    }
    binaries
}

/// Which of the words is a binary, and which a test.
fn understand<'a>(
    words: &'a [String],
    binaries: &[Binary],
) -> anyhow::Result<(Option<&'a str>, Option<&'a str>)> {
    let is_binary = |word: &str| binaries.iter().any(|binary| binary.id == word);
    match words {
        [] => Ok((None, None)),
        [word] if is_binary(word) => Ok((Some(word), None)),
        [word] => Ok((None, Some(word))),
        [binary, test, ..] if is_binary(binary) => Ok((Some(binary), Some(test))),
        [binary, ..] => {
            let ids = binaries.iter().map(|binary| binary.id.as_str());
            match nearest(binary, ids) {
                Some(near) => {
                    bail!("this workspace has no binary `{binary}`; did you mean `{near}`?")
                }
                None => bail!(
                    "this workspace has no binary `{binary}`; `cargo orbit explain` without a name lists them"
                ),
            }
        }
    }
}

fn heading(text: &mut String, members: &[&Binary], test: Option<&str>, profile: Option<&str>) {
    let ids: Vec<&str> = members.iter().map(|binary| binary.id.as_str()).collect();
    let what = match test {
        Some(test) => format!("test {test} of {}", ids.join(", ")),
        None => format!("every test of {}", ids.join(", ")),
    };
    // Writing to a String cannot fail.
    let _ = match profile {
        Some(profile) => writeln!(text, "{what} (profile {profile}):"),
        None => writeln!(text, "{what}:"),
    };
}

/// A line for each key, and each service that is needed: its value, and who said so.
fn table(settings: &Settings, all: bool) -> String {
    let rows: Vec<(&str, String, String)> = KEYS
        .iter()
        .filter_map(|key| match settings.get(key.name) {
            Some(set) => {
                let origins: Vec<String> = set.origins.iter().map(ToString::to_string).collect();
                Some((key.name, set.value.to_string(), origins.join("; ")))
            }
            None if all => Some((key.name, key.default.to_owned(), "default".to_owned())),
            None => None,
        })
        .chain(settings.services.iter().map(|service| {
            let origin = service.origin.to_string();
            ("service", service.name.clone(), origin)
        }))
        .collect();
    if rows.is_empty() {
        return "  nothing is set; the defaults hold (--all shows them)\n".to_owned();
    }
    let longest = |of: fn(&(&str, String, String)) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let names = longest(|row| row.0.len());
    // A long list does not push the origins of all others off the screen.
    let values = longest(|row| row.1.chars().count()).min(40);
    rows.iter()
        .fold(String::new(), |mut text, (name, value, origin)| {
            let _ = writeln!(text, "  {name:names$}  {value:values$}  {origin}");
            text
        })
}

/// What will be done; the program itself is not known before it is built.
fn plan(known: &Known, settings: &Arc<Settings>, binary: &Binary, test: Option<&str>) -> String {
    let directory = known.workspace.target_directory.join("debug/deps");
    // What is not there yet cannot be shown.
    let lies_in = if directory.is_dir() {
        directory
    } else {
        known.workspace.root.clone()
    };
    let program = alone::placeholder(
        lies_in.join(binary.target.name.replace('-', "_")),
        binary.package_directory.clone(),
        test,
    );
    let mut known_there = known.view.clone();
    known_there.work.retain(|path| path.exists());
    let sandbox = share_foreign(alone::sandbox_over(&known_there, settings, program));
    match sandbox.pull(PullPolicy::Never).plan() {
        Ok(plan) => {
            let lines: Vec<String> = plan.lines().map(|line| format!("    {line}\n")).collect();
            format!("  plan:\n{}", lines.concat())
        }
        Err(error) => format!("  no plan: {}\n", error.to_string().replace('\n', "\n    ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(id: &str) -> Binary {
        Binary {
            package_id: String::new(),
            package_directory: PathBuf::new(),
            id: id.to_owned(),
            target: Target::doctests("x"),
        }
    }

    #[test]
    fn words_are_a_binary_or_a_test_or_both() {
        let all = [binary("api"), binary("api::http")];
        let told = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            match understand(&words, &all) {
                Ok(found) => format!("{found:?}"),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(told(&[]), "(None, None)");
        assert_eq!(told(&["api"]), "(Some(\"api\"), None)");
        assert_eq!(told(&["api::parses"]), "(None, Some(\"api::parses\"))");
        assert_eq!(
            told(&["api::http", "gets"]),
            "(Some(\"api::http\"), Some(\"gets\"))"
        );
        assert_eq!(
            told(&["api::htp", "gets"]),
            "this workspace has no binary `api::htp`; did you mean `api::http`?"
        );
    }
}
