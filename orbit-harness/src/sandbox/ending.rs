//! The end of a sandbox's program: waited for, with what it writes until then, and told as an outcome.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::Sandbox;
use crate::{
    capture::Capture,
    error::{Error, Kind},
    outcome::{Note, Outcome, OutputStream},
    supervisor::Event,
};

/// How long what is written is left where it is, by who only waits for the end.
const REST: Duration = Duration::from_millis(4);

/// So much at once that the program may have been waiting for it to be read: half of what a pipe holds.
const MUCH_BYTES: u64 = 32 << 10;

impl Sandbox {
    /// Reads events and output until the program has ended or the deadline has passed. Whether it has ended.
    ///
    /// Nobody sees the output before that, and a pipe holds a good part of it: so this thread does not wake for each
    /// line, and looks at what is written once in a [`REST`], or when there is much of it.
    pub(super) fn collect(&mut self, deadline: Option<Instant>) -> Result<bool, Error> {
        let captures = self.stdout.is_some() || self.stderr.is_some();
        let mut rests = captures;
        while self.exit.is_none() && self.gone.is_none() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let rest = rests.then_some(REST);
            let timeout = left.into_iter().chain(rest).min();
            let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
            let readers = [&self.stdout, &self.stderr].map(|capture| {
                let capture = capture.as_ref().filter(|_| !rests);
                capture.and_then(Capture::reader)
            });
            let mut polled = vec![PollFd::new(&self.core.events, PollFlags::IN)];
            let main = self.main.as_ref().filter(|_| self.main_end.is_none());
            polled.extend(main.map(|main| PollFd::new(main.end(), PollFlags::IN)));
            polled.extend(
                readers
                    .into_iter()
                    .flatten()
                    .map(|reader| PollFd::new(reader, PollFlags::IN)),
            );
            match rustix::event::poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("cannot wait for the sandbox", error)),
            }
            let has_event = !polled[0].revents().is_empty();
            let before = self.captured();
            self.drain();
            // After a rest with nothing to read, and after one that was too long for so much, wait for what comes.
            let taken = self.captured() - before;
            rests = captures && !rests && taken < MUCH_BYTES;
            self.take_end_of_main(false)?;
            if has_event && !self.take_event()? {
                return Err(Kind::Vanished.into());
            }
            if !has_event && left == Some(Duration::ZERO) {
                return Ok(false);
            }
        }
        // All that could write is dead: what they wrote is there.
        while !self.drain() {}
        if let Some(reader) = &mut self.reader {
            reader.finish();
        }
        Ok(true)
    }

    /// How much was read of what is captured.
    fn captured(&self) -> u64 {
        let captures = [&self.stdout, &self.stderr].into_iter().flatten();
        captures.map(Capture::total).sum()
    }

    /// Takes what was written, or a good part of it. Whether that was all.
    pub(super) fn drain(&mut self) -> bool {
        let mut all = true;
        for capture in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            all &= capture.drain();
        }
        all
    }

    /// Whether there was an event: not where the supervisor is gone.
    pub(super) fn take_event(&mut self) -> Result<bool, Error> {
        match self.hear()? {
            None => return Ok(false),
            Some((Event::Exited(mut exit), _)) => {
                if let Some(end) = self.main_end.take() {
                    (exit.status, exit.usage, exit.wall_time) =
                        (end.status, end.usage, end.wall_time);
                }
                self.exit = Some(exit);
            }
            Some((Event::Gone(gone), _)) => self.gone = Some(gone),
            Some((Event::Failed(failure), _)) => self.failure = Some(failure),
            // Said once, before all else.
            Some((Event::Started { .. }, _)) => {}
        }
        Ok(true)
    }

    pub(super) fn conclude(&mut self) -> Result<Outcome, Error> {
        let take =
            |capture: &mut Option<Capture>| capture.as_mut().map(Capture::take).unwrap_or_default();
        let [(stdout, stdout_cut), (stderr, stderr_cut)] = match &self.reader {
            Some(reader) => reader.log().parts(),
            None => [take(&mut self.stdout), take(&mut self.stderr)],
        };
        self.pidfd = None;
        self.ports.close();
        if let Some(failure) = self.failure.take() {
            return Err(self.failed(failure));
        }
        let (status, usage, wall_time, leaked, full_disk) = match (&self.exit, &self.gone) {
            (Some(exit), _) => (
                exit.status,
                exit.usage,
                exit.wall_time,
                exit.leaked.clone(),
                exit.full_disk,
            ),
            (None, Some(gone)) => (gone.status, gone.usage, gone.wall_time, Vec::new(), None),
            (None, None) => return Err(Kind::Vanished.into()),
        };
        let mut end = self.limited.conclude(status, usage, full_disk);
        for (stream, cut) in [
            (OutputStream::Stdout, stdout_cut),
            (OutputStream::Stderr, stderr_cut),
        ] {
            end.notes
                .extend(cut.map(|left_out| Note::OutputCut { stream, left_out }));
        }
        let changes = if self.origin.spec.record_changes {
            Some(self.changes()?)
        } else {
            None
        };
        let denied = self.record.conclude(&mut end.warnings);
        Ok(Outcome {
            status: end.status,
            stdout,
            stderr,
            wall_time,
            usage: end.usage,
            leaked,
            notes: end.notes,
            warnings: end.warnings,
            changes,
            denied,
        })
    }
}
