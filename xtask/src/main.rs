//! What a developer of Orbit runs.

mod vm;

use std::{env, path::PathBuf, process::ExitCode};

const USAGE: &str = "\
usage: cargo xtask VERB

  vm [FILTER]                      run the tests of limits in a virtual machine with cgroup v2
  vm --once PROGRAM [ARG]...       run a program once in it, as root; ORBIT_VM_EXTRA names other paths it needs
";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let owned = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let done = match &words[..] {
        ["vm", "--once", program, arguments @ ..] => {
            let extra: Vec<PathBuf> = env::var_os("ORBIT_VM_EXTRA")
                .map(|paths| env::split_paths(&paths).collect())
                .unwrap_or_default();
            vm::once(
                &PathBuf::from(program),
                &owned(arguments),
                &extra,
                &mut |_| {},
            )
        }
        ["vm", filter @ ..] => vm::limits(&owned(filter), &mut |_| {}),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            eprintln!("error: {fault:#}");
            ExitCode::FAILURE
        }
    }
}
