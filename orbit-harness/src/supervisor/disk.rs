//! Faults of a sandbox's disk: less room, and no writes at all. Each is done by a short-lived fork of the supervisor,
//! which has privilege over the filesystems and mounts of all its sandboxes, as nothing in them does.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};
use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags},
    io::Errno,
    mount::FsPickFlags,
};

use super::protocol::{FileFault, Room, Writer};
use crate::sys;

/// How often the room that is taken is measured again, where a program takes more or gives some back meanwhile.
const TRIES: u32 = 10_000;

/// How many of those who stand in the way are named.
const WRITERS_MAX: usize = 8;

/// Lets the filesystem that holds a sandbox's writable layers grow to `room` and no further. What is written stays.
///
/// # Errors
/// EINVAL where more than that is written already.
pub(super) fn resize(scratch: Option<OwnedFd>, room: Room) -> Result<(), i32> {
    let scratch = scratch.ok_or(libc::EBADF)?;
    let resized = match room {
        Room::Bytes(bytes) => reconfigure(&scratch, bytes.as_u64()),
        Room::None => leave_none(&scratch),
    };
    resized.map_err(Errno::raw_os_error)
}

/// Takes all the room there is.
fn leave_none(scratch: &OwnedFd) -> rustix::io::Result<()> {
    for _ in 0..TRIES {
        let found = rustix::fs::fstatvfs(scratch)?;
        // None at all would mean that nothing bounds it. The kernel sums the counts of all CPUs while programs go from
        // one to another: there may seem to be more free than there is room.
        let taken = found.f_blocks.saturating_sub(found.f_bfree).max(1);
        match reconfigure(scratch, taken * found.f_frsize) {
            // A program wrote more meanwhile.
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
            Ok(()) if rustix::fs::fstatvfs(scratch)?.f_bfree == 0 => return Ok(()),
            // A program removed something meanwhile; or nothing was written at all, which leaves it one page.
            Ok(()) if taken == 1 => return Ok(()),
            Ok(()) => {}
        }
    }
    Err(Errno::AGAIN)
}

/// C: `fspick(scratch, "", FSPICK_EMPTY_PATH)`, `fsconfig(…, "size", …)`. Source: Linux, Documentation/filesystems/
/// tmpfs.rst, "size"; mm/shmem.c, shmem_reconfigure.
fn reconfigure(scratch: &OwnedFd, bytes: u64) -> rustix::io::Result<()> {
    let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
    let context = rustix::mount::fspick(scratch, "", flags)?;
    rustix::mount::fsconfig_set_string(&context, "size", bytes.to_string())?;
    rustix::mount::fsconfig_reconfigure(&context)
}

/// Makes the mounts at `paths` read-only, or writable again: all of them, or none.
///
/// Only a process in their mount namespace can: `namespace` is that, where this process is not in it yet.
///
/// # Errors
/// [`FileFault::Busy`] where a program has a file there open for writing.
pub(super) fn set_read_only(
    root: &OwnedFd,
    namespace: Option<OwnedFd>,
    paths: &[PathBuf],
    read_only: bool,
) -> Result<(), FileFault> {
    // Before this process leaves the mounts where it can see processes.
    let processes = open("/proc")?;
    if let Some(namespace) = namespace {
        setns(namespace, CloneFlags::CLONE_NEWNS)
            .map_err(|errno| FileFault::Errno(errno as i32, None))?;
    }
    let mut done: Vec<OwnedFd> = Vec::new();
    for path in paths {
        let set = mount_at(root, path).and_then(|mount| {
            sys::set_mount_read_only(mount.as_fd(), read_only)
                .map_err(|error| fault(&error, &processes, &mount, path))?;
            done.push(mount);
            Ok(())
        });
        if let Err(fault) = set {
            // As they were, so none of them has a writer that could be in the way.
            for mount in &done {
                let _ = sys::set_mount_read_only(mount.as_fd(), !read_only);
            }
            return Err(fault);
        }
    }
    Ok(())
}

fn open(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn mount_at(root: &OwnedFd, path: &Path) -> Result<OwnedFd, FileFault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
        .map_err(|errno| FileFault::Errno(errno.raw_os_error(), Some(path.to_owned())))
}

fn fault(error: &std::io::Error, processes: &OwnedFd, mount: &OwnedFd, path: &Path) -> FileFault {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    if errno == libc::EBUSY {
        return FileFault::Busy(writers(processes, mount.as_fd()));
    }
    FileFault::Errno(errno, Some(path.to_owned()))
}

/// Who has files of `mount` open for writing, as far as it can be seen.
fn writers(processes: &OwnedFd, mount: BorrowedFd<'_>) -> Vec<Writer> {
    let found = rustix::fs::statx(mount, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    let Ok(id) = found.map(|found| found.stx_mnt_id) else {
        return Vec::new();
    };
    // The sandbox's own /proc is in place of the one that shows this process: by descriptor there is a way to it.
    if rustix::process::fchdir(processes).is_err() {
        return Vec::new();
    }
    let mut writers = Vec::new();
    for process in list(Path::new(".")).filter(|path| is_number(path)) {
        for descriptor in list(&process.join("fdinfo")) {
            let Some(name) = descriptor.file_name() else {
                continue;
            };
            let info = fs::read_to_string(&descriptor).unwrap_or_default();
            if writes_to(&info, id)
                && let Ok(path) = fs::read_link(process.join("fd").join(name))
            {
                let process = fs::read_to_string(process.join("comm")).unwrap_or_default();
                let process = process.trim_end().to_owned();
                writers.push(Writer { process, path });
                if writers.len() == WRITERS_MAX {
                    return writers;
                }
            }
        }
    }
    writers
}

fn list(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

fn is_number(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a file of `/proc/PID/fdinfo` tells of one on the mount `id` that is open for writing.
fn writes_to(info: &str, id: u64) -> bool {
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim())
    };
    let flags = field("flags:").and_then(|text| i32::from_str_radix(text, 8).ok());
    field("mnt_id:").and_then(|text| text.parse().ok()) == Some(id)
        && flags.is_some_and(|flags| {
            flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0
        })
}

#[cfg(test)]
mod tests {
    use super::writes_to;

    #[test]
    fn a_writer_is_told_by_mount_and_flags() {
        let info = |flags| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t77\nino:\t5\n");
        assert!(writes_to(&info("0100001"), 77) && writes_to(&info("02102002"), 77));
        assert!(!writes_to(&info("0100000"), 77) && !writes_to(&info("0100001"), 7));
        assert!(!writes_to(&info("012000001"), 77), "a path is no writer");
        assert!(!writes_to("", 77));
    }
}
