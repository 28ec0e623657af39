//! What a sandbox's program has written so far, as lines, for whoever wants to know: [`Logs`], [`LogLine`].

use std::{
    fmt::{self, Write as _},
    ops::Range,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, eventfd};

/// One of a program's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl fmt::Display for LogStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// A line that a program wrote, without its end; what is not UTF-8 is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLine {
    /// To which output.
    pub stream: LogStream,
    /// The text.
    pub text: String,
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Called with each line, in the thread that reads them.
pub(crate) type Consumer = Box<dyn FnMut(&LogLine) + Send>;

/// Everything that was captured, and who is told of more.
#[derive(Debug, Default)]
pub(crate) struct Log {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: [Vec<u8>; 2],
    /// Where the line begins that is not whole yet.
    begun: [usize; 2],
    lines: Vec<(LogStream, Range<usize>)>,
    is_whole: bool,
    /// Written to with each change.
    wakers: Vec<Arc<OwnedFd>>,
}

impl State {
    fn line(&self, number: usize) -> Option<LogLine> {
        let (stream, range) = self.lines.get(number)?;
        let mut bytes = &self.bytes[*stream as usize][range.clone()];
        if let Some(text) = bytes.strip_suffix(b"\r") {
            bytes = text;
        }
        Some(LogLine {
            stream: *stream,
            text: String::from_utf8_lossy(bytes).into_owned(),
        })
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn append(&self, stream: LogStream, more: &[u8]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let bytes = &mut state.bytes[stream as usize];
        let begun = &mut state.begun[stream as usize];
        let from = bytes.len();
        bytes.extend_from_slice(more);
        for (at, _) in more.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            let end = from + at;
            state.lines.push((stream, *begun..end));
            *begun = end + 1;
        }
        self.tell(&guard);
    }

    /// Nothing more comes: a last line without an end is one too.
    pub(crate) fn finish(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let (begun, end) = (
                state.begun[stream as usize],
                state.bytes[stream as usize].len(),
            );
            if begun < end {
                state.lines.push((stream, begun..end));
                state.begun[stream as usize] = end;
            }
        }
        state.is_whole = true;
        self.tell(&guard);
    }

    /// More comes. How many lines there are already.
    pub(crate) fn reopen(&self) -> usize {
        let mut state = self.lock();
        state.is_whole = false;
        state.lines.len()
    }

    fn tell(&self, state: &State) {
        self.grown.notify_all();
        for waker in &state.wakers {
            // EAGAIN: it was told so often, and has not looked.
            let _ = rustix::io::write(waker, &1u64.to_ne_bytes());
        }
    }

    /// What becomes readable when there is more.
    pub(crate) fn add_waker(&self) -> rustix::io::Result<Arc<OwnedFd>> {
        let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        self.lock().wakers.push(Arc::clone(&waker));
        Ok(waker)
    }

    pub(crate) fn remove_waker(&self, waker: &Arc<OwnedFd>) {
        self.lock()
            .wakers
            .retain(|known| !Arc::ptr_eq(known, waker));
    }

    /// The line of this number, counted from 0, if it is whole by now.
    pub(crate) fn line(&self, number: usize) -> Option<LogLine> {
        self.lock().line(number)
    }

    /// How much was captured of each stream.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        let state = self.lock();
        [0, 1].map(|stream| state.bytes[stream].len())
    }

    /// All that was captured, by stream.
    pub(crate) fn bytes(&self) -> [Vec<u8>; 2] {
        self.lock().bytes.clone()
    }

    /// The last lines, with the name of the stream before each.
    pub(crate) fn tail(&self, count: usize) -> String {
        let state = self.lock();
        let first = state.lines.len().saturating_sub(count);
        let mut text = String::new();
        if first > 0 {
            let _ = writeln!(text, "  … {first} lines before");
        }
        for number in first..state.lines.len() {
            if let Some(line) = state.line(number) {
                let _ = writeln!(text, "  {}| {}", line.stream, shorten(&line.text));
            }
        }
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let rest = &state.bytes[stream as usize][state.begun[stream as usize]..];
            if !rest.is_empty() {
                let rest = String::from_utf8_lossy(rest);
                let _ = writeln!(text, "  {stream}| {}", shorten(&rest));
            }
        }
        text
    }
}

/// A line as a message shows it: of bearable length, and with nothing that moves a terminal's cursor.
fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 400;
    let mut shown: String = text
        .chars()
        .take(MAX_CHARS)
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// The lines that a sandbox's program has written, from the first one on: an iterator that ends with the last there is
/// now, or goes on, after [`follow`](Self::follow), until the program's outputs end.
///
/// It is independent of the sandbox it came from, and may go to another thread.
///
/// ```
/// let mut sandbox = orbit::Sandbox::builder()
///     .cmd(["sh", "-c", "echo one; echo two >&2; exec sleep 60"])
///     .start()?;
/// let mut logs = sandbox.logs().follow();
/// let lines: Vec<String> = logs.by_ref().take(2).map(|line| line.text).collect();
/// assert!(lines.contains(&"one".to_owned()) && lines.contains(&"two".to_owned()));
/// sandbox.kill();
/// sandbox.wait()?;
/// assert_eq!(logs.next(), None);
/// # Ok::<(), orbit::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Logs {
    log: Arc<Log>,
    next: usize,
    follows: bool,
    until: Option<Instant>,
}

impl Logs {
    pub(crate) fn of(log: Arc<Log>) -> Self {
        Self {
            log,
            next: 0,
            follows: false,
            until: None,
        }
    }

    /// Waits for each next line until the program's outputs end.
    #[must_use]
    pub fn follow(mut self) -> Self {
        self.follows = true;
        self
    }

    /// As [`follow`](Self::follow), for at most this long from now.
    #[must_use]
    pub fn follow_for(mut self, patience: Duration) -> Self {
        self.until = Some(Instant::now() + patience);
        self.follow()
    }
}

impl Iterator for Logs {
    type Item = LogLine;

    fn next(&mut self) -> Option<LogLine> {
        let mut state = self.log.lock();
        loop {
            if let Some(line) = state.line(self.next) {
                self.next += 1;
                return Some(line);
            }
            if !self.follows || state.is_whole {
                return None;
            }
            state = match self.until {
                None => self
                    .log
                    .grown
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.log
                        .grown
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_the_last_one_needs_no_end() {
        let log = Arc::new(Log::default());
        log.append(LogStream::Stdout, b"a\nb");
        log.append(LogStream::Stderr, b"e\r\n");
        log.append(LogStream::Stdout, b"c\n\nrest");
        let texts = |logs: Logs| -> Vec<String> { logs.map(|line| line.text).collect() };
        assert_eq!(texts(Logs::of(Arc::clone(&log))), ["a", "e", "bc", ""]);
        assert_eq!(
            log.tail(1),
            "  … 3 lines before\n  stdout| \n  stdout| rest\n"
        );
        log.finish();
        assert_eq!(
            texts(Logs::of(Arc::clone(&log)).follow()),
            ["a", "e", "bc", "", "rest"]
        );
        assert_eq!(log.tail(9).lines().count(), 5);
    }

    #[test]
    fn a_line_of_a_message_moves_no_cursor() {
        assert_eq!(shorten("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(shorten(&"x".repeat(1000)).chars().count(), 401);
    }
}
