//! Facts about this machine and this process, found out by looking or by doing; the one prober.
//!
//! Everything else decides from a [`Host`] without looking for itself, so that a plan can be made in a test
//! for a machine that is not there.

mod files;
mod foreign;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

pub(crate) use self::files::{Files, TopLevel, read_mount_points, read_mountinfo};
use crate::security::idmap::plan::{Caller, IdPlan};

/// What plans depend on.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: PathBuf,
    pub(crate) hostname: String,
    /// The content of `/etc/resolv.conf`.
    pub(crate) resolv_conf: String,
    pub(crate) ids: IdPlan,
    /// The number of the last capability that this kernel knows.
    pub(crate) last_cap: u8,
    /// What there is of files: once somebody asked, by [`files`](Self::files).
    pub(crate) looked_up: OnceLock<Files>,
    /// Directories of `/` in which the caller has nothing: once they were looked for.
    pub(crate) foreign: OnceLock<BTreeSet<PathBuf>>,
    pub(crate) cgroups: Cgroups,
    /// Where the program `pasta` is, which egress takes.
    pub(crate) pasta: Option<PathBuf>,
}

/// How control groups are mounted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cgroups {
    /// The unified hierarchy at `/sys/fs/cgroup`.
    V2,
    /// Version 1, alone or beside an empty version 2.
    V1OrHybrid,
    None,
}

impl Host {
    /// The facts of this process, looked up once.
    ///
    /// # Errors
    /// Where this process's name or its ids cannot be told.
    pub(crate) fn get() -> io::Result<&'static Self> {
        static HOST: OnceLock<Host> = OnceLock::new();
        if let Some(host) = HOST.get() {
            return Ok(host);
        }
        let host = Self::probe()?;
        Ok(HOST.get_or_init(|| host))
    }

    /// What there is of files, looked up with the first call: only a sandbox over the host's files asks, and it takes longer
    /// than all the rest. What was mounted since this process's supervisor started, that does not see: it is shown without.
    ///
    /// # Errors
    /// Where the root directory or the mount table cannot be read.
    pub(crate) fn files(&self) -> io::Result<&Files> {
        if let Some(files) = self.looked_up.get() {
            return Ok(files);
        }
        let files = Files::probe()?;
        Ok(self.looked_up.get_or_init(|| files))
    }

    fn probe() -> io::Result<Self> {
        let (uid, gid) = (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        );
        let home = std::env::var_os("HOME")
            .map(PathBuf::from)
            .filter(|home| home.is_absolute());
        let privileged = holds_setid_capabilities();
        // It takes twenty system calls to ask for.
        let account = (home.is_none() || !privileged)
            .then(|| nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)))
            .and_then(|found| found.ok().flatten());
        let name = account.as_ref().map(|account| account.name.as_str());
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Ok(Self {
            uid,
            gid,
            home: home
                .or_else(|| account.as_ref().map(|a| a.dir.clone()))
                .unwrap_or_else(|| "/".into()),
            hostname: nix::unistd::gethostname()?.to_string_lossy().into_owned(),
            resolv_conf: text("/etc/resolv.conf"),
            ids: plan_ids(uid, gid, name, privileged)?,
            last_cap: text("/proc/sys/kernel/cap_last_cap")
                .trim()
                .parse()
                .unwrap_or(40),
            looked_up: OnceLock::new(),
            foreign: OnceLock::new(),
            cgroups: probe_cgroups(),
            pasta: find_program("pasta"),
        })
    }
}

/// Whether two normal paths are one. By their bytes: the standard library takes paths apart to compare them, and a plan
/// compares hundreds.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    one.as_os_str() == other.as_os_str()
}

/// Where this user's processes meet: `$ORBIT_RUNTIME_DIR`, else for root `/run/orbit`, else `$XDG_RUNTIME_DIR/orbit`,
/// else a directory of the cache.
pub(crate) fn runtime_dir(uid: u32) -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    set("ORBIT_RUNTIME_DIR")
        .or_else(|| (uid == 0).then(|| "/run/orbit".into()))
        .or_else(|| Some(set("XDG_RUNTIME_DIR")?.join("orbit")))
        .or_else(|| Some(crate::cache::directory()?.join("run")))
}

fn plan_ids(euid: u32, egid: u32, name: Option<&str>, privileged: bool) -> io::Result<IdPlan> {
    // A file that is not there or may not be read gives nobody a range.
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let caller = Caller {
        euid,
        egid,
        name,
        subuid: &text("/etc/subuid"),
        subgid: &text("/etc/subgid"),
        uid_map: &text("/proc/self/uid_map"),
        gid_map: &text("/proc/self/gid_map"),
        // Who is privileged needs none. With no_new_privs, as in a sandbox, they run without the privilege that makes them
        // helpers.
        helpers: !privileged
            && has_program("newuidmap")
            && has_program("newgidmap")
            && !text("/proc/self/status").contains("NoNewPrivs:\t1"),
        privileged,
    };
    crate::security::idmap::plan::plan(&caller).map_err(io::Error::other)
}

/// Why this process may not make a user namespace, and what lets it: what is known of systems that refuse.
///
/// Source: Linux, Documentation/admin-guide/sysctl/user.rst; Debian's and Ubuntu's own sysctls.
pub(crate) fn why_no_user_namespace(errno: i32) -> String {
    let setting = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
    };
    let is = |path, value: &str| setting(path).is_some_and(|found| found == value);
    if is(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ) {
        return "AppArmor keeps programs without a profile from using user namespaces here \
                (kernel.apparmor_restrict_unprivileged_userns=1). Install an AppArmor profile that grants \
                `userns` to this program, or run `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`."
            .to_owned();
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return "User namespaces are switched off for ordinary users: run \
                `sudo sysctl kernel.unprivileged_userns_clone=1`."
            .to_owned();
    }
    if is("/proc/sys/user/max_user_namespaces", "0")
        || errno == libc::ENOSPC
        || errno == libc::EUSERS
    {
        return "The limit on user namespaces is reached: run `sudo sysctl user.max_user_namespaces=15000`."
            .to_owned();
    }
    "A seccomp filter, a container or the kernel's configuration refuses. In a container, give the runner \
     `--security-opt seccomp=unconfined` or `--privileged`."
        .to_owned()
}

fn has_program(name: &str) -> bool {
    find_program(name).is_some()
}

fn find_program(name: &str) -> Option<PathBuf> {
    [
        "/usr/bin",
        "/usr/local/bin",
        "/bin",
        "/usr/sbin",
        "/sbin",
        "/usr/local/sbin",
    ]
    .iter()
    .map(|directory| Path::new(directory).join(name))
    .find(|path| path.exists())
}

/// Whether this process may write any id map: CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN, effective.
fn holds_setid_capabilities() -> bool {
    use rustix::thread::CapabilitySet as Set;
    let needed = Set::SETUID | Set::SETGID | Set::SYS_ADMIN;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

fn probe_cgroups() -> Cgroups {
    const CGROUP2_MAGIC: i64 = 0x6367_7270;
    match rustix::fs::statfs("/sys/fs/cgroup") {
        #[expect(
            clippy::useless_conversion,
            reason = "the type of f_type differs between architectures"
        )]
        Ok(stat) if i64::from(stat.f_type) == CGROUP2_MAGIC => Cgroups::V2,
        Ok(_)
            if Path::new("/sys/fs/cgroup/memory").exists()
                || Path::new("/sys/fs/cgroup/unified").exists() =>
        {
            Cgroups::V1OrHybrid
        }
        _ => Cgroups::None,
    }
}
