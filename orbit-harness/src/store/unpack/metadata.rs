//! Owner, mode, extended attributes and times of what was unpacked, set through its descriptor.
//!
//! The order matters: a change of owner clears setuid bits and `security.capability`, so the owner comes first;
//! everything before changes the times, so they come last.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::{
    fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{
    OwnershipPolicy,
    error::{Reason, UnpackError, UnpackStep},
    member::Member,
};

/// What is set on an entry.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    mode: u32,
    owner: Option<(u32, u32)>,
    mtime: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Attributes that would change what overlayfs makes of the layer. The archive says so with whiteouts; Orbit alone
/// writes these.
const OVERLAY_XATTRS: &[u8] = b"user.overlay.";
/// Only the host's root may write these, and none of them means anything in a container.
const TRUSTED_XATTRS: &[u8] = b"trusted.";

impl Metadata {
    /// Takes the attributes out of `member`; counts those that are dropped on purpose.
    pub(super) fn take(
        member: &mut Member,
        policy: OwnershipPolicy,
        dropped: &mut u64,
    ) -> Result<Self, UnpackError> {
        let owner = match policy {
            OwnershipPolicy::Squash => None,
            OwnershipPolicy::Keep => Some((id(member.uid, member)?, id(member.gid, member)?)),
        };
        let mut xattrs = std::mem::take(&mut member.xattrs);
        let before = xattrs.len();
        xattrs.retain(|(name, _)| {
            !name.starts_with(OVERLAY_XATTRS)
                && !name.starts_with(TRUSTED_XATTRS)
                && !name.is_empty()
                && !name.contains(&0)
        });
        *dropped += (before - xattrs.len()) as u64;
        Ok(Self {
            mode: member.mode,
            owner,
            mtime: member.mtime,
            xattrs,
        })
    }

    /// What [`Self::set_mode_and_times`] needs.
    pub(super) fn without_xattrs(self) -> Self {
        Self {
            xattrs: Vec::new(),
            ..self
        }
    }

    /// Sets everything on an open file.
    pub(super) fn set_all(
        &self,
        fd: BorrowedFd<'_>,
        entry: &[u8],
        skipped: &mut u64,
    ) -> Result<(), UnpackError> {
        self.set_owner_and_xattrs(fd, entry, skipped)?;
        self.set_mode_and_times(fd, entry)
    }

    /// Of a directory, what its later content does not disturb.
    pub(super) fn set_owner_and_xattrs(
        &self,
        fd: BorrowedFd<'_>,
        entry: &[u8],
        skipped: &mut u64,
    ) -> Result<(), UnpackError> {
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|errno| owner_fault(entry, uid, gid, errno))?;
        }
        for (name, value) in &self.xattrs {
            match rustix::fs::fsetxattr(fd, &**name, value, XattrFlags::empty()) {
                Ok(()) => {}
                // The file system keeps none of this kind, or the kernel leaves them to the host's root
                // (security.*): what an image needs in a container works without.
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => *skipped += 1,
                Err(errno) => {
                    return Err(UnpackError::system(UnpackStep::SetXattr, entry, errno));
                }
            }
        }
        Ok(())
    }

    /// Of a directory, what is set when nothing more is put into it.
    pub(super) fn set_mode_and_times(
        &self,
        fd: BorrowedFd<'_>,
        entry: &[u8],
    ) -> Result<(), UnpackError> {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode))
            .map_err(|errno| UnpackError::system(UnpackStep::SetMode, entry, errno))?;
        rustix::fs::futimens(fd, &self.timestamps())
            .map_err(|errno| UnpackError::system(UnpackStep::SetTimes, entry, errno))
    }

    /// Sets what can be set without opening: of a link itself, or of a fifo, which opening would wait on.
    pub(super) fn set_by_name(
        &self,
        parent: impl AsFd,
        name: &[u8],
        is_symlink: bool,
        entry: &[u8],
    ) -> Result<(), UnpackError> {
        let parent = parent.as_fd();
        if let Some((uid, gid)) = self.owner {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| owner_fault(entry, uid, gid, errno))?;
        }
        if !is_symlink {
            // Follows links, but `name` was just made, in a directory nobody else writes, and is none.
            rustix::fs::chmodat(
                parent,
                name,
                Mode::from_raw_mode(self.mode),
                AtFlags::empty(),
            )
            .map_err(|errno| UnpackError::system(UnpackStep::SetMode, entry, errno))?;
        }
        rustix::fs::utimensat(parent, name, &self.timestamps(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| UnpackError::system(UnpackStep::SetTimes, entry, errno))
    }

    fn timestamps(&self) -> Timestamps {
        let (seconds, nanos) = self.mtime;
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

/// The largest number is the kernel's "leave it as it is".
fn id(number: u64, member: &Member) -> Result<u32, UnpackError> {
    match u32::try_from(number) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(UnpackError::new(
            UnpackStep::CheckEntry,
            &member.path,
            Reason::BadHeader,
        )),
    }
}

fn owner_fault(entry: &[u8], uid: u32, gid: u32, errno: Errno) -> UnpackError {
    match errno {
        Errno::INVAL => UnpackError {
            errno: errno.raw_os_error(),
            ..UnpackError::new(
                UnpackStep::SetOwner,
                entry,
                Reason::UnmappedOwner { uid, gid },
            )
        },
        errno => UnpackError::system(UnpackStep::SetOwner, entry, errno),
    }
}
