//! The same keys on the command line.

use std::{env, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, ValueHint};
use serde::{Deserialize, Serialize};

use super::{
    fault::{Fault, Origin},
    file::Entry,
    keys::{Form, KEYS, Key},
    value::Value,
};

const HEADING: &str = "Isolation";

/// Keys of the configuration that were given as flags: the strongest of all that says something of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SettingsArgs {
    profile: Option<String>,
    /// By the key's place in the table, as written.
    given: Vec<(usize, String)>,
    /// What relative paths are taken from.
    here: PathBuf,
}

impl SettingsArgs {
    /// The profile that was asked for.
    pub(crate) fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    pub(super) fn entries(&self) -> Result<Vec<Entry>, Vec<Fault>> {
        let mut entries = Vec::new();
        let mut faults = Vec::new();
        for (index, text) in &self.given {
            let key = &KEYS[*index];
            let flag = format!("--{}", key.flag());
            match Value::of_text(key, text, &self.here) {
                Ok(value) => entries.push(Entry {
                    key: *index,
                    value,
                    origin: Origin::Flag(flag),
                }),
                Err(bad) => faults.push(Fault::new(flag, bad.why)),
            }
        }
        if faults.is_empty() {
            Ok(entries)
        } else {
            Err(faults)
        }
    }

    /// Of the words of a command line.
    #[cfg(test)]
    pub(super) fn of(words: &[&str]) -> Result<Self, clap::Error> {
        use clap::Args as _;
        let command = Self::augment_args(Command::new("test")).no_binary_name(true);
        Self::from_arg_matches(&command.try_get_matches_from(words)?)
    }
}

/// Those of cargo's options that have the same id would be mixed up.
fn id(key: &Key) -> String {
    format!("orbit.{}", key.name)
}

fn arg(key: &Key) -> Arg {
    let adds_up = matches!(
        key.form,
        Form::List | Form::ListByName | Form::Paths | Form::Variables
    );
    let mut help = key.help.trim_end_matches('.').to_owned();
    if adds_up {
        help.push_str(". May be repeated");
    }
    let mut arg = Arg::new(id(key))
        .long(key.flag())
        .value_name(key.placeholder)
        .help(help)
        .help_heading(HEADING)
        // The last counts; of lists, each.
        .action(ArgAction::Append);
    // What is wrong with a value is told with everything else that is wrong, by the same parser.
    arg = match key.form {
        Form::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Form::Paths => arg.value_hint(ValueHint::AnyPath),
        _ => arg,
    };
    if key.name == "env" {
        arg = arg.help(
            "Set a variable for the tests, or with a name alone pass the host's value on. May be repeated",
        );
    }
    arg
}

impl clap::Args for SettingsArgs {
    fn augment_args(command: Command) -> Command {
        command
            .arg(
                Arg::new("orbit-profile")
                    .long("orbit-profile")
                    .value_name("NAME")
                    .help("The profile of Orbit's configuration to use [env: ORBIT_PROFILE]")
                    .help_heading(HEADING),
            )
            .args(KEYS.iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for (index, key) in KEYS.iter().enumerate() {
            let values = matches.get_many::<String>(&id(key)).into_iter().flatten();
            given.extend(values.map(|text| (index, text.clone())));
        }
        let args = Self {
            profile: matches.get_one::<String>("orbit-profile").cloned(),
            given,
            // Where it is not known, paths must be absolute; the sandbox says so.
            here: env::current_dir().unwrap_or_default(),
        };
        // A command line that is not understood is told as such, and before anything is built.
        args.entries().map_err(|faults| {
            let texts: Vec<String> = faults.iter().map(Fault::to_string).collect();
            clap::Error::raw(
                clap::error::ErrorKind::ValueValidation,
                format!("{}\n", texts.join("\n")),
            )
        })?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_flag() {
        for key in KEYS {
            let flag = format!("--{}", key.flag());
            let text = match key.form {
                Form::Switch => "true",
                Form::Variables => "A=1",
                Form::SlowTimeout => "30s:4",
                Form::Retries => "2:exponential:1s",
                // Without the quotes and brackets of TOML.
                _ => key.example.trim_matches(['[', ']', '"']),
            };
            let word = format!("{flag}={text}");
            let args = SettingsArgs::of(&[&word]).unwrap_or_else(|error| panic!("{word}: {error}"));
            assert_eq!(args.entries().unwrap().len(), 1, "{word}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_the_flag() {
        let error = SettingsArgs::of(&["--memory", "64Q", "--isolate=tests"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("--memory: `64Q`"), "{text}");
        assert!(text.contains("did you mean `test`?"), "{text}");
        assert!(
            SettingsArgs::of(&["--best-effort"])
                .unwrap()
                .entries()
                .is_ok()
        );
    }
}
