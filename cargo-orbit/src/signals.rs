//! Signals that ask this process to end: passed on to what it waits for, so that it ends first, and in order.
//!
//! A Ctrl-C at the terminal reaches every process of the foreground's group by itself. The kernel does not
//! say who sent it; a process that is ended by it may get it twice.

use std::{
    io,
    process::{Child, ExitStatus},
    thread,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// Does `work` while each signal that asks this process to end is given to `pass_on` instead.
pub(crate) fn passed_on<T>(
    pass_on: impl Fn(i32) + Send,
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let handle = signals.handle();
    Ok(thread::scope(|scope| {
        scope.spawn(move || signals.forever().for_each(pass_on));
        let result = work();
        handle.close();
        result
    }))
}

/// Waits for `child`, and passes on to it the signals that ask this process to end.
pub(crate) fn wait_for(child: &mut Child) -> io::Result<ExitStatus> {
    passed_on(to_process(Pid::from_child(child))?, || child.wait())?
}

/// Sends signals to the process that is `pid` now: not to another that has its number later.
pub(crate) fn to_process(pid: Pid) -> io::Result<impl Fn(i32) + Send> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(move |number| {
        if let Some(signal) = Signal::from_named_raw(number) {
            // It fails only where the process has ended, which is what the signal asks for.
            let _ = pidfd_send_signal(&process, signal);
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command, time::Duration};

    use rustix::process::{getpid, kill_process};

    use super::*;

    #[test]
    fn a_child_is_asked_to_end_before_its_parent() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let status = thread::scope(|scope| {
            scope.spawn(|| {
                // Until the handlers stand, the signal would end this test: only then is it sent.
                while !handles(SIGTERM) {
                    thread::sleep(Duration::from_millis(1));
                }
                kill_process(getpid(), Signal::TERM).unwrap();
            });
            wait_for(&mut child).unwrap()
        });
        assert_eq!(status.signal(), Some(SIGTERM));
    }

    /// Whether this process has a handler for signal `number`: its bit in `SigCgt`.
    ///
    /// Source: `proc_pid_status(5)`.
    fn handles(number: i32) -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() >> (number - 1) & 1 == 1
    }
}
