//! What is to be done after a time, whatever else happens meanwhile: nothing tells of it.

use std::time::{Duration, Instant};

/// When it is to be done, if at all.
#[derive(Debug, Default)]
pub(super) struct Due(Option<Instant>);

impl Due {
    pub(super) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Sets it to `after` this moment. One that is set already stays.
    pub(super) fn set(&mut self, after: Duration) {
        self.0.get_or_insert_with(|| Instant::now() + after);
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// How long it is until then: nothing where it is overdue.
    pub(super) fn left(&self) -> Option<Duration> {
        Some(self.0?.saturating_duration_since(Instant::now()))
    }

    /// Whether it is to be done now.
    pub(super) fn has_come(&self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_however_often_it_is_set() {
        let mut due = Due::default();
        assert!(!due.is_set() && !due.has_come() && due.left().is_none());
        due.set(Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(2));
        due.set(Duration::from_secs(60));
        assert!(due.has_come());
        assert_eq!(due.left(), Some(Duration::ZERO));
        due.clear();
        due.set(Duration::from_secs(60));
        assert!(due.is_set() && !due.has_come());
    }
}
