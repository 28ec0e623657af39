//! From a builder to a running sandbox: what is looked up, claimed and opened before the supervisor is asked.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Killer, Origin, Outputs, Sandbox,
    core::{Core, next_key},
    planned::planned,
    random_id,
    reader::Reader,
};
use crate::{
    bounded::DEFAULT_LIMIT,
    bridge::{self, Place},
    builder::{Consumers, Output, SandboxBuilder},
    capture::{self, Nowhere, Stream},
    error::Error,
    host::Host,
    image::{Held, Image},
    limited::{self, Limited},
    logs::Log,
    names::{self, Claim},
    network::{Address, Membership, Network},
    outcome::Outcome,
    plan::asks_beyond,
    publish::{self, Ports},
    rootfs::host_view::{self, Surroundings},
    security::idmap::plan::Writer,
    spec::{ImageRef, Link, LinkNames, MountKind, NetworkMode, Spec, SpecFault},
    supervisor::{Channel, Supervisor},
    wait::Wait,
    way_out::{self, Record},
};

/// How long a sandbox may take to be ready, unless told otherwise.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(60);

impl SandboxBuilder {
    /// Runs the program to its end in a fresh sandbox, of which nothing is left when this returns.
    ///
    /// # Errors
    /// Where the sandbox could not be made or the program not be started. How the program *ended* is no error:
    /// that is in the [`Outcome`].
    pub fn run(self) -> Result<Outcome, Error> {
        self.start_to_wait()?.wait()
    }

    /// Starts what is only to be waited for: who waits reads the log, and no thread does.
    pub(crate) fn start_to_wait(self) -> Result<Sandbox, Error> {
        if self.waits.is_empty() && self.consumers.0.is_empty() {
            Ok(self.launch()?.0)
        } else {
            self.start()
        }
    }

    /// What would be done to make this sandbox, one numbered step a line: nothing is made and nothing is run. An
    /// image is looked up, and pulled as [`pull`](Self::pull) says; the addresses that it would have on networks are
    /// not among the steps.
    ///
    /// ```
    /// let plan = orbit::Sandbox::builder().cmd(["true"]).plan()?;
    /// assert!(plan.starts_with("01 unshare mount"), "{plan}");
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with what was asked, as [`start`](Self::start) would say.
    pub fn plan(self) -> Result<String, Error> {
        let Self {
            mut spec,
            mut faults,
            ..
        } = self;
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        let around = surroundings(&spec.image);
        anchor(&mut spec, &mut faults);
        limited::look_up(&mut spec.limits, &mut faults);
        look_at_files(&spec, host)?;
        let (image, _held) = resolve(&spec, host, &mut faults)?;
        planned(&spec, &image, host, &around, faults).map(|plan| plan.to_string())
    }

    /// Starts the program in a fresh sandbox, and returns once it runs, and is ready where something is
    /// [waited for](Self::wait_for).
    ///
    /// # Errors
    /// As [`run`](Self::run); where it was not ready in time ([`Error::is_not_ready`]).
    pub fn start(self) -> Result<Sandbox, Error> {
        self.start_with(None)
    }

    /// The same; `begun` is given what ends the sandbox, as soon as there is something to end: it may be waited for.
    pub(crate) fn start_with(self, begun: Option<&dyn Fn(Killer)>) -> Result<Sandbox, Error> {
        let (mut sandbox, ready) = self.launch()?;
        if let Some(begun) = begun {
            begun(sandbox.killer()?);
        }
        sandbox.follow(ready.consumers.0)?;
        sandbox.get_ready(&ready.waits, ready.limit)?;
        sandbox.waits = ready.waits;
        sandbox.startup_timeout = ready.limit;
        Ok(sandbox)
    }

    /// All of it but the wait, with nobody to read the log.
    fn launch(self) -> Result<(Sandbox, Ready), Error> {
        let Self {
            mut spec,
            mut faults,
            stdin,
            stdout,
            stderr,
            capture_limit,
            networks,
            base,
            waits,
            startup_timeout,
            healthcheck,
            consumers,
            hides_log,
        } = self;
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        let around = surroundings(&spec.image);
        anchor(&mut spec, &mut faults);
        limited::look_up(&mut spec.limits, &mut faults);
        look_at_files(&spec, host)?;
        check_clock(&spec, &mut faults);
        way_out::look_up(&mut spec, &mut faults);
        let is_clone = base.is_some();
        let (image, held) = match base {
            Some(base) => {
                let current = (base.current)(&base.held);
                (current.unwrap_or(base.image), base.held)
            }
            None => resolve(&spec, host, &mut faults)?,
        };
        let healthcheck = healthcheck.or_else(|| image.config.healthcheck.clone());
        if healthcheck.is_none() {
            faults.extend(waits.iter().find_map(Wait::fault_without_healthcheck));
        }
        let stop_signal = match spec.stop_signal {
            Some(signal) => signal,
            None => image_stop_signal(&image, &mut faults),
        };
        // All of it is checked before anything is made, with links as they will be but for their addresses.
        spec.links = links_to_be(&networks, &spec, host);
        let mut plan = planned(&spec, &image, host, &around, faults)?;
        // What cannot be published is not worth a sandbox.
        let bound = publish::bind(&plan.publish)?;
        let claim = claim_name(&mut spec)?;
        let (addresses, place) = take_addresses(networks, &mut spec, host)?;
        if claim.is_some() || !spec.links.is_empty() {
            plan = planned(&spec, &image, host, &around, Vec::new())?;
        }
        let ports = match spec.network {
            NetworkMode::Host => Ports::of_host(&spec.expose),
            _ => Ports::default(),
        };
        let cannot_open = |error| Error::io("cannot open the program's standard streams", error);
        let nowhere = Nowhere::default();
        let input = capture::input(stdin, &nowhere).map_err(cannot_open)?;
        let outputs = [Outputs::of(&stdout), Outputs::of(&stderr)];
        let keep = capture_limit.unwrap_or(DEFAULT_LIMIT);
        let (output, stdout) =
            capture::output(stdout, Stream::Output, keep, &nowhere).map_err(cannot_open)?;
        let (error_output, stderr) =
            capture::output(stderr, Stream::Error, keep, &nowhere).map_err(cannot_open)?;
        crate::cgroup::reap(host);
        let supervisor = Supervisor::get(host)?;
        let limited = Limited::make(&mut plan, host, supervisor.pid(), spec.limits.best_effort)?;
        let (memberships, mut connectors) = join(addresses, &spec, asks_beyond(&spec, host))?;
        let mut on_bridge = None;
        if let Some(place) = &place {
            let (init, ours) =
                Channel::pair().map_err(|error| Error::io("cannot join the bridge", error))?;
            connectors.push(init);
            on_bridge = Some((place, ours));
        }
        // Whoever has a snapshot holds its layers, and without it nobody asks for its clones.
        if spec.ahead > 0 && !is_clone {
            keep_image(&spec.image, &held);
        }
        let key = next_key();
        let events = supervisor.launch(
            key,
            &plan,
            [input.as_fd(), output.as_fd(), error_output.as_fd()],
            limited.fd(),
            &connectors,
        )?;
        // Else the ends of captured streams would never come.
        drop((input, output, error_output, connectors));
        if let Some((place, init)) = on_bridge {
            place
                .connect(&init)
                .map_err(|error| Error::io("cannot join the bridge", error))?;
        }
        let few_ids = match &host.ids.writer {
            Writer::Caller(single) => Some(format!("{single}; {}", single.fix())),
            Writer::Helpers | Writer::Privileged => None,
        };
        let cgroup = limited.fd().map(|fd| fd.try_clone_to_owned()).transpose();
        let cgroup =
            cgroup.map_err(|error| Error::io("cannot keep the control group open", error))?;
        let mut sandbox = Sandbox {
            id: random_id(),
            core: Arc::new(Core::new(key, events, plan, few_ids, cgroup)),
            pidfd: None,
            terminal: None,
            stdout,
            stderr,
            capture_limit: keep,
            exit: None,
            gone: None,
            failure: None,
            outcome: None,
            limited,
            is_on_bridge: spec.network == NetworkMode::Bridge,
            name: spec.name.clone(),
            first_line: 0,
            _claim: claim,
            network: None,
            record: Record::default(),
            ports,
            memberships,
            place,
            scratch: None,
            is_held: spec.stays,
            origin: Origin { spec, image, held },
            reader: None,
            main: None,
            main_end: None,
            outputs,
            waits: Vec::new(),
            startup_timeout: STARTUP_TIMEOUT,
            healthcheck,
            stop_signal,
            hides_log,
        };
        sandbox.await_start(&supervisor)?;
        if let (false, Some(network)) = (bound.is_empty(), &sandbox.network) {
            sandbox.ports = bound.forward(&*supervisor.broker()?, network.as_fd())?;
        }
        let ready = Ready {
            waits,
            limit: startup_timeout.unwrap_or(STARTUP_TIMEOUT),
            consumers,
        };
        Ok((sandbox, ready))
    }
}

/// As [`SandboxBuilder::start`]; `begun` is given what ends the sandbox, before it is waited for.
///
/// # Errors
/// As [`SandboxBuilder::start`].
pub fn start_with(sandbox: SandboxBuilder, begun: &dyn Fn(Killer)) -> Result<Sandbox, Error> {
    sandbox.start_with(Some(begun))
}

/// As [`SandboxBuilder::start`], for a sandbox that is waited for at once: nobody reads its log meanwhile, and where
/// nobody waits its program stands still when it has written what a pipe holds.
///
/// # Errors
/// As [`SandboxBuilder::run`].
pub fn start_to_wait(sandbox: SandboxBuilder) -> Result<Sandbox, Error> {
    sandbox.start_to_wait()
}

/// What is left to do once the program runs.
struct Ready {
    waits: Vec<Wait>,
    limit: Duration,
    consumers: Consumers,
}

impl Outputs {
    fn of(output: &Output) -> Self {
        match output {
            Output::Capture => Self::Captured,
            Output::Inherit => Self::Inherited,
            Output::Null => Self::Null,
            Output::Fd(_) => Self::Given,
        }
    }
}

impl Sandbox {
    /// Has what is captured read from now on. A terminal's other side may be taken by somebody else.
    fn follow(&mut self, consumers: Vec<crate::logs::Consumer>) -> Result<(), Error> {
        let is_captured = self.stdout.is_some() || self.stderr.is_some();
        if is_captured && self.terminal.is_none() {
            let reader = Reader::start(
                Arc::new(Log::new(self.capture_limit)),
                self.stdout.take(),
                self.stderr.take(),
                consumers,
            );
            let cannot = |error| Error::io("cannot start to read the log of the sandbox", error);
            self.reader = Some(reader.map_err(cannot)?);
        }
        Ok(())
    }
}

/// The signal that an image wants to be stopped with.
fn image_stop_signal(image: &Image, faults: &mut Vec<SpecFault>) -> i32 {
    let Some(text) = &image.config.stop_signal else {
        return libc::SIGTERM;
    };
    signal_number(text).unwrap_or_else(|| {
        let why = "the image's StopSignal is no signal; give one with `.stop_signal(…)`";
        faults.push(SpecFault::new("stop_signal", text, why));
        libc::SIGTERM
    })
}

/// `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`.
fn signal_number(text: &str) -> Option<i32> {
    let in_range = |number: &i32| (1..=64).contains(number);
    if let Ok(number) = text.parse::<i32>() {
        return Some(number).filter(in_range);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let more = if rest.is_empty() {
            0
        } else {
            rest.strip_prefix('+')?.parse().ok()?
        };
        return Some(libc::SIGRTMIN() + more).filter(in_range);
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
    Some(signal as i32)
}

/// How far the clocks of a sandbox can be set ahead. They end before they are 147 years ahead, and what is more than they can count
/// would set them back. Source: Linux, kernel/time/namespace.c, `proc_timens_set_offset`.
const FARTHEST_AHEAD: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// That this kernel is one of those on which it was seen that programs have the clocks that their sandbox was given.
fn check_clock(spec: &Spec, faults: &mut Vec<SpecFault>) {
    let Some(ahead) = spec.clock_offset else {
        return;
    };
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0_u32));
    let version = (numbers.next(), numbers.next());
    if version < (Some(6), Some(1)) {
        let why = format!("this kernel is {release}, and it needs Linux 6.1 or newer");
        faults.push(SpecFault::new("clock_offset", format!("{ahead:?}"), why));
    }
    if ahead > FARTHEST_AHEAD {
        let why = "clocks can be set ahead by a hundred years at most";
        faults.push(SpecFault::new("clock_offset", format!("{ahead:?}"), why));
    }
}

/// Makes the host's paths in a spec absolute, and says which are not there, or not what they have to be.
fn anchor(spec: &mut Spec, faults: &mut Vec<SpecFault>) {
    const IMAGE_DIR: &str = "image dir";

    let mut sources: Vec<(&str, &mut PathBuf)> = Vec::new();
    for mount in &mut spec.mounts {
        if let MountKind::Bind { source, .. } | MountKind::Overlay { source } = &mut mount.kind {
            sources.push(("mount source", source));
        }
    }
    if let ImageRef::Dir(path) = &mut spec.image {
        sources.push((IMAGE_DIR, path));
    }
    for path in spec
        .host_view
        .paths
        .iter_mut()
        .chain(&mut spec.host_view.read_only_paths)
    {
        sources.push(("host path", path));
    }
    for (field, path) in sources {
        let found = std::path::absolute(&*path).and_then(|it| Ok((fs::metadata(&it)?, it)));
        let why = match found {
            Err(error) => Some(format!("on this host: {error}")),
            Ok((found, _)) if field == IMAGE_DIR && !found.is_dir() => {
                Some("it is not a directory".to_owned())
            }
            Ok((_, absolute)) => {
                *path = absolute;
                None
            }
        };
        if let Some(why) = why {
            faults.push(SpecFault::new(field, path.display().to_string(), why));
        }
    }
}

/// The links that [`take_addresses`] would give, in its order, each with the first address of its network in place of one
/// of its own. Nothing is taken or made.
fn links_to_be(networks: &[Network], spec: &Spec, host: &Host) -> Vec<Link> {
    let mut links: Vec<Link> = networks.iter().map(Network::link_to_be).collect();
    if spec.network == NetworkMode::Bridge {
        let is_hosts = host.uid == 0;
        let names = if is_hosts {
            LinkNames::Hosts(Vec::new())
        } else {
            LinkNames::Server
        };
        let bridge = Link {
            network: spec.bridge.name.clone(),
            subnet: spec.bridge.subnet,
            address: spec.bridge.subnet.gateway(),
            names,
        };
        links.insert(if is_hosts { links.len() } else { 0 }, bridge);
    }
    links
}

/// An address on each of `networks`, and on the bridge where one is asked for: as root it is the host's, for others
/// it is the first of the networks.
fn take_addresses(
    mut networks: Vec<Network>,
    spec: &mut Spec,
    host: &Host,
) -> Result<(Vec<Address>, Option<Place>), Error> {
    let on_bridge = spec.network == NetworkMode::Bridge;
    if on_bridge && host.uid != 0 {
        networks.insert(0, Network::in_place_of(&spec.bridge)?);
    }
    let addresses = networks
        .iter()
        .map(Network::take_address)
        .collect::<Result<Vec<_>, _>>()?;
    spec.links = addresses.iter().map(Address::link).collect();
    let place = (on_bridge && host.uid == 0)
        .then(|| bridge::join(&spec.bridge.name, spec.bridge.subnet, &names_of(spec)))
        .transpose()?;
    spec.links.extend(place.as_ref().map(|place| Link {
        network: spec.bridge.name.clone(),
        subnet: spec.bridge.subnet,
        address: place.address(),
        names: LinkNames::Hosts(place.neighbours().to_vec()),
    }));
    Ok((addresses, place))
}

/// What others on its networks call a sandbox.
fn names_of(spec: &Spec) -> Vec<String> {
    spec.name
        .iter()
        .chain(&spec.hostname)
        .chain(&spec.aliases)
        .cloned()
        .collect()
}

/// Makes the sandbox known on its networks. Its init is given the channels, in the order of the links.
fn join(
    addresses: Vec<Address>,
    spec: &Spec,
    asks_beyond: bool,
) -> Result<(Vec<Membership>, Vec<Channel>), Error> {
    static LAST_ID: AtomicU64 = AtomicU64::new(0);

    let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
    let names = names_of(spec);
    addresses
        .into_iter()
        .map(|address| address.join(id, &names, asks_beyond))
        .collect()
}

/// Looks up what the plan of a sandbox over the host's files depends on.
fn look_at_files(spec: &Spec, host: &Host) -> Result<(), Error> {
    if spec.image == ImageRef::Host {
        host.files()
            .map_err(|error| Error::io("cannot read the facts of this machine", error))?;
    }
    if spec.host_view.shares_foreign {
        host.find_foreign(host_view::is_shown);
    }
    Ok(())
}

/// Keeps the layers of an image where they are until this process ends: they lie under sandboxes that are made ahead.
fn keep_image(image: &ImageRef, held: &Held) {
    static KEPT: Mutex<BTreeMap<String, Held>> = Mutex::new(BTreeMap::new());

    if held.is_none() {
        return;
    }
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.insert(image.to_string(), held.clone());
}

/// Makes the name unique among this user's running sandboxes, where that is asked.
fn claim_name(spec: &mut Spec) -> Result<Option<Claim>, Error> {
    let Some(name) = spec.name.as_ref().filter(|_| spec.unique_name) else {
        return Ok(None);
    };
    let directory = crate::cache::directory().ok_or_else(|| {
        Error::io(
            "cannot tell where to keep names",
            io::Error::other(NO_CACHE_DIR),
        )
    })?;
    let (name, claim) = names::claim(&directory, name).map_err(|error| {
        let advice = crate::cache::advice(&error);
        let doing = format!("cannot claim a name in {}", directory.display());
        Error::io(doing, io::Error::other(format!("{error}{advice}")))
    })?;
    spec.name = Some(name);
    Ok(Some(claim))
}

const NO_CACHE_DIR: &str = "none of ORBIT_CACHE_DIR, XDG_CACHE_HOME and HOME is set to an absolute path; set ORBIT_CACHE_DIR";

#[cfg(feature = "images")]
fn resolve(
    spec: &Spec,
    host: &'static Host,
    _: &mut Vec<SpecFault>,
) -> Result<(Image, Held), Error> {
    match &spec.image {
        // Nothing is known of either but its files.
        ImageRef::Host | ImageRef::Dir(_) => Ok(Default::default()),
        image => {
            let (image, lease) = crate::images::resolve(image, spec.pull, host)?;
            Ok((image, lease.map(|lease| Arc::new(lease) as _)))
        }
    }
}

#[cfg(not(feature = "images"))]
#[expect(clippy::unnecessary_wraps, reason = "as the other")]
fn resolve(
    spec: &Spec,
    _: &'static Host,
    faults: &mut Vec<SpecFault>,
) -> Result<(Image, Held), Error> {
    if !matches!(spec.image, ImageRef::Host | ImageRef::Dir(_)) {
        let why = "this build of orbit-harness has neither of the features `images` and `registry`";
        faults.push(SpecFault::new("image", spec.image.to_string(), why));
    }
    Ok(Default::default())
}

/// Of this process; what only a program over the host's files has of it is looked up for none else.
pub(crate) fn surroundings(image: &ImageRef) -> Surroundings {
    static EXECUTABLE: OnceLock<Option<PathBuf>> = OnceLock::new();
    if *image != ImageRef::Host {
        return Surroundings::default();
    }
    let working_dir = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let executable = EXECUTABLE.get_or_init(|| std::env::current_exe().ok());
    let directory = executable.as_deref().and_then(Path::parent);
    Surroundings {
        working_dir,
        executable_dir: directory.map(Path::to_owned),
        path: std::env::var_os("PATH"),
        umask: umask(),
    }
}

/// The mask of this process, read where no thread can see it change meanwhile. Source: proc_pid_status(5).
fn umask() -> u32 {
    // It is in the second line: one read is enough, where reading to the end takes eight.
    let mut head = [0; 512];
    let read = fs::File::open("/proc/self/status").and_then(|mut file| file.read(&mut head));
    let status = String::from_utf8_lossy(&head[..read.unwrap_or(0)]);
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    value
        .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
        .unwrap_or(0o022)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_images_write_them() {
        assert_eq!(signal_number("SIGQUIT"), Some(libc::SIGQUIT));
        assert_eq!(signal_number("TERM"), Some(libc::SIGTERM));
        assert_eq!(signal_number("9"), Some(9));
        assert_eq!(signal_number("SIGRTMIN+3"), Some(libc::SIGRTMIN() + 3));
        for text in [
            "",
            "SIG",
            "0",
            "65",
            "-1",
            "SIGRTMIN+99",
            "SIGRTMIN-1",
            "NOPE",
        ] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }
}
