//! One call over D-Bus: enough to ask systemd for a scope, and no more.
//!
//! zbus would do it too, with an async executor and 32 crates, as many as the library has without its features. What
//! is here writes one kind of message and reads the head of the answer; nothing that arrives is trusted, and what is
//! not understood is an error.
//!
//! Source: the D-Bus specification, "Message Protocol", "Type System" and "Authentication Protocol".

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than any answer to a call that returns a path. The specification allows 128 MiB.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Lines of the authentication are short.
const MAX_LINE_BYTES: usize = 512;

/// Why there was no answer, or which.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it does not know this user: {0}")]
    Refused(String),
    #[error("its answer is no message of D-Bus")]
    Malformed,
    #[error("{name}: {text}")]
    Answer { name: String, text: String },
}

/// Who is called, and what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

/// A connection that has been let in.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
}

impl Bus {
    /// Connects to a socket, as user `uid`.
    pub(super) fn connect(path: &Path, uid: u32) -> Result<Self, BusError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Self { stream, serial: 0 };
        bus.authenticate(uid)?;
        Ok(bus)
    }

    /// The process that listens: 0 where it is in no pid namespace that this process can see into.
    pub(super) fn peer(&self) -> Result<i32, BusError> {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        let credentials = getsockopt(&self.stream, PeerCredentials).map_err(io::Error::from)?;
        Ok(credentials.pid())
    }

    /// The kernel tells the other side who we are; what is said is only whom we take ourselves for.
    fn authenticate(&mut self, uid: u32) -> Result<(), BusError> {
        let digits = uid.to_string();
        // Digits are 30 to 39 in hexadecimal.
        let hex: String = digits.chars().flat_map(|digit| ['3', digit]).collect();
        self.stream
            .write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > MAX_LINE_BYTES {
                return Err(BusError::Malformed);
            }
        }
        if !line.starts_with(b"OK ") {
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(BusError::Refused(said));
        }
        Ok(self.stream.write_all(b"BEGIN\r\n")?)
    }

    /// What a bus wants first of all; a service that is spoken to directly does not.
    pub(super) fn hello(&mut self) -> Result<(), BusError> {
        let call = Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
        };
        self.call(call, "", &[])
    }

    /// Calls, and waits for the answer, of which only matters whether it is an error.
    pub(super) fn call(
        &mut self,
        call: Call<'_>,
        signature: &str,
        body: &[u8],
    ) -> Result<(), BusError> {
        self.serial += 1;
        self.stream
            .write_all(&message(call, self.serial, signature, body))?;
        loop {
            let head = self.read_message()?;
            if head.reply_serial != Some(self.serial) {
                continue; // A signal, such as the name that we were given.
            }
            return match head.error {
                None => Ok(()),
                Some(name) => Err(BusError::Answer {
                    name,
                    text: head.text,
                }),
            };
        }
    }

    fn read_message(&mut self) -> Result<Head, BusError> {
        let mut fixed = [0; 16];
        self.stream.read_exact(&mut fixed)?;
        let length = Reader::new(&fixed)
            .and_then(Reader::rest_of_message)
            .filter(|length| *length <= MAX_MESSAGE_BYTES)
            .ok_or(BusError::Malformed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(16 + length, 0);
        self.stream.read_exact(&mut bytes[16..])?;
        Head::read(&bytes).ok_or(BusError::Malformed)
    }
}

/// Values, one after the other, each where its alignment wants it.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn number(&mut self, value: u32) {
        self.align(4);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn string(&mut self, text: &str) {
        self.number(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    pub(super) fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    /// Elements that are aligned to `to` bytes. The padding before the first is not part of the length.
    pub(super) fn array(&mut self, to: usize, elements: impl FnOnce(&mut Self)) {
        self.number(0);
        let at = self.0.len() - 4;
        self.align(to);
        let start = self.0.len();
        elements(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// A structure of a name and a value of any type, which `value` writes.
    pub(super) fn property(&mut self, name: &str, kind: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.string(name);
        self.signature(kind);
        value(self);
    }

    fn field(&mut self, code: u8, kind: &str, text: &str) {
        self.align(8);
        self.0.push(code);
        self.signature(kind);
        match kind {
            "g" => self.signature(text),
            _ => self.string(text),
        }
    }
}

const METHOD_CALL: u8 = 1;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

fn message(call: Call<'_>, serial: u32, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut writer = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    writer.number(u32::try_from(body.len()).unwrap_or(u32::MAX));
    writer.number(serial);
    writer.array(8, |fields| {
        fields.field(PATH, "o", call.path);
        fields.field(INTERFACE, "s", call.interface);
        fields.field(MEMBER, "s", call.member);
        fields.field(DESTINATION, "s", call.destination);
        if !signature.is_empty() {
            fields.field(SIGNATURE, "g", signature);
        }
    });
    writer.align(8);
    writer.0.extend_from_slice(body);
    writer.0
}

/// What matters of a message that arrived.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    reply_serial: Option<u32>,
    error: Option<String>,
    /// The first value, where it is a text: what an error says.
    text: String,
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes)?;
        reader.at = 12;
        let fields = usize::try_from(reader.number()?).ok()?;
        let end = reader.at.checked_add(fields)?;
        let mut head = Self::default();
        let mut signature = String::new();
        while reader.at < end {
            reader.align(8);
            let code = reader.byte()?;
            let kind = reader.signature()?;
            match kind.as_str() {
                "u" => {
                    let value = reader.number()?;
                    if code == REPLY_SERIAL {
                        head.reply_serial = Some(value);
                    }
                }
                "s" | "o" => {
                    let text = reader.string()?;
                    if code == ERROR_NAME {
                        head.error = Some(text);
                    }
                }
                "g" => signature = reader.signature()?,
                _ => return None,
            }
        }
        reader.align(8);
        if signature.starts_with('s') {
            head.text = reader.string()?;
        }
        Some(head)
    }
}

/// Reads what a [`Writer`], of either byte order, wrote. `None` wherever something is missing.
#[derive(Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    little: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let little = match bytes.first()? {
            b'l' => true,
            b'B' => false,
            _ => return None,
        };
        Some(Self {
            bytes,
            at: 0,
            little,
        })
    }

    /// How many bytes follow the first sixteen.
    fn rest_of_message(mut self) -> Option<usize> {
        self.at = 4;
        let body = usize::try_from(self.number()?).ok()?;
        self.at = 12;
        let fields = usize::try_from(self.number()?).ok()?;
        fields.checked_next_multiple_of(8)?.checked_add(body)
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().ok()?;
        Some(if self.little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        })
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    fn string(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        self.text(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.text(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALL: Call<'_> = Call {
        destination: "a.b",
        path: "/c",
        interface: "d.e",
        member: "F",
    };

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let mut body = Writer::default();
        body.string("x");
        let bytes = message(CALL, 7, "s", &body.into_bytes());
        let text: Vec<String> = bytes
            .chunks(8)
            .map(|row| row.escape_ascii().to_string())
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn an_answer_is_told_from_an_error() {
        let answer = |code, error: bool| {
            let mut writer = Writer(vec![b'l', 3, 0, 1]);
            writer.number(0);
            writer.number(1);
            writer.array(8, |fields| {
                if error {
                    fields.field(ERROR_NAME, "s", "a.Error");
                }
                fields.align(8);
                fields.0.push(code);
                fields.signature("u");
                fields.number(7);
                fields.field(SIGNATURE, "g", "s");
            });
            writer.align(8);
            writer.string("no");
            Head::read(&writer.0).unwrap()
        };
        let wanted = Head {
            reply_serial: Some(7),
            error: Some("a.Error".into()),
            text: "no".into(),
        };
        assert_eq!(answer(REPLY_SERIAL, true), wanted);
        assert_eq!(answer(REPLY_SERIAL, false).error, None);
        assert_eq!(answer(9, false).reply_serial, None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes: Vec<u8>) {
            let _ = Head::read(&bytes);
            bytes.splice(0..0, *b"l\x02\0\x01");
            let _ = Head::read(&bytes);
            let _ = Reader::new(&bytes).and_then(Reader::rest_of_message);
        }

        #[test]
        fn a_cut_message_is_no_message(at in 0usize..100) {
            let whole = message(CALL, 7, "g", &[1, b's', 0]);
            let cut = &whole[..at.min(whole.len() - 4)];
            prop_assert_eq!(Head::read(cut).filter(|head| *head != Head::default()), None);
        }
    }
}
