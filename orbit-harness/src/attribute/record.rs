//! What the two processes of one sandboxed test tell each other: a file in memory, which is the inner process's
//! standard input until the test begins.
//!
//! It has no name in any file system, so nothing is left behind however either process ends, and nothing of the
//! environment can pretend to be it. The inner process writes the whole record each time, over the one before:
//! nobody has to read along, and a test that panics a million times fills nothing.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    sync::{Mutex, PoisonError},
};

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::sys::SUPERVISOR_NAME;

const NAME: &str = "orbit-sandboxed-test";

/// What is kept of one panic's message.
const MESSAGE_BYTES: usize = 1 << 20;

/// What is known of the test that runs in a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The test that is to run, by the name its harness has for it.
    pub(super) test: String,
    /// What no test prints by chance: it stands in the output where the test begins and where it ends.
    pub(super) boundary: String,
    /// Whether the test's body was reached.
    pub(super) entered: bool,
    /// How the body was left. `None`: it was not.
    pub(super) end: Option<End>,
    /// The last panic before the body was left, in whichever thread.
    pub(super) panic: Option<String>,
    /// The last panic after that.
    pub(super) panic_after_end: Option<String>,
}

/// How a body was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    Returned,
    Panicking,
}

impl Record {
    fn write(&self, file: &File) -> io::Result<()> {
        let bytes = postcard::to_stdvec(self).map_err(io::Error::other)?;
        file.write_all_at(&bytes, 0)
    }

    fn read(file: &File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        // What is left of a longer record follows.
        postcard::from_bytes(&bytes).map_err(io::Error::other)
    }
}

/// The record as the outer process holds it.
#[derive(Debug)]
pub(super) struct Outer(File);

impl Outer {
    pub(super) fn new(record: &Record) -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC)?);
        record.write(&file)?;
        Ok(Self(file))
    }

    /// For the standard input of the inner process.
    pub(super) fn for_inner(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }

    pub(super) fn read(&self) -> io::Result<Record> {
        Record::read(&self.0)
    }
}

/// The record as the inner process holds it.
#[derive(Debug)]
pub(super) struct Inner {
    file: File,
    record: Mutex<Record>,
}

impl Inner {
    /// The record of the test that this process was started for, in a sandbox. `None`: it was started otherwise.
    ///
    /// # Errors
    /// Where it claims to be inside and is not.
    pub(super) fn find() -> io::Result<Option<Self>> {
        let is_record = fs::read_link("/proc/self/fd/0").is_ok_and(|link| {
            let link = link.to_string_lossy();
            link.strip_prefix("/memfd:").is_some_and(|name| {
                name.strip_prefix(NAME)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
            })
        });
        if !is_record {
            return Ok(None);
        }
        if !started_by_init() {
            return Err(io::Error::other(
                "this process was given what only a process of a sandbox is given, but it is in none",
            ));
        }
        let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let record = Record::read(&file)?;
        // To the test, standard input is empty, and no program that it starts finds the record there.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Some(Self {
            file,
            record: Mutex::new(record),
        }))
    }

    /// Whether the test called `path`, or one of its cases, is what this process was started for.
    pub(super) fn is_for(&self, path: &str) -> bool {
        super::names(&self.now().test, path)
    }

    /// Whether this process was started for the test of this very name.
    #[cfg(feature = "libtest-mimic")]
    pub(super) fn is(&self, name: &str) -> bool {
        self.now().test == name
    }

    /// Says that the body begins. Whether it had not begun before.
    pub(super) fn enter(&self) -> bool {
        let mut record = self.now();
        if std::mem::replace(&mut record.entered, true) {
            return false;
        }
        self.save(&record);
        print_line(&begin(&record.boundary));
        true
    }

    pub(super) fn panicked(&self, message: &str) {
        let end = (0..=message.len().min(MESSAGE_BYTES))
            .rev()
            .find(|end| message.is_char_boundary(*end))
            .unwrap_or(0);
        let mut record = self.now();
        let slot = match record.end {
            None => &mut record.panic,
            Some(_) => &mut record.panic_after_end,
        };
        *slot = Some(message[..end].to_owned());
        self.save(&record);
    }

    pub(super) fn end(&self, end: End) {
        let mut record = self.now();
        record.end = Some(end);
        self.save(&record);
        print_line(&self::end(&record.boundary));
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file in memory takes what is written, unless there is no memory; then the record tells less, and what
    /// it does not tell counts as a failure.
    fn save(&self, record: &Record) {
        let _ = record.write(&self.file);
    }
}

/// Whether this process is a child of Orbit's init: of process 1 of a sandbox, a copy of the supervisor.
///
/// No variable and no file can claim it outside of a sandbox; who makes a pid namespace for it does so on purpose.
pub(super) fn started_by_init() -> bool {
    let is_init = || {
        fs::read("/proc/1/cmdline")
            .is_ok_and(|line| line.starts_with(SUPERVISOR_NAME.to_bytes_with_nul()))
    };
    rustix::process::getppid() == Some(rustix::process::Pid::INIT) && is_init()
}

fn print_line(line: &str) {
    let mut stdout = io::stdout().lock();
    // Where nobody reads, nothing is cut.
    let _ = stdout
        .write_all(line.as_bytes())
        .and_then(|()| stdout.flush());
}

fn begin(boundary: &str) -> String {
    format!("{boundary} begin\n")
}

fn end(boundary: &str) -> String {
    format!("{boundary} end\n")
}

/// What the test itself printed, of all that its process did: without its harness's own lines.
pub(super) fn of_test<'a>(output: &'a str, boundary: &str) -> &'a str {
    let Some((_, rest)) = output.split_once(&begin(boundary)) else {
        return output;
    };
    rest.split_once(&end(boundary))
        .map_or(rest, |(of_test, _)| of_test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_inside_is_read_outside() {
        let asked = Record {
            test: "a::b".into(),
            boundary: "x".into(),
            ..Record::default()
        };
        let outer = Outer::new(&asked).unwrap();
        let inner = Inner {
            file: outer.for_inner().unwrap().into(),
            record: Mutex::new(Record::read(&outer.0).unwrap()),
        };
        assert!(inner.is_for("a::b") && !inner.is_for("b"));
        inner.panicked("a long message that a shorter one replaces");
        inner.panicked("short");
        inner.now().end = Some(End::Panicking);
        inner.panicked("late");
        let read = outer.read().unwrap();
        assert_eq!(read.panic.as_deref(), Some("short"));
        assert_eq!(read.panic_after_end.as_deref(), Some("late"));
        assert_eq!(read.end, Some(End::Panicking));
    }

    #[test]
    fn lines_of_the_harness_are_not_of_the_test() {
        let all =
            "\nrunning 1 test\ntest a ... B begin\nhello\nno newlineB end\nok\n\ntest result: ok\n";
        assert_eq!(of_test(all, "B"), "hello\nno newline");
        assert_eq!(of_test("B begin\nkilled here", "B"), "killed here");
        assert_eq!(of_test("never began\n", "B"), "never began\n");
    }

    #[test]
    fn this_process_is_in_no_sandbox_of_a_test() {
        // Under `cargo orbit test` it is one of init's children, but was given no record.
        assert!(Inner::find().unwrap().is_none());
    }
}
