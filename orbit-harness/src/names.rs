//! Names that no other running sandbox of this user has.
//!
//! A claim is a lock on one byte of a file, at an offset that the name decides. The kernel gives it back when
//! the claimant ends, however it ends, so there is nothing to clean up and nobody to ask. Two names that fall
//! on the same byte cost one of them a suffix that it need not have had.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::Path,
};

use nix::fcntl::{FcntlArg, fcntl};

/// Keeps a name taken, as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    _file: File,
}

/// Claims `name`, or else the first of `name1`, `name2`, … that is free, in the file of claims in `directory`.
///
/// # Errors
/// Where the file cannot be made or locked.
pub(crate) fn claim(directory: &Path, name: &str) -> io::Result<(String, Claim)> {
    fs::create_dir_all(directory)?;
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join("names"))?;
    let mut number = 0u32;
    loop {
        let candidate = match number {
            0 => name.to_owned(),
            suffix => format!("{name}{suffix}"),
        };
        if lock_byte(&file, offset(&candidate))? {
            return Ok((candidate, Claim { _file: file }));
        }
        number += 1;
    }
}

fn offset(name: &str) -> i64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    // Offsets are positive, and the byte itself must lie below the largest.
    i64::try_from(hasher.finish() >> 2).unwrap_or(0)
}

/// Locks one byte for this open file. `false`: another has it.
///
/// C: `fcntl(fd, F_OFD_SETLK, &lock)`. Source: fcntl_locking(2), "Open file description locks".
pub(crate) fn lock_byte(file: &File, offset: i64) -> io::Result<bool> {
    match set_lock(file, offset, libc::F_WRLCK) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Undoes [`lock_byte`].
pub(crate) fn unlock_byte(file: &File, offset: i64) -> io::Result<()> {
    Ok(set_lock(file, offset, libc::F_UNLCK)?)
}

fn set_lock(file: &File, offset: i64, kind: libc::c_int) -> nix::Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "constants below 5")]
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_gets_a_suffix_until_it_is_free_again() {
        let directory = tempfile::tempdir().unwrap();
        let claim = |name| claim(directory.path(), name).unwrap();
        let (first, held) = claim("web");
        let (second, _held_too) = claim("web");
        let (other, _held_as_well) = claim("db");
        assert_eq!([first, second, other], ["web", "web1", "db"]);
        drop(held);
        assert_eq!(claim("web").0, "web");
    }
}
