//! What runs inside of the sandboxes: small servers and clients, named by the first argument.

use std::{
    borrow::Cow,
    collections::HashSet,
    env,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket},
    process::{Command, ExitCode},
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
        ["resolve", name] => resolve(name),
        ["serve-relay", at] => relay(at),
        ["serve-run", at] => run_others(at),
        ["serve-proxy", at, to] => each(at, proxy, to),
        ["discard", at] => discard(at),
        ["ping", at, count] => ping(at, count.parse().ok()?),
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

/// Sends and hears datagrams, as it is told at `at`: `send ADDRESS`; `forget all` that came so far; `heard ADDRESS`,
/// which is answered with `heard` where one came from there since it was last asked, or comes soon.
fn relay(at: &str) -> io::Result<()> {
    const DATAGRAMS: u16 = 82;
    const SOON: Duration = Duration::from_millis(250);
    // Of both families.
    let socket = UdpSocket::bind(("::", DATAGRAMS))?;
    socket.set_nonblocking(true)?;
    socket.set_broadcast(true)?;
    let mut heard = HashSet::new();
    let listener = TcpListener::bind(at)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut told = String::new();
        stream.read_to_string(&mut told)?;
        let (what, address) = told.split_once(' ').unwrap_or_default();
        if what == "forget" {
            while socket.recv_from(&mut [0; 16]).is_ok() {}
            heard.clear();
            continue;
        }
        if what == "send" {
            for to in (address, DATAGRAMS).to_socket_addrs()? {
                let to = match to {
                    SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), DATAGRAMS).into(),
                    v6 @ SocketAddr::V6(_) => v6,
                };
                // An address of IPv6 cannot be sent from at first, until nobody else turns out to have it.
                if let Err(error) = socket.send_to(b"hello", to) {
                    eprintln!("{to}: {error}");
                }
            }
            continue;
        }
        let (address, until) = (address.to_owned(), Instant::now() + SOON);
        let mut buffer = [0; 16];
        let answer = loop {
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                heard.insert(from.ip().to_canonical().to_string());
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
                stream.set_read_timeout(Some(PATIENCE))?;
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

/// Sends so many datagrams to an echo server, one a millisecond, and prints how many came back, and after how many
/// microseconds: the least, the mean, the most.
fn ping(at: &str, count: u32) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(1);
    const LATE: Duration = Duration::from_millis(1500);
    let to = at
        .to_socket_addrs()?
        .next()
        .ok_or(io::ErrorKind::NotFound)?;
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    let begin = Instant::now();
    let sender = socket.try_clone()?;
    let sending = thread::spawn(move || {
        for number in 0..count {
            let message = [number.to_le_bytes(), micros(begin).to_le_bytes()].concat();
            // Nobody may be there yet, or any more.
            let _ = sender.send(&message);
            thread::sleep(PAUSE);
        }
    });
    socket.set_read_timeout(Some(LATE))?;
    let (mut seen, mut times, mut buffer) = (HashSet::new(), Vec::new(), [0; 8]);
    while times.len() < count as usize {
        match socket.recv(&mut buffer) {
            Ok(8) => {
                let word = |at: usize| {
                    let bytes = [buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]];
                    u32::from_le_bytes(bytes)
                };
                if seen.insert(word(0)) {
                    times.push(micros(begin).saturating_sub(word(4)));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(_) | Err(_) => break,
        }
    }
    let _ = sending.join();
    times.sort_unstable();
    let mean = times.iter().sum::<u32>() / u32::try_from(times.len().max(1)).unwrap_or(1);
    print!(
        "{} {} {mean} {}",
        times.len(),
        times.first().unwrap_or(&0),
        times.last().unwrap_or(&0)
    );
    Ok(())
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// Runs the service of the words that it is sent, and answers what that prints.
fn run_others(at: &str) -> io::Result<()> {
    let serve = |mut stream: TcpStream, _: &str| {
        let mut words = String::new();
        stream.read_to_string(&mut words)?;
        let output = Command::new(env::current_exe()?)
            .args(words.split(' '))
            .output()?;
        stream.write_all(&output.stdout)?;
        stream.write_all(&output.stderr)
    };
    each(at, serve, "")
}

/// Passes on what it reads to `to`, and back.
#[expect(clippy::needless_pass_by_value, reason = "as `each` passes it")]
fn proxy(near: TcpStream, to: &str) -> io::Result<()> {
    let far = TcpStream::connect(to)?;
    let (mut from_far, mut to_near) = (far.try_clone()?, near.try_clone()?);
    thread::spawn(move || io::copy(&mut from_far, &mut to_near));
    io::copy(&mut &near, &mut &far).map(drop)
}

/// Prints how many addresses a name has, as the system's own resolver finds them.
fn resolve(name: &str) -> io::Result<()> {
    let found: HashSet<SocketAddr> = (name, 0).to_socket_addrs()?.collect();
    print!("{}", found.len());
    Ok(())
}
