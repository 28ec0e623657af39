//! What the cases about sandboxes share beside [`view`](orbit_tests::view): what is refused, and this very binary as a
//! harness that may be killed.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::SandboxBuilder;
pub(crate) use orbit_tests::view::{ROLE, VIEWS, View, describe, has, printed};

/// What a case needs that looks at what a sandbox removed: before, an overlay on a tmpfs cannot say that a directory made
/// again shows nothing of the one below.
///
/// Source: Linux, fs/Kconfig, `TMPFS_XATTR`; Documentation/filesystems/tmpfs.rst.
pub(crate) const TMPFS_KEEPS_ATTRIBUTES: ((u32, u32), &str) =
    ((6, 6), "tmpfs keeps user.* attributes");

/// The message of a sandbox that must not start.
pub(crate) fn refused(sandbox: SandboxBuilder) -> Result<String> {
    match sandbox.run() {
        Ok(outcome) => bail!("it ran: {}", describe(&outcome)),
        Err(error) => Ok(error.to_string()),
    }
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

/// How a child ends by itself, which it has ten seconds for.
pub(crate) fn end_of(child: &mut Child) -> Result<ExitStatus> {
    if let Some(status) = end_within(child, Duration::from_secs(10))? {
        return Ok(status);
    }
    child.kill()?;
    child.wait()?;
    bail!("it did not end")
}

/// How a child ends by itself; `None` where it still runs after `limit`.
pub(crate) fn end_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(None)
}
