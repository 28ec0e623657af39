//! System calls that a payload tries and should not get, and the few others that std does not have.

use std::{io, ptr};

use anyhow::{Result, bail};

/// `EPERM` and the like.
pub(crate) fn name_of(errno: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno))
}

fn answer(result: libc::c_long) -> String {
    if result == -1 {
        name_of(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        "ok".to_owned()
    }
}

macro_rules! call {
    ($number:ident $(, $argument:expr)* $(,)?) => {
        // SAFETY: arguments are numbers, null, or pointers to static C strings and live values, as each call
        // takes; none of the calls keeps a pointer. A call that is answered changes this payload only.
        answer(unsafe { libc::syscall(libc::$number $(, $argument)*) })
    };
}

/// Tries what would lead out, and prints `name answer` for each.
pub(crate) fn print_denied() {
    let tries: Vec<(&str, String)> = vec![
        (
            "mount",
            call!(
                SYS_mount,
                c"none".as_ptr(),
                c"/tmp".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                ptr::null::<u8>()
            ),
        ),
        (
            "bind",
            call!(
                SYS_mount,
                c"/".as_ptr(),
                c"/tmp".as_ptr(),
                ptr::null::<u8>(),
                libc::MS_BIND,
                ptr::null::<u8>()
            ),
        ),
        (
            "remount",
            call!(
                SYS_mount,
                ptr::null::<u8>(),
                c"/".as_ptr(),
                ptr::null::<u8>(),
                libc::MS_REMOUNT,
                ptr::null::<u8>()
            ),
        ),
        (
            "umount",
            call!(SYS_umount2, c"/proc/kcore".as_ptr(), libc::MNT_DETACH),
        ),
        (
            "pivot_root",
            call!(SYS_pivot_root, c"/tmp".as_ptr(), c"/tmp".as_ptr()),
        ),
        (
            "open_tree",
            call!(SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 1),
        ),
        ("fsopen", call!(SYS_fsopen, c"tmpfs".as_ptr(), 0)),
        (
            "move_mount",
            call!(SYS_move_mount, -1, c"".as_ptr(), -1, c"".as_ptr(), 0),
        ),
        ("unshare user", call!(SYS_unshare, libc::CLONE_NEWUSER)),
        ("unshare mount", call!(SYS_unshare, libc::CLONE_NEWNS)),
        ("unshare net", call!(SYS_unshare, libc::CLONE_NEWNET)),
        ("setns", call!(SYS_setns, 0, 0)),
        ("clone user", clone_user()),
        ("clone3", call!(SYS_clone3, ptr::null::<u8>(), 0)),
        ("keyctl", call!(SYS_keyctl, 0, -3, 0)),
        (
            "add_key",
            call!(
                SYS_add_key,
                c"user".as_ptr(),
                c"x".as_ptr(),
                c"x".as_ptr(),
                1,
                -3
            ),
        ),
        (
            "request_key",
            call!(
                SYS_request_key,
                c"user".as_ptr(),
                c"x".as_ptr(),
                ptr::null::<u8>(),
                0
            ),
        ),
        ("bpf", call!(SYS_bpf, 0, ptr::null::<u8>(), 0)),
        (
            "io_uring_setup",
            call!(SYS_io_uring_setup, 1, ptr::null::<u8>()),
        ),
        ("userfaultfd", call!(SYS_userfaultfd, 0)),
        (
            "perf_event_open",
            call!(SYS_perf_event_open, ptr::null::<u8>(), 0, -1, -1, 0),
        ),
        (
            "ptrace init",
            call!(SYS_ptrace, libc::PTRACE_ATTACH, 1, 0, 0),
        ),
        ("seize init", call!(SYS_ptrace, libc::PTRACE_SEIZE, 1, 0, 0)),
        ("read init", read_init()),
        ("kcmp init", call!(SYS_kcmp, 1, 1, 0, 0, 0)),
        (
            "init_module",
            call!(SYS_init_module, ptr::null::<u8>(), 0, c"".as_ptr()),
        ),
        ("finit_module", call!(SYS_finit_module, 0, c"".as_ptr(), 0)),
        (
            "kexec_load",
            call!(SYS_kexec_load, 0, 0, ptr::null::<u8>(), 0),
        ),
        ("reboot", call!(SYS_reboot, 0, 0, 0, 0)),
        ("swapon", call!(SYS_swapon, c"/x".as_ptr(), 0)),
        ("acct", call!(SYS_acct, ptr::null::<u8>())),
        (
            "settimeofday",
            call!(SYS_settimeofday, ptr::null::<u8>(), ptr::null::<u8>()),
        ),
        ("sethostname", call!(SYS_sethostname, c"x".as_ptr(), 1)),
        ("syslog", call!(SYS_syslog, 10, ptr::null::<u8>(), 0)),
        (
            "open_by_handle_at",
            call!(SYS_open_by_handle_at, 0, ptr::null::<u8>(), 0),
        ),
        (
            "quotactl",
            call!(SYS_quotactl, 0, ptr::null::<u8>(), 0, ptr::null::<u8>()),
        ),
        (
            "personality",
            call!(SYS_personality, libc::ADDR_NO_RANDOMIZE),
        ),
        ("mknod device", mknod(libc::S_IFCHR, libc::makedev(1, 11))),
        ("mknod disk", mknod(libc::S_IFBLK, libc::makedev(254, 0))),
        (
            "socket vsock",
            call!(SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ),
        // The kernel ignores the upper half of an int: so must a filter.
        (
            "socket vsock, high bits",
            call!(
                SYS_socket,
                (1_i64 << 32) | i64::from(libc::AF_VSOCK),
                libc::SOCK_STREAM,
                0
            ),
        ),
        (
            "socket alg",
            call!(SYS_socket, libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ),
        ("x32 getpid", x32_getpid()),
    ];
    for (name, answer) in tries {
        println!("{name}: {answer}");
    }
    // What must work, or the rest proves nothing.
    println!("mknod fifo: {}", mknod(libc::S_IFIFO, 0));
    println!("getpid: {}", call!(SYS_getpid));
    for (signal, name) in [
        (libc::SIGKILL, "KILL"),
        (libc::SIGSTOP, "STOP"),
        (libc::SIGSEGV, "SEGV"),
    ] {
        // SAFETY: a signal to another process.
        let sent = unsafe { libc::kill(1, signal) };
        println!("kill {name}: {}", answer(sent.into()));
    }
}

fn clone_user() -> String {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: as fork; the child, if there is one, ends at once.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: ends this child.
        unsafe { libc::_exit(0) };
    }
    answer(pid)
}

fn read_init() -> String {
    let mut byte = 0u8;
    let local = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: 0x40_0000 as *mut _,
        iov_len: 1,
    };
    call!(
        SYS_process_vm_readv,
        1,
        &raw const local,
        1_usize,
        &raw const remote,
        1_usize,
        0_usize
    )
}

fn mknod(kind: libc::mode_t, device: libc::dev_t) -> String {
    call!(
        SYS_mknodat,
        libc::AT_FDCWD,
        c"/tmp/node".as_ptr(),
        kind | 0o600,
        device
    )
}

#[cfg(target_arch = "x86_64")]
fn x32_getpid() -> String {
    // SAFETY: takes nothing, changes nothing.
    answer(unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) })
}

#[cfg(not(target_arch = "x86_64"))]
fn x32_getpid() -> String {
    "ENOSYS".to_owned()
}

pub(crate) fn netlink() -> String {
    call!(
        SYS_socket,
        libc::AF_NETLINK,
        libc::SOCK_RAW,
        libc::NETLINK_ROUTE
    )
}

/// CVE-2017-5226: types into the terminal of whoever started this. With high bits set too, which the kernel
/// does not look at.
pub(crate) fn type_into_terminal() {
    for (name, request) in [
        ("TIOCSTI", 0x5412_u64),
        ("TIOCSTI, high bits", 0x1_0000_5412),
    ] {
        for fd in 0..3 {
            println!(
                "{name} {fd}: {}",
                call!(SYS_ioctl, fd, request, c"!".as_ptr())
            );
        }
    }
    println!(
        "TIOCLINUX: {}",
        call!(SYS_ioctl, 0, 0x541c, c"\x03".as_ptr())
    );
    println!("TIOCSCTTY: {}", call!(SYS_ioctl, 0, libc::TIOCSCTTY, 1));
    // SAFETY: opens a path.
    let opened = unsafe { libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR) };
    println!("/dev/tty: {}", answer(opened.into()));
}

/// Forks up to `most` processes, each of which forks on and then waits for its end.
pub(crate) fn fork_bomb(most: usize) -> Result<()> {
    for number in 0..most {
        // SAFETY: this process is single-threaded; the child makes only system calls.
        match unsafe { libc::fork() } {
            -1 => bail!("fork {number}: {}", io::Error::last_os_error()),
            0 => {
                // SAFETY: both calls take nothing that could be wrong.
                unsafe { libc::setsid() };
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
            _ => {}
        }
    }
    println!("{most} forked");
    Ok(())
}

pub(crate) fn limit_files(count: u64) -> Result<()> {
    let limit = libc::rlimit {
        rlim_cur: count,
        rlim_max: count,
    };
    // SAFETY: reads one rlimit.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        bail!("setrlimit: {}", io::Error::last_os_error());
    }
    Ok(())
}
