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
    let mut attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    if let Some(userns) = idmap {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = u64::from(userns.as_raw_fd().cast_unsigned());
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and `attr` a whole `mount_attr` of the size given; the kernel only
    // reads both.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of_val(&attr),
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
