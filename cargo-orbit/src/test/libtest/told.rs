//! What a program that runs several tests says of them, read as it comes. What is held of it is bounded, whatever it prints.
//!
//! Pure.

use std::collections::BTreeMap;

use super::{begun, counted, section_of, verdict, word};
use crate::test::ends::Ends;

/// A longer line is no verdict: only its beginning is looked at.
const LINE_MOST_BYTES: usize = 16 << 10;
/// Of one test's output.
const OUTPUT_MOST_BYTES: usize = 1 << 20;
/// Of all outputs together; what comes when there is as much has little room left for each.
const OUTPUTS_MOST_BYTES: usize = 16 << 20;
const OUTPUT_LEAST_BYTES: usize = 4 << 10;

/// How a test ended, as its program said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Passed,
    Failed,
    Ignored,
}

/// What a program that ran several tests said of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Where a test was said to have passed and to have failed, it has failed: a test may write what looks like the verdict of
    /// another.
    pub(crate) verdicts: BTreeMap<String, Said>,
    /// What failed tests printed; with `--show-output`, what others did too.
    pub(crate) outputs: BTreeMap<String, Vec<u8>>,
    /// How many passed, failed and were ignored, as it said after its last test.
    pub(crate) counts: Option<[usize; 3]>,
}

impl Told {
    /// Whether it said that none of its `tests` failed: where a test writes past the harness, its own verdict may be lost
    /// in what it wrote.
    pub(crate) fn is_all_well(&self, tests: usize) -> bool {
        matches!(self.counts, Some([passed, 0, ignored]) if passed + ignored == tests)
    }
}

/// Reads what a whole program printed. `is_known` says which names are tests of it.
pub(crate) fn told(stdout: &[u8], is_known: impl Fn(&str) -> bool) -> Told {
    let mut reader = Reader::default();
    reader.push(stdout, &is_known, &mut |_, _| {});
    reader.end(&is_known)
}

/// Reads what a program prints.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// What has come of a line that is not whole yet.
    line: Vec<u8>,
    /// Whether the beginning of this line was looked at, and let go.
    is_long: bool,
    /// A test whose verdict has not come yet: with one thread, its name is printed before it runs.
    pending: Option<String>,
    /// Whose captured output is being read.
    section: Option<String>,
    /// What may be the list of what failed, which ends the sections, or a part of this one: of a test that runs other tests.
    list: Option<Vec<u8>>,
    outputs: BTreeMap<String, Ends>,
    /// By the sections that are over.
    outputs_bytes: usize,
    verdicts: BTreeMap<String, Said>,
    counts: Option<[usize; 3]>,
}

impl Reader {
    /// Takes what has come, and says which tests have a verdict by it.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        is_known: &dyn Fn(&str) -> bool,
        heard: &mut dyn FnMut(&str, Said),
    ) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let is_end = part.ends_with(b"\n");
            if !self.is_long && self.line.len() + part.len() > LINE_MOST_BYTES {
                let room = LINE_MOST_BYTES - self.line.len();
                self.line.extend_from_slice(&part[..room]);
                self.begins_long(is_known);
                self.say(&part[room..]);
                self.is_long = true;
            } else if self.is_long {
                self.say(part);
            } else {
                self.line.extend_from_slice(part);
                if is_end {
                    let mut line = std::mem::take(&mut self.line);
                    self.line(&line, is_known, heard);
                    line.clear();
                    self.line = line;
                }
            }
            if is_end {
                self.is_long = false;
            }
        }
    }

    /// All has come.
    pub(crate) fn end(mut self, is_known: &dyn Fn(&str) -> bool) -> Told {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.line(&line, is_known, &mut |_, _| {});
        }
        let outputs = self.outputs.into_iter().map(|(name, output)| {
            let mut output = output.into_bytes();
            while output.ends_with(b"\n\n") {
                output.pop();
            }
            (name, output)
        });
        Told {
            outputs: outputs.collect(),
            verdicts: self.verdicts,
            counts: self.counts,
        }
    }

    /// A line that is too long to be a verdict may still begin with the name of a test.
    fn begins_long(&mut self, is_known: &dyn Fn(&str) -> bool) {
        let line = std::mem::take(&mut self.line);
        if self.section.is_some() {
            self.say(&line);
        } else {
            let text = match std::str::from_utf8(&line) {
                Ok(text) => text,
                // Cut in the middle of a character, or no text from there on.
                Err(error) => std::str::from_utf8(&line[..error.valid_up_to()]).unwrap_or(""),
            };
            if let Some(name) = begun(text).filter(|name| is_known(name)) {
                self.pending = Some(name.to_owned());
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        let list = self.list.take();
        if let Some(output) = self
            .section
            .as_ref()
            .and_then(|name| self.outputs.get_mut(name))
        {
            output.push(&list.unwrap_or_default());
            output.push(bytes);
        }
    }

    fn enter(&mut self, name: &str) {
        self.leave();
        let left = OUTPUTS_MOST_BYTES.saturating_sub(self.outputs_bytes);
        let most = OUTPUT_MOST_BYTES.min(left).max(OUTPUT_LEAST_BYTES);
        self.outputs
            .entry(name.to_owned())
            .or_insert_with(|| Ends::new(most));
        self.section = Some(name.to_owned());
    }

    fn leave(&mut self) {
        self.list = None;
        if let Some(name) = self.section.take()
            && let Some(output) = self.outputs.get(&name)
        {
            self.outputs_bytes += output.held();
        }
    }

    fn line(
        &mut self,
        line: &[u8],
        is_known: &dyn Fn(&str) -> bool,
        heard: &mut dyn FnMut(&str, Said),
    ) {
        let text = std::str::from_utf8(line).map_or("", |text| text.trim_end_matches('\n'));
        if let Some(name) = section_of(text).filter(|name| is_known(name)) {
            self.enter(name);
            return;
        }
        if text.starts_with("test result: ") {
            // The last one counts.
            self.counts = Some(["passed", "failed", "ignored"].map(|word| counted(text, word)));
            if self.list.is_some() {
                self.leave();
            } else {
                self.say(line);
            }
            return;
        }
        let found = verdict(text).filter(|(name, _)| is_known(name));
        if self.section.is_some() {
            let is_heading = text == "failures:" || text == "successes:";
            let is_of_list = || line == b"\n" || text.strip_prefix("    ").is_some_and(is_known);
            match &mut self.list {
                Some(list) if is_heading || is_of_list() => {
                    list.extend_from_slice(line);
                    if list.len() > LINE_MOST_BYTES {
                        self.leave();
                    }
                    return;
                }
                None if is_heading => {
                    self.list = Some(line.to_vec());
                    return;
                }
                _ => {}
            }
            // Only the list of what failed follows the sections, when all verdicts are there: what still lacks one has not
            // ended, and this is no section but what a test wrote.
            let is_new = found.is_some_and(|(name, _)| !self.verdicts.contains_key(name));
            if !is_new {
                self.say(line);
                return;
            }
            self.leave();
        }
        if let Some((name, said)) = found {
            self.pending = None;
            self.decide(name, said, heard);
        } else if let Some(name) = begun(text).filter(|name| is_known(name)) {
            self.pending = Some(name.to_owned());
        } else if let Some(said) = word(text)
            && let Some(name) = self.pending.take()
        {
            self.decide(&name, said, heard);
        }
    }

    fn decide(&mut self, name: &str, said: Said, heard: &mut dyn FnMut(&str, Said)) {
        match self.verdicts.get_mut(name) {
            None => {
                self.verdicts.insert(name.to_owned(), said);
                heard(name, said);
            }
            Some(before) if said == Said::Failed && *before != Said::Failed => {
                *before = said;
                heard(name, said);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_stronger_than_what_looked_like_a_pass() {
        let mut heard = Vec::new();
        let mut reader = Reader::default();
        let mut hear = |name: &str, said| heard.push((name.to_owned(), said));
        for part in [
            "test a ... ok\nte",
            "st a ... FAILED\ntest a ... ok\n",
            "test b ... ok\n",
        ] {
            reader.push(part.as_bytes(), &|_| true, &mut hear);
        }
        let expected = [
            ("a", Said::Passed),
            ("a", Said::Failed),
            ("b", Said::Passed),
        ];
        assert_eq!(heard, expected.map(|(name, said)| (name.to_owned(), said)));
        assert_eq!(reader.end(&|_| true).verdicts["a"], Said::Failed);
    }

    #[test]
    fn what_is_held_does_not_grow_with_what_is_printed() {
        let mut reader = Reader::default();
        let is_known = |name: &str| name == "a" || name == "b";
        let push = |reader: &mut Reader, bytes: &[u8]| {
            reader.push(bytes, &is_known, &mut |_, _| {});
            let outputs: usize = reader.outputs.values().map(Ends::held).sum();
            assert!(reader.line.capacity() <= 2 * LINE_MOST_BYTES);
            assert!(outputs <= 4 * OUTPUT_MOST_BYTES, "{outputs}");
        };
        push(&mut reader, b"test b ... FAILED\ntest a ... ");
        for _ in 0..1000 {
            push(&mut reader, &vec![b'x'; 64 << 10]);
        }
        push(
            &mut reader,
            b"\nok\n\nfailures:\n\n---- b stdout ----\nfirst\n",
        );
        for _ in 0..1000 {
            push(&mut reader, &vec![b'y'; 64 << 10]);
        }
        push(&mut reader, b"\nlast\n\nfailures:\n    b\n");
        let told = reader.end(&is_known);
        assert_eq!(told.verdicts["a"], Said::Passed);
        let output = String::from_utf8(told.outputs["b"].clone()).unwrap();
        assert!(output.starts_with("first\nyyy") && output.ends_with("yyy\nlast\n"));
        assert!(output.contains("[orbit: 64487437 bytes are left out here]"));
    }

    #[test]
    fn what_looks_like_a_section_hides_no_verdict() {
        let stdout = b"---- a stdout ----\ntest a ... ok\ntest b ... ok\n";
        assert_eq!(told(stdout, |_| true).verdicts.len(), 2);
    }

    #[test]
    fn what_a_test_says_of_other_tests_is_its_own() {
        let nested = "test c ... FAILED\n\nfailures:\n\n---- c stdout ----\nlost\n\nfailures:\n    c\n\n\
                      test result: FAILED. 0 passed; 1 failed; 0 ignored\n\nit failed\n";
        let stdout = format!(
            "test a ... FAILED\ntest b ... FAILED\n\nfailures:\n\n---- a stdout ----\n{nested}\n---- b stdout ----\nsaid\n\n\
             \nfailures:\n    a\n    b\n\ntest result: FAILED. 0 passed; 2 failed; 1 ignored\n"
        );
        let told = told(stdout.as_bytes(), |name| name != "c");
        let output = |name: &str| String::from_utf8(told.outputs[name].clone()).unwrap();
        assert_eq!(
            (output("a").as_str(), output("b").as_str()),
            (nested, "said\n")
        );
        assert_eq!(told.counts, Some([0, 2, 1]));
    }

    proptest::proptest! {
        #[test]
        fn it_reads_the_same_in_whatever_parts_it_comes(
            lines in proptest::collection::vec("(test [ab] \\.\\.\\. |ok|FAILED|---- [ab] ----|failures:|test result: ok\\. 1 passed|x|é){0,3}", 0..12),
            cuts in proptest::collection::vec(0usize..100, 0..5),
        ) {
            let all = lines.join("\n").into_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (all.len() + 1)).collect();
            cuts.sort_unstable();
            let mut reader = Reader::default();
            let mut from = 0;
            for to in cuts.into_iter().chain([all.len()]) {
                reader.push(&all[from..to], &|_| true, &mut |_, _| {});
                from = to;
            }
            proptest::prop_assert_eq!(reader.end(&|_| true), told(&all, |_| true));
        }
    }
}
