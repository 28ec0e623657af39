//! The test process's side: starts the supervisor with the first sandbox, and asks it for more.

use std::{
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::process::{PidfdFlags, getpid, pidfd_open};
use serde::de::DeserializeOwned;

use super::{
    broker::Broker,
    channel::Channel,
    early,
    host_mounts::{self, Share},
    launch::Launch,
    protocol::{
        Answer, ExecOrder, FileJob, Hello, Mapping, Request, StartFailure, StartStep, Welcome,
    },
    start,
};
use crate::{
    host::Host,
    plan::Plan,
    security::idmap::{IdMap, IdMapPair, plan::Writer},
    sys::{self, SUPERVISOR_NAME},
};

/// Why there is no supervisor, or none any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SupervisorError {
    #[error("cannot start the supervisor process: {0}")]
    Spawn(#[source] io::Error),
    #[error("{0}")]
    Start(StartFailure),
    #[error(
        "the supervisor process ended while it was starting; set ORBIT_DEBUG=1 to see what it writes"
    )]
    Vanished,
    #[error("cannot reach the supervisor process: {0}")]
    Lost(#[source] io::Error),
    #[error("cannot start the process that connects this test's sandboxes to the host: {0}")]
    Broker(#[source] io::Error),
}

/// The supervisor of this process.
#[derive(Debug)]
pub(crate) struct Supervisor {
    control: Channel,
    /// As this process sees it.
    pid: i32,
    /// Started with the first sandbox that needs it.
    broker: Mutex<Option<Arc<Broker>>>,
    /// Whether it sees all mounts of the host that it may get.
    sees_all: AtomicBool,
    /// Held by who hands over the rest.
    showing: Mutex<()>,
    /// What it was asked for last of what is made ahead.
    last: Mutex<Option<(Arc<Plan>, Box<Launch>)>>,
    /// Of the test process that started it: a fork of that process is not its owner.
    owner: u32,
}

static CURRENT: Mutex<Option<Arc<Supervisor>>> = Mutex::new(None);

/// Starts the supervisor of this process, so that the first sandbox need not wait for it.
///
/// Where it cannot be started, the first sandbox says why.
pub fn start_supervisor() {
    if let Ok(host) = Host::get() {
        let _ = Supervisor::get(host);
    }
}

impl Supervisor {
    /// The supervisor of this process, started with the first call.
    ///
    /// # Errors
    /// [`SupervisorError`], with what to do about it, where this machine refuses.
    pub(crate) fn get(host: &Host) -> Result<Arc<Self>, SupervisorError> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(supervisor) if supervisor.owner == std::process::id() && supervisor.is_alive() => {
                Ok(Arc::clone(supervisor))
            }
            _ => {
                let supervisor = Arc::new(Self::start(host)?);
                *current = Some(Arc::clone(&supervisor));
                Ok(supervisor)
            }
        }
    }

    fn start(host: &Host) -> Result<Self, SupervisorError> {
        use SupervisorError::{Lost, Spawn, Vanished};
        if let Some(early) = early::take() {
            let (control, pid) = early?;
            match Self::welcomed(control, None, host) {
                // What kept the fork from being a supervisor may not keep an execution.
                Err(Spawn(_) | Lost(_) | Vanished) => sys::wait_for(pid),
                other => return other,
            }
        }
        let (control, mut starter) = spawn().map_err(Spawn)?;
        match greet(&control, &hello(host)) {
            Ok(()) => Self::welcomed(control, Some(starter), host),
            Err(error) => {
                // It waits to be greeted, until this end is closed.
                drop(control);
                let _ = starter.wait();
                Err(Lost(error))
            }
        }
    }

    /// What comes of who has been greeted: a starter, or a supervisor without one.
    fn welcomed(
        control: Channel,
        starter: Option<Child>,
        host: &Host,
    ) -> Result<Self, SupervisorError> {
        use SupervisorError::{Lost, Spawn, Start, Vanished};
        let welcome = control.recv::<Welcome>();
        // Where it has not ended by now, it is about to, or waits for what comes on this end.
        let control = welcome.is_ok().then_some(control);
        let code = starter.and_then(|mut starter| starter.wait().ok()?.code());
        match (welcome.map_err(Lost)?.map(|(welcome, _)| welcome), control) {
            (Some(Welcome::Ready { pid }), Some(control)) => Ok(Self {
                control,
                pid,
                broker: Mutex::new(None),
                // Others are in a copy of the caller's mount namespace.
                sees_all: AtomicBool::new(host.ids.writer != Writer::Privileged),
                showing: Mutex::new(()),
                last: Mutex::new(None),
                owner: std::process::id(),
            }),
            (Some(Welcome::Failed(failure)), _) => Err(Start(failure)),
            _ => Err(code.and_then(start::fault_of).map_or(Vanished, Spawn)),
        }
    }

    /// Whether it can still be asked. Its end of the channel is closed when it is gone.
    fn is_alive(&self) -> bool {
        self.control.is_open()
    }

    /// Why a launch is not answered, where this one runs on: it had no descriptor left, not even for the channel on which it
    /// would have said so.
    pub(crate) fn has_not_heard(&self) -> Option<SupervisorError> {
        let lack = io::Error::from_raw_os_error(libc::EMFILE);
        self.is_alive().then_some(SupervisorError::Lost(lack))
    }

    /// The broker of this supervisor's sandboxes, started with the first call.
    pub(crate) fn broker(&self) -> Result<Arc<Broker>, SupervisorError> {
        let mut current = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(broker) = current.as_ref().filter(|broker| broker.is_alive()) {
            return Ok(Arc::clone(broker));
        }
        let channel = self.ask(&Request::Broker, &[])?;
        let broker = Arc::new(Broker::greet(channel).map_err(SupervisorError::Broker)?);
        *current = Some(Arc::clone(&broker));
        Ok(broker)
    }

    /// Its number, as this process sees it.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Asks for a sandbox, which later requests know by `key`, to be born in `cgroup` where the plan has one. Its events arrive on the channel that is
    /// returned; to drop that is to end it.
    pub(crate) fn launch(
        &self,
        key: u64,
        plan: &Arc<Plan>,
        stdio: [BorrowedFd<'_>; 3],
        cgroup: Option<BorrowedFd<'_>>,
        networks: &[Channel],
    ) -> Result<Channel, SupervisorError> {
        self.show_late_mounts(plan)?;
        let networks = networks.iter().map(Channel::as_fd);
        let fds: Vec<BorrowedFd<'_>> = stdio.into_iter().chain(cgroup).chain(networks).collect();
        let launch = self.written(plan)?;
        self.ask(&Request::Launch { key, launch }, &fds)
    }

    /// `plan` as it is sent. That of one which sandboxes are made ahead of is kept: it is most often wanted again.
    fn written(&self, plan: &Arc<Plan>) -> Result<Box<Launch>, SupervisorError> {
        // Locked to be looked at: threads do not wait for each other's plans.
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_kept = plan.ahead > 0;
        if is_kept
            && let Some((_, launch)) = last().as_ref().filter(|(it, _)| Arc::ptr_eq(it, plan))
        {
            return Ok(launch.clone());
        }
        let launch = Launch::of(plan).map_err(io::Error::other);
        let launch = Box::new(launch.map_err(SupervisorError::Lost)?);
        if is_kept {
            *last() = Some((Arc::clone(plan), launch.clone()));
        }
        Ok(launch)
    }

    /// Hands over what mounts of the host come late, where `plan` is the first that may show some.
    fn show_late_mounts(&self, plan: &Plan) -> Result<(), SupervisorError> {
        // Looked up without a lock: a source may be on a filesystem that does not answer.
        if self.sees_all.load(Ordering::Acquire) || !host_mounts::wants_late(plan) {
            return Ok(());
        }
        let _one_at_a_time = self.showing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.sees_all.load(Ordering::Acquire) {
            return Ok(());
        }
        let namespace = self.ask(&Request::Namespace, &[])?;
        let (given, mut fds) = answer_of::<Answer>(&namespace)?;
        let cannot = |errno| {
            let error = io::Error::from_raw_os_error(errno);
            SupervisorError::Start(StartFailure::new(StartStep::HostView, &error))
        };
        given.map_err(cannot)?;
        let namespace = fds.pop().ok_or_else(|| cannot(libc::EBADF))?;
        let mut replies = Vec::new();
        host_mounts::open(Share::Late, namespace.as_fd(), |paths, mounts| {
            replies.push(self.ask(&Request::HostMounts(paths), mounts)?);
            Ok::<_, SupervisorError>(())
        })?;
        for reply in replies {
            let (attached, _) = answer_of::<Result<(), StartFailure>>(&reply)?;
            attached?;
        }
        self.sees_all.store(true, Ordering::Release);
        Ok(())
    }

    /// Asks for a further program in a sandbox. What happens to it arrives on the channel that is returned; to drop
    /// that is to kill it.
    pub(crate) fn exec(
        &self,
        order: ExecOrder,
        stdio: [BorrowedFd<'_>; 3],
        cgroup: Option<BorrowedFd<'_>>,
        namespaces: &[OwnedFd],
    ) -> Result<Channel, SupervisorError> {
        let namespaces = namespaces.iter().map(|fd| fd.as_fd());
        let fds: Vec<BorrowedFd<'_>> = stdio.into_iter().chain(cgroup).chain(namespaces).collect();
        self.ask(&Request::Exec(Box::new(order)), &fds)
    }

    /// Asks for something to be done with the files of a sandbox, whose root is `root` where its init gave one.
    pub(crate) fn files(
        &self,
        sandbox: u64,
        job: FileJob,
        root: Option<BorrowedFd<'_>>,
        content: Option<BorrowedFd<'_>>,
    ) -> Result<Channel, SupervisorError> {
        let request = Request::Files {
            sandbox,
            has_root: root.is_some(),
            job,
        };
        let fds: Vec<_> = root.into_iter().chain(content).collect();
        self.ask(&request, &fds)
    }

    /// Sends `request` with a fresh reply channel before `fds`.
    pub(crate) fn ask(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Channel, SupervisorError> {
        let (ours, theirs) = Channel::pair().map_err(SupervisorError::Lost)?;
        let mut all = vec![theirs.as_fd()];
        all.extend_from_slice(fds);
        self.control
            .send(request, &all)
            .map_err(SupervisorError::Lost)?;
        Ok(ours)
    }
}

/// What a supervisor answers, which closes `reply` without where it has too little of something.
fn answer_of<T: DeserializeOwned>(reply: &Channel) -> Result<(T, Vec<OwnedFd>), SupervisorError> {
    let gone = || SupervisorError::Lost(io::ErrorKind::BrokenPipe.into());
    reply
        .recv()
        .map_err(SupervisorError::Lost)?
        .ok_or_else(gone)
}

/// A fresh execution of this process's own file, and this end of the channel to it.
fn spawn() -> io::Result<(Channel, Child)> {
    let (control, theirs) = Channel::pair()?;
    let debug = std::env::var_os("ORBIT_DEBUG").is_some();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(SUPERVISOR_NAME.to_str().unwrap_or_default())
        // Its memory is copied into every init: it knows nothing of this process's environment but what
        // the dynamic loader needs.
        .env_clear()
        .envs(std::env::var_os("LD_LIBRARY_PATH").map(|path| ("LD_LIBRARY_PATH", path)))
        .stdin(Stdio::from(theirs.into_fd()))
        .stdout(Stdio::null())
        .stderr(if debug {
            Stdio::inherit()
        } else {
            Stdio::null()
        });
    // The command goes with this function: else its end of the channel would stay open here.
    Ok((control, command.spawn()?))
}

/// Tells a starter, or a supervisor that has none, who its caller is.
pub(super) fn greet(control: &Channel, hello: &Hello) -> io::Result<()> {
    let this_process = pidfd_open(getpid(), PidfdFlags::empty())?;
    match control.send(hello, &[this_process.as_fd()]) {
        // It ended at once; what it may have said is read when it is waited for.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

pub(super) fn hello(host: &Host) -> Hello {
    let ids = IdMapPair {
        uid: host.ids.uids.clone(),
        gid: host.ids.gids.clone(),
    };
    let mapping = match host.ids.writer {
        Writer::Privileged => Mapping::Privileged,
        Writer::Helpers => Mapping::Helpers,
        Writer::Caller(_) => Mapping::Single,
    };
    let caller = |own, map: &IdMap| IdMap::identity_user(own, map.count()).ok();
    let caller_ids = (host.uid != 0)
        .then(|| {
            Some(IdMapPair {
                uid: caller(host.uid, &ids.uid)?,
                gid: caller(host.gid, &ids.gid)?,
            })
        })
        .flatten();
    Hello {
        ids,
        mapping,
        caller_ids,
    }
}

impl From<StartFailure> for SupervisorError {
    fn from(failure: StartFailure) -> Self {
        Self::Start(failure)
    }
}

impl std::fmt::Display for StartFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let doing = match self.step {
            StartStep::Namespaces => "make a user namespace",
            StartStep::IdMap => "write the id map of its user namespace",
            StartStep::Ids => "become root of its user namespace",
            StartStep::PrivateMounts => "make its mounts private",
            StartStep::Root => "make a root of its own",
            StartStep::HostView => "see the host's files through its id map",
            StartStep::Proc => "mount a /proc of its own",
            StartStep::Isolate => "leave the caller's session",
            StartStep::Serve => "wait for what it is asked",
        };
        write!(
            f,
            "the supervisor of this process's sandboxes cannot {doing}"
        )?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        write!(
            f,
            ": {}. {}",
            io::Error::from_raw_os_error(self.errno),
            self.advice()
        )
    }
}

impl StartFailure {
    /// What to do about it: the environments that refuse, and the setting that changes each.
    fn advice(&self) -> String {
        match (self.step, self.errno) {
            // How the kernel says that there are as many namespaces as there may be.
            (StartStep::Namespaces, libc::ENOSPC | libc::EUSERS) => {
                crate::host::why_no_user_namespace(self.errno)
            }
            (_, errno) if start::is_lack(errno) => {
                "A limit of this machine is reached: see `ulimit -a`, the limits of this cgroup, and `sysctl user \
                 fs.mount-max`."
                    .to_owned()
            }
            (StartStep::IdMap, _) => {
                "Check that newuidmap and newgidmap are installed with their privilege (package uidmap), and \
                 that /etc/subuid and /etc/subgid give this user a range."
                    .to_owned()
            }
            (StartStep::HostView, libc::EINVAL) => {
                "The filesystem at / takes no id map (overlayfs, as in most containers, does not). Run as an \
                 ordinary user, or set ORBIT_ID_MAP=host to let the container's root be the host's root."
                    .to_owned()
            }
            (StartStep::Proc, _) => {
                "Parts of /proc are covered here, as in most containers, and the kernel then refuses a new \
                 one. Start the outer container with `--security-opt systempaths=unconfined` (Docker) or \
                 `--security-opt unmask=/proc/*` (Podman)."
                    .to_owned()
            }
            (StartStep::Namespaces, _) | (_, libc::EPERM | libc::EACCES) => crate::host::why_no_user_namespace(self.errno),
            _ => "This is not expected on a machine that has user namespaces; please report it.".to_owned(),
        }
    }
}
