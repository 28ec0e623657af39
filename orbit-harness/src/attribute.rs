//! `#[orbit::sandboxed]` at run time: which of the two processes of a test this is, and what it does.
//!
//! The attribute puts a call of [`enter`] before a test's body. Outside of a sandbox it starts one over the host's
//! files that runs the same test program for this one test, waits for it, and passes on what it printed and how
//! it ended. Inside, it lets the body run. [`record`] is how the two tell each other what an exit code cannot say,
//! [`view`] is what the inner one sees, [`verdict`] what the outer one makes of the end.

mod record;
#[cfg(feature = "libtest-mimic")]
pub(crate) mod trial;
mod verdict;
mod view;

use std::{
    collections::BTreeSet,
    env,
    panic::{self, PanicHookInfo},
    process::ExitCode,
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use self::{
    record::{End, Inner, Outer, Record},
    verdict::Verdict,
};
use crate::{
    builder::{SandboxBuilder, Stdin},
    outcome::Outcome,
    sandbox::{Sandbox, random_id},
    spec::{Init, NetworkMode, SpecFault},
    variables::{SANDBOX_OF, SANDBOX_OF_TEST},
};

/// Runs a test in a sandbox of its own, under any runner: `cargo test`, nextest, an IDE, `cargo orbit test`.
///
/// ```
/// # #[allow(dead_code)]
/// #[orbit::sandboxed]
/// fn has_the_port_for_itself() -> std::io::Result<()> {
///     // Nobody else is on this network, and nobody else sees this file.
///     let _listener = std::net::TcpListener::bind("127.0.0.1:8080")?;
///     std::fs::write("/tmp/state", "only here")
/// }
/// ```
///
/// It adds `#[test]` where there is no test attribute below it. What else is there stays:
///
/// ```
/// # #[allow(dead_code)]
/// #[orbit::sandboxed(timeout = "10s", env(GREETING = "hello", PORT = "8080"), cap_drop("NET_RAW"))]
/// #[should_panic(expected = "hello")]
/// fn panics_inside() {
///     panic!("{}", std::env::var("GREETING").unwrap());
/// }
/// ```
///
/// `#[tokio::test]`, `#[rstest]` and others like them work, before or after this attribute; so do `#[ignore]`,
/// `#[should_panic]`, `async` and what a test may return: `()`, a `Result` or an `ExitCode`. A plain `#[test]` goes
/// below this attribute or is left out. Above, it cannot be seen from here, a second one is added, and the test
/// fails, saying so.
///
/// # Keys
///
/// Each is the method of [`SandboxBuilder`] of its name. A value is a literal, which is checked while the test is
/// compiled, or an expression of the type.
///
/// | key | value |
/// |---|---|
/// | `cap_add("…", …)`, `cap_drop("…", …)` | capabilities: `"NET_RAW"`, `"ALL"` |
/// | `clock_offset = "240h"` | the clocks since boot are ahead by this time, as on a machine that has been up for longer |
/// | `cpus = 0.5`, `cpuset = "0-1"`, `pids = 64` | limits; one that this machine cannot keep fails the test |
/// | `memory = "64M"`, `memory_high = "48M"`, `disk = "1G"` | the same; `cpu_max = "50000 100000"` is `cpus` in the kernel's words, and `cpu = "…"` takes either |
/// | `io_max("/srv wbps=1M", …)` | rates of the device that a path lies on |
/// | `accounting` | a control group of its own also without limits, for what it uses |
/// | `ulimit("nofile=64:128", …)` | limits of setrlimit(2) |
/// | `best_effort` | runs the test even where a limit cannot be kept |
/// | `env(NAME = "value", …)` | variables to set |
/// | `env_clear` | without what is passed on of the host's environment |
/// | `pass_env("NAME", …)` | variables of the host to pass on that are not passed on by themselves |
/// | `hide("/…", …)` | paths of the host to cover |
/// | `home = "/…"`, `working_dir = "/…"` | directories |
/// | `host_path("…", …)`, `host_path_read_only("…", …)` | paths of the host to show, which would be hidden |
/// | `hostname = "…"`, `user = "…"` | names |
/// | `image = "…"` | another root filesystem than the host's: see below |
/// | `mount("SOURCE:TARGET:ro", "tmpfs:/t:1M", …)` | mounts |
/// | `egress = "10.0.0.0/8:443,dns"` | what it may reach beyond its own network; `none` and `all` too |
/// | `nested = false` | no sandboxes inside this one |
/// | `network = "none"` | `none` (loopback alone, the default), `bridge` or `host` |
/// | `read_only` | no writes outside of mounts |
/// | `record_denied` | a default route, where all is refused, so that a test that fails says what it was not let out to |
/// | `timeout = "10s"` | a time with its unit, or a `Duration`; none by default |
///
/// # What is inside
///
/// The host's own files, with every write thrown away at the end, as [`Sandbox::builder`](crate::Sandbox::builder)
/// shows them: other homes, `/tmp` and `/run` are empty. The workspace and cargo's target directory are where they
/// were; cargo's and rustup's homes are read-only, without credentials. The working directory is the same. Of the
/// environment, what cargo and the terminal say is there (`CARGO_*`, `RUST_*`, `PATH` …), nothing of which the name
/// sounds like a secret, and nothing else.
///
/// [`Sandbox::builder`](crate::Sandbox::builder) works inside. For that, `nested` is on, unlike elsewhere: the test
/// may make user namespaces and sees `/proc` uncovered. The code of a test is its author's own, and runs without
/// any sandbox under any other attribute; `nested = false` is for a test that runs code of others.
///
/// # What it costs, and what it cannot do
///
/// One start of a sandbox and of the test program, a few milliseconds, for each test. A test that `cargo orbit test`
/// or `cargo orbit runner` has given a sandbox of its own already runs in that one, unless a key asks for something.
/// Where `cargo orbit test` runs all tests of a program in one sandbox, this test has its own in that one, so that
/// it shares nothing with the others. The kernel stacks overlays two deep: such a test cannot make a third.
///
/// The test runs in a process of its own: statics, thread-locals and what a harness measures in its own process
/// are not shared with other tests. Fixtures that stand in the arguments of rstest are made on both sides.
/// Coverage counters that the test program writes to a file at its end stay in the sandbox.
///
/// With an `image`, the test itself must run in that image, so its program must need nothing of the host: built
/// for a static target, such as `x86_64-unknown-linux-musl`. Otherwise the test fails and says so. To start a
/// program *of* an image, use [`Sandbox::builder`](crate::Sandbox::builder) in the test.
///
/// # How a test can be sure
///
/// Inside is not what a variable says. A test is inside when it is a child of Orbit's own init, as process 1, and
/// was handed its record by whoever made the sandbox. What claims to be inside and is not fails.
pub use orbit_macros::sandboxed;

/// A test with the attribute, as the macro sees it.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// With the name of the crate.
    pub path: &'static str,
    /// Where it is.
    pub file: &'static str,
    /// Where in that.
    pub line: u32,
    /// Whether it is marked so.
    pub should_panic: bool,
    /// Whether the attribute has any key.
    pub asks: bool,
}

impl Test {
    /// The name that the harness has for it, at least as it begins: paths in a harness are without the crate.
    fn path_in_crate(&self) -> &'static str {
        self.path
            .split_once("::")
            .map_or(self.path, |(_, path)| path)
    }

    /// The name that the harness has for what runs in this thread: libtest names its threads so. Whether the thread
    /// has said it.
    fn name(&self) -> (String, bool) {
        let path = self.path_in_crate();
        match thread::current().name() {
            Some(name) if names(name, path) => (name.to_owned(), true),
            _ => (path.to_owned(), false),
        }
    }
}

/// Whether a test's name is `path` or a case of it, as of rstest: `path::case_1`.
fn names(name: &str, path: &str) -> bool {
    name.strip_prefix(path)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// What the attribute asks for: the builder's methods, by the names of the keys.
#[derive(Debug)]
pub struct Keys {
    sandbox: SandboxBuilder,
    passed: Vec<String>,
}

macro_rules! keys {
    ($($key:ident: $type:ty),* $(,)?) => {
        #[allow(missing_docs, clippy::return_self_not_must_use)] // each is the builder's method
        impl Keys {
            $(pub fn $key(self, value: $type) -> Self {
                Self { sandbox: self.sandbox.$key(value), ..self }
            })*
        }
    };
}

keys! {
    accounting: bool,
    best_effort: bool,
    cap_add: &str,
    cap_drop: &str,
    clock_offset: Duration,
    cpu: &str,
    cpu_max: &str,
    cpuset: &str,
    disk: &str,
    egress: &str,
    hide: &str,
    home: &str,
    host_path: &str,
    host_path_read_only: &str,
    hostname: &str,
    image: &str,
    memory: &str,
    memory_high: &str,
    nested: bool,
    read_only: bool,
    record_denied: bool,
    timeout: Duration,
    user: &str,
    working_dir: &str,
}

#[allow(missing_docs, clippy::return_self_not_must_use)] // each is the builder's method, or near it
impl Keys {
    fn new() -> Self {
        Self {
            sandbox: Sandbox::builder().nested(true),
            passed: Vec::new(),
        }
    }

    pub fn env(self, name: &str, value: &str) -> Self {
        let sandbox = self.sandbox.env(name, value);
        Self { sandbox, ..self }
    }

    pub fn env_clear(self, clear: bool) -> Self {
        let mut sandbox = self.sandbox;
        sandbox.spec.env_clear = clear;
        Self { sandbox, ..self }
    }

    pub fn pass_env(mut self, name: &str) -> Self {
        self.passed.push(name.to_owned());
        self
    }

    pub fn cpus(self, cpus: &str) -> Self {
        self.cpu(cpus)
    }

    pub fn pids(mut self, limit: &str) -> Self {
        if let Ok(limit) = limit.parse() {
            self.sandbox = self.sandbox.pids(limit);
        } else {
            let why = "expected a whole number such as 64";
            let fault = SpecFault::new("pids limit", limit, why);
            self.sandbox.faults.push(fault);
        }
        self
    }

    pub fn io_max(self, limit: &str) -> Self {
        let (device, rates) = limit.split_once(' ').unwrap_or((limit, ""));
        let sandbox = self.sandbox.io_max(device, rates);
        Self { sandbox, ..self }
    }

    pub fn ulimit(self, limit: &str) -> Self {
        let sandbox = self.sandbox.ulimit_str(limit);
        Self { sandbox, ..self }
    }

    pub fn mount(self, mount: &str) -> Self {
        let sandbox = self.sandbox.mount_str(mount);
        Self { sandbox, ..self }
    }

    pub fn network(mut self, mode: &str) -> Self {
        match mode.parse::<NetworkMode>() {
            Ok(mode) => self.sandbox = self.sandbox.network(mode),
            Err(fault) => self.sandbox.faults.push(fault),
        }
        self
    }
}

/// What a test may return, made where it passed inside and the value stayed there.
#[diagnostic::on_unimplemented(
    message = "a sandboxed test cannot return `{Self}`",
    label = "expected `()`, a `Result` of it, or `ExitCode`",
    note = "the test runs in another process, and its value stays there"
)]
pub trait Passed {
    /// The value that says so.
    fn passed() -> Self;
}

impl Passed for () {
    fn passed() -> Self {}
}

impl Passed for ExitCode {
    fn passed() -> Self {
        Self::SUCCESS
    }
}

impl<T: Passed, E> Passed for Result<T, E> {
    fn passed() -> Self {
        Ok(T::passed())
    }
}

/// The value of a test that passed.
pub fn passed<T: Passed>() -> T {
    T::passed()
}

/// Held while a body runs where it should. Its end is the body's.
#[must_use]
#[derive(Debug)]
pub struct Inside(Option<&'static Inner>);

#[cfg(feature = "libtest-mimic")]
impl Inside {
    /// The body's end, where it is a failure without being a panic.
    fn ended_by_error(mut self) {
        if let Some(inner) = self.0.take() {
            inner.end(End::Panicking);
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(inner) = self.0 {
            inner.end(if thread::panicking() {
                End::Panicking
            } else {
                End::Returned
            });
        }
    }
}

/// `Some`: the body is to run, here. `None`: it ran, in a sandbox, and passed.
///
/// # Panics
/// As the body did in the sandbox, with its message; and where the sandbox could not be made, or ended otherwise
/// than a test does. No second message is printed then.
pub fn enter(test: &Test, ask: impl FnOnce(Keys) -> Keys) -> Option<Inside> {
    let (name, said_by_thread) = test.name();
    let verdict = match inner() {
        Ok(Some(inner)) if inner.is_for(test.path_in_crate()) => {
            if enter_here(inner) {
                return Some(Inside(Some(inner)));
            }
            Verdict::Broken(TWICE.to_owned())
        }
        Ok(None) if !test.asks && has_sandbox_of_its_own() => return Some(Inside(None)),
        Ok(_) if said_by_thread && !is_first(&name) => Verdict::Broken(TWICE.to_owned()),
        Ok(_) => {
            let keys = ask(Keys::new());
            outside(&name, keys, test.should_panic, Forward::Always)
        }
        Err(why) => Verdict::Broken(why.clone()),
    };
    let message = match verdict {
        Verdict::Passed => return None,
        Verdict::Panicked(message) => message,
        Verdict::Broken(why) => {
            let message = format!(
                "orbit: sandboxed test `{name}` ({}:{}): {why}",
                test.file, test.line
            );
            eprintln!("{message}");
            if test.should_panic {
                // To fail, such a test must not panic.
                return None;
            }
            message
        }
    };
    // Past the panic hook: the message has been printed where it arose, with its location.
    panic::resume_unwind(Box::new(message))
}

const TWICE: &str = "it runs twice in one process, most likely as `#[test]` stands above `#[orbit::sandboxed]`, which \
                     then adds another. Put it below, or leave it out";

/// Whether a test of this name is run by this process for the first time.
fn is_first(name: &str) -> bool {
    static RUN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut run = RUN.lock().unwrap_or_else(PoisonError::into_inner);
    run.insert(name.to_owned())
}

/// The record that this process was started with, if it is the inner one of a test.
fn inner() -> Result<Option<&'static Inner>, &'static String> {
    static INNER: OnceLock<Result<Option<Inner>, String>> = OnceLock::new();
    let found = INNER.get_or_init(|| Inner::find().map_err(|error| error.to_string()));
    found.as_ref().map(Option::as_ref)
}

/// Whether somebody else has made a sandbox for this one test already.
fn has_sandbox_of_its_own() -> bool {
    env::var_os(SANDBOX_OF).is_some_and(|of| of == SANDBOX_OF_TEST) && record::started_by_init()
}

/// Begins the body, in the inner process. Whether it had not begun before.
fn enter_here(inner: &'static Inner) -> bool {
    if !inner.enter() {
        return false;
    }
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        inner.panicked(message(info));
        previous(info);
    }));
    true
}

fn message<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("Box<dyn Any>")
}

/// When what the inner process printed is printed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forward {
    /// The harness keeps it until it is of interest.
    Always,
    /// The harness does not.
    #[cfg(feature = "libtest-mimic")]
    OnFailure,
}

/// Runs the test called `name` in the sandbox that was asked for, and prints what it prints.
fn outside(name: &str, keys: Keys, should_panic: bool, forward: Forward) -> Verdict {
    match run(name, keys) {
        Ok((record, outcome)) => {
            let verdict = verdict::verdict(&record, outcome.status, should_panic);
            if forward == Forward::Always || verdict != Verdict::Passed {
                // By the macros, which a harness captures for the test.
                print!(
                    "{}",
                    record::of_test(&outcome.stdout_text(), &record.boundary)
                );
                eprint!("{}", outcome.stderr_text());
            }
            tell(&outcome, verdict == Verdict::Passed);
            verdict
        }
        Err(why) => Verdict::Broken(format!("it has no sandbox and did not run: {why}")),
    }
}

/// Says what neither the test nor its verdict can: limits that were not kept, always; and of a test that did not pass,
/// what it ran into, left behind and was refused.
fn tell(outcome: &Outcome, passed: bool) {
    for warning in &outcome.warnings {
        eprintln!("orbit: warning: {warning}");
    }
    if passed {
        return;
    }
    for note in &outcome.notes {
        eprintln!("orbit: {note}");
    }
    for process in &outcome.leaked {
        eprintln!("orbit: it left the process {} running", process.name);
    }
    for denied in outcome.denied() {
        eprintln!("orbit: it was not let out to {denied}");
    }
}

fn run(name: &str, keys: Keys) -> Result<(Record, Outcome), String> {
    let io = |doing: &'static str| move |error: std::io::Error| format!("{doing}: {error}");
    let Keys { sandbox, passed } = keys;
    let spec = &sandbox.spec;
    if spec.entrypoint.is_some() || spec.cmd.is_some() || !spec.args.is_empty() {
        return Err("a sandboxed test runs itself; start other programs in it".to_owned());
    }
    if spec.tty || spec.init != Init::Orbit {
        return Err("a sandboxed test has no terminal, and runs under Orbit's init".to_owned());
    }
    let asked = Record {
        test: name.to_owned(),
        boundary: format!("orbit-test-{}", random_id()),
        ..Record::default()
    };
    let record = Outer::new(&asked).map_err(io("cannot hold its record in memory"))?;
    let stdin = record.for_inner().map_err(io("its record"))?;
    let executable = env::current_exe().map_err(io("cannot find this test program"))?;
    let outcome = view::complete(sandbox, &executable, &passed)
        .map_err(io("cannot find what it needs"))?
        .cmd([executable.as_os_str()])
        .args([name, "--exact", "--nocapture", "--include-ignored"])
        .stdin(Stdin::Fd(stdin))
        .run()
        .map_err(|error| error.to_string())?;
    let told = record
        .read()
        .map_err(io("cannot read its record, which it may have broken"))?;
    Ok((told, outcome))
}
