//! What a runner asks of the keeper, and what it is told: lines of JSON over a stream socket.
//!
//! Both ends are the same build of the same program: another has [another key](super::place::Key). So no version is told.

use std::{
    io::{self, BufRead, BufReader, Read as _, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::place::Key;
use crate::services::Place;

/// A line may not be longer, its end included.
const MESSAGE_MOST_BYTES: u64 = 1 << 20;
/// How much of an explanation is told, which may hold the end of a log.
const WHY_MOST_BYTES: usize = 64 << 10;

/// What a keeper says of itself to who started it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Greeting {
    /// It takes connections.
    Ready(Key),
    /// Another does, or is about to.
    Another,
    Failed(String),
}

/// What a runner asks for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// That the services of these names are ready.
    Need(Vec<String>),
    /// Which of those that it needs have ended.
    Ended,
}

/// What it is told.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Ready(Vec<Place>),
    Failed(String),
    Ended(Vec<String>),
}

/// Writes `message` as one line.
pub(super) fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// The next message; `None` where the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(MESSAGE_MOST_BYTES).read_until(b'\n', &mut line)?;
    match line.split_last() {
        None => Ok(None),
        Some((b'\n', line)) => Ok(Some(serde_json::from_slice(line)?)),
        Some(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message is cut off, or too long",
        )),
    }
}

/// Both directions of a connection.
#[derive(Debug)]
pub(super) struct Connection(BufReader<UnixStream>);

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    pub(super) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        send(self.0.get_ref(), message)
    }

    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        receive(&mut self.0)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// The end of `why`, where it is longer than may be told: an explanation that ends with a log says the most there.
pub(super) fn clipped(why: String) -> String {
    let Some(mut from) = why.len().checked_sub(WHY_MOST_BYTES) else {
        return why;
    };
    while !why.is_char_boundary(from) {
        from += 1;
    }
    format!("[orbit: {from} bytes are left out here]{}", &why[from..])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_sent_is_received_and_bounded() {
        let place = Place {
            name: "db".to_owned(),
            address: Some("10.88.0.2".parse().unwrap()),
            on_host: BTreeMap::from([(80, "127.0.0.1:4000".parse().unwrap())]),
        };
        let (one, other) = UnixStream::pair().unwrap();
        let (one, mut other) = (Connection::new(one), Connection::new(other));
        for answer in [
            Answer::Ready(vec![place]),
            Answer::Failed("two\nlines".to_owned()),
        ] {
            one.send(&answer).unwrap();
            assert_eq!(other.receive::<Answer>().unwrap(), Some(answer));
        }
        drop(one);
        assert_eq!(other.receive::<Answer>().unwrap(), None);

        let long = vec![b'x'; 2 << 20];
        assert!(receive::<String>(&mut &long[..]).is_err());
        assert!(receive::<String>(&mut &b"\"cut"[..]).is_err());
        assert!(receive::<Request>(&mut &b"{\"Other\":1}\n"[..]).is_err());
    }

    #[test]
    fn of_a_long_explanation_the_end_is_told() {
        assert_eq!(clipped("short".to_owned()), "short");
        let long = format!("{}last", "ä".repeat(WHY_MOST_BYTES));
        let told = clipped(long);
        assert!(told.ends_with("älast") && told.len() < WHY_MOST_BYTES + 100);
    }
}
