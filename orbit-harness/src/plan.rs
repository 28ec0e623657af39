//! From what was asked to what will be done: a [`Plan`], or every fault of the spec at once. Pure.
//!
//! The rendering of a plan, one numbered line a step, is what snapshots hold and what reviews read: a change to
//! it is a change to what a sandbox is.

mod faults;
mod program;
mod way_out;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::way_out::WayOut;
use crate::{
    cgroup::{self, Setting},
    host::{Cgroups, Host},
    image::Image,
    net::{
        names,
        ports::{PortMap, Published},
    },
    resources::Ulimit,
    rootfs::{self, Network, SystemFiles, host_view, host_view::Surroundings, normal},
    security::capabilities::{self, CapabilitySet},
    spec::{ImageRef, Init, MountKind, NetworkMode, Spec, SpecFault},
    step::Step,
    units::Bytes,
};

/// Everything that will be done to make one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) network: Isolation,
    pub(crate) steps: Vec<Step>,
    /// What of the host leads into the sandbox.
    pub(crate) publish: Vec<Published>,
    pub(crate) program: ProgramPlan,
    pub(crate) timeout: Option<Duration>,
    /// By how much the clocks that count from boot are ahead.
    pub(crate) clock_offset: Option<Duration>,
    /// The limits of the control group that the sandbox is born in; `None` for no control group of its own.
    pub(crate) cgroup: Option<Vec<Setting>>,
    /// What was asked as best it can be kept, and cannot be.
    pub(crate) warnings: Vec<String>,
    /// How many more of this kind are made before they are asked for.
    pub(crate) ahead: usize,
    /// Whether the sandbox outlives its program.
    pub(crate) stays: bool,
}

/// Whether a sandbox may ask a name server beyond its own networks.
pub(crate) fn asks_beyond(spec: &Spec, host: &Host) -> bool {
    way_out::asks_beyond(spec, host)
}

/// Whether something is the sandbox's own or the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Isolation {
    Own,
    Host,
}

/// The program, and what it is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgramPlan {
    pub(crate) init: Init,
    pub(crate) argv: Vec<OsString>,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) working_dir: PathBuf,
    pub(crate) user: UserPlan,
    pub(crate) umask: u32,
    pub(crate) capabilities: CapabilitySet,
    pub(crate) seccomp: SeccompPlan,
    pub(crate) tty: bool,
    pub(crate) ulimits: Vec<Ulimit>,
}

/// Who the program runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UserPlan {
    /// The caller: its own numbers, in a user namespace in which they mean the caller.
    Caller { uid: u32, gid: u32 },
    /// As the sandbox's own `/etc/passwd` and `/etc/group` say; empty is root.
    Named(String),
}

/// Which system calls the program may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum SeccompPlan {
    /// The default list, as the capabilities widen it.
    Default,
    /// The same, and user namespaces.
    Nested,
}

/// What the filter of a program's system calls depends on.
pub(crate) type FilterPlan = (CapabilitySet, SeccompPlan);

impl ProgramPlan {
    pub(crate) fn filter(&self) -> FilterPlan {
        (self.capabilities, self.seccomp)
    }
}

/// What every container engine starts a program with.
const DEFAULT_UMASK: u32 = 0o022;

/// The most a writable layer takes unless a limit is asked for.
const DEFAULT_DISK: Bytes = Bytes::mib(4096);

/// What a tmpfs mount takes unless its size is asked for.
const DEFAULT_TMPFS: Bytes = Bytes::mib(64);

/// The most sandboxes of a kind that are made ahead.
pub(crate) const MAX_AHEAD: usize = 64;

/// Plans `spec` over `image`, which is the resolved form of `spec.image`, on `host`.
///
/// # Errors
/// Every fault of the spec that can be told without doing anything.
pub(crate) fn plan(
    spec: &Spec,
    image: &Image,
    host: &Host,
    around: &Surroundings,
) -> Result<Plan, Vec<SpecFault>> {
    let mut faults = faults::of_fields(spec);
    let mut warnings = Vec::new();
    let cgroup = limits(spec, host, &mut faults, &mut warnings);
    let hostname = match (&spec.hostname, &spec.image) {
        (Some(hostname), _) => hostname.clone(),
        (None, ImageRef::Host) => host.hostname.clone(),
        (None, _) => spec.name.clone().unwrap_or_else(|| "orbit".to_owned()),
    };
    if hostname != host.hostname
        && let Err(why) = names::check_host(&hostname)
    {
        faults.push(SpecFault::new("hostname", &hostname, why));
    }
    let capabilities = capabilities::resolve(&spec.cap_add, &spec.cap_drop, host.last_cap)
        .map_err(|found| faults.extend(found))
        .unwrap_or(CapabilitySet::EMPTY);
    way_out::faults(spec, host, capabilities, &mut faults);
    let capabilities = way_out::bounded(spec, capabilities);
    let argv = program::argv(spec, image);
    if argv.is_empty() {
        let why = match &spec.image {
            ImageRef::Host => "no program was given; name one, as in `-- sh`".to_owned(),
            image => format!("no program was given, and {image} names none itself"),
        };
        faults.push(SpecFault::new("cmd", "", why));
    }
    let not_ahead = faults::cannot_be_ahead(spec, cgroup.is_some());
    let ahead = not_ahead.as_ref().map_or(spec.ahead, |_| 0);
    if let Some(why) = not_ahead.filter(|_| !spec.ahead_if_possible) {
        faults.push(SpecFault::new("prepare_ahead", spec.ahead.to_string(), why));
    }
    if !faults.is_empty() {
        return Err(faults);
    }

    let network = match spec.network {
        NetworkMode::Host => Isolation::Host,
        NetworkMode::None | NetworkMode::Bridge => Isolation::Own,
    };
    let program = ProgramPlan {
        init: spec.init,
        argv,
        env: program::environment(spec, image, host, around, &hostname),
        working_dir: program::working_dir(spec, image, around),
        user: program::user(spec, image, host),
        umask: match spec.image {
            ImageRef::Host => around.umask,
            _ => DEFAULT_UMASK,
        },
        capabilities,
        seccomp: if spec.nested {
            SeccompPlan::Nested
        } else {
            SeccompPlan::Default
        },
        tty: spec.tty,
        ulimits: spec.limits.ulimits.clone(),
    };
    let mut steps = steps(spec, image, host, around, &hostname, network, &program)
        .map_err(|fault| vec![fault])?;
    let sys = steps
        .iter()
        .position(|step| matches!(step, Step::Sys { .. }));
    if let Some(sys) = sys.filter(|_| cgroup.is_some()) {
        steps.insert(sys + 1, Step::Cgroup);
    }
    Ok(Plan {
        network,
        steps,
        publish: match network {
            Isolation::Own => published(spec),
            Isolation::Host => Vec::new(),
        },
        program,
        timeout: spec.timeout,
        clock_offset: spec.clock_offset,
        cgroup,
        warnings,
        ahead,
        stays: spec.stays,
    })
}

fn steps(
    spec: &Spec,
    image: &Image,
    host: &Host,
    around: &Surroundings,
    hostname: &str,
    network: Isolation,
    program: &ProgramPlan,
) -> Result<Vec<Step>, SpecFault> {
    let size = spec.disk.unwrap_or(DEFAULT_DISK);
    let mut steps = Vec::new();
    let way_out = match network {
        Isolation::Own => way_out::plan(spec, host),
        Isolation::Host => WayOut::default(),
    };
    let has_names = !spec.links.is_empty() || way_out.helper.is_some();
    if network == Isolation::Own {
        steps.push(Step::Loopback);
        steps.extend(
            spec.links
                .iter()
                .enumerate()
                .map(|(number, link)| Step::Link {
                    name: format!("eth{number}"),
                    link: link.clone(),
                }),
        );
    }
    steps.push(Step::Hostname(hostname.to_owned()));
    let system = SystemFiles {
        hostname,
        network: if network == Isolation::Own {
            Network::Own
        } else {
            Network::Host
        },
        tty: spec.tty,
        resolv_conf: &host.resolv_conf,
        links: &spec.links,
        beyond: way_out.beyond,
    };
    steps.extend(match &spec.image {
        ImageRef::Host => {
            let files = host.files().map_err(|error| {
                let why = format!("cannot tell what there is in / and what is mounted: {error}");
                SpecFault::new("image", spec.image.to_string(), why)
            })?;
            let is_fresh = image.layers.is_empty();
            let mut view = host_view::steps(&spec.host_view, around, host, files, size, is_fresh);
            if spec.read_only {
                view.iter_mut().for_each(Step::without_writes);
            } else if spec.host_view.shares_foreign
                && spec.user.is_none()
                && image.layers.is_empty()
            {
                host_view::share_foreign(&mut view, host, |at| {
                    makes_something(spec, host, around, at) || has_names && at == Path::new("/etc")
                });
            }
            // What a sandbox over the host's files had written, and is to be there again.
            if !image.layers.is_empty() {
                view = view
                    .into_iter()
                    .map(|step| step.over_sealed(&image.layers_dir, &image.layers))
                    .collect();
            }
            view
        }
        reference => rootfs::layered(image, reference, size, system.etc()),
    });
    if spec.image == ImageRef::Host && has_names {
        let names = system
            .etc()
            .into_iter()
            .filter(|file| file.name != "hostname");
        steps.push(Step::CoverEtc(names.collect()));
    }
    steps.extend(system.mounts());
    steps.extend(spec.mounts.iter().map(|mount| {
        let at = normal(&mount.target);
        match &mount.kind {
            MountKind::Bind { source, read_only } => Step::Bind {
                source: source.clone(),
                at,
                read_only: *read_only,
            },
            MountKind::Overlay { source } => {
                let step = Step::Overlay {
                    source: source.clone(),
                    at,
                };
                let sealed = &image.layers[image.layers.len() - image.sealed..];
                if sealed.is_empty() {
                    step
                } else {
                    step.over_sealed(&image.layers_dir, sealed)
                }
            }
            MountKind::Tmpfs { size } => Step::Tmpfs {
                at,
                size: size.unwrap_or(DEFAULT_TMPFS),
                mode: 0o1777,
            },
        }
    }));
    steps.extend(spec.files.iter().map(|file| {
        let mut file = file.clone();
        file.at = normal(&file.at);
        Step::File(file)
    }));
    steps.push(Step::Directory {
        at: program.working_dir.clone(),
        mode: 0o755,
    });
    steps.push(Step::PivotRoot);
    // A /proc with covered parts would keep the program from mounting one of its own. Without the covers the
    // kernel's own permissions remain: the files belong to nobody in these user namespaces.
    if !spec.nested {
        steps.push(Step::Mask(rootfs::masked_paths()));
        steps.push(Step::ReadOnlyPaths(rootfs::read_only_paths()));
    }
    if !spec.host_view.hidden.is_empty() {
        steps.push(Step::Mask(
            spec.host_view
                .hidden
                .iter()
                .map(|path| normal(path))
                .collect(),
        ));
    }
    if spec.read_only {
        steps.push(Step::ReadOnlyRoot);
    }
    steps.extend(way_out.helper);
    steps.extend(way_out.gate);
    Ok(steps)
}

/// The ports of the host that lead into the sandbox: those published, then those exposed.
fn published(spec: &Spec) -> Vec<Published> {
    let exposed = spec
        .expose
        .iter()
        .filter_map(|port| PortMap::tcp(0, *port).ok());
    let all = spec.publish.iter().copied().chain(exposed);
    all.flat_map(PortMap::each).collect()
}

/// The control group that `spec` wants. A limit that this host cannot keep is a fault, or a warning where as best
/// it can be was asked.
fn limits(
    spec: &Spec,
    host: &Host,
    faults: &mut Vec<SpecFault>,
    warnings: &mut Vec<String>,
) -> Option<Vec<Setting>> {
    let limits = &spec.limits;
    let settings = match cgroup::settings(limits, spec.init) {
        Ok(settings) => settings,
        Err(found) => {
            faults.extend(found);
            return None;
        }
    };
    let why = match host.cgroups {
        Cgroups::V2 => return (limits.accounting || !settings.is_empty()).then_some(settings),
        Cgroups::V1OrHybrid => cgroup::UNKEPT_V1,
        Cgroups::None => {
            "no cgroup filesystem is mounted at /sys/fs/cgroup, so it cannot be kept; leave it out"
        }
    };
    let mut unkept = Vec::new();
    let mut refuse = |field: &str, given: String| unkept.push(SpecFault::new(field, given, why));
    if let Some(memory) = limits.memory {
        refuse("memory limit", memory.to_string());
    }
    if let Some(high) = limits.memory_high {
        refuse("memory_high limit", high.to_string());
    }
    // `max` asks for nothing: it is the original runtime's default.
    if let Some(cpu) = limits.cpu.filter(|cpu| cpu.quota_us().is_some()) {
        refuse("cpu limit", cpu.to_string());
    }
    if let Some(cpus) = &limits.cpuset {
        refuse("cpuset limit", cpus.to_string());
    }
    if let Some(pids) = limits.pids {
        refuse("pids limit", pids.to_string());
    }
    for io in &limits.io {
        refuse("io limit", io.to_string());
    }
    if limits.best_effort {
        warnings.extend(unkept.iter().map(ToString::to_string));
    } else {
        faults.extend(unkept);
    }
    None
}

/// Whether something is made for a program over the host's files at or below `at`, or is to be there to be written to.
fn makes_something(spec: &Spec, host: &Host, around: &Surroundings, at: &Path) -> bool {
    let mounts = spec.mounts.iter().map(|mount| &mount.target);
    let files = spec.files.iter().map(|file| &file.at);
    let home = host_view::home(&spec.host_view, host);
    mounts
        .chain(files)
        .chain(&spec.host_view.paths)
        .chain(&spec.working_dir)
        .chain([&around.working_dir, &home])
        .chain(&around.executable_dir)
        .map(|path| normal(path))
        .chain(["/var/tmp".into()])
        .any(|path| path.starts_with(at))
}

/// One numbered line a step: the review of a sandbox.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, line) in self.lines().iter().enumerate() {
            writeln!(f, "{:02} {line}", number + 1)?;
        }
        Ok(())
    }
}

impl Plan {
    /// What is left where there is no control group for the sandbox.
    pub(crate) fn without_cgroup(&mut self) {
        self.cgroup = None;
        self.steps.retain(|step| !matches!(step, Step::Cgroup));
    }

    /// Whether the program may come to see its control group as one that it can write to: it may make namespaces
    /// and mounts, and as a user the group's files are its own. Then it lives in a group below the one whose limits
    /// hold, beyond which it cannot see.
    pub(crate) fn is_below_its_cgroup(&self) -> bool {
        self.program.seccomp == SeccompPlan::Nested
            || self
                .program
                .capabilities
                .contains(capabilities::Capability::SysAdmin)
    }

    /// The line that says what step `number`, counted from 0, does.
    pub(crate) fn lines(&self) -> Vec<String> {
        let network = if self.network == Isolation::Own {
            " net"
        } else {
            ""
        };
        let mut lines = vec![format!("unshare mount pid ipc uts cgroup{network}")];
        if let Some(ahead) = self.clock_offset {
            lines[0] = format!("{} time, {ahead:?} ahead", lines[0]);
        }
        if let Some(settings) = &self.cgroup {
            let words = settings.iter().map(|setting| format!(" {setting}"));
            let below = if self.is_below_its_cgroup() {
                ", born below a control group"
            } else {
                ", born in a control group"
            };
            lines[0].extend([below.to_owned()].into_iter().chain(words));
        }
        lines.extend(self.steps.iter().map(ToString::to_string));
        let program = &self.program;
        lines.push(match &program.user {
            UserPlan::Caller { uid, gid } => {
                format!("user {uid}:{gid} in a user namespace of its own")
            }
            UserPlan::Named(name) if name.is_empty() => "user root".to_owned(),
            UserPlan::Named(name) => format!("user {name}"),
        });
        lines.push(match program.user {
            UserPlan::Caller { .. } => {
                format!("capabilities bounding={} held=none", program.capabilities)
            }
            UserPlan::Named(_) => format!("capabilities {}", program.capabilities),
        });
        lines.push(format!("umask {:03o}", program.umask));
        lines.push("no_new_privs".to_owned());
        lines.push(match program.seccomp {
            SeccompPlan::Default => "seccomp default".to_owned(),
            SeccompPlan::Nested => "seccomp default, with user namespaces".to_owned(),
        });
        if !program.ulimits.is_empty() {
            let limits: Vec<String> = program.ulimits.iter().map(ToString::to_string).collect();
            lines.push(format!("ulimit {}", limits.join(" ")));
        }
        for Published {
            host,
            port,
            protocol,
        } in &self.publish
        {
            lines.push(format!("publish {host} to {port}/{protocol}"));
        }
        if let Some(timeout) = self.timeout {
            lines.push(format!("timeout {timeout:?}"));
        }
        let init = if program.init == Init::Orbit {
            "under init"
        } else {
            "as process 1"
        };
        let tty = if program.tty { " with a terminal" } else { "" };
        lines.push(format!(
            "exec {:?} in {} {init}{tty}",
            program.argv,
            program.working_dir.display()
        ));
        lines
    }
}

#[cfg(test)]
mod limits_tests;
#[cfg(test)]
pub(crate) mod tests;
