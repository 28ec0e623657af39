//! Limits that hold, on a kernel with cgroup version 2: run by `cargo xtask vm`, or directly where the host has it.
//!
//! What can be tested depends on whose cgroup this process is in, which is found out by asking for a limit:
//!
//! | this process is | what runs |
//! |---|---|
//! | root, or a user with a delegated subtree | everything |
//! | a user without one | that a limit is refused with the command that helps |
//! | on a host with version 1 | the same, with another text |
//!
//! What does not run is reported as ignored, by name and with the reason.

/// Keeps what a test measured, to be printed when all have run: a line in between would part a test's name from
/// its verdict.
macro_rules! figure {
    ($($text:tt)*) => {
        crate::keep_figure(module_path!(), line!(), &format!($($text)*))
    };
}
pub(crate) use figure;

mod again;
mod cases;
mod inside;
mod refused;

use std::{
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use orbit::Sandbox;

static FIGURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn keep_figure(module: &str, line: u32, text: &str) {
    FIGURES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(format!("{module}:{line}: {text}"));
}

/// What limits are like for this process.
#[derive(Clone, Debug)]
pub(crate) enum Here {
    /// They are kept.
    Kept,
    /// The error of a sandbox with one.
    Refused(String),
    /// The same where they must be kept: nothing is ignored then.
    Broken(String),
}

impl Here {
    /// `kept` is whether they must be, where the machine says so: it knows better than we do.
    fn find(kept: Option<bool>) -> Self {
        let tried = Sandbox::builder().cmd(["true"]).memory("64M").run();
        match (tried, kept) {
            (Ok(_), Some(false)) => Self::Broken("a limit is kept that cannot be".to_owned()),
            (Ok(_), _) => Self::Kept,
            (Err(error), Some(false) | None) if error.is_limit() || error.is_spec() => {
                Self::Refused(error.to_string())
            }
            (Err(error), _) => Self::Broken(error.to_string()),
        }
    }
}

type Test = fn() -> anyhow::Result<()>;

fn main() -> ExitCode {
    if let Some(code) = again::run_as_child() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let who = std::env::var("ORBIT_TESTS_AS").ok();
    let kept = who.as_deref().map(|who| who != "undelegated");
    let here = if arguments.list {
        Here::Refused("listing only".to_owned())
    } else {
        Here::find(kept)
    };
    // The machine runs this several times, and each is told from the others.
    let suffix = who.map_or_else(String::new, |who| format!("::as_{who}"));
    let mut trials = Vec::new();
    for (name, test) in refused::ANYWHERE {
        trials.push(Trial::test(format!("{name}{suffix}"), move || {
            test().map_err(failed)
        }));
    }
    // What the machine runs as somebody else is no test of this one's.
    let kept_cases = cases::CASES.into_iter().chain(inside::CASES);
    for (name, test) in kept_cases.filter(|_| kept != Some(false)) {
        let here = here.clone();
        trials.push(Trial::ignorable_test(
            format!("{name}{suffix}"),
            move || match here {
                Here::Kept => completed(test()),
                Here::Broken(error) => Err(Failed::from(error)),
                Here::Refused(_) => Ok(Completion::ignored_with(
                    "limits cannot be kept here; `cargo xtask vm` runs it where they can",
                )),
            },
        ));
    }
    for (name, test) in refused::REFUSED.into_iter().filter(|_| kept != Some(true)) {
        let here = here.clone();
        trials.push(Trial::ignorable_test(
            format!("{name}{suffix}"),
            move || match here {
                Here::Refused(error) => completed(test(&error)),
                Here::Broken(error) => Err(Failed::from(error)),
                Here::Kept => Ok(Completion::ignored_with("limits are kept here")),
            },
        ));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for figure in FIGURES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        println!("measured {figure}");
    }
    ExitCode::from(if conclusion.has_failed() { 101 } else { 0 })
}

fn completed(result: anyhow::Result<()>) -> Result<Completion, Failed> {
    result.map(|()| Completion::Completed).map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(fault: anyhow::Error) -> Failed {
    Failed::from(format!("{fault:#}"))
}
