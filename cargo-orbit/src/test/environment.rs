//! Which variables a test sees: what cargo gave it, a few of the host's, and those asked for with `--env`.
//!
//! What cargo gives a test (`CARGO_PKG_*`, `OUT_DIR`, `[env]` of its configuration, what build scripts set,
//! the library path …) is not worked out here again. Cargo starts [`crate::runner`] with all of it, and all
//! of the host's variables besides; what was not there, or was different, when `cargo orbit test` began is
//! cargo's. So cargo stays the only one who knows, in every version of it.
//!
//! Pure: nothing here reads the environment.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::ffi::OsStrExt as _,
};

use orbit::__private::is_passed;
use serde::{Deserialize, Serialize};

use crate::variables::Variable;

/// Names the session's files for the runner; never passed on.
pub(crate) const SESSION: &str = "ORBIT_SESSION";

/// Fingerprints of the variables the host had. Values stay where they are: this is handed from process to
/// process, and some of them are secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(OsString, u64)>", into = "Vec<(OsString, u64)>")]
pub(crate) struct HostVariables(BTreeMap<OsString, u64>);

/// JSON has no maps whose keys are not text.
impl From<Vec<(OsString, u64)>> for HostVariables {
    fn from(pairs: Vec<(OsString, u64)>) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl From<HostVariables> for Vec<(OsString, u64)> {
    fn from(variables: HostVariables) -> Self {
        variables.0.into_iter().collect()
    }
}

impl HostVariables {
    pub(crate) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mark = |(name, value): (OsString, OsString)| (name, fingerprint(&value));
        Self(variables.into_iter().map(mark).collect())
    }

    fn has(&self, name: &OsStr, value: &OsStr) -> bool {
        self.0.get(name) == Some(&fingerprint(value))
    }
}

/// Stable between processes of the same program, which is all that is asked of it.
fn fingerprint(value: &OsStr) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.as_bytes().hash(&mut hasher);
    hasher.finish()
}

/// The variables of a test that cargo would start with `given` on a host that had `host`.
pub(crate) fn of_test(
    given: impl IntoIterator<Item = (OsString, OsString)>,
    host: &HostVariables,
    asked: &[Variable],
) -> BTreeMap<OsString, OsString> {
    let mut seen: BTreeMap<OsString, OsString> = given.into_iter().collect();
    let resolve =
        |variable: &Variable| variable.resolve(|name| seen.get(OsStr::new(name)).cloned());
    let asked: Vec<_> = asked.iter().filter_map(resolve).collect();
    seen.retain(|name, value| name != SESSION && (is_passed(name) || !host.has(name, value)));
    seen.extend(asked);
    seen
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, env, process::Command};

    use super::*;

    fn variables(text: &str) -> Vec<(OsString, OsString)> {
        let pair = |word: &str| {
            let (name, value) = word.split_once('=').unwrap();
            (name.into(), value.into())
        };
        text.split_whitespace().map(pair).collect()
    }

    fn seen(host: &str, given: &str, asked: &[&str]) -> String {
        let asked: Vec<Variable> = asked.iter().map(|text| text.parse().unwrap()).collect();
        let host = HostVariables::new(variables(host));
        let seen = of_test(variables(given), &host, &asked);
        let words: Vec<_> = seen
            .iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        words.join(" ")
    }

    #[test]
    fn what_cargo_added_or_changed_is_seen() {
        assert_eq!(
            seen(
                "A=host B=host",
                "A=host B=cargo OUT_DIR=/o ORBIT_SESSION=x",
                &[]
            ),
            "B=cargo OUT_DIR=/o"
        );
    }

    #[test]
    fn of_the_hosts_own_only_what_is_listed_is_seen() {
        let host =
            "AWS_PROFILE=x DISPLAY=:0 LANG=C LC_ALL=C PATH=/bin RUST_LOG=debug SSH_AUTH_SOCK=/s";
        assert_eq!(
            seen(host, host, &[]),
            "LANG=C LC_ALL=C PATH=/bin RUST_LOG=debug"
        );
    }

    #[test]
    fn no_secret_of_the_host_is_seen_unasked() {
        let host = "CARGO_REGISTRY_TOKEN=s CARGO_REGISTRIES_X_CREDENTIAL_PROVIDER=s RUST_SECRET=s \
                    INSTA_API_KEY=s CARGO_HOME=/c";
        assert_eq!(seen(host, host, &[]), "CARGO_HOME=/c");
        assert_eq!(
            seen(host, host, &["RUST_SECRET"]),
            "CARGO_HOME=/c RUST_SECRET=s"
        );
    }

    #[test]
    fn what_is_asked_for_wins() {
        assert_eq!(
            seen(
                "A=host",
                "A=host RUST_LOG=x",
                &["A", "RUST_LOG=y", "ABSENT"]
            ),
            "A=host RUST_LOG=y"
        );
    }

    /// The fixture's variables as `cargo test` gives them, on a host that has `host`.
    fn under_cargo_test(host: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
        let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args([
                "test",
                "--test",
                "environment",
                "variables",
                "--",
                "--nocapture",
            ])
            .current_dir(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../fixtures/workspace-mixed"
            ))
            .env_clear()
            .envs(host.iter().cloned())
            .output()
            .unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let lines = stdout
            .lines()
            .filter_map(|line| line.strip_prefix("VARIABLE "));
        let pairs: Vec<_> = lines
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        assert!(output.status.success() && !pairs.is_empty(), "{output:?}");
        pairs
    }

    /// Of what a real `cargo test` gives, exactly the host's unlisted variables are missing.
    #[test]
    fn everything_that_cargo_gives_is_seen() {
        let needed = [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "RUSTUP_HOME",
            "RUSTUP_TOOLCHAIN",
        ];
        let unlisted = [
            "AWS_SECRET_ACCESS_KEY",
            "CARGO_REGISTRY_TOKEN",
            "SSH_AUTH_SOCK",
        ];
        let mut host: Vec<(OsString, OsString)> = needed
            .iter()
            .filter_map(|name| Some(((*name).into(), env::var_os(name)?)))
            .collect();
        host.extend(unlisted.map(|name| (name.into(), "of-the-host".into())));
        // Cargo has its own value for these.
        host.push(("FIXTURE_FORCED".into(), "of-the-host".into()));
        host.push(("CARGO_PKG_NAME".into(), "of-the-host".into()));

        let given = under_cargo_test(&host);
        let seen = of_test(given.iter().cloned(), &HostVariables::new(host), &[]);
        let missing: BTreeSet<_> = given
            .iter()
            .filter(|(name, value)| seen.get(name) != Some(value))
            .map(|(name, _)| name.to_str().unwrap())
            .collect();
        assert_eq!(
            missing,
            BTreeSet::from(["HOME"])
                .union(&unlisted.into())
                .copied()
                .collect()
        );

        let value = |name: &str| seen.get(OsStr::new(name)).and_then(|value| value.to_str());
        assert_eq!(value("FIXTURE_FORCED"), Some("forced"));
        assert_eq!(value("FIXTURE_FROM_CONFIG"), Some("config"));
        assert_eq!(value("FIXTURE_FROM_BUILD"), Some("build script"));
        assert_eq!(value("CARGO_PKG_NAME"), Some("mixed"));
        assert_eq!(value("CARGO_PKG_VERSION_PRE"), Some("rc.4"));
        for name in [
            "OUT_DIR",
            "LD_LIBRARY_PATH",
            "CARGO_BIN_EXE_greet",
            "CARGO_MANIFEST_DIR",
        ] {
            assert!(value(name).is_some(), "{name}");
        }
    }
}
