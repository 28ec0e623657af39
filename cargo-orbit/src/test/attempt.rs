//! One sandbox of a test run: made, waited for, and told.

use std::{
    ffi::OsString,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use orbit::{
    __private::{share_foreign, start_to_wait, stay},
    Killer, Outcome, Output, SandboxBuilder, Status, Stdin, kept,
};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{
    binary::TestBinary,
    environment::{self, HostVariables},
    event::{Attempt, Denied, Used, Verdict},
    isolate::{Program, View},
    takedown::Takedown,
};
use crate::{
    config::settings::Settings,
    runner::alone::sandbox_over,
    services::{Needed, Services},
};

/// What is the same for every sandbox of a run.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) view: View,
    pub(crate) host_variables: HostVariables,
    /// What programs of the target are started through.
    pub(crate) through: Vec<String>,
    /// When the run began.
    pub(crate) began: Instant,
    pub(crate) running: Running,
    /// What tests need beside them.
    pub(crate) services: Services,
    /// Sandboxes of failed tests are kept.
    pub(crate) keep_failed: bool,
    /// What each test wrote is listed.
    pub(crate) diff: bool,
    pub(crate) takedown: Takedown,
}

impl Ground {
    /// The sandbox for `binary` with `arguments`.
    pub(crate) fn sandbox(
        &self,
        binary: &TestBinary,
        settings: &Settings,
        arguments: Vec<OsString>,
    ) -> SandboxBuilder {
        let host = std::env::vars_os();
        let given = host.chain(
            binary
                .variables
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        let program = Program {
            command: self.command(binary, arguments),
            binary: binary.path.clone(),
            working_dir: binary.working_dir.clone(),
            variables: environment::of_test(given, &self.host_variables, &settings.variables()),
        };
        let sandbox = sandbox_over(&self.view, settings, program);
        // Many follow, and nobody but their own programs writes to them.
        let sandbox = share_foreign(sandbox).record_changes(self.diff);
        // Whoever is on the host's network is refused nothing.
        if settings.is_on_host_network() {
            sandbox
        } else {
            sandbox.record_denied(true)
        }
    }

    /// `binary` with `arguments`, and before it what programs of the target are started through.
    pub(crate) fn command(&self, binary: &TestBinary, arguments: Vec<OsString>) -> Vec<OsString> {
        let through = self.through.iter().map(OsString::from);
        through
            .chain([binary.path.clone().into_os_string()])
            .chain(arguments)
            .collect()
    }
}

impl Ground {
    /// What a test with these settings needs, started and ready: else how it has not run.
    pub(crate) fn need(&self, settings: &Settings) -> Result<Needed, Box<Attempt>> {
        let started = self.began.elapsed();
        let starting = |killer: Killer| -> Box<dyn FnOnce()> {
            let running = self.running.clone();
            let place = running.enter(Target::Sandbox(killer));
            Box::new(move || running.leave(place))
        };
        self.services.need(settings, &starting).map_err(|why| {
            let was_ended = self.running.was_ended();
            let verdict = if was_ended {
                Verdict::Interrupted
            } else {
                Verdict::SetupFailed { why }
            };
            Box::new(Attempt {
                started,
                wall_time: self.began.elapsed().saturating_sub(started),
                ..Attempt::new(verdict, Used::default())
            })
        })
    }
}

/// Says of an attempt that failed which of its services has ended.
pub(crate) fn blame(attempt: &mut Attempt, needed: &Needed) {
    if !attempt.verdict.passed() && attempt.verdict != Verdict::Interrupted {
        attempt.notes.extend(needed.ended());
    }
}

/// The sandboxes that run now, so that they can be ended from elsewhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What was sent to all that ran, and is sent to all that come.
    sent: Option<Send>,
    killers: Vec<Option<Target>>,
}

/// Something that can be ended.
#[derive(Debug)]
pub(crate) enum Target {
    Sandbox(Killer),
    /// A process that leads a group of its own, and is not waited for before it leaves: so its number stays its own.
    Group(Pid),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Send {
    Signal(i32),
    Kill,
}

impl Send {
    fn to(self, target: &Target) {
        match (target, self) {
            (Target::Sandbox(killer), Self::Signal(number)) => killer.signal(number),
            (Target::Sandbox(killer), Self::Kill) => killer.kill(),
            (Target::Group(leader), send) => {
                let signal = match send {
                    Self::Signal(number) => Signal::from_named_raw(number),
                    Self::Kill => Some(Signal::KILL),
                };
                if let Some(signal) = signal {
                    // It fails only where all have ended, which is what the signal asks for.
                    let _ = kill_process_group(*leader, signal);
                }
            }
        }
    }
}

impl Running {
    /// Sends a signal to everything that runs, and to whatever is just being started.
    pub(crate) fn signal(&self, number: i32) {
        self.send(Send::Signal(number));
    }

    pub(crate) fn kill(&self) {
        self.send(Send::Kill);
    }

    fn send(&self, send: Send) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.sent = Some(send);
        for killer in state.killers.iter().flatten() {
            send.to(killer);
        }
    }

    pub(crate) fn was_ended(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.sent.is_some()
    }

    pub(crate) fn enter(&self, killer: Target) -> usize {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(send) = state.sent {
            send.to(&killer);
        }
        let free = state.killers.iter().position(Option::is_none);
        let place = free.unwrap_or(state.killers.len());
        if free.is_none() {
            state.killers.push(None);
        }
        state.killers[place] = Some(killer);
        place
    }

    pub(crate) fn leave(&self, place: usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.killers[place] = None;
    }
}

/// Where the streams of a test go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    Captured,
    /// Straight to where ours go, with `--nocapture`.
    Inherited,
    /// Where the builder already says.
    AsTheyAre,
}

/// Runs a sandbox to its end. `Passed` is what its exit code said, no more.
pub(crate) fn run(
    ground: &Ground,
    title: &str,
    sandbox: SandboxBuilder,
    streams: Streams,
) -> Attempt {
    run_with(ground, title, sandbox, streams, |_| {}, || true)
}

/// The same; `begun` is given what ends the sandbox, once it runs, and `is_worth_keeping` says whether it is to be kept where
/// failed ones are.
pub(crate) fn run_with(
    ground: &Ground,
    title: &str,
    sandbox: SandboxBuilder,
    streams: Streams,
    begun: impl FnOnce(Killer),
    is_worth_keeping: impl FnOnce() -> bool,
) -> Attempt {
    let sandbox = match streams {
        Streams::Captured => sandbox
            .stdin(Stdin::Null)
            .stdout(Output::Capture)
            .stderr(Output::Capture),
        Streams::Inherited => sandbox
            .stdin(Stdin::Inherit)
            .stdout(Output::Inherit)
            .stderr(Output::Inherit),
        Streams::AsTheyAre => sandbox,
    };
    let started = ground.began.elapsed();
    let result = start_to_wait(sandbox).and_then(|mut sandbox| {
        let place = ground.running.enter(Target::Sandbox(sandbox.killer()?));
        begun(sandbox.killer()?);
        let outcome = sandbox.wait();
        ground.running.leave(place);
        let outcome = outcome?;
        let keep = ground.keep_failed
            && !outcome.success()
            && !ground.running.was_ended()
            && is_worth_keeping();
        let kept = keep.then(|| kept::keep(&mut sandbox, title));
        ground.takedown.take(sandbox);
        Ok((outcome, kept))
    });
    let (outcome, kept) = match result {
        Ok((outcome, kept)) => (Ok(outcome), kept),
        Err(error) => (Err(error), None),
    };
    let mut attempt = of_result(ground, outcome, started);
    match kept {
        Some(Ok(id)) => attempt.kept = Some(id),
        Some(Err(error)) => attempt.notes.push(format!("it was not kept: {error}")),
        None => {}
    }
    attempt
}

/// Runs the program of a sandbox to its end, and where it ended well, as a further program there the same with other
/// arguments: for half of what another sandbox would take. Gives how the first went, and what the other wrote.
pub(crate) fn run_twice(
    ground: &Ground,
    sandbox: SandboxBuilder,
    timeout: Duration,
    again: Vec<OsString>,
) -> (Attempt, Option<Vec<u8>>) {
    let started = ground.began.elapsed();
    // Of the sandbox, which both share.
    let sandbox = stay(sandbox.timeout(timeout * 2))
        .stdin(Stdin::Null)
        .stdout(Output::Capture)
        .stderr(Output::Capture);
    let mut more = None;
    let result = start_to_wait(sandbox).and_then(|mut sandbox| {
        let place = ground.running.enter(Target::Sandbox(sandbox.killer()?));
        let outcome = sandbox.wait();
        // A signal that was sent to all does not reach what is only begun now.
        if outcome.as_ref().is_ok_and(Outcome::success) && !ground.running.was_ended() {
            let asked = sandbox.exec(again).timeout(timeout).run();
            let answered = asked.ok().filter(Outcome::success);
            more = answered.map(|outcome| outcome.stdout);
        }
        ground.running.leave(place);
        ground.takedown.take(sandbox);
        outcome
    });
    (of_result(ground, result, started), more)
}

/// What an attempt came to that began when it `started`.
fn of_result(ground: &Ground, result: Result<Outcome, orbit::Error>, started: Duration) -> Attempt {
    let wall_time = ground.began.elapsed().saturating_sub(started);
    match result {
        Ok(outcome) => {
            let mut attempt = of_outcome(outcome, started, wall_time);
            if ground.running.was_ended() && !attempt.verdict.passed() {
                attempt.verdict = Verdict::Interrupted;
            }
            attempt
        }
        Err(error) => Attempt {
            started,
            wall_time,
            ..Attempt::new(
                Verdict::SetupFailed {
                    why: error.to_string(),
                },
                Used::default(),
            )
        },
    }
}

/// Nothing could be run, and why.
pub(crate) fn not_run(ground: &Ground, why: String) -> Attempt {
    Attempt {
        started: ground.began.elapsed(),
        ..Attempt::new(Verdict::SetupFailed { why }, Used::default())
    }
}

fn of_outcome(outcome: Outcome, started: Duration, wall_time: Duration) -> Attempt {
    let verdict = match outcome.status {
        Status::Exited(0) => Verdict::Passed,
        Status::Exited(code) => Verdict::Failed { code: Some(code) },
        Status::Signaled(signal) => Verdict::Killed {
            signal,
            name: signal_name(signal),
        },
        Status::TimedOut(limit) => Verdict::TimedOut { limit },
        Status::OomKilled {
            limit,
            peak,
            process,
        } => Verdict::OutOfMemory {
            limit_bytes: limit.as_u64(),
            peak_bytes: peak.as_u64(),
            process: process.to_string(),
        },
        // `Status` may get more ways to end; whatever they are, the test has not passed.
        other => Verdict::Failed {
            code: Some(other.shell_code()),
        },
    };
    let used = Used {
        cpu_user: outcome.usage.cpu_user,
        cpu_system: outcome.usage.cpu_system,
        memory_peak_bytes: outcome
            .usage
            .memory_peak_bytes
            .or(Some(outcome.usage.max_rss_bytes)),
    };
    let notes = outcome.notes.iter().map(ToString::to_string);
    let denied = outcome.denied().iter().map(denied).collect();
    let changes = outcome.changes.unwrap_or_default();
    let mut wrote: Vec<String> = changes.lasting().map(ToString::to_string).collect();
    if changes.omitted > 0 {
        wrote.push(format!("and {} more", changes.omitted));
    }
    Attempt {
        started,
        wall_time,
        stdout: outcome.stdout,
        stderr: outcome.stderr,
        leaked: outcome.leaked.into_iter().map(|it| it.name).collect(),
        notes: notes.chain(outcome.warnings).collect(),
        denied,
        wrote,
        ..Attempt::new(verdict, used)
    }
}

pub(crate) fn denied(denied: &orbit::Denied) -> Denied {
    let protocol = denied.protocol;
    Denied {
        to: match denied.port {
            Some(port) => format!("{}/{protocol}", SocketAddr::new(denied.address, port)),
            None => format!("{}/{protocol}", denied.address),
        },
        count: denied.count,
    }
}

/// `SIGSEGV`.
fn signal_name(number: i32) -> String {
    signal_hook::low_level::signal_name(number)
        .map_or_else(|| format!("signal {number}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names() {
        assert_eq!(signal_name(11), "SIGSEGV");
        assert_eq!(signal_name(6), "SIGABRT");
        assert_eq!(signal_name(60), "signal 60");
    }
}
