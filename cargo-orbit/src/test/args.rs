//! What `cargo orbit test` can be asked: everything `cargo test` can, and a little of its own.
//!
//! Cargo's options are a table: each line makes the option, its help, and the words that go on to cargo, so
//! that none can be understood here and forgotten there. A test compares the table with `cargo test --help`.

use std::{ffi::OsString, path::PathBuf, str::FromStr};

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, ValueHint};

use super::select::Partition;
use crate::config::args::SettingsArgs;

const EXAMPLES: &str = "\
Examples:
  cargo orbit test                        test binaries, and doctests
  cargo orbit test --isolate test         a container for each test
  cargo orbit test --failed               what failed the last time
  cargo orbit test -p api --test http     one test binary
  cargo orbit test parses -- --nocapture  tests whose names contain `parses`
  cargo orbit test --env DATABASE_URL     pass one of the host's variables on
  cargo orbit test --writable snapshots   keep what tests write to ./snapshots

What a test sees:
  the workspace, the target directory and the toolchain where they are on the
  host; an empty home directory; a network with nothing but loopback. What it
  writes is thrown away, except under --writable.
  Of the host's variables: PATH, the locale's and the terminal's, CI, RUST_*,
  RUSTUP_*, CARGO_* and those of well-known test tools, but none whose name
  says token, secret, password, key or credential.

Exit code:
  0    every test passed
  101  a test or the build failed
  1    the command line was not understood
  125  tests could not be started in a container, and did not run
  130, 143 …  a signal ended the run";

/// Builds tests with cargo, and runs them in fresh containers, doctests too.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
#[command(override_usage = "cargo orbit test [OPTIONS] [TESTNAME] [-- [ARGS]...]")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,

    #[command(flatten)]
    pub(crate) run: RunArgs,

    #[command(flatten)]
    pub(crate) cargo: CargoArgs,
}

/// Which tests run, how often, and what is told of them.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Run only tests that this filterset of nextest's language selects; of several, tests that any selects.
    #[arg(
        short = 'E',
        long,
        value_name = "FILTERSET",
        help_heading = "Test Selection"
    )]
    pub(crate) filterset: Vec<String>,

    /// Run one share of the tests: count:M/N or hash:M/N.
    #[arg(long, value_name = "SHARE", help_heading = "Test Selection")]
    pub(crate) partition: Option<Partition>,

    /// Run only tests that failed the last time.
    #[arg(long, help_heading = "Test Selection")]
    pub(crate) failed: bool,

    /// Run tests that are marked as ignored, and no others.
    #[arg(
        long,
        help_heading = "Test Selection",
        conflicts_with = "include_ignored"
    )]
    pub(crate) ignored: bool,

    /// Run tests that are marked as ignored too.
    #[arg(long, help_heading = "Test Selection")]
    pub(crate) include_ignored: bool,

    /// Print the tests that would run, and run none.
    #[arg(long, help_heading = "Test Selection")]
    pub(crate) list: bool,

    /// Run each test N times.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        hide_default_value = true,
        help_heading = "Running"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    /// Run tests in a random order; the same SEED gives the same order.
    #[arg(long, value_name = "SEED", num_args = 0..=1, require_equals = true, help_heading = "Running")]
    #[arg(default_missing_value = "random")]
    pub(crate) shuffle: Option<Seed>,

    /// Keep the sandboxes of failed tests: `cargo orbit shell` lists them, and opens a shell in one.
    #[arg(long, help_heading = "Running")]
    pub(crate) keep_failed: bool,

    /// List the files that each test wrote outside of its temporary directories.
    #[arg(long, help_heading = "Reports")]
    pub(crate) diff: bool,

    /// Write a JUnit report to FILE.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Reports")]
    pub(crate) junit: Option<PathBuf>,

    /// Write a page with the timeline of the run to DIR/index.html.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Reports")]
    pub(crate) report: Option<PathBuf>,
}

/// What an order is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(pub(crate) u64);

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Self(fastrand::u64(..))),
            number => number
                .parse()
                .map(Self)
                .map_err(|_| "expected a whole number, as an earlier run told it".to_owned()),
        }
    }
}

/// An option of `cargo test`.
struct CargoOption {
    long: &'static str,
    short: Option<char>,
    takes: Takes,
    heading: &'static str,
    help: &'static str,
}

/// What follows an option.
#[derive(Clone, Copy)]
enum Takes {
    Nothing,
    /// Nothing, but it may be given several times.
    Count,
    Value(&'static str),
    /// A value, or none to be told the choices.
    Choice(&'static str),
}

const fn option(
    long: &'static str,
    short: Option<char>,
    takes: Takes,
    heading: &'static str,
    help: &'static str,
) -> CargoOption {
    CargoOption {
        long,
        short,
        takes,
        heading,
        help,
    }
}

const PACKAGES: &str = "Package Selection";
const TARGETS: &str = "Target Selection";
const FEATURES: &str = "Feature Selection";
const COMPILATION: &str = "Compilation Options";
const MANIFEST: &str = "Manifest Options";
const OUTPUT: &str = "Output";

#[rustfmt::skip]
const CARGO_OPTIONS: &[CargoOption] = {
    use Takes::{Choice, Count, Nothing, Value};
    &[
        option("no-run", None, Nothing, COMPILATION, "Compile, but don't run tests"),
        option("no-fail-fast", None, Nothing, COMPILATION, "Run all test binaries regardless of failure"),
        option("future-incompat-report", None, Nothing, OUTPUT, "Report future incompatibilities at the end of the build"),
        option("message-format", None, Value("FMT"), OUTPUT, "Error format, as cargo's"),
        option("quiet", Some('q'), Nothing, OUTPUT, "Display one character per test instead of one line"),
        option("verbose", Some('v'), Count, OUTPUT, "Use verbose output (-vv: very verbose)"),
        option("color", None, Value("WHEN"), OUTPUT, "Coloring: auto, always or never"),
        option("config", None, Value("KEY=VALUE|PATH"), MANIFEST, "Override a configuration value of cargo"),
        option("", Some('Z'), Value("FLAG"), MANIFEST, "Unstable (nightly-only) flags to cargo"),
        option("package", Some('p'), Choice("SPEC"), PACKAGES, "Package to run tests for"),
        option("workspace", None, Nothing, PACKAGES, "Test all packages in the workspace"),
        option("exclude", None, Value("SPEC"), PACKAGES, "Exclude packages from the test"),
        option("all", None, Nothing, PACKAGES, "Alias for --workspace (deprecated)"),
        option("lib", None, Nothing, TARGETS, "Test only this package's library"),
        option("bins", None, Nothing, TARGETS, "Test all binaries"),
        option("bin", None, Choice("NAME"), TARGETS, "Test only the specified binary"),
        option("examples", None, Nothing, TARGETS, "Test all examples"),
        option("example", None, Choice("NAME"), TARGETS, "Test only the specified example"),
        option("tests", None, Nothing, TARGETS, "Test all targets that have `test = true` set"),
        option("test", None, Choice("NAME"), TARGETS, "Test only the specified test target"),
        option("benches", None, Nothing, TARGETS, "Test all targets that have `bench = true` set"),
        option("bench", None, Choice("NAME"), TARGETS, "Test only the specified bench target"),
        option("all-targets", None, Nothing, TARGETS, "Test all targets (does not include doctests)"),
        option("doc", None, Nothing, TARGETS, "Test only this library's documentation"),
        option("features", Some('F'), Value("FEATURES"), FEATURES, "Space or comma separated list of features to activate"),
        option("all-features", None, Nothing, FEATURES, "Activate all available features"),
        option("no-default-features", None, Nothing, FEATURES, "Do not activate the `default` feature"),
        option("jobs", Some('j'), Value("N"), COMPILATION, "Number of parallel jobs, defaults to # of CPUs, and one more for tests"),
        option("keep-going", None, Nothing, COMPILATION, "Do not abort the build as soon as there is an error"),
        option("release", Some('r'), Nothing, COMPILATION, "Build artifacts in release mode, with optimizations"),
        option("profile", None, Value("PROFILE-NAME"), COMPILATION, "Build artifacts with the specified profile"),
        option("target", None, Choice("TRIPLE"), COMPILATION, "Build for the target triple"),
        option("target-dir", None, Value("DIRECTORY"), COMPILATION, "Directory for all generated artifacts"),
        option("unit-graph", None, Nothing, COMPILATION, "Output build graph in JSON (unstable)"),
        option("timings", None, Nothing, COMPILATION, "Output a build timing report at the end of the build"),
        option("manifest-path", None, Value("PATH"), MANIFEST, "Path to Cargo.toml"),
        option("lockfile-path", None, Value("PATH"), MANIFEST, "Path to Cargo.lock (unstable)"),
        option("ignore-rust-version", None, Nothing, MANIFEST, "Ignore `rust-version` specification in packages"),
        option("locked", None, Nothing, MANIFEST, "Assert that `Cargo.lock` will remain unchanged"),
        option("offline", None, Nothing, MANIFEST, "Run without accessing the network"),
        option("frozen", None, Nothing, MANIFEST, "Equivalent to specifying both --locked and --offline"),
    ]
};

/// Which of them decide what `cargo metadata` sees, and are understood by it.
const METADATA_OPTIONS: &[&str] = &[
    "config",
    "Z",
    "features",
    "all-features",
    "no-default-features",
    "manifest-path",
    "lockfile-path",
    "locked",
    "offline",
    "frozen",
];

impl CargoOption {
    fn id(&self) -> &'static str {
        if self.long.is_empty() { "Z" } else { self.long }
    }

    fn arg(&self) -> Arg {
        let arg = Arg::new(self.id())
            .help(self.help)
            .help_heading(self.heading);
        let arg = match self.short {
            Some(short) => arg.short(short),
            None => arg,
        };
        let arg = if self.long.is_empty() {
            arg
        } else {
            arg.long(self.long)
        };
        match self.takes {
            Takes::Nothing => arg.action(ArgAction::SetTrue).overrides_with(self.id()),
            Takes::Count => arg.action(ArgAction::Count),
            Takes::Value(name) => arg
                .value_name(name)
                .action(ArgAction::Append)
                .allow_negative_numbers(true)
                .value_parser(clap::value_parser!(OsString)),
            Takes::Choice(name) => arg
                .value_name(name)
                .action(ArgAction::Append)
                .num_args(0..=1)
                .value_parser(clap::value_parser!(OsString)),
        }
    }

    /// The words for cargo that say what `matches` say of this option.
    fn words(&self, matches: &ArgMatches) -> Vec<OsString> {
        let flag = || match (self.long, self.short) {
            ("", Some(short)) => format!("-{short}"),
            (long, _) => format!("--{long}"),
        };
        match self.takes {
            Takes::Nothing if matches.get_flag(self.id()) => vec![flag().into()],
            Takes::Nothing => Vec::new(),
            Takes::Count => (0..matches.get_count(self.id()))
                .map(|_| flag().into())
                .collect(),
            Takes::Value(_) | Takes::Choice(_) => {
                let occurrences = matches.get_occurrences::<OsString>(self.id());
                occurrences
                    .into_iter()
                    .flatten()
                    .flat_map(|values| std::iter::once(flag().into()).chain(values.cloned()))
                    .collect()
            }
        }
    }
}

/// The part of the command line that is cargo's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CargoArgs {
    /// Options for `cargo test --no-run`: what is to be built, and how.
    pub(crate) build_options: Vec<OsString>,
    /// Options for `cargo test --doc`: the same, without a choice of targets or packages.
    pub(crate) doc_options: Vec<OsString>,
    /// Which packages were chosen.
    pub(crate) package_options: Vec<OsString>,
    /// Only tests whose names contain it.
    pub(crate) test_name: Option<OsString>,
    /// Options that `cargo metadata` must be given too.
    pub(crate) metadata_options: Vec<OsString>,
    /// `--target`, as given.
    pub(crate) targets: Vec<String>,
    /// `--no-run`: nothing is run, so that nothing needs isolation.
    pub(crate) no_run: bool,
    pub(crate) no_fail_fast: bool,
    /// `--target-dir`, as given.
    pub(crate) target_dir: Option<OsString>,
    /// `--jobs`, as given.
    pub(crate) jobs: Option<String>,
    pub(crate) quiet: bool,
    pub(crate) verbose: u8,
    /// `--color`, as given.
    pub(crate) color: Option<String>,
    /// `--message-format`, as given.
    pub(crate) message_format: Option<String>,
    /// Which targets were chosen.
    pub(crate) targets_chosen: TargetsChosen,
    /// What follows `--`, for the test binaries.
    pub(crate) for_tests: Vec<OsString>,
}

/// Whether test binaries, doctests or both are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TargetsChosen {
    /// None were named: test binaries and doctests.
    #[default]
    All,
    /// `--doc`.
    OnlyDoctests,
    /// `--lib`, `--test NAME` and the like: no doctests.
    Some,
}

/// Options that are understood here, and of which the build is told nothing.
const NOT_OF_THE_BUILD: &[&str] = &["no-run", "no-fail-fast", "message-format", "doc"];

impl clap::Args for CargoArgs {
    fn augment_args(command: Command) -> Command {
        command
            .arg(
                Arg::new("testname")
                    .value_name("TESTNAME")
                    .value_parser(clap::value_parser!(OsString))
                    .help("Only run tests containing this string in their names"),
            )
            .arg(
                Arg::new("args")
                    .value_name("ARGS")
                    .last(true)
                    .num_args(0..)
                    .value_parser(clap::value_parser!(OsString))
                    .help("Arguments for the test binaries"),
            )
            .args(CARGO_OPTIONS.iter().map(CargoOption::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for CargoArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut parsed = Self::default();
        for option in CARGO_OPTIONS {
            let words = option.words(matches);
            if METADATA_OPTIONS.contains(&option.id()) {
                parsed.metadata_options.extend(words.iter().cloned());
            }
            if !NOT_OF_THE_BUILD.contains(&option.id()) {
                parsed.build_options.extend(words.iter().cloned());
                if option.heading == PACKAGES {
                    parsed.package_options.extend(words.iter().cloned());
                } else if option.heading != TARGETS && option.id() != "quiet" {
                    parsed.doc_options.extend(words.iter().cloned());
                }
            }
            if option.heading == TARGETS && option.id() != "doc" && !words.is_empty() {
                parsed.targets_chosen = TargetsChosen::Some;
            }
        }
        if matches.get_flag("doc") {
            parsed.targets_chosen = TargetsChosen::OnlyDoctests;
        }
        let values = |id| matches.get_many::<OsString>(id).into_iter().flatten();
        parsed.targets = values("target")
            .map(|target| target.to_string_lossy().into_owned())
            .collect();
        parsed.no_run = matches.get_flag("no-run");
        parsed.no_fail_fast = matches.get_flag("no-fail-fast");
        parsed.quiet = matches.get_flag("quiet");
        parsed.verbose = matches.get_count("verbose");
        let last = |id| {
            values(id)
                .last()
                .map(|value| value.to_string_lossy().into_owned())
        };
        parsed.target_dir = values("target-dir").last().cloned();
        parsed.jobs = last("jobs");
        parsed.color = last("color");
        parsed.message_format = last("message-format");
        parsed.test_name = values("testname").next().cloned();
        parsed.for_tests = values("args").cloned().collect();
        Ok(parsed)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, process};

    use clap::Args as _;

    use super::*;

    fn parse(line: &str) -> Result<CargoArgs, clap::Error> {
        let command = CargoArgs::augment_args(Command::new("test")).no_binary_name(true);
        CargoArgs::from_arg_matches(&command.try_get_matches_from(line.split_whitespace())?)
    }

    #[test]
    fn cargo_gets_what_was_said() {
        let args =
            parse("-vv -p a -p b --test t --release -F x,y -Zunstable -j -1 name -- --exact q")
                .unwrap();
        let said: Vec<_> = args
            .build_options
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        assert_eq!(
            said.join(" "),
            "--verbose --verbose -Z unstable --package a --package b --test t --features x,y --jobs -1 \
             --release"
        );
        assert_eq!(args.test_name, Some("name".into()));
        assert_eq!(args.targets_chosen, TargetsChosen::Some);
        assert!(!args.doc_options.contains(&"--test".into()));
        assert_eq!(args.for_tests, ["--exact", "q"]);
        assert_eq!(
            args.metadata_options,
            ["-Z", "unstable", "--features", "x,y"]
        );
    }

    #[test]
    fn a_choice_may_be_left_open() {
        assert_eq!(parse("--bin").unwrap().build_options, ["--bin"]);
        assert_eq!(parse("--target t --no-run").unwrap().targets, ["t"]);
    }

    #[test]
    fn what_cargo_does_not_know_is_refused() {
        assert!(parse("--bogus").is_err());
        assert!(parse("two names").is_err());
    }

    /// Every option of the cargo that is installed is an option here.
    #[test]
    fn the_table_has_every_option_of_cargo_test() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let help = process::Command::new(cargo)
            .args(["test", "-h"])
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let of_cargo: BTreeSet<&str> = help
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .filter_map(|word| word.strip_prefix("--").filter(|long| !long.is_empty()))
            .collect();
        assert!(
            of_cargo.len() > 20,
            "cargo's help could not be read:\n{help}"
        );
        let ours: BTreeSet<&str> = CARGO_OPTIONS.iter().map(|option| option.long).collect();
        let missing: Vec<_> = of_cargo
            .difference(&ours)
            .filter(|long| !["help", "list"].contains(long))
            .collect();
        assert!(
            missing.is_empty(),
            "unknown to cargo orbit test: {missing:?}"
        );
    }
}
