//! One bar for each layer, where there is a terminal to draw it on.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use orbit::images::{PullPhase, PullProgress};

/// The bars of one pull. indicatif draws nothing where standard error is no terminal.
pub(crate) struct Bars {
    all: MultiProgress,
    by_layer: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    pub(crate) fn new() -> Self {
        Self {
            all: MultiProgress::new(),
            by_layer: Mutex::default(),
        }
    }

    /// Brings the bar of one layer up to date.
    pub(crate) fn show(&self, progress: &PullProgress) {
        let mut bars = self.by_layer.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(progress.layer.clone()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(progress.total_bytes));
            bar.set_prefix(progress.layer.clone());
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            bar
        });
        bar.set_message(match progress.phase {
            PullPhase::Waiting => "waiting for another process",
            PullPhase::Downloading => "downloading",
            PullPhase::Unpacking => "unpacking",
            _ => "done",
        });
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        if progress.phase == PullPhase::Done {
            bar.finish();
        }
    }

    /// Takes the bars off the screen.
    pub(crate) fn finish(self) {
        // A terminal that cannot be cleared has other problems.
        let _ = self.all.clear();
    }
}

const TEMPLATE: &str = "{prefix} {bar:30} {bytes:>10}/{total_bytes:10} {msg}";
