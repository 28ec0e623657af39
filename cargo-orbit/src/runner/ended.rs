//! What is said of a program that has ended, beside its own words and its exit code.

use orbit::{Outcome, Status};

use crate::{
    config::settings::Settings,
    exit,
    test::{
        attempt,
        event::{Denied, Verdict},
    },
};

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// What its exit code does not say: it met a limit, or passed and did what the settings call a failure.
    pub(super) verdict: Option<Verdict>,
    /// For standard error.
    pub(super) lines: Vec<String>,
    pub(super) code: u8,
    /// The signal that ended it, for whoever asks how this process ended.
    pub(super) signal: Option<i32>,
    pub(super) leaked: Vec<String>,
    pub(super) denied: Vec<Denied>,
}

impl Ended {
    /// `verdict` is known where it was not the sandbox that ended it.
    pub(super) fn of(outcome: &Outcome, verdict: Option<Verdict>, settings: &Settings) -> Self {
        let (leaked, denied) = (&outcome.leaked, outcome.denied());
        let verdict = verdict.or_else(|| of_status(&outcome.status)).or_else(|| {
            if !outcome.success() {
                None
            } else if settings.leak_fails() && !leaked.is_empty() {
                Some(Verdict::Leaked)
            } else if settings.reach_out_fails() && !denied.is_empty() {
                Some(Verdict::ReachedOut)
            } else {
                None
            }
        });
        let passed = outcome.success() && verdict.is_none();
        let mut lines: Vec<String> = outcome
            .warnings
            .iter()
            .map(|warning| format!("warning: {warning}"))
            .collect();
        lines.extend(verdict.as_ref().map(ToString::to_string));
        // Of what passed, nobody asked.
        if !passed {
            lines.extend(leaked.iter().map(|process| {
                format!("{} (process {}) was left behind", process.name, process.pid)
            }));
            lines.extend(
                denied
                    .iter()
                    .map(|denied| format!("it was not let out to {denied}")),
            );
            lines.extend(outcome.notes.iter().map(ToString::to_string));
        }
        let code = match (&outcome.status, &verdict) {
            // Whoever killed it for its timeout says so, and not by which signal.
            (_, Some(Verdict::TimedOut { limit })) => {
                exit::of_number(Status::TimedOut(*limit).shell_code())
            }
            (status, Some(_)) if status.success() => exit::CARGO_FAILED,
            (status, _) => exit::of_number(status.shell_code()),
        };
        Self {
            signal: match outcome.status {
                Status::Signaled(number) if verdict.is_none() => Some(number),
                _ => None,
            },
            verdict,
            lines,
            code,
            leaked: leaked.iter().map(|process| process.name.clone()).collect(),
            denied: denied.iter().map(attempt::denied).collect(),
        }
    }

    pub(super) fn tell(&self) {
        for line in &self.lines {
            tell!("orbit: {line}");
        }
    }
}

fn of_status(status: &Status) -> Option<Verdict> {
    match status {
        Status::TimedOut(limit) => Some(Verdict::TimedOut { limit: *limit }),
        Status::OomKilled {
            limit,
            peak,
            process,
        } => Some(Verdict::OutOfMemory {
            limit_bytes: limit.as_u64(),
            peak_bytes: peak.as_u64(),
            process: process.to_string(),
        }),
        _ => None,
    }
}
