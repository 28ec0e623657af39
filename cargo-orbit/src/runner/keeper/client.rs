//! The runner's side: it finds the keeper of its run, or starts it, and asks it.

use std::{
    ffi::OsStr,
    io::{self, BufReader, ErrorKind},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use orbit::Network;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    VERB,
    nextest::Run,
    place::{Key, Place, PlaceError},
    wire::{Answer, Connection, Greeting, Request, receive},
};
use crate::{
    config::{Config, settings::Settings},
    services::{Needed, Watch},
};

/// How long a keeper may take from its start until it takes connections: it starts no service meanwhile.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Where another keeper is about to take connections, until it is looked for again.
const AGAIN: Duration = Duration::from_millis(10);

/// Why the services of a run cannot be had, though none of them has failed.
#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("it cannot be told which it is: {0}")]
    Key(io::Error),
    #[error("cannot start it: {0}")]
    Start(io::Error),
    #[error("it did not start: {0}")]
    Failed(String),
    #[error("it ended before it took connections; has it been killed? Run the tests again")]
    EndedAtOnce,
    #[error("it took no connections within {} s; run the tests again", START_TIMEOUT.as_secs())]
    Silent,
    #[error("the configuration has changed while it started; run the tests again")]
    Changed,
    #[error("it ended, and the services with it; has it been killed? Run the tests again")]
    Gone,
    #[error("its answer cannot be used: {0}")]
    Answer(io::Error),
    #[error("its answer is none to what it was asked")]
    Unasked,
}

/// A test's hold on the keeper of its services.
#[derive(Debug)]
pub(crate) struct Kept(Mutex<Connection>);

impl Kept {
    fn ask(&self, request: &Request) -> Result<Answer, KeeperError> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = connection
            .send(request)
            .and_then(|()| connection.receive())
            .map_err(|error| match error.kind() {
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => KeeperError::Gone,
                _ => KeeperError::Answer(error),
            })?;
        answer.ok_or(KeeperError::Gone)
    }

    /// Calls `end` should the keeper end.
    ///
    /// # Errors
    /// Where there is no descriptor, or no thread, for it.
    pub(crate) fn watch(&self, end: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = connection.as_fd().try_clone_to_owned()?;
        let watch = move || {
            // What it answers is for others to read.
            let mut polled = [PollFd::new(&connection, PollFlags::RDHUP)];
            while let Ok(0) | Err(rustix::io::Errno::INTR) = poll(&mut polled, None) {}
            end();
        };
        thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(watch)?;
        Ok(())
    }

    /// Of the services that were needed, those that have ended: how, and the end of their logs.
    pub(crate) fn ended(&self) -> Vec<String> {
        match self.ask(&Request::Ended) {
            Ok(Answer::Ended(ended)) => ended,
            Ok(_) => vec![told(&KeeperError::Unasked)],
            Err(error) => vec![told(&error)],
        }
    }
}

/// What is needed for a test with these settings, of services that serve the whole of `run`.
///
/// # Errors
/// Which failed, why, and the end of its log; or why there is nobody to keep them.
pub(crate) fn need(
    run: &Run,
    config: &Config,
    settings: &Settings,
    workspace: &Path,
    (package, target_directory): (&Path, Option<&Path>),
) -> Result<Needed, String> {
    let key = Key::new(&run.id, workspace, &config.services())
        .map_err(|error| told(&KeeperError::Key(error)))?;
    let start = || {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("cargo-orbit")
            .args(["orbit", VERB, "--package"])
            .arg(package);
        if let Some(directory) = target_directory {
            command.args([OsStr::new("--target-directory"), directory.as_os_str()]);
        }
        begin(command, run.nextest.as_fd(), &key)
    };
    let connection = reach(&key, start).map_err(|error| told(&error))?;
    let kept = Kept(Mutex::new(connection));
    let services = &settings.services;
    let names = services.iter().map(|service| service.name.clone());
    let places = match kept.ask(&Request::Need(names.collect())) {
        Ok(Answer::Ready(places)) => places,
        Ok(Answer::Failed(why)) => return Err(why),
        Ok(Answer::Ended(_)) => return Err(told(&KeeperError::Unasked)),
        Err(error) => return Err(told(&error)),
    };
    let network = Network::builder().name(key.network()).shared(true).create();
    let network = network.map_err(|error| format!("cannot reach the services: {error}"))?;
    Ok(Needed::new(services, places, network, Watch::Kept(kept)))
}

fn told(error: &KeeperError) -> String {
    format!("the process that keeps the services of this nextest run: {error}")
}

/// A connection with the keeper `key`, after `start` where there is none.
fn reach(
    key: &Key,
    start: impl Fn() -> Result<(), KeeperError>,
) -> Result<Connection, KeeperError> {
    let until = Instant::now() + START_TIMEOUT;
    while Instant::now() < until {
        let place = Place::open(key)?;
        place.look()?;
        if let Some(stream) = place.connect()? {
            return Ok(Connection::new(stream));
        }
        start()?;
        if let Some(stream) = place.connect()? {
            return Ok(Connection::new(stream));
        }
        // Another is about to take connections, in this directory or in one that takes its place.
        drop(place);
        thread::sleep(AGAIN);
    }
    Err(KeeperError::Silent)
}

/// Starts a keeper, and waits until it takes connections, or knows of another.
fn begin(mut command: Command, nextest: BorrowedFd<'_>, key: &Key) -> Result<(), KeeperError> {
    let nextest: OwnedFd = nextest.try_clone_to_owned().map_err(KeeperError::Start)?;
    let mut child = command
        .stdin(nextest)
        .stdout(Stdio::piped())
        // It outlives this process: nextest would wait for whoever has its pipes.
        .stderr(Stdio::null())
        .spawn()
        .map_err(KeeperError::Start)?;
    let greeting = child.stdout.take().map(greeting);
    if !matches!(greeting, Some(Ok(Some(Greeting::Ready(_))))) {
        // It has nothing to do for anybody. It may have ended already.
        let _ = child.kill();
        child.wait().map_err(KeeperError::Start)?;
    }
    match greeting {
        Some(Ok(Some(Greeting::Ready(ready)))) if ready == *key => Ok(()),
        Some(Ok(Some(Greeting::Ready(_)))) => Err(KeeperError::Changed),
        Some(Ok(Some(Greeting::Another))) => Ok(()),
        Some(Ok(Some(Greeting::Failed(why)))) => Err(KeeperError::Failed(why)),
        Some(Ok(None)) | None => Err(KeeperError::EndedAtOnce),
        Some(Err(error)) => Err(error),
    }
}

/// What it says first; `None` where it ends without a word.
fn greeting(from: ChildStdout) -> Result<Option<Greeting>, KeeperError> {
    let limit = Timespec::try_from(START_TIMEOUT).map_err(|_| KeeperError::Silent)?;
    let mut polled = [PollFd::new(&from, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut polled, Some(&limit))) {
        Ok(0) => Err(KeeperError::Silent),
        Ok(_) => receive(&mut BufReader::new(from)).map_err(KeeperError::Answer),
        Err(error) => Err(KeeperError::Start(error.into())),
    }
}
