//! The part of a network that is in other processes: frames and names, to and from their brokers, by a socket each.
//!
//! Every process has a bridge of its own, in a namespace that only its own supervisor has privilege over; what it
//! shares with the others is a socket to each of them. So nobody owns the whole, and what a process had on the
//! network ends with it, whoever came first.

use std::{
    collections::VecDeque,
    io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use serde::{Deserialize, Serialize};

use super::watch::{Kind, Watch};

/// A member, as other processes know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// No other member of the process has it.
    pub(crate) key: u64,
    pub(crate) address: Ipv4Addr,
    /// In lower case.
    pub(crate) names: Vec<String>,
}

/// What brokers say to each other, beside frames.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    Joined(Known),
    Left(u64),
    /// All that were there have been told. Said once, first of all.
    Ready,
}

/// The first byte of a message: what follows.
const FRAME: u8 = 0;
const WORD: u8 = 1;

/// Larger than every message: a frame, or a word with the most names a sandbox may have.
pub(crate) const MESSAGE_BYTES: usize = 128 * 1024;

/// Words that wait for a peer which does not read; then it is given up.
const MOST_PENDING: usize = 100_000;

/// The broker of another process.
pub(super) struct Peer {
    pub(super) network: u64,
    socket: OwnedFd,
    pub(super) members: Vec<Known>,
    /// Words that did not fit yet. Frames that do not fit are lost.
    pending: VecDeque<Vec<u8>>,
}

/// What a message was.
pub(super) enum Heard<'a> {
    Frame(&'a [u8]),
    Word,
    Nothing,
    /// The other process is gone, or speaks nonsense.
    End,
}

impl Peer {
    pub(super) fn new(network: u64, socket: OwnedFd, members: Vec<Known>) -> Self {
        Self {
            network,
            socket,
            members,
            pending: VecDeque::new(),
        }
    }

    /// Reads one message.
    pub(super) fn hear<'a>(&mut self, buffer: &'a mut [u8]) -> Heard<'a> {
        let count = match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
            Err(_) => return Heard::End,
        };
        match buffer[..count.min(buffer.len())].split_first() {
            Some((&FRAME, frame)) => Heard::Frame(frame),
            Some((&WORD, word)) => match postcard::from_bytes(word) {
                Ok(Word::Joined(known)) => {
                    self.members.push(known);
                    Heard::Word
                }
                Ok(Word::Left(key)) => {
                    self.members.retain(|known| known.key != key);
                    Heard::Word
                }
                Ok(Word::Ready) => Heard::Word,
                Err(_) => Heard::End,
            },
            _ => Heard::End,
        }
    }

    pub(super) fn send_frame(&self, message: &[u8]) {
        // Lost where the other does not keep up.
        let _ = send(&self.socket, message);
    }

    /// Says a word, now or when there is room. Whether the peer is still worth talking to.
    pub(super) fn say(&mut self, watch: &Watch, id: u64, word: &Word) -> bool {
        let Ok(text) = postcard::to_stdvec(word) else {
            return false;
        };
        self.pending.push_back([&[WORD][..], &text].concat());
        self.flush(watch, id)
    }

    /// Says what there is room for.
    pub(super) fn flush(&mut self, watch: &Watch, id: u64) -> bool {
        while let Some(next) = self.pending.front() {
            match send(&self.socket, next) {
                Ok(()) => drop(self.pending.pop_front()),
                Err(Errno::AGAIN) => break,
                Err(_) => return false,
            }
        }
        let waits = if self.pending.is_empty() {
            EventFlags::IN
        } else {
            EventFlags::IN | EventFlags::OUT
        };
        watch.change(self.socket.as_fd(), Kind::Peer, id, waits);
        self.pending.len() < MOST_PENDING
    }
}

/// `frame` as a message.
pub(super) fn frame_message(frame: &[u8]) -> Vec<u8> {
    [&[FRAME][..], frame].concat()
}

fn send(socket: &OwnedFd, message: &[u8]) -> rustix::io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(socket, message, flags).map(drop)
}

/// What the broker at the other end of a fresh connection says of its members, which is the first that it says.
/// Waits as long as the socket was told to.
///
/// # Errors
/// What the kernel answers; EAGAIN where the broker said nothing for so long; an end, or an invalid message.
pub(crate) fn greeting(socket: BorrowedFd<'_>) -> io::Result<Vec<Known>> {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let mut members = Vec::new();
    loop {
        let (count, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())
        })?;
        let word = match buffer[..count].split_first() {
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some((&WORD, word)) => postcard::from_bytes(word).map_err(io::Error::other)?,
            Some(_) => return Err(io::Error::other("a message that is none")),
        };
        match word {
            Word::Joined(known) => members.push(known),
            Word::Left(key) => members.retain(|known| known.key != key),
            Word::Ready => return Ok(members),
        }
    }
}
