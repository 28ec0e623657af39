//! What happens in a run of tests, as data: the engine tells it, and every report is made from it alone.
//!
//! Pure: nothing here reads a clock. Times are counted from the start of the run.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, and few of the small ones"
)]
pub(crate) enum Event {
    /// Before anything is built.
    RunStarted(RunStarted),
    /// The tests of one binary are known.
    BinaryListed(BinaryListed),
    /// Cargo has built everything: no more binaries are to come.
    BuildFinished {
        /// How many tests are to run.
        tests: usize,
        /// How long after the start.
        at: Duration,
    },
    /// A test, or one more attempt at it, has begun.
    TestStarted {
        id: TestId,
        /// From 1.
        attempt: u32,
        at: Duration,
    },
    /// It has been running for as long as the settings call slow, or a multiple of that.
    TestSlow { id: TestId, running_for: Duration },
    /// It failed, and will be tried again.
    TestRetried { id: TestId, failed: Attempt },
    /// It has ended, and how is told when its binary has: before, it is not known what it printed.
    TestEnded { id: TestId, at: Duration },
    /// It has ended for good.
    TestFinished(TestResult),
    /// It was told to have passed, by what looked like its verdict, and has failed: this counts, not that.
    TestCorrected(TestResult),
    /// Tests of a binary that shared a sandbox have ended, and it with them.
    SandboxFinished(SharedSandbox),
    /// The run was told to end before its end: Ctrl-C, or a failure with fail-fast.
    Ending { why: Ending, running: usize },
    /// Nothing runs any more.
    RunFinished(Summary),
}

/// What is known before anything is built.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RunStarted {
    /// Names the run; sortable by time.
    pub(crate) run: String,
    /// Seconds since 1970 (UTC).
    pub(crate) started_at_unix_seconds: u64,
    /// What the workspace is called, for titles.
    pub(crate) workspace: String,
    /// How many tests or binaries may run at a time.
    pub(crate) jobs: usize,
    /// The seed of `--shuffle`.
    pub(crate) shuffle: Option<u64>,
    /// The configuration's profile.
    pub(crate) profile: Option<String>,
    /// The words of the command line, to run the same again.
    pub(crate) command_line: Vec<String>,
}

/// The tests of one binary.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BinaryListed {
    pub(crate) binary: BinaryId,
    pub(crate) package: String,
    /// `lib`, `bin`, `test`, `example`, `bench`, `proc-macro` or `doc`.
    pub(crate) kind: String,
    /// How many it has.
    pub(crate) tests: usize,
    /// How many of them were selected.
    pub(crate) selected: usize,
}

/// Names a test binary, as nextest names it: `package` for a library, `package::test` for a test,
/// `package::bin/name`, `package::example/name`, `package::bench/name`, and `package::doc` for doctests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct BinaryId(pub(crate) String);

impl fmt::Display for BinaryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct TestId {
    pub(crate) binary: BinaryId,
    /// As libtest names it: `module::test`. Empty for a binary that runs as a whole, without a test harness.
    pub(crate) name: String,
    /// With `--repeat`: which time this is, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) repetition: Option<u32>,
}

impl fmt::Display for TestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.binary)?;
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        if let Some(repetition) = self.repetition {
            write!(f, " #{repetition}")?;
        }
        Ok(())
    }
}

/// How a test ended, with everything that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TestResult {
    pub(crate) id: TestId,
    /// At least one, but for ignored tests; the last decides.
    pub(crate) attempts: Vec<Attempt>,
    /// Why it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<Skipped>,
}

/// A sandbox in which several tests ran: what they used, wrote and left is known of them together only.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SharedSandbox {
    pub(crate) binary: BinaryId,
    pub(crate) repetition: Option<u32>,
    /// How many it was given.
    pub(crate) tests: usize,
    /// Of the program as a whole, without what it printed of its tests.
    pub(crate) attempt: Attempt,
}

/// Why a test was not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Skipped {
    /// `#[ignore]`.
    Ignored,
    /// The run ended before its turn.
    NotReached,
}

/// In one word, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Class {
    Passed,
    /// Passed, though not at the first attempt.
    Flaky,
    Failed,
    Ignored,
    NotReached,
}

impl TestResult {
    pub(crate) fn class(&self) -> Class {
        match (&self.skipped, self.attempts.last()) {
            (Some(Skipped::Ignored), _) => Class::Ignored,
            (Some(Skipped::NotReached), _) | (None, None) => Class::NotReached,
            (None, Some(last)) if !last.verdict.passed() => Class::Failed,
            (None, Some(_)) if self.attempts.len() > 1 => Class::Flaky,
            (None, Some(_)) => Class::Passed,
        }
    }
}

/// One time that a test was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) verdict: Verdict,
    /// Since the start of the run.
    pub(crate) started: Duration,
    pub(crate) wall_time: Duration,
    /// Which of the jobs ran it, from 0: the lanes of a timeline.
    pub(crate) lane: usize,
    /// Whether it had a sandbox of its own; if not, `used`, `leaked` and the like are told of its [`SharedSandbox`].
    pub(crate) alone: bool,
    pub(crate) used: Used,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Processes that were alive when the program ended, by name.
    pub(crate) leaked: Vec<String>,
    /// Where it tried to reach, and was not let.
    pub(crate) denied: Vec<Denied>,
    /// Files that it wrote outside of its temporary directories, where that was asked for.
    pub(crate) wrote: Vec<String>,
    /// Limits that it ran into, and those that could not be kept.
    pub(crate) notes: Vec<String>,
    /// The kept sandbox, for `cargo orbit shell`.
    pub(crate) kept: Option<String>,
}

impl Attempt {
    /// One of which nothing more is known yet.
    pub(crate) const fn new(verdict: Verdict, used: Used) -> Self {
        Self {
            verdict,
            started: Duration::ZERO,
            wall_time: Duration::ZERO,
            lane: 0,
            alone: true,
            used,
            stdout: Vec::new(),
            stderr: Vec::new(),
            leaked: Vec::new(),
            denied: Vec::new(),
            wrote: Vec::new(),
            notes: Vec::new(),
            kept: None,
        }
    }
}

/// What a test used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    pub(crate) cpu_user: Duration,
    pub(crate) cpu_system: Duration,
    /// All processes together where there was a control group, else the largest one.
    pub(crate) memory_peak_bytes: Option<u64>,
}

impl Used {
    /// As the sandbox counted it.
    pub(crate) fn of(usage: &orbit::Usage) -> Self {
        Self {
            cpu_user: usage.cpu_user,
            cpu_system: usage.cpu_system,
            memory_peak_bytes: usage.memory_peak_bytes.or(Some(usage.max_rss_bytes)),
        }
    }

    /// What several programs used, one after the other.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            cpu_user: self.cpu_user + other.cpu_user,
            cpu_system: self.cpu_system + other.cpu_system,
            memory_peak_bytes: self.memory_peak_bytes.max(other.memory_peak_bytes),
        }
    }
}

/// An address that a test tried to reach.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Denied {
    /// `192.0.2.1:443/tcp`.
    pub(crate) to: String,
    pub(crate) count: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Passed,
    /// The test said so: a panic, an `Err`, an exit code.
    Failed {
        /// Absent where the binary ran several tests and said itself which failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
    },
    Killed {
        signal: i32,
        /// `SIGSEGV`, or the number.
        name: String,
    },
    TimedOut {
        limit: Duration,
    },
    OutOfMemory {
        limit_bytes: u64,
        peak_bytes: u64,
        process: String,
    },
    /// No sandbox could be made for it: it has not run.
    SetupFailed {
        why: String,
    },
    /// It passed, but processes of it were still alive, and the settings call that a failure.
    Leaked,
    /// It passed, but tried to reach what it may not, and the settings call that a failure.
    ReachedOut,
    /// It was running when the run was told to end.
    Interrupted,
}

impl Verdict {
    pub(crate) const fn passed(&self) -> bool {
        matches!(self, Self::Passed)
    }

    /// Eight letters at most, as reports print it before a test's name.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Passed => "PASS",
            Self::Failed { .. } => "FAIL",
            Self::Killed { .. } => "KILLED",
            Self::TimedOut { .. } => "TIMEOUT",
            Self::OutOfMemory { .. } => "OOM",
            Self::SetupFailed { .. } => "NOT RUN",
            Self::Leaked => "LEAK",
            Self::ReachedOut => "NETWORK",
            Self::Interrupted => "STOPPED",
        }
    }
}

/// A phrase: "killed by SIGSEGV".
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed { code: Some(code) } => write!(f, "failed with exit code {code}"),
            Self::Failed { code: None } => f.write_str("failed"),
            Self::Killed { name, .. } => write!(f, "killed by {name}"),
            Self::TimedOut { limit } => write!(f, "killed after its timeout of {limit:?}"),
            Self::OutOfMemory {
                limit_bytes,
                peak_bytes,
                process,
            } => write!(
                f,
                "killed by the memory limit of {:#}, peak {}, process `{process}`",
                orbit::Bytes::new(*limit_bytes),
                mebibytes(*peak_bytes)
            ),
            Self::SetupFailed { why } => write!(f, "has not run: {why}"),
            Self::Leaked => f.write_str("left processes behind"),
            Self::ReachedOut => f.write_str("tried to reach the network"),
            Self::Interrupted => f.write_str("was running when the run was ended"),
        }
    }
}

/// `64.0 MiB`.
pub(crate) fn mebibytes(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB)
}

/// Why a run ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ending {
    /// Ctrl-C, or another signal that asks to end.
    Signal,
    /// A test failed, and the rest is not wanted then.
    Failure,
}

/// The end of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Summary {
    pub(crate) passed: usize,
    /// Of those that passed.
    pub(crate) flaky: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
    pub(crate) not_reached: usize,
    /// Were there, but not selected.
    pub(crate) filtered_out: usize,
    pub(crate) wall_time: Duration,
}
