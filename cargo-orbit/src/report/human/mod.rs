//! The report for who sits before it: a line for each test, what the failed ones said, and a summary.
//!
//! It goes to standard error, where cargo's messages go too: standard output stays for what a program may want to
//! read, `--message-format json` and `--list`. What a line says is in [`lines`], the progress line in [`progress`].

mod lines;
mod progress;

use std::{
    io::{self, Write},
    time::Duration,
};

use self::{lines::Lines, progress::Progress};
use super::{Report, colour::Brush, github::Guard};
use crate::{
    screen::Screen,
    test::event::{Class, Event, TestResult},
};

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// What failed, and the summary.
    Quiet,
    #[default]
    Normal,
    /// What passed tests said too, when tests start, what they used, and what was not run.
    Verbose,
}

/// The report.
pub(crate) struct Human<W> {
    out: W,
    verbosity: Verbosity,
    lines: Lines,
    progress: Progress,
    /// What the summary names: not their output, which has been written.
    remarkable: Vec<Remarkable>,
}

/// A test that the summary names.
struct Remarkable {
    class: Class,
    line: String,
}

impl Human<io::Stderr> {
    /// To standard error, with a progress line where that is a terminal.
    pub(crate) fn new(verbosity: Verbosity, colours: bool) -> Self {
        Self::to(io::stderr(), Screen::stderr(), verbosity, colours)
    }
}

impl<W: Write> Human<W> {
    fn to(out: W, screen: Screen, verbosity: Verbosity, colours: bool) -> Self {
        let brush = Brush { colours };
        Self {
            out,
            verbosity,
            lines: Lines {
                brush,
                verbose: verbosity == Verbosity::Verbose,
                guard: None,
            },
            progress: Progress::new(screen, brush),
            remarkable: Vec::new(),
        }
    }

    /// For a step on GitHub Actions, whose runner must not obey what tests write.
    pub(crate) fn guarded(mut self, guard: Guard) -> Self {
        self.lines.guard = Some(guard);
        self
    }

    /// Writes whole lines, with the progress line out of the way.
    fn write(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let out = &mut self.out;
        self.progress.aside(|| {
            out.write_all(text.as_bytes())?;
            out.flush()
        })
    }

    fn finished(&mut self, result: &TestResult) -> String {
        let class = result.class();
        if matches!(class, Class::Failed | Class::Flaky) {
            self.remarkable.push(Remarkable {
                class,
                line: self.lines.in_summary(result),
            });
        }
        let least = match class {
            Class::Failed => Verbosity::Quiet,
            Class::Passed | Class::Flaky => Verbosity::Normal,
            Class::Ignored | Class::NotReached => Verbosity::Verbose,
        };
        if self.verbosity < least {
            return String::new();
        }
        self.lines.finished(result)
    }
}

impl<W: Write + Send> Report for Human<W> {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        self.progress.on(event);
        let normal = self.verbosity >= Verbosity::Normal;
        let text = match event {
            Event::RunStarted(run) if normal => self.lines.run_started(run),
            Event::BinaryListed(binary) if self.lines.verbose => self.lines.binary_listed(binary),
            Event::TestStarted { id, attempt, .. } if self.lines.verbose => {
                self.lines.test_started(id, *attempt)
            }
            Event::TestSlow { id, running_for } if normal => self.lines.slow(id, *running_for),
            Event::TestRetried { id, failed } if normal => self.lines.retried(id, failed),
            Event::TestFinished(result) | Event::TestCorrected(result) => self.finished(result),
            Event::SandboxFinished(shared) if normal => self.lines.shared(shared),
            Event::Ending { why, running } => self.lines.ending(*why, *running),
            Event::RunFinished(summary) => {
                let mut text = self.lines.summary(summary);
                for class in [Class::Flaky, Class::Failed] {
                    let named = self.remarkable.iter().filter(|test| test.class == class);
                    // The flaky ones passed: without the line of each, nobody wants the list.
                    text.extend(
                        named
                            .filter(|_| normal || class == Class::Failed)
                            .map(|test| test.line.as_str()),
                    );
                }
                text + &self.lines.what_next(summary)
            }
            _ => String::new(),
        };
        self.write(&text)
    }

    fn tick(&mut self, now: Duration) -> io::Result<()> {
        self.progress.tick(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn told(verbosity: Verbosity, colours: bool) -> String {
        let mut out = Vec::new();
        let mut human = Human::to(&mut out, Screen::hidden(), verbosity, colours);
        for event in sample::run() {
            human.on(&event).unwrap();
        }
        drop(human);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_run_as_people_see_it() {
        insta::assert_snapshot!("normal", told(Verbosity::Normal, false));
        insta::assert_snapshot!("quiet", told(Verbosity::Quiet, false));
        insta::assert_snapshot!("verbose", told(Verbosity::Verbose, false));
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let coloured = told(Verbosity::Normal, true);
        assert!(coloured.contains("\x1b[1m\x1b[32m    PASS"), "{coloured:?}");
        let plain = super::super::text::output(coloured.as_bytes(), false);
        assert_eq!(plain, told(Verbosity::Normal, false));
    }

    #[test]
    fn on_github_no_line_of_a_test_is_a_command() {
        let mut out = Vec::new();
        let mut human =
            Human::to(&mut out, Screen::hidden(), Verbosity::Normal, false).guarded(Guard::new());
        for event in sample::run() {
            human.on(&event).unwrap();
        }
        drop(human);
        let mut ends = None;
        for line in str::from_utf8(&out).unwrap().lines().map(str::trim) {
            if let Some(word) = line.strip_prefix("::stop-commands::") {
                assert_eq!(ends, None);
                ends = Some(format!("::{word}::"));
            } else if ends.as_deref() == Some(line) {
                ends = None;
            } else {
                assert!(ends.is_some() || !line.starts_with("::"), "{line}");
            }
        }
        assert_eq!(ends, None);
    }

    #[test]
    fn no_name_and_no_output_moves_the_cursor() {
        let text = told(Verbosity::Verbose, false);
        let wild = text
            .chars()
            .find(|&c| c.is_control() && c != '\n' && c != '\t');
        assert_eq!(wild, None);
    }
}
