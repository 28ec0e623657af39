//! The rows of the table: what is compared with what, and the goal.

/// What is measured in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    Run,
    Start,
    StartLarge,
    Ahead,
    User,
    First,
    Together,
    Alive,
    Layers,
    Ports,
    Postgres,
    Tests,
    Binaries,
    Build,
}

impl Group {
    /// As the program in `benches/` knows it, where that measures it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Start => "start",
            Self::StartLarge => "start-large",
            Self::Ahead => "ahead",
            Self::User => "user",
            Self::First => "first",
            Self::Together => "together",
            Self::Alive => "alive",
            Self::Layers => "layers",
            Self::Ports => "ports",
            Self::Postgres => "postgres",
            Self::Tests => "tests",
            Self::Binaries => "binaries",
            Self::Build => "build",
        }
    }

    fn is_slow(self) -> bool {
        self == Self::Build
    }
}

/// What the ratio of ours to the peer's is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    pub(crate) fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(limit) => ratio <= limit,
            Self::AtLeast(limit) => ratio >= limit,
        }
    }
}

/// How figures are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Time,
    PerSecond,
    Bytes,
    BytesPerSecond,
    Count,
}

pub(crate) struct Row {
    pub(crate) group: Group,
    pub(crate) what: &'static str,
    /// Names of figures.
    pub(crate) ours: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) unit: Unit,
    pub(crate) goal: Goal,
}

impl Row {
    pub(crate) fn is_asked(&self, filter: &[&str], slow: bool) -> bool {
        let named = |word: &&str| self.group.name() == *word || self.what.contains(*word);
        if filter.is_empty() {
            slow || !self.group.is_slow()
        } else {
            filter.iter().any(named)
        }
    }
}

const fn row(
    group: Group,
    what: &'static str,
    (ours, peer): (&'static str, &'static str),
    unit: Unit,
    goal: Goal,
) -> Row {
    Row {
        group,
        what,
        ours,
        peer,
        unit,
        goal,
    }
}

use Goal::{AtLeast, AtMost};
use Unit::{Bytes, BytesPerSecond, Count, PerSecond, Time};

pub(crate) const ROWS: &[Row] = &[
    row(
        Group::Run,
        "a command in a throwaway sandbox, against bubblewrap",
        ("cargo orbit run", "bwrap --unshare-all"),
        Time,
        AtMost(0.6),
    ),
    row(
        Group::Run,
        "the same, against runc",
        ("cargo orbit run", "runc run"),
        Time,
        AtMost(0.09),
    ),
    row(
        Group::Run,
        "the same, against Docker",
        ("cargo orbit run", "docker run"),
        Time,
        AtMost(0.015),
    ),
    row(
        Group::Start,
        "start to exit in a process, against a plain spawn",
        ("sandbox", "plain spawn"),
        Time,
        AtMost(4.0),
    ),
    row(
        Group::Start,
        "the same, against the C floor",
        ("sandbox", "floor"),
        Time,
        AtMost(1.25),
    ),
    row(
        Group::StartLarge,
        "the same with 1 GiB resident and 64 threads, against a small process",
        ("large sandbox", "sandbox"),
        Time,
        AtMost(1.2),
    ),
    row(
        Group::Ahead,
        "start to exit of one that was prepared ahead, against a plain spawn",
        ("prepared sandbox", "plain spawn after a pause"),
        Time,
        AtMost(2.0),
    ),
    row(
        Group::User,
        "start to exit in a process of an ordinary user, against a plain spawn",
        ("user's sandbox", "user's plain spawn"),
        Time,
        AtMost(4.0),
    ),
    row(
        Group::User,
        "the same, against the C floor as that user",
        ("user's sandbox", "user's floor"),
        Time,
        AtMost(1.25),
    ),
    row(
        Group::User,
        "an ordinary user's that was prepared ahead, against a plain spawn",
        (
            "user's prepared sandbox",
            "user's plain spawn after a pause",
        ),
        Time,
        AtMost(2.0),
    ),
    row(
        Group::First,
        "first sandbox of a process, in plain spawns",
        ("first sandbox", "first plain spawn"),
        Time,
        AtMost(12.0),
    ),
    row(
        Group::Tests,
        "300 trivial tests, a sandbox each, against nextest without any",
        ("cargo orbit test --isolate test", "cargo nextest run"),
        Time,
        AtMost(0.5),
    ),
    row(
        Group::Tests,
        "the same, against Maelstrom",
        ("cargo orbit test --isolate test", "cargo maelstrom"),
        Time,
        AtMost(0.15),
    ),
    row(
        Group::Binaries,
        "what a sandbox for each test binary adds to each, in plain spawns",
        ("added by --isolate binary", "plain spawn beside binaries"),
        Time,
        AtMost(10.0),
    ),
    row(
        Group::Together,
        "throughput with 64 sandboxes at a time, against 8",
        ("64 at a time", "8 at a time"),
        PerSecond,
        AtLeast(1.0),
    ),
    row(
        Group::Together,
        "throughput with 8 sandboxes at a time, against 1",
        ("8 at a time", "1 at a time"),
        PerSecond,
        AtLeast(1.0),
    ),
    row(
        Group::Alive,
        "the thousandth of 1,000 sandboxes alive at once, against the first",
        ("thousandth alive", "first alive"),
        Time,
        AtMost(1.5),
    ),
    row(
        Group::Alive,
        "private memory of each beyond the program's own, against 1 MiB",
        ("private bytes", "one mebibyte"),
        Bytes,
        AtMost(1.0),
    ),
    row(
        Group::Layers,
        "image start, 60 layers against 2",
        ("60 layers", "2 layers"),
        Time,
        AtMost(1.2),
    ),
    row(
        Group::Ports,
        "throughput of a published port, against a direct veth",
        ("published throughput", "direct throughput"),
        BytesPerSecond,
        AtLeast(0.7),
    ),
    row(
        Group::Ports,
        "what a published port adds to a round trip, in wake-ups",
        ("added latency", "wake-up"),
        Time,
        AtMost(2.0),
    ),
    row(
        Group::Postgres,
        "PostgreSQL until it answers, cloned from a snapshot against started afresh",
        ("cloned PostgreSQL", "fresh PostgreSQL"),
        Time,
        AtMost(0.25),
    ),
    row(
        Group::Run,
        "`cargo orbit run --help`, in plain spawns",
        ("cargo orbit run --help", "plain spawn of a command"),
        Time,
        AtMost(3.0),
    ),
    row(
        Group::Build,
        "crates of orbit-harness as a dev-dependency, against testcontainers",
        ("crates of orbit-harness", "crates of testcontainers"),
        Count,
        AtMost(0.6),
    ),
    row(
        Group::Build,
        "the same without the registry feature",
        (
            "crates of orbit-harness, no features",
            "crates of testcontainers",
        ),
        Count,
        AtMost(0.25),
    ),
    row(
        Group::Build,
        "CPU time of a clean build of it, against testcontainers",
        ("build of orbit-harness", "build of testcontainers"),
        Time,
        AtMost(0.6),
    ),
    row(
        Group::Build,
        "the same without the registry feature, CPU time",
        (
            "build of orbit-harness, no features",
            "build of testcontainers",
        ),
        Time,
        AtMost(0.25),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_a_group_or_part_of_a_row() {
        let asked =
            |words: &[&str], slow| ROWS.iter().filter(|it| it.is_asked(words, slow)).count();
        assert!(asked(&[], false) < ROWS.len());
        assert_eq!(asked(&[], true), ROWS.len());
        assert_eq!(asked(&["alive"], false), 2);
        assert_eq!(asked(&["bubblewrap"], false), 1);
        assert_eq!(asked(&["no such row"], true), 0);
    }

    #[test]
    fn goals_are_met_on_their_side_of_the_limit() {
        assert!(AtMost(0.6).is_met(0.6) && !AtMost(0.6).is_met(0.61));
        assert!(AtLeast(0.7).is_met(0.7) && !AtLeast(0.7).is_met(0.69));
    }
}
