//! One bar for each layer, where there is a terminal to draw it on.

use std::sync::{Mutex, PoisonError};

use orbit::images::{PullPhase, PullProgress};

use crate::screen::Screen;

/// How wide a bar is.
const COLUMNS: u64 = 30;

/// The bars of one pull, whose layers are brought by several threads.
pub(crate) struct Bars {
    shown: Mutex<Shown>,
}

/// Where they are drawn, and what.
struct Shown {
    screen: Screen,
    /// In the order in which they were first told of.
    bars: Vec<Bar>,
}

/// How far one layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bar {
    layer: String,
    phase: PullPhase,
    done_bytes: u64,
    total_bytes: u64,
}

impl Bars {
    pub(crate) fn new() -> Self {
        let (screen, bars) = (Screen::stderr(), Vec::new());
        Self {
            shown: Mutex::new(Shown { screen, bars }),
        }
    }

    /// Brings the bar of one layer up to date.
    pub(crate) fn show(&self, progress: &PullProgress) {
        let bar = Bar {
            layer: progress.layer.clone(),
            phase: progress.phase,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
        };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let Shown { screen, bars } = &mut *shown;
        let lines = |bars: &[Bar]| bars.iter().map(Bar::line).collect();
        if update(bars, bar) {
            screen.show_now(|| lines(bars));
        } else {
            screen.show(|| lines(bars));
        }
    }

    /// Takes the bars off the screen.
    pub(crate) fn finish(self) {
        // As it is where a pull fails.
        drop(self);
    }
}

/// Puts `bar` where the layer's was, or at the end. Whether its phase is another: a long one may tell nothing more.
fn update(bars: &mut Vec<Bar>, bar: Bar) -> bool {
    let Some(before) = bars.iter_mut().find(|before| before.layer == bar.layer) else {
        bars.push(bar);
        return true;
    };
    let other = before.phase != bar.phase;
    *before = bar;
    other
}

impl Bar {
    fn line(&self) -> String {
        let phase = match self.phase {
            PullPhase::Waiting => "waiting for another process",
            PullPhase::Downloading => "downloading",
            PullPhase::Unpacking => "unpacking",
            _ => "done",
        };
        let done_bytes = match self.phase {
            // Of a layer that was there nothing is brought.
            PullPhase::Done => self.total_bytes,
            _ => self.done_bytes,
        };
        format!(
            "{} {} {:>10}/{:10} {phase}",
            self.layer,
            filled(done_bytes, self.total_bytes),
            size(done_bytes),
            size(self.total_bytes)
        )
    }
}

/// A bar; a full one where there is nothing to do.
fn filled(done: u64, total: u64) -> String {
    let columns = u128::from(COLUMNS) * u128::from(done.min(total));
    let columns = columns.checked_div(total.into());
    (0..COLUMNS)
        .map(|column| match columns {
            Some(columns) if u128::from(column) >= columns => '░',
            _ => '█',
        })
        .collect()
}

/// As `1.50 MiB`: rounded down, so that nothing is done before it is. In integers, as powers of floating-point numbers
/// are libm's.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = bytes.checked_ilog2().unwrap_or(0) / 10;
    let Some(unit) = (power as usize).checked_sub(1).and_then(|at| UNITS.get(at)) else {
        return format!("{bytes} B");
    };
    let hundredths = (u128::from(bytes) * 100) >> (10 * power);
    format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(layer: &str, phase: PullPhase, done_bytes: u64, total_bytes: u64) -> Bar {
        Bar {
            layer: layer.to_owned(),
            phase,
            done_bytes,
            total_bytes,
        }
    }

    #[test]
    fn a_bar_for_each_layer_in_the_order_of_their_starts() {
        let mut bars = Vec::new();
        let mib = 1 << 20;
        assert!(update(
            &mut bars,
            bar("b0c5f8d1a2e3", PullPhase::Downloading, 0, 3 * mib)
        ));
        assert!(update(
            &mut bars,
            bar("0a1b2c3d4e5f", PullPhase::Waiting, 0, 0)
        ));
        assert!(!update(
            &mut bars,
            bar("b0c5f8d1a2e3", PullPhase::Downloading, 3 * mib / 2, 3 * mib)
        ));
        assert!(update(
            &mut bars,
            bar("f00df00df00d", PullPhase::Done, 0, 123)
        ));
        assert!(update(
            &mut bars,
            bar(
                "cafecafecafe",
                PullPhase::Unpacking,
                400 * mib,
                1234 * mib + 5
            )
        ));
        let lines: Vec<_> = bars.iter().map(Bar::line).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_bar_is_full_when_all_is_done_and_not_before() {
        let full = |done, total| filled(done, total).chars().filter(|&c| c == '█').count();
        for (done, total, columns) in [
            (0, 100, 0),
            (1, 100, 0),
            (50, 100, 15),
            (99, 100, 29),
            (100, 100, 30),
            (101, 100, 30),
            (0, 0, 30),
            (u64::MAX - 1, u64::MAX, 29),
            (u64::MAX, u64::MAX, 30),
        ] {
            assert_eq!(full(done, total), columns, "{done} of {total}");
            assert_eq!(filled(done, total).chars().count(), 30);
        }
    }

    #[test]
    fn sizes_have_the_unit_of_which_there_is_one_at_least() {
        for (bytes, said) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            ((1 << 20) - 1, "1023.99 KiB"),
            (1 << 20, "1.00 MiB"),
            (5 << 30, "5.00 GiB"),
            (u64::MAX, "15.99 EiB"),
        ] {
            assert_eq!(size(bytes), said);
        }
    }
}
