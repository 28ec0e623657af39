//! The standard streams of a program: where they come from, where they go, and what is kept of them.

use std::{
    cell::OnceCell,
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{MemfdFlags, Mode, OFlags},
    pipe::PipeFlags,
};

use crate::{
    bounded::Kept,
    builder::{Output, Stdin},
    units::Bytes,
};

/// A descriptor for the program.
#[derive(Debug)]
pub(crate) enum Stream {
    Owned(OwnedFd),
    Nowhere(Rc<OwnedFd>),
    Input,
    Output,
    Error,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Owned(fd) => fd.as_fd(),
            Self::Nowhere(fd) => fd.as_fd(),
            // SAFETY-free: these borrow the process's own streams for as long as it lives.
            Self::Input => rustix::stdio::stdin(),
            Self::Output => rustix::stdio::stdout(),
            Self::Error => rustix::stdio::stderr(),
        }
    }
}

/// `/dev/null`, opened once for all streams of a program that want it.
#[derive(Debug, Default)]
pub(crate) struct Nowhere(OnceCell<Rc<OwnedFd>>);

impl Nowhere {
    fn stream(&self) -> io::Result<Stream> {
        if let Some(known) = self.0.get() {
            return Ok(Stream::Nowhere(Rc::clone(known)));
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let opened = rustix::fs::open("/dev/null", flags, Mode::empty())?;
        Ok(Stream::Nowhere(Rc::clone(
            self.0.get_or_init(|| Rc::new(opened)),
        )))
    }
}

/// What a program reads.
pub(crate) fn input(stdin: Stdin, nowhere: &Nowhere) -> io::Result<Stream> {
    Ok(match stdin {
        Stdin::Inherit => Stream::Input,
        Stdin::Fd(fd) => Stream::Owned(fd),
        Stdin::Null => nowhere.stream()?,
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
    nowhere: &Nowhere,
) -> io::Result<(Stream, Option<Capture>)> {
    Ok(match output {
        Output::Inherit => (inherited, None),
        Output::Fd(fd) => (Stream::Owned(fd), None),
        Output::Null => (nowhere.stream()?, None),
        Output::Capture => {
            let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            // Whoever the program runs as may open /dev/stdout anew, as servers do for their logs. It is reached
            // through the descriptors of a process that has it, and no others'.
            rustix::fs::fchmod(&writer, Mode::from_raw_mode(0o622))?;
            (Stream::Owned(writer), Some(Capture::new(reader, limit)?))
        }
    })
}

/// What is read of one stream.
#[derive(Debug)]
pub(crate) struct Capture {
    /// Reads without waiting. `None` after the end.
    reader: Option<File>,
    kept: Kept,
    /// All that was read to be kept, in bytes.
    total: u64,
}

/// How much is read before the caller looks at its other events: a program that writes faster than we read must not
/// keep it from them.
const TURN_BYTES: usize = 1 << 20;

/// What one read takes at most: what a pipe holds.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

impl Capture {
    pub(crate) fn new(reader: OwnedFd, limit: Bytes) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(Self {
            reader: Some(reader.into()),
            kept: Kept::new(limit),
            total: 0,
        })
    }

    /// How much was read so far, in bytes, whatever was kept of it.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// What to poll, until the end.
    pub(crate) fn reader(&self) -> Option<&File> {
        self.reader.as_ref()
    }

    /// Takes what there is now, or a good part of it. Whether that was all.
    pub(crate) fn drain(&mut self) -> bool {
        let mut buffer = vec![0; PIECE_BYTES];
        let mut taken = 0;
        while let Some(count) = self.read_some(&mut buffer) {
            self.kept.add(&buffer[..count]);
            self.total += count as u64;
            taken += count;
            if taken >= TURN_BYTES {
                return false;
            }
        }
        true
    }

    /// Reads some of what there is now, for somebody else to keep; `None` where there is nothing.
    pub(crate) fn read_some(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let reader = self.reader.as_mut()?;
        loop {
            match reader.read(buffer) {
                Ok(count @ 1..) => return Some(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The end of a pipe; of a terminal it is EIO.
                Ok(0) | Err(_) => {
                    self.reader = None;
                    return None;
                }
            }
        }
    }

    /// What can be read from now on, by who waits for it; `None` after the end.
    pub(crate) fn into_reader(self) -> Option<OwnedFd> {
        let reader = OwnedFd::from(self.reader?);
        // Else its new owner would meet EAGAIN.
        let _ = rustix::io::ioctl_fionbio(&reader, false);
        Some(reader)
    }

    /// What was kept, and how much was not.
    pub(crate) fn take(&mut self) -> (Vec<u8>, Option<Bytes>) {
        std::mem::replace(&mut self.kept, Kept::new(Bytes::new(0))).into_parts()
    }
}
