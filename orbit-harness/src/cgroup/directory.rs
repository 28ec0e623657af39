//! One control group: its directory, and the files in it.

use std::{
    fs,
    io::{self, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags};

use super::{LimitError, Setting};

/// How long a control group may take to become empty once everything in it was killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A control group that this process made. Whatever still lives in it is killed, and it is removed, when this
/// value is dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// The directory itself: files are reached through it, and a sandbox is born into it.
    fd: OwnedFd,
    /// The one below it in which a sandbox is born instead, where it could write to its own: it shows the same
    /// limits, and those that hold are above what it sees.
    inner: Option<OwnedFd>,
}

/// What the control group below another is called.
const INNER: &str = "sandbox";

impl Directory {
    /// Makes the control group, whose parent is there.
    pub(super) fn create(path: PathBuf) -> Result<Self, LimitError> {
        let made = fs::create_dir(&path).and_then(|()| open(&path));
        match made {
            Ok(fd) => Ok(Self {
                path,
                fd,
                inner: None,
            }),
            Err(error) => Err(LimitError::io("make the control group", path)(error)),
        }
    }

    /// Makes the one below it.
    pub(super) fn add_inner(&mut self) -> Result<(), LimitError> {
        let has = words(&self.path, "cgroup.controllers")
            .map_err(LimitError::io("read the controllers of", &self.path))?;
        let enabled: Vec<String> = has.iter().map(|name| format!("+{name}")).collect();
        let inner = self.path.join(INNER);
        write(&self.path, "cgroup.subtree_control", &enabled.join(" "))
            .and_then(|()| fs::create_dir(&inner))
            .and_then(|()| open(&inner))
            .map(|fd| self.inner = Some(fd))
            .map_err(LimitError::io("make the control group", inner))
    }

    /// Lets `uid` and `gid` put processes into it, and nothing else.
    pub(super) fn give_to(&self, ids: Option<(u32, u32)>) -> Result<(), LimitError> {
        if self.inner.is_some() {
            give_procs(&self.path.join(INNER), ids)?;
        }
        give_procs(&self.path, ids)
    }

    /// Writes one limit.
    ///
    /// # Errors
    /// Where the kernel does not take it.
    pub(crate) fn set(&self, setting: &Setting) -> Result<(), LimitError> {
        // What it is shown may already be otherwise by its own doing: that it is not what holds harms nobody.
        if let Some(inner) = &self.inner {
            let _ = write_at(inner, &setting.file, &setting.value);
        }
        match self.write(&setting.file, &setting.value) {
            Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            // Its files are there where its controller is enabled.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LimitError::NotThere {
                controller: setting.controller,
                at: self.path.clone(),
            }),
            other => other.map_err(|source| LimitError::Refused {
                controller: setting.controller,
                setting: setting.to_string(),
                at: self.path.clone(),
                source,
            }),
        }
    }

    /// Stops every process in it, or lets them go on, and returns once the kernel says that it is so.
    ///
    /// # Errors
    /// Where the kernel refuses, or is not done in some seconds.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), LimitError> {
        self.begin_to_freeze(frozen)?;
        if wait_until(|| self.has_settled(frozen)) {
            return Ok(());
        }
        Err(self.cannot_freeze(io::ErrorKind::TimedOut.into()))
    }

    /// The same, without a wait for the end.
    pub(crate) fn begin_to_freeze(&self, frozen: bool) -> Result<(), LimitError> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value)
            .map_err(|error| self.cannot_freeze(error))
    }

    /// Whether every process in it stands still, or none.
    pub(crate) fn has_settled(&self, frozen: bool) -> bool {
        let line = if frozen { "frozen 1" } else { "frozen 0" };
        self.read("cgroup.events")
            .is_some_and(|text| text.lines().any(|found| found == line))
    }

    fn cannot_freeze(&self, error: io::Error) -> LimitError {
        LimitError::io("freeze or thaw", self.path.join("cgroup.freeze"))(error)
    }

    /// Whether every process in it stands still.
    #[cfg(feature = "images")]
    pub(crate) fn is_frozen(&self) -> bool {
        self.has_settled(true)
    }

    /// The text of a file; `None` where this kernel has none of it.
    pub(crate) fn read(&self, file: &str) -> Option<String> {
        read_at(&self.fd, file)
    }

    /// The same file of the control group below it, if there is one: some counters are of the group alone in which
    /// a limit was met.
    pub(crate) fn read_inner(&self, file: &str) -> Option<String> {
        read_at(self.inner.as_ref()?, file)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        write_at(&self.fd, file, value)
    }
}

/// Where a sandbox is born.
impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_ref().unwrap_or(&self.fd).as_fd()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What stays is reaped by the next start.
        let _ = remove_tree(&self.path);
    }
}

fn read_at(directory: &OwnedFd, file: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(directory, file, flags, Mode::empty());
    io::read_to_string(fs::File::from(opened.ok()?)).ok()
}

fn write_at(directory: &OwnedFd, file: &str, value: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(directory, file, flags, Mode::empty())?;
    fs::File::from(opened).write_all(value.as_bytes())
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Makes `cgroup.procs` of `path` writable for `ids`: what the kernel asks of who moves a process, or bears one,
/// into a control group, and of the common ancestor of both.
///
/// Source: Linux, kernel/cgroup/cgroup.c, `cgroup_procs_write_permission`; cgroup-v2.rst, "Delegation".
pub(super) fn give_procs(path: &Path, ids: Option<(u32, u32)>) -> Result<(), LimitError> {
    let Some((uid, gid)) = ids else { return Ok(()) };
    let file = path.join("cgroup.procs");
    std::os::unix::fs::chown(&file, Some(uid), Some(gid))
        .map_err(LimitError::io("give to the supervisor", file))
}

/// Writes `value` to a file of the control group at `path`, in one write as the kernel wants it.
pub(super) fn write(path: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = path.join(file);
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

/// The words of a file, such as those of `cgroup.controllers`.
pub(super) fn words(path: &Path, file: &str) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(path.join(file))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Kills everything at and below `path`, and removes it from the leaves up.
///
/// # Errors
/// Where it does not become empty in some seconds, or is not ours.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match remove_empty_tree(path) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        other => return other,
    }
    kill(path);
    let mut last = Ok(());
    wait_until(|| {
        last = remove_empty_tree(path);
        !matches!(&last, Err(error) if error.raw_os_error() == Some(libc::EBUSY))
    });
    last
}

fn remove_empty_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // It has processes, or control groups, in it.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) => return Err(error),
    }
    for child in children(path)? {
        remove_empty_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The control groups right below `path`.
pub(super) fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path)?;
    Ok(entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

/// Kills every process at and below `path`: at once with `cgroup.kill` (Linux 5.14), one by one before that.
fn kill(path: &Path) {
    if write(path, "cgroup.kill", "1").is_ok() {
        return;
    }
    for child in children(path).unwrap_or_default() {
        kill(&child);
    }
    for pid in words(path, "cgroup.procs").unwrap_or_default() {
        let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // ESRCH: it is gone already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Whether `done` came true in time.
fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(100);
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    true
}
