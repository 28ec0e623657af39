//! `cargo orbit doctor`: what works on this machine, found out by doing it, and what lets the rest work.
//!
//! Each check makes a real sandbox that needs what is checked, as a test would; what it says where that fails is the
//! error that the test would see. [`checks`] has them all; here is who asks and who is told.

mod checks;

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use clap::{ValueEnum, builder::PossibleValuesParser};
use serde::Serialize;

use self::checks::{CHECKS, Check, Found};
use crate::{
    exit,
    report::colour::{self, BAD, BOLD, Brush, DIM, GOOD, WARN},
};

/// Finds out, by doing, what sandboxes can do on this machine, and how to mend what they cannot.
///
/// Exits with 1 where no sandbox starts, or where something is missing that --require names, and with 0 otherwise.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fail where one of these is missing too: for a CI job that must not run without, say, memory,egress.
    #[arg(long, value_name = "CHECK,…", value_delimiter = ',', value_parser = names())]
    require: Vec<String>,

    /// How to print it.
    #[arg(long, value_enum, value_name = "FMT", default_value_t)]
    message_format: Format,

    /// Colours.
    #[arg(long, value_name = "WHEN", value_parser = ["auto", "always", "never"])]
    color: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// A line for each check, and below it what to do.
    #[default]
    Human,
    /// An object for each check, one a line.
    Json,
}

/// What one check came to.
#[derive(Debug, Serialize)]
struct Told {
    check: &'static str,
    what: &'static str,
    #[serde(flatten)]
    found: Found,
    required: bool,
}

/// How wide the names of checks are printed.
const NAME_WIDTH: usize = 9;

/// How many columns the text of a finding may take.
const TEXT_WIDTH: usize = 96;

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(CHECKS.iter().map(|check| check.name))
}

/// Checks everything, and tells.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let variable = |name: &str| std::env::var_os(name);
    let is_terminal = io::stdout().is_terminal();
    let brush = Brush {
        colours: colour::wanted(args.color.as_deref(), variable, is_terminal),
    };
    // Who has read enough still gets an exit code that is true.
    let say = crate::write_out;
    if matches!(args.message_format, Format::Human) {
        say(&format!("{}\n\n", machine()))?;
    }
    let mut all = Vec::new();
    for check in CHECKS {
        let told = look(check, &all, &args.require);
        match args.message_format {
            Format::Human => say(&lines(&told, brush))?,
            Format::Json => say(&format!("{}\n", serde_json::to_string(&told)?))?,
        }
        all.push(told);
    }
    if matches!(args.message_format, Format::Human) {
        say(&format!("\n{}\n", summary(&all)))?;
    }
    Ok(if all.iter().any(Told::is_fatal) {
        ExitCode::from(exit::FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

/// Makes `check`, unless what it stands on is missing.
fn look(check: &Check, before: &[Told], required: &[String]) -> Told {
    let works = |name: &str| {
        let found = before.iter().find(|it| it.check == name);
        found.is_none_or(|it| matches!(it.found, Found::Works { .. }))
    };
    let found = match check.needs.iter().find(|name| !works(name)) {
        Some(name) => Found::NotTried {
            detail: format!("it needs {name}"),
        },
        None => (check.make)(),
    };
    Told {
        check: check.name,
        what: check.what,
        found,
        required: check.is_essential || required.iter().any(|name| name == check.name),
    }
}

impl Told {
    fn is_fatal(&self) -> bool {
        self.required
            && match self.found {
                Found::Works { .. } => false,
                Found::Missing { .. } | Found::NotTried { .. } => true,
            }
    }
}

/// `Linux 6.18.44 x86_64, as user 1000`.
fn machine() -> String {
    let kernel = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let user = match rustix::process::geteuid().as_raw() {
        0 => "root".to_owned(),
        id => format!("user {id}"),
    };
    let version = env!("CARGO_PKG_VERSION");
    let (system, release) = (text(kernel.sysname()), text(kernel.release()));
    format!(
        "orbit {version} on {system} {release} {}, as {user}",
        text(kernel.machine())
    )
}

fn lines(told: &Told, brush: Brush) -> String {
    let (style, word, detail) = match &told.found {
        Found::Works { detail } => (GOOD, "ok", detail),
        Found::Missing { detail, .. } if told.is_fatal() => (BAD, "no", detail),
        Found::Missing { detail, .. } => (WARN, "no", detail),
        Found::NotTried { detail } => (DIM, "--", detail),
    };
    let (word, name) = (
        brush.paint(style, word),
        brush.paint(BOLD, &format!("{:NAME_WIDTH$}", told.check)),
    );
    let mut lines = format!("{word}  {name} {}\n", told.what);
    let mut say = |label: &str, text: &str| {
        for (number, line) in wrapped(text, TEXT_WIDTH).iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            // A string takes everything.
            let _ = writeln!(lines, "{:NAME_WIDTH$}     {label:5}{line}", "");
        }
    };
    if !detail.is_empty() {
        say("", detail);
    }
    if let Found::Missing { fix: Some(fix), .. } = &told.found {
        say("fix:", fix);
    }
    lines
}

fn summary(all: &[Told]) -> String {
    let names = |is: fn(&Told) -> bool| {
        let names: Vec<&str> = all.iter().filter(|it| is(it)).map(|it| it.check).collect();
        names.join(", ")
    };
    let fatal = names(Told::is_fatal);
    let missing = names(|it| !matches!(it.found, Found::Works { .. }) && !it.is_fatal());
    match (fatal.as_str(), missing.as_str()) {
        ("", "") => "Everything works here.".to_owned(),
        ("", missing) => format!("Sandboxes work here, without: {missing}."),
        (fatal, "") => format!("Needed, and missing: {fatal}."),
        (fatal, missing) => {
            format!("Needed, and missing: {fatal}. Missing beside that: {missing}.")
        }
    }
}

/// `text` in lines of at most `width` characters, as far as its words allow.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(check: &'static str, found: Found, required: bool) -> Told {
        Told {
            check,
            what: "what it is",
            found,
            required,
        }
    }

    fn missing(fix: Option<&str>) -> Found {
        Found::Missing {
            detail:
                "the reason, which is long enough to need more than a single line of those that \
                     fit into a terminal of usual width"
                    .to_owned(),
            fix: fix.map(str::to_owned),
        }
    }

    fn works() -> Found {
        Found::Works {
            detail: "2.1 ms".to_owned(),
        }
    }

    fn not_tried() -> Found {
        Found::NotTried {
            detail: "it needs sandbox".to_owned(),
        }
    }

    #[test]
    fn each_finding_is_told_with_its_fix() {
        let brush = Brush { colours: false };
        let all = [
            told("sandbox", works(), true),
            told("ids", missing(Some("as root: usermod")), false),
            told("egress", missing(None), true),
            told("clock", not_tried(), false),
        ];
        let mut text: String = all.iter().map(|it| lines(it, brush)).collect();
        text.push_str(&summary(&all));
        insta::assert_snapshot!(text);
        let json: Vec<String> = all
            .iter()
            .map(|it| serde_json::to_string(it).unwrap())
            .collect();
        insta::assert_snapshot!(json.join("\n"));
    }

    #[test]
    fn only_what_is_required_fails() {
        assert!(told("egress", missing(None), true).is_fatal());
        assert!(told("egress", not_tried(), true).is_fatal());
        assert!(!told("egress", missing(None), false).is_fatal());
        assert!(!told("egress", works(), true).is_fatal());
    }

    #[test]
    fn what_stands_on_something_missing_is_not_tried() {
        let check = Check {
            name: "later",
            what: "",
            needs: &["sandbox"],
            is_essential: false,
            make: || unreachable!("it was tried"),
        };
        let before = [told("sandbox", missing(None), true)];
        let found = look(&check, &before, &[]).found;
        assert!(matches!(found, Found::NotTried { .. }), "{found:?}");
    }

    #[test]
    fn checks_have_names_of_their_own_that_fit_and_stand_on_earlier_ones() {
        for (number, check) in CHECKS.iter().enumerate() {
            assert!(check.name.len() <= NAME_WIDTH, "{}", check.name);
            let before = &CHECKS[..number];
            assert!(
                before.iter().all(|it| it.name != check.name),
                "{}",
                check.name
            );
            for needed in check.needs {
                assert!(before.iter().any(|it| it.name == *needed), "{needed}");
            }
        }
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrapped("incomprehensible", 4), ["incomprehensible"]);
        assert!(wrapped(" ", 4).is_empty());
    }
}
