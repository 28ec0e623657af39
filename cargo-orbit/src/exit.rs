//! From how it ended to the exit code, in one place.
//!
//! The numbers are those a shell, timeout(1) and `docker run` use, so that scripts need not learn new ones.

use std::{ffi::OsStr, process::ExitCode};

/// No sandbox could be made: nothing of what was asked has run.
pub(crate) const SETUP_FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Cargo could not be asked to build: what cargo itself says when it fails.
pub(crate) const CARGO_FAILED: u8 = 101;

/// What a verb other than those says when it fails.
pub(crate) const FAILED: u8 = 1;

/// The code of a sandbox that ended.
pub(crate) fn of_outcome(outcome: &orbit::Outcome) -> u8 {
    of_number(outcome.status.shell_code())
}

/// The code of a sandbox that never began.
pub(crate) fn of_error(error: &orbit::Error) -> u8 {
    if error.is_program_not_found() {
        NOT_FOUND
    } else if error.is_program_not_executable() {
        NOT_EXECUTABLE
    } else {
        SETUP_FAILED
    }
}

/// What the kernel would keep of `number` if it were given to exit(2): its lowest eight bits.
pub(crate) fn of_number(number: i32) -> u8 {
    number.to_le_bytes()[0]
}

/// The code of a command line that was not understood.
///
/// `run` says 125, as `docker run` does, because 1 and 2 belong to the program; `test` says 1, as `cargo test`
/// does; elsewhere 2, as everything else does.
pub(crate) fn usage(verb: Option<&OsStr>) -> ExitCode {
    ExitCode::from(match verb.and_then(OsStr::to_str) {
        Some("run" | "runner") => SETUP_FAILED,
        Some("test") => 1,
        _ => 2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_what_the_kernel_keeps_of_it() {
        assert_eq!(of_number(0), 0);
        assert_eq!(of_number(128 + 9), 137);
        assert_eq!(of_number(256), 0);
        assert_eq!(of_number(-1), 255);
    }

    #[test]
    fn a_command_line_not_understood_says_so_in_the_verbs_own_way() {
        let usage = |verb: Option<&str>| format!("{:?}", usage(verb.map(OsStr::new)));
        assert_eq!(usage(Some("run")), format!("{:?}", ExitCode::from(125)));
        assert_eq!(usage(Some("test")), format!("{:?}", ExitCode::from(1)));
        assert_eq!(usage(None), format!("{:?}", ExitCode::from(2)));
    }
}
