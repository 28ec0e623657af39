//! The async forms, for tests that run under tokio (feature `tokio`).
//!
//! What ends when something happens waits for a descriptor in the runtime's own poll (`AsyncFd`): it holds no thread,
//! and may be given up at any point. What does its work and returns, such as a start or a copy, is done by a thread of
//! the runtime that may block: given up, it is done to its end, and what it made is dropped there.
//!
//! Nothing here is needed to end a sandbox: dropping it does that at once, with or without a runtime, and no task or
//! thread of a runtime is left.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::event::{PollFlags, epoll};

use super::{Exec, ExecBuilder, Killer, Paused, Sandbox, ready::Source};
use crate::{
    builder::SandboxBuilder,
    changes::Changes,
    error::{Error, Kind},
    outcome::Outcome,
    spec::Content,
    supervisor::Control,
    sys,
    wait::Wait,
};

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    sys::blocking(work)
        .await
        .map_err(|error| Error::io("cannot go on with the sandbox", error))?
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
        if !self.end(Instant::now().checked_add(patience)).await? {
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
            let mut fds = self.ends()?;
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

    /// As [`copy_in_as`](Self::copy_in_as).
    ///
    /// # Errors
    /// As [`copy_in_as`](Self::copy_in_as).
    pub async fn copy_in_as_async(
        &self,
        owner: impl Into<String>,
        from: impl Into<PathBuf>,
        to: impl Into<PathBuf>,
    ) -> Result<(), Error> {
        let (core, owner) = (self.core.clone(), owner.into());
        let (from, to) = (from.into(), to.into());
        blocking(move || core.copy_in(Some(&owner), &from, &to)).await
    }

    /// As [`wait_for`](Self::wait_for). To give it up harms nothing.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub async fn wait_for_async(&mut self, wait: &Wait, patience: Duration) -> Result<(), Error> {
        self.check_wait(wait)?;
        self.get_ready_async(std::slice::from_ref(wait), patience)
            .await
    }

    /// As [`restart`](Self::restart). Given up, the sandbox stays as it is by then: its program may have ended, and not
    /// have begun again.
    ///
    /// # Errors
    /// As [`restart`](Self::restart).
    pub async fn restart_async(&mut self, patience: Duration) -> Result<(), Error> {
        self.begin_restart()?;
        if !self.stay(Instant::now().checked_add(patience)).await? {
            self.signal(libc::SIGKILL)?;
            self.stay(None).await?;
        }
        self.run_again()?;
        let waits = self.waits.clone();
        self.get_ready_async(&waits, self.startup_timeout).await
    }

    /// What becomes readable when something happens to the sandbox, or its program ends.
    fn ends(&self) -> Result<Vec<OwnedFd>, Error> {
        let main = self.main.as_ref().filter(|_| self.main_end.is_none());
        let ends = [self.core.events.as_fd()]
            .into_iter()
            .chain(main.map(|main| main.end().as_fd()));
        ends.map(|fd| fd.try_clone_to_owned().map_err(cannot))
            .collect()
    }

    /// As `collect_to_stay`.
    async fn stay(&mut self, deadline: Option<Instant>) -> Result<bool, Error> {
        while self.exit.is_none() && self.gone.is_none() {
            let is_in_time = readable(self.ends()?, deadline).await?;
            self.drain();
            self.take_end_of_main(true)?;
            let has_event = super::ready::has_event(self)?;
            if !is_in_time && !has_event {
                return Ok(false);
            }
        }
        self.main = None;
        Ok(true)
    }

    /// As [`pause`](Self::pause). Given up, the sandbox is paused all the same, or will be.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub async fn pause_async(&self) -> Result<Paused, Error> {
        self.set_paused_async(true, "pause the sandbox").await
    }

    /// As [`unpause`](Self::unpause).
    ///
    /// # Errors
    /// As [`unpause`](Self::unpause).
    pub async fn unpause_async(&self) -> Result<(), Error> {
        self.set_paused_async(false, "unpause the sandbox")
            .await
            .map(drop)
    }

    async fn set_paused_async(&self, paused: bool, doing: &'static str) -> Result<Paused, Error> {
        if self.can_be_frozen(doing)? {
            self.set_frozen_async(paused).await?;
            return Ok(Paused::Frozen);
        }
        let core = self.core.clone();
        blocking(move || core.ask(Control::Stop(paused), doing).map(drop)).await?;
        self.core.set_stopped(paused);
        Ok(Paused::Stopped)
    }

    /// As [`freeze`](Self::freeze). Given up, the sandbox is frozen all the same.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub async fn freeze_async(&self) -> Result<(), Error> {
        self.set_frozen_async(true).await
    }

    /// As [`thaw`](Self::thaw).
    ///
    /// # Errors
    /// As [`thaw`](Self::thaw).
    pub async fn thaw_async(&self) -> Result<(), Error> {
        self.set_frozen_async(false).await
    }

    async fn set_frozen_async(&self, frozen: bool) -> Result<(), Error> {
        const FIRST: Duration = Duration::from_micros(100);
        const LONGEST: Duration = Duration::from_millis(20);
        const PATIENCE: Duration = Duration::from_secs(5);
        self.limited.begin_to_freeze(frozen)?;
        let began = Instant::now();
        let mut pause = FIRST;
        while !self.limited.has_settled(frozen) {
            if began.elapsed() > PATIENCE {
                let late = std::io::ErrorKind::TimedOut;
                return Err(Error::io("cannot freeze or thaw the sandbox", late));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
        self.core.set_frozen(frozen);
        Ok(())
    }

    /// As [`connect`](Self::connect), to a stream of the runtime.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_async(&self, port: u16) -> Result<tokio::net::TcpStream, Error> {
        let failed = |source| Error::from(Kind::Connect { port, source });
        if self.network.is_none() {
            let address = (std::net::Ipv4Addr::LOCALHOST, port);
            return tokio::net::TcpStream::connect(address)
                .await
                .map_err(failed);
        }
        let stream = self.begin_to_connect(port, Duration::ZERO)?;
        stream.set_nonblocking(true).map_err(failed)?;
        let stream = tokio::net::TcpStream::from_std(stream).map_err(failed)?;
        stream.writable().await.map_err(failed)?;
        match stream.take_error().map_err(failed)? {
            Some(error) => Err(failed(error)),
            None => Ok(stream),
        }
    }

    /// As [`changes`](Self::changes).
    ///
    /// # Errors
    /// As [`changes`](Self::changes).
    pub async fn changes_async(&self) -> Result<Changes, Error> {
        let Some(scratch) = &self.scratch else {
            return Ok(Changes::default());
        };
        let (scratch, writable) = (scratch.try_clone().map_err(cannot)?, self.writable());
        blocking(move || super::changes_of(&scratch, writable)).await
    }

    /// As [`fill_disk`](Self::fill_disk).
    ///
    /// # Errors
    /// As [`fill_disk`](Self::fill_disk).
    pub async fn fill_disk_async(&self) -> Result<(), Error> {
        self.resize_later(super::disk::Resize::fill()).await
    }

    /// As [`free_disk`](Self::free_disk).
    ///
    /// # Errors
    /// As [`free_disk`](Self::free_disk).
    pub async fn free_disk_async(&self) -> Result<(), Error> {
        match self.size_asked() {
            Some(size) => self.resize_later(super::disk::Resize::free(size)).await,
            None => Ok(()),
        }
    }

    /// As [`set_disk`](Self::set_disk).
    ///
    /// # Errors
    /// As [`set_disk`](Self::set_disk).
    pub async fn set_disk_async(&self, limit: &str) -> Result<(), Error> {
        self.resize_later(super::disk::Resize::to(limit)?).await
    }

    async fn resize_later(&self, resize: super::disk::Resize) -> Result<(), Error> {
        let scratch = self.scratch.as_ref().map(OwnedFd::try_clone);
        let scratch = scratch.transpose().map_err(cannot)?;
        blocking(move || resize.carry_out(scratch.as_ref())).await
    }

    /// As [`set_read_only`](Self::set_read_only).
    ///
    /// # Errors
    /// As [`set_read_only`](Self::set_read_only).
    pub async fn set_read_only_async(&self, read_only: bool) -> Result<(), Error> {
        let core = self.core.clone();
        blocking(move || core.set_read_only(read_only)).await
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

/// As [`sys::readable`].
pub(super) async fn readable(fds: Vec<OwnedFd>, deadline: Option<Instant>) -> Result<bool, Error> {
    sys::readable(fds, deadline).await.map_err(cannot)
}

/// What becomes readable when one of these has what it is polled for.
///
/// # Errors
/// Where this process has no descriptor to spare.
pub(super) fn any_of(sources: &[Source<'_>]) -> rustix::io::Result<OwnedFd> {
    let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (number, (fd, wanted)) in (0u64..).zip(sources) {
        let mut events = epoll::EventFlags::empty();
        events.set(epoll::EventFlags::IN, wanted.contains(PollFlags::IN));
        events.set(epoll::EventFlags::OUT, wanted.contains(PollFlags::OUT));
        epoll::add(&all, fd, epoll::EventData::new_u64(number), events)?;
    }
    Ok(all)
}
