//! What shows something of the host, and what covers or closes something inside.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use rustix::mount::MountFlags;

use super::{
    Done, Maker,
    syscalls::{
        INERT, INERT_READ_ONLY, clone_tree, detached, is_directory, mount, move_onto, open_if_there,
    },
};
use crate::{supervisor::protocol::Cause, sys};

/// What is shown for its content alone, and takes no writes.
const READ_ONLY: u64 = libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_RDONLY;

impl Maker {
    pub(super) fn bind(&mut self, source: &Path, at: &Path, read_only: bool) -> Done {
        let source = self.open_host(source)?;
        let is_directory = is_directory(&source)?;
        let target = if is_directory {
            self.directory(at, 0o755)?
        } else {
            self.empty_file(at)?
        };
        let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        if read_only {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        let tree = clone_tree(&source)?;
        sys::set_mount_attributes(tree.as_fd(), attributes, None, true)
            .map_err(|error| Cause::Errno(error.raw_os_error().unwrap_or(0)))?;
        Ok(move_onto(&tree, &target)?)
    }

    pub(super) fn sys(&mut self, fresh: bool) -> Done {
        let target = self.own_directory("sys")?;
        if fresh {
            return Ok(mount(
                Some("sysfs"),
                &target,
                "sysfs",
                INERT.union(MountFlags::RDONLY),
                "",
            )?);
        }
        let tree = clone_tree(&self.open_host(Path::new("/sys"))?)?;
        sys::set_mount_attributes(tree.as_fd(), READ_ONLY, None, true)
            .map_err(|error| Cause::Errno(error.raw_os_error().unwrap_or(0)))?;
        Ok(move_onto(&tree, &target)?)
    }

    /// Programs size their pools and heaps by what is here. The root of what they see is their own control group.
    pub(super) fn cgroup(&mut self) -> Done {
        let target = self.directory(Path::new("/sys/fs/cgroup"), 0o755)?;
        let tree = detached("cgroup2", INERT_READ_ONLY)?;
        // Moved there: mount(2) refuses what shows the same filesystem as the host's mount that may be there.
        Ok(move_onto(&tree, &target)?)
    }

    /// Covers `path`. Called after `pivot_root`, when no path leads out of the sandbox any more. `empty` is what covered a
    /// directory before, where one was.
    pub(super) fn mask(&self, path: &Path, empty: &mut Option<OwnedFd>) -> Done {
        let Some(target) = open_if_there(path)? else {
            return Ok(());
        };
        if is_directory(&target)? {
            if let Some(empty) = empty {
                // What covers the first covers all, with its flags: each filesystem takes its time to be made and to go.
                return Ok(move_onto(&clone_tree(empty)?, &target)?);
            }
            let flags = INERT.union(MountFlags::RDONLY);
            mount(
                Some("tmpfs"),
                &target,
                "tmpfs",
                flags,
                "size=0,nr_inodes=1,mode=755",
            )?;
            // Opened again: the descriptor is of what is covered.
            *empty = open_if_there(path)?;
            return Ok(());
        }
        let null = self.null.as_ref().ok_or(Cause::Errno(libc::EINVAL))?;
        Ok(move_onto(&clone_tree(null)?, &target)?)
    }
}

/// Makes `path` read-only. Called after `pivot_root`.
pub(super) fn read_only(path: &Path) -> Done {
    let Some(target) = open_if_there(path)? else {
        return Ok(());
    };
    let tree = clone_tree(&target)?;
    sys::set_mount_attributes(tree.as_fd(), READ_ONLY, None, false)
        .map_err(|error| Cause::Errno(error.raw_os_error().unwrap_or(0)))?;
    Ok(move_onto(&tree, &target)?)
}
