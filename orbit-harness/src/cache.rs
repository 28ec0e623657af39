//! The cache: where it is, and what to do where it takes no writes. What lies in it is others' business.

use std::{io, path::PathBuf};

/// Where this user's images and names are kept: `$ORBIT_CACHE_DIR`, else `$XDG_CACHE_HOME/orbit`, else
/// `~/.cache/orbit`. A relative path counts for nothing: it would be another cache in each directory.
pub(crate) fn directory() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    set("ORBIT_CACHE_DIR")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("orbit")))
        .or_else(|| Some(set("HOME")?.join(".cache/orbit")))
}

/// What to do, to follow `error`, of a file of a cache: nothing else is written to that might not take it.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "; set ORBIT_CACHE_DIR to a directory that can be written to"
        }
        io::ErrorKind::PermissionDenied => {
            "; is it another user's, as after `sudo`? `chown` gives it back"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; `cargo orbit gc` removes what nobody uses, and ORBIT_CACHE_DIR names another place"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_done_is_said() {
        let told = |errno| advice(&io::Error::from_raw_os_error(errno));
        assert!(told(libc::EROFS).contains("ORBIT_CACHE_DIR"));
        assert!(told(libc::EACCES).contains("chown"));
        for full in [libc::ENOSPC, libc::EDQUOT] {
            assert!(told(full).contains("cargo orbit gc"));
        }
        assert_eq!(told(libc::EIO), "");
    }
}
