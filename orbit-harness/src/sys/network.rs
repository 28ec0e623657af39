//! A network namespace that no process is in.

use std::{
    ffi::{c_int, c_void},
    io,
    os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd},
};

use super::{SingleThreaded, namespace_of, network_socket, wait_for};

/// What the child runs on: one page would do.
const STACK_BYTES: usize = 16 * 1024;

/// Makes a network namespace, which is this process's user namespace's, and stays as long as its descriptor.
///
/// C: `clone(open_own, stack, CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWNET, &answer)`: a child with this process's own memory
/// and descriptors opens it, and ends before this process goes on. Source: clone(2), namespaces(7).
///
/// # Errors
/// What the kernel answers: EPERM without privilege over the user namespace, ENOSPC at a limit on namespaces.
pub(crate) fn new_network_namespace(_: SingleThreaded) -> io::Result<OwnedFd> {
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    // What it stays where the child is killed before it has one.
    let mut answer: c_int = -libc::ECHILD;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_NEWNET;
    // SAFETY: the end of a stack that is large enough for the function and aligned as it must be. Because of CLONE_VFORK this
    // process waits until the child has ended, so that stack and `answer` outlive it, and nobody else uses this memory
    // meanwhile; the first argument proves that there is no other thread.
    let pid = unsafe {
        let end = stack.as_mut_ptr_range().end;
        libc::clone(open_own, end.cast(), flags, (&raw mut answer).cast())
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    wait_for(pid);
    if answer < 0 {
        return Err(io::Error::from_raw_os_error(-answer));
    }
    // SAFETY: the child opened it in the table that it shared with this process, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(answer) })
}

/// The child: makes a few system calls, and changes nothing of its parent's but the answer and `errno`.
extern "C" fn open_own(answer: *mut c_void) -> c_int {
    let made = network_socket().and_then(|socket| namespace_of(&socket));
    let made = match made {
        Ok(namespace) => namespace.into_raw_fd(),
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    };
    // SAFETY: the parent's own value, which waits for this.
    unsafe { *answer.cast::<c_int>() = made };
    0
}
