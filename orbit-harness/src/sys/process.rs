//! Processes: forks of a single-threaded process, their end, and what they must not inherit.

use std::{
    ffi::{CStr, c_int},
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    panic::AssertUnwindSafe,
    time::Duration,
};

use super::Words;

/// `libc` has it as an `int`, which it does not fit. Source: Linux, include/uapi/linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Proof that this process has one thread, so that a fork of it may run any code.
///
/// Neither `Send` nor `Sync`. A fork of a single-threaded process is single-threaded too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SingleThreaded(PhantomData<*const ()>);

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Fork {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

impl SingleThreaded {
    /// # Safety
    /// The calling thread is the only one of this process, and no other is started while the proof or a copy
    /// of it is used to fork.
    pub(crate) unsafe fn assume() -> Self {
        Self(PhantomData)
    }

    /// Forks with the `CLONE_NEW…` flags in `namespaces`; the child is born inside `cgroup` where one is given.
    ///
    /// C: `clone3(&args, sizeof(args))` without `CLONE_VM`, that is, a fork. Source: clone(2).
    ///
    /// # Errors
    /// What the kernel answers: EPERM without privilege over the user namespace, ENOSPC or EUSERS at a limit
    /// on namespaces, EAGAIN at a limit on processes, ENOSYS where a container's seccomp filter hides clone3.
    pub(crate) fn fork(
        self,
        namespaces: c_int,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> io::Result<Fork> {
        clone3(self, namespaces, libc::SIGCHLD, cgroup)
    }

    /// As [`Self::fork`], with the new process a sibling of this one: its parent is this one's parent.
    pub(crate) fn fork_sibling(self, namespaces: c_int) -> io::Result<Fork> {
        clone3(self, namespaces | libc::CLONE_PARENT, 0, None)
    }
}

/// Forks this process with the `CLONE_NEW…` flags in `namespaces`, where it has one thread: gives the number of the fork, which is
/// `name` to who looks at it, knows neither arguments nor environment, and runs `child`, with whose answer it exits. One that
/// panics is aborted. Its end sends no signal.
///
/// `None` where it has other threads, and where its words cannot be forgotten.
///
/// # Errors
/// As [`SingleThreaded::fork`].
pub(crate) fn fork_as(
    name: &CStr,
    namespaces: c_int,
    child: impl FnOnce(SingleThreaded) -> c_int,
) -> io::Result<Option<i32>> {
    let Some(words) = Words::find().ok().filter(|words| words.fits(name)) else {
        return Ok(None);
    };
    // Source: proc_pid_task(5).
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Ok(None);
    }
    // This one is the only thread, and starts no other before the fork has one of its own.
    let single_threaded = SingleThreaded(PhantomData);
    match clone3(single_threaded, namespaces, 0, None)? {
        Fork::Child => {
            let run = AssertUnwindSafe(move || {
                // SAFETY: this is the fork, and what `child` has taken along from before is its own.
                unsafe { words.forget(single_threaded, name) };
                child(single_threaded)
            });
            // What lies below on the stack belongs to a program that this process is no more.
            exit_now(std::panic::catch_unwind(run).unwrap_or_else(|_| std::process::abort()))
        }
        Fork::Parent { pid, .. } => Ok(Some(pid)),
    }
}

fn clone3(
    _: SingleThreaded,
    flags: c_int,
    exit_signal: c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Fork> {
    let mut pidfd: RawFd = -1;
    let bits = |number: c_int| u64::from(number.cast_unsigned());
    let mut args = libc::clone_args {
        flags: bits(flags | libc::CLONE_PIDFD),
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: bits(exit_signal),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = bits(cgroup.as_raw_fd());
    }
    // SAFETY: `args` is a whole `clone_args` of the size given, and `pidfd` outlives the call. Without CLONE_VM
    // and with no stack of its own the child goes on with a copy of this memory, as after fork; the first
    // argument proves that no other thread holds a lock in it.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    match i32::try_from(answer) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) if pid > 0 => {
            // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent { pid, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once: no destructors, no exit handlers, which belong to a program that never ran.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Sends `signal`, by its number, to a child of this process that it has not reaped: real-time signals too, which
/// have no name.
///
/// C: `kill(pid, signal)`. Source: kill(2).
///
/// # Errors
/// EINVAL for no signal, EPERM without the right to.
pub(crate) fn signal_child(pid: i32, signal: c_int) -> io::Result<()> {
    // SAFETY: two numbers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As [`signal_child`], for the process that `pidfd` stands for.
///
/// C: `pidfd_send_signal(pidfd, signal, NULL, 0)`. Source: pidfd_send_signal(2).
///
/// # Errors
/// As [`signal_child`]; ESRCH where it has ended.
pub(crate) fn signal_process(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    let (fd, no_info) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a descriptor, a number, and no information about the signal.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A process that ended, and what it used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waited {
    pub(crate) pid: i32,
    /// The signal that ended it, if one did. A plain number, as it may be a real-time signal.
    pub(crate) signal: Option<i32>,
    /// Its exit code, where no signal did.
    pub(crate) code: i32,
    pub(crate) cpu_user: Duration,
    pub(crate) cpu_system: Duration,
    pub(crate) max_rss_bytes: u64,
}

/// Reaps one child that has ended. `None`: there are children, and all are alive.
///
/// C: `wait4(-1, &status, block ? 0 : WNOHANG, &usage)`. Source: wait4(2), getrusage(2).
///
/// # Errors
/// ECHILD where there is no child at all.
pub(crate) fn wait_any(block: bool) -> io::Result<Option<Waited>> {
    wait4(-1, block)
}

/// Reaps the child `pid`, where it has ended.
///
/// C: `wait4(pid, &status, WNOHANG, &usage)`. Source: wait4(2), getrusage(2).
///
/// # Errors
/// ECHILD where it is no child, or was reaped.
pub(crate) fn wait_child(pid: i32) -> io::Result<Option<Waited>> {
    wait4(pid, false)
}

fn wait4(pid: i32, block: bool) -> io::Result<Option<Waited>> {
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let options = if block {
        libc::__WALL
    } else {
        libc::__WALL | libc::WNOHANG
    };
    // SAFETY: both pointers are to live values of the types wait4 fills.
    match unsafe { libc::wait4(pid, &raw mut status, options, &raw mut usage) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Waited {
            pid,
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            code: libc::WEXITSTATUS(status),
            cpu_user: duration(usage.ru_utime),
            cpu_system: duration(usage.ru_stime),
            max_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        })),
    }
}

/// Reaps the child `pid`, which was killed: waits as long as the kernel takes.
///
/// C: `wait4(pid, NULL, __WALL, NULL)`. Source: wait4(2).
pub(crate) fn wait_for(pid: i32) {
    // SAFETY: null pointers are allowed for what is not asked for. ECHILD, where it was reaped already, is as good.
    unsafe {
        libc::wait4(
            pid,
            std::ptr::null_mut(),
            libc::__WALL,
            std::ptr::null_mut(),
        )
    };
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_usec * 1000).unwrap_or(0),
    )
}

/// Closes every descriptor above 2 but those in `keep`: what a fork inherited and its code will never use.
///
/// C: `close_range(first, last, 0)` for each gap. Source: close_range(2), Linux 5.9.
///
/// Values that own a closed descriptor must not be used or dropped afterwards; the caller is a process that
/// ends by [`exit_now`] or `execve`, and has just forgotten all it was.
///
/// # Errors
/// ENOSYS on an older kernel.
pub(crate) fn close_inherited(keep: &mut [RawFd]) -> io::Result<()> {
    keep.sort_unstable();
    let mut first = 3u32;
    for fd in keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .filter(|fd| *fd > 2)
    {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the system call takes three numbers and touches no memory of this process.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has a write beyond the limit on the size of a file fail with EFBIG, where it would end this process.
///
/// C: `signal(SIGXFSZ, SIG_IGN)`. Source: setrlimit(2), `RLIMIT_FSIZE`.
pub(crate) fn survive_file_size_limit() {
    // SAFETY: SIG_IGN is a valid disposition for this signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Gives every signal its default effect and blocks none, whatever the process that started this one did.
///
/// C: `rt_sigaction(n, SIG_DFL)` for each signal, then `rt_sigprocmask(SIG_SETMASK, {})`.
pub(crate) fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid disposition for every signal; where it may not be changed (SIGKILL,
        // SIGSTOP, the C library's own two) the call only answers EINVAL.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // An empty mask is always valid: this cannot fail.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}
