//! Removes the control groups of owners that are dead.
//!
//! A directory's name tells whose it is: the pid namespace, the process and the time it was started, in clock
//! ticks since boot, as a number alone is given out again.

use std::{fs, io, path::Path, sync::Once, time::Duration};

use super::{directory, place};
use crate::host::{Cgroups, Host};

const PREFIX: &str = "orbit-";

/// How old an empty directory of another pid namespace must be before it is taken for dead: its owner may just
/// have made it.
const FOREIGN_AGE: Duration = Duration::from_secs(60);

/// A process that owns a directory of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// The inode of its pid namespace.
    namespace: u64,
    pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

impl Owner {
    pub(super) fn this_process() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        Ok(Self {
            namespace: namespace()?,
            pid: std::process::id(),
            started: start_time(&stat).ok_or(io::ErrorKind::InvalidData)?,
        })
    }

    pub(super) fn name(self) -> String {
        format!("{PREFIX}{}-{}-{}", self.namespace, self.pid, self.started)
    }

    fn from_name(name: &str) -> Option<Self> {
        let mut numbers = name.strip_prefix(PREFIX)?.split('-');
        let owner = Self {
            namespace: numbers.next()?.parse().ok()?,
            pid: numbers.next()?.parse().ok()?,
            started: numbers.next()?.parse().ok()?,
        };
        numbers.next().is_none().then_some(owner)
    }

    /// Whether it lives; `None` where that cannot be seen from here.
    fn is_alive(self, here: u64) -> Option<bool> {
        if self.namespace != here {
            return None;
        }
        let stat = match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(false),
            Err(_) => return None,
        };
        Some(start_time(&stat) == Some(self.started) && !is_dead(&stat))
    }
}

fn namespace() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

/// The fields of `/proc/PID/stat` after the name, which may hold anything but ends at the last parenthesis.
fn fields(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

/// Field 22. Source: proc_pid_stat(5).
fn start_time(stat: &str) -> Option<u64> {
    fields(stat)?.nth(19)?.parse().ok()
}

/// Whether it is only waited for by its parent.
fn is_dead(stat: &str) -> bool {
    let state = fields(stat).and_then(|mut fields| fields.next());
    matches!(state, Some("Z" | "X"))
}

/// Removes what dead owners left where this process would make its own, once in its life.
///
/// Nothing is said of what cannot be removed: it may be somebody else's, and harms nobody.
pub(crate) fn reap(host: &Host) {
    static ONCE: Once = Once::new();
    if host.cgroups != Cgroups::V2 {
        return;
    }
    ONCE.call_once(|| {
        for base in place::bases(host.uid) {
            reap_in(&base);
        }
    });
}

fn reap_in(base: &Path) {
    let Ok(here) = namespace() else { return };
    // Not there: nobody has ever limited anything.
    for path in directory::children(base).unwrap_or_default() {
        let owner = path
            .file_name()
            .and_then(|name| Owner::from_name(name.to_str()?));
        let is_dead = match owner.map(|owner| owner.is_alive(here)) {
            None => false,
            Some(Some(alive)) => !alive,
            Some(None) => is_old_and_empty(&path),
        };
        if is_dead {
            remove(&path);
        }
    }
}

fn is_old_and_empty(path: &Path) -> bool {
    let age = fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|at| at.elapsed().ok());
    let empty = fs::read_to_string(path.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|line| line == "populated 0"));
    empty && age.is_some_and(|age| age > FOREIGN_AGE)
}

/// Kills everything in an owner's directory, and removes it.
pub(super) fn remove(owner: &Path) {
    let _ = directory::remove_tree(owner);
    if rustix::process::geteuid().is_root() {
        place::remove_subtree_if_empty();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_process_is_alive_and_one_before_it_is_not() {
        let me = Owner::this_process().unwrap();
        assert_eq!(me.is_alive(me.namespace), Some(true));
        let before = Owner {
            started: me.started - 1,
            ..me
        };
        assert_eq!(before.is_alive(me.namespace), Some(false));
        // Whether a process of another namespace lives cannot be told from here.
        assert_eq!(me.is_alive(me.namespace + 1), None);
        let nobody = Owner {
            pid: 0x7fff_fff0,
            ..me
        };
        assert_eq!(nobody.is_alive(me.namespace), Some(false));
    }

    #[test]
    fn a_name_may_hold_what_the_fields_around_it_do() {
        let mut fields = vec!["0"; 50];
        fields[0] = "Z";
        fields[19] = "77";
        let stat = format!("1 (a) R 1 ) {}", fields.join(" "));
        assert_eq!(start_time(&stat), Some(77));
        assert!(is_dead(&stat));
    }

    #[test]
    fn what_is_not_an_owner_is_left_alone() {
        for name in [
            "orbit",
            "orbit-callers",
            "orbit-1-2",
            "orbit-1-2-3-4",
            "orbit-a-2-3",
            "x-1-2-3",
            "orbit--2-3",
        ] {
            assert_eq!(Owner::from_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_name_tells_its_owner(namespace: u64, pid: u32, started: u64) {
            let owner = Owner { namespace, pid, started };
            prop_assert_eq!(Owner::from_name(&owner.name()), Some(owner));
        }
    }
}
