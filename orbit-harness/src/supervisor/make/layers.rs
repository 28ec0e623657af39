//! The root, and every writable layer: directories of one tmpfs, under overlays.

use std::{
    ffi::CStr,
    io::Write as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags},
};

use super::{
    Done, Maker,
    syscalls::{c_string, chown, fd_path, open_directory, open_in, tmpfs_options, with_path},
};
use crate::{
    step::{EtcFile, Lower},
    supervisor::{
        home::{PLAIN, STAGE},
        protocol::Cause,
    },
    units::Bytes,
};

/// What an id that has no counterpart in this user namespace shows as. Source: user_namespaces(7).
const OVERFLOW_ID: u32 = 65534;

/// What marks a directory of a layer that hides all below it, and the device whose file hides what has its name.
///
/// Source: Linux, Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories", `userxattr`.
const OPAQUE: &CStr = c"user.overlay.opaque";
const WHITEOUT: u64 = 0;

/// Of a fresh layer's directory, as most directories have it.
pub(super) const LAYER_MODE: u32 = 0o755;

impl Maker {
    pub(super) fn overlay_root(&mut self, lower: &Lower, etc: &[EtcFile]) -> Done {
        let target = format!("{STAGE}/root");
        let (directory, lowers) = match lower {
            Lower::Directory(path) => (self.open_host(path)?, vec!["."]),
            Lower::Layers { dir, names, .. } => (
                self.open_host(dir)?,
                names.iter().rev().map(String::as_str).collect(),
            ),
        };
        let base = match lower {
            Lower::Layers {
                base: Some(base), ..
            } => Some(self.open_host(base)?),
            _ => None,
        };
        let below = base.as_ref().map(fd_path);
        let lowers: Vec<&str> = lowers.into_iter().chain(below.as_deref()).collect();
        let upper = self.new_layer()?;
        if let Lower::Layers { base: None, .. } = lower
            && etc.is_empty()
        {
            // Over the host's files: the root is the system's, not an image's.
            self.give_to_system(&upper)?;
        }
        let plain = match lower {
            Lower::Layers {
                has_plain_etc: Some(known),
                ..
            } => *known,
            _ => etc.is_empty() || has_plain_etc(&directory, base.as_ref(), lower)?,
        };
        if plain && !etc.is_empty() {
            write_etc(&upper, etc)?;
        }
        rustix::process::fchdir(&directory)?;
        self.mount_overlay(&lowers, Path::new(&target))?;
        rustix::process::chdir("/")?;
        let root = open_directory(&target)?;
        if !plain && !etc.is_empty() {
            // Some image's `/etc` is a link: the files go where it leads, inside.
            write_etc_inside(&root, etc)?;
        }
        self.root = Some(root);
        Ok(())
    }

    /// The host's root filesystem under a layer which hides what is not to be seen of it: unlike a mount over it, that can
    /// be taken off by nobody.
    pub(super) fn host_root(&mut self, own: &[(PathBuf, u32)], hidden: &[PathBuf]) -> Done {
        let upper = self.new_layer()?;
        self.give_to_system(&upper)?;
        let layer = open_directory(&upper)?;
        let inside = |path: &Path| path.strip_prefix("/").unwrap_or(path).to_owned();
        // Each directory is made with its very mode.
        let mask = rustix::process::umask(Mode::empty());
        for (path, mode) in own {
            let (name, mode) = (inside(path), Mode::from_raw_mode(*mode));
            rustix::fs::mkdirat(&layer, &name, mode)?;
            let path = format!("{upper}/{}", name.display());
            self.give_to_system(&path)?;
            rustix::fs::setxattr(&path, OPAQUE, b"y", XattrFlags::empty())?;
        }
        rustix::process::umask(mask);
        for path in hidden {
            let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
            rustix::fs::mknodat(&layer, inside(path), kind, mode, WHITEOUT)?;
        }
        let target = format!("{STAGE}/root");
        self.mount_overlay(&[PLAIN], Path::new(&target))?;
        self.root = Some(open_directory(&target)?);
        Ok(())
    }

    pub(super) fn empty_root(&mut self) -> Done {
        let target = format!("{STAGE}/root");
        self.give_to_system(&target)?;
        rustix::mount::mount_bind(&target, &target)?;
        self.root = Some(open_directory(&target)?);
        Ok(())
    }

    /// A fresh writable layer: its directory.
    pub(super) fn new_layer(&mut self) -> rustix::io::Result<String> {
        self.layers += 1;
        let upper = format!("{STAGE}/upper{}", self.layers);
        rustix::fs::mkdir(&upper, Mode::from_raw_mode(LAYER_MODE))?;
        rustix::fs::mkdir(
            format!("{STAGE}/work{}", self.layers),
            Mode::from_raw_mode(0o700),
        )?;
        Ok(upper)
    }

    /// An overlay at `target` with the newest layer over `lower`, topmost first. Names are relative to the
    /// working directory.
    fn mount_overlay(&self, lower: &[&str], target: &Path) -> rustix::io::Result<()> {
        /// What mount(2) takes of options is one page, of at least this size.
        const PAGE: usize = 4096;

        let number = self.layers;
        let (upper, work) = (
            format!("{STAGE}/upper{number}"),
            format!("{STAGE}/work{number}"),
        );
        let lowers = lower.join(":");
        let options = format!("lowerdir={lowers},upperdir={upper},workdir={work},userxattr");
        if options.len() < PAGE {
            let options = c_string(options)?;
            return rustix::mount::mount(
                "orbit",
                target,
                "overlay",
                MountFlags::NODEV,
                options.as_c_str(),
            );
        }
        // More than a hundred layers: each is said on its own (Linux 6.7; before, EINVAL).
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for layer in lower {
            rustix::mount::fsconfig_set_string(&context, "lowerdir+", *layer)?;
        }
        rustix::mount::fsconfig_set_string(&context, "upperdir", &upper)?;
        rustix::mount::fsconfig_set_string(&context, "workdir", &work)?;
        rustix::mount::fsconfig_set_flag(&context, "userxattr")?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
        let tree = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", rustix::fs::CWD, target, flags)
    }

    pub(super) fn fresh(&mut self, at: &Path, mode: u32) -> Done {
        let target = self.directory(at, 0o755)?;
        let source = self.new_layer()?;
        rustix::fs::chmod(&source, Mode::from_raw_mode(mode))?;
        self.give_to_system(&source)?;
        let bind = |path: &str| rustix::mount::mount_bind(&source, path);
        Ok(with_path(&target, bind)?)
    }

    /// What sealed layers have at `at`, and below that a directory of the host.
    pub(super) fn overlay_sealed(
        &mut self,
        layers: &[PathBuf],
        source: Option<&Path>,
        at: &Path,
    ) -> Done {
        let mut lowers = Vec::new();
        for layer in layers {
            let layer = self.open_host(layer)?;
            let inside = at.strip_prefix("/").unwrap_or(at);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(&layer, inside, flags, Mode::empty(), resolve) {
                Ok(found) => lowers.push(found),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let sealed = lowers.len();
        if let Some(source) = source {
            lowers.push(self.open_host(source)?);
        }
        let upper = self.layers;
        match self.overlay_of(&lowers, at) {
            // The store lies in the very directory that the layers belong over: no layer of an overlay may be in
            // another. So they are copied out of there.
            #[cfg(feature = "images")]
            Err(Cause::Errno(libc::ELOOP)) => {
                for (number, lower) in lowers.iter_mut().take(sealed).enumerate() {
                    *lower = copied(lower, &format!("{STAGE}/sealed{upper}-{number}"))?;
                }
                let target = self.directory(at, 0o755)?;
                self.mount_over(&lowers, &target)
            }
            other => {
                let _ = (sealed, upper);
                other
            }
        }
    }

    pub(super) fn overlay(&mut self, source: &Path, at: &Path) -> Done {
        let source = self.open_host(source)?;
        self.overlay_of(&[source], at)
    }

    fn overlay_of(&mut self, lowers: &[OwnedFd], at: &Path) -> Done {
        let source = lowers.first().ok_or(Cause::Errno(libc::ENOENT))?;
        let target = self.directory(at, 0o755)?;
        let upper = self.new_layer()?;
        stand_for(&upper, source, self.system)?;
        self.mount_over(lowers, &target)
    }

    fn mount_over(&self, lowers: &[OwnedFd], target: &OwnedFd) -> Done {
        let paths: Vec<String> = lowers.iter().map(fd_path).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        Ok(self.mount_overlay(&paths, Path::new(&fd_path(target)))?)
    }
}

/// Gives the fresh layer `upper` the mode and the owner of the directory that it covers.
pub(super) fn stand_for(upper: &str, source: &OwnedFd, system: u32) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(source)?;
    if stat.st_mode & 0o7777 != LAYER_MODE {
        rustix::fs::chmod(upper, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    }
    // An owner without an id here shows as the overflow id; it is the host's root, as a rule.
    let owner = |id| if id == OVERFLOW_ID { system } else { id };
    let (uid, gid) = (owner(stat.st_uid), owner(stat.st_gid));
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    chown(upper, uid, gid)
}

/// A copy of `layer` at `path`, in the scratch.
#[cfg(feature = "images")]
fn copied(layer: &OwnedFd, path: &str) -> Result<OwnedFd, Cause> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::openat(layer, c".", flags, Mode::empty())?;
    let target = rustix::fs::open(path, flags, Mode::empty())?;
    crate::layer::copy(source, target).map_err(|fault| Cause::Errno(fault.errno))?;
    Ok(open_directory(path)?)
}

/// The filesystem that holds all a sandbox writes, and in it the place of the root.
pub(super) fn scratch(size: Bytes) -> rustix::io::Result<()> {
    let options = c_string(tmpfs_options(size, 0o755))?;
    rustix::mount::mount(
        "orbit",
        STAGE,
        "tmpfs",
        MountFlags::NODEV,
        options.as_c_str(),
    )?;
    rustix::fs::mkdir(format!("{STAGE}/root"), Mode::from_raw_mode(0o755))
}

/// Whether the topmost `/etc` of what lies below is a directory, or there is none.
fn has_plain_etc(
    directory: &OwnedFd,
    base: Option<&OwnedFd>,
    lower: &Lower,
) -> rustix::io::Result<bool> {
    let candidates = match lower {
        Lower::Directory(_) => vec!["etc".to_owned()],
        Lower::Layers { names, .. } => names
            .iter()
            .rev()
            .map(|name| format!("{name}/etc"))
            .collect(),
    };
    let candidates = candidates.iter().map(|path| (directory, &**path));
    for (directory, path) in candidates.chain(base.map(|base| (base, "etc"))) {
        match rustix::fs::statat(directory, path, AtFlags::SYMLINK_NOFOLLOW) {
            // A whiteout says that there is none.
            Ok(stat) => {
                let kind = FileType::from_raw_mode(stat.st_mode);
                let hides = kind == FileType::CharacterDevice && stat.st_rdev == WHITEOUT;
                return Ok(hides || kind == FileType::Directory);
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Puts files into the `/etc` of a writable layer that is not mounted yet.
fn write_etc(upper: &str, files: &[EtcFile]) -> Done {
    let path = format!("{upper}/etc");
    rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
    write_files(&open_directory(&path)?, files)
}

/// Puts files into the `/etc` of a mounted root, in place of what is there.
fn write_etc_inside(root: &OwnedFd, files: &[EtcFile]) -> Done {
    let directory = open_in(root, Path::new("/etc"))?;
    for file in files {
        match rustix::fs::unlinkat(&directory, &file.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    write_files(&directory, files)
}

fn write_files(directory: &OwnedFd, files: &[EtcFile]) -> Done {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for file in files {
        let opened = rustix::fs::openat(directory, &file.name, flags, Mode::from_raw_mode(0o644))?;
        std::fs::File::from(opened)
            .write_all(file.content.as_bytes())
            .map_err(|error| Cause::Errno(error.raw_os_error().unwrap_or(0)))?;
    }
    Ok(())
}
