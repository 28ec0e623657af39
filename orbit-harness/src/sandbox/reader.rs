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
    capture::{Capture, PIECE_BYTES},
    logs::{Consumer, Log, LogStream},
};

/// The thread that reads, and what it reads into.
#[derive(Debug)]
pub(super) struct Reader {
    log: Arc<Log>,
    /// Written to when it is to look up.
    wake: Arc<OwnedFd>,
    /// Whether it is to read what there is, and end.
    is_last: Arc<AtomicBool>,
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
        let is_last = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("orbit-log".to_owned())
            .stack_size(256 * 1024)
            .spawn({
                let (log, wake, is_last) =
                    (Arc::clone(&log), Arc::clone(&wake), Arc::clone(&is_last));
                move || read(&log, &wake, &is_last, [stdout, stderr], consumers)
            })?;
        Ok(Self {
            log,
            wake,
            is_last,
            thread: Some(thread),
        })
    }

    pub(super) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Reads what there is, and no more: all that could write is gone.
    /// Who was called with each line may be called again.
    pub(super) fn finish(&mut self) -> Vec<Consumer> {
        let Some(thread) = self.thread.take() else {
            return Vec::new();
        };
        self.is_last.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        thread.join().unwrap_or_default()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.finish();
    }
}

fn read(
    log: &Arc<Log>,
    wake: &OwnedFd,
    is_last: &AtomicBool,
    mut captures: [Option<Capture>; 2],
    mut consumers: Vec<Consumer>,
) -> Vec<Consumer> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut told = log.reopen();
    loop {
        let is_last = is_last.load(Ordering::Acquire);
        if !is_last {
            let mut polled = vec![PollFd::new(wake, PollFlags::IN)];
            let readers = captures
                .iter()
                .filter_map(|capture| capture.as_ref()?.reader());
            polled.extend(readers.map(|reader| PollFd::new(reader, PollFlags::IN)));
            if polled.len() == 1 {
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
                let Some(count) = capture.read_some(&mut buffer) else {
                    break;
                };
                log.append(stream, &buffer[..count]);
                // Before the log leaves them out.
                tell(log, &mut told, &mut consumers);
            }
        }
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
    while let Some((number, line)) = log.line_from(*told) {
        *told = number + 1;
        for mut consumer in mem::take(consumers) {
            if catch_unwind(AssertUnwindSafe(|| consumer(&line))).is_ok() {
                consumers.push(consumer);
            }
        }
    }
}
