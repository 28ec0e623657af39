//! What the parts of a sandbox's handle share: who it is, and how its init and supervisor are asked.
//!
//! It may outlive the [`Sandbox`](super::Sandbox), whose drop ends what it stands for: then what is asked fails.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    error::{Error, Kind},
    host::Host,
    plan::Plan,
    spec::Init,
    supervisor::{Answer, Channel, Control, Supervisor},
};

#[derive(Debug)]
pub(super) struct Core {
    /// By which the supervisor knows it.
    pub(super) key: u64,
    pub(super) events: Channel,
    /// What was done.
    pub(super) plan: Arc<Plan>,
    /// Why this host has few ids to give, where it has.
    pub(super) few_ids: Option<String>,
    /// The directory of its control group, where it has one.
    pub(super) cgroup: Option<OwnedFd>,
    /// The root directory, then the namespaces: once they were asked for.
    handles: OnceLock<Vec<OwnedFd>>,
    /// Whether its control group keeps every process from running, the init too.
    is_frozen: AtomicBool,
    /// Whether its processes were sent SIGSTOP.
    is_stopped: AtomicBool,
}

/// A key that no other sandbox of this process has.
pub(super) fn next_key() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl Core {
    pub(super) fn new(
        key: u64,
        events: Channel,
        plan: Arc<Plan>,
        few_ids: Option<String>,
        cgroup: Option<OwnedFd>,
    ) -> Self {
        Self {
            key,
            events,
            plan,
            few_ids,
            cgroup,
            handles: OnceLock::new(),
            is_frozen: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
        }
    }

    pub(super) fn set_frozen(&self, frozen: bool) {
        self.is_frozen.store(frozen, Ordering::Release);
    }

    pub(super) fn set_stopped(&self, stopped: bool) {
        self.is_stopped.store(stopped, Ordering::Release);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    /// Whether it was paused, in either way.
    pub(super) fn is_paused(&self) -> bool {
        self.is_frozen.load(Ordering::Acquire) || self.is_stopped()
    }

    /// # Errors
    /// Where nothing inside could run, and nobody would answer.
    pub(super) fn check_thawed(&self, doing: &str) -> Result<(), Error> {
        if !self.is_frozen.load(Ordering::Acquire) {
            return Ok(());
        }
        let doing = doing.to_owned();
        let why = "the sandbox is paused; unpause it first";
        Err(Kind::Unsupported { doing, why }.into())
    }

    pub(super) fn supervisor() -> Result<Arc<Supervisor>, Error> {
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        Ok(Supervisor::get(host)?)
    }

    /// The sandbox's root directory and its namespaces; none where the program is process 1 and nobody inside can
    /// give them.
    pub(super) fn handles(&self, doing: &str) -> Result<&[OwnedFd], Error> {
        if self.plan.program.init == Init::Program {
            return Ok(&[]);
        }
        if let Some(handles) = self.handles.get() {
            return Ok(handles);
        }
        let handles = self.ask(Control::Handles, doing)?;
        // Where another thread was faster, those are as good.
        Ok(self.handles.get_or_init(|| handles))
    }

    /// Asks the init, which answers with descriptors.
    pub(super) fn ask(&self, control: Control, doing: &str) -> Result<Vec<OwnedFd>, Error> {
        self.check_thawed(doing)?;
        let ended = || {
            Error::from(Kind::Ended {
                doing: doing.to_owned(),
            })
        };
        let cannot = |error| Error::io(format!("cannot {doing}"), error);
        let (ours, theirs) = Channel::pair().map_err(cannot)?;
        self.events
            .send(&control, &[theirs.as_fd()])
            .map_err(|_| ended())?;
        drop(theirs);
        match ours.recv::<Answer>().map_err(cannot)? {
            Some((Ok(()), fds)) => Ok(fds),
            Some((Err(errno), _)) => Err(cannot(std::io::Error::from_raw_os_error(errno))),
            None => Err(ended()),
        }
    }
}
