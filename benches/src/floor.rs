//! The C program that does the steps of a sandbox and nothing else, and times them itself.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::Stage;

/// What it is asked for: see `floor.c`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// A sandbox, from nothing to its end.
    ToItsEnd,
    /// One without its program.
    Ahead,
    /// The program of that one, to its end.
    Go,
    /// A sandbox whose program stays.
    ToStay,
    /// A network namespace, for the next sandbox to be in.
    Network,
}

/// A process that makes sandboxes when it is asked to.
pub(crate) struct Floor {
    child: Child,
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Floor {
    /// Over `rootfs`: a directory, or several with colons between them, topmost first.
    pub(crate) fn start(stage: &Stage, rootfs: impl AsRef<OsStr>) -> Result<Self> {
        let mut child = Command::new(stage.0.join("floor"))
            .arg(rootfs)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the floor")?;
        let asks = child.stdin.take().context("it is piped")?;
        let answers = BufReader::new(child.stdout.take().context("it is piped")?).lines();
        Ok(Self {
            child,
            asks,
            answers,
        })
    }

    /// Has it done, and says how long that took.
    pub(crate) fn ask(&mut self, ask: Ask) -> Result<Duration> {
        let letter = match ask {
            Ask::ToItsEnd => b"x",
            Ask::Ahead => b"p",
            Ask::Go => b"g",
            Ask::ToStay => b"s",
            Ask::Network => b"n",
        };
        self.asks.write_all(letter).context("ask the floor")?;
        let line = self
            .answers
            .next()
            .context("the floor ended; it says above why")??;
        Ok(Duration::from_nanos(line.parse()?))
    }

    pub(crate) fn end(self) -> Result<()> {
        let Self {
            mut child, asks, ..
        } = self;
        drop(asks);
        let status = child.wait()?;
        ensure!(status.success(), "the floor: {status}");
        Ok(())
    }
}
