//! Doctests: `cargo test --doc`, with [`crate::runner`] before each program that rustdoc makes.
//!
//! Rustdoc compiles doctests, decides which share a program, and runs them; only cargo knows what to tell it. So they
//! come last, and their verdicts are read from what rustdoc says. What rustdoc does not see, as that a program met its
//! timeout, runners tell by the [session](super::session). Where not all are wanted they are listed first, and rustdoc is given
//! [words](chosen) for those that are.

mod chosen;
mod hear;
mod library;
mod results;
mod said;

use std::sync::{Arc, mpsc::Sender};

pub(crate) use self::library::{Library, libraries};
use self::{hear::not_run, results::results_of};
use super::{
    attempt::Ground,
    cargo::DoctestCommand,
    event::{Attempt, BinaryId, Class, TestId, TestResult},
    select::{Chosen, RunIgnored, Selection},
    session::{Ran, Report, Reports},
};
use crate::filter::Filter;

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
}
