//! How a process that links Orbit becomes a supervisor: before `main`, by the name it was started under.
//!
//! The supervisor must be single-threaded and must not hold the memory of the test process, so it is a fresh
//! execution of the same file. No helper program has to be found or installed, and `main`, which belongs to
//! somebody else, is never reached.
//!
//! Beside `sys`, the one file with `unsafe` code: what it does has to name both ends of the crate.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};

use crate::{
    supervisor,
    sys::{self, SUPERVISOR_NAME, SingleThreaded},
};

/// Run by the dynamic loader, or by the C library's start code in a static program, before `main`.
///
/// glibc passes `main`'s own arguments to these functions; musl passes none, and there the name is read from
/// the kernel.
///
/// Source: System V ABI, "Initialization and Termination Functions"; glibc, csu/init-first.c.
#[used]
#[unsafe(link_section = ".init_array")]
static BECOME_SUPERVISOR: extern "C" fn(c_int, *const *const c_char) = become_supervisor;

extern "C" fn become_supervisor(argc: c_int, argv: *const *const c_char) {
    if is_supervisor(argc, argv) {
        // SAFETY: no code of this program has run yet, and neither the loader nor the C library starts
        // threads; the calling thread is the only one.
        let single_threaded = unsafe { SingleThreaded::assume() };
        sys::exit_now(supervisor::run(single_threaded))
    }
}

#[cfg(target_env = "gnu")]
fn is_supervisor(argc: c_int, argv: *const *const c_char) -> bool {
    if argc < 1 || argv.is_null() {
        return false;
    }
    // SAFETY: glibc passes `main`'s arguments: `argv` holds `argc` pointers, and `argc` is at least 1.
    let name = unsafe { *argv };
    // SAFETY: each of them is a NUL-terminated string that lives as long as the process.
    !name.is_null() && unsafe { CStr::from_ptr(name) } == SUPERVISOR_NAME
}

#[cfg(not(target_env = "gnu"))]
fn is_supervisor(_argc: c_int, _argv: *const *const c_char) -> bool {
    std::fs::read("/proc/self/cmdline")
        .is_ok_and(|line| line.starts_with(SUPERVISOR_NAME.to_bytes_with_nul()))
}
