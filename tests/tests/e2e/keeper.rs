//! `[[service]]` under nextest with the runner: one start for all tests of a run, each a process, and an end with nextest.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit_tests::{Case, Context, Finished, Program, Who};

use super::{
    runner::{need_nextest, runner},
    service::{fixture, seen, starts},
};

const DEADLINE: Duration = Duration::from_secs(600);
/// Each a process, and each on another way to the service.
const TESTS: [&str; 3] = ["by_address", "by_name", "on_the_hosts_network"];

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("keeper::{name}"), run)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(DEADLINE)
    };
    vec![
        case("one_start_serves_a_run_of_nextest", one_start),
        case("runs_at_the_same_time_do_not_share", two_runs),
        case("one_that_fails_fails_its_tests_and_no_others", failing),
        case("nothing_is_left_however_nextest_ends", ended),
        case("that_it_was_killed_is_told", killed),
    ]
}

struct Shop<'a> {
    context: &'a Context,
    copy: PathBuf,
    runner: (String, String),
}

impl<'a> Shop<'a> {
    fn new(context: &'a Context) -> Result<Self> {
        need_nextest()?;
        Ok(Self {
            context,
            copy: fixture(context)?,
            runner: runner(context)?,
        })
    }

    fn nextest(&self, words: &[&str]) -> Result<Program> {
        let run = ["run", "--no-fail-fast", "--color=never"];
        self.cargo(&[&run, words].concat())
    }

    fn cargo(&self, words: &[&str]) -> Result<Program> {
        let (name, value) = &self.runner;
        Ok(self
            .context
            .cargo()?
            .arg("nextest")
            .args(words)
            .current_dir(&self.copy)
            .env("CARGO_TARGET_DIR", self.context.work().join("target"))
            .env("RUST_BACKTRACE", "0")
            .env(name, value)
            .deadline(DEADLINE))
    }

    /// Once the test `hangs` has reached its service: with who that is.
    fn hanging(&self, words: &[&str]) -> Result<(Child, String)> {
        self.begun(&[&["--test", "shop"], words].concat(), "hangs")
    }

    /// Nextest alone, so that a signal reaches it and not cargo: once a line is in the file `mark`, with that.
    fn begun(&self, words: &[&str], mark: &str) -> Result<(Child, String)> {
        let (name, value) = &self.runner;
        let said = self.context.work().join("said");
        let mut child = std::process::Command::new("cargo-nextest")
            .args(["nextest", "run", "--no-fail-fast", "--color=never"])
            .args(["--run-ignored", "all"])
            .args(words)
            .env("CARGO_NET_OFFLINE", "true")
            .env("CARGO_TARGET_DIR", self.context.work().join("target"))
            .env(
                "CARGO",
                std::env::var_os("CARGO").context("main sets CARGO")?,
            )
            .env("RUST_BACKTRACE", "0")
            .env(name, value)
            .current_dir(&self.copy)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said)?)
            .spawn()?;
        let mark = self.copy.join("seen").join(mark);
        let began = Instant::now();
        loop {
            let line = fs::read_to_string(&mark).unwrap_or_default();
            if line.ends_with('\n') {
                fs::remove_file(mark)?;
                return Ok((child, line));
            }
            if child.try_wait()?.is_some() || began.elapsed() > DEADLINE / 4 {
                child.kill()?;
                child.wait()?;
                bail!("the test did not begin: {}", fs::read_to_string(&said)?);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Who served each of [`TESTS`].
    fn ids(&self) -> Result<BTreeSet<String>> {
        let id = |test: &str| {
            let path = self.copy.join("seen").join(test);
            let id = fs::read_to_string(&path).with_context(|| test.to_owned())?;
            fs::remove_file(path)?;
            Ok(id)
        };
        TESTS.into_iter().map(id).collect()
    }
}

fn wait(mut child: Child, limit: Duration) -> Result<()> {
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("it did not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn one_start(context: &Context) -> Result<()> {
    let shop = Shop::new(context)?;
    let words = ["--test", "shop", "--test", "plain", "--test-threads=3"];
    let audit = context.audit();
    // One more process between nextest and each runner.
    let wrapper = context.work().join("wrapper.sh");
    fs::write(&wrapper, "\"$@\"\nexit $?\n")?;
    let (name, runner) = &shop.runner;
    let wrapped = format!("sh {} {runner}", wrapper.display());
    let mut ids = BTreeSet::new();
    for (run, runner) in [(1, runner), (2, &wrapped)] {
        let finished = shop.nextest(&words)?.env(name, runner).run()?.success()?;
        ensure!(finished.stderr.contains("4 passed"), "{finished}");
        ensure!(!finished.output_held_open, "{finished}");
        ensure!(
            starts(&shop.copy)? == run,
            "{:?}\n{finished}",
            seen(&shop.copy)?
        );
        let of_run = shop.ids()?;
        ensure!(of_run.len() == 1, "{of_run:?}");
        ids.extend(of_run);
        audit.check()?;
    }
    ensure!(ids.len() == 2, "two runs had one service: {ids:?}");
    // Whoever lists, or needs none, starts none.
    let list = shop.cargo(&["list", "--test", "shop"])?.run()?.success()?;
    ensure!(list.stdout.contains("by_address"), "{list}");
    for words in [
        &["--test", "plain"][..],
        &["--test", "shop", "--no-tests=pass", "no_such_test"],
    ] {
        shop.nextest(words)?.run()?.success()?;
    }
    ensure!(starts(&shop.copy)? == 2, "{:?}", seen(&shop.copy)?);
    audit.check()?;
    Ok(())
}

fn two_runs(context: &Context) -> Result<()> {
    let shop = Shop::new(context)?;
    let audit = context.audit();
    let (first, id) = shop.hanging(&["hangs"])?;
    let second = shop.nextest(&["--test", "shop"])?.run();
    kill(Pid::from_raw(first.id().try_into()?), Signal::SIGINT)?;
    wait(first, Duration::from_secs(30))?;
    second?.success()?;
    let ids = shop.ids()?;
    ensure!(ids.len() == 1 && !ids.contains(&id), "{ids:?}, {id}");
    ensure!(starts(&shop.copy)? == 2, "{:?}", seen(&shop.copy)?);
    audit.check()?;
    Ok(())
}

/// How often `part` is in what nextest said.
fn count(finished: &Finished, part: &str) -> usize {
    finished.stderr.matches(part).count()
}

fn failing(context: &Context) -> Result<()> {
    let shop = Shop::new(context)?;
    let audit = context.audit();
    let words = ["--test", "broken", "--test", "plain", "--test", "mourning"];
    // Nextest shows the output of a failed test once, where it fails.
    let finished = shop
        .nextest(&words)?
        .arg("--failure-output=immediate")
        .run()?
        .code(100)?;
    ensure!(finished.stderr.contains("1 passed, 3 failed"), "{finished}");
    for part in [
        "orbit: the service `broken` (",
        "exited with code 3",
        "stderr| no such table",
    ] {
        ensure!(count(&finished, part) == 2, "{part:?}: {finished}");
    }
    let tries = seen(&shop.copy)?
        .iter()
        .filter(|name| name.starts_with("broke-"))
        .count();
    ensure!(tries == 1, "it was tried {tries} times: {finished}");
    for part in [
        "orbit: the service `mortal`, which it needs, has ended: its program exited with code 9",
        "out of ink",
    ] {
        ensure!(count(&finished, part) == 1, "{part:?}: {finished}");
    }
    audit.check()?;
    Ok(())
}

fn ended(context: &Context) -> Result<()> {
    let shop = Shop::new(context)?;
    let audit = context.audit();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        // With a service that runs, and with one that is being started.
        for (words, mark) in [
            (&["--test", "shop", "hangs"][..], "hangs"),
            (&["--test", "waiting"], "slow"),
        ] {
            let (child, _) = shop.begun(words, mark)?;
            kill(Pid::from_raw(child.id().try_into()?), signal)?;
            wait(child, Duration::from_secs(30))
                .with_context(|| format!("{mark}, after {signal}"))?;
            audit
                .check()
                .with_context(|| format!("{mark}, after {signal}"))?;
        }
    }
    ensure!(starts(&shop.copy)? == 3, "{:?}", seen(&shop.copy)?);
    Ok(())
}

/// The keeper of the tests in `copy`.
fn keeper(copy: &Path) -> Result<Pid> {
    let copy = copy.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = words.split(|byte| *byte == 0).collect();
        if words.contains(&&b"keep-services"[..]) && words.contains(&copy.as_bytes()) {
            found.push(Pid::from_raw(pid));
        }
    }
    match found[..] {
        [pid] => Ok(pid),
        _ => bail!("keepers: {found:?}"),
    }
}

fn killed(context: &Context) -> Result<()> {
    let shop = Shop::new(context)?;
    let audit = context.audit();
    // One after the other, in the order of their names.
    let words = [
        "--test-threads=1",
        "--failure-output=immediate",
        "hangs",
        "on_the_hosts_network",
    ];
    let (child, _) = shop.hanging(&words)?;
    kill(keeper(&shop.copy)?, Signal::SIGKILL)?;
    // The first test, which waits for something else, is ended.
    wait(child, Duration::from_secs(30))?;
    let said = fs::read_to_string(context.work().join("said"))?;
    for part in [
        // To the test that had the service, and to the one that came then.
        "the process that keeps the services of this nextest run: it ended, and the services with it",
        "(`cargo-orbit orbit keep-services`) was killed",
        "2 failed",
    ] {
        ensure!(said.contains(part), "no {part:?} in {said}");
    }
    ensure!(starts(&shop.copy)? == 1, "{:?}", seen(&shop.copy)?);
    audit.check()?;
    Ok(())
}
