//! The thread of a sandbox that reads what its program writes.
//!
//! A sandbox that is started, and not run to its end at once, has one: else a service that writes more than a pipe
//! holds would stand still until somebody waits for it. It ends with the sandbox.

use std::{
    mem,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::{
    capture::Capture,
    logs::{Consumer, Log, LogStream},
};

/// How much is read of one stream ahead of who waits for the end of the sandbox; after that a program that writes
/// waits, as on a pipe that nobody reads.
const AHEAD_BYTES: usize = 64 << 20;

/// The thread that reads, and what it reads into.
#[derive(Debug)]
pub(super) struct Reader {
    log: Arc<Log>,
    /// Written to when it is to look up.
    wake: Arc<OwnedFd>,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<Vec<Consumer>>>,
}

impl Reader {
    /// Starts to read what is captured.
    ///
    /// # Errors
    /// Where there can be no thread, or no descriptor.
    pub(super) fn start(
        log: Arc<Log>,
        stdout: Option<Capture>,
        stderr: Option<Capture>,
        consumers: Vec<Consumer>,
    ) -> std::io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let orders = Arc::new(Orders::default());
        let thread = std::thread::Builder::new()
            .name("orbit-log".to_owned())
            .stack_size(256 * 1024)
            .spawn({
                let (log, wake, orders) =
                    (Arc::clone(&log), Arc::clone(&wake), Arc::clone(&orders));
                move || read(&log, &wake, &orders, [stdout, stderr], consumers)
            })?;
        Ok(Self {
            log,
            wake,
            orders,
            thread: Some(thread),
        })
    }

    pub(super) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Reads without bounds from now on: somebody waits for the end.
    pub(super) fn await_end(&self) {
        self.orders.is_awaited.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Reads what there is, and no more: all that could write is gone.
    /// Who was called with each line may be called again.
    pub(super) fn finish(&mut self) -> Vec<Consumer> {
        let Some(thread) = self.thread.take() else {
            return Vec::new();
        };
        self.orders.is_last.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        thread.join().unwrap_or_default()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What the thread is told.
#[derive(Debug, Default)]
struct Orders {
    /// Read what there is, and end.
    is_last: AtomicBool,
    /// Read without bounds.
    is_awaited: AtomicBool,
}

fn read(
    log: &Arc<Log>,
    wake: &OwnedFd,
    orders: &Orders,
    mut captures: [Option<Capture>; 2],
    mut consumers: Vec<Consumer>,
) -> Vec<Consumer> {
    let mut told = log.reopen();
    loop {
        let is_last = orders.is_last.load(Ordering::Acquire);
        let sizes = if is_last || orders.is_awaited.load(Ordering::Acquire) {
            [0, 0]
        } else {
            log.sizes()
        };
        if !is_last {
            let mut polled = vec![PollFd::new(wake, PollFlags::IN)];
            for (capture, size) in captures.iter().zip(sizes) {
                if let Some(reader) = capture.as_ref().and_then(Capture::reader)
                    && size < AHEAD_BYTES
                {
                    polled.push(PollFd::new(reader, PollFlags::IN));
                }
            }
            if polled.len() == 1 && captures.iter().flatten().all(|it| it.reader().is_none()) {
                break;
            }
            // Interrupted or not, all are looked at below.
            let _ = poll(&mut polled, None);
            let _ = rustix::io::read(wake, &mut [0u8; 8]);
        }
        for (stream, capture) in [LogStream::Stdout, LogStream::Stderr]
            .into_iter()
            .zip(&mut captures)
        {
            let Some(capture) = capture else { continue };
            // Not for ever: the other one may have something to say.
            for _ in 0..if is_last { usize::MAX } else { 16 } {
                if sizes[stream as usize] >= AHEAD_BYTES || !capture.read_some() {
                    break;
                }
                log.append(stream, &capture.take());
            }
        }
        tell(log, &mut told, &mut consumers);
        if is_last {
            break;
        }
    }
    log.finish();
    tell(log, &mut told, &mut consumers);
    consumers
}

/// Passes on the lines that there are by now. A consumer that panics is not called again.
fn tell(log: &Log, told: &mut usize, consumers: &mut Vec<Consumer>) {
    if consumers.is_empty() {
        return;
    }
    while let Some(line) = log.line(*told) {
        *told += 1;
        for mut consumer in mem::take(consumers) {
            if catch_unwind(AssertUnwindSafe(|| consumer(&line))).is_ok() {
                consumers.push(consumer);
            }
        }
    }
}
