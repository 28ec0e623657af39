//! The last steps of a sandbox's program: from a child of the init to `execve`.
//!
//! The child shares the init's memory until it executes (`CLONE_VM | CLONE_VFORK`, as posix_spawn does), so
//! nothing is copied, and a failure is reported by writing it into that memory. In exchange the child may only
//! make system calls: it allocates nothing, takes no lock and calls no function of the C library that keeps
//! state. All that it needs is prepared by [`Program::spawn`].
//!
//! Where it is known who the program will be, but not what, a child can wait for that: [`poise`](super::poise).

use std::{
    ffi::{CStr, CString, c_char, c_void},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr,
};

use serde::{Deserialize, Serialize};

use super::{SingleThreaded, seccomp};
use crate::security::seccomp::bpf::SockFilter;

/// What is executed, and with which streams: all of it decided, nothing looked up.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// Paths to try, in order: more than one where a bare name is looked up in `PATH`.
    pub(crate) candidates: &'a [CString],
    pub(crate) argv: &'a [CString],
    pub(crate) env: &'a [CString],
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    pub(crate) terminal: Terminal,
}

/// Who a program is, and what it may do: what a process takes on before it becomes one.
#[derive(Debug)]
pub(crate) struct Attributes<'a> {
    pub(crate) working_dir: &'a CStr,
    /// Entered before the ids are taken on.
    pub(crate) user_namespace: Option<BorrowedFd<'a>>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None` where this user namespace denies `setgroups`.
    pub(crate) groups: Option<&'a [u32]>,
    pub(crate) umask: u32,
    /// `(resource, soft, hard)`.
    pub(crate) rlimits: &'a [(u32, u64, u64)],
    /// The bounding set, and for root the permitted and effective ones.
    pub(crate) capabilities: u64,
    /// Empty for none.
    pub(crate) filter: &'a [SockFilter],
}

/// Whether standard input becomes the controlling terminal of the program's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terminal {
    None,
    Controlling,
}

/// The step at which a program could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ExecStep {
    Fork,
    NewSession,
    StandardStreams,
    ControllingTerminal,
    CloseDescriptors,
    ResourceLimits,
    EnterUserNamespace,
    BoundingSet,
    Groups,
    Ids,
    WorkingDir,
    Capabilities,
    NoNewPrivileges,
    SignalMask,
    Seccomp,
    Execute,
}

/// A step that failed, and the error number it failed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecFailure {
    pub(crate) step: ExecStep,
    pub(crate) errno: i32,
}

/// What the child reads, as it needs it: pointers and numbers.
pub(super) struct Prepared<'a> {
    program: &'a Program<'a>,
    candidates: &'a [*const c_char],
    argv: &'a [*const c_char],
    env: &'a [*const c_char],
}

/// What the child of [`Program::spawn`] is given, and says.
struct Spawned<'a> {
    prepared: &'a Prepared<'a>,
    attributes: &'a Attributes<'a>,
    failure: Option<ExecFailure>,
}

impl Program<'_> {
    /// Starts the program as a child of this process, and returns its number once it executes.
    ///
    /// # Errors
    /// The step that failed. The child is gone then, and was reaped.
    pub(crate) fn spawn(
        &self,
        _: SingleThreaded,
        attributes: &Attributes<'_>,
    ) -> Result<i32, ExecFailure> {
        /// The child needs some hundred bytes, and one path of 4 KiB.
        const STACK_BYTES: usize = 64 * 1024;

        self.with_prepared(|prepared| {
            let mut stack = stack(STACK_BYTES);
            let mut spawned = Spawned {
                prepared,
                attributes,
                failure: None,
            };
            // SAFETY: the stack is aligned to 16, grows down from its end and lives until the call returns, which with
            // CLONE_VFORK is when the child has executed or is gone. `child` gets a pointer to a `Spawned`, which nothing
            // else uses meanwhile: this thread is suspended and, as the caller proves, the only one.
            let pid = unsafe {
                libc::clone(
                    child,
                    stack.as_mut_ptr_range().end.cast(),
                    libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
                    ptr::from_mut(&mut spawned).cast(),
                )
            };
            if pid == -1 {
                return Err(failed(ExecStep::Fork));
            }
            match spawned.failure {
                None => Ok(pid),
                Some(failure) => {
                    reap(pid);
                    Err(failure)
                }
            }
        })
    }

    /// Becomes the program.
    pub(crate) fn execute(&self, _: SingleThreaded, attributes: &Attributes<'_>) -> ExecFailure {
        self.with_prepared(|prepared| {
            // SAFETY: this process is single-threaded, so what `become_program` asks of a child holds here.
            unsafe { become_program(prepared, attributes) }
        })
    }

    pub(super) fn with_prepared<T>(&self, act: impl FnOnce(&Prepared<'_>) -> T) -> T {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings
                .iter()
                .map(|s| s.as_ptr())
                .chain([ptr::null()])
                .collect()
        };
        let (candidates, argv, env) = (
            pointers(self.candidates),
            pointers(self.argv),
            pointers(self.env),
        );
        let candidates = &candidates[..candidates.len() - 1];
        act(&Prepared {
            program: self,
            candidates,
            argv: &argv,
            env: &env,
        })
    }
}

/// Not set to zero: each page of it that is touched is a fault, and a child needs few.
pub(super) fn stack(bytes: usize) -> Box<[MaybeUninit<u128>]> {
    Box::new_uninit_slice(bytes / size_of::<u128>())
}

/// A child that ended on its own; what waitpid answers changes nothing.
pub(super) fn reap(pid: i32) {
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
}

/// The first function of a child of [`Program::spawn`], on its own stack.
extern "C" fn child(spawned: *mut c_void) -> i32 {
    // SAFETY: `spawn` passes a pointer to a `Spawned` that outlives this process's use of its memory.
    let spawned = unsafe { &mut *spawned.cast::<Spawned<'_>>() };
    // SAFETY: this is the child of `spawn`.
    let failure = unsafe { become_program(spawned.prepared, spawned.attributes) };
    spawned.failure = Some(failure);
    exit_child()
}

/// Ends a child that shares its parent's memory: this process only, as CLONE_THREAD was not given.
pub(super) fn exit_child() -> i32 {
    // SAFETY: exit_group has no preconditions.
    unsafe { libc::syscall(libc::SYS_exit_group, 127) };
    127
}

/// Takes on everything the program is to have, in the one order that works, and executes it.
///
/// Returns only where a step failed.
///
/// # Safety
/// This process must be one that may be changed beyond repair: a child made for it, or one that is about to be
/// replaced. It may share memory with a suspended parent, so only system calls are made.
unsafe fn become_program(prepared: &Prepared<'_>, attributes: &Attributes<'_>) -> ExecFailure {
    let changed = new_session()
        // SAFETY: as the caller promises.
        .and_then(|()| unsafe { take_streams(prepared.program, 0) })
        // SAFETY: likewise.
        .and_then(|()| unsafe { take_on(attributes) });
    match changed {
        Ok(()) => execute(prepared),
        Err(failure) => failure,
    }
}

/// Returns the failure of a step that the kernel refuses.
macro_rules! step {
    ($step:ident, $($call:tt)*) => {
        // SAFETY: the arguments are numbers, or pointers to live values of the types that the call takes;
        // each call is named with its arguments at its place below.
        if unsafe { $($call)* } == -1 {
            return Err(failed(ExecStep::$step));
        }
    };
}

pub(super) fn new_session() -> Result<(), ExecFailure> {
    step!(NewSession, libc::syscall(libc::SYS_setsid));
    Ok(())
}

/// Makes the program's streams this process's own, and has all other descriptors go when it executes: whoever opened them,
/// they are there to report until then. `flags` are those of close_range(2).
///
/// # Safety
/// As [`become_program`].
pub(super) unsafe fn take_streams(program: &Program<'_>, flags: u32) -> Result<(), ExecFailure> {
    step!(
        CloseDescriptors,
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC | flags
        )
    );
    // 0, 1 and 2 may themselves be among the sources: move those out of the way first.
    let mut sources: [RawFd; 3] = program.stdio.map(|fd| fd.as_raw_fd());
    for source in &mut sources {
        if *source < 3 {
            step!(StandardStreams, {
                let moved = libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, 3);
                *source = moved;
                moved
            });
        }
    }
    for (number, source) in (0..).zip(sources) {
        step!(StandardStreams, libc::dup3(source, number, 0));
    }
    if program.terminal == Terminal::Controlling {
        step!(ControllingTerminal, libc::ioctl(0, libc::TIOCSCTTY, 0));
    }
    Ok(())
}

/// Takes on who the program is, and what it may do, in the one order that works.
///
/// # Safety
/// As [`become_program`].
pub(super) unsafe fn take_on(attributes: &Attributes<'_>) -> Result<(), ExecFailure> {
    for (resource, soft, hard) in attributes.rlimits {
        let limit = libc::rlimit64 {
            rlim_cur: *soft,
            rlim_max: *hard,
        };
        step!(
            ResourceLimits,
            libc::syscall(libc::SYS_prlimit64, 0, *resource, &raw const limit, 0)
        );
    }
    if let Some(namespace) = attributes.user_namespace {
        step!(
            EnterUserNamespace,
            libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER)
        );
    }
    for capability in (0..64).filter(|bit| attributes.capabilities & (1 << bit) == 0) {
        // SAFETY: prctl with numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == -1 {
            match last_errno() {
                libc::EINVAL => break, // beyond the last capability this kernel knows
                _ => return Err(failed(ExecStep::BoundingSet)),
            }
        }
    }
    // The system calls, not the C library's functions: those would signal threads that share this memory.
    if let Some(groups) = attributes.groups {
        step!(
            Groups,
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr())
        );
    }
    let (uid, gid) = (attributes.uid, attributes.gid);
    step!(Ids, libc::syscall(libc::SYS_setresgid, gid, gid, gid));
    step!(Ids, libc::syscall(libc::SYS_setresuid, uid, uid, uid));
    enter_working_dir(attributes.working_dir)?;

    // SAFETY: umask takes a number and cannot fail.
    unsafe { libc::syscall(libc::SYS_umask, attributes.umask) };
    step!(
        Capabilities,
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0
        )
    );
    let held = if uid == 0 { attributes.capabilities } else { 0 };
    hold_only(held).map_err(|errno| ExecFailure {
        step: ExecStep::Capabilities,
        errno,
    })?;
    step!(
        NoNewPrivileges,
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    );

    // The init blocks the signals it waits for; the program starts with none blocked.
    let none = 0u64;
    step!(
        SignalMask,
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            0,
            size_of_val(&none)
        )
    );
    if attributes.filter.is_empty() {
        return Ok(());
    }
    seccomp::install(attributes.filter).map_err(|errno| ExecFailure {
        step: ExecStep::Seccomp,
        errno,
    })
}

/// One outside of the root, reached through a leaked descriptor, has no name, and is refused (CVE-2024-21626).
pub(super) fn enter_working_dir(path: &CStr) -> Result<(), ExecFailure> {
    step!(WorkingDir, libc::syscall(libc::SYS_chdir, path.as_ptr()));
    let mut path = [0u8; libc::PATH_MAX as usize];
    step!(
        WorkingDir,
        libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len())
    );
    if path[0] == b'/' {
        return Ok(());
    }
    Err(ExecFailure {
        step: ExecStep::WorkingDir,
        errno: libc::ENOENT,
    })
}

/// As execvp(3): goes on past what is not there, and prefers to report what was there and refused.
pub(super) fn execute(prepared: &Prepared<'_>) -> ExecFailure {
    let mut errno = libc::ENOENT;
    for candidate in prepared.candidates {
        // SAFETY: the path and the members of both lists are C strings that outlive the call, and both lists
        // end with a null pointer.
        unsafe { libc::execve(*candidate, prepared.argv.as_ptr(), prepared.env.as_ptr()) };
        match last_errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => errno = libc::EACCES,
            _ => return failed(ExecStep::Execute),
        }
    }
    ExecFailure {
        step: ExecStep::Execute,
        errno,
    }
}

/// The failure of the system call that was made last.
pub(super) fn failed(step: ExecStep) -> ExecFailure {
    ExecFailure {
        step,
        errno: last_errno(),
    }
}

/// Makes `capabilities` the permitted and effective sets of this thread, and empties the inheritable one.
///
/// C: `capset({_LINUX_CAPABILITY_VERSION_3, 0}, data)`. Source: capset(2).
pub(crate) fn hold_only(capabilities: u64) -> Result<(), i32> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;

    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the set")]
    let data = [capabilities as u32, (capabilities >> 32) as u32].map(|half| Data {
        effective: half,
        permitted: half,
        inheritable: 0,
    });
    // SAFETY: version 3 takes the header and an array of two data elements; the kernel only reads them.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
