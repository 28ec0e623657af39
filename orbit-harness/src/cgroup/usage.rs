//! The bill of a sandbox: what its control group counted. The parsers are pure.
//!
//! Each figure is there where the kernel has it: `memory.peak` since Linux 5.19, `pids.peak` since 6.9, and a
//! controller's files only where that controller is enabled.

use std::{collections::BTreeMap, time::Duration};

use super::Directory;
use crate::{
    outcome::{Pressure, Usage, UsageSource},
    units::Bytes,
};

/// What a control group counted, and which of its limits were reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bill {
    pub(crate) usage: Usage,
    /// `memory.max`, where there is one.
    pub(crate) memory_limit: Option<Bytes>,
    /// How often memory was asked for that the limit did not leave, and nothing could be reclaimed.
    pub(crate) out_of_memory: u64,
    /// How many processes were killed for want of memory, the system's own included.
    pub(crate) killed_for_memory: u64,
    /// How often a process was refused for `pids.max`, and that limit.
    pub(crate) refused_processes: u64,
    pub(crate) pids_limit: Option<u64>,
}

/// Reads the bill of `directory` as it stands. `otherwise` is what is known without it.
pub(crate) fn bill(directory: &Directory, otherwise: Usage) -> Bill {
    let outer = read(|file| directory.read(file), otherwise);
    let inner = read(|file| directory.read_inner(file), Usage::default());
    // Met in the one or the other, depending on the kernel; newer ones count it in both.
    Bill {
        out_of_memory: outer.out_of_memory.max(inner.out_of_memory),
        killed_for_memory: outer.killed_for_memory.max(inner.killed_for_memory),
        refused_processes: outer.refused_processes.max(inner.refused_processes),
        usage: Usage {
            throttled: outer.usage.throttled.max(inner.usage.throttled),
            ..outer.usage
        },
        ..outer
    }
}

fn read(file: impl Fn(&str) -> Option<String>, otherwise: Usage) -> Bill {
    let number = |name: &str| file(name).and_then(|text| text.trim().parse::<u64>().ok());
    let keyed = |name: &str| file(name).map(|text| flat_keyed(&text)).unwrap_or_default();
    let stall = |name: &str| file(name).map(|text| stalled(&text)).unwrap_or_default();
    let cpu = keyed("cpu.stat");
    let micros = |key: &str| cpu.get(key).copied().map(Duration::from_micros);
    let memory = keyed("memory.events");
    let count = |events: &BTreeMap<String, u64>, key: &str| events.get(key).copied().unwrap_or(0);
    let io = file("io.stat").map(|text| io_bytes(&text));
    let pressure = file("memory.pressure").map(|_| Pressure {
        cpu: stall("cpu.pressure").some,
        memory: stall("memory.pressure").some,
        memory_full: stall("memory.pressure").full,
        io: stall("io.pressure").some,
        io_full: stall("io.pressure").full,
    });
    let usage = Usage {
        source: UsageSource::Cgroup,
        cpu_user: micros("user_usec").unwrap_or(otherwise.cpu_user),
        cpu_system: micros("system_usec").unwrap_or(otherwise.cpu_system),
        memory_bytes: number("memory.current"),
        memory_peak_bytes: number("memory.peak"),
        pids: number("pids.current"),
        pids_peak: number("pids.peak"),
        io_read_bytes: io.map(|(read, _)| read),
        io_written_bytes: io.map(|(_, written)| written),
        throttled: micros("throttled_usec"),
        pressure,
        ..otherwise
    };
    Bill {
        usage,
        memory_limit: number("memory.max").map(Bytes::new),
        out_of_memory: count(&memory, "oom"),
        killed_for_memory: count(&memory, "oom_kill"),
        refused_processes: count(&keyed("pids.events"), "max"),
        pids_limit: number("pids.max"),
    }
}

/// `KEY VALUE` lines. What is no such line is left out.
fn flat_keyed(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// Bytes read and written on all devices: `8:0 rbytes=1 wbytes=2 …`, one line each.
fn io_bytes(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        text.split_whitespace()
            .filter_map(|word| {
                word.strip_prefix(key)?
                    .strip_prefix('=')?
                    .parse::<u64>()
                    .ok()
            })
            .fold(0u64, u64::saturating_add)
    };
    (sum("rbytes"), sum("wbytes"))
}

/// The totals of a pressure file: how long some, and all, of the processes stood still for want of something.
///
/// Source: Linux, Documentation/accounting/psi.rst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stalled {
    some: Duration,
    full: Duration,
}

fn stalled(text: &str) -> Stalled {
    let total = |kind: &str| {
        text.lines()
            .find(|line| line.split(' ').next() == Some(kind))
            .and_then(|line| line.split("total=").nth(1)?.trim().parse().ok())
            .map(Duration::from_micros)
            .unwrap_or_default()
    };
    Stalled {
        some: total("some"),
        full: total("full"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from_linux_6_1(file: &str) -> Option<String> {
        let text = match file {
            "cpu.stat" => {
                "usage_usec 2054321\nuser_usec 2000000\nsystem_usec 54321\nnr_periods 20\nnr_throttled 19\n\
                 throttled_usec 1500000\nnr_bursts 0\nburst_usec 0\n"
            }
            "memory.current" => "4096\n",
            "memory.peak" | "memory.max" => "67108864\n",
            "memory.events" => "low 0\nhigh 0\nmax 37\noom 1\noom_kill 2\noom_group_kill 1\n",
            "memory.pressure" => {
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=120\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=100\n"
            }
            "io.stat" => {
                "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:0 rbytes=1 wbytes=0\n8:0 \n"
            }
            "pids.current" => "3\n",
            "pids.events" => "max 5\n",
            "pids.max" => "max\n",
            _ => return None,
        };
        Some(text.to_owned())
    }

    #[test]
    fn the_files_of_a_control_group_make_a_bill() {
        insta::assert_debug_snapshot!(read(from_linux_6_1, Usage::default()));
    }

    #[test]
    fn what_a_kernel_does_not_count_is_not_on_it() {
        let before = Usage {
            cpu_user: Duration::from_secs(1),
            ..Usage::default()
        };
        let bill = read(|_| None, before);
        assert_eq!(bill.usage.cpu_user, Duration::from_secs(1));
        assert_eq!(bill.usage.memory_peak_bytes, None);
        assert_eq!(bill.memory_limit, None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "(?s).{0,80}") {
            let _ = (flat_keyed(&text), io_bytes(&text), stalled(&text));
        }
    }
}
