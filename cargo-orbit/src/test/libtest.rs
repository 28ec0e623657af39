//! What test programs say: the list of their tests, and how each ended.
//!
//! The format is that of the standard test harness and of those that follow it, such as libtest-mimic. A program with a
//! `main` of its own may say anything: then there is no list, and its exit code is its verdict.
//!
//! Pure. What a program says is never trusted beyond this: only tests that it listed get a verdict from it.
//!
//! Source: rust-lang/rust, library/test/src/formatters/{pretty,terse}.rs; rustc's book, "Tests".

mod told;

use std::collections::BTreeSet;

pub(crate) use self::told::{Reader, Said, Told, told};

/// The names in what `--list --format terse` printed; `None` where that is not such a list.
pub(crate) fn listed(stdout: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(stdout).ok()?;
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let name = line
            .strip_suffix(": test")
            .or_else(|| line.strip_suffix(": benchmark"))?;
        if !name.is_empty() && seen.insert(name) {
            names.push(name.to_owned());
        }
    }
    Some(names)
}

/// The number before `word`.
fn counted(line: &str, word: &str) -> usize {
    let words: Vec<&str> = line.split([' ', ';']).filter(|it| !it.is_empty()).collect();
    let at = words.iter().position(|it| *it == word);
    at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok())
        .unwrap_or(0)
}

/// `---- NAME stdout ----`; of libtest-mimic `---- NAME ----`.
fn section_of(line: &str) -> Option<&str> {
    let name = line.strip_prefix("---- ")?.strip_suffix(" ----")?;
    Some(name.strip_suffix(" stdout").unwrap_or(name))
}

/// `test NAME ... ok`, with what stands between where the test should panic.
pub(crate) fn verdict(line: &str) -> Option<(&str, Said)> {
    let (name, said) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    Some((without_manner(name), word(said)?))
}

/// `test NAME ... ` and whatever the test wrote past the harness.
fn begun(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some(without_manner(name))
}

/// libtest-mimic puts names into columns.
fn without_manner(name: &str) -> &str {
    let name = name.trim_end();
    name.strip_suffix(" - should panic").unwrap_or(name)
}

fn word(said: &str) -> Option<Said> {
    // `ok <0.001s>` with --report-time; `bench: …` of a benchmark.
    let first = said.split([' ', ',', ':']).next()?;
    match first {
        "ok" | "bench" => Some(Said::Passed),
        "FAILED" => Some(Said::Failed),
        "ignored" => Some(Said::Ignored),
        _ => None,
    }
}

/// What one test printed, run alone and uncaptured: `stdout` without what the harness said around it, but with what it said of
/// a failure; and whether the harness saw it end. `None` for the latter where no such harness speaks.
pub(crate) fn alone(stdout: &[u8], name: &str) -> (Vec<u8>, Option<bool>) {
    let (body, ended) = without_frame(stdout, name);
    let mut output = body.to_vec();
    if ended == Some(true)
        && let Some(said) = told(stdout, |known| known == name).outputs.get(name)
    {
        output.extend_from_slice(said);
    }
    (output, ended)
}

fn without_frame<'a>(stdout: &'a [u8], name: &str) -> (&'a [u8], Option<bool>) {
    let Some(rest) = without_prefix(stdout, b"\nrunning 1 test\n")
        .or_else(|| without_prefix(stdout, b"running 1 test\n"))
    else {
        return (stdout, None);
    };
    // With one test there is one thread, or at least one line, and the name may stand before the output or after it.
    let head = format!("test {name} ... ");
    let panicking = format!("test {name} - should panic ... ");
    let (before, after) = match find_last(rest, b"\ntest result: ") {
        Some(at) => (&rest[..at], true),
        None => (rest, false),
    };
    let body = without_prefix(before, head.as_bytes())
        .or_else(|| without_prefix(before, panicking.as_bytes()))
        .unwrap_or(before);
    (tail_cut(body, name), Some(after))
}

/// Cuts the verdict, and the list of what failed, off the end of what a test printed.
fn tail_cut<'a>(body: &'a [u8], name: &str) -> &'a [u8] {
    let mut end = body.len();
    if let Some(at) = find_last(&body[..end], b"\nfailures:\n") {
        end = at;
        // With its output again before the list, where it was captured.
        if let Some(at) = find_last(&body[..end], b"\nfailures:\n") {
            end = at;
        }
    }
    let trimmed = body[..end].trim_ascii_end();
    let start = trimmed
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let line = std::str::from_utf8(&trimmed[start..]).unwrap_or_default();
    let is_verdict = matches!(line, "ok" | "FAILED" | "ignored")
        || verdict(line).is_some_and(|(said, _)| said == name);
    if is_verdict {
        return &body[..start];
    }
    // The word may stand right behind what the test printed without a newline.
    &body[..end]
}

fn without_prefix<'a>(bytes: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    bytes.strip_prefix(prefix)
}

fn find_last(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .rposition(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_known_from_anything_else() {
        assert_eq!(
            listed(b"a::b: test\nc: benchmark\n"),
            Some(vec!["a::b".to_owned(), "c".to_owned()])
        );
        assert_eq!(listed(b""), Some(Vec::new()));
        for other in [&b"hello\n"[..], b"a: test\nhello\n", b"\xff: test\n"] {
            assert_eq!(listed(other), None);
        }
        // Twice the same would be run twice, and told once.
        assert_eq!(listed(b"a: test\na: test\n").unwrap().len(), 1);
    }

    const SEVERAL: &str = "
running 6 tests
test a ... ok
test b - should panic ... ok
test c ... ignored, not today
noise test a ... FAILED
test other ... FAILED
test d ... FAILED
test e ... said past the harness
ok

failures:

---- d stdout ----
line 1

thread 'd' panicked at src/lib.rs:1:1:
boom


failures:
    d

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

";

    #[test]
    fn several_tests_are_told_apart() {
        let told = told(SEVERAL.as_bytes(), |name| "abcde".contains(name));
        let verdicts: Vec<_> = told
            .verdicts
            .iter()
            .map(|(name, said)| (name.as_str(), *said))
            .collect();
        assert_eq!(
            verdicts,
            [
                ("a", Said::Passed),
                ("b", Said::Passed),
                ("c", Said::Ignored),
                ("d", Said::Failed),
                ("e", Said::Passed)
            ]
        );
        assert_eq!(told.counts, Some([3, 1, 1]));
        assert!(!told.is_all_well(5));
        assert_eq!(
            String::from_utf8_lossy(&told.outputs["d"]),
            "line 1\n\nthread 'd' panicked at src/lib.rs:1:1:\nboom\n"
        );
    }

    #[test]
    fn a_harness_like_it_is_understood() {
        let stdout = "test case a   ... FAILED\n\nfailures:\n\n---- case a ----\nboom\n\n\nfailures:\n    case a\n\n\ntest result: FAILED. 0 passed\n";
        let told = told(stdout.as_bytes(), |name| name == "case a");
        assert_eq!(told.outputs["case a"], b"boom\n");
        assert_eq!(told.counts, Some([0, 0, 0]));
        let alone = alone(
            format!("\nrunning 1 test\nhello\n{stdout}").as_bytes(),
            "case a",
        );
        assert_eq!(String::from_utf8_lossy(&alone.0), "hello\nboom\n");
    }

    #[test]
    fn a_verdict_lost_in_what_a_test_wrote_is_in_the_counts() {
        let stdout = b"test a ... xxxok\n\ntest result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out\n";
        let told = told(stdout, |_| true);
        assert!(told.verdicts.is_empty());
        assert!(told.is_all_well(2) && !told.is_all_well(3));
    }

    #[test]
    fn what_ended_early_is_not_complete() {
        let told = told(b"\nrunning 2 tests\ntest a ... ok\ntest b ... ", |_| true);
        assert_eq!(told.counts, None);
        assert_eq!(told.verdicts.len(), 1);
    }

    fn text(stdout: &str) -> (String, Option<bool>) {
        let (body, ended) = alone(stdout.as_bytes(), "a::b");
        (String::from_utf8_lossy(&body).into_owned(), ended)
    }

    #[test]
    fn what_one_test_printed_is_without_its_frame() {
        let end = "\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.00s\n\n";
        // With one thread, and with several.
        assert_eq!(
            text(&format!("\nrunning 1 test\ntest a::b ... ok\n{end}")),
            (String::new(), Some(true))
        );
        assert_eq!(
            text(&format!(
                "\nrunning 1 test\nhello\nworld\ntest a::b ... ok\n{end}"
            )),
            ("hello\nworld\n".to_owned(), Some(true))
        );
        assert_eq!(
            text(&format!("\nrunning 1 test\ntest a::b ... hello\nok\n{end}")),
            ("hello\n".to_owned(), Some(true))
        );
        assert_eq!(
            text(
                "\nrunning 1 test\nhello\ntest a::b - should panic ... FAILED\n\nfailures:\n\n---- a::b stdout ----\n\
                  note: no panic\n\nfailures:\n    a::b\n\ntest result: FAILED. 0 passed\n\n"
            ),
            ("hello\nnote: no panic\n".to_owned(), Some(true))
        );
    }

    #[test]
    fn an_early_end_is_seen() {
        assert_eq!(
            text("\nrunning 1 test\nbye\n"),
            ("bye\n".to_owned(), Some(false))
        );
        assert_eq!(text("anything\n"), ("anything\n".to_owned(), None));
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_said_breaks_it(stdout: Vec<u8>, lines: Vec<String>) {
            let all: Vec<u8> = [b"\nrunning 1 test\n".to_vec(), stdout, lines.join("\n").into_bytes()].concat();
            told(&all, |_| true);
            alone(&all, "a");
            listed(&all);
        }
    }
}
