//! From the limits that were asked to the files of a control group and what is written to them. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    resources::{IoDevice, IoMax},
    spec::{Init, Limits, SpecFault},
    units::Bytes,
};

/// Why nothing can be kept on a host with version 1.
pub(crate) const UNKEPT_V1: &str = "this host runs cgroup v1, or v1 beside an empty v2, and cannot keep it; boot with \
                                    systemd.unified_cgroup_hierarchy=1, or leave the limit out";

/// What the kernel must have enabled for a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Controller {
    Memory,
    Pids,
    Cpu,
    Io,
    Cpuset,
}

impl Controller {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::Io => "io",
            Self::Cpuset => "cpuset",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One file of a control group, and what is written to it before a process joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) controller: Controller,
    pub(crate) file: String,
    pub(crate) value: String,
    /// The kernel may be built without this file; there is nothing to bound then.
    pub(crate) optional: bool,
}

impl Setting {
    fn new(controller: Controller, file: &str, value: &dyn fmt::Display) -> Self {
        Self {
            controller,
            file: file.to_owned(),
            value: value.to_string(),
            optional: false,
        }
    }

    fn if_there(self) -> Self {
        Self {
            optional: true,
            ..self
        }
    }
}

/// As a plan shows it: `memory.max=67108864`.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.file, self.value.replace(' ', ","))
    }
}

/// Below this no sandbox starts: its process 1 and the page tables of both are counted too.
const MIN_MEMORY: Bytes = Bytes::mib(1);

/// The kernel rounds memory limits down to whole pages, of which this is a multiple on every machine.
const PAGE_BYTES: u64 = 4096;

/// The most processes a 64-bit kernel has (`PID_MAX_LIMIT`).
const MAX_PIDS: u64 = 4 << 20;

/// What is written for `limits`, in this order. Empty where nothing of them needs a control group.
///
/// # Errors
/// Every limit that no kernel could keep.
pub(crate) fn settings(limits: &Limits, init: Init) -> Result<Vec<Setting>, Vec<SpecFault>> {
    let mut faults = Vec::new();
    let mut settings = memory(limits, &mut faults);
    if let Some(cpu) = limits.cpu.filter(|cpu| cpu.quota_us().is_some()) {
        settings.push(Setting::new(Controller::Cpu, "cpu.max", &cpu));
    }
    if let Some(cpus) = &limits.cpuset {
        settings.push(Setting::new(Controller::Cpuset, "cpuset.cpus", cpus));
    }
    if let Some(pids) = limits.pids {
        if !(1..=MAX_PIDS).contains(&pids) {
            let why = format!("expected 1 to {MAX_PIDS} processes");
            faults.push(SpecFault::new("pids limit", pids.to_string(), why));
        }
        // The init is a process too, and not one that the caller knows of.
        let own = u64::from(init == Init::Orbit);
        let value = pids.saturating_add(own);
        settings.push(Setting::new(Controller::Pids, "pids.max", &value));
    }
    for (number, io) in limits.io.iter().enumerate() {
        if let IoDevice::Path(path) = &io.device {
            let why = "the device it lies on is not known";
            faults.push(SpecFault::new("io limit", path.display().to_string(), why));
        }
        if limits.io[..number]
            .iter()
            .any(|other| other.device == io.device)
        {
            let why = "another limit is of the same device; give each device one";
            faults.push(SpecFault::new("io limit", io.to_string(), why));
        }
        settings.push(Setting::new(Controller::Io, "io.max", io));
    }
    if faults.is_empty() {
        Ok(settings)
    } else {
        Err(faults)
    }
}

fn memory(limits: &Limits, faults: &mut Vec<SpecFault>) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (field, limit) in [
        ("memory limit", limits.memory),
        ("memory_high limit", limits.memory_high),
    ] {
        if let Some(limit) = limit.filter(|limit| *limit < MIN_MEMORY) {
            let why = format!("expected at least {MIN_MEMORY}: in less, no sandbox starts");
            faults.push(SpecFault::new(field, limit.to_string(), why));
        }
    }
    if let (Some(max), Some(high)) = (limits.memory, limits.memory_high)
        && high >= max
    {
        let why = format!("it has no effect, as it is not below the memory limit of {max}");
        faults.push(SpecFault::new("memory_high limit", high.to_string(), why));
    }
    if let Some(high) = limits.memory_high {
        settings.push(Setting::new(
            Controller::Memory,
            "memory.high",
            &whole_pages(high),
        ));
    }
    if let Some(max) = limits.memory {
        settings.extend(memory_max(max));
    }
    settings
}

/// An end of all processes together, as half a sandbox helps nobody; no swap (a test would pass or fail by how much swap
/// its machine has); and the limit, last: where more is in use already, writing it is what ends them.
fn memory_max(max: Bytes) -> [Setting; 3] {
    [
        Setting::new(Controller::Memory, "memory.oom.group", &1),
        Setting::new(Controller::Memory, "memory.swap.max", &0).if_there(),
        Setting::new(Controller::Memory, "memory.max", &whole_pages(max)),
    ]
}

/// As the kernel rounds it (mm/page_counter.c), so that the plan shows what will be enforced.
fn whole_pages(bytes: Bytes) -> u64 {
    bytes.as_u64() / PAGE_BYTES * PAGE_BYTES
}

/// What changes the memory limit of a sandbox that runs.
///
/// # Errors
/// Where no sandbox could live in it.
pub(crate) fn memory_while_running(max: Bytes) -> Result<[Setting; 3], SpecFault> {
    if max < MIN_MEMORY {
        let why = format!("expected at least {MIN_MEMORY}");
        return Err(SpecFault::new("memory limit", max.to_string(), why));
    }
    Ok(memory_max(max))
}

/// What changes the CPU limit of a sandbox that runs; `max` takes it away.
pub(crate) fn cpu_while_running(quota: crate::units::CpuQuota) -> Setting {
    Setting::new(Controller::Cpu, "cpu.max", &quota)
}

/// `io`, of the device with this number.
pub(crate) fn with_device(io: &IoMax, major: u32, minor: u32) -> IoMax {
    IoMax {
        device: IoDevice::Number { major, minor },
        ..io.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn render(limits: &Limits, init: Init) -> String {
        let lines: Vec<String> = match settings(limits, init) {
            Ok(settings) => settings.iter().map(ToString::to_string).collect(),
            Err(faults) => faults.iter().map(|f| format!("fault: {f}")).collect(),
        };
        lines.join("\n")
    }

    fn everything() -> Limits {
        Limits {
            memory: Some(Bytes::new((64 << 20) + 1)),
            memory_high: Some(Bytes::mib(48)),
            cpu: "0.5".parse().ok(),
            cpuset: "0-1".parse().ok(),
            pids: Some(64),
            io: vec![IoMax::parse("8:0", "wbps=1M").unwrap()],
            ..Limits::default()
        }
    }

    #[test]
    fn each_limit_is_a_file() {
        insta::assert_snapshot!(render(&everything(), Init::Orbit), @r"
        memory.high=50331648
        memory.oom.group=1
        memory.swap.max=0
        memory.max=67108864
        cpu.max=50000,100000
        cpuset.cpus=0-1
        pids.max=65
        io.max=8:0,rbps=max,wbps=1048576,riops=max,wiops=max
        ");
    }

    #[test]
    fn a_program_that_is_process_1_has_no_init_to_count() {
        let limits = Limits {
            pids: Some(1),
            ..Limits::default()
        };
        assert_eq!(render(&limits, Init::Program), "pids.max=1");
        assert_eq!(render(&limits, Init::Orbit), "pids.max=2");
    }

    #[test]
    fn what_asks_for_nothing_needs_no_control_group() {
        let limits = Limits {
            cpu: "max".parse().ok(),
            ..Limits::default()
        };
        assert_eq!(settings(&limits, Init::Orbit), Ok(Vec::new()));
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let limits = Limits {
            memory: Some(Bytes::new(4096)),
            memory_high: Some(Bytes::mib(2)),
            pids: Some(0),
            io: vec![
                IoMax::parse("8:0", "wbps=1M").unwrap(),
                IoMax::parse("8:0", "rbps=1M").unwrap(),
                IoMax::parse("/srv", "rbps=1M").unwrap(),
            ],
            ..Limits::default()
        };
        insta::assert_snapshot!(render(&limits, Init::Orbit), @r"
        fault: memory limit `4KiB`: expected at least 1MiB: in less, no sandbox starts
        fault: memory_high limit `2MiB`: it has no effect, as it is not below the memory limit of 4KiB
        fault: pids limit `0`: expected 1 to 4194304 processes
        fault: io limit `8:0 rbps=1048576 wbps=max riops=max wiops=max`: another limit is of the same device; give each device one
        fault: io limit `/srv`: the device it lies on is not known
        ");
    }

    proptest! {
        #[test]
        fn what_is_written_is_never_more_than_was_asked(asked in (1u64 << 20)..u64::MAX) {
            let limits = Limits { memory: Some(Bytes::new(asked)), ..Limits::default() };
            let settings = settings(&limits, Init::Orbit).unwrap();
            let max = settings.iter().find(|it| it.file == "memory.max").unwrap();
            let written: u64 = max.value.parse().unwrap();
            prop_assert!(written <= asked && asked - written < PAGE_BYTES);
        }
    }
}
