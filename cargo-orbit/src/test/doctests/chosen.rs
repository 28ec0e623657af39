//! Which words make rustdoc run some of a library's doctests.
//!
//! Rustdoc parts what it is given for its tests at blanks, and every doctest has blanks in its name: none can be asked for by
//! its whole name. But a word of the name can be, and so can be what is to be left out.
//!
//! Pure. Source: rust-lang/rust, src/librustdoc/config.rs, `--test-args`.

/// The names in what `cargo test --doc -- --list --format terse` printed of one library.
pub(super) fn listed(output: &[u8]) -> Vec<String> {
    let lines = output.split(|byte| *byte == b'\n');
    // Rustdoc's warnings stand between them.
    lines
        .filter_map(|line| str::from_utf8(line).ok()?.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

/// Words for rustdoc with which all of `chosen` run, and of the others in `all` as few as can be said.
pub(super) fn words(all: &[String], chosen: &[String]) -> Vec<String> {
    let others: Vec<&str> = all
        .iter()
        .filter(|name| !chosen.contains(name))
        .map(String::as_str)
        .collect();
    if others.is_empty() {
        return Vec::new();
    }
    let mut words: Vec<&str> = Vec::new();
    for name in chosen {
        let met = |word: &str| others.iter().filter(|other| other.contains(word)).count();
        // The last of those that are equally good is the line, which is new in each edition of a file.
        let best = name.split_whitespace().rev().min_by_key(|word| met(word));
        if let Some(best) = best
            && !words.contains(&best)
        {
            words.push(best);
        }
    }
    let mut left_out: Vec<&str> = Vec::new();
    for other in others {
        let runs = words.iter().any(|word| other.contains(word))
            && !left_out.iter().any(|word| other.contains(word));
        let is_safe = |word: &&str| !chosen.iter().any(|name| name.contains(*word));
        if runs && let Some(word) = other.split_whitespace().find(is_safe) {
            left_out.push(word);
        }
    }
    let left_out = left_out.into_iter().flat_map(|word| ["--skip", word]);
    words
        .into_iter()
        .chain(left_out)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What libtest would run.
    fn runs(words: &[String], name: &str) -> bool {
        let mut wanted = Vec::new();
        let mut skipped = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--skip" => skipped.extend(words.next()),
                _ => wanted.push(word),
            }
        }
        let has = |words: &[&String]| words.iter().any(|word| name.contains(word.as_str()));
        (wanted.is_empty() || has(&wanted)) && !has(&skipped)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_list_is_read_from_between_warnings() {
        let output =
            b"WARNING: no variable\nsrc/lib.rs - (line 3): test\nsrc/lib.rs - f (line 9): test\n\nall doctests ran\n";
        let expected = names(&["src/lib.rs - (line 3)", "src/lib.rs - f (line 9)"]);
        assert_eq!(listed(output), expected);
    }

    #[test]
    fn words_choose_a_name_with_blanks() {
        let all = names(&[
            "src/lib.rs - f (line 3)",
            "src/lib.rs - f (line 13)",
            "src/other.rs - f (line 3)",
            "src/other.rs - g (line 7)",
        ]);
        let words = |chosen: &[usize]| {
            let chosen: Vec<String> = chosen.iter().map(|index| all[*index].clone()).collect();
            words(&all, &chosen).join(" ")
        };
        assert_eq!(words(&[3]), "7)");
        assert_eq!(words(&[1]), "13)");
        assert_eq!(words(&[0]), "src/lib.rs --skip 13)");
        assert_eq!(words(&[0, 1, 2, 3]), "");
    }

    proptest! {
        #[test]
        fn what_was_chosen_runs(
            all in prop::collection::btree_set("src/[ab][.]rs - [fg] [(]line [1-3]{1,2}[)]", 1..12),
            seed: u64,
        ) {
            let all: Vec<String> = all.into_iter().collect();
            let is_chosen = |index: usize| seed >> index & 1 == 1;
            let chosen: Vec<String> = (0..all.len())
                .filter(|index| is_chosen(*index))
                .map(|index| all[index].clone())
                .collect();
            prop_assume!(!chosen.is_empty());
            let words = words(&all, &chosen);
            for name in &chosen {
                prop_assert!(runs(&words, name), "{name} of {words:?}");
            }
        }
    }
}
