//! The host view: the host's own files, read through throwaway writable layers, with private places hidden.
//!
//! For a privileged caller one overlay over the root filesystem, which the supervisor holds apart from what is mounted
//! in it. For others one for each directory of `/`, as the kernel refuses one over `/` itself inside a user namespace:
//! what is mounted below is locked there. For the same reason a directory with mounts below it is bound
//! read-only, mounts and all; and one in which the caller has nothing may be shared with other sandboxes. All look the
//! same from inside. Each overlay costs a start and an end some 0.1 ms.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::{
    host::{Files, Host, TopLevel, is_same},
    rootfs::normal,
    security::idmap::plan::Writer,
    spec::HostView,
    step::Step,
    units::Bytes,
};

/// Directories of `/` that a sandbox has of its own, or that Orbit mounts.
const OWN: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// Where people's homes are, and where hosts keep what is theirs alone: hidden but for what is asked for.
const HIDDEN: [&str; 2] = ["/home", "/root"];

/// Where the program would have been without a sandbox.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// The directory this process is in.
    pub(crate) working_dir: PathBuf,
    /// The directory of this process's executable: in tests, cargo's output, with the programs built for them.
    pub(crate) executable_dir: Option<PathBuf>,
    /// Where this process finds programs.
    pub(crate) path: Option<OsString>,
    /// The mask of this process for the modes of new files.
    pub(crate) umask: u32,
}

/// The steps that make the host view, with a writable layer of `size`; as one overlay only where `may_be_whole`.
pub(crate) fn steps(
    view: &HostView,
    around: &Surroundings,
    host: &Host,
    files: &Files,
    size: Bytes,
    may_be_whole: bool,
) -> Vec<Step> {
    let mut plan = View {
        files,
        home: home(view, host),
        steps: Vec::new(),
        covered: BTreeSet::new(),
        is_whole: may_be_whole && host.ids.writer == Writer::Privileged && files.hides_in_memory,
    };
    plan.steps.push(Step::Scratch {
        size,
        owner: system_owner(host),
    });
    if plan.is_whole {
        plan.whole_root();
    } else {
        plan.steps.push(Step::EmptyRoot);
        for (path, kind) in &files.top_level {
            plan.top_level(path, kind);
        }
    }
    let directory = |at: &str, mode| Step::Directory {
        at: at.into(),
        mode,
    };
    plan.steps.extend([
        directory("/run", 0o755),
        directory("/run/lock", 0o1777),
        directory("/tmp", 0o1777),
    ]);
    plan.steps.push(Step::Fresh {
        at: "/var/tmp".into(),
        mode: 0o1777,
    });
    plan.steps.push(Step::Home {
        at: plan.home.clone(),
    });

    for path in &view.paths {
        plan.show(&normal(path), false);
    }
    for path in &view.read_only_paths {
        plan.show(&normal(path), true);
    }
    for path in [Some(&around.working_dir), around.executable_dir.as_ref()]
        .into_iter()
        .flatten()
    {
        // A hidden place, or what is around one, is shown only to who asks for it.
        if !plan
            .hidden_places()
            .any(|place| place.starts_with(normal(path)))
        {
            plan.show(&normal(path), false);
        }
    }
    plan.steps
}

/// Has directories shared in which the caller has nothing, where `steps` have layers of the sandbox's own over them: each
/// takes 0.07 ms of a start and an end, and a cold look at each file. Not those in which `is_written` knows of something to
/// make; and none where they show as the caller's own, for want of another id.
pub(crate) fn share_foreign(steps: &mut [Step], host: &Host, is_written: impl Fn(&Path) -> bool) {
    let owner = system_owner(host);
    if owner == 0 {
        return;
    }
    for step in steps {
        if let Step::Overlay { at, .. } = step
            && host.is_foreign(at)
            && at.to_str().is_some()
            && !is_written(at)
        {
            *step = Step::Shared {
                at: std::mem::take(at),
                owner,
            };
        }
    }
}

/// Whether a directory of `/` is one that a sandbox shows as it is: else nobody need look whether it might be shared.
pub(crate) fn is_shown(path: &Path) -> bool {
    let is = |list: &[&str]| list.iter().any(|it| is_same(path, Path::new(it)));
    !is(&OWN) && !is(&HIDDEN) && !is(&["/lost+found"])
}

/// Who owns what stands for the system's directories, as an id of the first user namespace: who shows as root to
/// the program. Where the program runs as an ordinary caller, that is not id 0, which *is* the caller, but the
/// id next to it; where there is no other id, the caller owns them after all.
fn system_owner(host: &Host) -> u32 {
    u32::from(host.uid != 0 && host.ids.uids.count() > 1 && host.ids.gids.count() > 1)
}

/// The mode of a directory of `/` that a sandbox has of its own.
fn own_mode(path: &Path) -> u32 {
    match path.to_str() {
        Some("/root" | "/lost+found") => 0o700,
        Some("/tmp") => 0o1777,
        _ => 0o755,
    }
}

/// The home directory inside.
pub(crate) fn home(view: &HostView, host: &Host) -> PathBuf {
    normal(view.home.as_ref().unwrap_or(&host.home))
}

struct View<'a> {
    files: &'a Files,
    home: PathBuf,
    steps: Vec<Step>,
    /// What an overlay of its own already shows.
    covered: BTreeSet<PathBuf>,
    /// Whether the root is one overlay over the host's.
    is_whole: bool,
}

impl View<'_> {
    /// The host's root filesystem, without what is private, and what is mounted in it.
    fn whole_root(&mut self) {
        let (mut own, mut hidden, mut mounted) = (Vec::new(), Vec::new(), Vec::new());
        for (path, kind) in &self.files.top_level {
            match kind {
                TopLevel::Directory | TopLevel::EmptyDirectory if self.is_own(path) => {
                    own.push((path.clone(), own_mode(path)));
                }
                TopLevel::Directory | TopLevel::EmptyDirectory => {
                    if self.files.is_mount_point(path) || self.files.has_mounts_below(path) {
                        mounted.push(self.layer_over(path));
                    }
                }
                TopLevel::Symlink(_) => {}
                TopLevel::Other => hidden.push(path.clone()),
            }
        }
        self.steps.push(Step::HostRoot { own, hidden });
        self.steps.extend(mounted);
    }

    /// Whether a sandbox has a directory of its own in place of this one of the host.
    fn is_own(&self, path: &Path) -> bool {
        let is = |list: &[&str]| list.iter().any(|own| is_same(path, Path::new(own)));
        is(&OWN) || is(&HIDDEN) || is(&["/lost+found"]) || is_same(&self.home, path)
    }

    fn top_level(&mut self, path: &Path, kind: &TopLevel) {
        let is = |list: &[&str]| list.iter().any(|own| path == Path::new(own));
        match kind {
            _ if is(&OWN) || path == Path::new("/lost+found") => {}
            TopLevel::Symlink(target) => {
                self.steps.push(Step::Symlink {
                    at: path.to_owned(),
                    target: target.clone(),
                });
            }
            TopLevel::Directory | TopLevel::EmptyDirectory if is(&HIDDEN) || self.home == path => {
                self.steps.push(Step::Directory {
                    at: path.to_owned(),
                    mode: own_mode(path),
                });
            }
            // There is nothing below to show: a directory of the root's own layer does for half of what an overlay takes.
            TopLevel::EmptyDirectory if !self.files.is_mount_point(path) => {
                self.steps.push(Step::Directory {
                    at: path.to_owned(),
                    mode: 0o755,
                });
            }
            TopLevel::Directory | TopLevel::EmptyDirectory => {
                self.steps.push(self.layer_over(path));
            }
            TopLevel::Other => {}
        }
    }

    /// Shows a path that may lie in a hidden place, or below a top directory that is bound read-only.
    fn show(&mut self, path: &Path, read_only: bool) {
        if self.covered.iter().any(|shown| path.starts_with(shown)) {
            return;
        }
        let writable_already = !self.hidden_places().any(|place| path.starts_with(place))
            && path
                .ancestors()
                .filter(|top| top.parent() == Some(Path::new("/")))
                .all(|top| !self.files.has_mounts_below(top) && !self.was_empty(top));
        if read_only {
            self.steps.push(Step::Bind {
                source: path.to_owned(),
                at: path.to_owned(),
                read_only: true,
            });
        } else if !writable_already {
            self.steps.push(self.layer_over(path));
        }
        self.covered.insert(path.to_owned());
    }

    /// Whether there was nothing in a directory of `/`: what was made there since has to be shown by itself.
    fn was_empty(&self, top: &Path) -> bool {
        !self.is_whole && self.files.top_level.get(top) == Some(&TopLevel::EmptyDirectory)
    }

    fn hidden_places(&self) -> impl Iterator<Item = PathBuf> + '_ {
        OWN.iter()
            .chain(&HIDDEN)
            .map(PathBuf::from)
            .chain(["/var/tmp".into(), self.home.clone()])
    }

    fn layer_over(&self, path: &Path) -> Step {
        let (source, at) = (path.to_owned(), path.to_owned());
        if self.files.has_mounts_below(path) {
            Step::Bind {
                source,
                at,
                read_only: true,
            }
        } else {
            Step::Overlay { source, at }
        }
    }
}
