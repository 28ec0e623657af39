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

/// What to do, to follow `error`, where a cache takes no writes: nothing else is written to that might not.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "; set ORBIT_CACHE_DIR to a directory that can be written to"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_mended_elsewhere_has_no_advice() {
        let told = |errno| advice(&io::Error::from_raw_os_error(errno));
        assert!(told(libc::EROFS).contains("ORBIT_CACHE_DIR"));
        assert_eq!(told(libc::ENOSPC), "");
    }
}
