//! What a sandbox's program has written so far, as lines, for whoever wants to know: [`Logs`], [`LogLine`].

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, eventfd};

use crate::{bounded::Kept, units::Bytes};

/// One of a program's two outputs.
#[derive(serde::Serialize, serde::Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// What was captured, and who is told of more.
#[derive(Debug)]
pub(crate) struct Log {
    /// How much is to be kept of each stream in the end.
    limit: Bytes,
    state: Mutex<State>,
    grown: Condvar,
}

/// How much is kept of each stream at least while it is read: so who follows it need not be as fast as it is.
const LEAST_BYTES: Bytes = Bytes::mib(1);

/// How many lines are kept of the beginning of each stream, and of its end: a line may be a single byte.
const MAX_LINES: usize = 1 << 18;

#[derive(Debug)]
struct State {
    streams: [Written; 2],
    /// How many lines there were.
    count: usize,
    is_whole: bool,
    /// Written to with each change.
    wakers: Vec<Arc<OwnedFd>>,
}

/// What was written to one stream.
#[derive(Debug)]
struct Written {
    kept: Kept,
    /// Where the line begins that is not whole yet.
    begun: u64,
    /// The first lines, and the last ones, as far as they are kept.
    first: Vec<Line>,
    last: VecDeque<Line>,
}

/// A line: its number among those of both streams, and where it begins and ends.
#[derive(Clone, Copy, Debug)]
struct Line {
    number: usize,
    from: u64,
    to: u64,
}

impl Written {
    fn new(limit: Bytes) -> Self {
        Self {
            kept: Kept::new(limit.max(LEAST_BYTES)),
            begun: 0,
            first: Vec::new(),
            last: VecDeque::new(),
        }
    }

    /// The line from where the last one ended.
    fn end_line(&mut self, number: usize, to: u64) {
        let line = Line {
            number,
            from: self.begun,
            to,
        };
        self.begun = to;
        if self.first.len() < MAX_LINES {
            self.first.push(line);
        } else {
            if self.last.len() == MAX_LINES {
                self.last.pop_front();
            }
            self.last.push_back(line);
        }
    }

    fn text(&self, line: &Line) -> Option<Vec<u8>> {
        let mut bytes = self.kept.get(line.from, line.to)?;
        for end in [b'\n', b'\r'] {
            if bytes.last() == Some(&end) {
                bytes.pop();
            }
        }
        Some(bytes)
    }

    /// The first line from this number on of which there is something.
    fn line_from(&self, number: usize) -> Option<(usize, Vec<u8>)> {
        let first = self.first.partition_point(|line| line.number < number);
        let last = self.last.partition_point(|line| line.number < number);
        let mut lines = self.first[first..].iter().chain(self.last.range(last..));
        lines.find_map(|line| Some((line.number, self.text(line)?)))
    }

    /// What there is of the line that is not whole yet.
    fn rest(&self) -> Vec<u8> {
        self.kept
            .get(self.begun, self.kept.written())
            .unwrap_or_default()
    }
}

impl State {
    /// The first line from this number on of which there is something, with its number.
    fn line_from(&self, number: usize) -> Option<(usize, LogLine)> {
        let streams = [LogStream::Stdout, LogStream::Stderr];
        let found = streams.into_iter().filter_map(|stream| {
            let (number, bytes) = self.streams[stream as usize].line_from(number)?;
            Some((number, stream, bytes))
        });
        let (number, stream, bytes) = found.min_by_key(|(number, ..)| *number)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Some((number, LogLine { stream, text }))
    }
}

impl Log {
    /// Nothing yet; of each stream, `limit` is kept.
    pub(crate) fn new(limit: Bytes) -> Self {
        Self {
            limit,
            state: Mutex::new(State {
                streams: [Written::new(limit), Written::new(limit)],
                count: 0,
                is_whole: false,
                wakers: Vec::new(),
            }),
            grown: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn append(&self, stream: LogStream, more: &[u8]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let written = &mut state.streams[stream as usize];
        let from = written.kept.written();
        written.kept.add(more);
        for (at, _) in more.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            written.end_line(state.count, from + at as u64 + 1);
            state.count += 1;
        }
        self.tell(&guard);
    }

    /// Nothing more comes: a last line without an end is one too.
    pub(crate) fn finish(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        for written in &mut state.streams {
            let end = written.kept.written();
            if written.begun < end {
                written.end_line(state.count, end);
                state.count += 1;
            }
        }
        state.is_whole = true;
        self.tell(&guard);
    }

    /// More comes. How many lines there were already.
    pub(crate) fn reopen(&self) -> usize {
        let mut state = self.lock();
        state.is_whole = false;
        state.count
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

    /// The first whole line from this number on, counted from 0, that was not left out, with its number.
    pub(crate) fn line_from(&self, number: usize) -> Option<(usize, LogLine)> {
        self.lock().line_from(number)
    }

    /// How many whole lines there were: the number of the next.
    pub(crate) fn count(&self) -> usize {
        self.lock().count
    }

    /// What is kept of each stream, and how much is not.
    pub(crate) fn parts(&self) -> [(Vec<u8>, Option<Bytes>); 2] {
        let state = self.lock();
        [0, 1].map(|stream| {
            let written: &Written = &state.streams[stream];
            written.kept.within(self.limit).into_parts()
        })
    }

    /// The last lines, with the name of the stream before each.
    pub(crate) fn tail(&self, count: usize) -> String {
        let state = self.lock();
        let mut next = state.count.saturating_sub(count);
        let mut text = String::new();
        if next > 0 {
            let _ = writeln!(text, "  … {next} lines before");
        }
        while let Some((number, line)) = state.line_from(next) {
            let _ = writeln!(text, "  {}| {}", line.stream, shorten(&line.text));
            next = number + 1;
        }
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let rest = state.streams[stream as usize].rest();
            if !rest.is_empty() {
                let rest = String::from_utf8_lossy(&rest);
                let _ = writeln!(text, "  {stream}| {}", shorten(&rest));
            }
        }
        text
    }
}

/// Becomes readable when there is more of a log, for as long as it is there.
#[derive(Debug)]
pub(crate) struct LogWaker {
    log: Arc<Log>,
    waker: Arc<OwnedFd>,
}

impl LogWaker {
    pub(crate) fn new(log: Arc<Log>) -> rustix::io::Result<Self> {
        let waker = log.add_waker()?;
        Ok(Self { log, waker })
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.waker
    }

    /// Makes it wait for what comes from now on.
    pub(crate) fn drain(&self) {
        let _ = rustix::io::read(&*self.waker, &mut [0u8; 8]);
    }
}

impl Drop for LogWaker {
    fn drop(&mut self) {
        self.log.remove_waker(&self.waker);
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
        self.until = Instant::now().checked_add(patience);
        self.follow()
    }

    /// As [`next`](Iterator::next), with the feature `tokio`: what is waited for, where the log is
    /// [followed](Self::follow), holds no thread. To give it up loses no line.
    ///
    /// # Errors
    /// Where this process has no descriptor to spare.
    #[cfg(feature = "tokio")]
    pub async fn next_async(&mut self) -> Result<Option<LogLine>, crate::Error> {
        let cannot = |error| crate::Error::io("cannot wait for the log", error);
        // Before the first look: what comes between is told.
        let waker = LogWaker::new(Arc::clone(&self.log)).map_err(cannot)?;
        loop {
            {
                let state = self.log.lock();
                if let Some((number, line)) = state.line_from(self.next) {
                    self.next = number + 1;
                    return Ok(Some(line));
                }
                if !self.follows || state.is_whole {
                    return Ok(None);
                }
            }
            if self.until.is_some_and(|until| until <= Instant::now()) {
                return Ok(None);
            }
            let fd = waker
                .fd()
                .try_clone()
                .map_err(|error| crate::Error::io("cannot wait for the log", error))?;
            crate::sys::readable(vec![fd], self.until)
                .await
                .map_err(|error| crate::Error::io("cannot wait for the log", error))?;
            waker.drain();
        }
    }
}

impl Iterator for Logs {
    type Item = LogLine;

    fn next(&mut self) -> Option<LogLine> {
        let mut state = self.log.lock();
        loop {
            if let Some((number, line)) = state.line_from(self.next) {
                self.next = number + 1;
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
        let log = Arc::new(Log::new(Bytes::mib(1)));
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
    fn of_a_log_without_end_the_first_and_the_last_lines_are_kept() {
        let log = Log::new(Bytes::new(8));
        for number in 0..1_000_000 {
            log.append(LogStream::Stdout, format!("{number}\n").as_bytes());
        }
        log.append(LogStream::Stderr, b"last");
        log.finish();
        let logs = Logs::of(Arc::new(log));
        let lines: Vec<_> = logs.clone().map(|line| line.text).collect();
        assert!(lines.starts_with(&["0".into(), "1".into()]));
        assert!(lines.ends_with(&["999998".into(), "999999".into(), "last".into()]));
        assert!(lines.len() < 300_000);
        assert_eq!(
            logs.log.tail(2),
            "  … 999999 lines before\n  stdout| 999999\n  stderr| last\n"
        );
        let [(stdout, cut), (stderr, uncut)] = logs.log.parts();
        assert!(stdout.starts_with(b"0\n1\n\n[orbit: ") && stdout.ends_with(b"999\n"));
        assert_eq!(cut.map(Bytes::as_u64), Some(6_888_890 - 8));
        assert_eq!((stderr.as_slice(), uncut), (b"last".as_slice(), None));
    }

    #[test]
    fn a_line_of_a_message_moves_no_cursor() {
        assert_eq!(shorten("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(shorten(&"x".repeat(1000)).chars().count(), 401);
    }
}
