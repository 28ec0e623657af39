//! The server of a case's internet: what a sandbox reaches there, if it reaches anything.

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    thread,
};

/// What is served: `world PORT` on these ports of every address, by TCP.
pub(crate) const PORTS: [u16; 3] = [80, 443, 8443];
/// Datagrams come back from this port of each of these addresses.
pub(crate) const ECHO_PORT: u16 = 9999;
pub(crate) const ECHOES: [&str; 3] = ["203.0.113.1", "198.51.100.1", "2001:db8:1::1"];
/// The one name that there is, beside what the case's `/etc/hosts` has.
pub(crate) const NAME: &str = "world.example";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Serves until it is killed.
pub(crate) fn serve() -> io::Result<()> {
    for port in PORTS {
        let listener = TcpListener::bind(("::", port))?;
        thread::spawn(move || -> io::Result<()> {
            loop {
                let (mut stream, _) = listener.accept()?;
                // Who is gone needs no answer.
                let _ = write!(stream, "world {port}");
            }
        });
    }
    for address in ECHOES {
        let socket = UdpSocket::bind((address, ECHO_PORT))?;
        thread::spawn(move || answer(&socket, |datagram| Some(datagram.to_vec())));
    }
    let names = UdpSocket::bind(("203.0.113.1", 53))?;
    println!("ready");
    answer(&names, resolve)
}

fn answer(socket: &UdpSocket, with: impl Fn(&[u8]) -> Option<Vec<u8>>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let (count, from) = socket.recv_from(&mut buffer)?;
        if let Some(answer) = with(&buffer[..count]) {
            socket.send_to(&answer, from)?;
        }
    }
}

/// The answer to a question for the address of a name. Source: RFC 1035, section 4.
fn resolve(question: &[u8]) -> Option<Vec<u8>> {
    const HEADER_BYTES: usize = 12;
    const OF_IPV4: [u8; 2] = [0, 1];
    let mut at = HEADER_BYTES;
    let mut name = Vec::new();
    while *question.get(at)? > 0 {
        let end = at + 1 + usize::from(question[at]);
        name.push(String::from_utf8_lossy(question.get(at + 1..end)?).to_ascii_lowercase());
        at = end;
    }
    let asked = question.get(HEADER_BYTES..at + 5)?;
    let is_known = name.join(".") == NAME;
    let has_address = is_known && asked.get(asked.len() - 4..asked.len() - 2)? == OF_IPV4;
    let code = if is_known { 0x80 } else { 0x83 };
    let mut reply = [
        &question[..2],
        &[0x81, code, 0, 1, 0, has_address.into()],
        &[0; 4],
    ]
    .concat();
    reply.extend(asked);
    if has_address {
        // The name of the question, an address, in class IN, for no time, of four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(ADDRESS.octets());
    }
    Some(reply)
}
