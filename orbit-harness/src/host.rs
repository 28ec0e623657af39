//! Facts about this machine and this process, found out by looking or by doing; the one prober.
//!
//! Everything else decides from a [`Host`] without looking for itself, so that a plan can be made in a test
//! for a machine that is not there.

mod foreign;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

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
    /// What lies in `/`, by name.
    pub(crate) top_level: BTreeMap<PathBuf, TopLevel>,
    /// Directories of `/` in which the caller has nothing: once they were looked for.
    pub(crate) foreign: OnceLock<BTreeSet<PathBuf>>,
    /// Where filesystems are mounted, as absolute paths.
    pub(crate) mount_points: Vec<PathBuf>,
    pub(crate) cgroups: Cgroups,
    /// Where the program `pasta` is, which egress takes.
    pub(crate) pasta: Option<PathBuf>,
    /// Whether a file in memory takes attributes of users, by which a layer there hides what is below it.
    pub(crate) hides_in_memory: bool,
}

/// One name in `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TopLevel {
    Directory,
    /// One with nothing in it, as the system makes them: root's, with mode 755.
    EmptyDirectory,
    Symlink(PathBuf),
    Other,
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
    /// Where the root directory or the mount table cannot be read.
    pub(crate) fn get() -> io::Result<&'static Self> {
        static HOST: OnceLock<Host> = OnceLock::new();
        if let Some(host) = HOST.get() {
            return Ok(host);
        }
        let host = Self::probe()?;
        Ok(HOST.get_or_init(|| host))
    }

    fn probe() -> io::Result<Self> {
        let (uid, gid) = (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        );
        let account = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
            .ok()
            .flatten();
        let home = std::env::var_os("HOME")
            .map(PathBuf::from)
            .filter(|home| home.is_absolute());
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Ok(Self {
            uid,
            gid,
            home: home
                .or_else(|| account.as_ref().map(|a| a.dir.clone()))
                .unwrap_or_else(|| "/".into()),
            hostname: nix::unistd::gethostname()?.to_string_lossy().into_owned(),
            resolv_conf: text("/etc/resolv.conf"),
            ids: plan_ids(uid, gid, account.as_ref().map(|a| a.name.as_str()))?,
            last_cap: text("/proc/sys/kernel/cap_last_cap")
                .trim()
                .parse()
                .unwrap_or(40),
            top_level: read_top_level()?,
            foreign: OnceLock::new(),
            mount_points: read_mount_points(&fs::read("/proc/self/mountinfo")?),
            cgroups: probe_cgroups(),
            pasta: find_program("pasta"),
            hides_in_memory: takes_attributes(),
        })
    }

    /// Whether a filesystem is mounted at `path`, which is normal.
    pub(crate) fn is_mount_point(&self, path: &Path) -> bool {
        self.mount_points.iter().any(|mount| is_same(mount, path))
    }

    /// Whether a filesystem is mounted somewhere below `path`, which is normal, and not at it.
    pub(crate) fn has_mounts_below(&self, path: &Path) -> bool {
        let path = path.as_os_str().as_bytes();
        let path = path.strip_suffix(b"/").unwrap_or(path);
        self.mount_points
            .iter()
            .filter_map(|mount| mount.as_os_str().as_bytes().strip_prefix(path))
            .any(|rest| rest.len() > 1 && rest.starts_with(b"/"))
    }
}

/// Whether two normal paths are one. By their bytes: the standard library takes paths apart to compare them, and a plan
/// compares hundreds.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    one.as_os_str() == other.as_os_str()
}

/// Where this user's images and names are kept: `$ORBIT_CACHE_DIR`, else `$XDG_CACHE_HOME/orbit`, else
/// `~/.cache/orbit`. A relative path counts for nothing: it would be another cache in each directory.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    set("ORBIT_CACHE_DIR")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("orbit")))
        .or_else(|| Some(set("HOME")?.join(".cache/orbit")))
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
        .or_else(|| Some(cache_dir()?.join("run")))
}

fn plan_ids(euid: u32, egid: u32, name: Option<&str>) -> io::Result<IdPlan> {
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
        // With no_new_privs, as in a sandbox, they run without the privilege that makes them helpers.
        helpers: has_program("newuidmap")
            && has_program("newgidmap")
            && !text("/proc/self/status").contains("NoNewPrivs:\t1"),
        privileged: holds_setid_capabilities(),
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

/// Whether a tmpfs keeps attributes in `user.` (Linux 6.6): a memfd is a file of one.
fn takes_attributes() -> bool {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create(c"orbit", flags).is_ok_and(|file| {
        rustix::fs::fsetxattr(&file, c"user.orbit", b"y", rustix::fs::XattrFlags::empty()).is_ok()
    })
}

fn read_top_level() -> io::Result<BTreeMap<PathBuf, TopLevel>> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let found = if kind.is_dir() {
            if is_plain_and_empty(&entry.path()) {
                TopLevel::EmptyDirectory
            } else {
                TopLevel::Directory
            }
        } else if kind.is_symlink() {
            TopLevel::Symlink(fs::read_link(entry.path())?)
        } else {
            TopLevel::Other
        };
        entries.insert(entry.path(), found);
    }
    Ok(entries)
}

/// Whether a fresh directory would look the same. One that cannot be read is not known to be empty.
fn is_plain_and_empty(path: &Path) -> bool {
    let is_plain = fs::symlink_metadata(path)
        .is_ok_and(|it| (it.uid(), it.gid(), it.mode() & 0o7777) == (0, 0, 0o755));
    is_plain && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// The mount points in the text of a mountinfo file: its fifth column, with octal escapes.
///
/// Source: proc_pid_mountinfo(5).
pub(crate) fn read_mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    let fifth = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(unescape);
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(fifth)
        .collect()
}

fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u32, |value, digit| {
                (b'0'..=b'7')
                    .contains(digit)
                    .then(|| value * 8 + u32::from(digit - b'0'))
            })
        });
        let escaped = octal.and_then(|value| u8::try_from(value).ok());
        path.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    std::ffi::OsString::from_vec(path).into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let text = b"22 1 0:20 / /proc rw - proc proc rw\n\
            23 1 0:21 / /mnt/with\\040space\\134x rw shared:1 - ext4 /dev/vda rw\n";
        assert_eq!(
            read_mount_points(text),
            [PathBuf::from("/proc"), PathBuf::from("/mnt/with space\\x")]
        );
    }

    #[test]
    fn an_incomplete_escape_stays_as_it_is() {
        assert_eq!(unescape(b"/a\\04"), PathBuf::from("/a\\04"));
        assert_eq!(unescape(b"/a\\777"), PathBuf::from("/a\\777"));
    }

    #[test]
    fn this_machine_has_a_root() {
        let host = Host::get().unwrap();
        assert!(host.top_level.contains_key(Path::new("/usr")));
        assert!(host.mount_points.contains(&PathBuf::from("/")));
        assert!(host.has_mounts_below(Path::new("/")));
        assert!(host.is_mount_point(Path::new("/proc")));
    }

    #[test]
    fn a_mount_is_below_a_directory_and_not_below_its_namesake() {
        let mut host = Host::get().unwrap().clone();
        host.mount_points = ["/", "/mnt/disk", "/home"].map(PathBuf::from).to_vec();
        let below = |path| host.has_mounts_below(Path::new(path));
        assert!(below("/") && below("/mnt"));
        assert!(!below("/mnt/disk") && !below("/mnt/dis") && !below("/home") && !below("/m"));
        assert!(host.is_mount_point(Path::new("/")) && !host.is_mount_point(Path::new("/mnt")));
        host.mount_points = vec!["/".into()];
        assert!(!host.has_mounts_below(Path::new("/")));
    }
}
