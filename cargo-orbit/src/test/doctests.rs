//! Doctests: `cargo test --doc`, with [`crate::runner`] before each program that rustdoc makes.
//!
//! Rustdoc compiles doctests, decides which share a program, and runs them; only cargo knows what to tell it. So they
//! come last, and their verdicts are read from what rustdoc says. What rustdoc does not see, as that a program met its
//! timeout, runners tell by the [session](super::session). Where not all are wanted they are listed first, and rustdoc is given
//! [words](chosen) for those that are.

mod chosen;
mod said;

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::Pid,
};

use self::said::Listener;
use super::{
    attempt::{Ground, Target},
    cargo::DoctestCommand,
    event::{Attempt, BinaryId, Class, Skipped, TestId, TestResult, Used, Verdict},
    libtest::Said,
    select::{Chosen, RunIgnored, Selection},
    session::{Ran, Report, Reports},
};
use crate::filter::{Filter, Platform, Target as OfPackage, TestFacts};

/// Doctests to run.
#[derive(Debug)]
pub(crate) struct Doctests {
    /// `cargo test --doc …`, with what the user has for rustdoc's harness.
    pub(crate) command: DoctestCommand,
    pub(crate) libraries: Vec<Library>,
    pub(crate) selection: Selection,
    pub(crate) filters: Arc<Vec<Filter>>,
    pub(crate) threads: usize,
    /// What runners tell.
    pub(crate) reports: Reports,
    /// Is told what was found.
    pub(crate) found: Sender<Found>,
}

/// A library that has doctests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Library {
    /// As cargo calls it when it runs them.
    pub(crate) name: String,
    pub(crate) package: String,
    pub(crate) package_id: String,
}

impl Library {
    pub(crate) fn binary(&self) -> BinaryId {
        BinaryId(format!("{}::doc", self.package))
    }

    /// What filtersets are asked about.
    pub(crate) fn ask<T>(&self, test: Option<&str>, ask: impl FnOnce(&TestFacts<'_>) -> T) -> T {
        let target = OfPackage::doctests(&self.package);
        ask(&TestFacts {
            package_id: &self.package_id,
            binary_id: &target.binary_id(&self.package),
            binary_name: &target.name,
            kind: &target.kind,
            platform: Platform::Target,
            test,
        })
    }
}

/// What is known after doctests have run.
#[derive(Debug)]
pub(crate) enum Found {
    /// All the doctests of a library.
    All(BinaryId, Vec<String>),
    /// Nothing went wrong beside them.
    Well,
}

/// Results, and where it went wrong beside the tests, such as in the compiler, an attempt at all of them.
type Results = (Vec<TestResult>, Option<Attempt>);

/// All doctests of a run, where it cannot be said whose.
pub(crate) fn all() -> BinaryId {
    BinaryId("doctests".to_owned())
}

impl Doctests {
    /// Whether there can be any that are wanted. If not, rustdoc need not be started to find out.
    pub(crate) fn may_run(&self) -> bool {
        let failed = self.selection.failed.as_ref();
        self.libraries.iter().any(|library| {
            let binary = library.binary();
            let has_failed = failed.is_none_or(|failed| {
                failed
                    .iter()
                    .any(|id| id.binary == binary || id.binary == all())
            });
            let may_match = |filter: &Filter| library.ask(None, |facts| filter.may_match_in(facts));
            has_failed && (self.filters.is_empty() || self.filters.iter().any(may_match))
        })
    }

    /// Whether rustdoc cannot be told by itself which are wanted.
    fn is_choosy(&self) -> bool {
        let Selection {
            partition, failed, ..
        } = &self.selection;
        partition.is_some() || failed.is_some() || !self.filters.is_empty()
    }

    /// Runs them.
    pub(crate) fn run(self, ground: &Ground, lane: usize) -> Results {
        if !self.is_choosy() {
            let (results, fault) = self.go(ground, lane, None, self.words());
            self.note_all(&results);
            if fault.is_none() {
                self.tell(Found::Well);
            }
            return (results, fault);
        }
        let listed = match self.list(ground, lane) {
            Ok(listed) => listed,
            Err(fault) => return (Vec::new(), Some(*fault)),
        };
        let mut results = Vec::new();
        let mut fault = None;
        for (library, names) in listed {
            let chosen = self.choose(&library, &names);
            if self.selection.ignored != RunIgnored::Only {
                self.tell(Found::All(library.binary(), names.clone()));
            }
            if chosen.is_empty() || ground.running.was_ended() {
                continue;
            }
            let words = chosen::words(&names, &chosen);
            let (some, other) = self.go(ground, lane, Some(&library.package_id), words);
            // What could not be left out has run along.
            let is_meant = |id: &TestId| id.name.is_empty() || chosen.contains(&id.name);
            results.extend(some.into_iter().filter(|result| is_meant(&result.id)));
            fault = fault.or(other);
        }
        if fault.is_none() {
            self.tell(Found::Well);
        }
        (results, fault)
    }

    /// Those that would run, by library.
    pub(crate) fn names(&self, ground: &Ground) -> Result<Vec<TestId>, Box<Attempt>> {
        let mut ids = Vec::new();
        let mut listed = self.list(ground, 0)?;
        if self.selection.ignored == RunIgnored::No && !listed.is_empty() {
            // Rustdoc lists what is ignored with the rest.
            let ignored = self.list_with(ground, 0, &["--ignored"])?;
            for (library, names) in &mut listed {
                let of_it = ignored.iter().find(|(other, _)| other == library);
                let ignored = of_it.map(|(_, names)| &names[..]).unwrap_or_default();
                names.retain(|name| !ignored.contains(name));
            }
        }
        for (library, names) in listed {
            let chosen = self.choose(&library, &names).into_iter();
            ids.extend(chosen.map(|name| TestId {
                binary: library.binary(),
                name,
                repetition: None,
            }));
        }
        Ok(ids)
    }

    fn choose(&self, library: &Library, names: &[String]) -> Vec<String> {
        let in_filter = |name: &str| {
            let matches = |filter: &Filter| library.ask(Some(name), |facts| filter.matches(facts));
            self.filters.is_empty() || self.filters.iter().any(matches)
        };
        // Rustdoc lists only those where it is asked for those that are ignored.
        let is_ignored = self.selection.ignored == RunIgnored::Only;
        let tests = names.iter().map(|name| (name.as_str(), is_ignored));
        let chosen =
            self.selection
                .of_all_if_lost(&all())
                .choose(&library.binary(), tests, in_filter);
        names
            .iter()
            .zip(chosen)
            .filter(|(_, chosen)| *chosen == Chosen::Run)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// What the user asked for, in the words of `cargo test`.
    fn words(&self) -> Vec<String> {
        let Selection {
            names, exact, skip, ..
        } = &self.selection;
        let skip = skip
            .iter()
            .flat_map(|name| ["--skip".to_owned(), name.clone()]);
        let exact = exact.then(|| "--exact".to_owned());
        names.iter().cloned().chain(skip).chain(exact).collect()
    }

    fn list(
        &self,
        ground: &Ground,
        lane: usize,
    ) -> Result<Vec<(Library, Vec<String>)>, Box<Attempt>> {
        self.list_with(ground, lane, &[])
    }

    fn list_with(
        &self,
        ground: &Ground,
        lane: usize,
        more: &[&str],
    ) -> Result<Vec<(Library, Vec<String>)>, Box<Attempt>> {
        let words = ["--list", "--format", "terse"].iter().chain(more);
        let words = words.map(|word| (*word).to_owned()).collect();
        let heard = self.hear(ground, lane, None, words)?;
        if !heard.status.success() {
            return Err(Box::new(heard.failure(ground, lane)));
        }
        let of_workspace = |name: &str| self.libraries.iter().find(|it| it.name == name);
        Ok(heard
            .libraries
            .iter()
            .filter_map(|said| {
                let names = chosen::listed(&said.text);
                Some((of_workspace(&said.name)?.clone(), names))
            })
            .collect())
    }

    fn tell(&self, found: Found) {
        // Whoever does not listen any more has no use for it.
        let _ = self.found.send(found);
    }

    /// Where everything ran, what ran is everything.
    fn note_all(&self, results: &[TestResult]) {
        let Selection {
            names,
            skip,
            ignored,
            ..
        } = &self.selection;
        if !names.is_empty() || !skip.is_empty() || *ignored == RunIgnored::Only {
            return;
        }
        for library in &self.libraries {
            let binary = library.binary();
            let of_it = results.iter().filter(|result| result.id.binary == binary);
            let names: Vec<String> = of_it.map(|result| result.id.name.clone()).collect();
            // Of those that were lost no name is known.
            if !names.is_empty() && names.iter().all(|name| !name.is_empty()) {
                self.tell(Found::All(binary, names));
            }
        }
    }

    /// Runs those that `words` choose, of one package or of all that cargo was asked for.
    fn go(
        &self,
        ground: &Ground,
        lane: usize,
        package: Option<&str>,
        words: Vec<String>,
    ) -> Results {
        let before = self.reports.read().map_or(0, |reports| reports.len());
        let heard = match self.hear(ground, lane, package, words) {
            Ok(heard) => heard,
            Err(fault) => return (Vec::new(), Some(*fault)),
        };
        let ran: Vec<Ran> = match self.reports.read() {
            Ok(reports) => reports
                .into_iter()
                .skip(before)
                .filter_map(|report| match report {
                    Report::Ran(ran) => Some(ran),
                    Report::NotRun(_) => None,
                })
                .collect(),
            Err(error) => {
                let why = format!("cannot hear from the runners of doctests: {error}");
                return (Vec::new(), Some(not_run(ground, lane, heard.started, why)));
            }
        };
        let mut results = Vec::new();
        let interrupted = ground.running.was_ended();
        for said in &heard.libraries {
            let library = self.libraries.iter().find(|it| it.name == said.name);
            let package = library.map_or(&said.name, |library| &library.package);
            let binary = BinaryId(format!("{package}::doc"));
            let ran = ran.iter().filter(|ran| ran.binary == binary);
            results.extend(results_of(said, &binary, ran, lane, interrupted));
        }
        let has_failed = results
            .iter()
            .any(|result: &TestResult| result.class() == Class::Failed);
        let fault = (!heard.status.success() && !has_failed && !interrupted)
            .then(|| heard.failure(ground, lane));
        (results, fault)
    }

    /// Runs cargo with `words` for rustdoc's harness, and hears it to its end.
    fn hear(
        &self,
        ground: &Ground,
        lane: usize,
        package: Option<&str>,
        words: Vec<String>,
    ) -> Result<Heard, Box<Attempt>> {
        let started = ground.began.elapsed();
        let failed = |why: String| Box::new(not_run(ground, lane, started, why));
        let no_pipe = |error: Errno| failed(format!("no pipe for cargo's output: {error}"));
        // One pipe for both, so that what cargo says of a library stands before what rustdoc says of its tests.
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(no_pipe)?;
        let second = rustix::io::fcntl_dupfd_cloexec(&writer, 3).map_err(no_pipe)?;
        let mut command: Command = self.command.command(package);
        let mut cargo = command
            .args(words)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(second)
            // Cargo passes no signal on to rustdoc, nor rustdoc to what it runs.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(format!("cannot start cargo: {error}")))?;
        // It holds the other ends of the pipe, which would never end.
        drop(command);
        let leader = Target::Group(Pid::from_child(&cargo));
        let place = ground.running.enter(leader);
        let mut listener = Listener::new(self.threads, started);
        let read = listen(&reader, &mut listener, || ground.began.elapsed());
        ground.running.leave(place);
        let status = cargo.wait();
        let (preface, libraries) = listener.end();
        match (read, status) {
            (Err(error), _) | (_, Err(error)) => {
                Err(failed(format!("cannot hear from cargo: {error}")))
            }
            (Ok(()), Ok(status)) => Ok(Heard {
                started,
                status,
                preface,
                libraries,
            }),
        }
    }
}

/// What cargo and rustdoc said, from a start to an end.
struct Heard {
    started: Duration,
    status: ExitStatus,
    preface: Vec<u8>,
    libraries: Vec<said::Library>,
}

impl Heard {
    /// An attempt at all of them, which failed.
    fn failure(self, ground: &Ground, lane: usize) -> Attempt {
        let texts = self.libraries.into_iter().map(|library| library.text);
        let output = std::iter::once(self.preface).chain(texts);
        Attempt {
            verdict: Verdict::Failed {
                code: self.status.code(),
            },
            stderr: output.flatten().collect(),
            ..not_run(ground, lane, self.started, String::new())
        }
    }
}

fn not_run(ground: &Ground, lane: usize, started: Duration, why: String) -> Attempt {
    Attempt {
        started,
        lane,
        wall_time: ground.began.elapsed().saturating_sub(started),
        ..Attempt::new(Verdict::SetupFailed { why }, Used::default())
    }
}

fn listen(reader: &OwnedFd, listener: &mut Listener, now: impl Fn() -> Duration) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match rustix::io::read(reader, &mut buffer[..]) {
            Ok(0) => return Ok(()),
            Ok(length) => listener.take(&buffer[..length], now()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What came of the doctests of one library: of `said`, and of what the programs did that `ran`.
fn results_of<'a>(
    said: &said::Library,
    binary: &BinaryId,
    ran: impl Iterator<Item = &'a Ran>,
    lane: usize,
    interrupted: bool,
) -> Vec<TestResult> {
    let mut results: Vec<TestResult> = said
        .verdicts
        .iter()
        .map(|heard| {
            let attempt = |verdict| Attempt {
                started: heard.started,
                wall_time: heard.ended.saturating_sub(heard.started),
                lane: lane + heard.lane,
                alone: false,
                ..Attempt::new(verdict, Used::default())
            };
            let (attempts, skipped) = match heard.said {
                Said::Ignored => (Vec::new(), Some(Skipped::Ignored)),
                Said::Passed => (vec![attempt(Verdict::Passed)], None),
                Said::Failed => {
                    let stdout = said.outputs.get(&heard.name).cloned().unwrap_or_default();
                    let failed = Attempt {
                        stdout,
                        ..attempt(Verdict::Failed { code: None })
                    };
                    (vec![failed], None)
                }
            };
            TestResult {
                id: TestId {
                    binary: binary.clone(),
                    name: heard.name.clone(),
                    repetition: None,
                },
                attempts,
                skipped,
            }
        })
        .collect();

    let mut whole = Attempt {
        lane,
        alone: false,
        ..Attempt::new(Verdict::Passed, Used::default())
    };
    let mut used = Used::default();
    for ran in ran {
        used = used.and(ran.used);
        whole.leaked.extend(ran.leaked.iter().cloned());
        whole.denied.extend(ran.denied.iter().cloned());
        if let Some(verdict) = &ran.verdict
            && !refine(&mut results, verdict)
        {
            let one = format!("a program with doctests of it: {verdict}");
            whole.notes.push(one);
            whole.verdict = verdict.clone();
        }
    }
    if said.lost > 0 && interrupted {
        whole.verdict = Verdict::Interrupted;
    } else if said.lost > 0 {
        let note = format!("a program ended before {} of its doctests had", said.lost);
        whole.notes.push(note);
        if whole.verdict.passed() {
            whole.verdict = Verdict::Failed { code: None };
        }
        whole.stdout.clone_from(&said.text);
    }
    if let Some(last) = results
        .iter_mut()
        .rev()
        .find_map(|it| it.attempts.last_mut())
    {
        last.used = used;
    } else {
        whole.used = used;
    }
    let is_worth_telling = !whole.verdict.passed()
        || !whole.leaked.is_empty()
        || !whole.denied.is_empty()
        || !whole.notes.is_empty();
    if is_worth_telling {
        results.push(TestResult {
            id: TestId {
                binary: binary.clone(),
                name: String::new(),
                repetition: None,
            },
            attempts: vec![whole],
            skipped: None,
        });
    }
    results
}

/// Rustdoc knows only that a doctest failed; its runner has said in the doctest's output how. Whether one was found that
/// may have ended so.
fn refine(results: &mut [TestResult], verdict: &Verdict) -> bool {
    let line = format!("orbit: {verdict}");
    let is_it = |attempt: &&mut Attempt| {
        let output = String::from_utf8_lossy(&attempt.stdout);
        matches!(attempt.verdict, Verdict::Failed { .. }) && output.lines().any(|it| it == line)
    };
    let mut attempts = results.iter_mut().flat_map(|it| &mut it.attempts);
    match attempts.find(is_it) {
        Some(attempt) => {
            attempt.verdict = verdict.clone();
            true
        }
        None => false,
    }
}

/// Libraries that have doctests.
pub(crate) fn libraries(metadata: &cargo_metadata::Metadata) -> Vec<Library> {
    metadata
        .workspace_packages()
        .into_iter()
        .flat_map(|package| {
            let targets = package.targets.iter().filter(|target| target.doctest);
            targets.map(|target| Library {
                name: target.name.replace('-', "_"),
                package: package.name.to_string(),
                package_id: package.id.repr.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::event::Denied;

    const OUTPUT: &str = "   Doc-tests first

running 2 tests
test src/lib.rs - one (line 1) ... ok
test src/lib.rs - two (line 5) - compile fail ... FAILED

failures:

---- src/lib.rs - two (line 5) - compile fail stdout ----
Test compiled successfully, but it's marked `compile_fail`.

failures:
    src/lib.rs - two (line 5) - compile fail

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s

error: doctest failed, to rerun pass `-p first --doc`
   Doc-tests second_one

running 1 test
test src/lib.rs - one (line 1) ... ignored

test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s
";

    fn told(results: &[TestResult]) -> String {
        let lines: Vec<String> = results
            .iter()
            .map(|result| {
                let last = result.attempts.first();
                let output = last.map(|it| String::from_utf8_lossy(&it.stdout));
                let how = last.map_or_else(String::new, |it| it.verdict.to_string());
                format!("{} | {how} | {}", result.id, output.unwrap_or_default())
            })
            .collect();
        lines.join("\n")
    }

    fn said(text: &str) -> Vec<said::Library> {
        let mut listener = Listener::new(2, Duration::ZERO);
        listener.take(text.as_bytes(), Duration::ZERO);
        listener.end().1
    }

    fn binary() -> BinaryId {
        BinaryId("first::doc".into())
    }

    fn ran(verdict: Option<Verdict>) -> Ran {
        Ran {
            binary: binary(),
            used: Used {
                cpu_user: Duration::from_millis(2),
                cpu_system: Duration::ZERO,
                memory_peak_bytes: Some(7),
            },
            verdict,
            leaked: Vec::new(),
            denied: Vec::new(),
        }
    }

    #[test]
    fn libraries_are_told_apart() {
        let said = said(OUTPUT);
        let names: Vec<&str> = said.iter().map(|library| &*library.name).collect();
        assert_eq!(names, ["first", "second_one"]);
        let ran = [ran(None), ran(None)];
        let first = results_of(&said[0], &binary(), ran.iter(), 0, false);
        let second = results_of(
            &said[1],
            &BinaryId("second-one::doc".into()),
            [].iter(),
            0,
            false,
        );
        insta::assert_snapshot!([told(&first), told(&second)].join("\n"));
        let used = first[1].attempts[0].used;
        assert_eq!(used.cpu_user, Duration::from_millis(4));
        assert_eq!(used.memory_peak_bytes, Some(7));
    }

    #[test]
    fn what_rustdoc_does_not_see_is_told() {
        let output = "   Doc-tests first

running 2 tests
test src/lib.rs - one (line 1) ... FAILED
test src/lib.rs - two (line 5) - should panic ... ok

failures:

---- src/lib.rs - one (line 1) stdout ----
Test executable failed (exit status: 124).

stderr:
orbit: killed after its timeout of 2s


failures:
    src/lib.rs - one (line 1)

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
";
        let said = said(output);
        let timed_out = || {
            ran(Some(Verdict::TimedOut {
                limit: Duration::from_secs(2),
            }))
        };
        let one = results_of(&said[0], &binary(), [timed_out()].iter(), 0, false);
        assert_eq!(one.len(), 2);
        assert!(told(&one).starts_with(
            "first::doc src/lib.rs - one (line 1) | killed after its timeout of 2s |"
        ));
        // The second was the one that should panic, and did not.
        let both = results_of(
            &said[0],
            &binary(),
            [timed_out(), timed_out()].iter(),
            0,
            false,
        );
        assert!(
            told(&both).ends_with("first::doc | killed after its timeout of 2s | "),
            "{}",
            told(&both)
        );
        let reached = Ran {
            denied: vec![Denied {
                to: "192.0.2.1:443/tcp".into(),
                count: 1,
            }],
            ..ran(None)
        };
        let told_of = results_of(&said[0], &binary(), [reached].iter(), 0, false);
        assert_eq!(told_of[2].class(), Class::Passed);
        assert_eq!(told_of[2].attempts[0].denied.len(), 1);
    }

    #[test]
    fn a_program_that_ends_before_its_doctests_has_failed() {
        let said = said("   Doc-tests first\nrunning 3 tests\ntest a ... ok\n");
        let results = results_of(&said[0], &binary(), [].iter(), 0, false);
        assert_eq!(results[1].class(), Class::Failed);
        let notes = &results[1].attempts[0].notes;
        assert_eq!(notes[0], "a program ended before 2 of its doctests had");
        let stopped = results_of(&said[0], &binary(), [].iter(), 0, true);
        assert_eq!(stopped[1].attempts[0].verdict, Verdict::Interrupted);
    }
}
