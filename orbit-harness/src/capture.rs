//! The standard streams of a program: where they come from, where they go, and what is kept of them.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{MemfdFlags, OFlags},
    pipe::PipeFlags,
};

use crate::{
    builder::{Output, Stdin},
    units::Bytes,
};

/// A descriptor for the program.
#[derive(Debug)]
pub(crate) enum Stream {
    Owned(OwnedFd),
    Input,
    Output,
    Error,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Owned(fd) => fd.as_fd(),
            // SAFETY-free: these borrow the process's own streams for as long as it lives.
            Self::Input => rustix::stdio::stdin(),
            Self::Output => rustix::stdio::stdout(),
            Self::Error => rustix::stdio::stderr(),
        }
    }
}

/// What a program reads.
pub(crate) fn input(stdin: Stdin) -> io::Result<Stream> {
    Ok(match stdin {
        Stdin::Inherit => Stream::Input,
        Stdin::Fd(fd) => Stream::Owned(fd),
        Stdin::Null => Stream::Owned(null(OFlags::RDONLY)?),
        Stdin::Bytes(bytes) => {
            // A file in memory: nobody has to feed a pipe, and a program that does not read it harms nobody.
            let mut file = File::from(rustix::fs::memfd_create(
                "orbit-stdin",
                MemfdFlags::CLOEXEC,
            )?);
            file.write_all(&bytes)?;
            file.rewind()?;
            Stream::Owned(file.into())
        }
    })
}

/// Where a program writes, and what reads it where it is captured. `inherited` is this process's own stream.
/// Of what is captured, `limit` is kept.
pub(crate) fn output(
    output: Output,
    inherited: Stream,
    limit: Bytes,
) -> io::Result<(Stream, Option<Capture>)> {
    Ok(match output {
        Output::Inherit => (inherited, None),
        Output::Fd(fd) => (Stream::Owned(fd), None),
        Output::Null => (Stream::Owned(null(OFlags::WRONLY)?), None),
        Output::Capture => {
            let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            (Stream::Owned(writer), Some(Capture::new(reader, limit)?))
        }
    })
}

fn null(flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/null",
        flags | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?)
}

/// How much of each stream is kept where nothing else was asked for.
pub(crate) const DEFAULT_LIMIT: Bytes = Bytes::mib(16);

/// What is read of one stream.
#[derive(Debug)]
pub(crate) struct Capture {
    /// Reads without waiting. `None` after the end.
    reader: Option<File>,
    kept: Kept,
}

/// How much is read before the caller looks at its other events: a program that writes faster than we read must not
/// keep it from them.
const TURN_BYTES: usize = 1 << 20;

impl Capture {
    pub(crate) fn new(reader: OwnedFd, limit: Bytes) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(Self {
            reader: Some(reader.into()),
            kept: Kept::new(limit),
        })
    }

    /// What to poll, until the end.
    pub(crate) fn reader(&self) -> Option<&File> {
        self.reader.as_ref()
    }

    /// Takes what there is now, or a good part of it. Whether that was all.
    pub(crate) fn drain(&mut self) -> bool {
        let mut buffer = vec![0; 64 << 10];
        let mut taken = 0;
        while let Some(reader) = &mut self.reader {
            match reader.read(&mut buffer) {
                Ok(count @ 1..) => {
                    self.kept.add(&buffer[..count]);
                    taken += count;
                    if taken >= TURN_BYTES {
                        return false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The end of a pipe; of a terminal it is EIO.
                Ok(0) | Err(_) => self.reader = None,
            }
        }
        true
    }

    /// What was kept, and how much was not.
    pub(crate) fn take(&mut self) -> (Vec<u8>, Option<Bytes>) {
        std::mem::replace(&mut self.kept, Kept::new(Bytes::new(0))).into_parts()
    }
}

/// The beginning and the end of what a program wrote: a program that prints without end must not take the test's
/// memory, and what matters is what came first and what came last.
#[derive(Debug)]
struct Kept {
    head: Vec<u8>,
    head_max: usize,
    tail: VecDeque<u8>,
    tail_max: usize,
    left_out: u64,
}

impl Kept {
    fn new(limit: Bytes) -> Self {
        let limit = usize::try_from(limit.as_u64()).unwrap_or(usize::MAX);
        Self {
            head: Vec::new(),
            head_max: limit / 2,
            tail: VecDeque::new(),
            tail_max: limit - limit / 2,
            left_out: 0,
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = self.head_max - self.head.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        let (skipped, rest) = rest.split_at(rest.len().saturating_sub(self.tail_max));
        let excess = (self.tail.len() + rest.len()).saturating_sub(self.tail_max);
        self.tail.drain(..excess);
        self.tail.extend(rest);
        self.left_out += (skipped.len() + excess) as u64;
    }

    /// The bytes, with a line in place of those that are missing.
    fn into_parts(self) -> (Vec<u8>, Option<Bytes>) {
        let Self {
            mut head,
            tail,
            left_out,
            ..
        } = self;
        let left_out = (left_out > 0).then(|| Bytes::new(left_out));
        if let Some(count) = left_out {
            let bytes = count.as_u64();
            let line = format!("\n[orbit: {bytes} bytes left out; `capture_limit` keeps more]\n");
            head.extend_from_slice(line.as_bytes());
        }
        head.extend(tail);
        (head, left_out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(limit: u64, parts: &[&[u8]]) -> (String, Option<u64>) {
        let mut kept = Kept::new(Bytes::new(limit));
        for part in parts {
            kept.add(part);
        }
        let (bytes, left_out) = kept.into_parts();
        (
            String::from_utf8(bytes).unwrap(),
            left_out.map(Bytes::as_u64),
        )
    }

    #[test]
    fn what_fits_is_kept_as_it_came() {
        assert_eq!(kept(7, &[b"ab", b"", b"cdefg"]), ("abcdefg".into(), None));
        assert_eq!(kept(0, &[]), (String::new(), None));
    }

    #[test]
    fn of_what_does_not_fit_the_middle_is_left_out_and_said() {
        let line =
            |count| format!("\n[orbit: {count} bytes left out; `capture_limit` keeps more]\n");
        assert_eq!(
            kept(4, &[b"abcdefgh", b"ij"]),
            (format!("ab{}ij", line(6)), Some(6))
        );
        assert_eq!(kept(0, &[b"abc"]), (line(3), Some(3)));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_but_what_is_said(limit in 0u32..40, parts: Vec<Vec<u8>>) {
            let limit = u64::from(limit);
            let mut kept = Kept::new(Bytes::new(limit));
            for part in &parts {
                kept.add(part);
            }
            let all = parts.concat();
            let (head, tail) = (kept.head.clone(), Vec::from(kept.tail.clone()));
            let count = (head.len() + tail.len()) as u64;
            prop_assert!(count <= limit);
            prop_assert_eq!(count + kept.left_out, all.len() as u64);
            prop_assert!(all.starts_with(&head) && all.ends_with(&tail));
            prop_assert!(kept.left_out == 0 || count == limit);
        }
    }
}
