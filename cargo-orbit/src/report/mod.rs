//! What people and machines are told of a run of tests, made from its [`Event`]s alone.
//!
//! | report | for whom | where |
//! |---|---|---|
//! | [`human`] | who sits before it | standard error, as cargo's own messages |
//! | [`json`] | programs, while it runs | standard output, one object a line |
//! | [`junit`] | CI systems | a file |
//! | [`github`] | who reads a pull request | standard error, and the step's summary |
//! | [`html`] | who wants to see where the time went | a directory |
//!
//! Nothing here starts or ends a test. A report that cannot be written never ends a run: it is dropped, and what
//! was wrong is told at the end.

pub(crate) mod colour;
pub(crate) mod github;
pub(crate) mod html;
pub(crate) mod human;
pub(crate) mod json;
pub(crate) mod junit;
#[cfg(test)]
mod sample;
mod text;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::test::event::Event;

/// Something that tells of a run.
pub(crate) trait Report: Send {
    /// Takes note of `event`. At [`Event::RunFinished`], the last one, it writes what is not written yet.
    fn on(&mut self, event: &Event) -> io::Result<()>;

    /// Time has passed: it is `now`, counted from the start of the run. Called some ten times a second.
    fn tick(&mut self, now: Duration) -> io::Result<()> {
        let _ = now;
        Ok(())
    }
}

/// A report that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{report} is incomplete: it could not be written")]
pub(crate) struct ReportError {
    /// As in "the JUnit report target/junit.xml".
    report: String,
    source: io::Error,
}

/// All reports of a run.
#[derive(Default)]
pub(crate) struct Reports {
    reports: Vec<(String, Box<dyn Report>)>,
    faults: Vec<ReportError>,
}

impl Reports {
    /// Adds a report that `name` names in errors: "the JUnit report target/junit.xml".
    pub(crate) fn add(&mut self, name: impl Into<String>, report: impl Report + 'static) {
        self.reports.push((name.into(), Box::new(report)));
    }

    /// Tells them all of `event`.
    pub(crate) fn on(&mut self, event: &Event) {
        self.each(|report| report.on(event));
    }

    /// Tells them all what time it is.
    pub(crate) fn tick(&mut self, now: Duration) {
        self.each(|report| report.tick(now));
    }

    /// What could not be written, to be told at the end.
    pub(crate) fn faults(self) -> Vec<ReportError> {
        self.faults
    }

    fn each(&mut self, mut tell: impl FnMut(&mut dyn Report) -> io::Result<()>) {
        let Self { reports, faults } = self;
        reports.retain_mut(|(name, report)| match tell(&mut **report) {
            Ok(()) => true,
            Err(source) => {
                faults.push(ReportError {
                    report: std::mem::take(name),
                    source,
                });
                false
            }
        });
    }
}

/// Writes a file whole, or leaves what was there: whoever reads it meanwhile sees the old one.
fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside: PathBuf = path.with_file_name(name);
    let written = fs::File::create(&beside).and_then(|file| {
        let mut file = io::BufWriter::new(file);
        write(&mut file)?;
        file.into_inner()?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        // What went wrong before is what is told.
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full(usize);

    impl Report for Full {
        fn on(&mut self, _: &Event) -> io::Result<()> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(())
        }
    }

    #[test]
    fn a_report_that_fails_is_told_once_and_the_others_go_on() {
        let mut reports = Reports::default();
        reports.add("the full one", Full(1));
        reports.add("the other", Full(100));
        for event in sample::run() {
            reports.on(&event);
        }
        assert_eq!(reports.reports.len(), 1);
        let faults: Vec<_> = reports
            .faults()
            .iter()
            .map(|fault| format!("{fault}: {}", fault.source))
            .collect();
        assert_eq!(
            faults,
            ["the full one is incomplete: it could not be written: no storage space"]
        );
    }
}
