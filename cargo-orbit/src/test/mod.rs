//! `cargo orbit test`: builds the tests, and runs them in fresh containers.
//!
//! The parts: [`args`] and [`words`] are what was asked; [`build`] has cargo build, and [`binary`] knows what cargo would start each
//! binary with; [`engine`] runs them, by [`schedule`] and [`select`]; [`isolate`] is what a test sees of the host, [`environment`]
//! its variables; [`memory`] is how much there is; [`libtest`] understands what test programs say; [`event`] is all of it as
//! data, of which reports are made. [`takedown`] takes sandboxes down beside the next. Doctests are rustdoc's business:
//! [`mod@doctests`], with [`session`] for the runners that rustdoc starts.

pub(crate) mod args;
pub(crate) mod attempt;
mod binary;
mod build;
mod cargo;
mod doctests;
mod ends;
mod engine;
pub(crate) mod environment;
pub(crate) mod event;
mod history;
pub(crate) mod isolate;
pub(crate) mod libtest;
mod lists;
mod memory;
mod schedule;
mod select;
pub(crate) mod session;
pub(crate) mod takedown;
mod together;
mod words;

use std::{
    collections::BTreeMap,
    env,
    io::{self, IsTerminal as _},
    path::Path,
    process::{Command, ExitCode, ExitStatus},
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use cargo_config2::Config;
use orbit::__private::{SessionDirectory, start_supervisor};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use self::{
    args::{Args, CargoArgs, TargetsChosen},
    attempt::Ground,
    binary::{Surroundings, TestBinary},
    build::Build,
    cargo::DoctestCommand,
    doctests::{Doctests, Found},
    engine::{Choice, Ended, Engine, Message, Options},
    environment::HostVariables,
    event::{Event, RunStarted},
    history::History,
    isolate::{Toolchain, View},
    select::{RunIgnored, Selection},
    session::{Host, NotRun, Report, Session},
    takedown::Takedown,
    words::Words,
};
use crate::{
    config::{Config as Settled, settings::Settings},
    exit,
    filter::{Filter, Platform, TestFacts, Workspace},
    report::{Reports, colour, github, html, human, json, junit},
    services::Services,
};

/// Builds and runs the tests that `args` ask for.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    if args.cargo.no_run {
        return build_only(&args.cargo);
    }
    let words = Words::parse(&args.cargo.for_tests).map_err(anyhow::Error::msg)?;
    let config = Config::load().map_err(cargo::CargoError::from)?;
    if cargo::are_several(&config, &args.cargo.targets) {
        bail!("tests for several targets cannot run together; choose one with --target");
    }
    // Processes of the toolchain have to answer, so all are asked before the first is waited for.
    let asked = cargo::Asked::compiler(&config)?;
    // Cargo begins to build while it is asked what there is to build.
    let build = (args.cargo.targets_chosen != TargetsChosen::OnlyDoctests)
        .then(|| Build::start(&args.cargo).context("cannot start cargo; is it in PATH?"))
        .transpose()?;
    if build.is_some() {
        // Meanwhile. Without a thread the first sandbox waits for it.
        let _ = thread::Builder::new().spawn(start_supervisor);
    }
    let cargo::Compiler { sysroot, host } = asked.answer(&config)?;
    let targets = cargo::targets(&config, &args.cargo.targets, &host)?;
    let [(target, through)] = &targets[..] else {
        bail!("there is no target to run tests for");
    };
    let (metadata, rust_versions) = cargo::metadata(&args.cargo, &targets)?;
    let toolchain = Toolchain::find(sysroot.clone(), env::home_dir(), |name| env::var_os(name));
    let target_directory = metadata.target_directory.clone().into_std_path_buf();
    let history = History::load(&target_directory);
    let options = options(args, &words, &history)?;
    let workspace = Workspace::new(&metadata);
    let choice = Chosen {
        config: Settled::load(&workspace, &args.settings, env::vars_os())?,
        filters: Arc::new(filters(&args.run.filterset, &workspace)?),
    };
    // Until all have ended.
    let meeting = SessionDirectory::make().context("cannot make a place for this session")?;
    let ground = Ground {
        view: View {
            meeting: Some(meeting.path()),
            ..View::new(&metadata, &toolchain, Path::exists)
        },
        host_variables: HostVariables::new(env::vars_os()),
        through: through.clone(),
        began,
        running: attempt::Running::default(),
        services: Services::new(choice.config.services()),
        keep_failed: args.run.keep_failed,
        diff: args.run.diff,
        takedown: Takedown::new(options.jobs),
    };
    let around = Surroundings {
        cargo: cargo::program().into(),
        sysroot,
        target: target.clone(),
        target_directory: target_directory.clone(),
        rust_versions,
        env: binary::configured(&config),
        library_path: env::var_os("LD_LIBRARY_PATH"),
    };
    let session = Session {
        view: ground.view.clone(),
        host_variables: ground.host_variables.clone(),
        settings: args.settings.clone(),
    };
    let host = Host::new(&session)?;
    let (found, of_doctests) = mpsc::channel();
    let doctests = (args.cargo.targets_chosen != TargetsChosen::Some)
        .then(|| {
            let command = doctest_command(&args.cargo, &words, &targets, &host, &options)?;
            anyhow::Ok(Doctests {
                command,
                libraries: doctests::libraries(&metadata),
                selection: options.selection.clone(),
                filters: Arc::clone(&choice.filters),
                threads: options.threads,
                reports: host.reports().share()?,
                found,
            })
        })
        .transpose()?
        .filter(Doctests::may_run);
    // They are listed when all else is.
    let (doctests, listed_doctests) = if options.list {
        (None, doctests)
    } else {
        (doctests, None)
    };

    let mut reports = reports(args, &words, metadata.workspace_root.as_std_path());
    if !options.list {
        reports.on(&Event::RunStarted(run_started(
            &metadata,
            &options,
            choice.config.profile.clone(),
        )));
    }
    let (sender, messages) = mpsc::channel();
    let signals = signals(sender.clone()).context("cannot take the signals of this process")?;
    let builder = build
        .as_ref()
        .map(|build| pidfd_open(build.pid(), PidfdFlags::empty()));
    let builder = builder.transpose().context("cannot hold on to cargo")?;
    let stop_build = || {
        if let Some(cargo) = &builder {
            // It fails only where cargo has ended, which is what the signal asks for.
            let _ = pidfd_send_signal(cargo, Signal::INT);
        }
    };
    let engine = Engine::new(&ground, &options, &choice, sender.clone(), reports, history);
    let mut ended = thread::scope(|scope| {
        match build {
            Some(build) => {
                let (metadata, around) = (&metadata, &around);
                scope.spawn(move || {
                    let built = |binary| {
                        let _ = sender.send(Message::Built(binary));
                    };
                    let ended = build.follow(metadata, around, built);
                    let well = ended.is_ok_and(|status| status.success());
                    let _ = sender.send(Message::BuildEnded(well));
                });
            }
            None => {
                let _ = sender.send(Message::BuildEnded(true));
            }
        }
        engine.run(&messages, doctests, &stop_build)
    });
    if let Some(doctests) = listed_doctests
        && ended.signal.is_none()
    {
        let (names, signal) = while_heard(&messages, &ground, || doctests.names(&ground));
        ended.signal = signal;
        match names {
            Ok(names) => ended.listed.extend(names),
            Err(_) if signal.is_some() => {}
            Err(fault) => bail!(
                "the doctests cannot be listed: cargo {}\n{}",
                fault.verdict,
                String::from_utf8_lossy(&fault.stderr).trim_end()
            ),
        }
    }
    signals.close();
    for found in of_doctests.try_iter() {
        match found {
            Found::All(binary, names) => ended.history.keep(&binary, &names),
            Found::Well => ended.history.clear(&doctests::all()),
        }
    }
    drop(ground);
    drop(meeting);
    let not_run: Vec<NotRun> = host
        .reports()
        .read()?
        .into_iter()
        .filter_map(|report| match report {
            Report::NotRun(not_run) => Some(not_run),
            Report::Ran(_) => None,
        })
        .collect();
    if !not_run.is_empty() {
        tell!("{}", not_run_text(&not_run).trim_end());
    }
    let not_run = not_run.len() + ended.not_run;
    Ok(conclude(ended, options.list, &target_directory, not_run)?.into())
}

/// `cargo test --no-run`: nothing is run, so nothing needs isolation.
fn build_only(args: &CargoArgs) -> anyhow::Result<ExitCode> {
    let status = Command::new(cargo::program())
        .arg("test")
        .args(&args.build_options)
        .arg("--no-run")
        .args(
            args.message_format
                .iter()
                .map(|format| format!("--message-format={format}")),
        )
        .status()
        .context("cannot start cargo; is it in PATH?")?;
    Ok(code(status).into())
}

/// How many more jobs than CPUs there are, unless their number is asked for: while a sandbox starts and ends, the kernel waits for
/// itself now and then, and a CPU would have nothing to do.
const SPARE_JOBS: usize = 1;

/// What the engine is to do.
fn options(args: &Args, words: &Words, history: &History) -> anyhow::Result<Options> {
    let run = &args.run;
    let mut names = words.names.clone();
    names.extend(
        args.cargo
            .test_name
            .iter()
            .map(|name| name.to_string_lossy().into_owned()),
    );
    let ignored = match (run.ignored, run.include_ignored) {
        (true, _) => RunIgnored::Only,
        (_, true) => RunIgnored::Include,
        _ => words.ignored,
    };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let asked = match (words.threads, args.cargo.jobs.as_deref()) {
        (Some(threads), _) => Some(threads),
        (None, Some("default") | None) => None,
        (None, Some(text)) => Some(jobs(text, cpus)?),
    };
    Ok(Options {
        jobs: asked.unwrap_or(cpus + SPARE_JOBS),
        threads: asked.unwrap_or(cpus),
        selection: Selection {
            names,
            exact: words.exact,
            skip: words.skip.clone(),
            ignored,
            partition: run.partition,
            failed: run.failed.then(|| history.failed().clone()),
        },
        nocapture: words.nocapture,
        fail_fast: !args.cargo.no_fail_fast,
        repeat: run.repeat,
        shuffle: run.shuffle.map(|seed| seed.0),
        list: run.list || words.list,
        arguments: words.others.clone(),
        show_output: verbosity(args, words) == human::Verbosity::Verbose,
        memory_bytes: memory::budget_bytes_here(),
    })
}

/// `--jobs` as cargo understands it: a number, or one less than there are CPUs.
fn jobs(text: &str, cpus: usize) -> anyhow::Result<usize> {
    match text.parse::<isize>() {
        Ok(jobs) if jobs > 0 => Ok(jobs.unsigned_abs()),
        Ok(jobs) if jobs < 0 => Ok(cpus.saturating_sub(jobs.unsigned_abs()).max(1)),
        _ => bail!(
            "--jobs {text}: expected a number from 1, one below 0 to leave CPUs free, or `default`"
        ),
    }
}

/// What chooses how tests run, and which.
struct Chosen {
    config: Settled,
    filters: Arc<Vec<Filter>>,
}

impl Choice for Chosen {
    fn settings(&self, binary: &TestBinary, test: &str) -> Arc<Settings> {
        self.config.settings(&facts(binary, test))
    }

    fn has(&self, binary: &TestBinary, test: &str) -> bool {
        let facts = facts(binary, test);
        self.filters.is_empty() || self.filters.iter().any(|filter| filter.matches(&facts))
    }

    fn may_have(&self, binary: &TestBinary) -> bool {
        let facts = TestFacts {
            test: None,
            ..facts(binary, "")
        };
        let may = |filter: &Filter| filter.may_match_in(&facts);
        self.filters.is_empty() || self.filters.iter().any(may)
    }
}

/// What the configuration and filtersets are asked about. A binary that runs as a whole has no test's name.
fn facts<'a>(binary: &'a TestBinary, test: &'a str) -> TestFacts<'a> {
    TestFacts {
        package_id: &binary.package_id,
        binary_id: &binary.id.0,
        binary_name: &binary.name,
        kind: binary.kind,
        platform: if binary.kind == "proc-macro" {
            Platform::Host
        } else {
            Platform::Target
        },
        test: Some(test),
    }
}

/// What was asked with `-E`.
fn filters(texts: &[String], workspace: &Workspace) -> anyhow::Result<Vec<Filter>> {
    let parse = |text: &String| match Filter::parse(text, workspace) {
        Ok(filter) => Ok(filter),
        Err(error) => bail!("-E {}", error.rendered(text)),
    };
    texts.iter().map(parse).collect()
}

fn verbosity(args: &Args, words: &Words) -> human::Verbosity {
    if args.cargo.quiet || words.quiet {
        human::Verbosity::Quiet
    } else if args.cargo.verbose > 0 || words.show_output {
        human::Verbosity::Verbose
    } else {
        human::Verbosity::Normal
    }
}

fn reports(args: &Args, words: &Words, root: &Path) -> Reports {
    let mut reports = Reports::default();
    let verbosity = verbosity(args, words);
    let colours = colour::wanted(
        args.cargo.color.as_deref(),
        |name| env::var_os(name),
        io::stderr().is_terminal(),
    );
    let mut human = human::Human::new(verbosity, colours);
    let on_github = github::is_here(|name| env::var_os(name));
    if on_github {
        human = human.guarded(github::Guard::new());
    }
    reports.add("the report on standard error", human);
    if args
        .cargo
        .message_format
        .as_deref()
        .is_some_and(|format| format.starts_with("json"))
    {
        reports.add(
            "the report on standard output",
            json::Json::new(io::stdout()),
        );
    }
    if let Some(path) = &args.run.junit {
        reports.add(
            format!("the JUnit report {}", path.display()),
            junit::Junit::new(path.clone()),
        );
    }
    if let Some(directory) = &args.run.report {
        reports.add(
            format!("the page {}/index.html", directory.display()),
            html::Html::new(directory.clone()),
        );
    }
    if on_github {
        reports.add(
            "the report for GitHub",
            github::Github::new(io::stderr(), root, |name| env::var_os(name)),
        );
    }
    reports
}

fn run_started(
    metadata: &cargo_metadata::Metadata,
    options: &Options,
    profile: Option<String>,
) -> RunStarted {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let workspace = metadata.workspace_root.file_name().unwrap_or("workspace");
    RunStarted {
        run: format!("{:012x}-{:x}", since_1970.as_millis(), std::process::id()),
        started_at_unix_seconds: since_1970.as_secs(),
        workspace: workspace.to_owned(),
        jobs: options.jobs,
        shuffle: options.shuffle,
        profile,
        command_line: env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
    }
}

/// `cargo test --doc` with everything but names.
fn doctest_command(
    args: &CargoArgs,
    words: &Words,
    targets: &[(String, Vec<String>)],
    host: &Host,
    options: &Options,
) -> anyhow::Result<DoctestCommand> {
    let runner = env::current_exe().context("cannot find the program cargo-orbit itself")?;
    let mut command = DoctestCommand::new(args, &runner, targets)?;
    let session = (environment::SESSION.into(), Some(host.address()));
    command.variables.push(session);
    command.words.extend(words.others.iter().cloned());
    command.words.extend(match options.selection.ignored {
        RunIgnored::No => None,
        RunIgnored::Only => Some("--ignored".into()),
        RunIgnored::Include => Some("--include-ignored".into()),
    });
    let threads = format!("--test-threads={}", options.threads);
    command.words.push(threads.into());
    Ok(command)
}

/// Tells the engine of signals that ask this process to end.
fn signals(sender: Sender<Message>) -> io::Result<signal_hook::iterator::Handle> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let handle = signals.handle();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for number in &mut signals {
                if sender.send(Message::Signal(number)).is_err() {
                    return;
                }
            }
        })?;
    Ok(handle)
}

/// What `work` gives, which this process's signals reach meanwhile: the last of them.
fn while_heard<T: Send>(
    messages: &mpsc::Receiver<Message>,
    ground: &Ground,
    work: impl FnOnce() -> T + Send,
) -> (T, Option<i32>) {
    const TICK: Duration = Duration::from_millis(20);

    thread::scope(|scope| {
        let mut signal = None;
        let working = scope.spawn(work);
        while !working.is_finished() {
            if let Ok(Message::Signal(number)) = messages.recv_timeout(TICK) {
                match signal.replace(number) {
                    None => ground.running.signal(number),
                    Some(_) => ground.running.kill(),
                }
            }
        }
        let done = working.join();
        (
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            signal,
        )
    })
}

/// Says what is left to say, and chooses the exit code.
fn conclude(
    ended: Ended,
    is_list: bool,
    target_directory: &Path,
    not_run: usize,
) -> anyhow::Result<u8> {
    if !ended.listed.is_empty() {
        let listed: Vec<String> = ended.listed.iter().map(ToString::to_string).collect();
        crate::write_out(&(listed.join("\n") + "\n"))?;
    }
    if !is_list && let Err(error) = ended.history.save(target_directory) {
        tell!(
            "orbit: cannot remember this run in {}: {error}",
            target_directory.display()
        );
    }
    for fault in ended.reports.faults() {
        tell!("orbit: {:#}", anyhow::Error::from(fault));
    }
    if let Some(signal) = ended.signal {
        return Ok(exit::of_number(128 + signal));
    }
    if not_run > 0 {
        return Ok(exit::SETUP_FAILED);
    }
    if ended.build_failed || ended.summary.failed > 0 {
        return Ok(exit::CARGO_FAILED);
    }
    Ok(0)
}

/// Doctests that a runner could not start: each reason once, however many tests it hit.
fn not_run_text(not_run: &[NotRun]) -> String {
    let mut by_reason: BTreeMap<&str, usize> = BTreeMap::new();
    for report in not_run {
        *by_reason.entry(&report.why).or_default() += 1;
    }
    let reasons: Vec<String> = by_reason
        .iter()
        .map(|(why, count)| format!("  {count} × {}\n", why.replace('\n', "\n      ")))
        .collect();
    let reasons = reasons.concat();
    let programs = match not_run.len() {
        1 => "1 program with doctests".to_owned(),
        count => format!("{count} programs with doctests"),
    };
    format!(
        "orbit: {programs} could not be started in a container and did not run; what is said of doctests above is \
         incomplete:\n{reasons}"
    )
}

/// Cargo's own exit code; 128 + signal where a signal ended it.
fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let number = status.code().or(status.signal().map(|signal| 128 + signal));
    number.map_or(exit::CARGO_FAILED, exit::of_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_counted_as_cargo_counts_them() {
        assert_eq!(jobs("3", 8).unwrap(), 3);
        assert_eq!(jobs("-2", 8).unwrap(), 6);
        assert_eq!(jobs("-9", 8).unwrap(), 1);
        assert!(jobs("0", 8).is_err() && jobs("many", 8).is_err());
    }

    #[test]
    fn each_reason_is_told_once() {
        let not_run = |program: &str, why: &str| NotRun {
            program: program.into(),
            why: why.to_owned(),
        };
        insta::assert_snapshot!(
            not_run_text(&[not_run("/a", "no\nnamespaces"), not_run("/b", "full"), not_run("/c", "full")]),
            @r"
        orbit: 3 programs with doctests could not be started in a container and did not run; what is said of doctests above is incomplete:
          2 × full
          1 × no
              namespaces
        "
        );
    }
}
