//! Faults of a sandbox's disk, for as long as a test wants them: full, smaller, read-only.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use super::{Sandbox, answered, core::Core, parse_limit};
use crate::{
    error::{Error, Kind},
    step::Step,
    supervisor::{FileJob, Request, Room},
    units::Bytes,
};

/// Faults of the disk: of what the sandbox writes outside of its mounts, and which [`disk`](crate::SandboxBuilder::disk)
/// bounds: also in `/dev`. Mounts of the host, and other filesystems in memory (`/dev/shm`), are as they were; so are devices.
impl Sandbox {
    /// Leaves no room on the disk from now on: what would write more fails with ENOSPC, as on a disk that somebody else
    /// has filled. It takes no memory, and no moment in which there is some room.
    ///
    /// Files that are there can still be read, overwritten in place and removed; what the sandbox itself removes gives
    /// it that much room again. Names without content can still be made.
    ///
    /// ```
    /// let sandbox = orbit::Sandbox::builder().cmd(["sleep", "60"]).start()?;
    /// sandbox.write_file("/tmp/before", "there was room")?;
    /// sandbox.fill_disk()?;
    /// let full = sandbox.exec(["cp", "/etc/passwd", "/tmp/more"]).run()?;
    /// assert!(full.stderr_text().contains("No space left on device"));
    /// sandbox.free_disk()?;
    /// assert!(sandbox.exec(["cp", "/etc/passwd", "/tmp/more"]).run()?.success());
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where the sandbox's writable layer is gone.
    pub fn fill_disk(&self) -> Result<(), Error> {
        Resize::fill().carry_out(self.scratch.as_ref())
    }

    /// Gives the disk the room again that it was asked with, after [`fill_disk`](Self::fill_disk) or
    /// [`set_disk`](Self::set_disk).
    ///
    /// # Errors
    /// As [`fill_disk`](Self::fill_disk), and where more than that is written by now.
    pub fn free_disk(&self) -> Result<(), Error> {
        match self.size_asked() {
            Some(size) => Resize::free(size).carry_out(self.scratch.as_ref()),
            None => Ok(()),
        }
    }

    /// How much room it was asked with.
    pub(super) fn size_asked(&self) -> Option<Bytes> {
        self.core.plan.steps.iter().find_map(|step| match step {
            Step::Scratch { size, .. } => Some(*size),
            _ => None,
        })
    }

    /// Bounds what the sandbox writes from now on: `256M`, all in all, what is written already included.
    ///
    /// # Errors
    /// Where the amount is none, or more than that is written already.
    pub fn set_disk(&self, limit: &str) -> Result<(), Error> {
        Resize::to(limit)?.carry_out(self.scratch.as_ref())
    }

    /// Makes the disk read-only, as a kernel does that found an error on it, or writable again. What would change
    /// something there fails with EROFS, also [`write_file`](Self::write_file) and [`copy_in`](Self::copy_in).
    ///
    /// A root that was asked to be [`read_only`](crate::SandboxBuilder::read_only) stays so.
    ///
    /// ```
    /// let sandbox = orbit::Sandbox::builder().cmd(["sleep", "60"]).start()?;
    /// sandbox.set_read_only(true)?;
    /// let refused = sandbox.exec(["touch", "/tmp/file"]).run()?;
    /// assert!(refused.stderr_text().contains("Read-only file system"));
    /// sandbox.set_read_only(false)?;
    /// assert!(sandbox.exec(["touch", "/tmp/file"]).run()?.success());
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where a program has a file there open for writing: the kernel then refuses, as it does `mount -o remount,ro`.
    /// The message names those files; nothing is read-only then. Also where the sandbox has ended, or is frozen and was
    /// never asked anything of the kind before.
    pub fn set_read_only(&self, read_only: bool) -> Result<(), Error> {
        self.core.set_read_only(read_only)
    }
}

impl Core {
    pub(super) fn set_read_only(&self, read_only: bool) -> Result<(), Error> {
        let at = writable_mounts(&self.plan.steps);
        let job = FileJob::ReadOnly { at, read_only };
        let doing = if read_only {
            "make read-only"
        } else {
            "make writable"
        };
        self.change_mounts(doing, job)
    }
}

/// A change of the disk's size.
pub(super) struct Resize {
    room: Room,
    doing: &'static str,
    /// What EINVAL probably means.
    hint: String,
}

impl Resize {
    pub(super) fn fill() -> Self {
        Self {
            room: Room::None,
            doing: "fill the sandbox's disk",
            hint: String::new(),
        }
    }

    pub(super) fn free(size: Bytes) -> Self {
        Self::bytes(size, "free the sandbox's disk")
    }

    pub(super) fn to(limit: &str) -> Result<Self, Error> {
        let size: Bytes = parse_limit("disk", limit)?;
        if size.as_u64() == 0 {
            let why = "expected more than nothing; to leave no room, call `fill_disk`";
            return Err(Error::spec(vec![crate::SpecFault::new("disk", limit, why)]));
        }
        Ok(Self::bytes(size, "set the size of the sandbox's disk"))
    }

    fn bytes(size: Bytes, doing: &'static str) -> Self {
        Self {
            room: Room::Bytes(size),
            doing,
            hint: format!(" to {size}: is more than that written already?"),
        }
    }

    /// `scratch` is the filesystem of the sandbox's writable layers.
    pub(super) fn carry_out(self, scratch: Option<&OwnedFd>) -> Result<(), Error> {
        let doing = self.doing;
        let Some(scratch) = scratch else {
            let doing = doing.to_owned();
            return Err(Kind::Ended { doing }.into());
        };
        let reply = Core::supervisor()?.ask(&Request::Resize(self.room), &[scratch.as_fd()])?;
        let resized: Result<(), i32> = answered(&reply)?;
        resized.map_err(|errno| {
            let hint = if errno == libc::EINVAL {
                &*self.hint
            } else {
                ""
            };
            let why = std::io::Error::from_raw_os_error(errno);
            Error::io(format!("cannot {doing}{hint}"), why)
        })
    }
}

/// Where the sandbox's writable layers are mounted, as far as nothing that was mounted later covers them.
fn writable_mounts(steps: &[Step]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for step in steps {
        let (at, is_layer) = match step {
            Step::OverlayRoot { .. } | Step::HostRoot { .. } | Step::EmptyRoot => {
                (Path::new("/"), true)
            }
            Step::Overlay { at, .. } | Step::OverlaySealed { at, .. } | Step::Fresh { at, .. } => {
                (&**at, true)
            }
            // A directory beside the layers, on their disk. What is mounted in it stays as it is.
            Step::Dev { .. } => (Path::new("/dev"), true),
            Step::Bind { at, .. } | Step::Shared { at, .. } | Step::Tmpfs { at, .. } => {
                (&**at, false)
            }
            Step::ReadOnlyRoot => {
                found.retain(|it| it != Path::new("/"));
                continue;
            }
            _ => continue,
        };
        found.retain(|it| !it.starts_with(at));
        if is_layer {
            found.push(at.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_covers_a_layer_is_left_alone() {
        let overlay = |at: &str| Step::Overlay {
            source: "/from".into(),
            at: at.into(),
        };
        let bind = |at: &str| Step::Bind {
            source: "/from".into(),
            at: at.into(),
            read_only: false,
        };
        let steps = [
            Step::EmptyRoot,
            overlay("/home"),
            overlay("/home/me/work"),
            overlay("/srv"),
            bind("/home/me"),
            bind("/srv"),
            overlay("/srv/inner"),
            Step::Dev {
                shm: Bytes::mib(64),
                console: false,
            },
        ];
        let found = writable_mounts(&steps);
        let expected = ["/", "/home", "/srv/inner", "/dev"];
        assert_eq!(found, expected.map(PathBuf::from));
        let last = [&steps[..], &[Step::ReadOnlyRoot]].concat();
        assert_eq!(writable_mounts(&last), found[1..]);
    }
}
