//! The async forms, for tests that run under tokio (feature `tokio`).
//!
//! What ends when something happens waits for a descriptor in the runtime's own poll (`AsyncFd`): it holds no thread,
//! and may be given up at any point. What does its work and returns, such as a start or a copy, is done by a thread of
//! the runtime that may block: given up, it is done to its end, and what it made is dropped there.
//!
//! Nothing here is needed to end a sandbox: dropping it does that at once, with or without a runtime, and no task or
//! thread of a runtime is left.

use std::{
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Exec, ExecBuilder, Killer, Sandbox};
use crate::{builder::SandboxBuilder, error::Error, outcome::Outcome, spec::Content, sys};

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being shut down.
            Err(failed) => Err(Error::io(
                "cannot go on with the sandbox",
                std::io::Error::other(failed),
            )),
        },
    }
}

/// Ends the sandbox of a start that nobody waits for any more: one that has begun, or begins yet.
struct GivenUp(Arc<Begun>);

#[derive(Default)]
struct Begun(Mutex<(bool, Option<Killer>)>);

impl Begun {
    fn state(&self) -> MutexGuard<'_, (bool, Option<Killer>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, killer: Killer) {
        let mut state = self.state();
        if state.0 {
            killer.kill();
        }
        state.1 = Some(killer);
    }

    /// It has started: nothing is to be ended any more but by who has it.
    fn forget(&self) {
        self.state().1 = None;
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.0 = true;
        if let Some(killer) = &state.1 {
            killer.kill();
        }
    }
}

fn cannot(error: std::io::Error) -> Error {
    Error::io("cannot wait for the sandbox", error)
}

/// Async forms, with the feature `tokio`.
impl SandboxBuilder {
    /// As [`start`](Self::start).
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let mut sandbox = orbit::Sandbox::builder()
    ///     .cmd(["sh", "-c", "echo up; exec sleep 60"])
    ///     .wait_for(orbit::Wait::log("up"))
    ///     .start_async()
    ///     .await?;
    /// let outcome = sandbox.exec(["echo", "hello"]).run_async().await?;
    /// assert_eq!(outcome.stdout_text(), "hello\n");
    /// sandbox.kill();
    /// assert_eq!(sandbox.wait_async().await?.stdout_text(), "up\n");
    /// # Ok::<(), orbit::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Given up, the sandbox is killed, and what waits for it to be ready returns.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_async(self) -> Result<Sandbox, Error> {
        let given_up = GivenUp(Arc::default());
        let begun = Arc::clone(&given_up.0);
        blocking(move || {
            let sandbox = self.start_with(Some(&|killer| begun.add(killer)));
            begun.forget();
            sandbox
        })
        .await
    }

    /// As [`run`](Self::run).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_async(self) -> Result<Outcome, Error> {
        // Until it is ready: the wait for its end is no thread's.
        self.start_async().await?.wait_async().await
    }
}

/// Async forms, with the feature `tokio`.
impl Sandbox {
    /// As [`wait`](Self::wait). To give it up harms nothing: it can be waited for again.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn wait_async(&mut self) -> Result<Outcome, Error> {
        self.end(None).await?;
        self.wait()
    }

    /// As [`stop`](Self::stop).
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub async fn stop_async(&mut self, patience: Duration) -> Result<Outcome, Error> {
        self.signal(self.stop_signal)?;
        if !self.end(Some(Instant::now() + patience)).await? {
            self.kill();
        }
        self.wait_async().await
    }

    /// Waits for the end of the program, or the deadline. Whether it has ended.
    async fn end(&mut self, deadline: Option<Instant>) -> Result<bool, Error> {
        while self.exit.is_none() && self.gone.is_none() {
            if self.collect(Some(Instant::now()))? {
                break;
            }
            // A terminal's output is read by who waits: there is no thread that does.
            let mut fds = vec![
                self.core
                    .events
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(cannot)?,
            ];
            if let Some(main) = self.main.as_ref().filter(|_| self.main_end.is_none()) {
                fds.push(main.end().as_fd().try_clone_to_owned().map_err(cannot)?);
            }
            for capture in [&self.stdout, &self.stderr].into_iter().flatten() {
                if let Some(reader) = capture.reader() {
                    fds.push(reader.try_clone().map_err(cannot)?.into());
                }
            }
            if !readable(fds, deadline).await? {
                return Ok(false);
            }
        }
        self.collect(Some(Instant::now()))
    }

    /// As [`read_file`](Self::read_file).
    ///
    /// # Errors
    /// As [`read_file`](Self::read_file).
    pub async fn read_file_async(&self, path: impl Into<PathBuf>) -> Result<Vec<u8>, Error> {
        let (core, path) = (self.core.clone(), path.into());
        blocking(move || core.read_file(&path)).await
    }

    /// As [`write_file`](Self::write_file).
    ///
    /// # Errors
    /// As [`write_file`](Self::write_file).
    pub async fn write_file_async(
        &self,
        path: impl Into<PathBuf>,
        content: impl Into<Content>,
    ) -> Result<(), Error> {
        let (core, path, content) = (self.core.clone(), path.into(), content.into());
        blocking(move || core.write_file(&path, content)).await
    }

    /// As [`copy_in`](Self::copy_in).
    ///
    /// # Errors
    /// As [`copy_in`](Self::copy_in).
    pub async fn copy_in_async(
        &self,
        from: impl Into<PathBuf>,
        to: impl Into<PathBuf>,
    ) -> Result<(), Error> {
        let (core, from, to) = (self.core.clone(), from.into(), to.into());
        blocking(move || core.copy_in(None, &from, &to)).await
    }

    /// As [`copy_out`](Self::copy_out).
    ///
    /// # Errors
    /// As [`copy_out`](Self::copy_out).
    pub async fn copy_out_async(
        &self,
        from: impl Into<PathBuf>,
        to: impl Into<PathBuf>,
    ) -> Result<(), Error> {
        let (core, from, to) = (self.core.clone(), from.into(), to.into());
        blocking(move || core.copy_out(&from, &to)).await
    }
}

/// Async forms, with the feature `tokio`.
impl ExecBuilder {
    /// As [`start`](Self::start).
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_async(self) -> Result<Exec, Error> {
        blocking(move || self.start()).await
    }

    /// As [`run`](Self::run). Given up, the program is killed.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_async(self) -> Result<Outcome, Error> {
        self.start_async().await?.wait_async().await
    }
}

/// Async forms, with the feature `tokio`.
impl Exec {
    /// As [`wait`](Self::wait). To give it up harms nothing: it can be waited for again.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn wait_async(&mut self) -> Result<Outcome, Error> {
        loop {
            if let Some(outcome) = self.wait_timeout(Duration::ZERO)? {
                return Ok(outcome);
            }
            let mut fds = vec![self.end().as_fd().try_clone_to_owned().map_err(cannot)?];
            for reader in self.readers() {
                fds.push(reader.try_clone().map_err(cannot)?.into());
            }
            readable(fds, self.limit()).await?;
        }
    }
}

/// Waits until one of `fds` can be read, or has ended, or the deadline. Whether one can.
async fn readable(
    fds: Vec<std::os::fd::OwnedFd>,
    deadline: Option<Instant>,
) -> Result<bool, Error> {
    let fds = fds
        .into_iter()
        .map(sys::watch_readable)
        .collect::<Result<Vec<_>, _>>()
        .map_err(cannot)?;
    let any = std::future::poll_fn(|context| {
        for fd in &fds {
            if let std::task::Poll::Ready(ready) = fd.poll_read_ready(context) {
                return std::task::Poll::Ready(ready.map(drop));
            }
        }
        std::task::Poll::Pending
    });
    match deadline {
        None => any.await.map(|()| true).map_err(cannot),
        Some(at) => match tokio::time::timeout_at(at.into(), any).await {
            Ok(ready) => ready.map(|()| true).map_err(cannot),
            Err(_) => Ok(false),
        },
    }
}
