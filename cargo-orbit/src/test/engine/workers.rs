//! The threads that jobs run in: as many as ran at once, each for one job after the other.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, Scope},
};

/// Threads of a scope, which end when this is dropped and their jobs are done.
pub(super) struct Workers<J> {
    sender: Sender<J>,
    waiting: Arc<Waiting<J>>,
}

struct Waiting<J> {
    jobs: Mutex<Receiver<J>>,
    /// How many threads wait for a job that none was sent for.
    idle: AtomicUsize,
}

impl<J: Send> Workers<J> {
    pub(super) fn new() -> Self {
        let (sender, jobs) = mpsc::channel();
        Self {
            sender,
            waiting: Arc::new(Waiting {
                jobs: Mutex::new(jobs),
                idle: AtomicUsize::new(0),
            }),
        }
    }

    /// Has `job` done by a thread that waits for one, or by a new one. Where there is no thread to be had, it is dropped.
    pub(super) fn start<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        job: J,
        run: impl Fn(J) + Send + 'scope,
    ) where
        J: 'scope,
    {
        // Only this thread takes from the number, so what is there stays.
        if self.waiting.idle.load(Ordering::Acquire) > 0 {
            self.waiting.idle.fetch_sub(1, Ordering::AcqRel);
            // We hold the receiver ourselves.
            let _ = self.sender.send(job);
            return;
        }
        let waiting = Arc::clone(&self.waiting);
        let work = move || {
            let mut next = Some(job);
            while let Some(job) = next {
                run(job);
                waiting.idle.fetch_add(1, Ordering::AcqRel);
                let jobs = waiting.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                next = jobs.recv().ok();
            }
        };
        let _ = thread::Builder::new().spawn_scoped(scope, work);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, thread::ThreadId, time::Duration};

    use super::*;

    #[test]
    fn one_job_after_another_takes_one_thread_and_two_at_once_take_two() {
        let (done, ended) = mpsc::channel::<ThreadId>();
        let mut threads = BTreeSet::new();
        thread::scope(|scope| {
            let workers = Workers::new();
            let run = |wait: Duration| {
                let done = done.clone();
                workers.start(scope, wait, move |wait| {
                    thread::sleep(wait);
                    let _ = done.send(thread::current().id());
                });
            };
            let mut note = || {
                let id = ended.recv().expect("each job ends");
                threads.insert(format!("{id:?}"));
            };
            for _ in 0..5 {
                run(Duration::ZERO);
                note();
                // It waits for the next job soon after it has said that it is done with this one.
                while workers.waiting.idle.load(Ordering::Acquire) == 0 {
                    thread::yield_now();
                }
            }
            assert_eq!(threads.len(), 1);
            run(Duration::from_millis(200));
            run(Duration::ZERO);
        });
        drop(done);
        let both: BTreeSet<_> = ended.iter().map(|id| format!("{id:?}")).collect();
        assert_eq!(both.len(), 2);
    }
}
