//! From how a sandboxed test's process ended to what its own harness is to be told. Pure.

use super::record::{End, Record};
use crate::outcome::Status;

/// What becomes of the test outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The body returned, and with no error.
    Passed,
    /// The body panicked, with this message.
    Panicked(String),
    /// It ended in no way that a test ends; the message is Orbit's.
    Broken(String),
}

/// `should_panic`: whether the test is marked so. A body that returned then is for the harness outside to judge.
pub(super) fn verdict(record: &Record, status: Status, should_panic: bool) -> Verdict {
    let Status::Exited(code) = status else {
        return Verdict::Broken(ended(record, status));
    };
    if !record.entered {
        return Verdict::Broken(format!(
            "the test did not run in its sandbox: the test program, asked to run just `{}`, exited with code {code} \
             without reaching it. A test that runs in a thread of another name cannot be found by its name",
            record.test
        ));
    }
    match (record.end, &record.panic, &record.panic_after_end) {
        (Some(End::Panicking), Some(message), _) | (Some(End::Returned), _, Some(message)) => {
            Verdict::Panicked(message.clone())
        }
        (Some(End::Panicking), None, _) => Verdict::Panicked(
            "the test panicked in its sandbox; its message is not known, as the test has replaced the panic hook"
                .to_owned(),
        ),
        (Some(End::Returned), _, None) if code == 0 || should_panic => Verdict::Passed,
        // The harness inside has printed the error. This is what it says of the test then.
        (Some(End::Returned), _, None) => Verdict::Panicked(
            "the test returned a termination value that indicates a failure".to_owned(),
        ),
        // The body was left behind: what runs it, and gives it only so much time, has panicked.
        (None, Some(message), _) if code == LIBTEST_FAILED => Verdict::Panicked(message.clone()),
        (None, ..) => Verdict::Broken(format!(
            "the test did not return: its process exited with code {code}, as by `std::process::exit`"
        )),
    }
}

/// With what code a test program exits when a test has failed. Source: rust-lang/rust, library/test/src/lib.rs.
const LIBTEST_FAILED: i32 = 101;

/// An end that no code of the test has chosen.
fn ended(record: &Record, status: Status) -> String {
    let how = match status {
        Status::TimedOut(limit) => {
            format!("the test timed out: it and all that it started were killed after {limit:?}")
        }
        status => format!("the test's process in the sandbox was {status}"),
    };
    let before = match (&record.panic, record.entered) {
        (Some(message), _) => format!("; its last panic said: {message}"),
        (None, false) => "; the test had not begun yet".to_owned(),
        (None, true) => String::new(),
    };
    how + &before
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(end: Option<End>, panic: Option<&str>) -> Record {
        Record {
            test: "t".into(),
            entered: true,
            end,
            panic: panic.map(str::to_owned),
            ..Record::default()
        }
    }

    #[test]
    fn every_end_has_its_verdict() {
        use Verdict::{Broken, Panicked, Passed};
        let (returned, panicking) = (Some(End::Returned), Some(End::Panicking));
        let ok = Status::Exited(0);
        let failed = Status::Exited(101);
        let panicked = |message: &str| Panicked(message.to_owned());

        assert_eq!(verdict(&record(returned, None), ok, false), Passed);
        // A panic that was caught, or of another thread.
        assert_eq!(verdict(&record(returned, Some("x")), ok, false), Passed);
        assert_eq!(
            verdict(&record(panicking, Some("x")), failed, false),
            panicked("x")
        );
        // Inside, the harness was content.
        assert_eq!(
            verdict(&record(panicking, Some("x")), ok, true),
            panicked("x")
        );
        // Inside, it missed the panic; outside it will.
        assert_eq!(verdict(&record(returned, None), failed, true), Passed);
        assert!(matches!(
            verdict(&record(returned, None), failed, false),
            Panicked(_)
        ));
        assert!(matches!(
            verdict(&record(panicking, None), failed, false),
            Panicked(_)
        ));
        assert_eq!(
            verdict(&record(None, Some("late")), failed, false),
            panicked("late")
        );
        for code in [0, 1, 101] {
            let verdict = verdict(&record(None, None), Status::Exited(code), true);
            assert!(matches!(verdict, Broken(_)), "{verdict:?}");
        }
        assert!(matches!(verdict(&Record::default(), ok, false), Broken(_)));
    }

    #[test]
    fn an_end_by_force_says_which() {
        let broken = |record: &Record, status| match verdict(record, status, true) {
            Verdict::Broken(why) => why,
            other => panic!("{other:?}"),
        };
        let aborted = broken(&record(None, Some("boom")), Status::Signaled(6));
        assert_eq!(
            aborted,
            "the test's process in the sandbox was killed by SIGABRT; its last panic said: boom"
        );
        let late = broken(
            &record(None, None),
            Status::TimedOut(Duration::from_secs(2)),
        );
        assert_eq!(
            late,
            "the test timed out: it and all that it started were killed after 2s"
        );
    }
}
