//! [`trial`]: a case of a data-driven suite, in a sandbox of its own.

use libtest_mimic::{Failed, Trial};

use super::{Forward, Inside, Keys, Verdict, enter_here, inner, outside};
use crate::builder::SandboxBuilder;

/// A case of a suite whose tests are made from data, one for each file say, run in a sandbox of its own.
///
/// `sandbox` says what is asked beyond what a sandboxed test has anyway: see [`macro@crate::sandboxed`]. For sandboxes of its
/// own a case asks with [`nested`](SandboxBuilder::nested), as here; each name is there once. The suite's
/// `main` runs again inside, so it must make the same cases there; of its other arguments, the inner one gets none.
///
/// ```no_run
/// use orbit::{Sandbox, trial};
///
/// fn main() {
///     let arguments = libtest_mimic::Arguments::from_args();
///     let cases = ["cases/a.txt", "cases/b.txt"].map(|path| {
///         trial(path, Sandbox::builder().cap_drop("ALL").nested(true), move || {
///             let text = std::fs::read_to_string(path)?;
///             std::fs::write("/tmp/out", text)?;
///             Ok(())
///         })
///     });
///     libtest_mimic::run(&arguments, cases.into()).exit();
/// }
/// ```
///
/// The body's panic, or the error it returns, is the case's failure. Its output is shown where it fails.
pub fn trial(
    name: impl Into<String>,
    sandbox: SandboxBuilder,
    body: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let name = name.into();
    Trial::test(name.clone(), move || run(&name, sandbox, body))
}

fn run(
    name: &str,
    sandbox: SandboxBuilder,
    body: impl FnOnce() -> Result<(), Failed>,
) -> Result<(), Failed> {
    match inner() {
        Ok(Some(inner)) if inner.is(name) && enter_here(inner) => {
            let inside = Inside(Some(inner));
            let result = body();
            if let Err(error) = &result {
                inner.panicked(error.message().unwrap_or("the case failed"));
                inside.ended_by_error();
            }
            result
        }
        Ok(_) => {
            let keys = Keys {
                sandbox,
                passed: Vec::new(),
            };
            match outside(name, keys, false, Forward::OnFailure) {
                Verdict::Passed => Ok(()),
                Verdict::Panicked(message) | Verdict::Broken(message) => Err(message.into()),
            }
        }
        Err(why) => Err(why.into()),
    }
}
