//! A program with doctests: one, or all those of a library that rustdoc could put into one program.
//!
//! Nothing says which it is. So a timeout, which is about one test, begins again with each verdict that the program prints.

use std::{
    io,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use orbit::{Error, Killer, Outcome, Output, SandboxBuilder, Status};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

use crate::test::{event::Verdict, libtest};

/// A line that is longer is no verdict.
const LINE_MOST_BYTES: usize = 64 << 10;

/// How it ended, and whether that was by its timeout.
pub(super) fn run(
    sandbox: SandboxBuilder,
    limit: Option<Duration>,
) -> Result<(Outcome, Option<Verdict>), Error> {
    let Some(limit) = limit else {
        return Ok((sandbox.run()?, None));
    };
    let Ok((reader, writer)) = pipe_with(PipeFlags::CLOEXEC) else {
        // Without one nobody can hear verdicts, and the limit is that of all of them.
        return Ok((sandbox.timeout(limit).run()?, None));
    };
    let mut sandbox = sandbox.stdout(Output::Fd(writer)).start()?;
    let killer = sandbox.killer()?;
    thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&reader, &killer, limit, &mut io::stdout()));
        let outcome = sandbox.wait();
        let timed_out = watch.join().unwrap_or(false);
        let outcome = outcome?;
        let is_killed = matches!(outcome.status, Status::Signaled(_));
        let verdict = (timed_out && is_killed).then_some(Verdict::TimedOut { limit });
        Ok((outcome, verdict))
    })
}

/// Passes on what the program prints, to its end, and kills it where no verdict comes for as long as `limit`: whether it did.
fn watch(reader: &OwnedFd, killer: &Killer, limit: Duration, out: &mut impl io::Write) -> bool {
    let mut buffer = vec![0; 64 << 10];
    let mut line = Vec::new();
    let mut last = Instant::now();
    let mut killed = false;
    loop {
        let left = limit.saturating_sub(last.elapsed());
        let left = Timespec::try_from(left).ok().filter(|_| !killed);
        match poll(&mut [PollFd::new(reader, PollFlags::IN)], left.as_ref()) {
            Ok(0) => {
                killer.kill();
                killed = true;
                continue;
            }
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return killed,
        }
        match rustix::io::read(reader, &mut buffer[..]) {
            Ok(0) => return killed,
            Ok(length) => {
                if has_verdict(&mut line, &buffer[..length]) {
                    last = Instant::now();
                }
                // Whoever does not want to hear it any more does not end the program by that.
                let _ = out.write_all(&buffer[..length]).and_then(|()| out.flush());
            }
            Err(Errno::INTR) => {}
            Err(_) => return killed,
        }
    }
}

/// Whether a verdict's line ends in `bytes`; `line` is what came of the line before.
fn has_verdict(line: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let mut found = false;
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        if line.len() + part.len() <= LINE_MOST_BYTES {
            line.extend_from_slice(part);
        }
        if part.ends_with(b"\n") {
            let text = str::from_utf8(line).unwrap_or_default();
            found |= libtest::verdict(text.trim_end_matches('\n')).is_some();
            line.clear();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_seen_wherever_they_are_cut() {
        let text = b"running 2 tests\ntest src/lib.rs - a (line 3) ... ok\nnoise\n";
        for at in 0..text.len() {
            let mut line = Vec::new();
            let (first, second) = text.split_at(at);
            let seen = [
                has_verdict(&mut line, first),
                has_verdict(&mut line, second),
            ];
            assert_eq!(seen.iter().filter(|seen| **seen).count(), 1, "{at}");
        }
        let mut line = vec![b'x'; LINE_MOST_BYTES];
        assert!(!has_verdict(&mut line, b"test a ... ok\ntest b"));
        assert!(has_verdict(&mut line, b" ... ok\n"));
    }
}
