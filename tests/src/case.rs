//! A test: a function, whom it runs as, what it needs.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{LeakAudit, Program, Who, orbit_cli};

type Run = Arc<dyn Fn(&Context) -> Result<()> + Send + Sync>;
type Prepare = Arc<dyn Fn(Who) -> Result<()> + Send + Sync>;

/// What a test is.
#[derive(Clone)]
pub struct Case {
    pub(crate) name: String,
    pub(crate) who: &'static [Who],
    /// Also where every other case runs as one identity alone.
    pub(crate) always_as_all: bool,
    pub(crate) needs: &'static [&'static str],
    pub(crate) needs_toolchain: bool,
    pub(crate) needs_kernel: Option<((u32, u32), &'static str)>,
    pub(crate) deadline: Duration,
    pub(crate) world: Option<&'static [&'static str]>,
    pub(crate) prepare: Option<Prepare>,
    pub(crate) run: Run,
}

impl Case {
    /// A test called `subject::what_holds`, to which the identity is appended. It runs as everyone, each
    /// time in a process of its own, needs nothing, and may take two minutes.
    pub fn new(
        name: impl Into<String>,
        run: impl Fn(&Context) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            who: Who::ALL,
            always_as_all: false,
            needs: &[],
            needs_toolchain: false,
            needs_kernel: None,
            world: None,
            deadline: Duration::from_secs(120),
            prepare: None,
            run: Arc::new(run),
        }
    }

    /// Sets whom it runs as.
    #[must_use]
    pub fn who(self, who: &'static [Who]) -> Self {
        Self { who, ..self }
    }

    /// Runs it as each of them even where the others run as one alone, as in the virtual machine: for what only that machine
    /// can show.
    #[must_use]
    pub fn always_as_all(self) -> Self {
        Self {
            always_as_all: true,
            ..self
        }
    }

    /// Sets the Debian packages without which it is skipped; each is in `packages.txt`.
    #[must_use]
    pub fn needs(self, needs: &'static [&'static str]) -> Self {
        Self { needs, ..self }
    }

    /// Says that it runs cargo: it is skipped where there is none, as in the virtual machine.
    #[must_use]
    pub fn needs_toolchain(self) -> Self {
        Self {
            needs_toolchain: true,
            ..self
        }
    }

    /// Sets the version of Linux without which it is skipped, and what that version brought: "tmpfs keeps …".
    #[must_use]
    pub fn needs_kernel(self, version: (u32, u32), for_what: &'static str) -> Self {
        Self {
            needs_kernel: Some((version, for_what)),
            ..self
        }
    }

    /// Sets how long it may take.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Runs it in a [`World`](crate::world::World) of its own, where this very program serves as these words say. Where
    /// the tests are not run by root, it is skipped.
    #[must_use]
    pub fn in_world(self, server: &'static [&'static str]) -> Self {
        Self {
            world: Some(server),
            ..self
        }
    }

    /// Sets what is done before, outside of the deadline and the audit, by whoever runs the tests: with
    /// their rights, their cargo and the network.
    #[must_use]
    pub fn prepare(self, prepare: impl Fn(Who) -> Result<()> + Send + Sync + 'static) -> Self {
        Self {
            prepare: Some(Arc::new(prepare)),
            ..self
        }
    }

    /// Whom it runs as, where others run as one identity alone if `once`.
    pub(crate) fn identities(&self, once: bool) -> &'static [Who] {
        if once && !self.always_as_all {
            Who::one_of(self.who)
        } else {
            self.who
        }
    }

    /// The name under one identity: `run::prints::as_user`.
    pub fn name_as(&self, who: Who) -> String {
        format!("{}::{}", self.name, who.suffix())
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("who", &self.who)
            .finish_non_exhaustive()
    }
}

/// What a running test has: its identity, and directories of its own, already in its environment.
#[derive(Clone, Debug)]
pub struct Context {
    /// Whom it runs as.
    pub who: Who,
    directory: PathBuf,
}

impl Context {
    /// The parts of a test's directory. All belong to the identity; the audit expects `tmp` empty at the end.
    pub const PARTS: [&str; 4] = ["home", "tmp", "cache", "work"];

    pub(crate) fn new(who: Who, directory: PathBuf) -> Self {
        Self { who, directory }
    }

    /// Empty, the test's own, and its working directory; removed when the test has ended.
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// `HOME`. Has a `.cargo` that works offline.
    pub fn home(&self) -> PathBuf {
        self.directory.join("home")
    }

    /// `TMPDIR`.
    pub fn tmp(&self) -> PathBuf {
        self.directory.join("tmp")
    }

    /// `ORBIT_CACHE_DIR`: empty at the start, so every image is unpacked anew.
    pub fn cache(&self) -> PathBuf {
        self.directory.join("cache")
    }

    /// `cargo orbit VERB`.
    ///
    /// # Errors
    /// Where the binary does not build.
    pub fn orbit(&self, verb: &str) -> Result<Program> {
        Ok(orbit_cli::orbit(verb)?.current_dir(self.work()))
    }

    /// The toolchain's own `cargo`, offline.
    ///
    /// # Errors
    /// Where main gave none.
    pub fn cargo(&self) -> Result<Program> {
        let cargo = env::var_os("CARGO").context("main sets CARGO")?;
        Ok(Program::new(cargo)
            .env("CARGO_NET_OFFLINE", "true")
            .current_dir(self.work()))
    }

    /// An audit of this very process, inside of a test: for what must be gone while the process lives on.
    /// (The one around each test sees its files only by the fact that the process has ended.)
    pub fn audit(&self) -> LeakAudit {
        LeakAudit::start(
            [self.tmp(), self.cache().join("v1/tmp")],
            [self.cache().join("run")],
        )
    }

    /// A path in the workspace.
    pub fn in_workspace(&self, path: impl AsRef<Path>) -> PathBuf {
        crate::workspace().join(path)
    }
}

/// The error of a test that finds it cannot run here. Counted as skipped, with this reason; never as ok.
#[derive(Debug)]
pub struct Skip(pub String);

impl Skip {
    /// As an error, to `return Err(Skip::because("…"))`.
    pub fn because(reason: impl Into<String>) -> anyhow::Error {
        Self(reason.into()).into()
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_machine_can_show_is_shown_as_everyone() {
        let case = Case::new("x::y", |_| Ok(())).who(Who::RANGED);
        assert_eq!(case.identities(false), Who::RANGED);
        assert_eq!(case.identities(true), [Who::User]);
        assert_eq!(case.always_as_all().identities(true), Who::RANGED);
    }
}
