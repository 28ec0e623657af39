//! A descriptor in the poll of a tokio runtime.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Has the runtime that this is called in watch `fd` for something to read.
///
/// # Errors
/// What the kernel answers: EPERM for what cannot be polled.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor that is registered must stay the same one, and open, for as long as the `AsyncFd` has the
    // value. An `OwnedFd` has one descriptor from its making to its drop, nobody else closes it, and it is moved into
    // the `AsyncFd`, which gives out shared references only: none of them can put another in its place.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
