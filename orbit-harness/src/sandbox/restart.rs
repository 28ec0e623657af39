//! The program of a sandbox, ended and started again in what it left: [`Sandbox::restart`].

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{ExecBuilder, Outputs, Sandbox, reader::Reader};
use crate::{
    builder::Output,
    capture::{self, Capture, Nowhere, Stream},
    error::{Error, Kind},
    spec::Init,
    supervisor::Control,
};

impl Sandbox {
    /// Ends the program as [`stop`](Self::stop) does, with everything else that runs in the sandbox, and starts it
    /// again: over the files that it left, on the same network, behind the same published ports, and to the same log.
    /// Returns when it is ready, where something was [waited for](crate::SandboxBuilder::wait_for).
    ///
    /// Its standard input is empty then. Its [timeout](crate::SandboxBuilder::timeout) goes on from the first start.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut sandbox = orbit::Sandbox::builder()
    ///     .cmd(["sh", "-c", "echo start >> /tmp/starts; cat /tmp/starts; exec sleep 60"])
    ///     .wait_for(orbit::Wait::log("start"))
    ///     .start()?;
    /// sandbox.restart(Duration::from_secs(5))?;
    /// assert_eq!(sandbox.read_file("/tmp/starts")?, b"start\nstart\n");
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where the sandbox is paused, where the program had ended before, is process 1 itself, has a terminal, or writes to a descriptor that it was
    /// given; where it does not start again, and then the sandbox has no program.
    pub fn restart(&mut self, patience: Duration) -> Result<(), Error> {
        self.begin_restart()?;
        if !self.collect_to_stay(Instant::now().checked_add(patience))? {
            self.signal(libc::SIGKILL)?;
            self.collect_to_stay(None)?;
        }
        self.run_again()?;
        let waits = std::mem::take(&mut self.waits);
        let ready = self.get_ready(&waits, self.startup_timeout);
        self.waits = waits;
        ready
    }

    /// Asks the program to end, and everything else to stay.
    pub(super) fn begin_restart(&mut self) -> Result<(), Error> {
        let unsupported = |why| {
            let doing = "restart the sandbox".to_owned();
            Err(Kind::Unsupported { doing, why }.into())
        };
        if self.core.plan.program.init == Init::Program {
            return unsupported("its program is process 1: with it, the sandbox ends");
        }
        if self.core.plan.program.tty {
            return unsupported("its program has a terminal; start another sandbox");
        }
        if self.outputs.contains(&Outputs::Given) {
            return unsupported("an output of its program is a descriptor that went with it");
        }
        if self.core.is_paused() {
            // The signal to end would wait for as long as the pause.
            return unsupported("the sandbox is paused; unpause it first");
        }
        if self.exit.is_some() || self.gone.is_some() {
            return Err(ended());
        }
        if self.main.is_none() {
            let hold = self.core.events.send(&Control::Hold, &[]);
            hold.map_err(|_| ended())?;
            self.is_held = true;
        }
        self.signal(self.stop_signal)
    }

    /// Starts the program that has ended.
    pub(super) fn run_again(&mut self) -> Result<(), Error> {
        if self.gone.is_some() {
            return Err(ended());
        }
        let before = self.exit.take();
        if let Err(error) = self.start_again() {
            // There is no program: what is told of it is how it ended.
            self.exit = before;
            return Err(error);
        }
        Ok(())
    }

    fn start_again(&mut self) -> Result<(), Error> {
        let cannot = |error| Error::io("cannot open the program's standard streams", error);
        let mut streams: [Option<Capture>; 2] = [None, None];
        let mut outputs = Vec::new();
        for (number, output) in self.outputs.into_iter().enumerate() {
            outputs.push(match output {
                Outputs::Inherited => Output::Inherit,
                Outputs::Null | Outputs::Given => Output::Null,
                Outputs::Captured => {
                    let keep = self.capture_limit;
                    let nowhere = Nowhere::default();
                    let made = capture::output(Output::Capture, Stream::Output, keep, &nowhere);
                    let made = made.map_err(cannot)?;
                    streams[number] = made.1;
                    match made.0 {
                        Stream::Owned(fd) => Output::Fd(fd),
                        _ => Output::Null,
                    }
                }
            });
        }
        let [stdout, stderr] = streams;
        if let Some(old) = &mut self.reader {
            let consumers = old.finish();
            self.first_line = old.log().count();
            let reader = Reader::start(old.log().clone(), stdout, stderr, consumers);
            self.reader = Some(reader.map_err(cannot)?);
        } else {
            (self.stdout, self.stderr) = (stdout, stderr);
        }
        let error_output = outputs.pop().unwrap_or_default();
        let output = outputs.pop().unwrap_or_default();
        let argv = self.core.plan.program.argv.clone();
        let main = ExecBuilder::new(&self.core, argv)
            .stdout(output)
            .stderr(error_output)
            .start()?;
        self.pidfd = main.pidfd().and_then(|fd: &OwnedFd| fd.try_clone().ok());
        self.main = Some(main);
        Ok(())
    }

    /// Waits until the program has ended, or the deadline has passed, and what it left running was killed; the sandbox
    /// stays. Whether it has ended.
    fn collect_to_stay(&mut self, deadline: Option<Instant>) -> Result<bool, Error> {
        while self.exit.is_none() && self.gone.is_none() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut polled = vec![PollFd::new(&self.core.events, PollFlags::IN)];
            let main = self.main.as_ref().filter(|_| self.main_end.is_none());
            polled.extend(main.map(|main| PollFd::new(main.end(), PollFlags::IN)));
            match rustix::event::poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("cannot wait for the sandbox", error)),
            }
            let has_event = !polled[0].revents().is_empty();
            self.drain();
            self.take_end_of_main(true)?;
            if has_event && !self.take_event()? {
                return Err(Kind::Vanished.into());
            }
            if !has_event && left == Some(Duration::ZERO) {
                return Ok(false);
            }
        }
        self.main = None;
        Ok(true)
    }

    /// Where the program is one that was started again, and has ended: has the init kill what it left running, which
    /// it answers with an event.
    pub(super) fn take_end_of_main(&mut self, stay: bool) -> Result<(), Error> {
        if self.main_end.is_none()
            && let Some(main) = &mut self.main
            && let Some(outcome) = main.wait_timeout(Duration::ZERO)?
        {
            self.main_end = Some(outcome);
            let sweep = self.core.events.send(&Control::Sweep { stay }, &[]);
            // Where nobody listens, the sandbox is gone, and says so.
            drop(sweep);
        }
        Ok(())
    }
}

fn ended() -> Error {
    let doing = "restart the sandbox".to_owned();
    Kind::Ended { doing }.into()
}
