//! The limits of one sandbox from its start to its bill: what [`crate::Sandbox`] knows of control groups.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use crate::{
    cgroup::{self, Bill, Directory, LimitError, Place, Setting},
    error::Error,
    host::Host,
    outcome::{Note, ProcessName, Status, Usage, UsageSource},
    plan::Plan,
    resources::{IoDevice, Ulimit},
    spec::{Init, Limits, SpecFault},
    units::{Bytes, CpuQuota},
};

/// What a sandbox has of limits.
#[derive(Debug)]
pub(crate) struct Limited {
    directory: Option<Directory>,
    /// Of what was asked as best it can be kept, what could not be.
    warnings: Vec<String>,
    program: ProcessName,
    /// Whether Orbit's init is one of the processes that are counted.
    init: Init,
}

/// How a sandbox ended, in the light of its limits.
pub(crate) struct Conclusion {
    pub(crate) status: Status,
    pub(crate) usage: Usage,
    pub(crate) notes: Vec<Note>,
    pub(crate) warnings: Vec<String>,
}

/// Looks up what of `limits` depends on this machine's devices and on this process's own limits.
pub(crate) fn look_up(limits: &mut Limits, faults: &mut Vec<SpecFault>) {
    for io in &mut limits.io {
        if let IoDevice::Path(path) = &io.device {
            match device_of(path) {
                Ok((major, minor)) => *io = cgroup::with_device(io, major, minor),
                Err(why) => {
                    faults.push(SpecFault::new("io limit", path.display().to_string(), why));
                }
            }
        }
    }
    // One that cannot be looked up is told once.
    limits
        .io
        .retain(|io| matches!(io.device, IoDevice::Number { .. }));
    for limit in &limits.ulimits {
        if let Some(most) = hard_limit(*limit).filter(|most| limit.hard > *most) {
            let why = format!(
                "its hard limit is above this process's own, {most}, and no process of a sandbox may raise it; \
                 raise it for the tests (`ulimit -H`, or /etc/security/limits.conf), or ask for at most that"
            );
            faults.push(SpecFault::new("ulimit", limit.to_string(), why));
        }
    }
}

/// The whole device that `path` is or lies on: the kernel limits no partitions by themselves.
fn device_of(path: &std::path::Path) -> Result<(u32, u32), String> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let metadata = fs::metadata(path).map_err(|error| format!("on this host: {error}"))?;
    let number = if metadata.file_type().is_block_device() {
        metadata.rdev()
    } else {
        metadata.dev()
    };
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let device = format!("/sys/dev/block/{major}:{minor}");
    if fs::metadata(&device).is_err() {
        return Err("it lies on no block device, whose traffic could be limited".to_owned());
    }
    let whole = fs::metadata(format!("{device}/partition"))
        .and_then(|_| fs::read_to_string(format!("{device}/../dev")))
        .ok()
        .and_then(|text| {
            let (major, minor) = text.trim().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
    Ok(whole.unwrap_or((major, minor)))
}

/// This process's own. Source: proc_pid_limits(5).
fn hard_limit(limit: Ulimit) -> Option<u64> {
    let title = match limit.name() {
        "cpu" => "Max cpu time",
        "fsize" => "Max file size",
        "data" => "Max data size",
        "stack" => "Max stack size",
        "core" => "Max core file size",
        "rss" => "Max resident set",
        "nproc" => "Max processes",
        "nofile" => "Max open files",
        "memlock" => "Max locked memory",
        "as" => "Max address space",
        "locks" => "Max file locks",
        "sigpending" => "Max pending signals",
        "msgqueue" => "Max msgqueue size",
        "nice" => "Max nice priority",
        "rtprio" => "Max realtime priority",
        "rttime" => "Max realtime timeout",
        _ => return None,
    };
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(title))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

impl Limited {
    /// Makes the control group that `plan` wants, with its limits in force; what cannot be kept is an error, or a
    /// warning where as best it can be was asked.
    ///
    /// # Errors
    /// The first limit that cannot be kept here.
    pub(crate) fn make(
        plan: &mut Arc<Plan>,
        host: &Host,
        supervisor: i32,
        best_effort: bool,
    ) -> Result<Self, Error> {
        let mut limited = Self {
            directory: None,
            warnings: plan.warnings.clone(),
            program: ProcessName::of_program(&plan.program.argv[0]),
            init: plan.program.init,
        };
        if plan.cgroup.is_none() {
            return Ok(limited);
        }
        let plan = Arc::make_mut(plan);
        // What is only counted is counted by other means where it must.
        let below = plan.is_below_its_cgroup();
        let only_counted = plan.cgroup.as_ref().is_some_and(Vec::is_empty);
        while let Some(settings) = &mut plan.cgroup {
            match control_group(host, supervisor, settings, below) {
                Ok(directory) => {
                    limited.directory = Some(directory);
                    break;
                }
                Err(_) if only_counted => plan.without_cgroup(),
                Err(error) if !best_effort => return Err(error.into()),
                Err(error) => {
                    limited.warnings.push(error.to_string());
                    match error.controller() {
                        Some(missing) => settings.retain(|setting| setting.controller != missing),
                        None => plan.without_cgroup(),
                    }
                }
            }
        }
        Ok(limited)
    }

    /// Where the sandbox is to be born.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.directory.as_ref().map(|directory| directory.as_fd())
    }

    fn directory(&self) -> Result<&Directory, LimitError> {
        self.directory.as_ref().ok_or(LimitError::None)
    }

    pub(crate) fn set_memory(&self, limit: Bytes) -> Result<(), Error> {
        let settings =
            cgroup::memory_while_running(limit).map_err(|fault| Error::spec(vec![fault]))?;
        self.set(&settings)
    }

    pub(crate) fn set_cpu(&self, quota: CpuQuota) -> Result<(), Error> {
        self.set(&[cgroup::cpu_while_running(quota)])
    }

    fn set(&self, settings: &[Setting]) -> Result<(), Error> {
        let directory = self.directory()?;
        settings
            .iter()
            .try_for_each(|setting| directory.set(setting))
            .map_err(Error::from)
    }

    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), Error> {
        self.directory()?.freeze(frozen).map_err(Error::from)
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn begin_to_freeze(&self, frozen: bool) -> Result<(), Error> {
        self.directory()?
            .begin_to_freeze(frozen)
            .map_err(Error::from)
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn has_settled(&self, frozen: bool) -> bool {
        self.directory
            .as_ref()
            .is_some_and(|directory| directory.has_settled(frozen))
    }

    /// Whether every process of it stands still, as far as a control group can say so.
    #[cfg(feature = "images")]
    pub(crate) fn is_frozen(&self) -> bool {
        self.directory.as_ref().is_some_and(Directory::is_frozen)
    }

    /// What is used so far by a sandbox whose program is process `pid`.
    pub(crate) fn usage(&self, pid: Option<u32>) -> Usage {
        let seen = pid.and_then(of_process).unwrap_or_default();
        match &self.directory {
            Some(directory) => cgroup::bill(directory, seen).usage,
            None => seen,
        }
    }

    /// Whether the kernel killed everything for want of memory, before there was anything to tell.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.directory.as_ref().is_some_and(|directory| {
            cgroup::bill(directory, Usage::default()).killed_for_memory > 0
        })
    }

    /// Explains the end: `status` and `usage` are what `wait4` said, `full_disk` is the size of a writable layer
    /// that had no room left.
    pub(crate) fn conclude(
        &mut self,
        status: Status,
        usage: Usage,
        full_disk: Option<Bytes>,
    ) -> Conclusion {
        let bill = match &self.directory {
            Some(directory) => cgroup::bill(directory, usage),
            None => Bill {
                usage,
                ..Bill::default()
            },
        };
        let mut conclusion = explain(status, &bill, self.program, self.init);
        conclusion
            .notes
            .extend(full_disk.map(|size| Note::DiskFull { size }));
        conclusion.warnings = std::mem::take(&mut self.warnings);
        conclusion
    }
}

fn control_group(
    host: &Host,
    supervisor: i32,
    settings: &[Setting],
    below: bool,
) -> Result<Directory, LimitError> {
    let place = Place::get(host, supervisor)?;
    let directory = place.sandbox(settings, below)?;
    place.adopt(supervisor)?;
    Ok(directory)
}

fn explain(status: Status, bill: &Bill, program: ProcessName, init: Init) -> Conclusion {
    let killed = status == Status::Signaled(libc::SIGKILL) && bill.killed_for_memory > 0;
    let status = match bill.memory_limit {
        Some(limit) if killed && bill.out_of_memory > 0 => Status::OomKilled {
            limit,
            peak: bill.usage.memory_peak_bytes.map_or(limit, Bytes::new),
            process: program,
        },
        _ => status,
    };
    let mut notes = Vec::new();
    if bill.refused_processes > 0
        && let Some(limit) = bill.pids_limit
    {
        notes.push(Note::PidsLimit {
            limit: limit.saturating_sub(u64::from(init == Init::Orbit)),
            refused: bill.refused_processes,
        });
    }
    if let Some(time) = bill.usage.throttled.filter(|time| *time > Duration::ZERO) {
        notes.push(Note::Throttled { time });
    }
    if bill.killed_for_memory > 0 && bill.out_of_memory == 0 {
        notes.push(Note::KilledFromOutside {
            processes: bill.killed_for_memory,
        });
    }
    Conclusion {
        status,
        usage: bill.usage,
        notes,
        warnings: Vec::new(),
    }
}

/// What a process that runs has used, with those of its children that it waited for.
///
/// Source: proc_pid_stat(5), fields 14 to 17; proc_pid_status(5), `VmHWM`.
fn of_process(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let times: Vec<u64> = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|ticks| ticks.parse().ok())
        .collect();
    let &[user, system, children_user, children_system] = &times[..] else {
        return None;
    };
    let ticks_a_second = rustix::param::clock_ticks_per_second().max(1);
    let time = |ticks: u64| Duration::from_millis(ticks.saturating_mul(1000) / ticks_a_second);
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kib: Option<u64> =
        peak.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse().ok());
    Some(Usage {
        source: UsageSource::Proc,
        cpu_user: time(user + children_user),
        cpu_system: time(system + children_system),
        max_rss_bytes: peak_kib.unwrap_or(0).saturating_mul(1024),
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::IoMax;

    fn bill() -> Bill {
        Bill {
            memory_limit: Some(Bytes::mib(64)),
            out_of_memory: 1,
            killed_for_memory: 2,
            ..Bill::default()
        }
    }

    #[test]
    fn only_what_was_killed_at_its_own_limit_was() {
        let explained =
            |status, bill: &Bill| explain(status, bill, ProcessName::default(), Init::Orbit);
        let killed = Status::Signaled(libc::SIGKILL);
        assert!(matches!(
            explained(killed, &bill()).status,
            Status::OomKilled { .. }
        ));
        // It ended by itself in time, or somebody else's limit was reached.
        assert_eq!(
            explained(Status::Exited(0), &bill()).status,
            Status::Exited(0)
        );
        let outside = Bill {
            out_of_memory: 0,
            ..bill()
        };
        let end = explained(killed, &outside);
        assert_eq!(end.status, killed);
        assert_eq!(end.notes, [Note::KilledFromOutside { processes: 2 }]);
    }

    #[test]
    fn the_init_is_not_one_of_the_processes_that_were_asked_for() {
        let refused = Bill {
            refused_processes: 3,
            pids_limit: Some(65),
            ..Bill::default()
        };
        let end = explain(
            Status::Exited(0),
            &refused,
            ProcessName::default(),
            Init::Orbit,
        );
        assert_eq!(
            end.notes,
            [Note::PidsLimit {
                limit: 64,
                refused: 3
            }]
        );
    }

    #[test]
    fn this_process_has_used_something() {
        let usage = of_process(std::process::id()).unwrap();
        assert_eq!(usage.source, UsageSource::Proc);
        assert!(usage.max_rss_bytes > 0);
    }

    #[test]
    fn what_lies_on_no_device_and_what_is_too_much_is_refused() {
        let mut limits = Limits {
            io: vec![IoMax::parse("/proc", "rbps=1M").unwrap()],
            ulimits: vec![Ulimit::new("nofile", 1, Ulimit::UNLIMITED).unwrap()],
            ..Limits::default()
        };
        let mut faults = Vec::new();
        look_up(&mut limits, &mut faults);
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("lies on no block device"), "{texts:?}");
        assert!(texts[1].contains("above this process's own"), "{texts:?}");
    }
}
