//! How a sandbox ended.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// How the program of a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Status {
    /// The program called `exit` with this code.
    Exited(i32),
    /// A signal ended the program.
    Signaled(i32),
    /// The sandbox's timeout passed, and everything in it was killed.
    TimedOut(Duration),
}

impl Status {
    /// Whether the program exited with code 0.
    pub const fn success(self) -> bool {
        matches!(self, Self::Exited(0))
    }

    /// The code a shell would report: the program's own, 128 + signal, or 124 after a timeout, as timeout(1).
    pub const fn shell_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
            Self::TimedOut(_) => 124,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Signaled(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_) => write!(f, "killed by signal {number}"),
            },
            Self::TimedOut(limit) => write!(f, "killed after its timeout of {limit:?}"),
        }
    }
}

/// What the processes of a sandbox used, as `wait4` counts it for the program and its waited-for children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// CPU time in user mode.
    pub cpu_user: Duration,
    /// CPU time in the kernel.
    pub cpu_system: Duration,
    /// Largest resident set of any one process, in bytes.
    pub max_rss_bytes: u64,
}

/// The end of a sandbox: how, with what output, after how long, having used what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// How the program ended.
    pub status: Status,
    /// What was captured of standard output.
    pub stdout: Vec<u8>,
    /// What was captured of standard error.
    pub stderr: Vec<u8>,
    /// From the program's start to its end.
    pub wall_time: Duration,
    /// What it used.
    pub usage: Usage,
    /// Names of processes that were still alive when the program ended, and were killed.
    pub leaked: Vec<LeakedProcess>,
}

impl Outcome {
    /// Whether the program exited with code 0.
    pub const fn success(&self) -> bool {
        self.status.success()
    }

    /// Standard output as text, with what is not UTF-8 replaced.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text, with what is not UTF-8 replaced.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A process that outlived its sandbox's program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeakedProcess {
    /// Its number inside the sandbox.
    pub pid: i32,
    /// Its name, as in `/proc/PID/comm`.
    pub name: String,
}
