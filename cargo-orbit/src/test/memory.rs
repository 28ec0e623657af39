//! How much memory the limits of running tests may add up to: what this machine has, or what the control groups around this
//! process leave of it, as in a container or under a service manager.
//!
//! [`budget_bytes`] is pure, but for the files that it is given to read by.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where version 2 and version 1 of control groups keep a group's limit.
///
/// Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files", and cgroup-v1/memory.rst.
const V2: &str = "memory.max";
const V1: &str = "memory.limit_in_bytes";

/// Of this process, in bytes.
pub(crate) fn budget_bytes_here() -> u64 {
    budget_bytes(rustix::system::sysinfo().totalram as u64, |path| {
        fs::read_to_string(path).ok()
    })
}

/// The least of `total_bytes` and of the limits of all control groups that this process is in, as far as `read` can tell:
/// those above the top of a mount, as out of a container, nobody inside sees.
fn budget_bytes(total_bytes: u64, read: impl Fn(&Path) -> Option<String>) -> u64 {
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    let (groups, mounts) = (text("/proc/self/cgroup"), text("/proc/self/mountinfo"));
    let limits = mounts.lines().filter_map(Mount::parse).filter_map(|mount| {
        let (controllers, file) = if mount.kind == "cgroup2" {
            ("", V2)
        } else {
            ("memory", V1)
        };
        let directory = mount.directory(group(&groups, controllers)?);
        directory
            .ancestors()
            .take_while(|directory| directory.starts_with(&mount.at))
            // `max`, or no such file at the root of all: no limit.
            .filter_map(|directory| read(&directory.join(file))?.trim().parse().ok())
            .min()
    });
    limits.chain([total_bytes]).min().unwrap_or(total_bytes)
}

/// The path of a group: of version 2, or of the hierarchy of version 1 that has this controller.
///
/// Source: cgroups(7), "/proc/pid/cgroup": `HIERARCHY:CONTROLLER,…:PATH`.
fn group<'a>(groups: &'a str, controller: &str) -> Option<&'a Path> {
    groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_it = controllers.split(',').any(|it| it == controller);
        is_it.then(|| Path::new(path))
    })
}

/// A mount of control groups that has limits of memory.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    kind: String,
    /// The group that is at its top.
    top: PathBuf,
    at: PathBuf,
}

impl Mount {
    /// A line of mountinfo.
    ///
    /// Source: proc_pid_mountinfo(5): `ID PARENT DEVICE TOP AT OPTIONS [MORE …] - KIND SOURCE OPTIONS`.
    fn parse(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let mut options = filesystem.nth(1)?.split(',');
        let has_memory = kind == "cgroup2" || kind == "cgroup" && options.any(|it| it == "memory");
        let mut mount = mount.split(' ').skip(3);
        let (top, at) = (mount.next()?, mount.next()?);
        has_memory.then(|| Self {
            kind: kind.to_owned(),
            top: unescaped(top),
            at: unescaped(at),
        })
    }

    /// Where it shows `group`; its top, where that is not below it.
    fn directory(&self, group: &Path) -> PathBuf {
        match group.strip_prefix(&self.top) {
            Ok(below) => self.at.join(below),
            Err(_) => self.at.clone(),
        }
    }
}

/// Blanks, tabs, ends of lines and backslashes are three octal digits there.
fn unescaped(path: &str) -> PathBuf {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let replaced = escapes.iter().fold(path.to_owned(), |path, (escape, is)| {
        path.replace(escape, is)
    });
    replaced.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const GIB: u64 = 1 << 30;
    const V2_MOUNT: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    /// On a machine with 8 GiB, where these files have these texts.
    fn budget(files: &[(&str, &str)]) -> u64 {
        let files: BTreeMap<&Path, &str> = files
            .iter()
            .map(|(path, text)| (Path::new(*path), *text))
            .collect();
        budget_bytes(8 * GIB, |path| {
            files.get(path).map(|text| (*text).to_owned())
        })
    }

    #[test]
    fn without_groups_it_is_what_the_machine_has() {
        assert_eq!(budget(&[]), 8 * GIB);
        let nonsense = [
            ("/proc/self/cgroup", "nonsense\n0:\n"),
            ("/proc/self/mountinfo", "1 2 - x\n - cgroup2\nnonsense\n"),
        ];
        assert_eq!(budget(&nonsense), 8 * GIB);
    }

    #[test]
    fn of_version_2_the_least_up_the_tree_holds() {
        let with = |own: &str, above: &str| {
            budget(&[
                ("/proc/self/cgroup", "0::/user.slice/a.scope\n"),
                ("/proc/self/mountinfo", V2_MOUNT),
                ("/sys/fs/cgroup/user.slice/a.scope/memory.max", own),
                ("/sys/fs/cgroup/user.slice/memory.max", above),
            ])
        };
        assert_eq!(with("max\n", "max\n"), 8 * GIB);
        assert_eq!(with("1073741824\n", "max\n"), GIB);
        assert_eq!(with("4294967296\n", "2147483648\n"), 2 * GIB);
        assert_eq!(with("1073741824\n", "2147483648\n"), GIB);
        // More than there is.
        assert_eq!(with("17179869184\n", "max\n"), 8 * GIB);
    }

    #[test]
    fn a_container_sees_its_own_at_the_top() {
        let files = [
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/self/mountinfo", V2_MOUNT),
            ("/sys/fs/cgroup/memory.max", "1073741824\n"),
        ];
        assert_eq!(budget(&files), GIB);
    }

    #[test]
    fn of_version_1_it_is_the_hierarchy_with_memory() {
        let mounts = "40 30 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 30 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let groups = "5:cpu:/other\n4:hugetlb,memory:/a/b\n0::/\n";
        let with = |limit: &str| {
            budget(&[
                ("/proc/self/cgroup", groups),
                ("/proc/self/mountinfo", mounts),
                ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", limit),
                ("/sys/fs/cgroup/cpu/other/memory.limit_in_bytes", "1\n"),
            ])
        };
        assert_eq!(with("1073741824\n"), GIB);
        // What version 1 says where there is none.
        assert_eq!(with("9223372036854771712\n"), 8 * GIB);
    }

    #[test]
    fn a_part_of_the_tree_may_be_mounted_at_a_place_with_blanks() {
        let mounts = "41 30 0:31 /docker/x /mnt/c\\040g rw master:1 - cgroup cgroup rw,memory\n";
        let with = |group: &str| {
            let groups = format!("4:memory:{group}\n");
            budget(&[
                ("/proc/self/cgroup", &groups),
                ("/proc/self/mountinfo", mounts),
                ("/mnt/c g/memory.limit_in_bytes", "2147483648\n"),
                ("/mnt/c g/below/memory.limit_in_bytes", "1073741824\n"),
                // Above its top there are no groups.
                ("/mnt/memory.limit_in_bytes", "1\n"),
            ])
        };
        assert_eq!(with("/docker/x"), 2 * GIB);
        assert_eq!(with("/docker/x/below"), GIB);
        assert_eq!(with("/elsewhere"), 2 * GIB);
    }

    #[test]
    fn this_machine_has_some() {
        let here = budget_bytes_here();
        assert!(here > 0 && here <= rustix::system::sysinfo().totalram as u64);
    }
}
