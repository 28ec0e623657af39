//! One direction of a forwarded connection: bytes go from socket to pipe to socket and are never copied out of
//! the kernel.
//!
//! A pipe is borrowed only while bytes are in it, so that thousands of idle connections hold two descriptors
//! each. What the reader does not take stays in the pipe, then in the sender's socket, then with the sender:
//! that is all the backpressure there is.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::Shutdown,
    pipe::{PipeFlags, SpliceFlags},
};

/// What a pipe holds, as far as this user may have it.
const PIPE_BYTES: usize = 256 * 1024;

/// How often one connection may move bytes before the others have their turn.
const ROUNDS: usize = 16;

/// How many empty pipes are kept for the next that needs one.
const SPARE_PIPES: usize = 64;

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// Pipes that are empty.
#[derive(Default)]
pub(super) struct Pipes(Vec<Pipe>);

impl Pipes {
    fn take(&mut self) -> rustix::io::Result<Pipe> {
        if let Some(pipe) = self.0.pop() {
            return Ok(pipe);
        }
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused where this user has many pipes already: the usual 64 KiB do as well, in more rounds.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Pipe { read, write })
    }

    fn give_back(&mut self, pipe: Pipe) {
        if self.0.len() < SPARE_PIPES {
            self.0.push(pipe);
        }
    }
}

/// One direction of a connection.
#[derive(Default)]
pub(super) struct Flow {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    pending: usize,
    /// The sender has sent its last.
    ended: bool,
    /// The receiver knows.
    told: bool,
}

/// Whether there may be more to move at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    /// Another turn, after the others'.
    Soon,
    /// When a socket says so.
    WhenReady,
}

impl Flow {
    /// Whether the receiver has all that there was.
    pub(super) fn is_over(&self) -> bool {
        self.told
    }

    /// Moves what can be moved without waiting.
    ///
    /// # Errors
    /// What either socket answers: the connection is broken then.
    pub(super) fn pump(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        pipes: &mut Pipes,
    ) -> rustix::io::Result<More> {
        for _ in 0..ROUNDS {
            if !self.round(from, to, pipes)? {
                return Ok(More::WhenReady);
            }
        }
        Ok(More::Soon)
    }

    /// Whether anything moved.
    fn round(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        pipes: &mut Pipes,
    ) -> rustix::io::Result<bool> {
        if self.told {
            return Ok(false);
        }
        let pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => pipes.take()?,
        };
        let pipe = self.pipe.insert(pipe);
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let mut moved = false;
        if !self.ended {
            match rustix::pipe::splice(from, None, &pipe.write, None, PIPE_BYTES, flags) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.pending += count;
                    moved = true;
                }
                Err(Errno::INTR) => moved = true,
                // Nothing to read, or no room in the pipe.
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        if self.pending > 0 {
            match rustix::pipe::splice(&pipe.read, None, to, None, self.pending, flags) {
                Ok(count) => {
                    self.pending -= count;
                    moved |= count > 0;
                }
                Err(Errno::INTR) => moved = true,
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        if self.pending == 0 {
            if let Some(pipe) = self.pipe.take() {
                pipes.give_back(pipe);
            }
            if self.ended {
                self.told = true;
                match rustix::net::shutdown(to, Shutdown::Write) {
                    // It is gone altogether, which the other direction will hear.
                    Ok(()) | Err(Errno::NOTCONN) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(moved)
    }
}
