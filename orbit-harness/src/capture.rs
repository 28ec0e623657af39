//! The standard streams of a program: where they come from, where they go, and what is kept of them.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{MemfdFlags, OFlags},
    pipe::PipeFlags,
};

use crate::builder::{Output, Stdin};

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
pub(crate) fn output(output: Output, inherited: Stream) -> io::Result<(Stream, Option<Capture>)> {
    Ok(match output {
        Output::Inherit => (inherited, None),
        Output::Fd(fd) => (Stream::Owned(fd), None),
        Output::Null => (Stream::Owned(null(OFlags::WRONLY)?), None),
        Output::Capture => {
            let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            (Stream::Owned(writer), Some(Capture::new(reader)?))
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

/// What is read of one stream.
#[derive(Debug)]
pub(crate) struct Capture {
    /// Reads without waiting. `None` after the end.
    reader: Option<File>,
    bytes: Vec<u8>,
}

impl Capture {
    pub(crate) fn new(reader: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(Self {
            reader: Some(reader.into()),
            bytes: Vec::new(),
        })
    }

    /// What to poll, until the end.
    pub(crate) fn reader(&self) -> Option<&File> {
        self.reader.as_ref()
    }

    /// Takes what there is now.
    pub(crate) fn drain(&mut self) {
        let Some(reader) = &mut self.reader else {
            return;
        };
        match reader.read_to_end(&mut self.bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The end of a pipe; of a terminal it is EIO.
            Ok(_) | Err(_) => self.reader = None,
        }
    }

    /// Takes some of what there is now; whether there was any.
    pub(crate) fn read_some(&mut self) -> bool {
        const PIECE_BYTES: usize = 64 * 1024;

        let Some(reader) = &mut self.reader else {
            return false;
        };
        let from = self.bytes.len();
        self.bytes.resize(from + PIECE_BYTES, 0);
        let read =
            rustix::io::retry_on_intr(|| rustix::io::read(&*reader, &mut self.bytes[from..]));
        self.bytes.truncate(from + read.unwrap_or(0));
        match read {
            Ok(1..) => true,
            Err(rustix::io::Errno::AGAIN) => false,
            // The end of a pipe; of a terminal it is EIO.
            Ok(0) | Err(_) => {
                self.reader = None;
                false
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

    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}
