//! The last steps of a sandbox's program: from a child of the init to `execve`.
//!
//! The child shares the init's memory until it executes (`CLONE_VM | CLONE_VFORK`, as posix_spawn does), so
//! nothing is copied, and a failure is reported by writing it into that memory. In exchange the child may only
//! make system calls: it allocates nothing, takes no lock and calls no function of the C library that keeps
//! state. All that it needs is prepared by [`Program::spawn`].

use std::{
    ffi::{CStr, CString, c_char, c_void},
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr,
};

use serde::{Deserialize, Serialize};

use super::{SingleThreaded, seccomp};
use crate::security::seccomp::bpf::SockFilter;

/// What a program is started with: all of it decided, nothing looked up.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// Paths to try, in order: more than one where a bare name is looked up in `PATH`.
    pub(crate) candidates: &'a [CString],
    pub(crate) argv: &'a [CString],
    pub(crate) env: &'a [CString],
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    pub(crate) terminal: Terminal,
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
struct Prepared<'a> {
    program: &'a Program<'a>,
    candidates: &'a [*const c_char],
    argv: &'a [*const c_char],
    env: &'a [*const c_char],
    failure: Option<ExecFailure>,
}

impl Program<'_> {
    /// Starts the program as a child of this process, and returns its number once it executes.
    ///
    /// # Errors
    /// The step that failed. The child is gone then, and was reaped.
    pub(crate) fn spawn(&self, _: SingleThreaded) -> Result<i32, ExecFailure> {
        /// The child needs some hundred bytes, and one path of 4 KiB.
        const STACK_BYTES: usize = 64 * 1024;

        self.with_prepared(|prepared| {
            // Not set to zero: each page of it that is touched is a fault, and the child needs few.
            let mut stack = Box::<[u128]>::new_uninit_slice(STACK_BYTES / size_of::<u128>());
            let top = stack.as_mut_ptr_range().end;
            // SAFETY: the stack is 64 KiB, aligned to 16, grows down from its end and lives until the call
            // returns, which with CLONE_VFORK is when the child has executed or is gone. `child` gets a
            // pointer to `prepared`, which nothing else uses meanwhile: this thread is suspended and, as the
            // caller proves, the only one.
            let pid = unsafe {
                libc::clone(
                    child,
                    top.cast(),
                    libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
                    ptr::from_mut(prepared).cast(),
                )
            };
            if pid == -1 {
                return Err(ExecFailure {
                    step: ExecStep::Fork,
                    errno: last_errno(),
                });
            }
            match prepared.failure {
                None => Ok(pid),
                Some(failure) => {
                    // It ended on its own; what waitpid answers changes nothing.
                    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
                    Err(failure)
                }
            }
        })
    }

    /// Becomes the program.
    pub(crate) fn execute(&self, _: SingleThreaded) -> ExecFailure {
        self.with_prepared(|prepared| {
            // SAFETY: this process is single-threaded, so what `become_program` asks of a child holds here.
            unsafe { become_program(prepared) }
        })
    }

    fn with_prepared<T>(&self, act: impl FnOnce(&mut Prepared<'_>) -> T) -> T {
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
        act(&mut Prepared {
            program: self,
            candidates,
            argv: &argv,
            env: &env,
            failure: None,
        })
    }
}

/// The child's first function, on its own stack.
extern "C" fn child(prepared: *mut c_void) -> i32 {
    // SAFETY: `spawn` passes a pointer to a `Prepared` that outlives this process's use of its memory.
    let prepared = unsafe { &mut *prepared.cast::<Prepared<'_>>() };
    // SAFETY: this is the child of `spawn`.
    let failure = unsafe { become_program(prepared) };
    prepared.failure = Some(failure);
    // SAFETY: exit_group has no preconditions. It ends this process only, as CLONE_THREAD was not given.
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
unsafe fn become_program(prepared: &Prepared<'_>) -> ExecFailure {
    let program = prepared.program;
    macro_rules! step {
        ($step:ident, $($call:tt)*) => {
            // SAFETY: the arguments are numbers, or pointers to live values of the types that the call takes;
            // each call is named with its arguments at its place below.
            if unsafe { $($call)* } == -1 {
                return ExecFailure { step: ExecStep::$step, errno: last_errno() };
            }
        };
    }

    step!(NewSession, libc::syscall(libc::SYS_setsid));

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
    for (resource, soft, hard) in program.rlimits {
        let limit = libc::rlimit64 {
            rlim_cur: *soft,
            rlim_max: *hard,
        };
        step!(
            ResourceLimits,
            libc::syscall(libc::SYS_prlimit64, 0, *resource, &raw const limit, 0)
        );
    }
    if let Some(namespace) = program.user_namespace {
        step!(
            EnterUserNamespace,
            libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER)
        );
    }
    // Everything above 2 goes when the program executes, whoever opened it, and is there to report until then.
    step!(
        CloseDescriptors,
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC
        )
    );

    for capability in (0..64).filter(|bit| program.capabilities & (1 << bit) == 0) {
        // SAFETY: prctl with numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == -1 {
            match last_errno() {
                libc::EINVAL => break, // beyond the last capability this kernel knows
                errno => {
                    return ExecFailure {
                        step: ExecStep::BoundingSet,
                        errno,
                    };
                }
            }
        }
    }
    // The system calls, not the C library's functions: those would signal threads that share this memory.
    if let Some(groups) = program.groups {
        step!(
            Groups,
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr())
        );
    }
    step!(
        Ids,
        libc::syscall(libc::SYS_setresgid, program.gid, program.gid, program.gid)
    );
    step!(
        Ids,
        libc::syscall(libc::SYS_setresuid, program.uid, program.uid, program.uid)
    );

    step!(
        WorkingDir,
        libc::syscall(libc::SYS_chdir, program.working_dir.as_ptr())
    );
    // A working directory outside of the root, reached through a leaked descriptor, has no name (CVE-2024-21626).
    let mut path = [0u8; libc::PATH_MAX as usize];
    step!(
        WorkingDir,
        libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len())
    );
    if path[0] != b'/' {
        return ExecFailure {
            step: ExecStep::WorkingDir,
            errno: libc::ENOENT,
        };
    }

    // SAFETY: umask takes a number and cannot fail.
    unsafe { libc::syscall(libc::SYS_umask, program.umask) };
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
    let held = if program.uid == 0 {
        program.capabilities
    } else {
        0
    };
    if let Err(errno) = hold_only(held) {
        return ExecFailure {
            step: ExecStep::Capabilities,
            errno,
        };
    }
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
    if !program.filter.is_empty()
        && let Err(errno) = seccomp::install(program.filter)
    {
        return ExecFailure {
            step: ExecStep::Seccomp,
            errno,
        };
    }

    // As execvp(3): go on past what is not there, and prefer to report what was there and refused.
    let mut errno = libc::ENOENT;
    for candidate in prepared.candidates {
        // SAFETY: the path and the members of both lists are C strings that outlive the call, and both lists
        // end with a null pointer.
        unsafe { libc::execve(*candidate, prepared.argv.as_ptr(), prepared.env.as_ptr()) };
        match last_errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => errno = libc::EACCES,
            other => {
                return ExecFailure {
                    step: ExecStep::Execute,
                    errno: other,
                };
            }
        }
    }
    ExecFailure {
        step: ExecStep::Execute,
        errno,
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
