//! Which tests run: what `cargo test` would choose, and then what was asked beyond it.
//!
//! Pure.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::event::{BinaryId, TestId};

/// What is to be done with tests that are marked `#[ignore]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RunIgnored {
    /// They are counted, and not run.
    #[default]
    No,
    /// Only they are run.
    Only,
    /// They are run like all others.
    Include,
}

/// What was asked on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// A test runs where its name contains one of these, or there are none.
    pub(crate) names: Vec<String>,
    /// Where its name is one of these, rather.
    pub(crate) exact: bool,
    /// A test does not run where its name contains one of these.
    pub(crate) skip: Vec<String>,
    pub(crate) ignored: RunIgnored,
    pub(crate) partition: Option<Partition>,
    /// Only those that failed the last time.
    pub(crate) failed: Option<BTreeSet<TestId>>,
}

/// What becomes of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    Run,
    /// It is told as ignored.
    Ignored,
    /// It was not asked for.
    No,
}

impl Selection {
    /// What becomes of each of a binary's tests. `in_filter` is the rest of what was asked, such as a filterset.
    pub(crate) fn choose<'a>(
        &self,
        binary: &BinaryId,
        tests: impl IntoIterator<Item = (&'a str, bool)>,
        in_filter: impl Fn(&str) -> bool,
    ) -> Vec<Chosen> {
        let mut counted = 0;
        tests
            .into_iter()
            .map(|(name, is_ignored)| {
                if !self.is_named(name) || !self.has_failed(binary, name) || !in_filter(name) {
                    return Chosen::No;
                }
                let chosen = match (self.ignored, is_ignored) {
                    (RunIgnored::No, true) => Chosen::Ignored,
                    (RunIgnored::Only, false) => return Chosen::No,
                    _ => Chosen::Run,
                };
                let index = counted;
                counted += 1;
                match self.partition {
                    Some(partition) if !partition.has(index, binary, name) => Chosen::No,
                    _ => chosen,
                }
            })
            .collect()
    }

    /// Whether any test of `binary` may be asked for.
    pub(crate) fn may_run_in(&self, binary: &BinaryId) -> bool {
        let failed = self.failed.as_ref();
        failed.is_none_or(|failed| failed.iter().any(|id| id.binary == *binary))
    }

    /// The same, but where `whole` failed, of which nobody knows what belongs to it, everything has failed.
    pub(crate) fn of_all_if_lost(&self, whole: &BinaryId) -> Self {
        let failed = self.failed.clone();
        Self {
            failed: failed.filter(|failed| failed.iter().all(|id| id.binary != *whole)),
            ..self.clone()
        }
    }

    fn is_named(&self, name: &str) -> bool {
        let named = |pattern: &String| {
            if self.exact {
                name == pattern
            } else {
                name.contains(pattern.as_str())
            }
        };
        (self.names.is_empty() || self.names.iter().any(named)) && !self.skip.iter().any(named)
    }

    /// Where a binary failed as a whole, nobody knows which of its tests it was.
    fn has_failed(&self, binary: &BinaryId, name: &str) -> bool {
        self.failed.as_ref().is_none_or(|failed| {
            failed
                .iter()
                .any(|id| id.binary == *binary && (id.name == name || id.name.is_empty()))
        })
    }
}

/// A share of the tests, so that several machines can run one share each: `count:1/3` or `hash:1/3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    by: By,
    /// From 1.
    share: u64,
    of: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The tests of a binary in turn: shares are even, and change when tests are added.
    Count,
    /// A hash of the name: a test stays in its share.
    Hash,
}

impl Partition {
    fn has(self, index: u64, binary: &BinaryId, name: &str) -> bool {
        let number = match self.by {
            By::Count => index,
            By::Hash => stable_hash(&format!("{binary} {name}")),
        };
        number % self.of == self.share - 1
    }
}

/// FNV-1a: the same on every machine and in every version, since machines must agree on their shares.
fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || "expected count:M/N or hash:M/N, with M from 1 to N".to_owned();
        let (by, share) = text.split_once(':').ok_or_else(fault)?;
        let by = match by {
            "count" => By::Count,
            "hash" => By::Hash,
            _ => return Err(fault()),
        };
        let (share, of) = share.split_once('/').ok_or_else(fault)?;
        let (share, of) = (
            share.parse().map_err(|_| fault())?,
            of.parse().map_err(|_| fault())?,
        );
        if (1..=of).contains(&share) {
            Ok(Self { by, share, of })
        } else {
            Err(fault())
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            By::Count => "count",
            By::Hash => "hash",
        };
        write!(f, "{by}:{}/{}", self.share, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTS: [(&str, bool); 4] = [
        ("a::one", false),
        ("a::two", true),
        ("b", false),
        ("b::x", false),
    ];

    fn chosen(selection: &Selection) -> String {
        let chosen = selection.choose(&BinaryId("bin".into()), TESTS, |_| true);
        chosen
            .into_iter()
            .map(|chosen| match chosen {
                Chosen::Run => 'r',
                Chosen::Ignored => 'i',
                Chosen::No => '-',
            })
            .collect()
    }

    #[test]
    fn names_choose_as_they_do_for_cargo_test() {
        let of = |names: &[&str], exact, skip: &[&str], ignored| {
            let texts = |words: &[&str]| words.iter().map(ToString::to_string).collect();
            chosen(&Selection {
                names: texts(names),
                exact,
                skip: texts(skip),
                ignored,
                ..Selection::default()
            })
        };
        assert_eq!(of(&[], false, &[], RunIgnored::No), "rirr");
        assert_eq!(of(&["b"], false, &[], RunIgnored::No), "--rr");
        assert_eq!(of(&["b"], true, &[], RunIgnored::No), "--r-");
        assert_eq!(of(&["b", "one"], false, &["x"], RunIgnored::No), "r-r-");
        assert_eq!(of(&[], false, &[], RunIgnored::Only), "-r--");
        assert_eq!(of(&[], false, &[], RunIgnored::Include), "rrrr");
    }

    #[test]
    fn only_what_failed_runs_again() {
        let failed = |name: &str| TestId {
            binary: BinaryId("bin".into()),
            name: name.into(),
            repetition: None,
        };
        let selection = |failed: &[TestId]| Selection {
            failed: Some(failed.iter().cloned().collect()),
            ..Selection::default()
        };
        assert_eq!(chosen(&selection(&[failed("b")])), "--r-");
        // As a whole, by what it left behind, say.
        assert_eq!(chosen(&selection(&[failed("")])), "rirr");
        assert_eq!(chosen(&selection(&[])), "----");
    }

    #[test]
    fn each_test_is_in_one_share() {
        for by in ["count", "hash"] {
            for of in 1..5u64 {
                let shares: Vec<String> = (1..=of)
                    .map(|share| {
                        chosen(&Selection {
                            partition: Some(format!("{by}:{share}/{of}").parse().unwrap()),
                            ..Selection::default()
                        })
                    })
                    .collect();
                for index in 0..TESTS.len() {
                    let in_shares = shares
                        .iter()
                        .filter(|share| share.as_bytes()[index] != b'-');
                    assert_eq!(in_shares.count(), 1, "{by} {of} {shares:?}");
                }
            }
        }
    }

    #[test]
    fn a_share_that_is_none_is_refused() {
        for text in [
            "",
            "1/3",
            "slice:1/3",
            "count:0/3",
            "count:4/3",
            "hash:x/3",
            "hash:1",
            "count:0/0",
        ] {
            assert!(text.parse::<Partition>().is_err(), "{text}");
        }
        assert_eq!(
            "hash:2/3".parse::<Partition>().unwrap().to_string(),
            "hash:2/3"
        );
    }

    #[test]
    fn shares_are_the_same_everywhere() {
        // A change here moves tests between the machines of everybody's CI.
        assert_eq!(stable_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
