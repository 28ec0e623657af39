//! As much of sockets and of HTTP as it takes to see that a server is there.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use crate::wait::HttpWait;

/// An answer that says whether a server is well is not longer.
const ANSWER_MAX_BYTES: usize = 1 << 20;

/// Whether something listens on a TCP port in the network namespace of process `pid`.
///
/// The kernel tells nobody when a socket begins to listen; its table is read, which the server does not notice.
///
/// Source: proc_net_tcp(5): the second field is the local address, the fourth the state, 0A for a listening socket.
pub(super) fn listens(pid: u32, port: u16) -> bool {
    ["tcp", "tcp6"].into_iter().any(|table| {
        std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))
            .is_ok_and(|text| has_listener(&text, port))
    })
}

fn has_listener(table: &str, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&wanted)) && words.nth(1) == Some("0A")
    })
}

/// One request, and what has arrived of the answer.
pub(super) struct HttpTry {
    stream: TcpStream,
    /// What is not sent yet.
    unsent: VecDeque<u8>,
    answer: Vec<u8>,
    deadline: Instant,
}

impl AsFd for HttpTry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl HttpTry {
    /// Over a connection that may be under way: nothing here blocks.
    pub(super) fn start(stream: TcpStream, wait: &HttpWait, deadline: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            unsent: request(wait).into(),
            answer: Vec::new(),
            deadline,
        })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether there is something to send, and not only to read.
    pub(super) fn is_sending(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what can be sent, and reads what there is. `None`: more is to come.
    pub(super) fn proceed(&mut self, wait: &HttpWait, now: Instant) -> Option<Result<(), String>> {
        let late = |deadline| (now >= deadline).then(|| Err("no whole answer came in time".into()));
        while self.is_sending() {
            match self.stream.write(self.unsent.make_contiguous()) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOTCONN: the connection is under way.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
                    ) =>
                {
                    return late(self.deadline);
                }
                // It may have answered what it had read, and closed.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.unsent.clear(),
                Err(error) => return Some(Err(error.to_string())),
            }
        }
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(judge(&self.answer, wait)),
                Ok(count) => self.answer.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Some(Err(error.to_string())),
            }
            if self.answer.len() > ANSWER_MAX_BYTES {
                return Some(judge(&self.answer, wait));
            }
        }
        if is_whole(&self.answer, wait) {
            return Some(judge(&self.answer, wait));
        }
        late(self.deadline)
    }
}

/// In version 1.0 the answer ends with the connection, and comes in one piece.
fn request(wait: &HttpWait) -> Vec<u8> {
    let mut text = format!("{} {} HTTP/1.0\r\n", wait.method, wait.path);
    let own = [
        ("Host", format!("localhost:{}", wait.port)),
        ("User-Agent", "orbit".to_owned()),
        ("Accept", "*/*".to_owned()),
    ];
    let is_given = |name: &str| {
        wait.headers
            .iter()
            .any(|(it, _)| it.eq_ignore_ascii_case(name))
    };
    for (name, value) in own.iter().filter(|(name, _)| !is_given(name)) {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    for (name, value) in &wait.headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    // A method with a body says its length also where that is 0: RFC 9110, section 8.6.
    if !wait.content.is_empty() || matches!(wait.method.as_str(), "POST" | "PUT" | "PATCH") {
        let _ = write!(text, "Content-Length: {}\r\n", wait.content.len());
    }
    text += "Connection: close\r\n\r\n";
    let mut request = text.into_bytes();
    request.extend(&wait.content);
    request
}

/// Names and values.
type Headers = Vec<(String, String)>;

/// The status, the headers with their names in lower case, and the body.
fn parse(answer: &[u8]) -> Option<(u16, Headers, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let mut lines = head.split("\r\n");
    let status = lines
        .next()?
        .strip_prefix("HTTP/1.")?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_lowercase(), value.trim().to_owned()))
        .collect();
    Some((status, headers, &answer[end + 4..]))
}

/// Whether a server that keeps the connection open has said all.
fn is_whole(answer: &[u8], wait: &HttpWait) -> bool {
    parse(answer).is_some_and(|(_, headers, body)| {
        // The length is that of what is not sent.
        if wait.method == "HEAD" {
            return true;
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        length.is_some_and(|(_, value)| {
            value
                .parse()
                .is_ok_and(|length: usize| body.len() >= length)
        })
    })
}

fn judge(answer: &[u8], wait: &HttpWait) -> Result<(), String> {
    let (status, headers, body) = parse(answer).ok_or("the answer is no HTTP")?;
    let is_wanted = match wait.status {
        Some(wanted) => status == wanted,
        None => (200..400).contains(&status),
    };
    if !is_wanted {
        return Err(format!("the status is {status}"));
    }
    for (wanted, value) in &wait.expected_headers {
        if !headers
            .iter()
            .any(|(name, found)| name == wanted && found.contains(value.as_str()))
        {
            return Err(format!("no header `{wanted}` has `{value}`"));
        }
    }
    let body = String::from_utf8_lossy(body);
    match wait.bodies.iter().find(|wanted| !wanted.is_met(&body)) {
        Some(wanted) => Err(format!("{wanted} is not in the body")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{BodyMatch, Wait, WaitKind};

    #[test]
    fn only_a_listening_socket_listens() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
            0: 0100007F:1538 00000000:0000 0A 00000000:00000000\n   \
            1: 0100007F:1539 0100007F:1538 01 00000000:00000000\n";
        assert!(has_listener(table, 0x1538));
        assert!(!has_listener(table, 0x1539));
        assert!(!has_listener(table, 0x538));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(std::process::id(), port));
        drop(listener);
        assert!(!listens(std::process::id(), port));
    }

    #[test]
    fn answers_are_judged() {
        let answer =
            b"HTTP/1.1 204 No Content\r\nX-State: up and running\r\nContent-Length: 4\r\n\r\nbody";
        let wait = |status, header: &str, body: Option<&str>| HttpWait {
            status,
            expected_headers: vec![("x-state".into(), header.into())],
            bodies: body
                .map(|text| BodyMatch::Contains(text.into()))
                .into_iter()
                .collect(),
            ..http(Wait::http("/"))
        };
        let plain = wait(None, "", None);
        assert!(is_whole(answer, &plain) && !is_whole(&answer[..answer.len() - 1], &plain));
        assert_eq!(judge(answer, &wait(None, "up", Some("bod"))), Ok(()));
        assert_eq!(judge(answer, &wait(Some(204), "", None)), Ok(()));
        let matches = |pattern| judge(answer, &http(Wait::http("/").body_matches(pattern)));
        assert_eq!(matches("^bo.y$"), Ok(()));
        assert_eq!(matches("^od"), Err("/^od/ is not in the body".to_owned()));
        for (wait, why) in [
            (wait(Some(200), "", None), "the status is 204"),
            (wait(None, "down", None), "no header `x-state` has `down`"),
            (
                wait(None, "up", Some("other")),
                "`other` is not in the body",
            ),
        ] {
            assert_eq!(judge(answer, &wait), Err(why.to_owned()));
        }
        assert!(judge(b"SSH-2.0\r\n", &wait(None, "", None)).is_err());
        // What follows the head of such an answer never comes.
        let head = &answer[..answer.len() - 4];
        assert!(is_whole(head, &http(Wait::http("/").method("HEAD"))));
    }

    fn http(wait: Wait) -> HttpWait {
        assert!(wait.faults.is_empty(), "{:?}", wait.faults);
        match wait.kind {
            WaitKind::Http(http) => http,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_sent_is_what_was_said() {
        let text = |wait| String::from_utf8(request(&http(wait))).unwrap();
        assert_eq!(
            text(Wait::http("/up").on_port(8080)),
            "GET /up HTTP/1.0\r\nHost: localhost:8080\r\nUser-Agent: orbit\r\nAccept: */*\r\n\
             Connection: close\r\n\r\n"
        );
        let wait = Wait::http("/query")
            .method("POST")
            .send_header("host", "shop.example")
            .send_header("X-Trace", "1")
            .basic_auth("Aladdin", "open sesame")
            .send_body("SELECT 1");
        assert_eq!(
            text(wait),
            "POST /query HTTP/1.0\r\nUser-Agent: orbit\r\nAccept: */*\r\nhost: shop.example\r\nX-Trace: 1\r\n\
             Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\nContent-Length: 8\r\nConnection: close\r\n\r\nSELECT 1"
        );
        assert!(text(Wait::http("/").method("PUT")).contains("Content-Length: 0\r\n"));
    }

    /// A server that reads nothing holds up neither what is sent nor who sends it.
    #[test]
    fn nothing_blocks() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let wait = http(
            Wait::http("/")
                .method("POST")
                .send_body(vec![b'x'; 64 << 20]),
        );
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let began = Instant::now();
        let deadline = began + std::time::Duration::from_millis(50);
        let mut one = HttpTry::start(stream, &wait, deadline).unwrap();
        assert_eq!(one.proceed(&wait, began), None);
        assert!(one.is_sending());
        let end = one.proceed(&wait, deadline);
        assert!(end.is_some_and(|end| end.is_err()));
        assert!(began.elapsed() < std::time::Duration::from_secs(2));
    }
}
