//! What is shown of a sandbox where something failed: the end of its log, and how its program ended.

use std::time::Instant;

use super::Sandbox;

impl Sandbox {
    /// What people call it.
    pub(super) fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("`{name}` ({})", self.id),
            None => format!("{} ({})", self.id, self.origin.spec.image),
        }
    }

    /// Whether its program has ended by itself, badly, and nobody waited for it. A test that fails by an error looks,
    /// to who is dropped in it, like one that passes; a service that is gone tells them apart.
    pub(super) fn fails_unseen(&mut self) -> bool {
        if self.outcome.is_some() || !self.collect(Some(Instant::now())).unwrap_or(false) {
            return false;
        }
        self.exit.is_some() && self.wait().is_ok_and(|outcome| !outcome.success())
    }

    /// How its program ended, where somebody waited for it.
    pub(super) fn told_end(&self) -> String {
        let Some(outcome) = &self.outcome else {
            return String::new();
        };
        let notes = outcome.notes.iter().map(|note| format!("; {note}"));
        format!(
            ", whose program {}{}",
            outcome.status,
            notes.collect::<String>()
        )
    }

    /// Whether its end was seen, by whoever started it or waited for it.
    pub(crate) fn is_known_to_be_over(&self) -> bool {
        self.exit.is_some() || self.gone.is_some()
    }

    /// Where its program has ended: how, and the last that it wrote.
    pub(crate) fn end_by_itself(&mut self) -> Option<String> {
        // A supervisor that is gone has said what there is to say to whoever failed.
        let has_ended = self.collect(Some(Instant::now())).unwrap_or(false);
        let status = self.exit.as_ref().filter(|_| has_ended)?.status;
        let tail = self
            .reader
            .as_ref()
            .map(|reader| reader.log().tail(SHOWN_LINES));
        Some(match tail.filter(|tail| !tail.is_empty()) {
            Some(tail) => format!(
                "its program {status}. The last it wrote:\n{}",
                tail.trim_end()
            ),
            None => format!("its program {status}. It wrote nothing that was captured"),
        })
    }

    /// Writes the end of the log to standard error: through the macro that a test's runner captures.
    pub(crate) fn show_log(&self) {
        if let Some(reader) = &self.reader {
            let tail = reader.log().tail(SHOWN_LINES);
            let title = format!("{}{}", self.title(), self.told_end());
            if tail.is_empty() {
                eprintln!("--- the sandbox {title}: it wrote nothing that was captured");
            } else {
                eprintln!("--- the end of the log of the sandbox {title}:\n{tail}---");
            }
        }
    }
}

/// How the program of `sandbox` ended, and the last that it wrote, where it has ended.
pub fn end_by_itself(sandbox: &mut Sandbox) -> Option<String> {
    sandbox.end_by_itself()
}

/// Whether each log is to be shown, for tests that fail by an error: `ORBIT_LOGS=always`.
pub(super) fn shows_all_logs() -> bool {
    std::env::var_os("ORBIT_LOGS").is_some_and(|value| value == "always")
}

/// How much of a log is shown where something failed.
pub(super) const SHOWN_LINES: usize = 40;
