//! One `cargo test --doc`, from its start to its end: it leads a process group, and is heard while it runs.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::Pid,
};

use super::{
    Doctests,
    said::{self, Listener},
};
use crate::test::{
    attempt::{Ground, Target},
    event::{Attempt, Used, Verdict},
};

impl Doctests {
    /// Runs cargo with `words` for rustdoc's harness, and hears it to its end.
    pub(super) fn hear(
        &self,
        ground: &Ground,
        lane: usize,
        package: Option<&str>,
        words: Vec<String>,
    ) -> Result<Heard, Box<Attempt>> {
        let started = ground.began.elapsed();
        let failed = |why: String| Box::new(not_run(ground, lane, started, why));
        let no_pipe = |error: Errno| failed(format!("no pipe for cargo's output: {error}"));
        // One pipe for both, so that what cargo says of a library stands before what rustdoc says of its tests.
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(no_pipe)?;
        let second = rustix::io::fcntl_dupfd_cloexec(&writer, 3).map_err(no_pipe)?;
        let mut command: Command = self.command.command(package);
        let mut cargo = command
            .args(words)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(second)
            // Cargo passes no signal on to rustdoc, nor rustdoc to what it runs.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(format!("cannot start cargo: {error}")))?;
        // It holds the other ends of the pipe, which would never end.
        drop(command);
        let leader = Target::Group(Pid::from_child(&cargo));
        let place = ground.running.enter(leader);
        let mut listener = Listener::new(self.threads, started);
        let read = listen(&reader, &mut listener, || ground.began.elapsed());
        ground.running.leave(place);
        let status = cargo.wait();
        let (preface, libraries) = listener.end();
        match (read, status) {
            (Err(error), _) | (_, Err(error)) => {
                Err(failed(format!("cannot hear from cargo: {error}")))
            }
            (Ok(()), Ok(status)) => Ok(Heard {
                started,
                status,
                preface,
                libraries,
            }),
        }
    }
}

/// What cargo and rustdoc said, from a start to an end.
pub(super) struct Heard {
    pub(super) started: Duration,
    pub(super) status: ExitStatus,
    preface: Vec<u8>,
    pub(super) libraries: Vec<said::Library>,
}

impl Heard {
    /// An attempt at all of them, which failed.
    pub(super) fn failure(self, ground: &Ground, lane: usize) -> Attempt {
        let texts = self.libraries.into_iter().map(|library| library.text);
        let output = std::iter::once(self.preface).chain(texts);
        Attempt {
            verdict: Verdict::Failed {
                code: self.status.code(),
            },
            stderr: output.flatten().collect(),
            ..not_run(ground, lane, self.started, String::new())
        }
    }
}

pub(super) fn not_run(ground: &Ground, lane: usize, started: Duration, why: String) -> Attempt {
    Attempt {
        started,
        lane,
        wall_time: ground.began.elapsed().saturating_sub(started),
        ..Attempt::new(Verdict::SetupFailed { why }, Used::default())
    }
}

fn listen(reader: &OwnedFd, listener: &mut Listener, now: impl Fn() -> Duration) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match rustix::io::read(reader, &mut buffer[..]) {
            Ok(0) => return Ok(()),
            Ok(length) => listener.take(&buffer[..length], now()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
