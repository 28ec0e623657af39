//! Installing a seccomp filter that was made elsewhere.

use std::io;

use crate::security::seccomp::bpf::SockFilter;

/// Filters the system calls of this thread and of all that it starts.
///
/// C: `prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)`. Source: seccomp(2).
///
/// # Errors
/// The error number: EACCES without no_new_privs or CAP_SYS_ADMIN, EINVAL for a program the kernel refuses.
pub(super) fn install(filter: &[SockFilter]) -> Result<(), i32> {
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const SockFilter,
    }
    let Ok(len) = u16::try_from(filter.len()) else {
        return Err(libc::EINVAL);
    };
    let program = Program {
        len,
        filter: filter.as_ptr(),
    };
    // SAFETY: `program` has the layout of `struct sock_fprog`, its pointer is to `len` instructions, and the
    // kernel copies them before the call returns.
    match unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
            0,
            0,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}
