//! Signals that ask this process to end: passed on to what it waits for, so that it ends first, and in order.
//!
//! A Ctrl-C at the terminal reaches every process of the foreground's group by itself. The kernel does not
//! say who sent it; a process that is ended by it may get it twice.

use std::{
    io,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::{Handle, Signals},
    low_level::emulate_default_handler,
};

/// How long a signal waits for a process to pass it on to. A process may run, and be seen to run, a little
/// before this one knows; and whoever presses Ctrl-C during a download should not wait to see it end.
const PATIENCE: Duration = Duration::from_millis(500);

type PassOn = Box<dyn Fn(i32) + Send>;

/// The signals that ask this process to end, until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    handle: Handle,
    receivers: Sender<PassOn>,
}

impl Taken {
    /// Takes them. As long as they are passed on to nobody, they end this process.
    pub(crate) fn new() -> io::Result<Self> {
        let signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
        let handle = signals.handle();
        let (receivers, given) = mpsc::channel();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || dispatch(signals, &given))?;
        Ok(Self { handle, receivers })
    }

    /// Passes them on to the process that is `pid` now: not to another that has its number later.
    pub(crate) fn pass_on_to(&self, pid: Pid) -> io::Result<()> {
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            // It has ended already, which is what any of them would ask for.
            Err(Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let pass_on = move |number| {
            if let Some(signal) = Signal::from_named_raw(number) {
                // It fails only where the process has ended, which is what the signal asks for.
                let _ = pidfd_send_signal(&process, signal);
            }
        };
        self.receivers
            .send(Box::new(pass_on))
            .map_err(|_| io::Error::other("the thread that passes signals on has ended"))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.handle.close();
    }
}

fn dispatch(mut signals: Signals, given: &Receiver<PassOn>) {
    let mut receiver: Option<PassOn> = None;
    for number in &mut signals {
        if receiver.is_none() {
            receiver = given.recv_timeout(PATIENCE).ok();
        }
        match &receiver {
            Some(pass_on) => pass_on(number),
            None => {
                // Where the default cannot be had, there will be another signal.
                let _ = emulate_default_handler(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use rustix::process::{getpid, kill_process};

    use super::*;

    #[test]
    fn a_signal_is_passed_on_though_it_came_a_little_early() {
        let taken = Taken::new().unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        taken.pass_on_to(Pid::from_child(&child)).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(SIGTERM));
    }
}
