//! How a sandbox ended.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{changes::Changes, net::denied::Denied, units::Bytes};

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
    /// The sandbox used up its memory limit, and the kernel killed everything in it.
    OomKilled {
        /// The limit.
        limit: Bytes,
        /// The most memory that all processes used together.
        peak: Bytes,
        /// The program. Which of its processes asked for too much, the kernel does not tell.
        process: ProcessName,
    },
}

impl Status {
    /// Whether the program exited with code 0.
    pub const fn success(self) -> bool {
        matches!(self, Self::Exited(0))
    }

    /// The code a shell would report: the program's own, 128 + signal, 124 after a timeout, as timeout(1), or
    /// 137 after an out-of-memory kill, as for SIGKILL.
    pub const fn shell_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
            Self::TimedOut(_) => 124,
            Self::OomKilled { .. } => 128 + libc::SIGKILL,
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
            Self::OomKilled {
                limit,
                peak,
                process,
            } => write!(
                f,
                "killed by the memory limit of {limit:#}, peak {}, process `{process}`",
                tenths(*peak)
            ),
        }
    }
}

/// `64.0 MiB`: in mebibytes, to a tenth.
fn tenths(bytes: Bytes) -> String {
    const MIB: u64 = 1 << 20;
    let (whole, rest) = (bytes.as_u64() / MIB, bytes.as_u64() % MIB);
    format!("{whole}.{} MiB", rest * 10 / MIB)
}

/// The name of a process, of which the kernel keeps fifteen bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessName([u8; Self::BYTES]);

impl ProcessName {
    const BYTES: usize = 15;

    /// The name that a process has once it executes the file at `path`.
    pub(crate) fn of_program(path: &std::ffi::OsStr) -> Self {
        use std::os::unix::ffi::OsStrExt as _;
        let name = path.as_bytes().rsplit(|byte| *byte == b'/').next();
        let mut kept = [0; Self::BYTES];
        for (slot, byte) in kept.iter_mut().zip(name.unwrap_or_default()) {
            *slot = *byte;
        }
        Self(kept)
    }
}

/// The name, with what is not UTF-8 replaced.
impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|byte| *byte == 0);
        f.write_str(&String::from_utf8_lossy(
            &self.0[..end.unwrap_or(Self::BYTES)],
        ))
    }
}

/// Who counted a [`Usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum UsageSource {
    /// `wait4`: the program, and those of its children that it waited for.
    #[default]
    Wait4,
    /// `/proc`: the program while it runs, and those of its children that it waited for.
    Proc,
    /// The sandbox's control group: every process that ever was in it, Orbit's init included.
    Cgroup,
}

/// What the processes of a sandbox used, as far as its [`source`](Self::source) tells. A figure that this source or this kernel
/// does not count is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Who counted.
    pub source: UsageSource,
    /// CPU time in user mode.
    pub cpu_user: Duration,
    /// CPU time in the kernel.
    pub cpu_system: Duration,
    /// Largest resident set of any one process, in bytes; as `wait4` or `/proc` counts it.
    pub max_rss_bytes: u64,
    /// What all processes and the files in memory use now, in bytes.
    pub memory_bytes: Option<u64>,
    /// The most they ever used together, in bytes. Since Linux 5.19.
    pub memory_peak_bytes: Option<u64>,
    /// How many processes and threads there are now.
    pub pids: Option<u64>,
    /// The most there ever were together. Since Linux 6.9.
    pub pids_peak: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_written_bytes: Option<u64>,
    /// For how long processes were kept from running by the CPU limit.
    pub throttled: Option<Duration>,
    /// For how long processes stood still for want of something.
    pub pressure: Option<Pressure>,
}

/// For how long processes stood still for want of something: the kernel's pressure stall information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Pressure {
    /// Some of them for want of a CPU.
    pub cpu: Duration,
    /// Some of them for want of memory.
    pub memory: Duration,
    /// All of them for want of memory.
    pub memory_full: Duration,
    /// Some of them for want of a device's answer.
    pub io: Duration,
    /// All of them for want of a device's answer.
    pub io_full: Duration,
}

/// A stream that a program writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl fmt::Display for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "standard output",
            Self::Stderr => "standard error",
        })
    }
}

/// A limit that a sandbox ran into, though it was not its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Note {
    /// New processes or threads were refused.
    PidsLimit {
        /// The limit, which does not count Orbit's init.
        limit: u64,
        /// How often.
        refused: u64,
    },
    /// The CPU limit kept processes from running.
    Throttled {
        /// For how long.
        time: Duration,
    },
    /// When the program ended, the writable layer was full: writes fail with ENOSPC then.
    DiskFull {
        /// Its size.
        size: Bytes,
    },
    /// It wrote more to a captured stream than was to be kept: the middle of it is missing.
    OutputCut {
        /// Which.
        stream: OutputStream,
        /// How much is missing.
        left_out: Bytes,
    },
    /// Processes were killed because the machine, or a cgroup around the sandbox, was out of memory: not for the
    /// sandbox's own limit.
    KilledFromOutside {
        /// How many.
        processes: u64,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PidsLimit { limit, refused } => {
                write!(
                    f,
                    "the limit of {limit} processes refused a new one {refused} times"
                )
            }
            Self::Throttled { time } => write!(f, "the CPU limit held it back for {time:?}"),
            Self::DiskFull { size } => {
                write!(f, "its writable layer of {size:#} is full")
            }
            Self::OutputCut { stream, left_out } => write!(
                f,
                "of its {stream}, {} bytes are left out in the middle: `capture_limit` keeps more",
                left_out.as_u64()
            ),
            Self::KilledFromOutside { processes } => write!(
                f,
                "{processes} of its processes were killed because the machine, or a cgroup around it, was out of \
                 memory"
            ),
        }
    }
}

/// The end of a sandbox: how, with what output, after how long, having used what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// How the program ended.
    pub status: Status,
    /// What was captured of standard output: all of it, or its beginning and its end
    /// ([`SandboxBuilder::capture_limit`](crate::SandboxBuilder::capture_limit)).
    pub stdout: Vec<u8>,
    /// What was captured of standard error.
    pub stderr: Vec<u8>,
    /// From the program's start to its end.
    pub wall_time: Duration,
    /// What it used.
    pub usage: Usage,
    /// Names of processes that were still alive when the program ended, and were killed.
    pub leaked: Vec<LeakedProcess>,
    /// The limits it ran into.
    pub notes: Vec<Note>,
    /// Limits that were asked for as best they can be kept, and could not be.
    pub warnings: Vec<String>,
    /// Which files it wrote, where [`record_changes`](crate::SandboxBuilder::record_changes) asked for that.
    pub changes: Option<Changes>,
    pub(crate) denied: Vec<Denied>,
}

impl Outcome {
    /// Whether the program exited with code 0.
    pub const fn success(&self) -> bool {
        self.status.success()
    }

    /// What the sandbox tried to reach and was refused, where that was
    /// [recorded](crate::SandboxBuilder::record_denied): each address, port and protocol with the number of packets,
    /// for at most 512 destinations of IPv4 and as many of IPv6.
    ///
    /// ```no_run
    /// let outcome = orbit::Sandbox::builder()
    ///     .cmd(["bash", "-c", "exec 3<>/dev/tcp/192.0.2.1/443"])
    ///     .record_denied(true)
    ///     .run()?;
    /// assert_eq!(outcome.denied()[0].to_string(), "192.0.2.1:443/tcp, once");
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn denied(&self) -> &[Denied] {
        &self.denied
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_for_want_of_memory_says_by_how_much() {
        let status = Status::OomKilled {
            limit: Bytes::mib(64),
            peak: Bytes::new((64 << 20) - (1 << 19)),
            process: ProcessName::of_program("/usr/bin/a-name-that-is-long".as_ref()),
        };
        assert_eq!(
            status.to_string(),
            "killed by the memory limit of 64 MiB, peak 63.5 MiB, process `a-name-that-is-`"
        );
        assert_eq!(status.shell_code(), 137);
        assert!(!status.success());
    }

    #[test]
    fn notes_are_sentences() {
        let notes = [
            Note::PidsLimit {
                limit: 64,
                refused: 3,
            },
            Note::Throttled {
                time: Duration::from_millis(1500),
            },
            Note::DiskFull {
                size: Bytes::mib(256),
            },
            Note::KilledFromOutside { processes: 2 },
        ];
        let texts: Vec<String> = notes.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(texts.join("\n"), @r"
        the limit of 64 processes refused a new one 3 times
        the CPU limit held it back for 1.5s
        its writable layer of 256 MiB is full
        2 of its processes were killed because the machine, or a cgroup around it, was out of memory
        ");
    }
}
