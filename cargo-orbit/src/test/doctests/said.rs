//! What cargo and rustdoc say of doctests, read while they say it.
//!
//! For each library `Doc-tests NAME`, and then for each program with several doctests, or for all that have programs of their
//! own, what the standard harness prints. Only the ends of what was printed are kept, however much it is.
//!
//! Pure: whoever reads says when.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::test::{
    ends::Ends,
    libtest::{self, Said},
};

/// So much is kept of what is said of a library.
const KEPT_BYTES: usize = 8 << 20;

/// A line that is longer says nothing of a test.
const LINE_MOST_BYTES: usize = 64 << 10;

/// What was said of one library, by the name that cargo calls it by.
#[derive(Debug, Default)]
pub(super) struct Library {
    pub(super) name: String,
    /// In the order in which they came.
    pub(super) verdicts: Vec<Heard>,
    /// What failed doctests printed, without what stands after their names.
    pub(super) outputs: BTreeMap<String, Vec<u8>>,
    /// How many doctests there were in programs that ended before all had a verdict.
    pub(super) lost: usize,
    /// All that was said, or its ends.
    pub(super) text: Vec<u8>,
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) name: String,
    pub(super) said: Said,
    /// Which of the threads it ran in, as far as can be told.
    pub(super) lane: usize,
    pub(super) started: Duration,
    pub(super) ended: Duration,
}

/// Reads it.
#[derive(Debug)]
pub(super) struct Listener {
    threads: usize,
    began: Duration,
    line: Vec<u8>,
    /// Before the first library: cargo's own words.
    preface: Ends,
    libraries: Vec<Library>,
    text: Ends,
    /// What runs now: how many tests, since when, and those whose verdicts came.
    round: Option<Round>,
}

#[derive(Debug)]
struct Round {
    tests: usize,
    began: Duration,
    heard: Vec<(String, Said, Duration)>,
}

impl Listener {
    pub(super) fn new(threads: usize, began: Duration) -> Self {
        Self {
            threads: threads.max(1),
            began,
            line: Vec::new(),
            preface: Ends::new(KEPT_BYTES),
            libraries: Vec::new(),
            text: Ends::new(KEPT_BYTES),
            round: None,
        }
    }

    /// Takes what came at `now`.
    pub(super) fn take(&mut self, bytes: &[u8], now: Duration) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + part.len() <= LINE_MOST_BYTES {
                self.line.extend_from_slice(part);
            }
            if self.libraries.is_empty() {
                self.preface.push(part);
            } else {
                self.text.push(part);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let line = str::from_utf8(&line).unwrap_or_default();
                self.understand(line.trim_end_matches('\n'), now);
            }
        }
    }

    fn understand(&mut self, line: &str, now: Duration) {
        let library = line
            .trim()
            .strip_prefix("Doc-tests ")
            .filter(|name| !name.contains(' '));
        if let Some(name) = library {
            self.end_library();
            self.began = now;
            self.libraries.push(Library {
                name: name.to_owned(),
                ..Library::default()
            });
        } else if let Some(tests) = running(line) {
            self.end_round();
            self.round = Some(Round {
                tests,
                began: self.began,
                heard: Vec::new(),
            });
        } else if line.starts_with("test result: ") {
            if let Some(round) = &mut self.round {
                // All have ended, though a verdict may be lost in what a test wrote beside it.
                round.tests = round.heard.len();
            }
            self.end_round();
            self.began = now;
        } else if let Some((name, said)) = libtest::verdict(line)
            && let Some(round) = &mut self.round
        {
            let name = without_mode(name);
            if round.heard.iter().all(|(known, ..)| known != name) {
                round.heard.push((name.to_owned(), said, now));
            }
        }
    }

    /// The tests of a round begin in the order of their names, as many at a time as there are threads, and then one for each
    /// that ends.
    fn end_round(&mut self) {
        let Some(round) = self.round.take() else {
            return;
        };
        let Some(library) = self.libraries.last_mut() else {
            return;
        };
        library.lost += round.tests.saturating_sub(round.heard.len());
        let order: BTreeSet<&str> = round.heard.iter().map(|(name, ..)| &**name).collect();
        let mut free: VecDeque<(usize, Duration)> =
            (0..self.threads).map(|lane| (lane, round.began)).collect();
        let mut waiting = order.into_iter();
        let mut running: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
        for (name, said, ended) in &round.heard {
            while !running.contains_key(&**name)
                && let Some(next) = waiting.next()
            {
                // Where one ended out of turn, nobody knows when it began: no later than it ended.
                let (lane, began) = free.pop_front().unwrap_or((0, *ended));
                running.insert(next, (lane, began));
            }
            let (lane, started) = running.remove(&**name).unwrap_or((0, *ended));
            free.push_back((lane, *ended));
            library.verdicts.push(Heard {
                name: name.clone(),
                said: *said,
                lane,
                started,
                ended: *ended,
            });
        }
    }

    fn end_library(&mut self) {
        self.end_round();
        let text = std::mem::replace(&mut self.text, Ends::new(KEPT_BYTES)).into_bytes();
        let Some(library) = self.libraries.last_mut() else {
            return;
        };
        let told = libtest::told(&text, |_| true);
        library.outputs = told
            .outputs
            .into_iter()
            .map(|(name, output)| (without_mode(&name).to_owned(), output))
            .collect();
        library.text = text;
    }

    /// Cargo's own words, and what was said of each library.
    pub(super) fn end(mut self) -> (Vec<u8>, Vec<Library>) {
        self.end_library();
        (self.preface.into_bytes(), self.libraries)
    }
}

/// `running 3 tests`.
fn running(line: &str) -> Option<usize> {
    let rest = line.strip_prefix("running ")?;
    let (count, word) = rest.split_once(' ')?;
    matches!(word, "test" | "tests").then(|| count.parse().ok())?
}

/// What the harness says of how a doctest is tried is no part of its name.
fn without_mode(name: &str) -> &str {
    [" - compile fail", " - compile", " - should panic"]
        .into_iter()
        .find_map(|mode| name.strip_suffix(mode))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn heard(text: &[(&str, u64)]) -> Vec<Library> {
        let mut listener = Listener::new(2, ms(0));
        for (text, at) in text {
            listener.take(text.as_bytes(), ms(*at));
        }
        listener.end().1
    }

    #[test]
    fn each_has_its_own_time() {
        let libraries = heard(&[
            (
                "   Compiling x\n   Doc-tests first\n\nrunning 3 tests\n",
                100,
            ),
            ("test src/lib.rs - b (line 5) ... ok\n", 130),
            ("test src/lib.rs - a (line 1) - compile ... o", 180),
            (
                "k\ntest src/lib.rs - c (line 9) - should panic ... FAILED\n",
                190,
            ),
            (
                "\ntest result: FAILED. 2 passed; 1 failed; 0 ignored\n",
                200,
            ),
            ("\nrunning 1 test\n", 200),
            (
                "test src/lib.rs - d (line 20) ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n",
                300,
            ),
        ]);
        assert_eq!(libraries.len(), 1);
        let lines: Vec<String> = libraries[0]
            .verdicts
            .iter()
            .map(|it| {
                let (from, to) = (it.started.as_millis(), it.ended.as_millis());
                format!(
                    "{} {:?} in {} from {from} to {to}",
                    it.name, it.said, it.lane
                )
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        src/lib.rs - b (line 5) Passed in 1 from 100 to 130
        src/lib.rs - a (line 1) Passed in 0 from 100 to 190
        src/lib.rs - c (line 9) Failed in 1 from 130 to 190
        src/lib.rs - d (line 20) Passed in 0 from 200 to 300
        ");
        assert_eq!(libraries[0].lost, 0);
    }

    #[test]
    fn who_has_no_verdict_is_missed() {
        let libraries = heard(&[(
            "   Doc-tests a\nrunning 3 tests\ntest x ... ok\n   Doc-tests b\nrunning 2 tests\ntest x ... ok\n",
            1,
        )]);
        let lost: Vec<usize> = libraries.iter().map(|library| library.lost).collect();
        assert_eq!(lost, [2, 1]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut listener = Listener::new(1, ms(0));
        listener.take(b"   Doc-tests a\nrunning 1 test\n", ms(0));
        let noise = vec![b'x'; 1 << 20];
        for _ in 0..64 {
            listener.take(&noise, ms(1));
        }
        listener.take(b"\ntest x ... FAILED\n", ms(2));
        listener.take(
            b"\nfailures:\n\n---- x stdout ----\nboom\n\nfailures:\n    x\n",
            ms(2),
        );
        assert!(listener.line.capacity() <= 2 * LINE_MOST_BYTES);
        let (_, libraries) = listener.end();
        assert!(libraries[0].text.len() < KEPT_BYTES + 100);
        assert_eq!(libraries[0].verdicts.len(), 1);
        assert_eq!(libraries[0].outputs["x"], b"boom\n");
    }
}
