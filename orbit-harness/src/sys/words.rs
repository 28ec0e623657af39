//! The words that this process was started with: its arguments and its environment, which `/proc/PID/cmdline` and
//! `/proc/PID/environ` show as they lie in memory.

use std::{
    ffi::{CStr, c_char},
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use super::SingleThreaded;

/// `argv`, as the C library had it from the kernel.
static ARGUMENTS: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());

/// Keeps what the C library passed to an initialiser, for [`forget_words`].
///
/// # Safety
/// `argv` is that of this process: the kernel's array of the arguments, a null pointer, the variables of the environment, a
/// null pointer.
///
/// Source: System V ABI, AMD64 supplement, "Process Initialization"; Linux, fs/binfmt_elf.c, `create_elf_tables`.
pub(crate) unsafe fn keep_words(argv: *const *const c_char) {
    ARGUMENTS.store(argv.cast_mut(), Ordering::Relaxed);
}

/// Overwrites all arguments and all of the environment with zeros, but for `name` as the first argument, and empties the
/// environment: as [`execve`] with that name and nothing else would have it. Whether it could: not every C library says
/// where they are.
///
/// Only in a process that is about to be another, as all who have borrowed of them would read zeros.
///
/// [`execve`]: https://man7.org/linux/man-pages/man2/execve.2.html
pub(crate) fn forget_words(_: SingleThreaded, name: &CStr) -> bool {
    let argv = ARGUMENTS.load(Ordering::Relaxed);
    if argv.is_null() {
        return false;
    }
    // Arguments first, then variables: one string after the other, without a gap.
    let (mut word, mut ends, mut room) = (argv, 0, 0);
    // SAFETY: by `keep_words` it is the kernel's array, whose first pointer is to a string, or null.
    let first = unsafe { *argv }.cast_mut();
    while ends < 2 {
        // SAFETY: not beyond the second null pointer, with which the array ends.
        let text = unsafe { *word }.cast_mut();
        // SAFETY: as above: there is at least the second null pointer left.
        word = unsafe { word.add(1) };
        if text.is_null() {
            ends += 1;
            continue;
        }
        // SAFETY: each is a NUL-terminated string on the stack of the process, where it lies as long as that lives.
        let length = unsafe { CStr::from_ptr(text) }.count_bytes();
        // SAFETY: these are its bytes, which the kernel put into writable memory; this is the only thread.
        unsafe { ptr::write_bytes(text, 0, length) };
        if text.addr() == first.addr() + room {
            room += length + 1;
        }
    }
    // SAFETY: this is the only thread, so nobody reads or changes the environment meanwhile.
    let is_empty = unsafe { libc::clearenv() } == 0;
    let name = name.to_bytes_with_nul();
    if name.len() <= room {
        // SAFETY: from `first` on there are `room` bytes of strings that follow one another without a gap.
        unsafe { ptr::copy_nonoverlapping(name.as_ptr().cast(), first, name.len()) };
    }
    is_empty
}
