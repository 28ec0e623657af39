//! The keeper: the process that owns the services of one run of nextest, which starts a runner for each test.
//!
//! The first runner that needs a service starts it: this program again, with the hidden verb `keep-services`. It leaves the
//! runner's session, starts what it is asked for, once, as sandboxes of its own on a [shared network](orbit::Network),
//! and tells each runner where they are ([`wire`]). It watches nextest by a pidfd, which it has been given as its standard
//! input by the runner, a descendant of nextest's; when nextest has ended, however it did, the services end, and then
//! the keeper does. It is found by the run's id ([`place`]), and by nobody but this user.
//!
//! A keeper that was killed has taken its services along. They are not started again: tests that ran have lost what they
//! wrote there. Its successor only says so to each test, and removes what it left when nextest has ended.

mod client;
mod nextest;
mod place;
mod wire;

use std::{
    env, io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use orbit::__private::clear_network;
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::setsid,
};

pub(crate) use self::{
    client::{Kept, need},
    nextest::Run,
};
use self::{
    nextest::RunId,
    place::{Claimed, Key, Place},
    wire::{Answer, Connection, Greeting, Request, clipped},
};
use super::kept::known;
use crate::{
    config::{Config, args::SettingsArgs},
    services::{Running, Services},
    test::attempt::{Running as Starting, Target},
    with_causes,
};

/// How long a runner may take to send what it has begun to send, and to take what it asked for.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long services may take to end once nextest has; those that take longer end with this process.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the sandboxes of runners that were killed may take to be gone.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(5);
/// When this process has no descriptor left for one more runner, until it looks again.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// The name of the verb.
const VERB: &str = "keep-services";

/// Keeps the services of a nextest run, for its runners. They start it; it is nothing for people.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the package whose test needs a service first.
    #[arg(long)]
    package: PathBuf,

    /// Where cargo builds, where that is known.
    #[arg(long)]
    target_directory: Option<PathBuf>,
}

/// Keeps services until nextest has ended.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Nextest ends the process group of a test, and a terminal its session.
    setsid().context("cannot leave the session of the test")?;
    let nextest = io::stdin().as_fd().try_clone_to_owned();
    let nextest = nextest.context("cannot watch nextest")?;
    let greet = |greeting: &Greeting| {
        // Whoever started this may have been ended meanwhile: others come.
        let _ = wire::send(io::stdout().lock(), greeting);
    };
    match Keeper::new(args) {
        Ok(Some(keeper)) => {
            greet(&Greeting::Ready(keeper.key.clone()));
            keeper.keep(&nextest);
        }
        Ok(None) => greet(&Greeting::Another),
        Err(error) => greet(&Greeting::Failed(clipped(with_causes(&error)))),
    }
    Ok(ExitCode::SUCCESS)
}

struct Keeper {
    key: Key,
    claimed: Claimed,
    services: Services,
    /// What is being started, so that it can be ended.
    starting: Starting,
}

impl Keeper {
    /// `None` where there is another.
    fn new(args: &Args) -> anyhow::Result<Option<Self>> {
        let run = RunId::told().context("no NEXTEST_RUN_ID: only nextest has runs to keep for")?;
        let known = known(&args.package, args.target_directory.as_deref())?;
        let config = Config::load(&known.workspace, &SettingsArgs::default(), env::vars_os())?;
        let services = config.services();
        let key = Key::new(&run, &known.workspace.root, &services)?;
        let services = Services::shared(services, &key.network());
        let claimed = Place::open(&key)?.claim()?;
        Ok(claimed.map(|claimed| Self {
            key,
            claimed,
            services,
            starting: Starting::default(),
        }))
    }

    /// Until `nextest` has ended; then ends everything, in order.
    fn keep(self, nextest: &OwnedFd) {
        thread::scope(|scope| {
            while let Woken::Asked = wait(self.claimed.listener.as_fd(), nextest) {
                let Ok((stream, _)) = self.claimed.listener.accept() else {
                    thread::sleep(FULL_PAUSE);
                    continue;
                };
                let serve = || self.serve(stream, nextest);
                // Where there is no thread for it, the runner finds its connection closed, and says so.
                let _ = thread::Builder::new().spawn_scoped(scope, serve);
            }
            end_after(END_TIMEOUT);
            self.starting.kill();
        });
        let Self {
            key,
            claimed,
            services,
            ..
        } = self;
        drop(services);
        // Where somebody is still there, the next who comes to a shared network removes it.
        let _ = clear_network(&key.network(), CLEAR_TIMEOUT);
        drop(claimed);
    }

    /// Answers one runner, until its test has ended.
    fn serve(&self, stream: UnixStream, nextest: &OwnedFd) {
        let limits = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(MESSAGE_TIMEOUT)))
            .and_then(|()| stream.set_write_timeout(Some(MESSAGE_TIMEOUT)));
        if limits.is_err() {
            return;
        }
        let mut connection = Connection::new(stream);
        let mut needed: Vec<Arc<Running>> = Vec::new();
        while let Woken::Asked = wait(connection.as_fd(), nextest) {
            let Ok(Some(request)) = connection.receive() else {
                return;
            };
            let answer = match request {
                Request::Need(names) => match self.need(&names) {
                    Ok(running) => {
                        needed = running;
                        Answer::Ready(needed.iter().map(|it| it.place.clone()).collect())
                    }
                    Err(why) => Answer::Failed(clipped(why)),
                },
                Request::Ended => {
                    let ended = needed.iter().filter_map(|it| it.end());
                    Answer::Ended(ended.map(clipped).collect())
                }
            };
            if connection.send(&answer).is_err() {
                return;
            }
        }
    }

    fn need(&self, names: &[String]) -> Result<Vec<Arc<Running>>, String> {
        if self.claimed.is_successor {
            return Err(KILLED.to_owned());
        }
        let starting = |killer| -> Box<dyn FnOnce()> {
            let starting = self.starting.clone();
            let place = starting.enter(Target::Sandbox(killer));
            Box::new(move || starting.leave(place))
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.services.all_of(&names, &starting)
    }
}

const KILLED: &str = "the process that kept the services of this nextest run (`cargo-orbit orbit keep-services`) was killed, \
     and the services ended with it; look in the system's log for who killed it, as for want of memory, and run the tests \
     again";

/// Why a thread goes on.
enum Woken {
    Asked,
    Over,
}

/// Waits until something is to be read, or taken, from `asked`, or nextest has ended.
fn wait(asked: BorrowedFd<'_>, nextest: &OwnedFd) -> Woken {
    loop {
        let mut polled = [
            PollFd::from_borrowed_fd(asked, PollFlags::IN),
            PollFd::new(nextest, PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            // What is no pidfd, or cannot be waited for, is nobody to keep services for.
            Ok(_) if !polled[1].revents().is_empty() => return Woken::Over,
            Ok(_) if !polled[0].revents().is_empty() => return Woken::Asked,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Woken::Over,
        }
    }
}

/// Ends this process, where it has not ended by then: a download cannot be broken off.
fn end_after(limit: Duration) {
    let end = move || {
        thread::sleep(limit);
        std::process::exit(crate::exit::FAILED.into());
    };
    // Without a thread it takes as long as it takes.
    let _ = thread::Builder::new().spawn(end);
}
