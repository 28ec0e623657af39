//! Process 1 of a sandbox: makes what the plan says, starts the program, reaps, and says how it ended.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use rustix::{
    event::{PollFd, PollFlags},
    fs::{Mode, OFlags, ResolveFlags},
    process::{DumpableBehavior, PidfdFlags},
    thread::LinkNameSpaceType,
};

use super::{
    channel::Channel,
    filters::FilterError,
    make::{Helper, LOOPBACK, Maker},
    program::{Common, Ready, Shown},
    protocol::{Answer, Cause, Control, Event, Exit, Failure},
};
use crate::{
    netfilter::Netfilter,
    outcome::{LeakedProcess, Status, Usage},
    plan::{Isolation, Plan},
    security::seccomp::bpf::SockFilter,
    spec::Init,
    sys::{self, SingleThreaded, Waited},
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
    /// A network namespace to be in, which was made ahead: else it was born in the one it is to have.
    pub(super) network: Option<OwnedFd>,
    /// Of the program that leads out, where the plan has one.
    pub(super) helper: Option<Helper>,
    pub(super) common: &'a Common,
    pub(super) filter: &'a [SockFilter],
}

/// How long a process may outlive the program and not count as leaked.
const GRACE_MS: u32 = 20;

/// Runs a sandbox to its end, as its process 1.
pub(super) fn run(single_threaded: SingleThreaded, plan: &Plan, given: Given<'_>) -> ! {
    let mut keep: Vec<_> = given.stdio.iter().map(AsRawFd::as_raw_fd).collect();
    keep.push(given.events.as_fd().as_raw_fd());
    keep.extend(given.common.descriptor());
    keep.extend(given.network.as_ref().map(AsRawFd::as_raw_fd));
    keep.extend(given.networks.iter().map(|it| it.as_fd().as_raw_fd()));
    if let Some(helper) = &given.helper {
        keep.extend([&helper.output, &helper.errors].map(AsRawFd::as_raw_fd));
        keep.push(helper.network.as_fd().as_raw_fd());
    }
    let Given {
        events,
        stdio,
        networks,
        network,
        helper,
        ..
    } = given;
    let ran = sys::close_inherited(&mut keep)
        .and_then(|()| enter_network(network))
        .and_then(|()| Ground::of(plan.network))
        .map_err(|error| no_ground(&error))
        .and_then(|ground| {
            let made = make(plan, ground, networks, helper)?;
            let program = made.ready(plan, stdio, given.common, given.filter)?;
            begin(single_threaded, plan, program, &events)
        });
    end(ran, &events)
}

fn enter_network(network: Option<OwnedFd>) -> io::Result<()> {
    let Some(network) = network else {
        return Ok(());
    };
    rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Runs the program of a sandbox that is made.
pub(super) fn begin(
    single_threaded: SingleThreaded,
    plan: &Plan,
    program: Ready<'_>,
    events: &Channel,
) -> Result<(), Failure> {
    match plan.program.init {
        Init::Orbit => run_under(single_threaded, plan, program, events),
        Init::Program => become_program(single_threaded, plan, &program, events),
    }
}

pub(super) fn end(ran: Result<(), Failure>, events: &Channel) -> ! {
    if let Err(failure) = ran {
        // Nobody to tell: the sandbox was let go meanwhile.
        let _ = events.send(&Event::Failed(failure), &[]);
    }
    // The kernel now kills whatever else is left in this pid namespace.
    sys::exit_now(0)
}

/// What the steps of a plan begin with: the network that this process is in, where that is the sandbox's own.
pub(super) struct Ground {
    socket: Option<OwnedFd>,
    /// For the test process: no program has it.
    network: Option<OwnedFd>,
}

impl Ground {
    pub(super) fn of(network: Isolation) -> io::Result<Self> {
        let socket = match network {
            Isolation::Own => Some(sys::network_socket()?),
            Isolation::Host => None,
        };
        let network = socket.as_ref().map(sys::namespace_of).transpose()?;
        Ok(Self { socket, network })
    }

    pub(super) fn network(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(AsFd::as_fd)
    }

    /// Does what the first step of every plan with a network of its own does, which finds it done. What fails now fails
    /// then, and is told.
    pub(super) fn tread(&self) {
        let _ = self.socket.as_ref().map(|it| sys::bring_up(it, LOOPBACK));
    }
}

/// A failure to make the namespaces of a sandbox, or to be in them.
pub(super) fn no_ground(error: &io::Error) -> Failure {
    failure(0, error)
}

/// A sandbox without a program.
pub(super) struct Made {
    maker: Maker,
    network: Option<OwnedFd>,
}

/// Carries out the steps of the plan.
pub(super) fn make(
    plan: &Plan,
    ground: Ground,
    networks: Vec<Channel>,
    helper: Option<Helper>,
) -> Result<Made, Failure> {
    let Ground { socket, network } = ground;
    if let (Some(network), Some(helper)) = (&network, &helper) {
        let handed = helper.network.send(&(), &[network.as_fd()]);
        // Where it is gone already, what it wrote says more.
        drop(handed);
    }
    let mut maker =
        Maker::new(socket, networks, helper).map_err(|error| failure(0, &error.into()))?;
    if plan.cgroup.is_some() {
        // Born in its control group, which only now becomes the root of what it sees.
        unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|error| failure(0, &error.into()))?;
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
    Ok(Made { maker, network })
}

impl Made {
    /// Readies the program for it.
    pub(super) fn ready<'a>(
        self,
        plan: &Plan,
        stdio: Vec<OwnedFd>,
        common: &'a Common,
        filter: &'a [SockFilter],
    ) -> Result<Ready<'a>, Failure> {
        Ready::new(&plan.program, stdio, self.shown(), common, filter).map_err(|cause| Failure {
            line: plan.steps.len() + 1,
            cause,
        })
    }

    /// What of it is for who asked for it.
    pub(super) fn shown(self) -> Shown {
        let Self { mut maker, network } = self;
        let record = maker.take_record();
        Shown {
            terminal: maker.take_terminal(),
            network,
            scratch: maker.take_scratch(),
            unrecorded: record.unrecorded,
            record: record.netfilter.map(Netfilter::into_fd),
        }
    }
}

/// A failure to compile the filter of the program's system calls.
pub(super) fn no_filter(plan: &Plan, error: &FilterError) -> Failure {
    Failure {
        line: plan.steps.len() + 1,
        cause: Cause::Filter(error.to_string()),
    }
}

/// A time namespace; nix has no name for it.
pub(super) const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

/// Sets the clocks ahead, for this process and all that it starts. Source: time_namespaces(7).
///
/// What only its children had would be refused to one that shares its memory, as the program does until it executes: Linux
/// before 6.3, kernel/fork.c, `copy_process`.
fn set_clocks(ahead: Duration) -> io::Result<()> {
    unshare(NEW_TIME)?;
    let (seconds, nanos) = (ahead.as_secs(), ahead.subsec_nanos());
    let offsets = format!("monotonic {seconds} {nanos}\nboottime {seconds} {nanos}\n");
    // As long as nobody may look into this process, its own files in /proc are not its own. Nobody can see it yet, and
    // no program runs; and where this is not undone, none will.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let set = fs::write("/proc/self/timens_offsets", offsets)
        .and_then(|()| fs::File::open("/proc/self/ns/time_for_children"));
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(setns(set?, NEW_TIME)?)
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
        .map_err(|errno| failure(last_line(plan), &errno.into()))?;
    tell_started(events, 1, &ready.shown, Some(executing.as_fd()));
    // Where the program does not execute, the pipe stays open until this process ends: after it has said why.
    std::mem::forget(until_executed);
    Err(exec_failure(plan, ready.execute(single_threaded)))
}

/// The program as a child of this process, which sees to it until it ends.
fn run_under(
    single_threaded: SingleThreaded,
    plan: &Plan,
    ready: Ready<'_>,
    events: &Channel,
) -> Result<(), Failure> {
    let started = Instant::now();
    let signals = watch_signals().map_err(|errno| failure(last_line(plan), &errno.into()))?;
    let pid = ready
        .spawn(single_threaded)
        .map_err(|failure| exec_failure(plan, failure))?;
    // Its streams are its own: who reads them sees their end when the program closes them.
    let shown = ready.into_shown();
    let running = Running {
        pid,
        started,
        signals,
    };
    see_to(running, plan, shown, events)
}

/// A program that has been started, by the init of its sandbox.
pub(super) struct Running {
    pub(super) pid: i32,
    pub(super) started: Instant,
    pub(super) signals: SignalFd,
}

/// Sees to a program until it ends, and says how it did.
pub(super) fn see_to(
    running: Running,
    plan: &Plan,
    shown: Shown,
    events: &Channel,
) -> Result<(), Failure> {
    let Running {
        pid,
        started,
        signals,
    } = running;
    tell_started(events, pid, &shown, None);
    drop(shown);
    // Also where the program has it not: signals come from whoever has the sandbox.
    sys::hold_only(CAP_KILL).map_err(|errno| Failure {
        line: plan.steps.len() + 2,
        cause: Cause::Errno(errno),
    })?;
    let mut post = Post {
        signals,
        events,
        namespaces: own_namespaces(plan),
        is_held: plan.stays,
    };
    let Some(end) = post.supervise(pid) else {
        return Ok(());
    };
    let mut exit = Exit {
        status: Status::from(&end),
        usage: Usage::from(&end),
        wall_time: started.elapsed(),
        leaked: kill_the_rest(),
        full_disk: full_disk(),
    };
    // Where another program takes its place, what is left of the sandbox stays.
    while post.is_held {
        let _ = events.send(&Event::Exited(exit.clone()), &[]);
        if !post.keep() {
            return Ok(());
        }
        exit.leaked = kill_the_rest();
        exit.full_disk = full_disk();
        // What others started here is no child of this process.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), Signal::SIGKILL);
    }
    let _ = events.send(&Event::Exited(exit), &[]);
    Ok(())
}

/// Says that the program runs, with a pidfd of it and the caller's side of its terminal, if it has one.
fn tell_started(events: &Channel, pid: i32, shown: &Shown, executing: Option<BorrowedFd<'_>>) {
    let pidfd = rustix::process::Pid::from_raw(pid)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let terminal = shown.terminal.as_ref().map(|pair| pair.caller_side.as_fd());
    let started = Event::Started {
        has_pidfd: pidfd.is_some(),
        has_terminal: terminal.is_some(),
        executes_later: executing.is_some(),
        has_network: shown.network.is_some(),
        has_scratch: shown.scratch.is_some(),
        has_record: shown.record.is_some(),
        unrecorded: shown.unrecorded,
    };
    let fds: Vec<_> = pidfd
        .iter()
        .map(AsFd::as_fd)
        .chain(terminal)
        .chain(executing)
        .chain(shown.scratch.as_ref().map(AsFd::as_fd))
        .chain(shown.record.as_ref().map(AsFd::as_fd))
        .chain(shown.network.as_ref().map(AsFd::as_fd))
        .collect();
    let _ = events.send(&started, &fds);
}

/// That of the program's start.
fn last_line(plan: &Plan) -> usize {
    plan.lines().len() - 1
}

pub(super) fn exec_failure(plan: &Plan, failure: sys::ExecFailure) -> Failure {
    Failure {
        line: last_line(plan),
        cause: Cause::Exec(failure),
    }
}

fn failure(line: usize, error: &io::Error) -> Failure {
    Failure {
        line,
        cause: Cause::Errno(error.raw_os_error().unwrap_or(0)),
    }
}

/// Blocks the signals that are waited for. To be called before the program starts, so that its end cannot come unseen; it
/// unblocks them for itself.
pub(super) fn watch_signals() -> nix::Result<SignalFd> {
    let mut watched = SigSet::from_iter(FORWARDED);
    watched.add(Signal::SIGCHLD);
    watched.thread_block()?;
    SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// The post of a process 1: what it hears, from the kernel and from who asked for the sandbox.
struct Post<'a> {
    signals: SignalFd,
    events: &'a Channel,
    /// The names of those that are not the host's.
    namespaces: Vec<&'static str>,
    /// Whether the sandbox outlives its program.
    is_held: bool,
}

impl Post<'_> {
    /// Waits for the program's end, reaping orphans and passing signals on. `None`: nobody can be understood any
    /// more.
    fn supervise(&mut self, pid: i32) -> Option<Waited> {
        loop {
            while let Ok(Some(waited)) = sys::wait_any(false) {
                if waited.pid == pid {
                    return Some(waited);
                }
            }
            match self.hear(Some(pid)) {
                Heard::Nothing => {}
                Heard::Sweep { .. } | Heard::Nonsense => return None,
            }
        }
    }

    /// Reaps, with no program of its own, until it is to kill what is left. Whether it can be understood.
    fn keep(&mut self) -> bool {
        loop {
            while let Ok(Some(_)) = sys::wait_any(false) {}
            match self.hear(None) {
                Heard::Nothing => {}
                Heard::Sweep { stay } => {
                    self.is_held = stay;
                    return true;
                }
                Heard::Nonsense => return false,
            }
        }
    }

    /// Waits for a signal or a request, and does what can be done at once.
    fn hear(&mut self, program: Option<i32>) -> Heard {
        let mut polled = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(self.events, PollFlags::IN),
        ];
        // Interrupted or not, both are looked at below.
        let _ = rustix::event::poll(&mut polled, None);
        let asked = !polled[1].revents().is_empty();
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = info.ssi_signo as i32;
            if let Some(pid) = program.filter(|_| number != libc::SIGCHLD) {
                signal(pid, number);
            }
        }
        if !asked {
            return Heard::Nothing;
        }
        match self.events.recv::<Control>() {
            Ok(Some((control, mut fds))) => {
                let reply = fds.pop().map(Channel::from_fd);
                match control {
                    Control::Signal(number) => {
                        if let Some(pid) = program {
                            signal(pid, number);
                        }
                    }
                    Control::Handles => {
                        let found = handles(&self.namespaces);
                        let fds = found.as_deref().unwrap_or_default();
                        answer(reply, found.as_ref().map(|_| ()), fds);
                    }
                    Control::Stop(stop) => {
                        let signal = if stop {
                            Signal::SIGSTOP
                        } else {
                            Signal::SIGCONT
                        };
                        let everybody = nix::unistd::Pid::from_raw(-1);
                        // ESRCH: there is nobody.
                        let _ = nix::sys::signal::kill(everybody, signal);
                        let done = if stop { await_stillness() } else { Ok(()) };
                        answer(reply, done.as_ref().map(drop), &[]);
                    }
                    Control::Hold => self.is_held = true,
                    Control::Sweep { stay } => return Heard::Sweep { stay },
                }
                Heard::Nothing
            }
            Ok(None) => wait_to_be_killed(),
            Err(_) => Heard::Nonsense,
        }
    }
}

enum Heard {
    Nothing,
    Sweep { stay: bool },
    Nonsense,
}

fn answer(reply: Option<Channel>, done: Result<(), &io::Error>, fds: &[OwnedFd]) {
    let answer: Answer = done.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    // Who asked may not wait any more.
    let _ = reply.map(|reply| reply.send(&answer, &fds));
}

/// The namespaces that a sandbox has of its own, in the order in which [`Control::Handles`] brings them.
fn own_namespaces(plan: &Plan) -> Vec<&'static str> {
    let mut names = vec!["mnt", "pid", "ipc", "uts", "cgroup"];
    names.extend(plan.clock_offset.map(|_| "time"));
    names.extend((plan.network == Isolation::Own).then_some("net"));
    names
}

/// The root directory and the namespaces of this process, for a further program to get in by.
///
/// Opened when they are asked for: most sandboxes never need them. From outside, nobody could open them: this process
/// is a copy of the supervisor, into which nobody may look. A program with privileges over mounts may have covered
/// `/proc`: only this process's own files in a real one are taken.
fn handles(namespaces: &[&str]) -> io::Result<Vec<OwnedFd>> {
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", path, Mode::empty())?;
    let proc = rustix::fs::open("/proc", path | OFlags::NOFOLLOW, Mode::empty())?;
    if rustix::fs::fstatfs(&proc)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
    }
    let within = ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS | ResolveFlags::BENEATH;
    let own = rustix::fs::openat2(&proc, "self/ns", path, Mode::empty(), within)?;
    let mut found = vec![root];
    for name in namespaces {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        found.push(rustix::fs::openat(&own, *name, flags, Mode::empty())?);
    }
    Ok(found)
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
    let mut found: Vec<_> = processes()
        .into_iter()
        .filter(|(_, state)| *state != b'Z')
        .map(|(process, _)| process)
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// Waits until every process that was sent SIGSTOP stands still: one that is inside of the kernel stops on its way out.
fn await_stillness() -> io::Result<()> {
    const PATIENCE_MS: u32 = 2000;
    // Who has called vfork waits so for a child that is stopped: as long as that, and then stops.
    const KERNEL_MS: u32 = 50;

    for waited in 0..PATIENCE_MS {
        let stands = |state: u8| match state {
            b'T' | b't' | b'Z' | b'X' => true,
            b'D' => waited >= KERNEL_MS,
            _ => false,
        };
        if processes().iter().all(|(_, state)| stands(*state)) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
}

/// Every other process, with the letter of its state. Source: proc_pid_stat(5).
fn processes() -> Vec<(LeakedProcess, u8)> {
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
        let state = stat.get(close + 2).copied().unwrap_or(b'?');
        Some((LeakedProcess { pid, name }, state))
    };
    entries.filter_map(Result::ok).filter_map(process).collect()
}

/// The size of the writable layer, which is what lies under `/`, where it has no room left for data or for names.
fn full_disk() -> Option<Bytes> {
    let found = rustix::fs::statvfs("/").ok()?;
    let is_full = found.f_bavail == 0 || (found.f_files > 0 && found.f_ffree == 0);
    is_full.then(|| Bytes::new(found.f_blocks.saturating_mul(found.f_frsize)))
}
