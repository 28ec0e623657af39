//! Names in archives, made safe to use below a directory.
//!
//! Pure: what a name means is decided here, before anything is opened. That no step of a path follows a symbolic
//! link is the business of `tree`.

use std::borrow::Borrow;

use super::error::Reason;

const MAX_PATH_BYTES: usize = 4096;
const MAX_PART_BYTES: usize = 255;
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Files with which AUFS kept its own books: they are no part of the image.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// A path below the layer's root: no empty part, no `.`, no `..`, nothing too long. Empty is the root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CleanPath(Vec<u8>);

/// Ordered as its bytes are.
impl Borrow<[u8]> for CleanPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl CleanPath {
    /// Leading slashes and `.` are dropped, as reference readers do; `..` is refused, also where it would stay
    /// inside: no image needs it.
    pub(super) fn new(raw: &[u8]) -> Result<Self, Reason> {
        if raw.contains(&0) {
            return Err(Reason::Nul);
        }
        let mut clean = Vec::with_capacity(raw.len().min(MAX_PATH_BYTES));
        for part in raw.split(|b| *b == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(Reason::DotDot),
                _ if part.len() > MAX_PART_BYTES => return Err(Reason::NameTooLong),
                _ => {}
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
            // The kernel's limit counts the NUL.
            if clean.len() >= MAX_PATH_BYTES {
                return Err(Reason::NameTooLong);
            }
        }
        Ok(Self(clean))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory and the name in it. The root has neither: its name is empty.
    pub(super) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }

    fn sibling(&self, name: &[u8]) -> Self {
        let (parent, _) = self.split();
        if parent.is_empty() {
            Self(name.to_vec())
        } else {
            Self([parent, b"/", name].concat())
        }
    }

    fn parent(&self) -> Self {
        Self(self.split().0.to_vec())
    }
}

/// What an entry's name asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A file, a directory, a link …
    Entry(CleanPath),
    /// What lower layers have at this path is hidden.
    Whiteout(CleanPath),
    /// What lower layers have in this directory is hidden.
    Opaque(CleanPath),
    /// Nothing.
    Ignored,
}

impl Meaning {
    /// Source: OCI Image Layer Filesystem Changeset, "Whiteouts".
    pub(super) fn of(raw: &[u8]) -> Result<Self, Reason> {
        let path = CleanPath::new(raw)?;
        let (parent, name) = path.split();
        if parent
            .split(|b| *b == b'/')
            .any(|part| part.starts_with(WHITEOUT_PREFIX))
        {
            // A directory of that name would hide something, or nothing, depending on the reader.
            return Err(Reason::BadWhiteout);
        }
        if name == OPAQUE_MARKER {
            return Ok(Self::Opaque(path.parent()));
        }
        if name.starts_with(AUFS_PREFIX) {
            return Ok(Self::Ignored);
        }
        match name.strip_prefix(WHITEOUT_PREFIX) {
            None => Ok(Self::Entry(path)),
            Some(b"" | b"." | b"..") => Err(Reason::BadWhiteout),
            Some(hidden) => Ok(Self::Whiteout(path.sibling(hidden))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clean(path: &str) -> CleanPath {
        CleanPath(path.as_bytes().to_vec())
    }

    #[test]
    fn names_are_relative_to_the_root() {
        for (raw, expected) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/etc/passwd", "etc/passwd"),
            ("./", ""),
            ("/", ""),
            ("a/./b", "a/b"),
            ("...", "..."),
        ] {
            assert_eq!(CleanPath::new(raw.as_bytes()), Ok(clean(expected)), "{raw}");
        }
        for (raw, reason) in [
            ("..", Reason::DotDot),
            ("../a", Reason::DotDot),
            ("a/../b", Reason::DotDot),
            ("a/..", Reason::DotDot),
            ("/..", Reason::DotDot),
            ("a\0b", Reason::Nul),
        ] {
            assert_eq!(CleanPath::new(raw.as_bytes()), Err(reason), "{raw}");
        }
        assert_eq!(CleanPath::new(&[b'a'; 256]), Err(Reason::NameTooLong));
        assert_eq!(
            CleanPath::new("abc/".repeat(1024).as_bytes()).map(|p| p.0.len()),
            Ok(4095)
        );
        assert_eq!(
            CleanPath::new("abc/".repeat(1025).as_bytes()),
            Err(Reason::NameTooLong)
        );
    }

    #[test]
    fn whiteouts_are_told_from_entries() {
        let of = |raw: &str| Meaning::of(raw.as_bytes());
        assert_eq!(of("a/.wh.b"), Ok(Meaning::Whiteout(clean("a/b"))));
        assert_eq!(of(".wh.b"), Ok(Meaning::Whiteout(clean("b"))));
        assert_eq!(of("a/.wh..wh..opq"), Ok(Meaning::Opaque(clean("a"))));
        assert_eq!(of(".wh..wh..opq"), Ok(Meaning::Opaque(clean(""))));
        assert_eq!(of("a/.wh..wh.plnk"), Ok(Meaning::Ignored));
        assert_eq!(of("a/.wh"), Ok(Meaning::Entry(clean("a/.wh"))));
        for raw in [
            ".wh.",
            ".wh..",
            ".wh...",
            "a/.wh...",
            "a/.wh.b/c",
            ".wh.x/.wh.y",
        ] {
            assert_eq!(of(raw), Err(Reason::BadWhiteout), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leads_up(raw in "[./awh\\x00]{0,24}") {
            if let Ok(path) = CleanPath::new(raw.as_bytes()) {
                prop_assert!(path.0.first() != Some(&b'/'));
                if !path.is_root() {
                    for part in path.0.split(|b| *b == b'/') {
                        prop_assert!(!matches!(part, b"" | b"." | b".."));
                    }
                }
            }
            let _ = Meaning::of(raw.as_bytes());
        }
    }
}
