//! Covers: what lies over the host's root in a sandbox from the start, made once and shared by all that have the same.
//!
//! A sandbox over the whole of the host's root needs some twenty directories of its own there, and places for what is
//! mounted later. Made in its own layer they would cost each sandbox some eighty system calls; in a layer below it, under
//! every sandbox's own, they cost the first. Nobody writes to a cover: it is a lower layer, and what a sandbox changes of
//! it goes to its own, as with every file of the host.
//!
//! [`Cover::of`] is pure; [`Covers`] makes them in the supervisor's root.

use std::{
    ffi::CStr,
    fs,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Gid, Mode, Uid, XattrFlags};

use super::{
    home::{COVERS, HOST},
    make::{is_directory, open_directory, open_host},
};
use crate::{host::is_same, step::Step};

/// How many covers are kept, each for as long as the supervisor lives: sandboxes may have them under theirs. What is in
/// excess, as where each mounts something at a place of its own, shares a cover without such places: of those there are no
/// more than there are users' homes.
const MAX_COVERS: usize = 16;

/// What marks a directory of a layer that hides all below it, and the device whose file hides what has its name.
///
/// Source: Linux, Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories", `userxattr`.
const OPAQUE: &CStr = c"user.overlay.opaque";
const WHITEOUT: u64 = 0;

/// Of a directory that is there to be mounted on, or on the way to one.
const PLACE_MODE: u32 = 0o755;

/// The number of who the program runs as, in the sandbox's first user namespace, and the mode of its home.
const PROGRAM: u32 = 0;
const HOME_MODE: u32 = 0o700;

/// What a layer over the host's root holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cover {
    /// Who owns what stands for the system's own directories.
    system: u32,
    /// Parents first.
    entries: Vec<(PathBuf, Entry)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// A directory of the sandbox's own, with this mode, which hides what the host has there.
    Own(u32),
    /// The same, as the private home of who the program runs as.
    OwnHome,
    /// A home further down, in a directory of the sandbox's own.
    Home,
    /// A directory in one of the sandbox's own.
    Place(u32),
    /// Nothing in place of what the host has.
    Hidden,
}

/// A cover that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Laid {
    /// Its directory.
    pub(super) path: PathBuf,
    /// The numbers of the plan's steps that nothing is left to do for.
    pub(super) done: Vec<usize>,
}

impl Cover {
    /// The cover that `steps` want, and the numbers of those that are done with it. `None` where the host's root is not
    /// under theirs as a whole. `is_directory` looks at what is bound.
    fn of(steps: &[Step], is_directory: impl Fn(&Path) -> bool) -> Option<(Self, Vec<usize>)> {
        let mut cover = Self::without_places(steps)?;
        let (mut done, mut mounted) = (Vec::new(), Vec::<&Path>::new());
        for (number, step) in steps.iter().enumerate() {
            // What is mounted is seen in place of what the cover has there.
            let is_seen = |at: &Path| !mounted.iter().any(|mount| at.starts_with(mount));
            let is_done = match step {
                Step::Directory { at, mode } => is_seen(at) && cover.add(at, *mode),
                Step::Home { at } => {
                    let is_there = is_seen(at) && cover.add(at, PLACE_MODE);
                    if is_there {
                        cover.give_to_program(at);
                    }
                    is_there
                }
                _ => false,
            };
            if is_done {
                done.push(number);
            }
            let (at, is_directory) = match step {
                Step::Fresh { at, .. }
                | Step::Overlay { at, .. }
                | Step::OverlaySealed { at, .. }
                | Step::Tmpfs { at, .. } => (&**at, true),
                Step::Bind { source, at, .. } => {
                    (&**at, cover.is_below_own(at) && is_directory(source))
                }
                Step::Proc => (Path::new("/proc"), true),
                Step::Sys { .. } => (Path::new("/sys"), true),
                Step::Dev { .. } => (Path::new("/dev"), true),
                Step::PivotRoot => break,
                _ => continue,
            };
            if is_directory && is_seen(at) {
                cover.add(at, PLACE_MODE);
            }
            mounted.push(at);
        }
        Some((cover, done))
    }

    /// The same with nothing but what the step for the root itself says.
    fn without_places(steps: &[Step]) -> Option<Self> {
        let (own, hidden) = steps.iter().find_map(|step| match step {
            Step::HostRoot { own, hidden } => Some((own, hidden)),
            _ => None,
        })?;
        let system = steps.iter().find_map(|step| match step {
            Step::Scratch { owner, .. } => Some(*owner),
            _ => None,
        });
        let own = own.iter().map(|(at, mode)| (at, Entry::Own(*mode)));
        let hidden = hidden.iter().map(|at| (at, Entry::Hidden));
        Some(Self {
            system: system.unwrap_or_default(),
            entries: own.chain(hidden).map(|(at, it)| (at.clone(), it)).collect(),
        })
    }

    /// Whether `at` lies in a directory of the sandbox's own, or is one: elsewhere the host says what is there.
    fn is_below_own(&self, at: &Path) -> bool {
        let is_plain = at
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let is_own = |top: &Path| self.find(top).is_some_and(|it| it != Entry::Hidden);
        is_plain && at.ancestors().any(is_own)
    }

    /// Adds the directory `at` with its parents, where that lies below the sandbox's own. What is there already stays.
    /// Whether it is there now.
    fn add(&mut self, at: &Path, mode: u32) -> bool {
        if !self.is_below_own(at) {
            return false;
        }
        let missing = at.ancestors().take_while(|path| self.find(path).is_none());
        let missing: Vec<_> = missing.map(Path::to_owned).collect();
        for path in missing.into_iter().rev() {
            let mode = if is_same(&path, at) { mode } else { PLACE_MODE };
            self.entries.push((path, Entry::Place(mode)));
        }
        true
    }

    fn find(&self, path: &Path) -> Option<Entry> {
        let found = self.entries.iter().find(|(at, _)| is_same(at, path));
        found.map(|(_, entry)| *entry)
    }

    /// Makes the directory `path` the private one of who the program runs as.
    fn give_to_program(&mut self, path: &Path) {
        let found = self.entries.iter_mut().find(|(at, _)| is_same(at, path));
        if let Some((_, entry)) = found {
            *entry = match *entry {
                Entry::Own(_) | Entry::OwnHome => Entry::OwnHome,
                _ => Entry::Home,
            };
        }
    }

    /// Makes it at `base`, where nothing is yet.
    fn lay(&self, base: &Path) -> rustix::io::Result<()> {
        rustix::fs::mkdir(base, Mode::from_raw_mode(PLACE_MODE))?;
        for (path, entry) in &self.entries {
            let path = base.join(path.strip_prefix("/").unwrap_or(path));
            let (mode, owner) = match *entry {
                Entry::Hidden => {
                    let kind = FileType::CharacterDevice;
                    rustix::fs::mknodat(CWD, &path, kind, Mode::empty(), WHITEOUT)?;
                    continue;
                }
                Entry::Own(mode) | Entry::Place(mode) => (mode, self.system),
                Entry::OwnHome | Entry::Home => (HOME_MODE, PROGRAM),
            };
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::mkdir(&path, mode)?;
            // The mask of this process holds for mkdir, not for chmod.
            rustix::fs::chmod(&path, mode)?;
            let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
            rustix::fs::chown(&path, Some(uid), Some(gid))?;
            if matches!(entry, Entry::Own(_) | Entry::OwnHome) {
                rustix::fs::setxattr(&path, OPAQUE, b"y", XattrFlags::empty())?;
            }
        }
        Ok(())
    }
}

/// The covers that are there, by what they hold: the place of each is its name.
#[derive(Debug, Default)]
pub(super) struct Covers {
    made: Vec<Cover>,
    host: Option<OwnedFd>,
}

impl Covers {
    /// The cover for `steps`, made where it is not there yet; `None` where they want none.
    ///
    /// # Errors
    /// What the kernel answers; nothing of the cover is left then.
    pub(super) fn lay(&mut self, steps: &[Step]) -> rustix::io::Result<Option<Laid>> {
        let Some(bare) = Cover::without_places(steps) else {
            return Ok(None);
        };
        let host = match self.host.take() {
            Some(host) => host,
            None => open_directory(HOST)?,
        };
        let host = self.host.insert(host);
        let is_bound_directory = |path: &Path| {
            open_host(host, path).is_ok_and(|found| is_directory(&found).unwrap_or(false))
        };
        let (cover, done) =
            Cover::of(steps, is_bound_directory).unwrap_or((bare.clone(), Vec::new()));
        if let Some(laid) = self.find(&cover, &done) {
            return Ok(Some(laid));
        }
        if self.made.len() < MAX_COVERS {
            return self.make(cover, done).map(Some);
        }
        match self.find(&bare, &[]) {
            Some(laid) => Ok(Some(laid)),
            None => self.make(bare, Vec::new()).map(Some),
        }
    }

    fn find(&self, cover: &Cover, done: &[usize]) -> Option<Laid> {
        let number = self.made.iter().position(|it| it == cover)?;
        Some(Laid {
            path: path_of(number),
            done: done.to_vec(),
        })
    }

    fn make(&mut self, cover: Cover, done: Vec<usize>) -> rustix::io::Result<Laid> {
        let path = path_of(self.made.len());
        if let Err(errno) = cover.lay(&path) {
            // The one before, half made, would be in the way of the next.
            let removed = fs::remove_dir_all(&path);
            drop(removed);
            return Err(errno);
        }
        self.made.push(cover);
        Ok(Laid { path, done })
    }
}

fn path_of(number: usize) -> PathBuf {
    Path::new(COVERS).join(number.to_string())
}

/// The number of the step that a cover is for: where it cannot be made, that is what fails.
pub(super) fn step_of(steps: &[Step]) -> usize {
    let found = steps
        .iter()
        .position(|step| matches!(step, Step::HostRoot { .. }));
    found.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spec::InitFile, units::Bytes};

    fn root(own: &[(&str, u32)], hidden: &[&str]) -> Vec<Step> {
        vec![
            Step::Hostname("h".into()),
            Step::Scratch {
                size: Bytes::mib(1),
                owner: 1,
            },
            Step::HostRoot {
                own: own
                    .iter()
                    .map(|(path, mode)| (path.into(), *mode))
                    .collect(),
                hidden: hidden.iter().map(PathBuf::from).collect(),
            },
        ]
    }

    fn directory(at: &str, mode: u32) -> Step {
        Step::Directory {
            at: at.into(),
            mode,
        }
    }

    fn bind(at: &str) -> Step {
        Step::Bind {
            source: at.into(),
            at: at.into(),
            read_only: true,
        }
    }

    fn of(steps: &[Step]) -> (Vec<(String, Entry)>, Vec<usize>) {
        // Of what is bound here, a file has a dot in its name.
        let is_directory = |path: &Path| path.extension().is_none();
        let (cover, done) = Cover::of(steps, is_directory).expect("one is wanted");
        assert_eq!(cover.system, 1);
        let entries = cover.entries.into_iter();
        let text = |(path, entry): (PathBuf, Entry)| (path.display().to_string(), entry);
        (entries.map(text).collect(), done)
    }

    #[test]
    fn a_root_that_is_no_host_s_has_none() {
        assert_eq!(Cover::of(&[Step::EmptyRoot], |_| true), None);
    }

    #[test]
    fn it_has_what_is_hidden_and_the_places_of_what_is_mounted_there() {
        let mut steps = root(
            &[("/home", 0o755), ("/run", 0o755), ("/tmp", 0o1777)],
            &["/x"],
        );
        steps.extend([
            directory("/run", 0o755),
            directory("/run/lock", 0o1777),
            Step::Home {
                at: "/home/me".into(),
            },
            bind("/home/me/.cargo"),
            bind("/tmp/a/b/file.txt"),
            Step::PivotRoot,
            directory("/tmp/later", 0o755),
        ]);
        let (entries, done) = of(&steps);
        let expected = [
            ("/home", Entry::Own(0o755)),
            ("/run", Entry::Own(0o755)),
            ("/tmp", Entry::Own(0o1777)),
            ("/x", Entry::Hidden),
            ("/run/lock", Entry::Place(0o1777)),
            ("/home/me", Entry::Home),
            ("/home/me/.cargo", Entry::Place(PLACE_MODE)),
        ];
        assert_eq!(entries, expected.map(|(path, it)| (path.to_owned(), it)));
        assert_eq!(done, [3, 4, 5]);
    }

    #[test]
    fn a_home_of_its_own_is_private() {
        let mut steps = root(&[("/root", 0o755)], &[]);
        steps.push(Step::Home { at: "/root".into() });
        assert_eq!(
            of(&steps),
            (vec![("/root".into(), Entry::OwnHome)], vec![3])
        );
    }

    #[test]
    fn what_the_host_has_or_a_mount_shows_is_left_to_the_sandbox() {
        let mut steps = root(&[("/tmp", 0o1777), ("/dev", 0o755)], &["/secret"]);
        steps.extend([
            directory("/srv/work", 0o755),
            directory("/secret/work", 0o755),
            bind("/tmp/project"),
            directory("/tmp/project/target", 0o755),
            directory("/tmp/../etc/x", 0o755),
            Step::Dev {
                shm: Bytes::mib(1),
                console: false,
            },
            Step::Tmpfs {
                at: "/dev/huge".into(),
                size: Bytes::mib(1),
                mode: 0o755,
            },
            Step::File(InitFile {
                at: "/tmp/file".into(),
                content: Vec::new(),
                mode: None,
                owner: None,
            }),
        ]);
        let (entries, done) = of(&steps);
        let paths: Vec<_> = entries.iter().map(|(path, _)| &**path).collect();
        assert_eq!(paths, ["/tmp", "/dev", "/secret", "/tmp/project"]);
        assert_eq!(done, Vec::<usize>::new());
    }

    #[test]
    fn a_directory_that_is_mounted_on_later_is_there_first() {
        let mut steps = root(&[("/tmp", 0o1777)], &[]);
        steps.extend([directory("/tmp/a/b", 0o700), bind("/tmp/a")]);
        let (entries, done) = of(&steps);
        assert_eq!(entries[1], ("/tmp/a".into(), Entry::Place(PLACE_MODE)));
        assert_eq!(entries[2], ("/tmp/a/b".into(), Entry::Place(0o700)));
        assert_eq!(done, [3]);
    }
}
