//! The writable layer of a sandbox: where it lies, what was written in it, and copies of it that last.
//!
//! A sandbox over an image has one overlay over its root; one over the host's files has one for each directory of
//! `/`, and a root of its own. All of them lie in one tmpfs, of which whoever started the sandbox holds a
//! descriptor: so that it can be read while the sandbox runs and when it has ended, by a process of the
//! supervisor's, since the owners of its files have their meaning there.
//!
//! What must not happen here: nothing in a layer is followed, run or believed; it is what a hostile program left.

#[cfg(feature = "images")]
mod export;
mod read;
#[cfg(feature = "images")]
mod seal;
mod tree;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

#[cfg(feature = "images")]
pub(crate) use self::{
    export::{Exported, export},
    seal::{Sealed, copy, seal},
};
pub(crate) use self::{read::read, tree::Fault};
use crate::step::{EtcFile, Lower, Step};

/// The directories of a sandbox's tmpfs that hold what it writes, and how to read them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Writable {
    /// An outer one before those in it.
    pub(crate) parts: Vec<Part>,
    /// What Orbit itself makes there before the program starts, or mounts something on.
    made: BTreeSet<PathBuf>,
    /// What Orbit hides of the host from the start.
    covered: BTreeSet<PathBuf>,
    /// The files of `/etc` that Orbit wrote.
    etc: Vec<EtcFile>,
    temporary: Vec<PathBuf>,
}

/// One directory of the tmpfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Its name in the tmpfs.
    pub(crate) name: String,
    /// Where it shows in the sandbox.
    pub(crate) at: PathBuf,
    /// The directories of the host that lie under it, topmost first.
    pub(crate) below: Vec<Below>,
    /// Whether it is the upper layer of an overlay, in which some files mean that others are hidden.
    pub(crate) is_overlay: bool,
    /// Whether all of it is for temporary files.
    is_temporary: bool,
}

/// A directory that lies under a part: `inside` of the host's directory `root`, resolved within that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Below {
    pub(crate) root: PathBuf,
    pub(crate) inside: PathBuf,
}

impl Below {
    fn whole(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            inside: PathBuf::new(),
        }
    }
}

/// Where programs put what nobody needs afterwards.
const TEMPORARY: [&str; 4] = ["/tmp", "/var/tmp", "/run", "/dev/shm"];

impl Writable {
    /// What `steps` make. `more_temporary` is one more directory for temporary files.
    pub(crate) fn of(steps: &[Step], more_temporary: Option<&Path>) -> Self {
        let mut found = Self {
            temporary: TEMPORARY.map(PathBuf::from).to_vec(),
            ..Self::default()
        };
        found.temporary.extend(more_temporary.map(Path::to_owned));
        let mut uppers = 0;
        let mut upper = || {
            uppers += 1;
            format!("upper{uppers}")
        };
        for step in steps {
            let part = match step {
                Step::OverlayRoot { lower, etc } => {
                    found.etc.clone_from(etc);
                    let files = etc.iter().map(|file| Path::new("/etc").join(&file.name));
                    found.made.extend(files);
                    found.made.insert("/etc".into());
                    Some((upper(), Path::new("/"), of_lower(lower), true))
                }
                Step::HostRoot { own, hidden } => {
                    let own = own.iter().map(|(path, _)| path.clone());
                    found.made.extend(own.clone());
                    found.covered.extend(own.chain(hidden.iter().cloned()));
                    Some((
                        upper(),
                        Path::new("/"),
                        vec![Below::whole(Path::new("/"))],
                        true,
                    ))
                }
                Step::EmptyRoot => Some(("root".to_owned(), Path::new("/"), Vec::new(), false)),
                Step::Overlay { source, at } => {
                    Some((upper(), &**at, vec![Below::whole(source)], true))
                }
                Step::OverlaySealed { layers, source, at } => {
                    let inside = at.strip_prefix("/").unwrap_or(at);
                    let sealed = layers.iter().map(|layer| Below {
                        root: layer.clone(),
                        inside: inside.to_owned(),
                    });
                    let below = sealed.chain(source.as_deref().map(Below::whole));
                    Some((upper(), &**at, below.collect(), true))
                }
                Step::Fresh { at, .. } => Some((upper(), &**at, Vec::new(), false)),
                Step::Home { at } => {
                    found.temporary.push(at.clone());
                    None
                }
                _ => None,
            };
            if let Some((name, at, below, is_overlay)) = part {
                found.parts.push(Part {
                    name,
                    at: at.to_owned(),
                    below,
                    is_overlay,
                    is_temporary: matches!(step, Step::Fresh { .. })
                        || matches!(step, Step::OverlaySealed { source: None, .. }),
                });
            }
            found.note_made(step);
        }
        found
    }

    fn note_made(&mut self, step: &Step) {
        let at = match step {
            Step::Directory { at, .. }
            | Step::Fresh { at, .. }
            | Step::Home { at }
            | Step::Symlink { at, .. }
            | Step::Overlay { at, .. }
            | Step::Shared { at, .. }
            | Step::OverlaySealed { at, .. }
            | Step::Bind { at, .. }
            | Step::Tmpfs { at, .. } => &**at,
            Step::Proc => Path::new("/proc"),
            Step::Sys { .. } => Path::new("/sys"),
            Step::Dev { .. } => Path::new("/dev"),
            Step::CoverEtc(files) => {
                let files = files.iter().map(|file| Path::new("/etc").join(&file.name));
                return self.made.extend(files);
            }
            _ => return,
        };
        self.made.extend(at.ancestors().map(Path::to_owned));
    }

    /// Whether what lies at `path` of `part` is for nobody to need afterwards.
    fn is_temporary(&self, part: &Part, path: &Path) -> bool {
        // A directory of the host that was asked for is what it was asked for, wherever it lies.
        part.is_temporary
            || self.temporary.iter().any(|directory| {
                path.starts_with(directory)
                    && (part.at == Path::new("/") || !part.at.starts_with(directory))
            })
    }

    /// Whether Orbit put something at `path` before the program ran.
    fn is_made(&self, path: &Path) -> bool {
        self.made.contains(path)
    }

    /// Whether Orbit hid what the host has at `path`, which nobody in the sandbox saw then.
    fn is_covered(&self, path: &Path) -> bool {
        self.covered.contains(path)
    }

    /// What Orbit wrote to the file at `path`, where it wrote one.
    fn etc_at(&self, path: &Path) -> Option<&EtcFile> {
        let name = path.strip_prefix("/etc").ok()?.to_str()?;
        self.etc.iter().find(|file| file.name == name)
    }
}

fn of_lower(lower: &Lower) -> Vec<Below> {
    match lower {
        Lower::Directory(path) => vec![Below::whole(path)],
        Lower::Layers {
            dir, names, base, ..
        } => {
            let layers = names.iter().rev().map(|name| Below::whole(&dir.join(name)));
            layers.chain(base.as_deref().map(Below::whole)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(writable: &Writable) -> Vec<(&str, &Path, bool)> {
        let parts = writable.parts.iter();
        parts
            .map(|part| (&*part.name, &*part.at, part.is_overlay))
            .collect()
    }

    #[test]
    fn a_sandbox_of_the_host_writes_to_a_directory_for_each_of_its_overlays() {
        let writable = Writable::of(
            &[
                Step::EmptyRoot,
                Step::Overlay {
                    source: "/usr".into(),
                    at: "/usr".into(),
                },
                Step::Fresh {
                    at: "/var/tmp".into(),
                    mode: 0o1777,
                },
                Step::Home { at: "/root".into() },
                Step::Overlay {
                    source: "/root/project".into(),
                    at: "/root/project".into(),
                },
            ],
            Some(Path::new("/root/project/target/tmp")),
        );
        let expected = [
            ("root", Path::new("/"), false),
            ("upper1", Path::new("/usr"), true),
            ("upper2", Path::new("/var/tmp"), false),
            ("upper3", Path::new("/root/project"), true),
        ];
        assert_eq!(directories(&writable), expected);
        let is_temporary =
            |part: usize, path: &str| writable.is_temporary(&writable.parts[part], Path::new(path));
        assert!(is_temporary(0, "/root/.cache/x"));
        assert!(is_temporary(0, "/tmp/x") && !is_temporary(0, "/x"));
        assert!(is_temporary(2, "/var/tmp/x"));
        // Below the private home lies what is no throwaway of the test's own.
        assert!(!is_temporary(3, "/root/project/src"));
        assert!(is_temporary(3, "/root/project/target/tmp/x"));
        assert!(writable.is_made(Path::new("/root")) && !writable.is_made(Path::new("/x")));
    }
}
