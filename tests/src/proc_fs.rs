//! What /proc says about processes, their namespaces and their sockets.
//!
//! Reads only. A process that goes away while it is read is left out, not an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The kernel's version: `(6, 18)`.
///
/// # Errors
/// Where /proc does not tell.
pub fn kernel_version() -> anyhow::Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let numbers: Option<Vec<u32>> = release
        .split(|end: char| !end.is_ascii_digit())
        .take(2)
        .map(|number| number.parse().ok())
        .collect();
    match numbers.as_deref() {
        Some(&[major, minor]) => Ok((major, minor)),
        _ => anyhow::bail!("a kernel of no version: {release}"),
    }
}

/// One process at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid, as the reader sees it.
    pub pid: i32,
    /// The pid of its parent, 0 for one outside the reader's pid namespace.
    pub parent: i32,
    /// `R`, `S`, `Z` …
    pub state: char,
    /// Clock ticks since boot: with the pid, names a process for good.
    pub start_ticks: u64,
    /// The command line, or the name in brackets where there is none.
    pub command: String,
    /// What it calls itself, of at most fifteen bytes.
    pub name: String,
}

impl Process {
    /// Reads one process.
    pub fn read(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // The name in parentheses may hold anything, parentheses too: what follows the last one is fields.
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = words
            .split(|&byte| byte == 0)
            .filter(|w| !w.is_empty())
            .map(String::from_utf8_lossy)
            .collect();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
            command: if words.is_empty() {
                format!("[{name}]")
            } else {
                words.join(" ")
            },
            name: name.to_owned(),
        })
    }

    /// Whether it ended and nobody has asked how.
    pub const fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }

    /// Its namespaces, such as `net:[4026531840]`; empty where we may not look.
    pub fn namespaces(&self) -> BTreeSet<String> {
        links_in(&PathBuf::from(format!("/proc/{}/ns", self.pid)))
            .into_iter()
            .filter(|(name, _)| !name.ends_with("_for_children"))
            .map(|(_, target)| target)
            .collect()
    }

    /// Its open files: descriptor and what it refers to; empty where we may not look.
    pub fn files(&self) -> Vec<(String, String)> {
        links_in(&PathBuf::from(format!("/proc/{}/fd", self.pid)))
    }
}

/// All processes that descend from `ancestor`, without itself.
pub fn descendants(ancestor: i32) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(process) = pid.and_then(Process::read) {
            children.entry(process.parent).or_default().push(process);
        }
    }
    let (mut found, mut ahead) = (Vec::new(), vec![ancestor]);
    while let Some(parent) = ahead.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            ahead.push(child.pid);
            found.push(child);
        }
    }
    found
}

fn links_in(directory: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((
                entry.file_name().to_string_lossy().into_owned(),
                target.to_string_lossy().into_owned(),
            ))
        })
        .collect()
}

/// Listening sockets of our network namespace: inode to a name such as `tcp 127.0.0.1:8080`.
///
/// UDP sockets do not listen; those that are bound and unconnected count. So do named Unix sockets.
pub fn listening() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    // The state of a listening TCP socket is 0A; an unconnected UDP socket is in 07 (include/net/tcp_states.h).
    for (file, state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, local, _, found_state, _, _, _, _, _, inode, ..] = words[..]
                && found_state == state
            {
                found.insert(inode.to_owned(), format!("{file} {}", address(local)));
            }
        }
    }
    let table = fs::read(Path::new("/proc/thread-self/net/unix")).unwrap_or_default();
    for line in String::from_utf8_lossy(&table).lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Flags have __SO_ACCEPTCON (bit 16) where the socket listens.
        if let [_, _, _, "00010000", _, _, inode, ref path @ ..] = words[..] {
            found.insert(inode.to_owned(), format!("unix {}", path.join(" ")));
        }
    }
    found
}

/// `0100007F:1F90` is 127.0.0.1:8080: the kernel prints words of the address in host order.
fn address(hex: &str) -> String {
    let (host, port) = hex.split_once(':').unwrap_or((hex, "0"));
    let port = u16::from_str_radix(port, 16).unwrap_or_default();
    match u32::from_str_radix(host, 16) {
        Ok(v4) => format!("{}:{port}", std::net::Ipv4Addr::from(v4.to_ne_bytes())),
        Err(_) => format!("[{host}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        process::Command,
        time::{Duration, Instant},
    };

    use super::{Process, address, descendants, listening};

    #[test]
    fn reads_itself() {
        let me = Process::read(std::process::id() as i32).unwrap();
        assert!(!me.is_zombie());
        assert!(
            me.namespaces().iter().any(|name| name.starts_with("net:[")),
            "{:?}",
            me.namespaces()
        );
        assert!(!me.files().is_empty());
    }

    #[test]
    fn finds_children_and_names_them() {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        // Between its execution and its first instruction it has no command line yet.
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut found = descendants(std::process::id() as i32);
        while found.iter().all(|process| process.command != "sleep 30") && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
            found = descendants(std::process::id() as i32);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            found.iter().any(|process| process.command == "sleep 30"),
            "{found:?}"
        );
    }

    #[test]
    fn finds_listening_ports() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wanted = format!("tcp {}", listener.local_addr().unwrap());
        assert!(listening().values().any(|name| *name == wanted));
    }

    #[test]
    fn reads_addresses_as_the_kernel_prints_them() {
        if cfg!(target_endian = "little") {
            assert_eq!(address("0100007F:1F90"), "127.0.0.1:8080");
        }
    }
}
