//! How long to wait for a registry, and when what it sends is too slow.

use std::{
    io::{self, Read},
    time::{Duration, Instant},
};

/// How long to wait for what. Tests have less patience.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) connect: Duration,
    /// Until the headers of an answer are there.
    pub(crate) response: Duration,
    /// Without a single byte.
    pub(crate) silence: Duration,
    /// In each such time at least [`Timing::MIN_WINDOW_BYTES`] must come.
    pub(crate) window: Duration,
    /// The first pause before another attempt; each is twice the one before.
    pub(crate) backoff: Duration,
    /// A registry that asks to wait longer is not waited for.
    pub(crate) max_retry_after: Duration,
    pub(crate) attempts: u32,
}

impl Timing {
    /// Slower than a modem: nobody waits for an image that long, but a test would hang.
    const MIN_WINDOW_BYTES: u64 = 32 << 10;
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            response: Duration::from_secs(30),
            silence: Duration::from_secs(30),
            window: Duration::from_secs(30),
            backoff: Duration::from_millis(400),
            max_retry_after: Duration::from_secs(60),
            attempts: 5,
        }
    }
}

/// Fails where too little comes: a registry that sends a byte a second is as good as one that is silent.
pub(super) struct Paced<R> {
    inner: R,
    window: Duration,
    started: Instant,
    count: u64,
}

impl<R> Paced<R> {
    pub(super) fn new(inner: R, timing: &Timing) -> Self {
        Self {
            inner,
            window: timing.window,
            started: Instant::now(),
            count: 0,
        }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count += length as u64;
        if length > 0 && self.started.elapsed() > self.window {
            if self.count < Timing::MIN_WINDOW_BYTES {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "only {} bytes came in {} seconds",
                        self.count,
                        self.window.as_secs()
                    ),
                ));
            }
            (self.started, self.count) = (Instant::now(), 0);
        }
        Ok(length)
    }
}
