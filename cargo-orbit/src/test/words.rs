//! What follows `--`: the options of the standard test harness, as far as the engine must know them.
//!
//! Pure.

use std::ffi::OsString;

use super::select::RunIgnored;

/// Options for test programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// Only tests whose names contain one of these.
    pub(crate) names: Vec<String>,
    pub(crate) exact: bool,
    pub(crate) skip: Vec<String>,
    pub(crate) ignored: RunIgnored,
    pub(crate) nocapture: bool,
    /// What passed tests said is wanted too.
    pub(crate) show_output: bool,
    pub(crate) quiet: bool,
    pub(crate) list: bool,
    pub(crate) threads: Option<usize>,
    /// What the harness knows and the engine does not: passed on.
    pub(crate) others: Vec<OsString>,
}

impl Words {
    /// Understands them as the harness would.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub(crate) fn parse(words: &[OsString]) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut words = words.iter();
        let mut only_names = false;
        while let Some(word) = words.next() {
            let Some(text) = word.to_str() else {
                parsed.others.push(word.clone());
                continue;
            };
            if only_names || !text.starts_with('-') {
                parsed.names.push(text.to_owned());
                continue;
            }
            let (name, given) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (text, None),
            };
            let mut value = |given: Option<String>| {
                given
                    .or_else(|| Some(words.next()?.to_string_lossy().into_owned()))
                    .ok_or_else(|| format!("{name} of the test harness needs a value"))
            };
            match name {
                "--" => only_names = true,
                "--exact" => parsed.exact = true,
                "--skip" => parsed.skip.push(value(given)?),
                "--ignored" => parsed.ignored = RunIgnored::Only,
                "--include-ignored" => parsed.ignored = RunIgnored::Include,
                "--nocapture" | "--no-capture" => parsed.nocapture = true,
                "--show-output" => parsed.show_output = true,
                "-q" | "--quiet" => parsed.quiet = true,
                "--list" => parsed.list = true,
                "--test-threads" => {
                    let text = value(given)?;
                    let threads = text.parse().ok().filter(|threads| *threads > 0);
                    let fault = || format!("--test-threads {text}: expected a number from 1");
                    parsed.threads = Some(threads.ok_or_else(fault)?);
                }
                // How it looks is the engine's own.
                "--format" | "--color" => {
                    value(given)?;
                }
                // Theirs is the next word, which is no name.
                "-Z" | "--logfile" | "--shuffle-seed" if given.is_none() => {
                    let value = value(None)?;
                    parsed.others.extend([text.into(), value.into()]);
                }
                _ => parsed.others.push(word.clone()),
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Words, String> {
        let words: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        Words::parse(&words)
    }

    #[test]
    fn the_harness_own_options_are_understood() {
        let words = parse(
            "a --exact b --skip c --skip=d --include-ignored --nocapture --test-threads 3 --bench",
        )
        .unwrap();
        assert_eq!(words.names, ["a", "b"]);
        assert_eq!(words.skip, ["c", "d"]);
        assert_eq!(words.threads, Some(3));
        assert_eq!(words.ignored, RunIgnored::Include);
        assert!(words.exact && words.nocapture && !words.list);
        assert_eq!(words.others, ["--bench"]);
        let words = parse("-Z unstable-options --report-time a --logfile=b --shuffle-seed 5");
        let words = words.unwrap();
        assert_eq!(words.names, ["a"]);
        assert_eq!(
            words.others,
            [
                "-Z",
                "unstable-options",
                "--report-time",
                "--logfile=b",
                "--shuffle-seed",
                "5"
            ]
        );
        assert!(parse("--list --format terse").unwrap().list);
        assert_eq!(parse("-- --list").unwrap().names, ["--list"]);
    }

    #[test]
    fn a_value_that_is_none_is_refused() {
        assert_eq!(
            parse("--test-threads 0").unwrap_err(),
            "--test-threads 0: expected a number from 1"
        );
        assert!(parse("--skip").is_err());
        assert!(parse("--test-threads=x").is_err());
    }
}
