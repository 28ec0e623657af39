//! The mount and path calls that the steps are made of, in the form they need.

use std::{
    ffi::CString,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags},
};

use crate::units::Bytes;

pub(super) const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// What is mounted for its content alone.
pub(super) const INERT: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// The same for `detached`, and without writes.
pub(super) const INERT_READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_RDONLY);

pub(super) fn chown(path: &str, uid: u32, gid: u32) -> rustix::io::Result<()> {
    rustix::fs::chown(
        path,
        Some(rustix::fs::Uid::from_raw(uid)),
        Some(rustix::fs::Gid::from_raw(gid)),
    )
}

pub(super) fn open_directory(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, PATH | OFlags::DIRECTORY, Mode::empty())
}

pub(super) fn open_in(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, PATH, Mode::empty(), resolve)
}

pub(super) fn open_if_there(path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::fs::open(path, PATH, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn is_directory(fd: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

/// A path that leads to what `fd` stands for, whatever its name is by now. For a directory, see [`super`].
pub(super) fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

pub(super) fn c_string(text: String) -> rustix::io::Result<CString> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

/// Has `act` do something with a path of `directory`, which becomes the working directory.
pub(super) fn with_path<T>(
    directory: &OwnedFd,
    act: impl FnOnce(&str) -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    match rustix::process::fchdir(directory) {
        Ok(()) => act("."),
        // Who owns it has no id here, and nobody else may enter it: as some directories of the host's root, for an
        // ordinary user. It can be covered all the same.
        Err(Errno::ACCESS) => act(&fd_path(directory)),
        Err(errno) => Err(errno),
    }
}

/// Mounts on the directory `target`.
pub(super) fn mount(
    source: Option<&str>,
    target: &OwnedFd,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> rustix::io::Result<()> {
    let options = c_string(options.to_owned())?;
    with_path(target, |path| {
        let source = source.unwrap_or("none");
        rustix::mount::mount(source, path, kind, flags, options.as_c_str())
    })
}

pub(super) fn tmpfs_options(size: Bytes, mode: u32) -> String {
    format!("size={},mode={mode:o}", size.as_u64())
}

pub(super) fn clone_tree(source: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(source, "", flags)
}

/// A filesystem that is mounted nowhere yet.
pub(super) fn detached(kind: &str, attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

pub(super) fn move_onto(tree: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}
