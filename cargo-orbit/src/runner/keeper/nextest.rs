//! The run of nextest that this process is part of: its id, and nextest itself.
//!
//! What cannot be seen from here, as where nextest is in another pid namespace, is no run: then each runner has services of
//! its own, as it has without nextest.
//!
//! Source: nextest, "Environment variables", <https://nexte.st/docs/configuration/env-vars/>.

use std::{
    env,
    ffi::OsStr,
    fmt, fs,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::super::host::{environment, parent_of};

/// The id of the run, the same for each of its tests.
const RUN_ID: &str = "NEXTEST_RUN_ID";
/// The test that nextest started; not in every version.
const TEST_NAME: &str = "NEXTEST_TEST_NAME";

/// Takes in orphans, where nobody else does.
const INIT: u32 = 1;

/// How many processes may stand between a test and nextest: wrappers.
const DEPTH: usize = 8;

/// A UUID in its usual form: it becomes part of a file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunId(String);

impl RunId {
    fn parse(text: &OsStr) -> Option<Self> {
        let text = text.to_str().filter(|text| text.len() == 36)?;
        let is_right = |(at, byte): (usize, u8)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        };
        text.bytes()
            .enumerate()
            .all(is_right)
            .then(|| Self(text.to_owned()))
    }

    /// As nextest tells it to whatever it starts.
    pub(super) fn told() -> Option<Self> {
        Self::parse(&env::var_os(RUN_ID)?)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A run of nextest.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    /// Readable when nextest has ended.
    pub(crate) nextest: OwnedFd,
}

/// Nextest was killed before this process could watch it: nobody is interested in the test any more.
#[derive(Debug, thiserror::Error)]
#[error("nextest, which started this test, has ended")]
pub(crate) struct Orphaned;

impl Run {
    /// The run that started this process to run `test`; `None` where something else did, as a test that starts cargo.
    pub(crate) fn of(test: Option<&str>) -> Result<Option<Self>, Orphaned> {
        let (Some(test), Some(id)) = (test, RunId::told()) else {
            return Ok(None);
        };
        if env::var_os(TEST_NAME).is_some_and(|name| name != test) {
            return Ok(None);
        }
        let nextest = open(&id, is_nextest)?;
        Ok(nextest.map(|nextest| Self { id, nextest }))
    }
}

/// The nearest process above that was not told the run's id, and so is who made it up; `None` where there is none to be seen.
///
/// # Errors
/// Where it `is_it` not: an orphan is given to whoever takes them in, which knows nothing of a run either.
fn open(id: &RunId, is_it: impl Fn(u32) -> bool) -> Result<Option<OwnedFd>, Orphaned> {
    let Some(above) = above(id) else {
        return Ok(None);
    };
    let pid = above.last().copied().unwrap_or_default();
    let opened = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // Each is still the parent of the one below: so none had ended when it was opened, and no number has a new owner.
    let is_still = is_it(pid) && self::above(id).as_ref() == Some(&above);
    opened.filter(|_| is_still).map(Some).ok_or(Orphaned)
}

/// `cargo-nextest nextest run …`, by whatever name the program has: it takes no other first word.
fn is_nextest(pid: u32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).nth(1) == Some(b"nextest")
}

/// From this process's parent up to who was not told `id`.
fn above(id: &RunId) -> Option<Vec<u32>> {
    let mut found = vec![parent_of(std::process::id()).ok()?];
    while found.len() <= DEPTH {
        let nearest = *found.last()?;
        let told = match environment(nearest) {
            Ok(told) => told,
            // Who takes in orphans does not show what it was told. Nextest does, should it be that.
            Err(_) if nearest == INIT => Vec::new(),
            Err(_) => return None,
        };
        let is_told = told
            .iter()
            .any(|(name, value)| name == RUN_ID && value.as_bytes() == id.0.as_bytes());
        if !is_told {
            return Some(found);
        }
        found.push(parent_of(nearest).ok()?);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_uuid_and_nothing_else() {
        let good = "b0168d09-2813-4384-aab6-4ea789e1a8bf";
        let parse = |text: &str| RunId::parse(OsStr::new(text)).map(|id| id.to_string());
        assert_eq!(parse(good), Some(good.to_owned()));
        for bad in [
            "",
            "..",
            "b0168d09-2813-4384-aab6-4ea789e1a8b",
            "b0168d09-2813-4384-aab6-4ea789e1a8bff",
            "B0168D09-2813-4384-AAB6-4EA789E1A8BF",
            "b0168d09-2813-4384-aab6-4ea789e1a8b/",
            "b0168d09228134384-aab6-4ea789e1a8bf0",
            "../../../../../../../../../../../etc",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn who_was_not_told_the_id_is_who_made_it() {
        let id = RunId("b0168d09-2813-4384-aab6-4ea789e1a8bf".to_owned());
        let parent = std::os::unix::process::parent_id();
        // In a sandbox nobody may look into its init.
        if environment(parent).is_err() {
            return;
        }
        assert_eq!(above(&id), Some(vec![parent]));
        assert!(matches!(open(&id, |pid| pid == parent), Ok(Some(_))));
        // As it is after the death of nextest.
        assert!(open(&id, |_| false).is_err());
        assert!(!is_nextest(std::process::id()));
    }
}
