//! GitHub Actions: annotations where the code failed, and the step's summary.
//!
//! Annotations are lines that the runner reads from either stream of a step; ours go to standard error with the rest
//! that people read, at the end of the run. The runner would also obey what a test wrote: see [`Guard`].

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::{self, OpenOptions},
    hash::{BuildHasher as _, RandomState},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Report,
    text::{self, counted},
};
use crate::test::event::{Attempt, Class, Event, Summary, TestResult, mebibytes};

/// GitHub shows no more than this of each level for a step.
const ANNOTATIONS_MOST: usize = 10;
/// GitHub refuses a summary that is longer.
const SUMMARY_MOST_BYTES: usize = 1 << 20;
/// A table with more lines is for the HTML report.
const ROWS_MOST: usize = 500;
const SLOWEST: usize = 10;
/// More of a panic's message is in the log.
const MESSAGE_MOST_BYTES: usize = 2 << 10;

/// Whether this process is a step on GitHub Actions.
pub(crate) fn is_here(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable("GITHUB_ACTIONS").is_some_and(|value| value == "true")
}

/// Keeps the runner from obeying commands in what a test wrote: it is told to stop until it reads a word that no
/// test can know.
#[derive(Clone, Debug)]
pub(crate) struct Guard(String);

impl Guard {
    /// With a new word.
    pub(crate) fn new() -> Self {
        // The standard library's keys for hash tables come from the system's random numbers.
        let number = || RandomState::new().hash_one(std::process::id());
        Self(format!("orbit-{:016x}{:016x}", number(), number()))
    }

    /// `text`, of whole lines, with the guard around it where it is needed.
    pub(crate) fn around(&self, text: &str) -> String {
        let Self(word) = self;
        if text.contains("::") || text.contains("##[") {
            format!("::stop-commands::{word}\n{text}::{word}::\n")
        } else {
            text.to_owned()
        }
    }
}

/// The report.
pub(crate) struct Github<W> {
    out: W,
    /// `GITHUB_WORKSPACE`: annotations name files from there.
    repository: Option<PathBuf>,
    /// The root of Cargo's workspace, from which the compiler names its files.
    root: PathBuf,
    /// `GITHUB_STEP_SUMMARY`: a file that other steps' parts may be in.
    summary: Option<PathBuf>,
    errors: Vec<String>,
    warnings: Vec<String>,
    failed: Rows,
    flaky: Rows,
    slowest: Vec<(Duration, String)>,
}

/// The lines of a table.
#[derive(Default)]
struct Rows {
    rows: Vec<String>,
    left_out: usize,
}

impl Rows {
    fn add(&mut self, row: impl FnOnce() -> String) {
        if self.rows.len() < ROWS_MOST {
            self.rows.push(row());
        } else {
            self.left_out += 1;
        }
    }
}

impl<W: Write> Github<W> {
    /// Annotations go to `out`, the rest where the variables say; `root` is Cargo's workspace.
    pub(crate) fn new(out: W, root: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name| {
            variable(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            out,
            repository: path("GITHUB_WORKSPACE"),
            root: root.to_owned(),
            summary: path("GITHUB_STEP_SUMMARY"),
            errors: Vec::new(),
            warnings: Vec::new(),
            failed: Rows::default(),
            flaky: Rows::default(),
            slowest: Vec::new(),
        }
    }

    fn finished(&mut self, result: &TestResult) {
        let Some(last) = result.attempts.last() else {
            return;
        };
        let test = markdown(&result.id.to_string());
        let wall = |attempt: &Attempt| format!("{:.3} s", attempt.wall_time.as_secs_f64());
        match result.class() {
            Class::Failed => {
                if self.errors.len() < ANNOTATIONS_MOST {
                    self.errors.push(self.annotation("error", result, last));
                }
                self.failed.add(|| {
                    let how = markdown(&phrase(last));
                    format!("| {test} | {how} | {} |\n", wall(last))
                });
            }
            Class::Flaky => {
                let first = result.attempts.first().unwrap_or(last);
                if self.warnings.len() < ANNOTATIONS_MOST {
                    self.warnings
                        .push(self.annotation("warning", result, first));
                }
                self.flaky.add(|| {
                    let how = markdown(&phrase(first));
                    format!("| {test} | first {how} | {} |\n", result.attempts.len())
                });
            }
            _ => {}
        }
        // Where it is told again, that is what counts.
        let same = format!("| {test} | ");
        self.slowest.retain(|(_, row)| !row.starts_with(&same));
        let slower = self
            .slowest
            .partition_point(|(time, _)| *time >= last.wall_time);
        if slower < SLOWEST {
            let memory = last
                .used
                .memory_peak_bytes
                .map_or_else(|| "–".to_owned(), mebibytes);
            let row = format!("| {test} | {} | {memory} |\n", wall(last));
            self.slowest.insert(slower, (last.wall_time, row));
            self.slowest.truncate(SLOWEST);
        }
    }

    /// `::error file=…,line=…,title=…::message`.
    fn annotation(&self, level: &str, result: &TestResult, attempt: &Attempt) -> String {
        let panic = [&attempt.stderr, &attempt.stdout]
            .into_iter()
            .find_map(|bytes| Panic::find(&text::output(bytes, false)));
        let title = text::name(&result.id.to_string()).into_owned();
        let mut line = format!("::{level} ");
        if let Some(panic) = &panic
            && let Some(file) = self.in_repository(&panic.file)
        {
            let _ = write!(
                line,
                "file={},line={},col={},",
                property(&file),
                panic.line,
                panic.column
            );
        }
        let phrase = attempt.verdict.to_string();
        let message = match panic {
            Some(panic) if !panic.message.is_empty() => panic.message,
            _ => phrase,
        };
        let message = text::output(&text::cut(message.as_bytes(), MESSAGE_MOST_BYTES), false);
        let _ = writeln!(line, "title={}::{}", property(&title), data(&message));
        line
    }

    /// A file as GitHub names it; `None` for files of others, such as the standard library's.
    fn in_repository(&self, file: &str) -> Option<String> {
        let Some(repository) = &self.repository else {
            let is_of_workspace = Path::new(file).is_relative();
            return is_of_workspace.then(|| file.to_owned());
        };
        // Cargo has resolved the links in its paths, and the runner need not have.
        let resolved = fs::canonicalize(repository).ok();
        let file = self.root.join(file);
        let named = [Some(repository), resolved.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|repository| file.strip_prefix(repository).ok())?;
        Some(named.to_string_lossy().into_owned())
    }

    /// The step's summary, in at most so many bytes.
    fn markdown(&self, summary: &Summary, most_bytes: usize) -> String {
        let run = summary.passed + summary.failed;
        let mut text = if summary.failed > 0 {
            format!(
                "## {} of {} failed\n\n",
                summary.failed,
                counted(run, "test")
            )
        } else {
            format!("## {} passed\n\n", counted(run, "test"))
        };
        let _ = writeln!(
            text,
            "{} passed, {} flaky, {} failed, {} ignored, {} not reached, in {:.1} s\n",
            summary.passed,
            summary.flaky,
            summary.failed,
            summary.ignored,
            summary.not_reached,
            summary.wall_time.as_secs_f64()
        );
        let slowest = Rows {
            rows: self.slowest.iter().map(|(_, row)| row.clone()).collect(),
            left_out: 0,
        };
        // What matters least is last, and left out first.
        for (title, heads, rows) in [
            (
                "Failed",
                "| Test | How it ended | Time |\n|---|---|---:|\n",
                &self.failed,
            ),
            (
                "Flaky",
                "| Test | How it failed | Attempts |\n|---|---|---:|\n",
                &self.flaky,
            ),
            (
                "Slowest",
                "| Test | Time | Memory, peak |\n|---|---:|---:|\n",
                &slowest,
            ),
        ] {
            table(&mut text, title, heads, rows, most_bytes);
        }
        text
    }
}

/// Appends a table, as much of it as there is room for.
fn table(text: &mut String, title: &str, heads: &str, rows: &Rows, most_bytes: usize) {
    // For the head of the table and the note under it.
    const ROOM_BYTES: usize = 256;
    if rows.rows.is_empty() || text.len() + ROOM_BYTES + rows.rows[0].len() > most_bytes {
        return;
    }
    let _ = write!(text, "### {title}\n\n{heads}");
    let mut left_out = rows.left_out;
    for row in &rows.rows {
        if text.len() + row.len() + ROOM_BYTES / 2 > most_bytes {
            left_out += 1;
        } else {
            text.push_str(row);
        }
    }
    if left_out > 0 {
        let _ = write!(text, "\nand {left_out} more\n");
    }
    text.push('\n');
}

impl<W: Write + Send> Report for Github<W> {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::TestFinished(result) | Event::TestCorrected(result) => self.finished(result),
            Event::RunFinished(summary) => {
                let lines = [self.errors.concat(), self.warnings.concat()].concat();
                self.out.write_all(lines.as_bytes())?;
                self.out.flush()?;
                if let Some(path) = &self.summary {
                    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
                    let there = file.metadata()?.len();
                    let there = usize::try_from(there).unwrap_or(usize::MAX);
                    let room = SUMMARY_MOST_BYTES.saturating_sub(there);
                    let text = self.markdown(summary, room);
                    if text.len() <= room {
                        file.write_all(text.as_bytes())?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Where a test panicked, and with what message.
#[derive(Debug, PartialEq, Eq)]
struct Panic {
    file: String,
    line: u64,
    column: u64,
    message: String,
}

impl Panic {
    /// The first one in what a test wrote: `thread 'x' panicked at src/x.rs:1:2:`, and the message on the lines after.
    fn find(output: &str) -> Option<Self> {
        let mut lines = output.lines();
        let mut place = lines.by_ref().filter_map(|line| {
            let (_, place) = line.split_once(" panicked at ")?;
            let mut parts = place.strip_suffix(':')?.rsplitn(3, ':');
            let column = parts.next()?.parse().ok()?;
            let line = parts.next()?.parse().ok()?;
            Some((parts.next()?.to_owned(), line, column))
        });
        let (file, line, column) = place.next()?;
        drop(place);
        let message: Vec<&str> = lines
            .take_while(|line| !line.starts_with("note: ") && *line != "stack backtrace:")
            .collect();
        Some(Self {
            file,
            line,
            column,
            message: message.join("\n").trim().to_owned(),
        })
    }
}

/// The first line of what an attempt's verdict says.
fn phrase(attempt: &Attempt) -> String {
    let phrase = attempt.verdict.to_string();
    phrase.lines().next().unwrap_or_default().to_owned()
}

/// The message of a workflow command.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A property of a workflow command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// Text in a cell of a table: punctuation as references, which Markdown takes for nothing but themselves.
fn markdown(text: &str) -> String {
    const MOST: usize = 500;
    let safe = text::name(text);
    let mut cell = String::with_capacity(safe.len());
    for c in safe.chars().take(MOST) {
        if c.is_ascii_punctuation() && c != '.' && c != ',' {
            let _ = write!(cell, "&#{};", u32::from(c));
        } else {
            cell.push(c);
        }
    }
    if safe.chars().count() > MOST {
        cell.push('…');
    }
    cell
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{report::sample, test::event::Verdict};

    fn told(events: &[Event], there: &str) -> (String, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("summary.md");
        fs::write(&path, there).unwrap();
        let mut out = Vec::new();
        let root = Path::new("/home/runner/work/x/x");
        let mut github = Github::new(&mut out, root, |name| match name {
            "GITHUB_STEP_SUMMARY" => Some(path.clone().into()),
            "GITHUB_WORKSPACE" => Some(root.into()),
            _ => None,
        });
        for event in events {
            github.on(event).unwrap();
        }
        drop(github);
        let summary = fs::read_to_string(path).unwrap();
        (String::from_utf8(out).unwrap(), summary)
    }

    #[test]
    fn a_run_as_github_sees_it() {
        let (annotations, summary) = told(&sample::run(), "# before\n\n");
        assert!(summary.starts_with("# before\n\n## 10 of 19 tests failed\n"));
        insta::assert_snapshot!("annotations", annotations);
        insta::assert_snapshot!("summary", summary);
    }

    #[test]
    fn a_test_that_failed_after_all_is_annotated() {
        let mut result = sample::results().swap_remove(0);
        let passed = Event::TestFinished(result.clone());
        result.attempts[0].verdict = Verdict::Failed { code: None };
        let mut events = sample::events(Vec::new());
        let at = events.len() - 1;
        events.splice(at..at, [passed, Event::TestCorrected(result.clone())]);
        let (annotations, summary) = told(&events, "");
        assert_eq!(annotations.lines().count(), 1, "{annotations}");
        let name = markdown(&result.id.to_string());
        // As failed, and as one of the slowest.
        assert_eq!(summary.matches(&name).count(), 2, "{summary}");
    }

    #[test]
    fn a_panic_is_found_with_its_message() {
        let found = Panic::find(
            "noise\nthread 'a' (1) panicked at src/x.rs:1:2:\nleft\n  right\nnote: run with\n",
        );
        let panic = Panic {
            file: "src/x.rs".to_owned(),
            line: 1,
            column: 2,
            message: "left\n  right".to_owned(),
        };
        assert_eq!(found, Some(panic));
        for none in [
            "",
            "thread panicked at nowhere",
            "x panicked at :::",
            "y panicked at a:b:c:",
        ] {
            assert_eq!(Panic::find(none), None, "{none}");
        }
    }

    #[test]
    fn files_of_others_are_not_named() {
        let named = |root: &str, repository: Option<&Path>, file: &str| {
            let github = Github::new(io::sink(), Path::new(root), |name| {
                repository
                    .filter(|_| name == "GITHUB_WORKSPACE")
                    .map(Into::into)
            });
            github.in_repository(file)
        };
        let here = Some(Path::new("/w"));
        assert_eq!(named("/w", here, "src/a.rs").as_deref(), Some("src/a.rs"));
        assert_eq!(
            named("/w", here, "/w/src/a.rs").as_deref(),
            Some("src/a.rs")
        );
        assert_eq!(
            named("/w", here, "/rustc/0/library/core/src/option.rs"),
            None
        );
        assert_eq!(
            named("/w", None, "/rustc/0/library/core/src/option.rs"),
            None
        );
        // A workspace below the top of its repository.
        assert_eq!(
            named("/w/rust/app", here, "src/a.rs").as_deref(),
            Some("rust/app/src/a.rs")
        );
        assert_eq!(named("/elsewhere", here, "src/a.rs"), None);

        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let root = fs::canonicalize(&real).unwrap();
        assert_eq!(
            named(&root.join("app").to_string_lossy(), Some(&link), "src/a.rs").as_deref(),
            Some("app/src/a.rs")
        );
    }

    #[test]
    fn the_summary_is_never_too_long() {
        let failed = |n| TestResult {
            id: sample::id("b", &format!("{n}{}", "*".repeat(2000))),
            attempts: vec![sample::attempt(0, 0, 1, Verdict::Failed { code: None })],
            skipped: None,
        };
        let events = sample::events((0..2000).map(failed).collect());
        for there in [0, SUMMARY_MOST_BYTES - 1000, SUMMARY_MOST_BYTES - 10] {
            let (annotations, summary) = told(&events, &"x".repeat(there));
            assert!(summary.len() <= SUMMARY_MOST_BYTES, "{}", summary.len());
            assert_eq!(annotations.lines().count(), ANNOTATIONS_MOST);
        }
        let (_, summary) = told(&events, "");
        assert!(
            summary.contains("more\n"),
            "it does not say that some are left out"
        );
    }

    proptest! {
        #[test]
        fn a_test_gives_the_runner_no_command(stderr: Vec<u8>, name: String, odd in "([\r\n%:,|`*<]|::error::|##\\[){0,12}") {
            let mut attempt = sample::attempt(0, 0, 1, Verdict::Failed { code: None });
            attempt.stderr = [&stderr, b"\nthread 'x' panicked at ".as_slice(), odd.as_bytes(), b":1:1:\n", odd.as_bytes()].concat();
            let id = sample::id("b", &(name + &odd));
            let events = sample::events(vec![TestResult { id, attempts: vec![attempt], skipped: None }]);
            let (annotations, summary) = told(&events, "");
            prop_assert_eq!(annotations.lines().count(), 1, "{}", annotations);
            prop_assert!(annotations.starts_with("::error "));
            let head = annotations[2..].split_once("::").unwrap().0;
            prop_assert!(head.contains("title="), "{}", annotations);
            for row in summary.lines().filter(|line| line.starts_with('|')) {
                prop_assert_eq!(row.matches('|').count(), 4, "{}", row);
            }
        }
    }
}
