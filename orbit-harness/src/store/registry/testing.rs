//! A registry that misbehaves on request, on a real socket.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::super::{Digest, testing::TestImage};

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    /// How many requests for this path came before.
    pub(super) nth: usize,
}

/// How an answer differs from that of a good registry.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Status, headers and body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// All headers, and then only so many bytes.
    Truncate(usize),
    /// One byte, a pause, one byte …
    Drip(Duration),
    /// The same, as a refusal.
    DripRefusal(Duration),
    /// Another body, with headers that fit it.
    Replace(Vec<u8>),
    /// Another body, under the headers of the true one.
    Swap(Vec<u8>),
    /// The whole, whatever range was asked for.
    IgnoreRange,
    Hang,
}

type Faults = dyn Fn(&Request) -> Option<Fault> + Send + Sync;

/// Serves one image as `app:1` until it is dropped.
pub(super) struct FaultServer {
    pub(super) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl FaultServer {
    pub(super) fn start(
        image: TestImage,
        faults: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            log: Arc::default(),
            stop: Arc::default(),
        };
        let (log, stop) = (server.log.clone(), server.stop.clone());
        let shared: Arc<(TestImage, Box<Faults>)> = Arc::new((image, Box::new(faults)));
        thread::spawn(move || {
            for connection in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (log, shared) = (log.clone(), shared.clone());
                // A client that hangs up is what some tests are about.
                thread::spawn(move || {
                    connection.and_then(|c| answer(&c, &log, &shared.0, &shared.1))
                });
            }
        });
        server
    }

    pub(super) fn reference(&self) -> String {
        format!("{}/app:1", self.address)
    }

    /// How many requests there were for paths with this in them.
    pub(super) fn count(&self, part: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.path.contains(part))
            .count()
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts, so that the port is closed.
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(
    connection: &TcpStream,
    log: &Mutex<Vec<Request>>,
    image: &TestImage,
    faults: &Faults,
) -> io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(connection).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let request = {
        let mut log = log.lock().unwrap();
        let nth = log.iter().filter(|earlier| earlier.path == path).count();
        let request = Request { path, headers, nth };
        log.push(request.clone());
        request
    };
    let mut out = connection;
    let fault = faults(&request);
    if let Some(Fault::Answer(status, headers, body)) = fault {
        return write_answer(&mut out, status, &headers, body.as_bytes());
    }
    if let Some(Fault::Replace(other)) = fault {
        return write_answer(&mut out, 200, &[], &other);
    }
    let Some(content) = content(&request.path, image) else {
        return write_answer(&mut out, 404, &[], b"{}");
    };
    let start = match (&fault, request.headers.get("range")) {
        (Some(Fault::IgnoreRange), _) | (_, None) => 0,
        (_, Some(range)) => range
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap_or(0),
    };
    let part = &content[start..];
    let (status, headers) = if start > 0 {
        let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
        (206, vec![("Content-Range", range)])
    } else {
        (200, vec![])
    };
    match fault {
        None | Some(Fault::IgnoreRange) => write_answer(&mut out, status, &headers, part),
        Some(Fault::Swap(other)) => {
            write_head(&mut out, status, &headers, part.len())?;
            out.write_all(&other)
        }
        Some(Fault::Truncate(length)) => {
            write_head(&mut out, status, &headers, part.len())?;
            out.write_all(&part[..length.min(part.len())])
        }
        Some(Fault::Drip(pause) | Fault::DripRefusal(pause)) => {
            let is_refusal = matches!(fault, Some(Fault::DripRefusal(_)));
            let status = if is_refusal { 500 } else { status };
            write_head(&mut out, status, &headers, part.len())?;
            for byte in part {
                out.write_all(&[*byte])?;
                thread::sleep(pause);
            }
            Ok(())
        }
        Some(Fault::Hang) => {
            thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        Some(Fault::Answer(..) | Fault::Replace(_)) => Ok(()),
    }
}

fn content<'a>(path: &str, image: &'a TestImage) -> Option<&'a [u8]> {
    let name = path.rsplit('/').next()?;
    if name == "1" {
        return Some(&image.manifest);
    }
    let digest: Digest = name.parse().ok()?;
    image.blobs.get(&digest).map(|blob| &blob[..])
}

fn write_head(
    out: &mut impl Write,
    status: u16,
    headers: &[(&'static str, String)],
    length: usize,
) -> io::Result<()> {
    write!(
        out,
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n"
    )?;
    for (name, value) in headers {
        write!(out, "{name}: {value}\r\n")?;
    }
    write!(out, "\r\n")
}

fn write_answer(
    out: &mut impl Write,
    status: u16,
    headers: &[(&'static str, String)],
    body: &[u8],
) -> io::Result<()> {
    write_head(out, status, headers, body.len())?;
    out.write_all(body)
}
