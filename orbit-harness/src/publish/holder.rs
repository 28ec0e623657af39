//! Who has a port of the host: a look into /proc, for the message of an error.
//!
//! Source: proc_pid_net(5), `/proc/net/tcp`; proc_pid_fd(5).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::net::ports::Protocol;

/// The process that listens where `address` was to be bound, in words. `None` where that cannot be seen.
pub(super) fn find(address: SocketAddr, protocol: Protocol) -> Option<String> {
    let tables = match protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let text: String = tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    let entry = text
        .lines()
        .filter_map(|line| read(line, protocol))
        .find(|entry| entry.covers(address))?;
    Some(match process_with(entry.inode) {
        Some((pid, name)) if pid == std::process::id() => {
            format!("this process itself (`{name}`, pid {pid})")
        }
        Some((pid, name)) => format!("`{name}`, pid {pid},"),
        None => format!("a process of the user with uid {}", entry.uid),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    address: SocketAddr,
    uid: u32,
    inode: u64,
}

impl Entry {
    fn covers(&self, wanted: SocketAddr) -> bool {
        let any = self.address.ip().is_unspecified() || wanted.ip().is_unspecified();
        self.address.port() == wanted.port() && (any || self.address.ip() == wanted.ip())
    }
}

/// A line of the table, if it is of a socket that others cannot bind beside.
fn read(line: &str, protocol: Protocol) -> Option<Entry> {
    const LISTEN: &str = "0A";
    let words: Vec<&str> = line.split_whitespace().collect();
    if protocol == Protocol::Tcp && *words.get(3)? != LISTEN {
        return None;
    }
    let (ip, port) = words.get(1)?.split_once(':')?;
    // Words of 32 bits, each in this machine's order.
    let word = |at: usize| {
        let digits = ip.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(Entry {
        address: SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?),
        uid: words.get(7)?.parse().ok()?,
        inode: words.get(9)?.parse().ok()?,
    })
}

/// The process that has the socket open, as far as this user may look.
fn process_with(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue; // Another user's.
        };
        let has = files.flatten().any(|file| {
            fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        });
        if has {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let listener = std::net::TcpListener::bind(address).unwrap();
            let taken = listener.local_addr().unwrap();
            let found = find(taken, Protocol::Tcp).unwrap();
            assert!(
                found.starts_with("this process itself"),
                "{address}: {found}"
            );
            let udp = std::net::UdpSocket::bind(address).unwrap();
            let found = find(udp.local_addr().unwrap(), Protocol::Udp).unwrap();
            assert!(
                found.starts_with("this process itself"),
                "{address}: {found}"
            );
        }
    }

    #[test]
    fn a_connection_is_no_listener() {
        let line = "   1: 0100007F:1F90 0100007F:8C3A 01 00000000:00000000 00:00000000 00000000     0        0 12 1";
        assert_eq!(read(line, Protocol::Tcp), None);
    }
}
