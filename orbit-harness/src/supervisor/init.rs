//! Process 1 of a sandbox: makes what the plan says, starts the program, reaps, and says how it ended.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr, OsString},
    fs,
    io::Read as _,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags},
    process::{DumpableBehavior, PidfdFlags},
};

use super::{
    channel::Channel,
    make::{Helper, Maker, TerminalPair},
    protocol::{Cause, Control, Event, Exit, Failure},
};
use crate::{
    netfilter::Netfilter,
    outcome::{LeakedProcess, Status, Usage},
    plan::{Isolation, Plan, ProgramPlan, UserPlan},
    security::{seccomp::bpf::SockFilter, user::UserSpec},
    spec::Init,
    sys::{self, Program, SingleThreaded, Terminal, Waited},
    units::Bytes,
};

/// What the init passes on to the program when somebody sends it here.
const FORWARDED: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// CAP_KILL: all that the init keeps, to signal a program that runs as another user.
const CAP_KILL: u64 = 1 << 5;

/// What an init gets from the supervisor, whose copy it is.
pub(super) struct Given<'a> {
    pub(super) events: Channel,
    /// Standard input, output and error of the program.
    pub(super) stdio: Vec<OwnedFd>,
    /// One for each link of the plan.
    pub(super) networks: Vec<Channel>,
    /// Of the program that leads out, where the plan has one.
    pub(super) helper: Option<Helper>,
    pub(super) caller_namespace: Option<BorrowedFd<'a>>,
    pub(super) filter: &'a [SockFilter],
}

/// How long a process may outlive the program and not count as leaked.
const GRACE_MS: u32 = 20;

/// Runs a sandbox to its end, as its process 1.
pub(super) fn run(single_threaded: SingleThreaded, plan: &Plan, given: Given<'_>) -> ! {
    let mut keep: Vec<_> = given.stdio.iter().map(AsRawFd::as_raw_fd).collect();
    keep.push(given.events.as_fd().as_raw_fd());
    keep.extend(given.caller_namespace.as_ref().map(AsRawFd::as_raw_fd));
    keep.extend(given.networks.iter().map(|it| it.as_fd().as_raw_fd()));
    if let Some(helper) = &given.helper {
        keep.extend([&helper.output, &helper.errors].map(AsRawFd::as_raw_fd));
        keep.push(helper.network.as_fd().as_raw_fd());
    }
    let Given {
        events,
        stdio,
        networks,
        helper,
        ..
    } = given;
    let ran = sys::close_inherited(&mut keep)
        .map_err(|error| failure(0, &error))
        .and_then(|()| {
            let program = prepare(
                plan,
                stdio,
                (networks, helper),
                given.caller_namespace,
                given.filter,
            )?;
            match plan.program.init {
                Init::Orbit => run_under(single_threaded, plan, program, &events),
                Init::Program => become_program(single_threaded, plan, &program, &events),
            }
        });
    if let Err(failure) = ran {
        // Nobody to tell: the sandbox was let go meanwhile.
        let _ = events.send(&Event::Failed(failure), &[]);
    }
    // The kernel now kills whatever else is left in this pid namespace.
    sys::exit_now(0)
}

/// Carries out the steps of the plan, and readies the program.
fn prepare<'a>(
    plan: &Plan,
    stdio: Vec<OwnedFd>,
    (networks, helper): (Vec<Channel>, Option<Helper>),
    caller_namespace: Option<BorrowedFd<'a>>,
    filter: &'a [SockFilter],
) -> Result<Ready<'a>, Failure> {
    // Opened here, where /proc is the supervisor's, and for the test process: no program has it.
    let network = match plan.network {
        Isolation::Own => Some(fs::File::open("/proc/self/ns/net").map_err(|e| failure(0, &e))?),
        Isolation::Host => None,
    };
    if let (Some(network), Some(helper)) = (&network, &helper) {
        let handed = helper.network.send(&(), &[network.as_fd()]);
        // Where it is gone already, what it wrote says more.
        drop(handed);
    }
    let mut maker = Maker::new(networks, helper).map_err(|error| failure(0, &error.into()))?;
    if plan.cgroup.is_some() {
        // Born in its control group, which only now becomes the root of what it sees.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
            .map_err(|error| failure(0, &error.into()))?;
    }
    if let Some(ahead) = plan.clock_offset {
        set_clocks(ahead).map_err(|error| failure(0, &error))?;
    }
    for (number, step) in plan.steps.iter().enumerate() {
        maker.carry_out(step).map_err(|cause| Failure {
            line: number + 1,
            cause,
        })?;
    }
    let record = maker.take_record();
    let namespace =
        caller_namespace.filter(|_| matches!(plan.program.user, UserPlan::Caller { .. }));
    Ready::new(
        &plan.program,
        stdio,
        maker.take_terminal(),
        namespace,
        filter,
    )
    .map(|ready| Ready {
        network: network.map(OwnedFd::from),
        scratch: maker.take_scratch(),
        unrecorded: record.unrecorded,
        record: record.netfilter.map(Netfilter::into_fd),
        ..ready
    })
    .map_err(|cause| Failure {
        line: plan.steps.len() + 1,
        cause,
    })
}

/// Sets the clocks ahead that what this process executes will see. Source: time_namespaces(7).
fn set_clocks(ahead: Duration) -> std::io::Result<()> {
    let namespace = nix::sched::CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
    nix::sched::unshare(namespace)?;
    let (seconds, nanos) = (ahead.as_secs(), ahead.subsec_nanos());
    let offsets = format!("monotonic {seconds} {nanos}\nboottime {seconds} {nanos}\n");
    // As long as nobody may look into this process, its own files in /proc are not its own. Nobody can see it yet, and
    // no program runs; and where this is not undone, none will.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let written = fs::write("/proc/self/timens_offsets", offsets);
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    written
}

/// The program as process 1: this process becomes it.
fn become_program(
    single_threaded: SingleThreaded,
    plan: &Plan,
    ready: &Ready<'_>,
    events: &Channel,
) -> Result<(), Failure> {
    // It closes when the program executes; what failed until then has been said by then.
    let (executing, until_executed) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| failure(0, &errno.into()))?;
    tell_started(events, 1, ready, Some(executing.as_fd()));
    // Where the program does not execute, the pipe stays open until this process ends: after it has said why.
    std::mem::forget(until_executed);
    Err(exec_failure(plan, ready.program().execute(single_threaded)))
}

/// The program as a child of this process, which sees to it until it ends.
fn run_under(
    single_threaded: SingleThreaded,
    plan: &Plan,
    ready: Ready<'_>,
    events: &Channel,
) -> Result<(), Failure> {
    let started = Instant::now();
    // Blocked before the program starts, so that its end cannot come unseen; it unblocks them for itself.
    let signals = watch_signals().map_err(|errno| failure(0, &errno.into()))?;
    let pid = ready
        .program()
        .spawn(single_threaded)
        .map_err(|failure| exec_failure(plan, failure))?;
    tell_started(events, pid, &ready, None);
    // Its streams are its own: who reads them sees their end when the program closes them.
    drop(ready);
    sys::hold_only(plan.program.capabilities.bits() & CAP_KILL).map_err(|errno| Failure {
        line: plan.steps.len() + 2,
        cause: Cause::Errno(errno),
    })?;
    let Some(end) = supervise(pid, &signals, events) else {
        return Ok(());
    };
    let wall_time = started.elapsed();
    let exit = Exit {
        status: Status::from(&end),
        usage: Usage::from(&end),
        wall_time,
        leaked: kill_the_rest(),
        full_disk: full_disk(),
    };
    let _ = events.send(&Event::Exited(exit), &[]);
    Ok(())
}

/// Says that the program runs, with a pidfd of it and the caller's side of its terminal, if it has one.
fn tell_started(events: &Channel, pid: i32, ready: &Ready<'_>, executing: Option<BorrowedFd<'_>>) {
    let pidfd = rustix::process::Pid::from_raw(pid)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let terminal = ready.terminal.as_ref().map(|pair| pair.caller_side.as_fd());
    let started = Event::Started {
        has_pidfd: pidfd.is_some(),
        has_terminal: terminal.is_some(),
        executes_later: executing.is_some(),
        has_network: ready.network.is_some(),
        has_scratch: ready.scratch.is_some(),
        has_record: ready.record.is_some(),
        unrecorded: ready.unrecorded,
    };
    let fds: Vec<_> = pidfd
        .iter()
        .map(AsFd::as_fd)
        .chain(terminal)
        .chain(executing)
        .chain(ready.scratch.as_ref().map(AsFd::as_fd))
        .chain(ready.record.as_ref().map(AsFd::as_fd))
        .chain(ready.network.as_ref().map(AsFd::as_fd))
        .collect();
    let _ = events.send(&started, &fds);
}

fn exec_failure(plan: &Plan, failure: sys::ExecFailure) -> Failure {
    Failure {
        line: plan.lines().len() - 1,
        cause: Cause::Exec(failure),
    }
}

fn failure(line: usize, error: &std::io::Error) -> Failure {
    Failure {
        line,
        cause: Cause::Errno(error.raw_os_error().unwrap_or(0)),
    }
}

fn watch_signals() -> nix::Result<SignalFd> {
    let mut watched = SigSet::from_iter(FORWARDED);
    watched.add(Signal::SIGCHLD);
    watched.thread_block()?;
    SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Waits for the program's end, reaping orphans and passing signals on. `None`: nobody can be understood any more.
fn supervise(pid: i32, signals: &SignalFd, events: &Channel) -> Option<Waited> {
    loop {
        while let Ok(Some(waited)) = sys::wait_any(false) {
            if waited.pid == pid {
                return Some(waited);
            }
        }
        let mut polled = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(events, PollFlags::IN),
        ];
        // Interrupted or not, both are looked at below.
        let _ = rustix::event::poll(&mut polled, None);
        let asked = !polled[1].revents().is_empty();
        while let Ok(Some(info)) = signals.read_signal() {
            let number = info.ssi_signo as i32;
            if number != libc::SIGCHLD {
                signal(pid, number);
            }
        }
        if asked {
            match events.recv::<Control>() {
                Ok(Some((Control::Signal(number), _))) => signal(pid, number),
                Ok(None) => wait_to_be_killed(),
                Err(_) => return None,
            }
        }
    }
}

/// The sandbox was let go, and its supervisor kills this process for it. To end first would look like a program
/// that ended well.
fn wait_to_be_killed() -> ! {
    loop {
        nix::unistd::pause();
    }
}

/// Signals the program. It is this process's child and not reaped yet, so its number is still its own.
fn signal(pid: i32, number: i32) {
    // A program that changed its user may be out of reach, as it would be for who started it on the host.
    let _ = sys::signal_child(pid, number);
}

/// Kills every process of this pid namespace but this one, and says which there were.
fn kill_the_rest() -> Vec<LeakedProcess> {
    // What ends with the program, such as the supervisor of sandboxes inside this one, is given the time to.
    for _ in 0..GRACE_MS {
        loop {
            match sys::wait_any(false) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                // No child, so no process: orphans are children of process 1.
                Err(_) => return Vec::new(),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let leaked = living_processes();
    // From process 1, -1 is every other process of the namespace.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), Signal::SIGKILL);
    while sys::wait_any(true).is_ok() {}
    leaked
}

fn living_processes() -> Vec<LeakedProcess> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let process = |entry: fs::DirEntry| {
        let pid = entry
            .file_name()
            .to_str()?
            .parse::<i32>()
            .ok()
            .filter(|pid| *pid != 1)?;
        let stat = fs::read(entry.path().join("stat")).ok()?;
        // `pid (comm) state …`: comm may hold anything, so its end is the last parenthesis.
        let (open, close) = (
            stat.iter().position(|b| *b == b'(')?,
            stat.iter().rposition(|b| *b == b')')?,
        );
        let name = String::from_utf8_lossy(&stat[open + 1..close]).into_owned();
        (stat.get(close + 2) != Some(&b'Z')).then_some(LeakedProcess { pid, name })
    };
    let mut found: Vec<_> = entries.filter_map(Result::ok).filter_map(process).collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// The size of the writable layer, which is what lies under `/`, where it has no room left for data or for names.
fn full_disk() -> Option<Bytes> {
    let found = rustix::fs::statvfs("/").ok()?;
    let is_full = found.f_bavail == 0 || (found.f_files > 0 && found.f_ffree == 0);
    is_full.then(|| Bytes::new(found.f_blocks.saturating_mul(found.f_frsize)))
}

/// What a program needs, as C strings, numbers and descriptors.
struct Ready<'a> {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    working_dir: CString,
    uid: u32,
    gid: u32,
    groups: Option<Vec<u32>>,
    umask: u32,
    rlimits: Vec<(u32, u64, u64)>,
    capabilities: u64,
    stdio: Vec<OwnedFd>,
    terminal: Option<TerminalPair>,
    /// For who asked for the sandbox, where it has one of its own.
    network: Option<OwnedFd>,
    /// For the same: what holds all that is written.
    scratch: Option<OwnedFd>,
    /// Likewise, where something is recorded.
    record: Option<OwnedFd>,
    unrecorded: Option<i32>,
    user_namespace: Option<BorrowedFd<'a>>,
    filter: &'a [SockFilter],
}

impl<'a> Ready<'a> {
    fn new(
        plan: &ProgramPlan,
        stdio: Vec<OwnedFd>,
        terminal: Option<TerminalPair>,
        user_namespace: Option<BorrowedFd<'a>>,
        filter: &'a [SockFilter],
    ) -> Result<Self, Cause> {
        // The plan holds no NUL byte: it would be no plan.
        let c_string =
            |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| Cause::Errno(libc::EINVAL));
        let mut env = plan.env.clone();
        let (uid, gid, groups) = match &plan.user {
            UserPlan::Caller { uid, gid } if user_namespace.is_some() => (*uid, *gid, Vec::new()),
            UserPlan::Caller { .. } => (0, 0, Vec::new()),
            UserPlan::Named(name) => {
                let spec = if name.is_empty() {
                    Ok(UserSpec::default())
                } else {
                    name.parse()
                };
                let found = spec
                    .and_then(|spec| {
                        spec.resolve(&read_text("/etc/passwd"), &read_text("/etc/group"))
                    })
                    .map_err(Cause::User)?;
                env.entry("HOME".into())
                    .or_insert_with(|| found.home.clone().into());
                (found.uid, found.gid, found.groups)
            }
        };
        let groups_denied =
            fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny"));
        let pairs = env.iter().map(|(name, value)| {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            c_string(&pair)
        });
        Ok(Self {
            candidates: candidates(&plan.argv[0], &env)
                .iter()
                .map(|path| c_string(path))
                .collect::<Result<_, _>>()?,
            argv: plan
                .argv
                .iter()
                .map(|word| c_string(word))
                .collect::<Result<_, _>>()?,
            env: pairs.collect::<Result<_, _>>()?,
            working_dir: c_string(plan.working_dir.as_os_str())?,
            uid,
            gid,
            groups: (!groups_denied).then_some(groups),
            umask: plan.umask,
            rlimits: plan
                .ulimits
                .iter()
                .map(|limit| (limit.resource, limit.soft, limit.hard))
                .collect(),
            capabilities: plan.capabilities.bits(),
            stdio,
            terminal,
            network: None,
            scratch: None,
            record: None,
            unrecorded: None,
            user_namespace,
            filter,
        })
    }

    fn program(&self) -> Program<'_> {
        let (stdio, terminal) = match &self.terminal {
            Some(pair) => (
                [&pair.program_side; 3].map(AsFd::as_fd),
                Terminal::Controlling,
            ),
            None => (
                [0, 1, 2].map(|number| self.stdio[number].as_fd()),
                Terminal::None,
            ),
        };
        Program {
            candidates: &self.candidates,
            argv: &self.argv,
            env: &self.env,
            stdio,
            terminal,
            working_dir: &self.working_dir,
            user_namespace: self.user_namespace,
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.as_deref(),
            umask: self.umask,
            rlimits: &self.rlimits,
            capabilities: self.capabilities,
            filter: self.filter,
        }
    }
}

/// The paths that a program's name may mean: itself where it has a slash, else one for each part of `PATH`.
///
/// Source: execvp(3).
fn candidates(name: &OsStr, env: &BTreeMap<OsString, OsString>) -> Vec<OsString> {
    if name.as_bytes().contains(&b'/') {
        return vec![name.to_owned()];
    }
    let path = env
        .get(OsStr::new("PATH"))
        .map_or(OsStr::new("/bin:/usr/bin"), OsString::as_os_str);
    let within = |directory: &[u8]| {
        let directory = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        let mut candidate = OsStr::from_bytes(directory).to_owned();
        candidate.push("/");
        candidate.push(name);
        candidate
    };
    path.as_bytes()
        .split(|byte| *byte == b':')
        .map(within)
        .collect()
}

/// A file of the image, as far as it is one: not a device that blocks, not more than a file of accounts holds.
fn read_text(path: &str) -> String {
    const MAX_BYTES: u64 = 4 << 20;
    let mut bytes = Vec::new();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    if let Ok(file) = file
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        // What cannot be read names nobody; numbers still work.
        let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_up_in_path() {
        let env = BTreeMap::from([("PATH".into(), "/a::/b".into())]);
        assert_eq!(candidates("x".as_ref(), &env), ["/a/x", "./x", "/b/x"]);
        assert_eq!(candidates("./x".as_ref(), &env), ["./x"]);
        assert_eq!(
            candidates("x".as_ref(), &BTreeMap::new()),
            ["/bin/x", "/usr/bin/x"]
        );
    }
}
