//! The two kinds of root filesystem that cases run over, and this very binary as a program inside.

use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use orbit::{Mount, Outcome, Sandbox, SandboxBuilder};

use crate::images;

/// Set where a test binary is to be something else than the tests.
pub const ROLE: &str = "ORBIT_TESTS_ROLE";

/// Where the binary is mounted in a sandbox that runs it over an image.
pub const BINARY: &str = "/tests";

/// Where a sandbox's files come from. What is promised of the inside is promised of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The host's.
    Host,
    /// The image with busybox.
    Image,
}

/// Both.
pub const VIEWS: [View; 2] = [View::Host, View::Image];

impl View {
    /// A sandbox with no program yet.
    ///
    /// # Errors
    /// Where the image is not built.
    pub fn sandbox(self) -> Result<SandboxBuilder> {
        Ok(match self {
            Self::Host => Sandbox::builder(),
            Self::Image => Sandbox::builder().image(&images::reference("busybox")?),
        })
    }

    /// A sandbox that runs `script` with `sh -c`.
    ///
    /// # Errors
    /// As [`View::sandbox`].
    pub fn sh(self, script: &str) -> Result<SandboxBuilder> {
        Ok(self.sandbox()?.cmd(["sh", "-c", script]))
    }

    /// A started sandbox that does nothing until it is ended.
    ///
    /// # Errors
    /// As [`View::sandbox`], and where it does not start.
    pub fn idle(self) -> Result<Sandbox> {
        Ok(self.sh("exec sleep 1000")?.start()?)
    }

    /// What `script` prints; it must exit with 0.
    ///
    /// # Errors
    /// Where it does not.
    pub fn read(self, script: &str) -> Result<String> {
        printed(self.sh(script)?).with_context(|| format!("{self:?}: {script}"))
    }

    /// A sandbox whose program is this binary in `role`. Over an image it comes with the host's libraries.
    ///
    /// # Errors
    /// As [`View::sandbox`].
    pub fn role(self, role: &str) -> Result<SandboxBuilder> {
        let exe = env::current_exe()?;
        let sandbox = self.sandbox()?.env(ROLE, role);
        Ok(match self {
            Self::Host => sandbox.cmd([exe]),
            Self::Image => ["/lib", "/lib64", "/usr/lib"]
                .into_iter()
                .filter(|path| fs::metadata(path).is_ok())
                .fold(sandbox.cmd([BINARY]), |sandbox, path| {
                    sandbox.mount(Mount::bind_read_only(path, path))
                })
                .mount(Mount::bind_read_only(exe, BINARY)),
        })
    }
}

/// What a program prints; it must exit with 0.
///
/// # Errors
/// Where it does not, with all that it printed.
pub fn printed(sandbox: SandboxBuilder) -> Result<String> {
    let outcome = sandbox.run()?;
    ensure!(outcome.success(), "{}", describe(&outcome));
    Ok(outcome.stdout_text())
}

/// How a sandbox ended, with all that it printed.
pub fn describe(outcome: &Outcome) -> String {
    format!(
        "{}, leaked {:?}\n--- stdout\n{}\n--- stderr\n{}",
        outcome.status,
        outcome.leaked,
        outcome.stdout_text(),
        outcome.stderr_text()
    )
}

/// That `text` has every one of `words`.
///
/// # Errors
/// Where one is missing.
pub fn has(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "no `{word}` in: {text}");
    }
    Ok(())
}
