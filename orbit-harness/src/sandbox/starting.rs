//! The start of a sandbox's program, as its init tells of it: or why there is none.

use std::{fs, io::Read as _, os::fd::OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::Sandbox;
use crate::{
    capture::Capture,
    error::{Error, Kind},
    netfilter::Netfilter,
    outcome::Status,
    supervisor::{Cause, Event, Failure, Supervisor},
    way_out::Record,
};

impl Sandbox {
    pub(super) fn await_start(&mut self, supervisor: &Supervisor) -> Result<(), Error> {
        let event = self.hear()?;
        match event {
            Some((
                Event::Started {
                    has_pidfd,
                    has_terminal,
                    executes_later,
                    has_network,
                    has_scratch,
                    has_record,
                    unrecorded,
                },
                mut fds,
            )) => {
                self.network = if has_network { fds.pop() } else { None };
                let record = if has_record { fds.pop() } else { None };
                self.record = Record::new(record.map(Netfilter::from_fd), unrecorded);
                self.scratch = if has_scratch { fds.pop() } else { None };
                let mut fds = fds.into_iter();
                self.pidfd = if has_pidfd { fds.next() } else { None };
                if let Some(terminal) = has_terminal.then(|| fds.next()).flatten() {
                    let cannot = |error| Error::io("cannot read the program's terminal", error);
                    let reader = terminal.try_clone().map_err(cannot)?;
                    self.stdout = Some(Capture::new(reader, self.capture_limit).map_err(cannot)?);
                    self.terminal = Some(terminal);
                }
                match executes_later.then(|| fds.next()).flatten() {
                    Some(executing) => self.await_execution(executing),
                    None => Ok(()),
                }
            }
            Some((Event::Failed(failure), _)) => Err(self.failed(failure)),
            Some((Event::Gone(gone), _)) => {
                let ended =
                    matches!(gone.status, Status::TimedOut(_)) || self.limited.is_out_of_memory();
                self.gone = Some(gone);
                // Killed before the program ran: by its timeout or its memory limit, which `wait` reports, or by
                // somebody else.
                if ended {
                    Ok(())
                } else {
                    Err(Kind::Vanished.into())
                }
            }
            Some((Event::Exited(_), _)) => Err(Kind::Vanished.into()),
            None => Err(supervisor
                .has_not_heard()
                .map_or_else(|| Kind::Vanished.into(), Error::from)),
        }
    }

    /// Waits until a program that is process 1 has executed, or has said why it could not.
    pub(super) fn await_execution(&mut self, executing: OwnedFd) -> Result<(), Error> {
        // It ends when the program executes, or with a process that said what failed just before.
        let _ = fs::File::from(executing).read(&mut [0]);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut polled = [PollFd::new(&self.core.events, PollFlags::IN)];
        if rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0) {
            self.take_event()?;
        }
        match self.failure.take() {
            Some(failure) => Err(self.failed(failure)),
            None => Ok(()),
        }
    }

    pub(super) fn hear(&self) -> Result<Option<(Event, Vec<OwnedFd>)>, Error> {
        self.core
            .events
            .recv::<Event>()
            .map_err(|error| Error::io("cannot hear from the sandbox", error))
    }

    pub(super) fn failed(&self, failure: Failure) -> Error {
        let plan = &self.core.plan;
        if let Cause::Exec(exec) = failure.cause {
            return Kind::Exec {
                program: plan.program.argv[0].to_string_lossy().into_owned(),
                working_dir: plan.program.working_dir.display().to_string(),
                failure: exec,
                few_ids: self.core.few_ids.clone(),
            }
            .into();
        }
        let step = plan.lines().get(failure.line).cloned().unwrap_or_default();
        Kind::Step {
            number: failure.line + 1,
            step,
            failure,
        }
        .into()
    }
}
