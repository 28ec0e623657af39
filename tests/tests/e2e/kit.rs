//! What the cases about sandboxes share: the two kinds of root filesystem, scripts run inside, and this very
//! binary as a payload or as a harness that may be killed.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{Mount, Outcome, Sandbox, SandboxBuilder};
use orbit_tests::images;

/// Set where this binary is to be something else than the tests: see `roles`.
pub(crate) const ROLE: &str = "ORBIT_TESTS_ROLE";

/// What a case needs that looks at what a sandbox removed: before, an overlay on a tmpfs cannot say that a directory made
/// again shows nothing of the one below.
///
/// Source: Linux, fs/Kconfig, `TMPFS_XATTR`; Documentation/filesystems/tmpfs.rst.
pub(crate) const TMPFS_KEEPS_ATTRIBUTES: ((u32, u32), &str) =
    ((6, 6), "tmpfs keeps user.* attributes");

/// Where a sandbox's files come from. What is promised of the inside is promised of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Host,
    Image,
}

pub(crate) const VIEWS: [View; 2] = [View::Host, View::Image];

impl View {
    pub(crate) fn sandbox(self) -> Result<SandboxBuilder> {
        Ok(match self {
            Self::Host => Sandbox::builder(),
            Self::Image => Sandbox::builder().image(&images::reference("busybox")?),
        })
    }

    /// A sandbox that runs `script` with `sh -c`.
    pub(crate) fn sh(self, script: &str) -> Result<SandboxBuilder> {
        Ok(self.sandbox()?.cmd(["sh", "-c", script]))
    }

    /// What `script` prints; it must exit with 0.
    pub(crate) fn read(self, script: &str) -> Result<String> {
        printed(self.sh(script)?).with_context(|| format!("{self:?}: {script}"))
    }

    /// A sandbox whose program is this binary in `role`. Over an image it comes with the host's libraries.
    pub(crate) fn role(self, role: &str) -> Result<SandboxBuilder> {
        let exe = env::current_exe()?;
        let sandbox = self.sandbox()?.env(ROLE, role);
        Ok(match self {
            Self::Host => sandbox.cmd([exe]),
            Self::Image => ["/lib", "/lib64", "/usr/lib"]
                .into_iter()
                .filter(|path| fs::metadata(path).is_ok())
                .fold(sandbox.cmd(["/e2e"]), |sandbox, path| {
                    sandbox.mount(Mount::bind_read_only(path, path))
                })
                .mount(Mount::bind_read_only(exe, "/e2e")),
        })
    }
}

/// What a program prints; it must exit with 0.
pub(crate) fn printed(sandbox: SandboxBuilder) -> Result<String> {
    let outcome = sandbox.run()?;
    ensure!(outcome.success(), "{}", describe(&outcome));
    Ok(outcome.stdout_text())
}

pub(crate) fn describe(outcome: &Outcome) -> String {
    format!(
        "{}, leaked {:?}\n--- stdout\n{}\n--- stderr\n{}",
        outcome.status,
        outcome.leaked,
        outcome.stdout_text(),
        outcome.stderr_text()
    )
}

/// The message of a sandbox that must not start.
pub(crate) fn refused(sandbox: SandboxBuilder) -> Result<String> {
    match sandbox.run() {
        Ok(outcome) => bail!("it ran: {}", describe(&outcome)),
        Err(error) => Ok(error.to_string()),
    }
}

/// That `text` has every one of `words`.
pub(crate) fn has(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "no `{word}` in: {text}");
    }
    Ok(())
}

/// `cargo orbit run` complains in one paragraph that has `words`.
pub(crate) fn one_paragraph(text: &str, words: &[&str]) -> Result<()> {
    has(text, words)?;
    let text = text.trim();
    ensure!(!text.is_empty(), "no message");
    ensure!(!text.contains("\n\n"), "more than one paragraph: {text}");
    ensure!(
        !text.contains("panicked") && !text.contains("RUST_BACKTRACE"),
        "a panic, not a message: {text}"
    );
    Ok(())
}

/// This binary in `role`, outside of any sandbox, with its output piped.
pub(crate) fn harness(role: &str) -> Result<Child> {
    Ok(Command::new(env::current_exe()?)
        .env(ROLE, role)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?)
}

/// The value after `name:` in the text of `/proc/PID/status`.
pub(crate) fn status_field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .with_context(|| format!("no {name} in {status}"))
}

/// The caller's own `/proc/self/status`.
pub(crate) fn own_status() -> Result<String> {
    Ok(fs::read_to_string("/proc/self/status")?)
}

/// Where this test binary lies.
pub(crate) fn exe() -> Result<PathBuf> {
    Ok(env::current_exe()?)
}
