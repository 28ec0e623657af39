//! The table, and the page around it.

use std::{fmt::Write as _, fs};

use super::{
    figures::Figures,
    rows::{Goal, Row, Unit},
    stage::{Stage, TESTS},
};
use crate::run;

pub(crate) fn table(rows: &[&Row], figures: &Figures) -> String {
    let mut table = String::from(
        "| what | ours | | peer | | ratio | goal | |\n|---|---|--:|---|--:|--:|--:|---|\n",
    );
    for row in rows {
        let goal = match row.goal {
            Goal::AtMost(limit) => format!("≤ {limit}"),
            Goal::AtLeast(limit) => format!("≥ {limit}"),
        };
        let cell = |name| {
            figures
                .get(name)
                .map_or_else(String::new, |value| show(value, row.unit))
        };
        let ratio = figures
            .get(row.ours)
            .zip(figures.get(row.peer))
            .map(|(ours, peer)| ours / peer);
        let (ratio, met) = match ratio {
            Some(ratio) if row.goal.is_met(ratio) => (format!("{ratio:.2}"), "met".to_owned()),
            Some(ratio) => (format!("{ratio:.2}"), "**not met**".to_owned()),
            None => {
                let missing = [row.ours, row.peer]
                    .into_iter()
                    .find(|name| figures.get(name).is_none());
                let missing = missing.unwrap_or_default();
                (
                    String::new(),
                    format!("skipped: {missing}: {}", figures.why_not(missing)),
                )
            }
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {ratio} | {goal} | {met} |",
            row.what,
            row.ours,
            cell(row.ours),
            row.peer,
            cell(row.peer),
        );
    }
    table
}

fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Time if value < 1e-3 => format!("{:.0} µs", value * 1e6),
        Unit::Time if value < 1.0 => format!("{:.2} ms", value * 1e3),
        Unit::Time => format!("{value:.2} s"),
        Unit::PerSecond => format!("{value:.0}/s"),
        Unit::Bytes => format!("{:.0} KiB", value / 1024.0),
        Unit::BytesPerSecond => format!("{:.0} MB/s", value / 1e6),
        Unit::Count => format!("{value:.0}"),
    }
}

/// The whole of `docs/benchmarks.md`.
pub(crate) fn page(table: &str, figures: &Figures, stage: &Stage, load: &str) -> String {
    let limits = limits(figures);
    let machine = machine(stage, load);
    format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`; do not edit. Each ratio is ours to the peer's, of medians of one run, and\n\
         says more than the figures, which are this machine's. What the machine did not have is skipped by name.\n\n\
         {table}\n\
         ## What the figures are\n\n{TEXT}{limits}{REASONS}\n\
         ## The machine\n\n{machine}\n\
         ## To repeat it\n\n\
         ```\n\
         cargo xtask bench            # all rows but clean builds; a few minutes, on a machine with nothing else to do\n\
         cargo xtask bench --slow     # clean builds too\n\
         cargo xtask bench run start  # these groups, or rows that contain the words; writes no page\n\
         ```\n\n\
         Groups: run, start, start-large, ahead, user, first, together, alive, layers, ports, postgres, tests, binaries, build. As root, on\n\
         Debian, missing peers are installed first: see `tests/packages-bench.txt`; cargo-nextest comes by `cargo install`.\n"
    )
}

const TEXT: &str = "\
- Whole commands are timed by hyperfine, in turns. What happens in a process is timed by `benches/`, in turns too.
- *plain spawn*: start, without isolation, of a static program that returns 0, and the wait for it. Where a
  command is compared, hyperfine starts it, else a process of ours.
- *floor*: `benches/floor.c`, the same program behind the system calls of the same plan, in C, by a process with
  one thread that waits for nothing else: all namespaces, loopback, overlay, proc, sysfs, /dev, pivot_root, what
  hides parts of /proc, an init, bounding set, no_new_privs, seccomp.
- *sandbox*: the same, as `Sandbox::builder().image(\"dir:…\").cmd([\"/bin/true\"]).run()`. As the user who ran this, and in
  the rows of an ordinary user as the one that tests run as. Before each there are four milliseconds in which the supervisor makes
  an init that stands by; one that follows another at once makes its own, and is told of below.
- *300 trivial tests*: dev profile, built before; each command looks whether they are, then runs them.
- *added by --isolate binary*: what `cargo orbit test --isolate binary` takes longer than `cargo test`, which runs
  the same binaries bare, divided by their number.
- *private bytes*: of the init of a sandbox, `Private_Clean` and `Private_Dirty` in `smaps_rollup`; the median.
- *wake-up*: half of a round trip of one byte between two threads.
";

/// Why what is missed is missed, by measurements that are not repeated with each run.
const REASONS: &str = include_str!("reasons.md");

/// The limits under what is missed, as this very run measured them.
fn limits(figures: &Figures) -> String {
    let mut text = String::new();
    let pair = |ours: &str, peer: &str| Some(figures.get(ours)? / figures.get(peer)?);
    // Writing to a string cannot fail.
    let networked = "floor with a network made ahead";
    if let (Some(ratio), Some(floor)) = (pair(networked, "plain spawn"), pair(networked, "floor")) {
        let _ = writeln!(
            text,
            "- With a network namespace that was made before, the floor takes {ratio:.2} plain spawns, {floor:.2} of its time without. \
             Ours have all namespaces from an init that stood by: that is made when nothing has happened for a millisecond."
        );
    }
    if let (Some(ratio), Some(floor)) = (
        pair("next sandbox", "plain spawn"),
        pair("next sandbox", "floor"),
    ) {
        let _ = writeln!(
            text,
            "- A sandbox that follows another at once, for which nothing was made, takes {ratio:.2} plain spawns, {floor:.2} of \
             the time of the floor."
        );
    }
    if let Some(ratio) = pair("floor", "plain spawn") {
        let _ = writeln!(
            text,
            "- The C floor itself takes {ratio:.2} plain spawns here: nothing that makes a sandbox when it is asked for takes less. \
             A test binary takes one: which tests it has is known from the run before, as long as it is the same file."
        );
    }
    if let Some(ratio) = pair("prepared floor", "plain spawn after a pause") {
        let _ = writeln!(
            text,
            "- The floor takes {ratio:.2} plain spawns where all but its program was made before: the program's own start, and the \
             end of its namespaces, for which the kernel waits."
        );
    }
    if let (Some(cold), Some(prepared)) = (
        pair("user's floor", "user's plain spawn"),
        pair("user's prepared floor", "user's plain spawn after a pause"),
    ) {
        let _ = writeln!(
            text,
            "- As an ordinary user the floor takes {cold:.2} plain spawns, and {prepared:.2} where all but its program was made before."
        );
    }
    if let (Some(floor), Some(ratio)) = (
        figures.get("floor of tests"),
        pair("floor of tests", "cargo nextest run"),
    ) {
        let _ = writeln!(
            text,
            "- {TESTS} floors, two at a time, take {}, {ratio:.2} of what nextest takes for {TESTS} tests: without a test in them, without \
             cargo, and with nobody who reads what they print.",
            show(floor, Unit::Time)
        );
    }
    if let Some(ratio) = pair("thousandth floor alive", "first floor alive") {
        let _ = writeln!(
            text,
            "- The thousandth of a thousand floors alive at once takes {ratio:.2} times as long as the first."
        );
    }
    if let (Some(many), Some(few)) = (
        figures.get("floor over 60 layers"),
        figures.get("floor over 2 layers"),
    ) {
        let _ = writeln!(
            text,
            "- Over 60 layers the floor takes {:.2} times as long as over 2: {} more.",
            many / few,
            show(many - few, Unit::Time)
        );
    }
    if let (Some(run), Some(help)) = (
        figures.get("cargo orbit run"),
        figures.get("cargo orbit run --help"),
    ) {
        let _ = writeln!(
            text,
            "- A process of `cargo-orbit` that does nothing but print its help takes {}; `cargo orbit run`, which starts \
             one and forks its supervisor from it, {}.",
            show(help, Unit::Time),
            show(run, Unit::Time)
        );
    }
    if let (Some(floor), Some(bwrap)) = (
        figures.get("floor of a command"),
        figures.get("bwrap --unshare-all"),
    ) {
        let _ = writeln!(
            text,
            "- A static C program that starts, makes one floor and ends takes {}, {:.2} of bubblewrap's time.",
            show(floor, Unit::Time),
            floor / bwrap
        );
    }
    if let Some(ratio) = pair("large plain spawn", "plain spawn") {
        let _ = writeln!(
            text,
            "- With 1 GiB and 64 threads a plain spawn takes {ratio:.2} times what it takes without."
        );
    }
    text
}

fn machine(stage: &Stage, load: &str) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let of = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(": "))
            .map_or("unknown", |(_, value)| value)
            .to_owned()
    };
    let cores = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let memory = read("/proc/meminfo");
    let memory = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .map_or("unknown", str::trim)
        .to_owned();
    let who = if crate::is_root() {
        "root"
    } else {
        "an ordinary user"
    };
    let mut text = format!(
        "- {}, {cores} cores, {memory} of memory; Linux {}; as {who}\n- load before all began: {load}\n",
        of("model name"),
        read("/proc/sys/kernel/osrelease").trim(),
    );
    let versions: [&[&str]; 9] = [
        &["rustc", "--version"],
        &["hyperfine", "--version"],
        &["bwrap", "--version"],
        &["runc", "--version"],
        &["docker", "--version"],
        &["cargo-nextest", "--version"],
        &["cargo-maelstrom", "--version"],
        &["cc", "--version"],
        &["uname", "--kernel-version"],
    ];
    for words in versions {
        let mut command = stage.command(words[0]);
        let version = run::output(command.args(&words[1..]))
            .ok()
            .and_then(|output| Some(String::from_utf8_lossy(&output).lines().next()?.to_owned()));
        let _ = writeln!(
            text,
            "- {}",
            version.unwrap_or_else(|| format!("{}: not installed", words[0]))
        );
    }
    text
}
