//! The progress line of a terminal: how far the run is, and what is running for how long.

use std::{collections::HashMap, fmt::Write as _, io, time::Duration};

use crate::{
    report::{
        colour::{BAD, Brush, DIM, GOOD},
        text,
    },
    screen::Screen,
    test::event::{Class, Event, TestId},
};

/// More running tests than this are counted.
const SHOWN_MOST: usize = 4;

/// The line.
pub(super) struct Progress {
    screen: Screen,
    /// Whether the run is: it is not shown again.
    over: bool,
    state: State,
}

/// What it says.
#[derive(Debug)]
struct State {
    brush: Brush,
    now: Duration,
    /// How many are to run, as far as is known.
    total: usize,
    /// Whether no more are to come.
    built: bool,
    done: usize,
    failed: usize,
    running: HashMap<TestId, Duration>,
}

impl Progress {
    pub(super) fn new(screen: Screen, brush: Brush) -> Self {
        Self {
            screen,
            over: false,
            state: State {
                brush,
                now: Duration::ZERO,
                total: 0,
                built: false,
                done: 0,
                failed: 0,
                running: HashMap::new(),
            },
        }
    }

    pub(super) fn on(&mut self, event: &Event) {
        self.state.on(event);
        if matches!(event, Event::RunFinished(_)) {
            self.over = true;
            self.screen.clear();
        }
    }

    pub(super) fn tick(&mut self, now: Duration) {
        let Self { screen, state, .. } = self;
        state.now = now;
        if !self.over {
            screen.show(|| vec![state.line()]);
        }
    }

    /// Does `write` with the line off the screen.
    pub(super) fn aside(&mut self, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let Self {
            screen,
            over,
            state,
        } = self;
        screen.aside(write, || {
            if *over {
                Vec::new()
            } else {
                vec![state.line()]
            }
        })
    }
}

impl State {
    fn on(&mut self, event: &Event) {
        match event {
            Event::BinaryListed(binary) => self.total += binary.selected,
            Event::BuildFinished { tests, .. } => {
                self.total = *tests;
                self.built = true;
            }
            Event::TestStarted { id, at, .. } => {
                self.running.insert(id.clone(), *at);
            }
            Event::TestCorrected(_) => self.failed += 1,
            Event::TestRetried { id, .. } | Event::TestEnded { id, .. } => {
                self.running.remove(id);
            }
            Event::TestFinished(result) => {
                self.running.remove(&result.id);
                match result.class() {
                    Class::Failed => {
                        self.failed += 1;
                        self.done += 1;
                    }
                    Class::Passed | Class::Flaky => self.done += 1,
                    Class::Ignored | Class::NotReached => {}
                }
            }
            _ => {}
        }
    }

    fn line(&self) -> String {
        let word = if self.built { "Running" } else { "Building" };
        let mut line = self.brush.paint(GOOD, &format!("{word:>8}"));
        let more = if self.built { "" } else { "+" };
        let time = format!("[ {:>6.1}s ]", self.now.as_secs_f64());
        let _ = write!(
            line,
            " {} {}/{}{more}",
            self.brush.paint(DIM, &time),
            self.done,
            self.total
        );
        if self.failed > 0 {
            let failed = format!("{} failed", self.failed);
            let _ = write!(line, ", {}", self.brush.paint(BAD, &failed));
        }
        // Those that run for longest are whom one waits for.
        let mut running: Vec<_> = self.running.iter().collect();
        running.sort_by_key(|&(id, since)| (*since, id));
        for (number, (id, since)) in running.iter().take(SHOWN_MOST).enumerate() {
            let before = if number == 0 { ": " } else { ", " };
            let time = self.now.saturating_sub(**since).as_secs_f64();
            let id = id.to_string();
            let _ = write!(line, "{before}{} {time:.1}s", text::name(&id));
        }
        if running.len() > SHOWN_MOST {
            let _ = write!(line, ", and {} more", running.len() - SHOWN_MOST);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_line_says_what_is_running_for_how_long() {
        let mut progress = Progress::new(Screen::hidden(), Brush { colours: false });
        let mut lines = Vec::new();
        for event in sample::run() {
            progress.on(&event);
            if let Event::TestStarted { at, .. } = event {
                progress.tick(at + Duration::from_millis(1250));
                lines.push(progress.state.line());
            }
        }
        insta::assert_snapshot!(lines.join("\n"));
        assert!(progress.state.running.is_empty());
        assert!(progress.over);
    }
}
