//! The one public error: opaque, with predicates for what a caller may want to tell apart.
//!
//! Modules have private kinds of their own; this file gathers them, and says of a failed step what to do.

use std::{error::Error as StdError, fmt, io, sync::Arc};

use crate::{
    bridge::BridgeError,
    dependencies::DependencyFault,
    meeting::MeetingError,
    net::addresses::Subnet,
    publish::PublishError,
    spec::SpecFault,
    supervisor::{Cause, Failure, FileFault, SupervisorError, Writer},
    sys::{ExecFailure, ExecStep},
    wait::NotReady,
};

/// Why a sandbox could not be made, reached or ended.
///
/// The message is for people: what was being done, on what, why it failed and what to do next. To tell cases
/// apart in code, ask the predicates.
pub struct Error(Box<Kind>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error("{}", faults_text(.0))]
    Spec(Vec<SpecFault>),
    #[error("{doing}: {source}")]
    Io { doing: String, source: io::Error },
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    #[error(
        "the network {network} ({subnet}) is full: each of its {capacity} addresses is a sandbox's; give it a \
         larger subnet"
    )]
    NetworkFull {
        network: String,
        subnet: Subnet,
        capacity: u32,
    },
    #[error(transparent)]
    Meeting(#[from] MeetingError),
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("cannot connect to port {port} of the sandbox: {}", connect_text(.source))]
    Connect { port: u16, source: io::Error },
    #[error(transparent)]
    Limit(#[from] crate::cgroup::LimitError),
    #[error("{0}")]
    Layer(#[source] crate::layer::Fault),
    #[cfg(feature = "images")]
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("cannot start `{program}` in the sandbox: {}", exec_text(*.failure, .program, .working_dir, .few_ids.as_deref()))]
    Exec {
        program: String,
        working_dir: String,
        failure: ExecFailure,
        /// Why this host has few ids to give, where it has.
        few_ids: Option<String>,
    },
    #[error("cannot make the sandbox: step {number:02} `{step}` failed: {}", cause_text(.failure, .step))]
    Step {
        number: usize,
        step: String,
        failure: Failure,
    },
    #[error("cannot run `{program}` in the sandbox: {}", enter_text(.failure))]
    Enter { program: String, failure: Failure },
    #[error("cannot {doing} `{path}` of the sandbox: {}", file_text(.fault))]
    File {
        doing: &'static str,
        path: String,
        fault: FileFault,
    },
    #[error("cannot {doing}: the sandbox has ended")]
    Ended { doing: String },
    #[error("cannot {doing}: {why}")]
    Unsupported { doing: String, why: &'static str },
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("{0}")]
    Scenario(ScenarioFaults),
    #[error("{0}")]
    Service(ScenarioFailure),
    #[error("the shared service `{}` could not be started: {}", .0.name, .0.cause)]
    Shared(SharedFailure),
    #[error(
        "the sandbox vanished while it was being made: its supervisor process ended. Was it killed?"
    )]
    Vanished,
}

/// What is wrong with a scenario, of which nothing was started.
#[derive(Debug)]
pub(crate) struct ScenarioFaults {
    pub(crate) dependencies: Vec<DependencyFault>,
    /// By service.
    pub(crate) services: Vec<(String, SpecFault)>,
}

/// A service that failed, and its scenario with it.
#[derive(Debug)]
pub(crate) struct ScenarioFailure {
    pub(crate) service: String,
    pub(crate) cause: Error,
    /// Others that ended before, how, and the end of their logs.
    pub(crate) ended: Vec<(String, String)>,
    pub(crate) stopped: Vec<String>,
    pub(crate) broken_off: Vec<String>,
    pub(crate) not_started: Vec<String>,
}

/// A service of many that did not start: each of them is told.
#[derive(Debug)]
pub(crate) struct SharedFailure {
    pub(crate) name: &'static str,
    pub(crate) cause: Arc<dyn StdError + Send + Sync>,
}

impl fmt::Display for ScenarioFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dependencies = self.dependencies.iter().map(ToString::to_string);
        let services = self.services.iter();
        let services = services.map(|(name, fault)| format!("service `{name}`: {fault}"));
        let lines: Vec<String> = dependencies.chain(services).collect();
        match &lines[..] {
            [one] => write!(f, "invalid scenario: {one}"),
            many => write!(
                f,
                "{} things are wrong with this scenario:\n  - {}",
                many.len(),
                many.join("\n  - ")
            ),
        }
    }
}

impl fmt::Display for ScenarioFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the service `{}` failed, and the scenario with it: {}",
            self.service, self.cause
        )?;
        for (name, how) in &self.ended {
            write!(
                f,
                "\nThe service `{name}`, which was ready, had ended by itself: {how}"
            )?;
        }
        for (what, names) in [
            ("Stopped", &self.stopped),
            ("Broken off while starting", &self.broken_off),
            ("Not started", &self.not_started),
        ] {
            if !names.is_empty() {
                write!(f, "\n{what}: {}.", names.join(", "))?;
            }
        }
        Ok(())
    }
}

impl Error {
    /// What is the matter with the one sandbox that this is about.
    fn kind(&self) -> &Kind {
        match &*self.0 {
            Kind::Service(failure) => failure.cause.kind(),
            Kind::Shared(failure) => match failure.cause.downcast_ref::<Self>() {
                Some(cause) => cause.kind(),
                None => &self.0,
            },
            kind => kind,
        }
    }

    pub(crate) fn spec(faults: Vec<SpecFault>) -> Self {
        Kind::Spec(faults).into()
    }

    pub(crate) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Kind::Io {
            doing: doing.into(),
            source: source.into(),
        }
        .into()
    }

    /// Whether the spec itself is at fault: nothing was created.
    pub fn is_spec(&self) -> bool {
        matches!(self.kind(), Kind::Spec(_) | Kind::Scenario(_))
    }

    /// Whether a port of the host that was to be published is another program's.
    pub fn is_port_taken(&self) -> bool {
        matches!(self.kind(), Kind::Publish(error) if error.is_port_taken())
    }

    /// Whether nobody listens on the port of the sandbox that was to be connected to: perhaps not yet.
    pub fn is_connection_refused(&self) -> bool {
        matches!(self.kind(), Kind::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Whether the spec is in order, and this host cannot keep one of its limits: nothing runs.
    pub fn is_limit(&self) -> bool {
        matches!(self.kind(), Kind::Limit(_))
    }

    /// Whether the sandbox started, and then was not ready: what it was waited for did not come in time, or its
    /// program ended before.
    pub fn is_not_ready(&self) -> bool {
        matches!(self.kind(), Kind::NotReady(_))
    }

    /// Whether the sandbox had ended when something was asked of it.
    pub fn is_ended(&self) -> bool {
        match self.kind() {
            Kind::Ended { .. } => true,
            Kind::Enter { failure, .. } => failure.cause == Cause::Errno(libc::ESRCH),
            Kind::File { fault, .. } => matches!(fault, FileFault::Errno(libc::ESRCH, _)),
            _ => false,
        }
    }

    /// Whether a file of the sandbox is not there.
    pub fn is_file_not_found(&self) -> bool {
        matches!(
            self.kind(),
            Kind::File {
                fault: FileFault::Errno(libc::ENOENT, _),
                ..
            }
        )
    }

    /// Whether the program to run is not there.
    pub fn is_program_not_found(&self) -> bool {
        self.exec_errno()
            .is_some_and(|errno| matches!(errno, libc::ENOENT | libc::ENOTDIR))
    }

    /// Whether the program to run is there, and cannot be executed.
    pub fn is_program_not_executable(&self) -> bool {
        self.exec_errno().is_some() && !self.is_program_not_found()
    }

    fn exec_errno(&self) -> Option<i32> {
        match self.kind() {
            Kind::Exec {
                failure:
                    ExecFailure {
                        step: ExecStep::Execute,
                        errno,
                    },
                ..
            } => Some(*errno),
            _ => None,
        }
    }
}

fn faults_text(faults: &[SpecFault]) -> String {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    match &lines[..] {
        [one] => format!("invalid {one}"),
        many => format!(
            "{} things are wrong with this sandbox:\n  - {}",
            many.len(),
            many.join("\n  - ")
        ),
    }
}

fn connect_text(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "{source}. Nothing listens there on the sandbox's loopback: the program may not be ready yet, or \
             listen on another port"
        ),
        _ => source.to_string(),
    }
}

fn exec_text(
    failure: ExecFailure,
    program: &str,
    working_dir: &str,
    few_ids: Option<&str>,
) -> String {
    let ExecFailure { step, errno } = failure;
    let why = io::Error::from_raw_os_error(errno);
    match (step, errno) {
        (ExecStep::Execute, libc::ENOENT | libc::ENOTDIR) if program.contains('/') => format!(
            "there is no such file, or the interpreter that it names (a dynamic loader, or the program after \
             `#!`) is not in this root filesystem ({why})"
        ),
        (ExecStep::Execute, libc::ENOENT | libc::ENOTDIR) => {
            "there is no program of this name in any directory of PATH".to_owned()
        }
        (ExecStep::Execute, libc::EACCES) => {
            format!("the file is there, but this user may not execute it ({why})")
        }
        (ExecStep::Execute, libc::ENOEXEC) => format!(
            "the file is there, but it is no program for this machine: another architecture, or a script \
             without `#!` ({why})"
        ),
        (ExecStep::WorkingDir, _) => {
            format!("its working directory {working_dir} cannot be entered: {why}")
        }
        (ExecStep::Ids | ExecStep::Groups, libc::EINVAL) => match few_ids {
            Some(why) => {
                format!("its user or group has no id in this sandbox, which has only one: {why}")
            }
            None => format!(
                "its user or group has no id in this sandbox, which has those below 65536: {why}"
            ),
        },
        _ => format!("{step:?} failed: {why}"),
    }
}

fn enter_text(failure: &Failure) -> String {
    match failure.cause {
        Cause::Errno(libc::ESRCH) => "it has ended".to_owned(),
        Cause::Errno(errno @ libc::EAGAIN) => format!(
            "{}. A limit on processes is reached: the sandbox's own (`pids`), or `ulimit -u`",
            io::Error::from_raw_os_error(errno)
        ),
        Cause::Errno(errno @ libc::EPERM) => format!(
            "{}. It is process 1 of the sandbox itself and may not be looked into; start the sandbox with Orbit's init",
            io::Error::from_raw_os_error(errno)
        ),
        _ => cause_text(failure, ""),
    }
}

fn file_text(fault: &FileFault) -> String {
    match fault {
        FileFault::Errno(libc::ESRCH, _) => "the sandbox has ended".to_owned(),
        FileFault::Errno(errno, path) => {
            let at = path.as_ref().map(|path| format!("at {}: ", path.display()));
            let why = io::Error::from_raw_os_error(*errno);
            let hint = match *errno {
                libc::EROFS => ". It lies on a read-only mount",
                libc::ENOSPC => ". The sandbox's writable layer is full: raise `disk`",
                libc::EINVAL => ". Its owner may have no id in this sandbox",
                libc::EACCES => ". It belongs to somebody who has no id in this sandbox",
                libc::ELOOP => ". A link is in the way",
                _ => "",
            };
            format!("{}{why}{hint}", at.unwrap_or_default())
        }
        FileFault::NotAFile => "it is no regular file".to_owned(),
        FileFault::Owner(fault) => fault.to_string(),
        FileFault::Malformed => "the copy broke off".to_owned(),
        FileFault::Busy(writers) => busy_text(writers),
    }
}

fn busy_text(writers: &[Writer]) -> String {
    let named: Vec<String> = writers
        .iter()
        .map(|writer| format!("{} in {}", writer.path.display(), writer.process))
        .collect();
    let named = match &named[..] {
        [] => String::new(),
        named => format!(" ({})", named.join(", ")),
    };
    format!(
        "a file is open for writing{named}, which the kernel does not take away: end or restart what holds it, or let the \
         disk be full instead"
    )
}

fn cause_text(failure: &Failure, step: &str) -> String {
    let errno = match &failure.cause {
        Cause::NotADirectory(path) => {
            return format!(
                "in this root filesystem, {} is a link or a file; a directory is needed to mount on",
                path.display()
            );
        }
        Cause::User(fault) => return fault.to_string(),
        Cause::Filter(why) => return why.clone(),
        Cause::Exec(exec) => return exec_text(*exec, "", "", None),
        Cause::File(fault) => return file_text(fault),
        Cause::Helper(said) => return helper_text(said),
        Cause::Errno(errno) => *errno,
    };
    let why = io::Error::from_raw_os_error(errno);
    match (step.split(' ').next().unwrap_or_default(), errno) {
        ("unshare", libc::ENOSPC | libc::EUSERS) => {
            format!(
                "{why}. A limit on namespaces is reached: see `sysctl user`, and raise the one that is low"
            )
        }
        ("unshare", libc::EAGAIN) => {
            format!(
                "{why}. A limit on processes is reached: see `ulimit -u` and the pids limit of this cgroup"
            )
        }
        ("unshare", libc::EACCES) => format!(
            "{why}. The supervisor may not put a process into the sandbox's control group; something changed the \
             owner of its files"
        ),
        ("unshare", libc::EPERM | libc::ENOSYS) => {
            format!("{why}. {}", crate::host::why_no_user_namespace(errno))
        }
        ("mount", libc::EPERM) if step.contains("proc") || step.contains("sysfs") => format!(
            "{why}. Parts of the host's /proc or /sys are covered, as in most containers, and the kernel then \
             refuses a new one; start the outer container with `--security-opt systempaths=unconfined`"
        ),
        ("nftables", _) => format!(
            "{why}. The rules of egress need the kernel's nftables (CONFIG_NF_TABLES, NFT_REJECT_INET)"
        ),
        ("link", libc::EEXIST) => format!("{why}. The address or the link is there already"),
        ("mount", libc::EINVAL) if step.contains("overlay") => format!(
            "{why}. The kernel stacks two overlays at most, so a sandbox in a sandbox in a sandbox has no \
             root; or what lies under is a filesystem that overlayfs cannot use"
        ),
        ("mount", libc::ENOENT) => format!("{why}. What is to be mounted is not there"),
        ("mount", libc::ENOSPC) => format!("{why}. Too many mounts: see `sysctl fs.mount-max`"),
        (_, libc::ENOSPC) => format!("{why}. The sandbox's writable layer is full: raise `disk`"),
        _ => why.to_string(),
    }
}

/// What to do where there is no way out.
fn helper_text(said: &str) -> String {
    // Where no log daemon listens, pasta says so after each line.
    let said: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains(" bytes to syslog"))
        .collect();
    let said = said.join("; ");
    if said.is_empty() {
        return "it ended, and did not say why".to_owned();
    }
    let advice = if said.contains("/dev/net/tun") {
        "It makes the sandbox's link with /dev/net/tun, which everybody may open on most systems \
         (`sudo chmod 666 /dev/net/tun`), but not in most containers"
    } else if said.contains("outable interface") || said.contains("xternal interface") {
        "This host has no route that leads out, so there is no way out for a sandbox"
    } else {
        "See pasta(1)"
    };
    format!("it said: {said}. {advice}")
}

impl<T: Into<Kind>> From<T> for Error {
    fn from(kind: T) -> Self {
        Self(Box::new(kind.into()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// As `Display`: a test that unwraps an `Error` shows the message people can read.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
