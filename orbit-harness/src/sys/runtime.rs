//! A tokio runtime: its poll of descriptors, and its threads that may block.

use std::{io, os::fd::OwnedFd, task::Poll, time::Instant};

use tokio::io::{Interest, unix::AsyncFd};

/// Has the runtime that this is called in watch `fd` for something to read.
///
/// # Errors
/// What the kernel answers: EPERM for what cannot be polled.
fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor that is registered must stay the same one, and open, for as long as the `AsyncFd` has the
    // value. An `OwnedFd` has one descriptor from its making to its drop, nobody else closes it, and it is moved into
    // the `AsyncFd`, which gives out shared references only: none of them can put another in its place.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(io::Error::from)
}

/// Waits until one of `fds` can be read, or has ended, or the deadline. Whether one can.
///
/// # Errors
/// As [`watch_readable`].
pub(crate) async fn readable(fds: Vec<OwnedFd>, deadline: Option<Instant>) -> io::Result<bool> {
    let fds = fds
        .into_iter()
        .map(watch_readable)
        .collect::<Result<Vec<_>, _>>()?;
    let any = std::future::poll_fn(|context| {
        for fd in &fds {
            if let Poll::Ready(ready) = fd.poll_read_ready(context) {
                return Poll::Ready(ready.map(drop));
            }
        }
        Poll::Pending
    });
    match deadline {
        None => any.await.map(|()| true),
        Some(at) => match tokio::time::timeout_at(at.into(), any).await {
            Ok(ready) => ready.map(|()| true),
            Err(_) => Ok(false),
        },
    }
}

/// Runs `work` where it may block.
///
/// # Errors
/// Where the runtime is being shut down.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(failed) => Err(io::Error::other(failed)),
        },
    }
}
