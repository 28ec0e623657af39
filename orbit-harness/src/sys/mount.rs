//! `mount_setattr`: the one mount call that `rustix` does not wrap.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// The id map of a user namespace, laid over a mount.
pub(crate) type IdMapped<'a> = Option<BorrowedFd<'a>>;

/// Changes attributes of the mount that `tree` stands for; of all below it too where `recursive`. The mount
/// is made private, so that nothing that happens to it happens to the mount it is a copy of.
///
/// C: `mount_setattr(tree, "", AT_EMPTY_PATH [| AT_RECURSIVE], &attr, sizeof(attr))`, with `MOUNT_ATTR_…`
/// flags in `set`, and `MOUNT_ATTR_IDMAP` where `idmap` names a user namespace.
/// Source: mount_setattr(2), Linux 5.12.
///
/// # Errors
/// EINVAL where a filesystem below takes no id map; EPERM without privilege over it or over a locked flag.
pub(crate) fn set_mount_attributes(
    tree: BorrowedFd<'_>,
    set: u64,
    idmap: IdMapped<'_>,
    recursive: bool,
) -> io::Result<()> {
    let mut attr = attributes(set, 0);
    if let Some(userns) = idmap {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = u64::from(userns.as_raw_fd().cast_unsigned());
    }
    mount_setattr(tree, &attr, recursive)
}

/// Makes the mount that `mount` stands for, and none below it, read-only or writable. It must be in the caller's mount
/// namespace; it is made private, as above.
///
/// # Errors
/// EBUSY where a file on it is open for writing.
pub(crate) fn set_mount_read_only(mount: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let flag = libc::MOUNT_ATTR_RDONLY;
    let attr = if read_only {
        attributes(flag, 0)
    } else {
        attributes(0, flag)
    };
    mount_setattr(mount, &attr, false)
}

fn attributes(set: u64, clear: u64) -> libc::mount_attr {
    libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    }
}

fn mount_setattr(tree: BorrowedFd<'_>, attr: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and `attr` a whole `mount_attr` of the size given; the kernel only
    // reads both.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const *attr,
            size_of_val(attr),
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
