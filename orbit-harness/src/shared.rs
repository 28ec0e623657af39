//! [`Shared`]: one service for many tests of a process.
//!
//! Whoever needs it holds a [`SharedGuard`]: the first one's thread starts the service while the others wait, the last
//! one's drop ends it. Nothing else owns it. So a static never has to be dropped, which it never is, and where the
//! process ends with guards alive, the service ends as every sandbox does: with its supervisor, whose pid namespace dies
//! with the process.

use std::{
    any::Any,
    error::Error as StdError,
    fmt, mem,
    ops::Deref,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use crate::{
    error::{Error, Kind, SharedFailure},
    sandbox::Sandbox,
    scenario::Scenario,
};

/// One service, or whatever else is expensive to start, for many tests of one process: started when the first of them
/// needs it, ended when the last lets go of it.
///
/// ```
/// use orbit::{Sandbox, Shared, Wait};
///
/// static ECHO: Shared = Shared::new("echo", || {
///     Sandbox::builder()
///         .cmd(["sh", "-c", "echo up; exec sleep 60"])
///         .wait_for(Wait::log("up"))
///         .start()
/// });
///
/// // In any number of tests:
/// let echo = ECHO.get()?;
/// assert_eq!(echo.logs().count(), 1);
/// # Ok::<(), orbit::Error>(())
/// ```
///
/// **Its end.** The drop of the last [`SharedGuard`] ends it, and returns when nothing of it is left; a test that comes
/// later has a fresh one started. With [`keep`](Self::keep) it stays until the process ends, between tests that do not
/// overlap too, as under `--test-threads 1`. Libtest drops no statics, and need not: when the process ends, by a
/// return from `main`, by `exit`, a panic or SIGKILL, its supervisor's pid namespace ends with it, and all sandboxes in
/// that. Under `cargo nextest run` each test is a process, and has a service of its own: there, and for one service of
/// a whole run, is `[[service]]` of the configuration.
///
/// **A start that fails** is told to each that waits and to each that comes later; it is not tried again in this
/// process. What has not started for one test will not for the next, each would wait for the same startup timeout, and
/// a second start that succeeds would hide that the first did not.
///
/// What is shared need not be a sandbox: `Shared<Scenario>`, or a struct with a sandbox and the URL of its database.
/// What starts it may fail with any error: `Shared<Db, anyhow::Error>`.
pub struct Shared<T = Sandbox, E = Error> {
    name: &'static str,
    start: fn() -> Result<T, E>,
    is_kept: bool,
    state: Mutex<State<T>>,
    changed: Condvar,
}

enum State<T> {
    Idle,
    /// By this thread.
    Starting(ThreadId),
    Running {
        value: Arc<T>,
        users: usize,
    },
    /// Its last user is ending it.
    Ending,
    Failed(Arc<dyn StdError + Send + Sync>),
}

impl<T, E> Shared<T, E> {
    /// What `start` makes, when it is needed. `name` is for people, in errors.
    pub const fn new(name: &'static str, start: fn() -> Result<T, E>) -> Self {
        Self {
            name,
            start,
            is_kept: false,
            state: Mutex::new(State::Idle),
            changed: Condvar::new(),
        }
    }

    /// Keeps it, once it was started, until the process ends, though nobody may need it for a while.
    ///
    /// What the kernel does not take back by itself when the process ends, the control group of a service with
    /// limits, is then removed by the next process that starts a sandbox.
    #[must_use]
    pub const fn keep(mut self) -> Self {
        self.is_kept = true;
        self
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Each state is set as a whole; what panicked meanwhile has set its own.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, E> Shared<T, E>
where
    T: Any + Send + Sync,
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    /// The service: started, where nobody has, and else the one that the others have.
    ///
    /// # Errors
    /// Where it could not be started, now or earlier, with the cause; and where what starts it asks for it.
    pub fn get(&self) -> Result<SharedGuard<'_, T>, Error> {
        let mut state = self.state();
        loop {
            match &mut *state {
                State::Running { value, users } => {
                    *users += 1;
                    let value = Some(Arc::clone(value));
                    let owner: &dyn Owner<T> = self;
                    return Ok(SharedGuard { owner, value });
                }
                State::Failed(cause) => return Err(self.failed(cause)),
                State::Starting(by) if *by == thread::current().id() => {
                    return Err(self.failed(&(Arc::new(AsksForItself) as Arc<_>)));
                }
                State::Starting(_) | State::Ending => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                State::Idle => {
                    *state = State::Starting(thread::current().id());
                    drop(state);
                    self.start_now();
                    state = self.state();
                }
            }
        }
    }

    /// As [`get`](Self::get). Given up, the start goes on, and is ended if nobody else needs it.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[cfg(feature = "tokio")]
    pub async fn get_async(&'static self) -> Result<SharedGuard<'static, T>, Error>
    where
        E: 'static,
    {
        crate::sandbox::blocking(|| self.get()).await
    }

    /// Sets what comes of a start, also where it panics.
    fn start_now(&self) {
        let ended = StartEnded(self);
        let state = match (self.start)() {
            Ok(value) => State::Running {
                value: Arc::new(value),
                users: usize::from(self.is_kept),
            },
            Err(error) => State::Failed(Arc::from(error.into())),
        };
        *self.state() = state;
        drop(ended);
    }

    fn failed(&self, cause: &Arc<dyn StdError + Send + Sync>) -> Error {
        Kind::Shared(SharedFailure {
            name: self.name,
            cause: Arc::clone(cause),
        })
        .into()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("what starts it asks for it, and would wait for itself for ever")]
struct AsksForItself;

#[derive(Debug, thiserror::Error)]
#[error("what starts it panicked; the message is in the output of the test that came first")]
struct Panicked;

/// What a guard needs of whom it came from, whatever the type of its errors.
trait Owner<T>: Sync {
    /// A user is gone: where it was the last, the service is ended.
    fn release(&self, value: Arc<T>);
}

impl<T: Any + Send + Sync, E> Owner<T> for Shared<T, E> {
    fn release(&self, value: Arc<T>) {
        let mut state = self.state();
        let State::Running { users, .. } = &mut *state else {
            return;
        };
        *users -= 1;
        if *users > 0 {
            // The last user's drop shows the log by itself.
            if thread::panicking() {
                show_log(&*value);
            }
            // Before the state is unlocked: what the last user drops is to be the last.
            drop(value);
            return;
        }
        // Whoever comes now waits for the end: a fresh one may need the port that this one has.
        let ours = mem::replace(&mut *state, State::Ending);
        drop(state);
        let _ended = Ended(self);
        drop(ours);
        drop(value);
    }
}

/// Says that the service has ended, should its end panic too.
struct Ended<'a, T, E>(&'a Shared<T, E>);

impl<T, E> Drop for Ended<'_, T, E> {
    fn drop(&mut self) {
        *self.0.state() = State::Idle;
        self.0.changed.notify_all();
    }
}

/// Says that a start has ended, should it have panicked.
struct StartEnded<'a, T, E>(&'a Shared<T, E>);

impl<T, E> Drop for StartEnded<'_, T, E> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if matches!(*state, State::Starting(_)) {
            *state = State::Failed(Arc::new(Panicked));
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// As a sandbox does when it is dropped in a test that panics, for one that others still use.
fn show_log(value: &dyn Any) {
    if let Some(sandbox) = value.downcast_ref::<Sandbox>() {
        sandbox.show_log();
    } else if let Some(scenario) = value.downcast_ref::<Scenario>() {
        scenario.show_logs();
    }
}

/// A use of a [`Shared`] service, which is there as long as this is. Where a test panics with it, the end of the
/// service's log is in its output.
#[must_use = "the service may end when this is dropped"]
pub struct SharedGuard<'a, T: Any + Send + Sync = Sandbox> {
    owner: &'a dyn Owner<T>,
    /// Until it is dropped.
    value: Option<Arc<T>>,
}

impl<T: Any + Send + Sync> Deref for SharedGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // Taken by `drop` alone.
        self.value.as_deref().expect("a guard that was not dropped")
    }
}

impl<T: Any + Send + Sync> Drop for SharedGuard<'_, T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.owner.release(value);
        }
    }
}

impl<T: Any + Send + Sync + fmt::Debug> fmt::Debug for SharedGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T, E> fmt::Debug for Shared<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    /// Counts what is alive.
    struct Counted(&'static AtomicUsize);

    impl Counted {
        fn new(alive: &'static AtomicUsize) -> Self {
            alive.fetch_add(1, Ordering::SeqCst);
            Self(alive)
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            // Longer than a thread needs to find it gone.
            thread::sleep(Duration::from_millis(5));
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn never_are_there_two_and_never_is_one_left() {
        static ALIVE: AtomicUsize = AtomicUsize::new(0);
        static STARTS: AtomicUsize = AtomicUsize::new(0);
        static ONE: Shared<Counted> = Shared::new("one", || {
            STARTS.fetch_add(1, Ordering::SeqCst);
            Ok(Counted::new(&ALIVE))
        });
        thread::scope(|scope| {
            for place in 0..16_u64 {
                scope.spawn(move || {
                    for round in 0..8 {
                        let guard = ONE.get().unwrap();
                        assert_eq!(guard.0.load(Ordering::SeqCst), 1);
                        thread::sleep(Duration::from_micros(200 * ((place + round) % 4)));
                    }
                });
            }
        });
        assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
        let starts = STARTS.load(Ordering::SeqCst);
        drop(ONE.get());
        assert_eq!(STARTS.load(Ordering::SeqCst), starts + 1);
    }

    #[test]
    fn what_is_kept_outlives_its_users() {
        static ALIVE: AtomicUsize = AtomicUsize::new(0);
        static KEPT: Shared<Counted> = Shared::new("kept", || Ok(Counted::new(&ALIVE))).keep();
        drop(KEPT.get());
        assert_eq!(ALIVE.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_start_that_failed_is_told_to_all_and_not_tried_again() {
        static STARTS: AtomicUsize = AtomicUsize::new(0);
        static BAD: Shared<(), std::num::ParseIntError> = Shared::new("bad", || {
            STARTS.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            "x".parse::<u8>().map(drop)
        });
        thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| BAD.get().unwrap_err()))
                .collect();
            for one in all {
                let error = one.join().unwrap();
                assert_eq!(
                    error.to_string(),
                    "the shared service `bad` could not be started: invalid digit found in string"
                );
            }
        });
        assert_eq!(STARTS.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_start_that_panics_is_told() {
        static PANICS: Shared<()> = Shared::new("panics", || panic!("no"));
        assert!(thread::spawn(|| drop(PANICS.get())).join().is_err());
        let text = PANICS.get().unwrap_err().to_string();
        assert!(text.contains("panicked"), "{text}");
    }

    #[test]
    fn a_start_that_asks_for_itself_is_told() {
        static ITSELF: Shared<()> = Shared::new("itself", || ITSELF.get().map(drop));
        let text = ITSELF.get().unwrap_err().to_string();
        assert!(text.contains("would wait for itself"), "{text}");
    }
}
