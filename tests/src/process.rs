//! Programs with a deadline: no test hangs, and one that would shows what it had printed.

use std::{
    ffi::OsStr,
    fmt,
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::main_loop::patience;

/// How long pipes may stay open once the program is gone, before its output is taken as it is.
const PIPE_GRACE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(2);

/// A program to run to its end, with output captured and standard input empty.
#[derive(Debug)]
pub struct Program {
    command: Command,
    deadline: Duration,
}

impl Program {
    /// `program`, with a minute to finish.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self::from_command(Command::new(program))
    }

    /// A command that is prepared already.
    pub fn from_command(command: Command) -> Self {
        Self {
            command,
            deadline: Duration::from_secs(60),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, directory: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Sets how long the program may take before it is killed; longer by [`patience`] where everything is slow.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs the program to its end, whatever that is.
    ///
    /// # Errors
    /// Where it cannot be started, or is killed at its deadline; then with the output so far.
    pub fn run(mut self) -> Result<Finished> {
        let line = line_of(&self.command);
        let deadline = self.deadline * patience();
        let started = Instant::now();
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {line}"))?;
        let stdout = Captured::start(child.stdout.take());
        let stderr = Captured::start(child.stderr.take());
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if started.elapsed() > deadline {
                child.kill()?;
                child.wait()?;
                break None;
            }
            thread::sleep(POLL);
        };
        let took = started.elapsed();
        let grace = Instant::now() + PIPE_GRACE;
        let (stdout, out_closed) = stdout.finish(grace);
        let (stderr, err_closed) = stderr.finish(grace);
        let Some(status) = status else {
            bail!(
                "killed after {deadline:?}: {line}\n--- stdout so far\n{stdout}\n--- stderr so far\n{stderr}"
            );
        };
        Ok(Finished {
            line,
            status,
            stdout,
            stderr,
            took,
            output_held_open: !(out_closed && err_closed),
        })
    }
}

/// Program and arguments, without the environment that a command's own `Debug` prints too.
fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A program that ended.
#[derive(Clone, Debug)]
pub struct Finished {
    line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
    /// Whether something still had its output open when it was gone: a process left behind.
    pub output_held_open: bool,
}

impl Finished {
    /// Itself, if the program exited with 0.
    ///
    /// # Errors
    /// Where it did not, with its output.
    pub fn success(self) -> Result<Self> {
        self.code(0)
    }

    /// Itself, if the program exited with `code`.
    ///
    /// # Errors
    /// Where it did not, with its output.
    pub fn code(self, code: i32) -> Result<Self> {
        if self.status.code() != Some(code) {
            bail!("expected exit code {code}: {self}");
        }
        Ok(self)
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.line)?;
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(f, "exited with {code}")?,
            (None, signal) => write!(f, "was killed by signal {}", signal.unwrap_or_default())?,
        }
        write!(
            f,
            " after {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.took, self.stdout, self.stderr
        )
    }
}

/// The output of a pipe, as far as it came.
struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Captured {
    fn start(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = pipe.map(|mut pipe| {
            thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    sink.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend_from_slice(&buffer[..count]);
                }
            })
        });
        Self { bytes, reader }
    }

    /// The text, and whether the pipe was closed by `until`. The reader of one that was not is left behind.
    fn finish(self, until: Instant) -> (String, bool) {
        let closed = loop {
            if self
                .reader
                .as_ref()
                .is_none_or(thread::JoinHandle::is_finished)
            {
                break true;
            }
            if Instant::now() > until {
                break false;
            }
            thread::sleep(POLL);
        };
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        (String::from_utf8_lossy(&bytes).into_owned(), closed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Program;

    #[test]
    fn captures_both_outputs_and_the_code() {
        let finished = Program::new("sh")
            .args(["-c", "echo out; echo err >&2; exit 3"])
            .run()
            .unwrap();
        assert_eq!(
            (finished.stdout.as_str(), finished.stderr.as_str()),
            ("out\n", "err\n")
        );
        assert!(finished.clone().code(3).is_ok());
        assert!(
            finished
                .success()
                .unwrap_err()
                .to_string()
                .contains("exited with 3")
        );
    }

    #[test]
    fn kills_at_the_deadline_and_shows_the_output_so_far() {
        let started = Instant::now();
        let fault = Program::new("sh")
            .args(["-c", "echo before; exec sleep 60"])
            .deadline(Duration::from_millis(200))
            .run()
            .unwrap_err();
        assert!(fault.to_string().contains("before"), "{fault}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn tells_when_something_holds_the_output_open() {
        let finished = Program::new("sh")
            .args(["-c", "sleep 2 & echo done"])
            .run()
            .unwrap();
        assert!(finished.output_held_open);
        assert_eq!(finished.stdout, "done\n");
    }
}
