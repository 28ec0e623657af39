//! The threads that jobs run in: as many as run at once, each for one job after the other.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, Scope},
};

/// Threads of a scope, which end when this is dropped and their jobs are done.
pub(super) struct Workers<J> {
    sender: Sender<J>,
    jobs: Arc<Mutex<Receiver<J>>>,
    threads: Cell<usize>,
}

impl<J: Send> Workers<J> {
    pub(super) fn new() -> Self {
        let (sender, jobs) = mpsc::channel();
        Self {
            sender,
            jobs: Arc::new(Mutex::new(jobs)),
            threads: Cell::new(0),
        }
    }

    /// Has `job`, one of `running`, done by a thread that has no other, or is about to have none; where there are fewer
    /// threads than jobs by a new one. Where no thread is to be had, the job is dropped.
    pub(super) fn start<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        job: J,
        running: usize,
        run: impl Fn(J) + Send + 'scope,
    ) where
        J: 'scope,
    {
        if self.threads.get() >= running {
            // We hold the receiver ourselves.
            let _ = self.sender.send(job);
            return;
        }
        let jobs = Arc::clone(&self.jobs);
        let work = move || {
            let mut next = Some(job);
            while let Some(job) = next {
                run(job);
                next = jobs
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .recv()
                    .ok();
            }
        };
        if thread::Builder::new().spawn_scoped(scope, work).is_ok() {
            self.threads.set(self.threads.get() + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        thread::ThreadId,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn there_are_as_many_threads_as_jobs_at_once() {
        let (done, ended) = mpsc::channel::<ThreadId>();
        let mut threads = HashSet::new();
        thread::scope(|scope| {
            let workers = Workers::new();
            let start = |takes: Duration, running| {
                let done = done.clone();
                workers.start(scope, takes, running, move |takes| {
                    thread::sleep(takes);
                    let _ = done.send(thread::current().id());
                });
            };
            for _ in 0..5 {
                start(Duration::ZERO, 1);
                threads.insert(ended.recv().expect("each job ends"));
            }
            assert_eq!(threads.len(), 1);
            let began = Instant::now();
            start(Duration::from_secs(1), 1);
            start(Duration::ZERO, 2);
            threads.insert(ended.recv().expect("each job ends"));
            assert_eq!(threads.len(), 2);
            assert!(began.elapsed() < Duration::from_millis(900), "it waited");
        });
    }
}
