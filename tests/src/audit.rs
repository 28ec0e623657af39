//! The leak audit: what was there after a test that was not there before.
//!
//! What counts as ours: every descendant of this process, with its namespaces and its listening ports;
//! this process's open files; the mount table, links and nft rules we see; cgroup directories; the files by which
//! processes share networks; and the entries of directories for temporary files. Descendants stay ours when their parents end, because
//! [`LeakAudit::adopting`] makes this process their reaper.
//!
//! Things that belong to no process (a cgroup, a rule, a link, a lease) may be another program's. Such a trace is a
//! leak if it stays for the whole of [`PATIENCE`]; one that is surely ours, if it is there at its end.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{prctl, signal, wait},
    unistd::{Pid, geteuid},
};

use crate::proc_fs::{Process, descendants, listening};

/// How long what was made may take to go away.
pub const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);
/// Where root's processes meet, and keep the leases of its bridges.
const MEETING_OF_ROOT: &str = "/run/orbit";
/// Cgroup trees are shallow; this only stops a walk gone wrong.
const CGROUP_DEPTH_MAX: usize = 12;

/// The kinds of things an audit looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A line of the mount table.
    Mount,
    /// A namespace that a descendant is in.
    Namespace,
    /// A network interface.
    Link,
    /// A line of the nft ruleset; seen by root only.
    NftRule,
    /// A directory under /sys/fs/cgroup with Orbit's name in its path.
    Cgroup,
    /// An entry of a directory for temporary files.
    TempFile,
    /// A file where processes keep which addresses of a network are whose.
    Lease,
    /// An open file of this process.
    OpenFile,
    /// A descendant that ended and is not reaped.
    Zombie,
    /// A descendant that runs.
    Process,
    /// A socket that listens, of this process or a descendant.
    ListeningPort,
}

impl Kind {
    /// Whether it is a fault also where one of these has *gone*: cleaning up another's is no better.
    const fn must_not_vanish(self) -> bool {
        matches!(self, Self::Mount | Self::Link | Self::NftRule)
    }

    /// Whether what is new can be nobody else's.
    const fn is_surely_ours(self) -> bool {
        !matches!(
            self,
            Self::Link | Self::NftRule | Self::Cgroup | Self::TempFile | Self::Lease
        )
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Namespace => "namespace",
            Self::Link => "network link",
            Self::NftRule => "nft rule",
            Self::Cgroup => "cgroup",
            Self::TempFile => "temporary file",
            Self::Lease => "lease",
            Self::OpenFile => "open file",
            Self::Zombie => "zombie",
            Self::Process => "process",
            Self::ListeningPort => "listening port",
        }
    }
}

/// By what identifies a thing as long as it exists: a process keeps its key when it calls exec, or ends.
type Snapshot = BTreeMap<String, (Kind, String)>;

/// What was there before.
#[derive(Debug)]
pub struct LeakAudit {
    scope: Scope,
    before: Snapshot,
}

/// Where to look.
#[derive(Debug)]
struct Scope {
    /// Whose mount table; 0 for the calling thread's.
    mounts_of: i32,
    /// Directories of which every entry counts.
    directories: Vec<PathBuf>,
    /// Directories of which every file counts, however deep: where processes meet.
    meetings: Vec<PathBuf>,
    /// Whether orphans come to us, and their remains are ours to reap.
    adopting: bool,
    /// Whether our own open files count.
    files: bool,
}

impl LeakAudit {
    /// An audit of this process and its descendants; afterwards `directories` must have the same entries, and
    /// `meetings`, and root's place for them, the same files at any depth.
    pub fn start(
        directories: impl IntoIterator<Item = PathBuf>,
        meetings: impl IntoIterator<Item = PathBuf>,
    ) -> Self {
        Self::with(Scope {
            mounts_of: 0,
            directories: directories.into_iter().collect(),
            meetings: meetings.into_iter().collect(),
            adopting: false,
            files: true,
        })
    }

    /// The same, and descendants whose parents end become children of this process, as they would of init
    /// elsewhere. For a process that has no children of its own to wait for when it calls
    /// [`check`](Self::check): zombies are reaped there.
    ///
    /// # Panics
    /// Where the kernel knows no child subreapers (before Linux 3.4).
    pub fn adopting(
        directories: impl IntoIterator<Item = PathBuf>,
        meetings: impl IntoIterator<Item = PathBuf>,
    ) -> Self {
        prctl::set_child_subreaper(true).expect("Linux 3.4");
        Self::with(Scope {
            mounts_of: 0,
            directories: directories.into_iter().collect(),
            meetings: meetings.into_iter().collect(),
            adopting: true,
            files: true,
        })
    }

    /// An audit that looks at the mount table of another process, in whatever mount namespace it is.
    pub fn with_mounts_of(pid: i32) -> Self {
        Self::with(Scope {
            mounts_of: pid,
            directories: Vec::new(),
            meetings: Vec::new(),
            adopting: false,
            files: true,
        })
    }

    fn with(scope: Scope) -> Self {
        let before = scope.snapshot();
        Self { scope, before }
    }

    /// Waits until everything is as before, for at most [`PATIENCE`].
    ///
    /// # Errors
    /// Names what was left all that time, or is gone.
    pub fn check(&self) -> Result<(), Leaks> {
        let until = Instant::now() + PATIENCE;
        let mut staying = self.differences();
        loop {
            let now = self.differences();
            if now.is_empty() {
                return Ok(());
            }
            staying.retain(|key, _| now.contains_key(key));
            if Instant::now() > until {
                let leak = |(key, leak): (String, Leak)| {
                    (leak.kind.is_surely_ours() || staying.contains_key(&key)).then_some(leak)
                };
                let found: Vec<Leak> = now.into_iter().filter_map(leak).collect();
                return if found.is_empty() {
                    Ok(())
                } else {
                    Err(Leaks { found })
                };
            }
            thread::sleep(POLL);
        }
    }

    /// Kills, by pid, every descendant that was not there before: so that one leak fails one test.
    pub fn sweep(&self) {
        for process in descendants(own_pid()) {
            if !self.before.contains_key(&key_of(&process)) {
                // Gone in the meantime is as good.
                let _ = signal::kill(Pid::from_raw(process.pid), signal::Signal::SIGKILL);
            }
        }
        let until = Instant::now() + PATIENCE;
        while self.scope.adopting && Instant::now() < until && !descendants(own_pid()).is_empty() {
            reap_adopted();
            thread::sleep(POLL);
        }
    }

    fn differences(&self) -> BTreeMap<String, Leak> {
        let now = self.scope.snapshot();
        let leak = |(kind, name): &(Kind, String), gone| Leak {
            kind: *kind,
            name: name.clone(),
            gone,
        };
        let left = now
            .iter()
            .filter(|(key, _)| !self.before.contains_key(*key));
        let left = left.map(|(key, thing)| (key.clone(), leak(thing, false)));
        let gone = self
            .before
            .iter()
            .filter(|(key, (kind, _))| kind.must_not_vanish() && !now.contains_key(*key));
        let gone = gone.map(|(key, thing)| (key.clone(), leak(thing, true)));
        left.chain(gone).collect()
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// Of what kind.
    pub kind: Kind,
    /// Which one.
    pub name: String,
    /// Whether it was there before and is not now.
    pub gone: bool,
}

/// What an audit found.
#[derive(Clone, Debug)]
pub struct Leaks {
    /// Never empty.
    pub found: Vec<Leak>,
}

impl Leaks {
    /// Whether something of this kind, with `name` in its name, was left.
    pub fn names(&self, kind: Kind, name: &str) -> bool {
        self.found
            .iter()
            .any(|leak| leak.kind == kind && !leak.gone && leak.name.contains(name))
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} not as before:", self.found.len())?;
        for leak in &self.found {
            let how = if leak.gone { "gone" } else { "left" };
            write!(f, "\n  {how}: {} {}", leak.kind.words(), leak.name)?;
        }
        Ok(())
    }
}

impl std::error::Error for Leaks {}

impl Scope {
    fn snapshot(&self) -> Snapshot {
        if self.adopting {
            reap_adopted();
        }
        let mut found = Snapshot::new();
        let mut add = |kind: Kind, names: Vec<String>| {
            found.extend(
                names
                    .into_iter()
                    .map(|name| (format!("{} {name}", kind.words()), (kind, name))),
            );
        };
        add(Kind::Mount, mounts(self.mounts_of));
        add(Kind::Link, links());
        add(Kind::NftRule, nft_rules());
        add(Kind::Cgroup, cgroups());
        add(Kind::TempFile, self.temp_files());
        add(Kind::Lease, self.leases());
        if self.files {
            add(Kind::OpenFile, open_files());
        }
        let mut family = descendants(own_pid());
        family.retain(|process| !stands_by(process));
        found.extend(namespaces(&family));
        found.extend(ports(&family));
        found.extend(family.iter().map(|process| {
            let kind = if process.is_zombie() {
                Kind::Zombie
            } else {
                Kind::Process
            };
            (key_of(process), (kind, describe(process)))
        }));
        found
    }

    fn leases(&self) -> Vec<String> {
        let mut ahead = self.meetings.clone();
        ahead.push(MEETING_OF_ROOT.into());
        let mut found = Vec::new();
        while let Some(directory) = ahead.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                // What a killed `cargo orbit test` leaves of its session is taken by the next.
                if entry.file_name() == "sessions" {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    ahead.push(entry.path());
                } else {
                    found.push(entry.path().display().to_string());
                }
            }
        }
        found
    }

    fn temp_files(&self) -> Vec<String> {
        let whole = self
            .directories
            .iter()
            .map(|directory| (directory.clone(), ""));
        // Other programs make files in these too; what Orbit makes there has its name in it.
        let shared =
            ["/tmp", "/var/tmp", "/dev/shm", "/run"].map(|path| (PathBuf::from(path), "orbit"));
        let mut found = Vec::new();
        for (directory, part) in whole.chain(shared) {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                // Who comes first makes it, and it stays: what is in it is another kind.
                let is_meeting_place = entry.path() == Path::new(MEETING_OF_ROOT);
                if entry.file_name().to_string_lossy().contains(part) && !is_meeting_place {
                    found.push(entry.path().display().to_string());
                }
            }
        }
        found
    }
}

fn own_pid() -> i32 {
    process::id() as i32
}

/// Whether it is an init that waits for the next sandbox: of those a supervisor has one, which is none's, and ends with it. One
/// that has lost its supervisor is adopted by somebody else.
fn stands_by(process: &Process) -> bool {
    let parent = Process::read(process.parent);
    process.name == "orbit-spare" && parent.is_some_and(|parent| parent.name == "orbit")
}

fn key_of(process: &Process) -> String {
    format!("process {} of tick {}", process.pid, process.start_ticks)
}

fn describe(process: &Process) -> String {
    format!("{} {}", process.pid, process.command)
}

fn mounts(pid: i32) -> Vec<String> {
    let path = if pid == 0 {
        "/proc/thread-self/mountinfo".into()
    } else {
        format!("/proc/{pid}/mountinfo")
    };
    let table = fs::read_to_string(path).unwrap_or_default();
    table
        .lines()
        .map(|line| {
            let (place, what) = line.split_once(" - ").unwrap_or((line, ""));
            let words: Vec<&str> = place.split(' ').collect();
            let [id, _, _, root, point, ..] = words[..] else {
                return line.to_owned();
            };
            let what = what.split(' ').take(2).collect::<Vec<_>>().join(" ");
            format!("{id} at {point}: {what}, root {root}")
        })
        .collect()
}

fn namespaces(family: &[Process]) -> Snapshot {
    let ours = Process::read(own_pid())
        .map(|me| me.namespaces())
        .unwrap_or_default();
    let mut found = Snapshot::new();
    for process in family {
        for name in process.namespaces().difference(&ours) {
            let described = || (Kind::Namespace, format!("{name} of {}", describe(process)));
            found
                .entry(format!("namespace {name}"))
                .or_insert_with(described);
        }
    }
    found
}

fn ports(family: &[Process]) -> Snapshot {
    let listening = listening();
    let me = Process::read(own_pid());
    let mut found = Snapshot::new();
    for process in family.iter().chain(me.as_ref()) {
        for (_, target) in process.files() {
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'));
            if let Some(name) = inode.and_then(|inode| listening.get(inode)) {
                found.insert(
                    target,
                    (
                        Kind::ListeningPort,
                        format!("{name} of {}", describe(process)),
                    ),
                );
            }
        }
    }
    found
}

fn open_files() -> Vec<String> {
    let listed_through = format!("/proc/{}/fd", own_pid());
    let files = Process::read(own_pid())
        .map(|me| me.files())
        .unwrap_or_default();
    files
        .into_iter()
        .filter(|(_, target)| *target != listed_through)
        .map(|(fd, target)| format!("{fd} -> {target}"))
        .collect()
}

fn links() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    table
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect()
}

fn nft_rules() -> Vec<String> {
    if !geteuid().is_root() {
        return Vec::new();
    }
    // --stateless: counters move by themselves.
    let Ok(output) = Command::new("nft")
        .args(["--stateless", "list", "ruleset"])
        .output()
    else {
        return Vec::new();
    };
    let (mut table, mut chain) = (String::new(), String::new());
    let mut rules = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match line.len() - line.trim_start().len() {
            0 => line.clone_into(&mut table),
            1 => line.trim().clone_into(&mut chain),
            _ => {}
        }
        if line.trim() != "}" {
            rules.push(format!("{table} {chain} {}", line.trim()));
        }
    }
    rules
}

/// Those that Orbit made, which have its name, and what is below them: whoever else runs on this machine makes groups too.
/// All but the leaf that Orbit makes once where it divides a group: it stays, as the processes do that it found there.
fn cgroups() -> Vec<String> {
    const CALLERS: &str = "orbit-callers";
    let (mut found, mut ahead) = (Vec::new(), vec![(PathBuf::from("/sys/fs/cgroup"), 0)]);
    while let Some((directory, depth)) = ahead.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let is_group = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_group && entry.file_name() != CALLERS && depth < CGROUP_DEPTH_MAX {
                let path = entry.path().display().to_string();
                if path.contains("orbit") {
                    found.push(path);
                }
                ahead.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

/// Reaps what ended and came to us. A zombie whose parent is another process stays, and is named.
fn reap_adopted() {
    for process in descendants(own_pid()) {
        if process.is_zombie() && process.parent == own_pid() {
            // Reaped by someone else in the meantime is as good.
            let _ = wait::waitpid(Pid::from_raw(process.pid), Some(wait::WaitPidFlag::WNOHANG));
        }
    }
}
