//! `/dev`: a few of the host's devices, and this sandbox's own terminals and shared memory.
//!
//! It is a directory beside the writable layers, in their filesystem: one of its own would take a thirtieth of a sandbox's
//! time to be made and to go, and what is written here counts as what is written elsewhere.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    mount::{MountFlags, OpenTreeFlags},
};

use super::{
    Done, Maker,
    syscalls::{INERT, PATH, c_string, fd_path, move_onto, tmpfs_options},
};
use crate::{
    step::DEVICES,
    supervisor::{
        home::{HOST, STAGE},
        protocol::Cause,
    },
    sys,
    units::Bytes,
};

/// A terminal of the sandbox.
pub(in crate::supervisor) struct TerminalPair {
    pub(in crate::supervisor) caller_side: OwnedFd,
    pub(in crate::supervisor) program_side: OwnedFd,
}

impl Maker {
    pub(super) fn dev(&mut self, shm: Bytes, console: bool) -> Done {
        let target = self.own_directory("dev")?;
        let own = format!("{STAGE}/dev");
        rustix::fs::mkdir(&own, Mode::from_raw_mode(0o755))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let dev = rustix::mount::open_tree(CWD, own, flags)?;
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        sys::set_mount_attributes(dev.as_fd(), attributes, None, false)
            .map_err(|error| Cause::Errno(error.raw_os_error().unwrap_or(0)))?;
        move_onto(&dev, &target)?;
        rustix::process::fchdir(&dev)?;
        for name in DEVICES {
            // One call, where to open it would need another to close it.
            rustix::fs::mknodat(
                &dev,
                name,
                FileType::RegularFile,
                Mode::from_raw_mode(0o666),
                0,
            )?;
            rustix::mount::mount_bind(format!("{HOST}/dev/{name}"), name)?;
        }
        for (name, link) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            rustix::fs::symlinkat(link, &dev, name)?;
        }
        for name in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))?;
        }
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount(
            "devpts",
            "pts",
            "devpts",
            flags,
            c"newinstance,ptmxmode=0666,mode=620",
        )?;
        let options = c_string(tmpfs_options(shm, 0o1777))?;
        rustix::mount::mount("shm", "shm", "tmpfs", INERT, options.as_c_str())?;
        rustix::mount::mount("mqueue", "mqueue", "mqueue", INERT, None)?;
        if console {
            self.terminal = Some(open_terminal(&dev)?);
        }
        self.null = Some(rustix::fs::openat(&dev, "null", PATH, Mode::empty())?);
        Ok(())
    }
}

/// A new terminal of the `devpts` in `dev`, whose name inside is right, also at `/dev/console`.
fn open_terminal(dev: &OwnedFd) -> rustix::io::Result<TerminalPair> {
    let pair = TerminalPair::open(dev)?;
    rustix::fs::openat(
        dev,
        "console",
        OFlags::CREATE | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )?;
    let console = format!("{}/console", fd_path(dev));
    rustix::mount::mount_bind(fd_path(&pair.program_side), console)?;
    Ok(pair)
}

impl TerminalPair {
    /// A new terminal of the `devpts` in `dev`: of a real one, whatever a program put in its place
    /// (CVE-2025-52565).
    pub(in crate::supervisor) fn open(dev: &OwnedFd) -> rustix::io::Result<Self> {
        /// Source: Linux, include/uapi/linux/magic.h.
        const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let pts = rustix::fs::openat(dev, "pts", PATH | OFlags::NOFOLLOW, Mode::empty())?;
        if rustix::fs::fstatfs(&pts)?.f_type != DEVPTS_SUPER_MAGIC {
            return Err(rustix::io::Errno::NODEV);
        }
        let caller_side =
            rustix::fs::openat(&pts, "ptmx", flags | OFlags::NOFOLLOW, Mode::empty())?;
        rustix::pty::unlockpt(&caller_side)?;
        let program_side = rustix::pty::ioctl_tiocgptpeer(
            &caller_side,
            rustix::pty::OpenptFlags::RDWR
                | rustix::pty::OpenptFlags::NOCTTY
                | rustix::pty::OpenptFlags::CLOEXEC,
        )?;
        Ok(Self {
            caller_side,
            program_side,
        })
    }
}
