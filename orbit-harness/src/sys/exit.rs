//! What is done when this process ends in order.

/// Calls `handler` when this process returns from `main` or calls `exit`, and not when it is killed.
///
/// C: `atexit(handler)`. Source: atexit(3).
///
/// Where the C library has no room for it (it has for 32 at least) nothing is called.
pub(crate) fn at_exit(handler: extern "C" fn()) {
    // SAFETY: `handler` is a function of this program, takes nothing, and does not unwind, as no `extern "C"`
    // function of Rust does.
    let _ = unsafe { libc::atexit(handler) };
}
