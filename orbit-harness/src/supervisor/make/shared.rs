//! Directories of the host under layers that take no writes, which all sandboxes share.
//!
//! Of a layer of one's own nothing would be used: what lies there is not the caller's to write to. It takes a filesystem of
//! its own all the same, with a start and an end, and each file is looked up anew in it. A read-only mount of the host's
//! directory would have neither; but it says EROFS where the host says EACCES, and the sockets in it can be reached.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{FsPickFlags, MountFlags, UnmountFlags},
};

use super::{
    Done, Maker,
    layers::{LAYER_MODE, stand_for},
    syscalls::{PATH, c_string, clone_tree, fd_path, move_onto, open_directory},
};
use crate::{
    step::Step,
    supervisor::home::{SHARED, STAGE, below_host},
};

/// How long one is given to new sandboxes: what changes on the host below a mounted overlay is seen in part or not at all.
///
/// Source: Linux, Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems".
const LIFETIME: Duration = Duration::from_secs(1);

/// Which of them the supervisor has mounted, for the inits to come, and when.
#[derive(Default)]
pub(in crate::supervisor) struct SharedLayers(BTreeMap<PathBuf, Instant>);

/// What the supervisor has mounted for a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::supervisor) enum Mounted {
    Nothing,
    /// What was not there before.
    More,
    /// Layers in place of others, which what was made ahead has.
    Others,
}

impl SharedLayers {
    /// Mounts what these steps need of them, and is not there yet or has been for too long. Sandboxes that have one keep it.
    /// What has changed by that for what was made ahead.
    ///
    /// # Errors
    /// The step that it failed for, and the kernel's answer.
    pub(in crate::supervisor) fn make(
        &mut self,
        steps: &[Step],
    ) -> Result<Mounted, (usize, Errno)> {
        let mut mounted = Mounted::Nothing;
        for (number, step) in steps.iter().enumerate() {
            let Step::Shared { at, owner } = step else {
                continue;
            };
            let fail = |errno| (number, errno);
            match self.0.get(at) {
                Some(since) if since.elapsed() < LIFETIME => continue,
                // In this mount namespace: inits on their way have theirs. The directory stays, or those would lose it.
                Some(_) => {
                    rustix::mount::unmount(place(at), UnmountFlags::DETACH).map_err(fail)?;
                    mounted = Mounted::Others;
                }
                None => mounted = mounted.max(Mounted::More),
            }
            self.0.remove(at);
            mount_shared(at, *owner).map_err(fail)?;
            self.0.insert(at.clone(), Instant::now());
        }
        Ok(mounted)
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
    match rustix::fs::mkdir(place(at), Mode::from_raw_mode(LAYER_MODE)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("orbit", STAGE, "tmpfs", flags, c"size=64k,mode=700")?;
    let made = mount_over(at, owner);
    // The overlay keeps it; its name is for the scratch of inits.
    let gone = rustix::mount::unmount(STAGE, UnmountFlags::DETACH);
    let made = made.and(gone);
    if made.is_err() {
        // There is nothing to take off where the overlay is what failed.
        let _ = rustix::mount::unmount(place(at), UnmountFlags::DETACH);
    }
    made
}

/// An overlay over the host's directory `at`, whose layer is in the stage, and takes nothing in the end.
fn mount_over(at: &Path, owner: u32) -> rustix::io::Result<()> {
    let flags = PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let source = rustix::fs::open(below_host(at), flags, Mode::empty())?;
    let stage = open_directory(STAGE)?;
    let upper = format!("{STAGE}/upper");
    rustix::fs::mkdir(&upper, Mode::from_raw_mode(LAYER_MODE))?;
    rustix::fs::mkdirat(&stage, "work", Mode::from_raw_mode(0o700))?;
    stand_for(&upper, &source, owner)?;
    // By its descriptor: some may be entered by a group of the caller's, of which this process is in none.
    let options = c_string(format!(
        "lowerdir={},upperdir={upper},workdir={STAGE}/work,userxattr",
        fd_path(&source)
    ))?;
    let flags = MountFlags::NODEV;
    rustix::mount::mount("orbit", place(at), "overlay", flags, options.as_c_str())?;
    // The filesystem, and not a mount of it: who may write hears EROFS when the layer is to take it, and who may not hears
    // what the host says. Source: Linux, fs/overlayfs/copy_up.c, `ovl_copy_up_flags`; fs/namespace.c, `mnt_want_write`.
    let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
    let context = rustix::mount::fspick(&stage, "", flags)?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_reconfigure(&context)
}
