//! [`SandboxBuilder`]: the one way to say what a sandbox should be.
//!
//! It fills a [`Spec`] and keeps every fault it meets on the way, so that all are reported at once, when the
//! sandbox is asked for.

use std::{ffi::OsString, os::fd::OwnedFd, path::PathBuf, str::FromStr, time::Duration};

use crate::{
    image::{HealthCheck, Held, Image},
    logs::{Consumer, LogLine},
    net::{
        egress::{Egress, EgressError},
        names,
        ports::{PortError, PortMap},
    },
    network::Network,
    plan::MAX_AHEAD,
    resources::{IoMax, Ulimit},
    spec::{Content, ImageRef, Init, InitFile, Mount, NetworkMode, PullPolicy, Spec, SpecFault},
    units::Bytes,
    wait::Wait,
};

/// What a sandbox should be; made by [`Sandbox::builder`](crate::Sandbox::builder).
///
/// Nothing happens before [`run`](Self::run) or [`start`](Self::start). Methods never fail: what is wrong with
/// their arguments is reported there, all of it at once.
///
/// ```no_run
/// let outcome = orbit::Sandbox::builder()
///     .image("oci:target/images/busybox")
///     .cmd(["sh", "-c", "echo $GREETING; exit 7"])
///     .env("GREETING", "hello")
///     .run()?;
/// assert_eq!(outcome.stdout_text(), "hello\n");
/// assert_eq!(outcome.status, orbit::Status::Exited(7));
/// # Ok::<(), orbit::Error>(())
/// ```
#[must_use = "a builder does nothing until `run` or `start`"]
#[derive(Debug, Default)]
pub struct SandboxBuilder {
    pub(crate) spec: Spec,
    pub(crate) faults: Vec<SpecFault>,
    pub(crate) stdin: Stdin,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    pub(crate) capture_limit: Option<Bytes>,
    pub(crate) networks: Vec<Network>,
    /// What lies under the writable layer where that is not for the spec's image to say.
    pub(crate) base: Option<Base>,
    pub(crate) waits: Vec<Wait>,
    pub(crate) startup_timeout: Option<Duration>,
    pub(crate) healthcheck: Option<HealthCheck>,
    pub(crate) consumers: Consumers,
    pub(crate) hides_log: bool,
}

/// Who is called with each line of the log.
#[derive(Default)]
pub(crate) struct Consumers(pub(crate) Vec<Consumer>);

impl std::fmt::Debug for Consumers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} consumers", self.0.len())
    }
}

/// A root that is there already.
#[derive(Clone)]
pub(crate) struct Base {
    pub(crate) image: Image,
    pub(crate) held: Held,
    /// The image as it is when it is used, from what holds it: its layers may have been given other names.
    pub(crate) current: fn(&Held) -> Option<Image>,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base")
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// What a program reads from its standard input.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Stdin {
    /// Nothing: the end of the file, at once.
    #[default]
    Null,
    /// These bytes, then the end of the file.
    Bytes(Vec<u8>),
    /// What this process reads from its own.
    Inherit,
    /// What can be read from this descriptor.
    Fd(OwnedFd),
}

/// Where a program's standard output or standard error goes.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Output {
    /// To memory: [`Outcome::stdout`](crate::Outcome::stdout), [`Outcome::stderr`](crate::Outcome::stderr), of each
    /// as much as [`SandboxBuilder::capture_limit`] says.
    #[default]
    Capture,
    /// Where this process writes its own.
    Inherit,
    /// Nowhere.
    Null,
    /// To this descriptor.
    Fd(OwnedFd),
}

impl SandboxBuilder {
    /// The root filesystem, as [`ImageRef`] reads it: `host` (the default), `dir:PATH`, `oci:PATH[:TAG]`,
    /// `oci-archive:PATH[:TAG]`, or a reference to an image in a registry.
    pub fn image(mut self, image: &str) -> Self {
        if let Some(image) = self.parse::<ImageRef>(image) {
            self.spec.image = image;
        }
        self
    }

    /// When a registry is asked for the image: by default only where it is not in the store.
    pub fn pull(mut self, policy: PullPolicy) -> Self {
        self.spec.pull = policy;
        self
    }

    /// A name for people: in messages, and the host name where none is given, except over the host's files.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.spec.name = Some(name.into());
        self
    }

    /// As [`name`](Self::name), with the first free number appended where another running sandbox that asked
    /// for a unique name, in any process of this user, has it: `web`, `web1`, `web2`.
    pub fn unique_name(mut self, name: impl Into<String>) -> Self {
        self.spec.name = Some(name.into());
        self.spec.unique_name = true;
        self
    }

    /// The program and its first arguments, in place of the image's entrypoint. The image's `Cmd`, which was
    /// meant for that entrypoint, is not used then.
    pub fn entrypoint(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.spec.entrypoint = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// What follows the entrypoint, or the program itself where there is none; in place of the image's `Cmd`.
    pub fn cmd(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.spec.cmd = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// One more argument, after all others.
    pub fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.spec.args.push(word.into());
        self
    }

    /// More arguments, after all others.
    pub fn args(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.spec.args.extend(words.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the program's environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.spec.env.insert(name.into(), value.into());
        self
    }

    /// Sets several variables of the program's environment.
    pub fn envs(
        mut self,
        variables: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
    ) -> Self {
        self.spec.env.extend(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        self
    }

    /// Starts from an empty environment: neither the image's nor Orbit's own variables, only those that
    /// [`env`](Self::env) and [`envs`](Self::envs) set, before or after this call.
    pub fn env_clear(mut self) -> Self {
        self.spec.env_clear = true;
        self
    }

    /// The directory the program starts in; made where it is missing.
    pub fn working_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.spec.working_dir = Some(path.into());
        self
    }

    /// Who the program runs as: `user`, `user:group`, `uid` or `uid:gid`, looked up in the sandbox's own
    /// `/etc/passwd` and `/etc/group`. By default the image's user; over the host's files, the caller.
    pub fn user(mut self, user: &str) -> Self {
        self.spec.user = Some(user.to_owned());
        self
    }

    /// The host name inside.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.spec.hostname = Some(name.into());
        self
    }

    /// Something of the host, or a fresh filesystem, at a path inside. Later mounts cover earlier ones.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.spec.mounts.push(mount);
        self
    }

    /// A mount as the command line writes it: `SOURCE:TARGET[:ro|rw|overlay]`, `tmpfs:TARGET[:SIZE]`.
    pub fn mount_str(mut self, mount: &str) -> Self {
        if let Some(mount) = self.parse::<Mount>(mount) {
            self.spec.mounts.push(mount);
        }
        self
    }

    /// Over the host's files: shows this path of the host, at the same place, with every write thrown away.
    ///
    /// System directories are shown without being asked for; this is for what lies in places that are hidden,
    /// such as homes and `/tmp`.
    pub fn host_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.spec.host_view.paths.push(path.into());
        self
    }

    /// As [`host_path`](Self::host_path), read-only.
    pub fn host_path_read_only(mut self, path: impl Into<PathBuf>) -> Self {
        self.spec.host_view.read_only_paths.push(path.into());
        self
    }

    /// Over the host's files: covers this path, a file or a directory, though what is around it is shown.
    pub fn hide(mut self, path: impl Into<PathBuf>) -> Self {
        self.spec.host_view.hidden.push(path.into());
        self
    }

    /// Over the host's files: the fresh, private directory that `HOME` names. By default it is at the caller's
    /// own `$HOME`, which is hidden.
    pub fn home(mut self, path: impl Into<PathBuf>) -> Self {
        self.spec.host_view.home = Some(path.into());
        self
    }

    /// Makes the root filesystem read-only. Mounts keep the mode they were asked with; what root writes to `/dev` is still
    /// bounded by [`disk`](Self::disk).
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.spec.read_only = read_only;
        self
    }

    /// Adds a capability to the default ones: `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`.
    pub fn cap_add(mut self, name: &str) -> Self {
        self.spec.cap_add.push(name.to_owned());
        self
    }

    /// Takes a capability from the default ones; `ALL` takes every one that is not added by name.
    pub fn cap_drop(mut self, name: &str) -> Self {
        self.spec.cap_drop.push(name.to_owned());
        self
    }

    /// The network the program sees: loopback alone by default. A [`NetworkMode`], or a [`Network`] that it
    /// shares with other sandboxes; those may be several.
    pub fn network(self, network: impl IntoNetwork) -> Self {
        network.join(self)
    }

    /// The bridge that [`NetworkMode::Bridge`] means: `myruntime0` unless this says otherwise. As root it is a
    /// link of the host, shared by all processes, on which a sandbox knows by name those that were there before it
    /// (`/etc/hosts`): there is no name server on it.
    ///
    /// For others it is this process's own, which all of its sandboxes on the bridge share, with names answered as on
    /// every [`Network`]: no link can be made between two processes' namespaces without the host's root. Processes of one
    /// user meet on a [shared](crate::NetworkBuilder::shared) network, and so do root's that need each other's names in
    /// any order.
    pub fn bridge(mut self, name: &str) -> Self {
        match names::check_bridge(name) {
            Ok(()) => name.clone_into(&mut self.spec.bridge.name),
            Err(why) => self.faults.push(SpecFault::new("bridge", name, why)),
        }
        self
    }

    /// The addresses of that bridge: 172.25.0.0/16 unless this says otherwise.
    pub fn bridge_cidr(mut self, subnet: &str) -> Self {
        if let Some(subnet) = self.parse_as("bridge cidr", subnet) {
            self.spec.bridge.subnet = subnet;
        }
        self
    }

    /// One more name by which sandboxes on its networks reach this one, beside its [name](Self::name) and its
    /// [host name](Self::hostname): labels of letters, digits, `_` and, within, `-`, of at most 63 bytes each and 64 in
    /// all, joined by dots. `localhost` and numbers alone are refused, since nobody would be asked for them.
    pub fn network_alias(mut self, alias: impl Into<String>) -> Self {
        self.spec.aliases.push(alias.into());
        self
    }

    /// What the sandbox may reach beyond its own networks: nothing unless this says otherwise. An [`Egress`], or its
    /// text: `none`, `all`, `10.0.0.0/8:443,registry.example:443`.
    ///
    /// What is refused fails at once (TCP with ECONNREFUSED, datagrams with EPERM), and is recorded: see
    /// [`Outcome::denied`](crate::Outcome::denied). The way out is a process of the program `pasta` (package passt),
    /// which opens the sandbox's connections as the host's own; no host address leads back to the sandbox. With a
    /// list, the program has not the capability NET_RAW, and NET_ADMIN cannot be added, since with either it could go
    /// around the rules.
    ///
    /// ```no_run
    /// use orbit::{Egress, Sandbox};
    ///
    /// let outcome = Sandbox::builder()
    ///     .image("busybox")
    ///     .cmd(["wget", "-q", "-O-", "http://packages.example/index"])
    ///     .egress(Egress::allow(["packages.example:80"]))
    ///     .run()?;
    /// assert!(outcome.denied().is_empty());
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn egress(mut self, egress: impl IntoEgress) -> Self {
        match egress.into_egress() {
            Ok(egress) => {
                let fault =
                    |error: EgressError| SpecFault::new("egress", &error.given, error.to_string());
                self.faults.extend(egress.faults.into_iter().map(fault));
                self.spec.egress = Some(egress.policy);
            }
            Err((given, error)) => {
                let fault = SpecFault::new("egress", given, error.to_string());
                self.faults.push(fault);
            }
        }
        self
    }

    /// Whether [`Outcome::denied`](crate::Outcome::denied) tells what the sandbox tried to reach and was refused. It
    /// does where [`egress`](Self::egress) was said to be none or a list, and costs some tenths of a millisecond.
    ///
    /// With it, the network of the sandbox has a default route, to its own loopback, where everything is refused.
    pub fn record_denied(mut self, record: bool) -> Self {
        self.spec.record_denied = Some(record);
        self
    }

    /// Publishes ports of the sandbox on the host: `"8080:80"`, `"127.0.0.1:8080:80/tcp"`, `"8000-8010:80-90"` as
    /// [`PortMap`] reads it, or a pair of host port and port, `(8080, 80)`.
    ///
    /// The ports accept connections before [`start`](Self::start) returns, and lead to loopback inside, where a
    /// service listens that listens everywhere.
    pub fn publish(mut self, ports: impl IntoPortMap) -> Self {
        match ports.into_port_map() {
            Ok(ports) => self.spec.publish.push(ports),
            Err((given, error)) => {
                let fault = SpecFault::new("publish", given, error.to_string());
                self.faults.push(fault);
            }
        }
        self
    }

    /// Makes a TCP port of the sandbox reachable from the host, on a loopback port that the kernel chooses:
    /// [`Sandbox::addr`](crate::Sandbox::addr) says which.
    pub fn expose(mut self, port: u16) -> Self {
        self.spec.expose.push(port);
        self
    }

    /// Bounds the memory of all processes together: `64M`. Where it does not suffice, everything in the sandbox is
    /// killed, and the outcome says so ([`Status::OomKilled`](crate::Status::OomKilled)). There is no swap beside
    /// it; the writable layer and other filesystems in memory count, so a sandbox may end for writing too much.
    ///
    /// A limit that this host cannot keep is an error, here and below.
    pub fn memory(mut self, limit: &str) -> Self {
        self.spec.limits.memory = self.parse_as("memory", limit).or(self.spec.limits.memory);
        self
    }

    /// Slows the sandbox down, and reclaims its memory, where it uses more than this; it is not killed for it.
    pub fn memory_high(mut self, limit: &str) -> Self {
        let limit = self.parse_as("memory_high", limit);
        self.spec.limits.memory_high = limit.or(self.spec.limits.memory_high);
        self
    }

    /// Bounds CPU time to this many CPUs: with `0.5`, half of one.
    pub fn cpus(self, cpus: f64) -> Self {
        self.cpu(&cpus_text(cpus))
    }

    /// Bounds CPU time as cgroup v2 writes it: microseconds of CPU time, and of the period in which they may be
    /// used (`50000 100000`).
    pub fn cpu_max(self, limit: &str) -> Self {
        self.cpu(limit)
    }

    /// Bounds CPU time: a number of CPUs (`0.5`), or what cgroup v2 takes (`50000 100000`, `max`).
    pub fn cpu(mut self, limit: &str) -> Self {
        self.spec.limits.cpu = self.parse_as("cpu", limit).or(self.spec.limits.cpu);
        self
    }

    /// The CPUs that the sandbox may run on, by number: `0-1,3`.
    pub fn cpuset(mut self, cpus: &str) -> Self {
        self.spec.limits.cpuset = self
            .parse_as("cpuset", cpus)
            .or(self.spec.limits.cpuset.take());
        self
    }

    /// Bounds the number of processes and threads at a time. Orbit's own init does not count.
    pub fn pids(mut self, limit: u64) -> Self {
        self.spec.limits.pids = Some(limit);
        self
    }

    /// Bounds the traffic of a block device: `device` is one (`/dev/vda`, `8:0`), or a path that lies on one;
    /// `rates` is what cgroup v2 takes, with suffixes: `rbps=1M wbps=2M riops=100 wiops=max`.
    pub fn io_max(mut self, device: &str, rates: &str) -> Self {
        match IoMax::parse(device, rates) {
            Ok(io) => self.spec.limits.io.push(io),
            Err(error) => {
                let given = format!("{device} {rates}");
                self.faults
                    .push(SpecFault::new("io limit", given, error.to_string()));
            }
        }
        self
    }

    /// A limit of setrlimit(2) for the program and what it starts: `nofile`, `core`, `as`, and the others of
    /// prlimit(1). `u64::MAX` is no limit. Hard limits above this process's own cannot be given. With `nproc` the
    /// kernel also counts what Orbit has running as that user, some of which comes and goes: [`pids`](Self::pids) does not.
    pub fn ulimit(mut self, name: &str, soft: u64, hard: u64) -> Self {
        match Ulimit::new(name, soft, hard) {
            Ok(limit) => self.spec.limits.ulimits.push(limit),
            Err(error) => self
                .faults
                .push(SpecFault::new("ulimit", name, error.to_string())),
        }
        self
    }

    /// A limit of setrlimit(2) as the command line writes it: `NAME=SOFT[:HARD]`.
    pub fn ulimit_str(mut self, limit: &str) -> Self {
        let limit = self.parse_as::<Ulimit>("ulimit", limit);
        self.spec.limits.ulimits.extend(limit);
        self
    }

    /// Starts the sandbox even where a limit cannot be kept on this host, which is an error otherwise. What is not
    /// kept is in [`Outcome::warnings`](crate::Outcome::warnings).
    pub fn best_effort(mut self, best_effort: bool) -> Self {
        self.spec.limits.best_effort = best_effort;
        self
    }

    /// Gives the sandbox a control group even where nothing is limited: then
    /// [`Outcome::usage`](crate::Outcome::usage) counts all its processes, and limits can be set while it runs.
    /// Where the host has none to give, the usage says that it was counted by other means.
    pub fn accounting(mut self, accounting: bool) -> Self {
        self.spec.limits.accounting = accounting;
        self
    }

    /// Bounds what the sandbox writes outside of its mounts, also to `/dev`: `256M`. By default it is 4 GiB, all in memory.
    pub fn disk(mut self, limit: &str) -> Self {
        self.spec.disk = self.parse_as::<Bytes>("disk", limit).or(self.spec.disk);
        self
    }

    /// Does not count as started before this came true: [`start`](Self::start) returns then, and fails with the last
    /// lines of the log where it does not come within the [startup timeout](Self::startup_timeout), or the program
    /// ends before. With several calls, all must come true.
    ///
    /// ```
    /// use orbit::{Sandbox, Wait};
    ///
    /// let server = Sandbox::builder()
    ///     .cmd(["sh", "-c", "sleep 0.1; echo accepting; exec sleep 60"])
    ///     .wait_for(Wait::log("^accepting"))
    ///     .start()?;
    /// assert_eq!(server.logs().next().unwrap().text, "accepting");
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn wait_for(mut self, wait: Wait) -> Self {
        self.faults.extend(wait.faults.iter().cloned());
        self.waits.push(wait);
        self
    }

    /// How long what is waited for may take to come: a minute, unless this says otherwise.
    pub fn startup_timeout(mut self, limit: Duration) -> Self {
        self.startup_timeout = Some(limit);
        self
    }

    /// How to tell whether the service is well, in place of the image's own check: for
    /// [`Wait::healthcheck`](crate::Wait::healthcheck).
    pub fn healthcheck(mut self, check: HealthCheck) -> Self {
        self.healthcheck = Some(check);
        self
    }

    /// Calls this with each line that the program writes to a captured output, as it comes, in a thread of the
    /// sandbox. It should be quick: while it runs, nothing more is read. Not for [`run`](Self::run), which captures
    /// alone, nor with a [terminal](Self::tty).
    pub fn on_log(mut self, consumer: impl FnMut(&LogLine) + Send + 'static) -> Self {
        self.consumers.0.push(Box::new(consumer));
        self
    }

    /// Whether a sandbox that is dropped while its test panics writes the end of its log to standard error, which the
    /// test's runner shows, with how its program ended: it does, unless this says otherwise. So does one whose program
    /// has failed by itself when nobody waited for it, since a test that fails by an error (`?`) does not panic. Of one
    /// whose program still runs then, the environment variable `ORBIT_LOGS=always` shows the log: runners that capture
    /// hide it where the test passes.
    pub fn log_on_panic(mut self, shown: bool) -> Self {
        self.hides_log = !shown;
        self
    }

    /// A file that is there before the program starts, with its parents where they are missing; later ones replace
    /// earlier ones, and what the image has at that path.
    ///
    /// ```
    /// let outcome = orbit::Sandbox::builder()
    ///     .file("/tmp/conf/app.toml", "port = 80\n")
    ///     .cmd(["cat", "/tmp/conf/app.toml"])
    ///     .run()?;
    /// assert_eq!(outcome.stdout_text(), "port = 80\n");
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn file(mut self, at: impl Into<PathBuf>, content: impl Into<Content>) -> Self {
        let Content { bytes, mode, owner } = content.into();
        self.spec.files.push(InitFile {
            at: at.into(),
            content: bytes,
            mode,
            owner,
        });
        self
    }

    /// A note for people and programs: [`Sandbox::inspect`](crate::Sandbox::inspect) has it.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.labels.insert(name.into(), value.into());
        self
    }

    /// What [`Sandbox::stop`](crate::Sandbox::stop) sends, as numbered in signal(7): by default the image's
    /// `StopSignal`, or SIGTERM.
    pub fn stop_signal(mut self, signal: i32) -> Self {
        self.spec.stop_signal = Some(signal);
        self
    }

    /// Sets the monotonic clock and the time since boot ahead by this much, for what is in the sandbox: as on a machine
    /// that has been up for longer. `CLOCK_MONOTONIC`, `CLOCK_BOOTTIME` and `/proc/uptime` show it, and what sleeps
    /// until a time of one of them.
    ///
    /// The time of day is not changed: Linux has no namespace for `CLOCK_REALTIME`, so dates, the times of files and
    /// certificates are the host's. It cannot be changed while the sandbox runs, nor be set back. A hundred years are the most.
    /// Needs Linux 6.1.
    pub fn clock_offset(mut self, ahead: Duration) -> Self {
        self.spec.clock_offset = Some(ahead);
        self
    }

    /// Has the [`Outcome`](crate::Outcome) say which files were made, changed or removed in the sandbox's writable layer.
    /// They are read when the program has ended; it costs nothing before.
    pub fn record_changes(mut self, record: bool) -> Self {
        self.spec.record_changes = record;
        self
    }

    /// From the first that is started, keeps `count` sandboxes like this one prepared: with namespaces, init, root
    /// filesystem, `/proc` and `/dev`, and with a process that is all but the program. A start then takes one of them, which
    /// saves half of its time. Each is used once, and replaced when the supervisor has nothing else to do. They take
    /// two small processes each (at most 64 of a kind, and four kinds), and end with the test process.
    ///
    /// A sandbox is like another where they differ in the program alone: its arguments, environment, user, working
    /// directory, streams, capabilities, ports and timeout. The files under it (`dir:`, the host's, bound directories)
    /// are those that were there when it was prepared: do not replace them meanwhile. Where user, working directory or
    /// capabilities differ from those before, a little of what is saved is lost. That process counts as one of its user's, is as old as it
    /// is, and has looked up the user in the sandbox's accounts by then. With limits of a control group, on a
    /// network, and with egress, this is an error.
    ///
    /// ```
    /// use orbit::Sandbox;
    ///
    /// let shell = |script: &str| Sandbox::builder().prepare_ahead(4).cmd(["sh", "-c", script]);
    /// assert!(shell("true").run()?.success());
    /// assert!(!shell("touch /tmp/here; false").run()?.success()); // perhaps in one that was prepared
    /// assert!(shell("test ! -e /tmp/here").run()?.success());     // always in a fresh one
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn prepare_ahead(mut self, count: usize) -> Self {
        self.spec.ahead = count;
        self
    }

    /// Kills everything in the sandbox when the program runs longer than this.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.spec.timeout = Some(limit);
        self
    }

    /// What runs as process 1: Orbit's init, unless the program itself is asked for.
    pub fn init(mut self, init: Init) -> Self {
        self.spec.init = init;
        self
    }

    /// Gives the program a terminal of the sandbox as its standard streams.
    pub fn tty(mut self, tty: bool) -> Self {
        self.spec.tty = tty;
        self
    }

    /// Lets the program make user namespaces of its own, for tests that need namespaces or sandboxes.
    pub fn nested(mut self, nested: bool) -> Self {
        self.spec.nested = nested;
        self
    }

    /// What the program reads from standard input: nothing by default.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Where standard output goes: to [`Outcome::stdout`](crate::Outcome::stdout) by default.
    pub fn stdout(mut self, stdout: Output) -> Self {
        self.stdout = stdout;
        self
    }

    /// Where standard error goes: to [`Outcome::stderr`](crate::Outcome::stderr) by default.
    pub fn stderr(mut self, stderr: Output) -> Self {
        self.stderr = stderr;
        self
    }

    /// How much is kept of each [captured](Output::Capture) stream: 16 MiB unless this says otherwise. Of a program
    /// that writes more, the first and the last half of that are kept, with a line between them that says how many
    /// bytes are missing; [`Note::OutputCut`](crate::Note::OutputCut) says so too. The program is never held back.
    ///
    /// ```no_run
    /// let outcome = orbit::Sandbox::builder()
    ///     .cmd(["seq", "1000000"])
    ///     .capture_limit("1K")
    ///     .run()?;
    /// let text = outcome.stdout_text();
    /// assert!(text.starts_with("1\n2\n3\n") && text.ends_with("999999\n1000000\n"));
    /// assert!(text.contains("[orbit: 6887872 bytes left out"));
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn capture_limit(mut self, limit: &str) -> Self {
        self.capture_limit = self.parse_as("capture_limit", limit).or(self.capture_limit);
        self
    }

    /// Names it for people, where it has no name.
    pub(crate) fn name_unless_named(mut self, name: &str) -> Self {
        self.spec.name.get_or_insert_with(|| name.to_owned());
        self
    }

    fn parse<T: FromStr<Err = SpecFault>>(&mut self, text: &str) -> Option<T> {
        text.parse().map_err(|fault| self.faults.push(fault)).ok()
    }

    fn parse_as<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        field: &str,
        text: &str,
    ) -> Option<T> {
        let fault = |error: T::Err| SpecFault::new(field, text, error.to_string());
        text.parse()
            .map_err(|error| self.faults.push(fault(error)))
            .ok()
    }
}

/// What [`SandboxBuilder::publish`] takes.
pub trait IntoPortMap {
    /// The ports, or what was given and what is wrong with it.
    ///
    /// # Errors
    /// The text as given, and why it is no port map.
    fn into_port_map(self) -> Result<PortMap, (String, PortError)>;
}

impl IntoPortMap for PortMap {
    fn into_port_map(self) -> Result<PortMap, (String, PortError)> {
        Ok(self)
    }
}

impl IntoPortMap for &str {
    fn into_port_map(self) -> Result<PortMap, (String, PortError)> {
        self.parse().map_err(|error| (self.to_owned(), error))
    }
}

impl IntoPortMap for &String {
    fn into_port_map(self) -> Result<PortMap, (String, PortError)> {
        self.as_str().into_port_map()
    }
}

/// A port of the host, 0 where the kernel is to choose it, and a port of the sandbox.
impl IntoPortMap for (u16, u16) {
    fn into_port_map(self) -> Result<PortMap, (String, PortError)> {
        let (host, inside) = self;
        PortMap::tcp(host, inside).map_err(|error| (format!("{host}:{inside}"), error))
    }
}

/// What [`SandboxBuilder::egress`] takes.
pub trait IntoEgress {
    /// What may be reached, or what was given and is wrong.
    ///
    /// # Errors
    /// The text as given, and why it says nothing of egress.
    fn into_egress(self) -> Result<Egress, (String, EgressError)>;
}

impl IntoEgress for Egress {
    fn into_egress(self) -> Result<Egress, (String, EgressError)> {
        Ok(self)
    }
}

impl IntoEgress for &str {
    fn into_egress(self) -> Result<Egress, (String, EgressError)> {
        self.parse()
            .map_err(|error: EgressError| (error.given.clone(), error))
    }
}

impl IntoEgress for &String {
    fn into_egress(self) -> Result<Egress, (String, EgressError)> {
        self.as_str().into_egress()
    }
}

/// What [`SandboxBuilder::network`] takes.
pub trait IntoNetwork {
    /// Puts the sandbox on this network.
    fn join(self, sandbox: SandboxBuilder) -> SandboxBuilder;
}

impl IntoNetwork for NetworkMode {
    fn join(self, mut sandbox: SandboxBuilder) -> SandboxBuilder {
        sandbox.spec.network = self;
        sandbox
    }
}

impl IntoNetwork for &Network {
    fn join(self, mut sandbox: SandboxBuilder) -> SandboxBuilder {
        // To be put on it twice is to be on it.
        if !sandbox.networks.iter().any(|known| known.is(self)) {
            sandbox.networks.push(self.clone());
        }
        sandbox
    }
}

/// As the parser of limits takes it. What is no number of CPUs stays none.
pub(crate) fn cpus_text(cpus: f64) -> String {
    // A whole number of a thousand and more would be read as microseconds.
    if cpus >= 1000.0 {
        return "more CPUs than a thousand".to_owned();
    }
    cpus.to_string()
}

/// As [`SandboxBuilder::prepare_ahead`], where that can be, and as if nothing had been said where it cannot.
pub fn prepare_ahead_if_possible(mut sandbox: SandboxBuilder, count: usize) -> SandboxBuilder {
    sandbox.spec.ahead = count.min(MAX_AHEAD);
    sandbox.spec.ahead_if_possible = true;
    sandbox
}

/// A sandbox over the host's files in whose directories of `/` nothing is written from outside: those in which the caller may write
/// nothing are shared by all such sandboxes, which start sooner.
pub fn share_foreign(mut sandbox: SandboxBuilder) -> SandboxBuilder {
    sandbox.spec.host_view.shares_foreign = true;
    sandbox
}

/// A sandbox that outlives its program, for further ones: until it is dropped. One whose program is process 1 ends with it.
pub fn stay(mut sandbox: SandboxBuilder) -> SandboxBuilder {
    sandbox.spec.stays = true;
    sandbox
}
