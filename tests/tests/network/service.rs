//! What runs inside of the sandboxes: small servers and clients, named by the first argument.

use std::{
    borrow::Cow,
    collections::HashSet,
    env,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// Bytes in one write of the servers that send much.
pub(crate) const BLOCK: usize = 128 * 1024;

/// Runs the service that the arguments name, if they name one.
pub(crate) fn run() -> Option<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["serve-echo", at] => echo(at),
        ["serve-text", at, text] => send_text(at, text),
        ["serve-udp-echo", at] => udp_echo(at),
        ["serve-bytes", at, count] => send_bytes(at, count.parse().ok()?, block),
        ["serve-zeros", at, count] => send_bytes(at, count.parse().ok()?, zeros),
        ["serve-count", at, wait_ms] => count(at, Duration::from_millis(wait_ms.parse().ok()?)),
        ["fetch", at] => fetch(at),
        ["serve-relay", at] => relay(at),
        ["discard", at] => discard(at),
        ["serve-internet"] => crate::internet::serve(),
        ["ask", ref questions @ ..] => {
            ask(questions);
            Ok(())
        }
        _ => return None,
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    })
}

fn each(at: &str, serve: fn(TcpStream, &str) -> io::Result<()>, with: &str) -> io::Result<()> {
    let listener = TcpListener::bind(at)?;
    loop {
        let (stream, _) = listener.accept()?;
        let with = with.to_owned();
        thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(move || serve(stream, &with))?;
    }
}

/// Sends back what it reads, then the end.
fn echo(at: &str) -> io::Result<()> {
    let serve = |mut stream: TcpStream, _: &str| {
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                count => stream.write_all(&buffer[..count])?,
            }
        }
    };
    each(at, serve, "")
}

/// Sends a text, and ends.
fn send_text(at: &str, text: &str) -> io::Result<()> {
    each(
        at,
        |mut stream, text| stream.write_all(text.as_bytes()),
        text,
    )
}

/// Sends this many bytes, each block of a pattern of its own, and ends.
fn send_bytes(at: &str, count: usize, block: fn(u64) -> Cow<'static, [u8]>) -> io::Result<()> {
    let listener = TcpListener::bind(at)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        thread::spawn(move || -> io::Result<()> {
            for number in 0..(count / BLOCK) as u64 {
                stream.write_all(&block(number))?;
            }
            Ok(())
        });
    }
}

/// A block that costs nothing to make, to measure the wire.
fn zeros(_: u64) -> Cow<'static, [u8]> {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    Cow::Borrowed(&ZEROS)
}

/// The block of this number: no two neighbours are alike, and no byte is where it was.
pub(crate) fn block(number: u64) -> Cow<'static, [u8]> {
    let mut block = vec![0u8; BLOCK];
    for (index, word) in block.chunks_exact_mut(8).enumerate() {
        let value = (number << 20 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
    block.into()
}

/// Reads nothing for a while, then all there is; answers with the count.
fn count(at: &str, wait: Duration) -> io::Result<()> {
    let listener = TcpListener::bind(at)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        thread::sleep(wait);
        let count = io::copy(&mut stream, &mut io::sink())?;
        write!(stream, "{count}")?;
    }
}

fn udp_echo(at: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(at)?;
    let mut buffer = vec![0; 65536];
    loop {
        let (count, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..count], from)?;
    }
}

/// Sends and hears datagrams, as it is told at `at`: `send ADDRESS`; `heard ADDRESS`, which is answered with
/// `heard` where one came from there since it was last asked, or comes soon.
fn relay(at: &str) -> io::Result<()> {
    const DATAGRAMS: u16 = 82;
    const SOON: Duration = Duration::from_millis(250);
    let socket = UdpSocket::bind(("0.0.0.0", DATAGRAMS))?;
    socket.set_nonblocking(true)?;
    let mut heard = HashSet::new();
    let listener = TcpListener::bind(at)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut told = String::new();
        stream.read_to_string(&mut told)?;
        let (what, address) = told.split_once(' ').unwrap_or_default();
        if what == "send" {
            socket.send_to(b"hello", (address, DATAGRAMS))?;
            continue;
        }
        let (address, until) = (address.to_owned(), Instant::now() + SOON);
        let mut buffer = [0; 16];
        let answer = loop {
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                heard.insert(from.ip().to_string());
            }
            if heard.remove(&address) {
                break "heard";
            } else if Instant::now() > until {
                break "silence";
            }
            thread::sleep(Duration::from_millis(1));
        };
        stream.write_all(answer.as_bytes())?;
    }
}

/// Prints how much a server sends.
fn discard(at: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(at)?;
    let (mut buffer, mut total) = (vec![0; BLOCK], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => {
                print!("{total}");
                return Ok(());
            }
            count => total += count,
        }
    }
}

/// Prints what each of these says, or why it says nothing: `tcp:ADDRESS`, `udp:ADDRESS`.
fn ask(questions: &[&str]) {
    const PATIENCE: Duration = Duration::from_secs(3);
    for question in questions {
        let (how, at) = question.split_once(':').unwrap_or_default();
        let asked = || -> io::Result<String> {
            let at = at
                .to_socket_addrs()?
                .next()
                .ok_or_else(|| io::Error::other("no address"))?;
            let mut answer = String::new();
            if how == "tcp" {
                let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
                stream.read_to_string(&mut answer)?;
            } else {
                let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send_to(b"echo", at)?;
                let mut buffer = [0; 64];
                let (count, _) = socket.recv_from(&mut buffer)?;
                answer = String::from_utf8_lossy(&buffer[..count]).into_owned();
            }
            Ok(answer)
        };
        match asked() {
            Ok(answer) => println!("{answer}"),
            Err(error) => println!("{error}"),
        }
    }
}

/// Prints what a server sends.
fn fetch(at: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(at)?;
    io::copy(&mut stream, &mut io::stdout())?;
    Ok(())
}
