//! Directories of the host under layers that take no writes, which all sandboxes share.
//!
//! Of a layer of one's own nothing would be used: what lies there is not the caller's to write to. It takes a filesystem of
//! its own all the same, with a start and an end, and each file is looked up anew in it. A read-only mount of the host's
//! directory would have neither; but it says EROFS where the host says EACCES, and the sockets in it can be reached.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{FsPickFlags, MountFlags, UnmountFlags},
};

use super::{
    Done, Maker,
    layers::{LAYER_MODE, stand_for},
    syscalls::{PATH, clone_tree, move_onto, open_directory},
};
use crate::{
    step::Step,
    supervisor::home::{SHARED, STAGE, below_host},
};

/// Which of them the supervisor has mounted, for the inits to come.
#[derive(Default)]
pub(in crate::supervisor) struct SharedLayers(BTreeSet<PathBuf>);

impl SharedLayers {
    /// Mounts what these steps need of them, and is not there yet.
    ///
    /// # Errors
    /// The step that it failed for, and the kernel's answer.
    pub(in crate::supervisor) fn make(
        &mut self,
        steps: &[Step],
    ) -> Result<(), (usize, rustix::io::Errno)> {
        for (number, step) in steps.iter().enumerate() {
            if let Step::Shared { at, owner } = step
                && !self.0.contains(at)
            {
                mount_shared(at, *owner).map_err(|errno| (number, errno))?;
                self.0.insert(at.clone());
            }
        }
        Ok(())
    }
}

impl Maker {
    pub(super) fn shared(&self, at: &Path) -> Done {
        let tree = clone_tree(&open_directory(&place(at))?)?;
        Ok(move_onto(&tree, &self.directory(at, 0o755)?)?)
    }
}

/// Where the supervisor has the layer over the host's directory `at` of `/`.
fn place(at: &Path) -> String {
    format!("{SHARED}{}", at.display())
}

fn mount_shared(at: &Path, owner: u32) -> rustix::io::Result<()> {
    let place = place(at);
    rustix::fs::mkdir(&place, Mode::from_raw_mode(LAYER_MODE))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let made =
        rustix::mount::mount("orbit", STAGE, "tmpfs", flags, c"size=64k,mode=700").and_then(|()| {
            let made = mount_over(at, owner, &place);
            // The overlay keeps it; its name is for the scratch of inits.
            let gone = rustix::mount::unmount(STAGE, UnmountFlags::DETACH);
            made.and(gone)
        });
    if made.is_err() {
        // There is nothing to take off where the overlay is what failed.
        let _ = rustix::mount::unmount(&*place, UnmountFlags::DETACH);
        let _ = rustix::fs::rmdir(&place);
    }
    made
}

/// An overlay at `place` over the host's directory `at`, whose layer is in the stage, and takes nothing in the end.
fn mount_over(at: &Path, owner: u32, place: &str) -> rustix::io::Result<()> {
    let flags = PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let source = rustix::fs::open(below_host(at), flags, Mode::empty())?;
    let stage = open_directory(STAGE)?;
    let upper = format!("{STAGE}/upper");
    rustix::fs::mkdir(&upper, Mode::from_raw_mode(LAYER_MODE))?;
    rustix::fs::mkdirat(&stage, "work", Mode::from_raw_mode(0o700))?;
    stand_for(&upper, &source, owner)?;
    rustix::process::fchdir(&source)?;
    let options = c"lowerdir=.,upperdir=/stage/upper,workdir=/stage/work,userxattr";
    let mounted = rustix::mount::mount("orbit", place, "overlay", MountFlags::NODEV, options);
    rustix::process::chdir("/")?;
    mounted?;
    // The filesystem, and not a mount of it: who may write hears EROFS when the layer is to take it, and who may not hears
    // what the host says. Source: Linux, fs/overlayfs/copy_up.c, `ovl_copy_up_flags`; fs/namespace.c, `mnt_want_write`.
    let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
    let context = rustix::mount::fspick(&stage, "", flags)?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_reconfigure(&context)
}
