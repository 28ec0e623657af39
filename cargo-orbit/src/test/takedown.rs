//! Takes down sandboxes whose programs have ended, so that the next test need not wait for it.
//!
//! The kernel ends the processes, mounts and networks of a sandbox by itself, and mostly waits as it does. That is no work
//! of a test any more: so a test's lane is free once its program has ended, and a thread of its own waits for the rest: of
//! several at a time, as most are gone by then and need no wait.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use orbit::Sandbox;

/// How long the first of several waits for others.
const REST: Duration = Duration::from_millis(5);

/// A thread that drops what it is given, and is waited for at the end.
#[derive(Debug)]
pub(crate) struct Takedown<T: Send + 'static = Sandbox> {
    /// `None` where there is no thread: each is taken down where it ends.
    shared: Option<Arc<Shared<T>>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
    /// So many are taken down at once.
    enough: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: Vec<T>,
    /// How many are being dropped.
    leaving: usize,
    is_last: bool,
}

impl<T: Send + 'static> Takedown<T> {
    /// Takes down `jobs` sandboxes at a time, or fewer where they do not come so fast.
    pub(crate) fn new(jobs: usize) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                waiting: Vec::new(),
                leaving: 0,
                is_last: false,
            }),
            wake: Condvar::new(),
            enough: jobs.max(1),
        });
        let theirs = Arc::clone(&shared);
        let work = move || while theirs.drop_some() {};
        let thread = thread::Builder::new().name("takedown".into()).spawn(work);
        match thread {
            Ok(thread) => Self {
                shared: Some(shared),
                thread: Some(thread),
            },
            Err(_) => Self::default(),
        }
    }

    /// Takes down `sandbox`, whose program has ended. Where there are twice as many as are enough, who brings one more takes
    /// it down: they hold what was written to them, and are not to pile up.
    pub(crate) fn take(&self, sandbox: T) {
        let Some(shared) = &self.shared else {
            return;
        };
        let mut state = shared.state();
        if state.waiting.len() + state.leaving >= shared.enough * 2 {
            drop(state);
            drop(sandbox);
            return;
        }
        state.waiting.push(sandbox);
        let waiting = state.waiting.len();
        drop(state);
        // The thread sleeps until there is one, and then until there are enough.
        if waiting == 1 || waiting == shared.enough {
            shared.wake.notify_one();
        }
    }
}

impl<T: Send + 'static> Default for Takedown<T> {
    fn default() -> Self {
        Self {
            shared: None,
            thread: None,
        }
    }
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Nothing that holds it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for some, and drops them. Whether there may be more.
    fn drop_some(&self) -> bool {
        let none = |state: &mut State<T>| state.waiting.is_empty() && !state.is_last;
        let few = |state: &mut State<T>| state.waiting.len() < self.enough && !state.is_last;
        let state = self.wake.wait_while(self.state(), none);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let waited = self.wake.wait_timeout_while(state, REST, few);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let some = std::mem::take(&mut state.waiting);
        state.leaving = some.len();
        let is_last = state.is_last;
        drop(state);
        drop(some);
        self.state().leaving = 0;
        !is_last
    }
}

impl<T: Send + 'static> Drop for Takedown<T> {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.state().is_last = true;
            shared.wake.notify_one();
        }
        if let Some(thread) = self.thread.take() {
            // It drops what it is given, and that does not panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Instant,
    };

    use super::*;

    /// Counts itself where it is dropped.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn all_are_gone_when_it_has_ended() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let takedown = Takedown::new(2);
        for _ in 0..100 {
            takedown.take(Counted(Arc::clone(&dropped)));
        }
        drop(takedown);
        assert_eq!(dropped.load(Ordering::SeqCst), 100);
    }

    #[test]
    fn one_alone_is_not_kept() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let takedown = Takedown::new(8);
        takedown.take(Counted(Arc::clone(&dropped)));
        let began = Instant::now();
        while dropped.load(Ordering::SeqCst) == 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "it is kept");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn without_a_thread_each_ends_where_it_is_given() {
        let dropped = Arc::new(AtomicUsize::new(0));
        Takedown::default().take(Counted(Arc::clone(&dropped)));
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }
}
