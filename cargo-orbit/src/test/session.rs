//! What one `cargo orbit test` tells the runners it causes to start, and what they tell it.
//!
//! Between the two stands cargo, and for doctests rustdoc. So both directions are files in memory, which a
//! runner opens as `/proc/PID/fd/N` of the process that began the session: no name in the file system, no
//! socket, and nothing left behind however it ends.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::Pid,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    environment::HostVariables,
    event::{BinaryId, Denied, Used, Verdict},
    isolate::View,
};
use crate::config::args::SettingsArgs;

/// What is the same for every test program of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// What of the host's files tests see.
    pub(crate) view: View,
    /// What the host's variables were before cargo added its own.
    pub(crate) host_variables: HostVariables,
    /// Keys of the configuration that were given as flags.
    pub(crate) settings: SettingsArgs,
}

/// A program that did not run, because no sandbox could be made for it.
///
/// Told apart from the exit code, which a doctest marked `should_panic` would take for a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotRun {
    pub(crate) program: PathBuf,
    pub(crate) why: String,
}

/// A program with doctests that has ended, and what rustdoc cannot say of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ran {
    pub(crate) binary: BinaryId,
    pub(crate) used: Used,
    /// How it ended, where its exit code does not say so: a doctest marked `should_panic` would take that for a success.
    pub(crate) verdict: Option<Verdict>,
    /// Processes that were alive when it ended.
    pub(crate) leaked: Vec<String>,
    pub(crate) denied: Vec<Denied>,
}

/// What a runner tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    NotRun(NotRun),
    Ran(Ran),
}

/// The end of a session that began it.
#[derive(Debug)]
pub(crate) struct Host {
    session: File,
    reports: Reports,
}

/// What runners have reported.
#[derive(Debug)]
pub(crate) struct Reports(File);

impl Reports {
    /// All of it, by now.
    pub(crate) fn read(&self) -> Result<Vec<Report>, SessionError> {
        let length = self.0.metadata().map_err(SessionError::Read)?.len();
        let mut text = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.0
            .read_exact_at(&mut text, 0)
            .map_err(SessionError::Read)?;
        let text = String::from_utf8_lossy(&text);
        text.lines().map(decode).collect()
    }

    /// The same, for another thread.
    pub(crate) fn share(&self) -> Result<Self, SessionError> {
        self.0.try_clone().map(Self).map_err(SessionError::Read)
    }
}

impl Host {
    pub(crate) fn new(session: &Session) -> Result<Self, SessionError> {
        let file = |name: &str| {
            memfd_create(name, MemfdFlags::CLOEXEC)
                .map(File::from)
                .map_err(SessionError::create)
        };
        let mut host = Self {
            session: file("orbit-session")?,
            reports: Reports(file("orbit-reports")?),
        };
        let text = serde_json::to_vec(session).map_err(SessionError::create)?;
        host.session
            .write_all(&text)
            .map_err(SessionError::create)?;
        Ok(host)
    }

    /// The value of [`super::environment::SESSION`] for runners.
    pub(crate) fn address(&self) -> OsString {
        let fds = (self.session.as_raw_fd(), self.reports.0.as_raw_fd());
        format!("{} {} {}", std::process::id(), fds.0, fds.1).into()
    }

    pub(crate) fn reports(&self) -> &Reports {
        &self.reports
    }
}

/// The end of a session that a runner holds.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) session: Session,
    /// Who began it.
    pub(crate) host: Pid,
    reports: PathBuf,
}

impl Guest {
    /// Joins the session at `address`.
    pub(crate) fn join(address: &str) -> Result<Self, SessionError> {
        let numbers: Vec<u32> = address
            .split(' ')
            .map_while(|word| word.parse().ok())
            .collect();
        let &[pid, session, reports] = &numbers[..] else {
            return Err(SessionError::Address);
        };
        let host = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let path = |fd| PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
        let mut text = String::new();
        open(&path(session), OpenOptions::new().read(true))?
            .read_to_string(&mut text)
            .map_err(SessionError::Read)?;
        Ok(Self {
            session: decode(&text)?,
            host: host.ok_or(SessionError::Address)?,
            reports: path(reports),
        })
    }

    /// Tells the host. One write of one line, so that the lines of several runners do not mix.
    pub(crate) fn report(&self, report: &Report) -> Result<(), SessionError> {
        let mut line = serde_json::to_string(report).map_err(SessionError::create)?;
        line.push('\n');
        open(&self.reports, OpenOptions::new().append(true))?
            .write_all(line.as_bytes())
            .map_err(SessionError::Read)
    }
}

fn open(path: &Path, options: &OpenOptions) -> Result<File, SessionError> {
    options.open(path).map_err(|source| SessionError::Gone {
        path: path.to_owned(),
        source,
    })
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, SessionError> {
    serde_json::from_str(text).map_err(|error| SessionError::Read(error.into()))
}

/// Why the two ends of a session do not reach each other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("cannot hold this session in memory: {0}")]
    Create(io::Error),
    #[error("cannot read or write this session: {0}")]
    Read(io::Error),
    #[error("the variable ORBIT_SESSION does not hold an address of a session")]
    Address,
    #[error(
        "cannot reach the `cargo orbit test` that started this at {}; has it been killed?",
        path.display()
    )]
    Gone { path: PathBuf, source: io::Error },
}

impl SessionError {
    fn create(error: impl Into<io::Error>) -> Self {
        Self::Create(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_arrives_both_ways() {
        let session = Session {
            view: View {
                work: vec!["/w".into()],
                ..View::default()
            },
            host_variables: HostVariables::new([("A".into(), "secret".into())]),
            settings: SettingsArgs::default(),
        };
        let host = Host::new(&session).unwrap();
        let address = host.address().into_string().unwrap();
        let guests = [(); 2].map(|()| Guest::join(&address).unwrap());
        assert_eq!(guests[0].session, session);

        let report = |program: &str| {
            Report::NotRun(NotRun {
                program: program.into(),
                why: "two\nlines".to_owned(),
            })
        };
        guests[0].report(&report("/a")).unwrap();
        assert_eq!(host.reports().read().unwrap(), [report("/a")]);
        let ran = Report::Ran(Ran {
            binary: BinaryId("a::doc".into()),
            used: Used::default(),
            verdict: Some(Verdict::Leaked),
            leaked: vec!["sleep".into()],
            denied: Vec::new(),
        });
        guests[1].report(&ran).unwrap();
        let elsewhere = host.reports().share().unwrap();
        assert_eq!(elsewhere.read().unwrap(), [report("/a"), ran]);
    }

    #[test]
    fn no_value_of_the_host_leaves_its_process() {
        let host = HostVariables::new([("NAME".into(), "hunter2".into())]);
        let text = serde_json::to_string(&host).unwrap();
        // OsString is written as bytes.
        assert!(!text.contains("104,117,110,116,101,114,50"), "{text}");
    }

    #[test]
    fn a_session_that_has_ended_is_told_apart_from_nonsense() {
        for nonsense in ["", "1", "1 2 3 4", "x 1 2", "1 2 -3"] {
            let error = Guest::join(nonsense).unwrap_err();
            assert!(
                matches!(error, SessionError::Address),
                "{nonsense:?}: {error}"
            );
        }
        let error = Guest::join("4294967295 3 4").unwrap_err();
        assert!(matches!(error, SessionError::Gone { .. }), "{error}");
    }
}
