//! Scaffold: the signatures `cargo-orbit` is written against. Thrown away at merge.
#![allow(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::needless_pass_by_value,
    unused_mut
)]

use std::{ffi::OsString, os::fd::OwnedFd, path::PathBuf, time::Duration};

use crate::{Error, Init, Mount, NetworkMode, Outcome, sandbox::Sandbox};

#[derive(Debug)]
pub enum Stdin {
    Null,
    Inherit,
    Bytes(Vec<u8>),
}

#[derive(Debug)]
pub enum Output {
    Capture,
    Inherit,
    Null,
    Fd(OwnedFd),
}

#[derive(Debug, Clone, Copy)]
pub enum PullPolicy {
    Missing,
    Always,
    Never,
}

#[must_use]
#[derive(Debug, Default)]
pub struct SandboxBuilder {
    pub(crate) argv: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) working_dir: Option<PathBuf>,
    pub(crate) stdin_inherit: bool,
    pub(crate) timeout: Option<Duration>,
}

impl SandboxBuilder {
    pub fn name(self, _: impl Into<String>) -> Self {
        self
    }
    pub fn image(self, _: &str) -> Self {
        self
    }
    pub fn pull(self, _: PullPolicy) -> Self {
        self
    }
    pub fn entrypoint(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.argv.splice(0..0, words.into_iter().map(Into::into));
        self
    }
    pub fn cmd(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.argv.extend(words.into_iter().map(Into::into));
        self
    }
    pub fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.argv.push(word.into());
        self
    }
    pub fn args(self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.cmd(words)
    }
    pub fn env(mut self, k: impl Into<OsString>, v: impl Into<OsString>) -> Self {
        self.env.push((k.into(), v.into()));
        self
    }
    pub fn envs<K: Into<OsString>, V: Into<OsString>>(
        mut self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.env
            .extend(pairs.into_iter().map(|(k, v)| (k.into(), v.into())));
        self
    }
    pub fn env_clear(self) -> Self {
        self
    }
    pub fn working_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.working_dir = Some(path.into());
        self
    }
    pub fn user(self, _: &str) -> Self {
        self
    }
    pub fn hostname(self, _: &str) -> Self {
        self
    }
    pub fn mount(self, _: Mount) -> Self {
        self
    }
    pub fn mount_str(self, _: &str) -> Self {
        self
    }
    pub fn host_path(self, _: impl Into<PathBuf>) -> Self {
        self
    }
    pub fn host_path_read_only(self, _: impl Into<PathBuf>) -> Self {
        self
    }
    pub fn hide(self, _: impl Into<PathBuf>) -> Self {
        self
    }
    pub fn home(self, _: impl Into<PathBuf>) -> Self {
        self
    }
    pub fn read_only(self, _: bool) -> Self {
        self
    }
    pub fn cap_add(self, _: &str) -> Self {
        self
    }
    pub fn cap_drop(self, _: &str) -> Self {
        self
    }
    pub fn network(self, _: NetworkMode) -> Self {
        self
    }
    pub fn publish(self, _: &str) -> Self {
        self
    }
    pub fn memory(self, _: &str) -> Self {
        self
    }
    pub fn cpu(self, _: &str) -> Self {
        self
    }
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }
    pub fn init(self, _: Init) -> Self {
        self
    }
    pub fn tty(self, _: bool) -> Self {
        self
    }
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin_inherit = matches!(stdin, Stdin::Inherit);
        self
    }
    pub fn stdout(self, _: Output) -> Self {
        self
    }
    pub fn stderr(self, _: Output) -> Self {
        self
    }
    pub fn run(self) -> Result<Outcome, Error> {
        Err(Error::io(
            "start a sandbox",
            std::io::ErrorKind::Unsupported,
        ))
    }
    pub fn start(self) -> Result<Sandbox, Error> {
        Err(Error::io(
            "start a sandbox",
            std::io::ErrorKind::Unsupported,
        ))
    }
}
