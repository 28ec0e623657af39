//! As much of sockets and of HTTP as it takes to see that a server is there.

use std::{
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
    answer: Vec<u8>,
    deadline: Instant,
}

impl AsFd for HttpTry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl HttpTry {
    pub(super) fn start(
        mut stream: TcpStream,
        wait: &HttpWait,
        deadline: Instant,
    ) -> io::Result<Self> {
        // In version 1.0 the answer ends with the connection, and comes in one piece.
        let request = format!(
            "GET {} HTTP/1.0\r\nHost: localhost:{}\r\nUser-Agent: orbit\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            wait.path, wait.port
        );
        stream.write_all(request.as_bytes())?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            answer: Vec::new(),
            deadline,
        })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads what there is. `None`: more is to come.
    pub(super) fn proceed(&mut self, wait: &HttpWait, now: Instant) -> Option<Result<(), String>> {
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
        if is_whole(&self.answer) {
            return Some(judge(&self.answer, wait));
        }
        (now >= self.deadline).then(|| Err("no whole answer came in time".to_owned()))
    }
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
fn is_whole(answer: &[u8]) -> bool {
    parse(answer).is_some_and(|(_, headers, body)| {
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
    for (wanted, value) in &wait.headers {
        if !headers
            .iter()
            .any(|(name, found)| name == wanted && found.contains(value.as_str()))
        {
            return Err(format!("no header `{wanted}` has `{value}`"));
        }
    }
    match &wait.body {
        Some(text) if !String::from_utf8_lossy(body).contains(text.as_str()) => {
            Err(format!("`{text}` is not in the body"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            path: "/".into(),
            port: 80,
            status,
            headers: vec![("x-state".into(), header.into())],
            body: body.map(Into::into),
        };
        assert!(is_whole(answer) && !is_whole(&answer[..answer.len() - 1]));
        assert_eq!(judge(answer, &wait(None, "up", Some("bod"))), Ok(()));
        assert_eq!(judge(answer, &wait(Some(204), "", None)), Ok(()));
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
    }
}
