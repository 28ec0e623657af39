//! `--report DIR`: one HTML page with the timeline of the run, its results and outputs.
//!
//! `index.html` is whole: it asks nothing of any network, and works from `file://`. What tests wrote and are called
//! is in it as JSON in which no tag can begin or end, is only ever put into the page as text, and the page's policy
//! (CSP) lets no script run but its own, which it knows by its hash. The page's parts are the files beside this one.

use std::{
    borrow::Cow,
    io::{self, Write},
    path::PathBuf,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde_json::Value;

use super::{
    Report, json,
    text::{self, Budget},
};
use crate::test::event::{Attempt, BinaryId, Event, SharedSandbox, TestResult};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
/// In order: each uses those before it when it is read, and any of them later.
const SCRIPT: &str = concat!(
    include_str!("common.js"),
    include_str!("timeline.js"),
    include_str!("table.js"),
    include_str!("details.js"),
);

/// More than this of one stream of a test that did not pass is cut.
const FAILED_MOST_BYTES: usize = 64 << 10;
/// The same of one that passed.
const PASSED_MOST_BYTES: usize = 8 << 10;
/// More words, files, addresses of one kind are counted.
const WORDS_MOST: usize = 100;

/// The report. It is held in memory until the end of the run, and bounded by the budgets.
pub(crate) struct Html {
    directory: PathBuf,
    data: Data,
    of_failed: Budget,
    of_passed: Budget,
}

/// What the page's script is given. Fields that say nothing are left out: there may be ten thousand tests.
#[derive(Default, Serialize)]
struct Data {
    run: Value,
    summary: Value,
    binaries: Vec<String>,
    tests: Vec<Test>,
    shared: Vec<Shared>,
    #[serde(skip)]
    known: std::collections::HashMap<BinaryId, usize>,
}

#[derive(Serialize)]
struct Test {
    /// Its place among the binaries.
    binary: usize,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition: Option<u32>,
    class: &'static str,
    attempts: Vec<Try>,
}

/// A sandbox of several tests.
#[derive(Serialize)]
struct Shared {
    binary: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition: Option<u32>,
    tests: usize,
    sandbox: Try,
}

#[derive(Serialize)]
struct Try {
    word: &'static str,
    phrase: String,
    started: f64,
    wall: f64,
    lane: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shared: bool,
    user: f64,
    system: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    stdout: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    stderr: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    leaked: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    denied: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wrote: Vec<String>,
    /// How many files are not named.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrote_more: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

impl Html {
    /// Written to `index.html` in `directory` at the end of the run, whole or not at all.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            data: Data::default(),
            of_failed: Budget(12 << 20),
            of_passed: Budget(4 << 20),
        }
    }

    fn place_of(&mut self, binary: &BinaryId) -> usize {
        if let Some(&known) = self.data.known.get(binary) {
            return known;
        }
        let place = self.data.binaries.len();
        self.data.binaries.push(text::name(&binary.0).into_owned());
        self.data.known.insert(binary.clone(), place);
        place
    }

    fn shared(&mut self, shared: &SharedSandbox) {
        let shared = Shared {
            binary: self.place_of(&shared.binary),
            repetition: shared.repetition,
            tests: shared.tests,
            sandbox: self.attempt(&shared.attempt),
        };
        self.data.shared.push(shared);
    }

    /// A test that was told to have passed is taken out: it is told again.
    fn forget(&mut self, result: &TestResult) {
        let binary = self.place_of(&result.id.binary);
        let name = text::name(&result.id.name);
        let at = self.data.tests.iter().rposition(|test| {
            test.binary == binary && test.name == name && test.repetition == result.id.repetition
        });
        if let Some(at) = at {
            self.data.tests.remove(at);
        }
    }

    fn finished(&mut self, result: &TestResult) {
        let binary = self.place_of(&result.id.binary);
        let attempts = result.attempts.iter().map(|attempt| self.attempt(attempt));
        let attempts = attempts.collect();
        self.data.tests.push(Test {
            binary,
            name: text::name(&result.id.name).into_owned(),
            repetition: result.id.repetition,
            class: json::class(result.class()),
            attempts,
        });
    }

    fn attempt(&mut self, attempt: &Attempt) -> Try {
        let (budget, most) = if attempt.verdict.passed() {
            (&mut self.of_passed, PASSED_MOST_BYTES)
        } else {
            (&mut self.of_failed, FAILED_MOST_BYTES)
        };
        let mut output = |bytes: &[u8]| text::output(&budget.cut(bytes, most), true);
        let words = |words: &[String]| -> Vec<String> {
            let words = words.iter().take(WORDS_MOST);
            words.map(|word| short(word)).collect()
        };
        Try {
            word: attempt.verdict.word(),
            phrase: text::output(
                &text::cut(attempt.verdict.to_string().as_bytes(), 4 << 10),
                false,
            ),
            started: json::seconds(attempt.started),
            wall: json::seconds(attempt.wall_time),
            lane: attempt.lane,
            shared: !attempt.alone,
            user: json::seconds(attempt.used.cpu_user),
            system: json::seconds(attempt.used.cpu_system),
            memory: attempt.used.memory_peak_bytes,
            stdout: output(&attempt.stdout),
            stderr: output(&attempt.stderr),
            leaked: words(&attempt.leaked),
            denied: attempt
                .denied
                .iter()
                .take(WORDS_MOST)
                .map(|denied| match denied.count {
                    1 => short(&denied.to),
                    count => format!("{} ({count} times)", short(&denied.to)),
                })
                .collect(),
            wrote: words(&attempt.wrote),
            wrote_more: attempt
                .wrote
                .len()
                .checked_sub(WORDS_MOST)
                .filter(|&more| more > 0),
            notes: words(&attempt.notes),
            kept: attempt.kept.as_deref().map(short),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let data = serde_json::to_string(&self.data)?;
        let workspace = self.data.run["workspace"].as_str().unwrap_or_default();
        let hash = |text: &str| {
            format!(
                "'sha256-{}'",
                STANDARD.encode(digest(&SHA256, text.as_bytes()))
            )
        };
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; base-uri 'none'; form-action 'none'",
            hash(SCRIPT),
            hash(STYLE)
        );
        // What is put in is never searched for another place.
        let mut rest = PAGE;
        while let Some((before, after)) = rest.split_once("{{") {
            let (place, after) = after.split_once("}}").unwrap_or((after, ""));
            out.write_all(before.as_bytes())?;
            let value: Cow<'_, str> = match place {
                "policy" => Cow::Borrowed(&policy),
                "title" => escaped(&format!("{workspace}: test report")).into(),
                "style" => STYLE.into(),
                "script" => SCRIPT.into(),
                _ => inert(&data).into(),
            };
            out.write_all(value.as_bytes())?;
            rest = after;
        }
        out.write_all(rest.as_bytes())
    }
}

impl Report for Html {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::RunStarted(run) => {
                let mut run = run.clone();
                for word in [&mut run.run, &mut run.workspace]
                    .into_iter()
                    .chain(&mut run.profile)
                    .chain(&mut run.command_line)
                {
                    *word = short(word);
                }
                self.data.run = json::run_started(&run);
            }
            Event::TestFinished(result) => self.finished(result),
            Event::TestCorrected(result) => {
                self.forget(result);
                self.finished(result);
            }
            Event::SandboxFinished(shared) => self.shared(shared),
            Event::RunFinished(summary) => {
                self.data.summary = json::run_finished(summary);
                super::write_whole(&self.directory.join("index.html"), |out| self.write(out))?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// A name, no longer than anybody reads.
fn short(word: &str) -> String {
    const MOST: usize = 1 << 10;
    let safe = text::name(word);
    if safe.len() <= MOST {
        return safe.into_owned();
    }
    let end = (0..=MOST).rev().find(|&at| safe.is_char_boundary(at));
    format!("{}…", &safe[..end.unwrap_or(0)])
}

/// JSON in which no tag and no comment of HTML can begin or end.
fn inert(json: &str) -> String {
    // Outside of strings JSON has none of these.
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

/// For the title.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::{report::sample, test::event::Verdict};

    fn page(events: &[Event]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let mut html = Html::new(directory.path().join("not/there"));
        for event in events {
            html.on(event).unwrap();
        }
        fs::read_to_string(directory.path().join("not/there/index.html")).unwrap()
    }

    fn data_of(page: &str) -> Value {
        let (_, data) = page.split_once(r#"id="data">"#).unwrap();
        serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap()
    }

    #[test]
    fn the_data_of_a_run() {
        let data = data_of(&page(&sample::run()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&data).unwrap());
    }

    #[test]
    fn a_test_that_is_told_again_is_there_once() {
        let mut events = sample::run();
        let at = events.len() - 1;
        let mut failed = sample::results().swap_remove(0);
        failed.attempts[0].verdict = Verdict::Failed { code: None };
        events.insert(at, Event::TestCorrected(failed));
        let (before, after) = (data_of(&page(&sample::run())), data_of(&page(&events)));
        let tests = |data: &Value| data["tests"].as_array().unwrap().clone();
        assert_eq!(tests(&before).len(), tests(&after).len());
        let told: Vec<_> = tests(&after)
            .into_iter()
            .filter(|test| test["name"] == "parse::empty")
            .collect();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0]["class"], "failed");
    }

    #[test]
    fn the_page_is_whole_and_asks_for_nothing() {
        let page = page(&sample::run());
        assert!(!page.contains("{{"), "a place was not filled");
        for wrong in ["http:", "https:", "src=", "@import", "url("] {
            let own: String = [PAGE, STYLE, SCRIPT].concat();
            assert!(!own.contains(wrong), "{wrong}");
        }
        // The page's own, the data's, and no third one.
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("</script").count(), 2);
    }

    /// As many as a large workspace has, each with more to say than anybody reads.
    #[test]
    fn ten_thousand_tests_make_a_page_of_bounded_size() {
        let results = (0..10_000).map(|n| {
            let mut attempt = sample::attempt(n % 8, n as u64, 40, Verdict::Failed { code: None });
            attempt.stdout = b"a line of output <b>\n".repeat(10_000);
            TestResult {
                id: sample::id("big", &format!("module::test_{n}")),
                attempts: vec![attempt],
                skipped: None,
            }
        });
        let mut html = Html::new(PathBuf::new());
        for result in results {
            html.finished(&result);
        }
        let mut page = Vec::new();
        html.write(&mut page).unwrap();
        assert!(page.len() < 30 << 20, "{}", page.len());
        assert_eq!(html.data.tests.len(), 10_000);
    }

    proptest! {
        #[test]
        fn nothing_breaks_out_of_the_data(stdout: Vec<u8>, name: String, tags in "(</?script>|<!--|-->|&lt;|\\{\\{|\\\\){0,8}") {
            let mut attempt = sample::attempt(0, 0, 1, Verdict::SetupFailed { why: tags.clone() });
            attempt.stdout = [tags.as_bytes(), &stdout].concat();
            let name = name + &tags;
            let result = TestResult { id: sample::id(&name, &name), attempts: vec![attempt], skipped: None };
            let page = page(&sample::events(vec![result]));
            prop_assert_eq!(page.matches("<script").count(), 2);
            let data = data_of(&page);
            prop_assert_eq!(data["tests"][0]["name"].as_str(), Some(&*text::name(&name)));
            prop_assert_eq!(data["tests"][0]["attempts"][0]["phrase"].as_str().map(|it| it.ends_with(&tags)), Some(true));
        }
    }
}
