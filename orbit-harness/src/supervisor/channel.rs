//! Messages with descriptors, over a pair of `SOCK_SEQPACKET` sockets.
//!
//! A message is sent and received whole, so that the threads of a test process can share one end without a
//! lock. A message too long for a socket's buffer travels in a memfd.

use std::{
    cell::Cell,
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::MemfdFlags,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
};
use serde::{Serialize, de::DeserializeOwned};

/// What fits in every socket buffer a system may be configured with.
const INLINE_BYTES: usize = 60 * 1024;

/// The most descriptors one message may carry. The kernel's own limit (`SCM_MAX_FD`) is 253.
pub(crate) const MAX_FDS: usize = 64;

/// The first byte of a message: where the rest is, or that the rest says why there is no answer.
const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;
const REFUSED: u8 = 2;

thread_local! {
    /// Where messages are received, kept from one to the next: a fresh one would be set to zero each time, and in a
    /// supervisor that has just forked, each of its pages be copied for that.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, closed on exec.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends `message` with `fds`, in that order.
    ///
    /// # Errors
    /// EPIPE where the other end is closed.
    pub(crate) fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
        self.send_written(&bytes, fds)
    }

    /// As [`Self::send`], for a message that was written before.
    pub(super) fn send_written(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.len() <= INLINE_BYTES {
            return self.send_bytes(&[&[INLINE], bytes], fds);
        }
        let mut file = File::from(rustix::fs::memfd_create(
            "orbit-message",
            MemfdFlags::CLOEXEC,
        )?);
        file.write_all(bytes)?;
        file.rewind()?;
        let mut with_file = vec![file.as_fd()];
        with_file.extend_from_slice(fds);
        self.send_bytes(&[&[IN_MEMFD]], &with_file)
    }

    fn send_bytes(&self, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if fds.len() > MAX_FDS {
            return Err(io::Error::other(format!(
                "{} descriptors in a message of at most {MAX_FDS}",
                fds.len()
            )));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("a message's descriptors do not fit"));
        }
        let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }

    /// Waits for a message. `None`: the other end is closed.
    ///
    /// # Errors
    /// What the kernel answers; EMFILE where not all descriptors had room; why the other end could not take what it was
    /// asked; an invalid message.
    pub(crate) fn recv<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.recv_or(|_| {})
    }

    /// As [`Self::recv`], for messages whose first descriptor is the channel on which an answer is waited for: where there is
    /// no room for all of the others, that is the answer.
    pub(super) fn recv_request<T: DeserializeOwned>(
        &self,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.recv_or(|fds| {
            if let Some(reply) = fds.into_iter().next() {
                let lack = libc::EMFILE.to_le_bytes();
                // Who asked may be gone.
                let _ = Self(reply).send_bytes(&[&[REFUSED], &lack], &[]);
            }
        })
    }

    fn recv_or<T: DeserializeOwned>(
        &self,
        refuse: impl FnOnce(Vec<OwnedFd>),
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        // A sandbox may be dropped by a thread that ends, and has no such values any more.
        let mut buffer = BUFFER.try_with(Cell::take).unwrap_or_default();
        let received = self.recv_into(&mut buffer, refuse);
        let _ = BUFFER.try_with(|kept| kept.set(buffer));
        received
    }

    fn recv_into<T: DeserializeOwned>(
        &self,
        buffer: &mut Vec<u8>,
        refuse: impl FnOnce(Vec<OwnedFd>),
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        if buffer.is_empty() {
            // Zeros from the system, which are no memory until something is written over them; most messages are short.
            *buffer = vec![0; INLINE_BYTES + 1];
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut receive = || {
            rustix::io::retry_on_intr(|| {
                rustix::net::recvmsg(
                    &self.0,
                    &mut [IoSliceMut::new(buffer)],
                    &mut control,
                    RecvFlags::CMSG_CLOEXEC,
                )
            })
        };
        let received = match receive() {
            // The other end closed with messages of ours unread. The kernel says so once, and before it hands
            // over what the other end had sent until then.
            Err(rustix::io::Errno::CONNRESET) => receive()?,
            other => other?,
        };
        let mut fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            // Whose message is in a memfd sent that first.
            let is_long = buffer.first() == Some(&IN_MEMFD);
            refuse(fds.split_off(usize::from(is_long).min(fds.len())));
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let bytes = match buffer[..received.bytes].split_first() {
            None => return Ok(None),
            Some((&INLINE, bytes)) => bytes,
            Some((&REFUSED, bytes)) => {
                let errno = bytes.try_into().map_or(libc::EIO, i32::from_le_bytes);
                return Err(io::Error::from_raw_os_error(errno));
            }
            Some((_, _)) if fds.is_empty() => {
                return Err(io::Error::other("a message without its memfd"));
            }
            Some((_, _)) => {
                let mut long = Vec::new();
                File::from(fds.remove(0)).read_to_end(&mut long)?;
                let message = postcard::from_bytes(&long).map_err(io::Error::other)?;
                return Ok(Some((message, fds)));
            }
        };
        Ok(Some((
            postcard::from_bytes(bytes).map_err(io::Error::other)?,
            fds,
        )))
    }

    /// Whether the other end is open.
    pub(crate) fn is_open(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut polled = [PollFd::new(&self.0, PollFlags::RDHUP)];
        poll(&mut polled, Some(&now)).is_ok_and(|ready| ready == 0)
    }

    /// Closes this end for sending: the other end reads an end of file, this one can still receive.
    pub(crate) fn shutdown_send(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(
            &self.0,
            rustix::net::Shutdown::Write,
        )?)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (one, other) = Channel::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        for length in [0, 1, INLINE_BYTES - 16, INLINE_BYTES, 3 << 20] {
            let text = "x".repeat(length);
            one.send(&text, &[null.as_fd(), one.as_fd()]).unwrap();
            let (received, fds) = other.recv::<String>().unwrap().unwrap();
            assert!(received == text, "{length} bytes");
            assert_eq!(fds.len(), 2, "{length} bytes");
        }
    }

    #[test]
    fn a_refusal_is_the_error_of_who_asked() {
        let (one, other) = Channel::pair().unwrap();
        one.send_bytes(&[&[REFUSED], &libc::EMFILE.to_le_bytes()], &[])
            .unwrap();
        let error = other.recv::<u8>().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        one.send_bytes(&[&[REFUSED]], &[]).unwrap();
        assert!(other.recv::<u8>().is_err());
    }

    #[test]
    fn what_was_sent_before_a_reset_is_received() {
        let (one, other) = Channel::pair().unwrap();
        other.send(&7u8, &[]).unwrap();
        one.send(&"never read", &[]).unwrap();
        drop(other);
        assert_eq!(one.recv::<u8>().unwrap().map(|(n, _)| n), Some(7));
        assert!(one.recv::<u8>().unwrap().is_none());
    }

    #[test]
    fn a_closed_end_is_an_end_of_file() {
        let (one, other) = Channel::pair().unwrap();
        one.send(&7u8, &[]).unwrap();
        drop(one);
        assert_eq!(other.recv::<u8>().unwrap().map(|(n, _)| n), Some(7));
        assert!(other.recv::<u8>().unwrap().is_none());
        assert_eq!(
            other.send(&7u8, &[]).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
