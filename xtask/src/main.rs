//! What a developer of Orbit runs: `cargo xtask test` and its parts.
//!
//! The last line is always `N passed, N failed, N skipped`, over everything that ran; what was skipped or
//! failed is named above it. Nothing is skipped silently, and a suite that crashes counts as a failure.

mod accounts;
mod bench;
mod beside;
mod checks;
mod images;
mod licences;
mod packages;
mod place;
mod run;
mod suites;
mod tally;
mod vm;

use std::{env, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::Result;
use tally::Tally;

const USAGE: &str = "\
usage: cargo xtask VERB

  test    install what is missing (as root), build the images, check, and run every test
  ci      the same: what .ci/run calls
  check   formatting, lints, documentation, locks of fixtures, licences
  images  build the test images
  bench [--slow] [WORD]...      measure against peers: one table, and docs/benchmarks.md
  vm [FILTER]...                run the tests of limits, and of sandboxes, in a virtual machine with cgroup v2
  vm systemd                    those that ask the user's systemd for a scope, alone
  vm --once PROGRAM [ARG]...    run a program once in it, as root; ORBIT_VM_EXTRA names other paths it needs
";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    if let [verb @ ("test" | "ci")] = &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        match place::elsewhere(verb) {
            Ok(None) => {}
            Ok(Some(status)) if status.success() => return ExitCode::SUCCESS,
            Ok(Some(_)) => return ExitCode::FAILURE,
            Err(fault) => {
                eprintln!("error: {fault:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    let started = Instant::now();
    let mut tally = Tally::default();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match &words[..] {
        ["test" | "ci"] => test(&mut tally),
        ["check"] => checks::all(&mut tally),
        ["images"] => images::build(&mut tally),
        ["bench", words @ ..] => bench::run(&mut tally, words),
        ["vm", "--once", program, arguments @ ..] => {
            suites::once_in_vm(&mut tally, program.as_ref(), arguments);
            Ok(())
        }
        ["vm", filter @ ..] => {
            suites::all_in_vm(&mut tally, filter);
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Err(fault) = done {
        tally.failed("xtask", &format!("{fault:#}"));
    }
    tally.print(started.elapsed());
    if tally.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn test(tally: &mut Tally) -> Result<()> {
    packages::install()?;
    accounts::make()?;
    images::build(tally)?;
    checks::quick(tally)?;
    suites::all(tally)
}

/// The root of the workspace.
fn workspace() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .map_or_else(|| package.clone(), PathBuf::from)
}

/// Whether we are root, as the owner of our own files in /proc tells without a system call of our own.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}
