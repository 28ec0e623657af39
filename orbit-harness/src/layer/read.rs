//! Reads what was written: the upper layers of a sandbox's overlays, compared with what lies under them.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io::Read as _,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{FileType, OFlags, Stat},
    io::Errno,
};

use super::{
    Below, Part, Writable,
    tree::{Fault, Tree, child, is_opaque, is_whiteout, kind_of, names, stat_in, type_of},
};
use crate::changes::{Change, ChangeKind, Changes, FileKind, joined};

/// What was written to `writable` in the tmpfs `scratch`. `open` finds what lies under its parts on the host.
///
/// # Errors
/// What could not be read. What vanishes meanwhile, as in a sandbox that runs, is no error.
pub(crate) fn read(
    writable: &Writable,
    scratch: OwnedFd,
    open: impl Fn(&Below) -> Result<OwnedFd, Errno>,
) -> Result<Changes, Fault> {
    let scratch = Tree(scratch);
    let mut reader = Reader {
        writable,
        changes: Changes::default(),
        noted: [0; 2],
    };
    for part in &writable.parts {
        let fault = |errno| Fault::new("read the writable layer of", &part.at, errno);
        let upper = Tree(scratch.directory(OsStr::new(&part.name)).map_err(fault)?);
        let mut lowers = Vec::new();
        for below in &part.below {
            match open(below) {
                Ok(fd) => lowers.push(Tree(fd)),
                // A sealed layer has no part where none was written, and the host's directory may be gone.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(fault(errno)),
            }
        }
        reader.part(part, &upper, &lowers)?;
    }
    let mut changes = reader.changes;
    changes.entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

struct Reader<'a> {
    writable: &'a Writable,
    changes: Changes,
    noted: [usize; 2],
}

/// A directory to be read.
struct Todo {
    path: OsString,
    /// Those lower trees that have this directory, and are not hidden there by one above them.
    lowers: Vec<usize>,
    /// Whether the upper layer hides all of them: the directory was removed and made again.
    is_hidden: bool,
}

/// What lies under one name.
#[derive(Default)]
struct Under {
    stat: Option<Stat>,
    /// Where that is a directory, the trees it is merged from.
    lowers: Vec<usize>,
}

impl Reader<'_> {
    fn part(&mut self, part: &Part, upper: &Tree, lowers: &[Tree]) -> Result<(), Fault> {
        let mut todo = vec![Todo {
            path: OsString::new(),
            lowers: (0..lowers.len()).collect(),
            is_hidden: false,
        }];
        while let Some(next) = todo.pop() {
            let directory = match upper.directory(&next.path) {
                Ok(directory) => directory,
                // Gone or replaced meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                // Deeper than a path reaches: counted, as one.
                Err(Errno::NAMETOOLONG) => {
                    self.changes.omitted += 1;
                    continue;
                }
                Err(errno) => return Err(self.fault(part, &next.path, errno)),
            };
            let found = names(&directory).map_err(|errno| self.fault(part, &next.path, errno))?;
            if next.is_hidden {
                self.hidden(part, &next, lowers, &found)?;
            }
            for name in found {
                let path = child(&next.path, &name);
                let stat =
                    stat_in(&directory, &name).map_err(|errno| self.fault(part, &path, errno))?;
                let Some(stat) = stat else { continue };
                let under = if self.writable.is_covered(&joined(&part.at, &path)) {
                    Under::default()
                } else {
                    under(lowers, &next.lowers, &path)
                        .map_err(|errno| self.fault(part, &path, errno))?
                };
                if part.is_overlay && is_whiteout(&stat) {
                    if let Some(was) = under.stat {
                        self.note(part, &path, ChangeKind::Removed, kind_of(&was), 0);
                    }
                    continue;
                }
                self.entry(part, &directory, &path, &name, &stat, &under);
                if type_of(&stat) == FileType::Directory {
                    let is_hidden = next.is_hidden
                        || part.is_overlay
                            && !under.lowers.is_empty()
                            && upper.directory(&path).is_ok_and(|fd| is_opaque(&fd));
                    todo.push(Todo {
                        path,
                        lowers: under.lowers,
                        is_hidden,
                    });
                }
            }
        }
        Ok(())
    }

    /// What is there, at `path`.
    fn entry(
        &mut self,
        part: &Part,
        directory: &OwnedFd,
        path: &OsStr,
        name: &OsStr,
        stat: &Stat,
        under: &Under,
    ) {
        let file = kind_of(stat);
        let kind = match &under.stat {
            None => ChangeKind::Added,
            Some(was) if file == FileKind::Directory && kind_of(was) == file => {
                // It is in the upper layer for what was written in it, as a rule: that alone changes no directory.
                let of = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
                if of(was) == of(stat) {
                    return;
                }
                ChangeKind::Modified
            }
            Some(_) => ChangeKind::Modified,
        };
        if self.is_orbits_own(part, directory, path, name, stat) {
            return;
        }
        // Orbit wrote it before the program did.
        let was_there = self.writable.etc_at(&joined(&part.at, path)).is_some();
        let kind = if was_there {
            ChangeKind::Modified
        } else {
            kind
        };
        let bytes = if file == FileKind::File {
            u64::try_from(stat.st_size).unwrap_or(0)
        } else {
            0
        };
        self.note(part, path, kind, file, bytes);
    }

    /// Whether Orbit made it, and it is as it was.
    fn is_orbits_own(
        &self,
        part: &Part,
        directory: &OwnedFd,
        path: &OsStr,
        name: &OsStr,
        stat: &Stat,
    ) -> bool {
        let inside = joined(&part.at, path);
        if !self.writable.is_made(&inside) {
            return false;
        }
        match (type_of(stat), self.writable.etc_at(&inside)) {
            (FileType::RegularFile, Some(file)) => {
                read_small(directory, name).is_some_and(|found| found == file.content.as_bytes())
            }
            // Something was mounted on it.
            (FileType::RegularFile, None) => stat.st_size == 0,
            _ => true,
        }
    }

    /// What a directory that was removed and made again had in it, and has not any more.
    fn hidden(
        &mut self,
        part: &Part,
        directory: &Todo,
        lowers: &[Tree],
        found: &[OsString],
    ) -> Result<(), Fault> {
        let mut had = BTreeSet::new();
        for &lower in &directory.lowers {
            // What cannot be read was seen by nobody in the sandbox either.
            had.extend(lowers[lower].names(&directory.path).unwrap_or_default());
        }
        for name in had {
            if found.binary_search(&name).is_ok() {
                continue;
            }
            let path = child(&directory.path, &name);
            let under = under(lowers, &directory.lowers, &path)
                .map_err(|errno| self.fault(part, &path, errno))?;
            if let Some(was) = under.stat {
                self.note(part, &path, ChangeKind::Removed, kind_of(&was), 0);
            }
        }
        Ok(())
    }

    fn note(&mut self, part: &Part, path: &OsStr, kind: ChangeKind, file: FileKind, bytes: u64) {
        let path = joined(&part.at, path);
        let temporary = self.writable.is_temporary(part, &path);
        let change = Change {
            path,
            kind,
            file,
            bytes,
            temporary,
        };
        self.changes.push(&mut self.noted, change);
    }

    #[expect(clippy::unused_self, reason = "reads as what it is")]
    fn fault(&self, part: &Part, path: &OsStr, errno: Errno) -> Fault {
        Fault::new("read", Path::new(&part.at).join(path), errno)
    }
}

/// What the lower trees `valid` have at `path`, merged as overlayfs merges them.
fn under(lowers: &[Tree], valid: &[usize], path: &OsStr) -> Result<Under, Errno> {
    let mut under = Under::default();
    for &lower in valid {
        let tree = &lowers[lower];
        let Some(stat) = tree.stat(path)? else {
            continue;
        };
        if is_whiteout(&stat) {
            break;
        }
        let is_directory = type_of(&stat) == FileType::Directory;
        let is_first = under.stat.is_none();
        if is_first {
            under.stat = Some(stat);
        }
        if !is_directory {
            // Of what lies above it, it is no part.
            break;
        }
        under.lowers.push(lower);
        if tree.is_opaque(path) {
            break;
        }
    }
    Ok(under)
}

/// A file of Orbit's making, as far as it may still be one.
fn read_small(directory: &OwnedFd, name: &OsStr) -> Option<Vec<u8>> {
    const MAX_BYTES: u64 = 64 << 10;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, rustix::fs::Mode::empty()).ok()?;
    let mut content = Vec::new();
    std::fs::File::from(file)
        .take(MAX_BYTES)
        .read_to_end(&mut content)
        .ok()?;
    Some(content)
}
