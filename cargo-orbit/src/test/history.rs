//! What is remembered from run to run, in the target directory: how long tests took, which failed, and which there are.
//!
//! Nothing depends on it but the order of tests, `--failed`, and whether a binary is asked for its tests again: what cannot
//! be read is as good as nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    event::{BinaryId, Class, TestId, TestResult},
    lists::Lists,
};

/// Read another version as nothing.
const FORMAT: u32 = 2;

/// What earlier runs have shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    format: u32,
    /// By binary and name, in microseconds.
    took_us: BTreeMap<BinaryId, BTreeMap<String, u64>>,
    /// Whose last attempt in the last run that had them failed. Without a name: a binary that failed as a whole.
    failed: BTreeSet<TestId>,
    pub(crate) lists: Lists,
    /// What this run has shown by now.
    #[serde(skip)]
    now: BTreeMap<BinaryId, Now>,
}

/// What a run has shown of a binary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Now {
    /// All its tests; empty where it is no binary that lists them.
    listed: BTreeSet<String>,
    /// Those that passed, or are ignored.
    well: BTreeSet<String>,
    /// Those of which a repetition failed, or it itself.
    failed: BTreeSet<String>,
}

impl History {
    fn path(target: &Path) -> PathBuf {
        target.join("orbit").join("history.json")
    }

    /// What is remembered in the target directory.
    pub(crate) fn load(target: &Path) -> Self {
        fs::read(Self::path(target))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .filter(|history: &Self| history.format == FORMAT)
            .unwrap_or_default()
    }

    /// Keeps it. Another run may do so at the same time: the last one wins, whole.
    pub(crate) fn save(&self, target: &Path) -> io::Result<()> {
        let path = Self::path(target);
        let directory = path.parent().unwrap_or(target);
        fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        let mut kept = self.clone();
        kept.format = FORMAT;
        kept.lists.forget_gone();
        serde_json::to_writer(&mut file, &kept)?;
        file.persist(path)?;
        Ok(())
    }

    /// How long a test took the last time.
    pub(crate) fn took(&self, binary: &BinaryId, name: &str) -> Option<Duration> {
        let us = self.took_us.get(binary)?.get(name)?;
        Some(Duration::from_micros(*us))
    }

    /// Those that failed when they last ran. Without a name: a binary that did, though none of its tests was to blame.
    pub(crate) fn failed(&self) -> &BTreeSet<TestId> {
        &self.failed
    }

    /// Takes note of a test that has ended. What failed in one repetition has failed, however the others go.
    pub(crate) fn learn(&mut self, result: &TestResult) {
        let id = TestId {
            repetition: None,
            ..result.id.clone()
        };
        let now = self.now.entry(id.binary.clone()).or_default();
        match result.class() {
            Class::NotReached => return,
            Class::Ignored => {
                now.well.insert(id.name);
                self.forgive(&id.binary);
                return;
            }
            Class::Failed => {
                now.failed.insert(id.name.clone());
                self.failed.insert(id.clone());
            }
            Class::Passed | Class::Flaky => {
                now.well.insert(id.name.clone());
                if !now.failed.contains(&id.name) {
                    self.failed.remove(&id);
                }
                self.forgive(&id.binary);
            }
        }
        if let Some(last) = result.attempts.last() {
            let us = u64::try_from(last.wall_time.as_micros()).unwrap_or(u64::MAX);
            self.took_us
                .entry(id.binary)
                .or_default()
                .insert(id.name, us);
        }
    }

    /// A binary that failed as a whole has not failed any more once all of its tests have run and nothing was amiss.
    fn forgive(&mut self, binary: &BinaryId) {
        let Some(now) = self.now.get(binary) else {
            return;
        };
        if now.failed.is_empty() && !now.listed.is_empty() && now.listed.is_subset(&now.well) {
            self.failed.remove(&whole(binary));
        }
    }

    /// Forgets that something failed as a whole.
    pub(crate) fn clear(&mut self, binary: &BinaryId) {
        self.failed.remove(&whole(binary));
    }

    /// Forgets tests of a binary that are not there any more: `names` are all that it has.
    pub(crate) fn keep(&mut self, binary: &BinaryId, names: &[String]) {
        let now = self.now.entry(binary.clone()).or_default();
        now.listed = names.iter().cloned().collect();
        let is_there = |name: &str| name.is_empty() || names.iter().any(|known| known == name);
        if let Some(took) = self.took_us.get_mut(binary) {
            let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
            took.retain(|name, _| name.is_empty() || names.contains(name.as_str()));
        }
        self.failed
            .retain(|id| id.binary != *binary || is_there(&id.name));
        self.forgive(binary);
    }
}

/// The name of a binary itself.
fn whole(binary: &BinaryId) -> TestId {
    TestId {
        binary: binary.clone(),
        name: String::new(),
        repetition: None,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::event::{Attempt, Used, Verdict},
        *,
    };

    fn result(name: &str, verdict: Verdict) -> TestResult {
        TestResult {
            id: TestId {
                binary: BinaryId("b".into()),
                name: name.into(),
                repetition: Some(2),
            },
            attempts: vec![Attempt {
                wall_time: Duration::from_millis(3),
                ..Attempt::new(verdict, Used::default())
            }],
            skipped: None,
        }
    }

    #[test]
    fn what_is_learnt_is_kept() {
        let target = tempfile::tempdir().unwrap();
        let mut history = History::load(target.path());
        assert_eq!(history, History::default());
        history.learn(&result("good", Verdict::Passed));
        history.learn(&result("bad", Verdict::Failed { code: None }));
        history.learn(&result("gone", Verdict::Leaked));
        history.keep(&BinaryId("b".into()), &["good".into(), "bad".into()]);
        history.save(target.path()).unwrap();

        let mut history = History::load(target.path());
        let binary = BinaryId("b".into());
        assert_eq!(
            history.took(&binary, "good"),
            Some(Duration::from_millis(3))
        );
        assert_eq!(history.took(&binary, "gone"), None);
        assert_eq!(failed(&history), ["b bad"]);
        history.learn(&result("bad", Verdict::Passed));
        assert!(history.failed().is_empty());
    }

    fn failed(history: &History) -> Vec<String> {
        history.failed().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_repetition_that_fails_is_remembered() {
        let mut history = History::default();
        let failed_once = Verdict::Failed { code: None };
        for verdict in [Verdict::Passed, failed_once, Verdict::Passed] {
            history.learn(&result("sometimes", verdict));
        }
        assert_eq!(failed(&history), ["b sometimes"]);
    }

    #[test]
    fn a_binary_that_failed_is_forgiven_when_all_of_its_tests_have_run() {
        let binary = BinaryId("b".into());
        let names = ["x".to_owned(), "y".to_owned()];
        let mut before = History::default();
        before.keep(&binary, &names);
        before.learn(&result("x", Verdict::Passed));
        before.learn(&result("y", Verdict::Passed));
        before.learn(&result("", Verdict::Leaked));
        assert_eq!(failed(&before), ["b"]);

        let after = |passed: &[&str], also: Option<Verdict>| {
            let mut history = History {
                now: BTreeMap::new(),
                ..before.clone()
            };
            history.keep(&binary, &names);
            for name in passed {
                history.learn(&result(name, Verdict::Passed));
            }
            if let Some(verdict) = also {
                history.learn(&result("", verdict));
            }
            failed(&history)
        };
        assert_eq!(after(&["x"], None), ["b"]);
        assert!(after(&["x", "y"], None).is_empty());
        assert_eq!(after(&["x", "y"], Some(Verdict::Leaked)), ["b"]);
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        let target = tempfile::tempdir().unwrap();
        let path = History::path(target.path());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for text in ["", "{", r#"{"format":99,"took_us":{},"failed":[]}"#] {
            fs::write(&path, text).unwrap();
            assert_eq!(History::load(target.path()), History::default());
        }
    }
}
