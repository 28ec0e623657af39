//! Where control groups come from: a subtree that is ours to divide.
//!
//! | the caller | the subtree |
//! |---|---|
//! | in a cgroup that systemd delegated (`Delegate=yes`) | that cgroup |
//! | root | `/sys/fs/cgroup/orbit`, which only Orbit uses |
//! | root of a container, without a tree around it | the container's own cgroup |
//! | a user whose systemd answers | a transient scope, in which the supervisor then lives |
//! | a user whose cgroup's files are the user's | that cgroup |
//! | another user | none: the error says what to do |
//!
//! A cgroup that has processes cannot divide its controllers among children. Where the subtree is the caller's
//! own cgroup, the processes in it move to a leaf, [`CALLERS`], beside ours: they stay under the same limits,
//! and what they start is born there.
//!
//! Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint", "Delegation";
//! systemd, docs/CGROUP_DELEGATION.md.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Controller, Directory, LimitError, Setting,
    directory::{give_procs, words, write},
    reap::{self, Owner},
    scope::{self, ScopeError},
};
use crate::{host::Host, resources::CpuSet};

/// Where version 2 is mounted; [`Host`] has looked.
const MOUNT: &str = "/sys/fs/cgroup";

/// What root's subtree is called.
const SUBTREE: &str = "orbit";

/// The leaf for the processes of a cgroup that we divide.
pub(super) const CALLERS: &str = "orbit-callers";

/// The leaf for the supervisor, which may not sit where controllers are enabled for children.
const SUPERVISOR: &str = "supervisor";

/// What is enabled wherever it can be, so that what a sandbox used can be told whatever was limited.
const ACCOUNTED: [Controller; 4] = [
    Controller::Memory,
    Controller::Pids,
    Controller::Cpu,
    Controller::Io,
];

/// The control group of this process's sandboxes.
#[derive(Debug)]
pub(crate) struct Place {
    /// Where controllers must be enabled for a sandbox to have them: from the top down, ours last.
    chain: Vec<PathBuf>,
    owner: PathBuf,
    /// Who moves processes, where that is not who this process runs as.
    supervisor_ids: Option<(u32, u32)>,
    /// The process that made it: a fork of that process makes another.
    pid: u32,
    supervisor: Mutex<Option<i32>>,
    /// The supervisor whose scope it is in: another one needs another.
    scope_of: Option<i32>,
    next: AtomicU64,
}

static CURRENT: Mutex<Option<Arc<Place>>> = Mutex::new(None);

/// Why the user's systemd gave no scope, to which process for which supervisor: to be asked again may take seconds, and
/// each sandbox of a process that goes on without its limits would.
static NO_SCOPE: Mutex<Option<(u32, i32, Arc<ScopeError>)>> = Mutex::new(None);

impl Place {
    /// The place of this process and its supervisor, made with the first call.
    ///
    /// # Errors
    /// [`LimitError`], with what to do about it, where nothing here is ours to divide.
    pub(crate) fn get(host: &Host, supervisor: i32) -> Result<Arc<Self>, LimitError> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(place)
                if place.pid == std::process::id()
                    && place.scope_of.is_none_or(|of| of == supervisor) =>
            {
                Ok(Arc::clone(place))
            }
            _ => {
                let place = Arc::new(Self::make(host, supervisor)?);
                *current = Some(Arc::clone(&place));
                crate::sys::at_exit(remove_at_exit);
                Ok(place)
            }
        }
    }

    fn make(host: &Host, supervisor: i32) -> Result<Self, LimitError> {
        let candidates = candidates(host.uid);
        // What systemd did not delegate it may divide by itself, even where its files are the user's.
        let delegated = candidates.iter().any(|base| is_delegated(&base.path));
        let (mut first, mut no_scope) = (None, None);
        if host.uid != 0 && !delegated {
            let mut known = NO_SCOPE.lock().unwrap_or_else(PoisonError::into_inner);
            let me = std::process::id();
            match &*known {
                Some((pid, of, why)) if (*pid, *of) == (me, supervisor) => {
                    no_scope = Some(Arc::clone(why));
                }
                _ => match Self::in_scope(host, supervisor) {
                    Ok(Ok(place)) => return Ok(place),
                    Ok(Err(error)) => first = Some(error),
                    Err(why) => {
                        let why = Arc::new(why);
                        *known = Some((me, supervisor, Arc::clone(&why)));
                        no_scope = Some(why);
                    }
                },
            }
        }
        for candidate in candidates {
            match Self::make_in(&candidate, host) {
                Ok(place) => return Ok(place),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        let error = first.unwrap_or_else(|| not_delegated(MOUNT, io::ErrorKind::NotFound.into()));
        Err(match error {
            LimitError::NotDelegated { at, source, .. } => LimitError::NotDelegated {
                at,
                source,
                systemd: no_scope,
            },
            other => other,
        })
    }

    /// In a scope of the supervisor's own, if the user's systemd gives one.
    fn in_scope(host: &Host, supervisor: i32) -> Result<Result<Self, LimitError>, ScopeError> {
        let unit = match Owner::this_process() {
            Ok(me) => format!("{}-{supervisor}.scope", me.name()),
            Err(error) => return Ok(Err(LimitError::io("read", "/proc/self")(error))),
        };
        let text = scope::ask(&unit, supervisor, host.uid)?;
        let Some(path) = position(&text) else {
            let source = io::ErrorKind::NotFound.into();
            return Ok(Err(not_delegated(MOUNT, source)));
        };
        Ok(Self::make_in(&Base::own(path), host).map(|place| Self {
            scope_of: Some(supervisor),
            ..place
        }))
    }

    fn make_in(base: &Base, host: &Host) -> Result<Self, LimitError> {
        let me = Owner::this_process().map_err(LimitError::io("read", "/proc/self"))?;
        let owner = base.path.join(me.name());
        // The last process to leave a subtree removes it, maybe between these two.
        let make_owner = || {
            base.made
                .iter()
                .chain([&owner])
                .try_for_each(|path| make(path))
        };
        (0..3)
            .map(|_| make_owner())
            .find(|made| !matches!(made, Err(LimitError::Io { .. })))
            .unwrap_or_else(make_owner)?;
        let supervisor_ids = supervisor_ids(host);
        give_procs(&owner, supervisor_ids)?;
        let place = Self {
            chain: base.chain.iter().chain([&owner]).cloned().collect(),
            owner: owner.clone(),
            supervisor_ids,
            pid: std::process::id(),
            supervisor: Mutex::new(None),
            scope_of: None,
            next: AtomicU64::new(1),
        };
        let made = place.make_leaf();
        for controller in ACCOUNTED {
            // What is missing matters where a limit needs it, and is told there.
            let _ = place.enable(controller);
        }
        made.map(|()| place)
    }

    fn make_leaf(&self) -> Result<(), LimitError> {
        let leaf = self.owner.join(SUPERVISOR);
        make(&leaf)?;
        give_procs(&leaf, self.supervisor_ids)
    }

    /// Moves the supervisor here, so that what it bears into a sandbox's control group comes from beside it. The
    /// kernel asks for the right to move processes between both.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub(crate) fn adopt(&self, supervisor: i32) -> Result<(), LimitError> {
        let mut adopted = self
            .supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *adopted != Some(supervisor) {
            let leaf = self.owner.join(SUPERVISOR);
            write(&leaf, "cgroup.procs", &supervisor.to_string())
                .map_err(LimitError::io("move the supervisor to", leaf))?;
            *adopted = Some(supervisor);
        }
        Ok(())
    }

    /// A control group with these limits, in which no process is yet. `below`: what is born into it has its own
    /// below that one.
    ///
    /// # Errors
    /// The first limit that cannot be kept here.
    pub(crate) fn sandbox(
        &self,
        settings: &[Setting],
        below: bool,
    ) -> Result<Directory, LimitError> {
        for setting in settings {
            self.enable(setting.controller)?;
            if setting.controller == Controller::Cpuset {
                self.check_cpus(&setting.value)?;
            }
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut directory = Directory::create(self.owner.join(number.to_string()))?;
        if below {
            directory.add_inner()?;
        }
        directory.give_to(self.supervisor_ids)?;
        for setting in settings {
            directory.set(setting)?;
        }
        Ok(directory)
    }

    /// Enables `controller` for sandboxes, on the whole way down to them.
    fn enable(&self, controller: Controller) -> Result<(), LimitError> {
        for directory in &self.chain {
            enable(directory, controller)?;
        }
        Ok(())
    }

    /// The kernel takes CPUs that are not there, and then quietly gives all others.
    fn check_cpus(&self, asked: &str) -> Result<(), LimitError> {
        let path = self.owner.join("cpuset.cpus.effective");
        let text = fs::read_to_string(&path).map_err(LimitError::io("read", &path))?;
        let (Ok(asked), Ok(has)) = (asked.parse::<CpuSet>(), text.trim().parse::<CpuSet>()) else {
            return Ok(()); // Neither is anything that the kernel or a plan would write.
        };
        match asked.beyond(&has) {
            None => Ok(()),
            Some(missing) => Err(LimitError::NoSuchCpu {
                asked,
                missing,
                has,
                at: self.owner.clone(),
            }),
        }
    }
}

/// A subtree that may be ours.
#[derive(Debug)]
struct Base {
    path: PathBuf,
    /// What is made where it is missing.
    made: Vec<PathBuf>,
    /// Where controllers must be enabled, from the top down.
    chain: Vec<PathBuf>,
}

impl Base {
    fn own(position: PathBuf) -> Self {
        Self {
            chain: vec![position.clone()],
            made: Vec::new(),
            path: position,
        }
    }

    fn subtree() -> Self {
        let path = Path::new(MOUNT).join(SUBTREE);
        Self {
            chain: vec![MOUNT.into(), path.clone()],
            made: vec![path.clone()],
            path,
        }
    }
}

/// Removes the subtree that only Orbit uses, if nobody else is in it.
pub(super) fn remove_subtree_if_empty() {
    // Somebody is, or it is not ours, or it never was there.
    let _ = fs::remove_dir(Path::new(MOUNT).join(SUBTREE));
}

/// Where to try, best first.
fn candidates(uid: u32) -> Vec<Base> {
    let position = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| position(&text));
    match position {
        Some(own) if uid != 0 || is_delegated(&own) => vec![Base::own(own)],
        // The top of a container's tree has processes: there is no dividing it without moving them.
        Some(own) if own == Path::new(MOUNT) && !is_kernel_root(&own) => vec![Base::own(own)],
        Some(_) | None if uid == 0 => vec![Base::subtree()],
        _ => Vec::new(),
    }
}

/// The directories in which owners' directories may be: those that a start looks through for dead ones.
pub(super) fn bases(uid: u32) -> Vec<PathBuf> {
    candidates(uid).into_iter().map(|base| base.path).collect()
}

/// Where the process of this `/proc/PID/cgroup` is, or was before its cgroup was divided.
fn position(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Above the root of this cgroup namespace: there is no path there.
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let path = Path::new(MOUNT).join(path.trim_end_matches('/'));
    // Without a slash at its end where the position is the root.
    let path: PathBuf = path.components().collect();
    Some(if path.ends_with(CALLERS) {
        path.parent().map_or_else(|| path.clone(), Path::to_owned)
    } else {
        path
    })
}

/// systemd marks what it delegates.
fn is_delegated(position: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::getxattr(position, *name, &mut value[..]).is_ok_and(|_| value == *b"1")
    })
}

/// Of all cgroups, only the kernel's own root has no such file.
fn is_kernel_root(position: &Path) -> bool {
    !position.join("cgroup.events").exists()
}

/// Who the supervisor is, as this process sees it, where that is somebody else.
fn supervisor_ids(host: &Host) -> Option<(u32, u32)> {
    let uid = host.ids.uids.to_outside(0)?;
    let gid = host.ids.gids.to_outside(0)?;
    ((uid, gid) != (host.uid, host.gid)).then_some((uid, gid))
}

fn make(path: &Path) -> Result<(), LimitError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(refused(path.parent().unwrap_or(path), error)),
    }
}

fn not_delegated(at: impl Into<PathBuf>, source: io::Error) -> LimitError {
    LimitError::NotDelegated {
        at: at.into(),
        source,
        systemd: None,
    }
}

fn refused(at: &Path, error: io::Error) -> LimitError {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => not_delegated(at, error),
        _ => LimitError::io("make a control group in", at)(error),
    }
}

/// Enables `controller` for the children of `directory`.
fn enable(directory: &Path, controller: Controller) -> Result<(), LimitError> {
    let name = controller.name();
    let words = |file: &'static str| {
        words(directory, file).map_err(LimitError::io("read", directory.join(file)))
    };
    if words("cgroup.subtree_control")?
        .iter()
        .any(|word| word == name)
    {
        return Ok(());
    }
    let has = words("cgroup.controllers")?;
    if !has.iter().any(|word| word == name) {
        return Err(LimitError::NoController {
            controller,
            at: directory.to_owned(),
            has,
        });
    }
    let write = || write(directory, "cgroup.subtree_control", &format!("+{name}"));
    let written = match write() {
        // It has processes. A process may be born between the move and the next try.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => (0..10)
            .map(|_| move_processes(directory).and_then(|()| write()))
            .find(Result::is_ok)
            .unwrap_or(Err(error)),
        other => other,
    };
    written.map_err(|source| match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => refused(directory, source),
        _ => LimitError::CannotEnable {
            controller,
            at: directory.to_owned(),
            source,
        },
    })
}

/// Moves the processes of `directory` to a leaf below it.
fn move_processes(directory: &Path) -> io::Result<()> {
    let leaf = directory.join(CALLERS);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for pid in words(directory, "cgroup.procs")? {
        // One that this pid namespace does not show; as a number, it would mean this process.
        if pid == "0" {
            continue;
        }
        match write(&leaf, "cgroup.procs", &pid) {
            // It is gone by now.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Removes what is ours when this process ends in order; where it does not, the next start does.
extern "C" fn remove_at_exit() {
    // A lock that is held belongs to a thread that will not go on.
    let Ok(mut current) = CURRENT.try_lock() else {
        return;
    };
    // A fork that ends is not the owner.
    let place = current
        .take()
        .filter(|place| place.pid == std::process::id());
    if let Some(place) = place {
        reap::remove(&place.owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_from_the_line_of_version_2() {
        let at = |text| position(text).map(|path| path.display().to_string());
        assert_eq!(at("0::/\n").unwrap(), "/sys/fs/cgroup");
        assert_eq!(
            at("1:name=systemd:/x\n0::/a.slice/b.scope\n").unwrap(),
            "/sys/fs/cgroup/a.slice/b.scope"
        );
        assert_eq!(at("0::/a/orbit-callers\n").unwrap(), "/sys/fs/cgroup/a");
        assert_eq!(at("0::/orbit-callers\n").unwrap(), "/sys/fs/cgroup");
        assert_eq!(at("0::/../..\n"), None);
        assert_eq!(at("4:memory:/x\n"), None);
        assert_eq!(at(""), None);
    }
}
