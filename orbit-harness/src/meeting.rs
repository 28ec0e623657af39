//! Where the processes of a user meet that are on the same network: a directory for each name, with a socket for
//! each process.
//!
//! ```text
//! RUNTIME/networks/lab/lock        held while somebody comes or goes
//! RUNTIME/networks/lab/subnet      as the first that came wanted it
//! RUNTIME/networks/lab/addresses   one byte for each address, locked by the process whose sandbox has it
//! RUNTIME/networks/lab/3f….sock    where the broker of a process takes connections
//! ```
//!
//! Nobody owns the network: who comes connects with all that are there, and the network is over with the last. What a
//! killed process leaves is a socket that refuses connections, which the next to come or go removes.

pub(crate) mod last;
pub(crate) mod session;

use std::{
    fs::{self, DirBuilder, File},
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
        sockopt::{Timeout, set_socket_timeout, socket_peercred},
    },
};

use crate::{
    names::{lock_byte, unlock_byte},
    net::addresses::Subnet,
    supervisor::{Known, greeting},
};

/// How long the broker of another process may take to say who is there.
const PATIENCE: Duration = Duration::from_secs(5);

const SOCKET: &str = "sock";

/// Why a process does not get on a network that others are on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeetingError {
    #[error(
        "there is no place for networks that processes share: set ORBIT_RUNTIME_DIR to an absolute path"
    )]
    NoPlace,
    #[error(
        "the directory {} is not this user's alone, as one must be in which processes meet: \
         `chmod 700` it, or set ORBIT_RUNTIME_DIR to another", .0.display()
    )]
    NotPrivate(PathBuf),
    #[error("cannot {doing} the shared network {network} in {}: {source}", directory.display())]
    Io {
        doing: &'static str,
        network: String,
        directory: PathBuf,
        source: io::Error,
    },
    #[error(
        "the shared network {network} is {has} while another process is on it, and cannot be {wanted} too: leave \
         the subnet out, or choose another name"
    )]
    OtherSubnet {
        network: String,
        has: Subnet,
        wanted: Subnet,
    },
    #[error(
        "process {pid}, which is on the shared network {network}, does not answer: continue it if it is stopped, \
         or end it"
    )]
    Silent { network: String, pid: i32 },
}

/// A place among the processes of a network, until it is dropped.
#[derive(Debug)]
pub(crate) struct Meeting {
    name: String,
    directory: PathBuf,
    addresses: File,
    socket: PathBuf,
}

/// What it takes to be on the network.
pub(crate) struct Entrance {
    pub(crate) meeting: Meeting,
    pub(crate) subnet: Subnet,
    /// For the broker to take connections at.
    pub(crate) listener: OwnedFd,
    /// Those who are there.
    pub(crate) others: Vec<(OwnedFd, Vec<Known>)>,
    /// Nobody else comes or goes while this is held.
    pub(crate) lock: File,
}

/// Enters the network `name` in the directory `runtime`.
///
/// # Errors
/// [`MeetingError`].
pub(crate) fn enter(
    runtime: Option<PathBuf>,
    name: &str,
    wanted: Option<Subnet>,
    default: Subnet,
) -> Result<Entrance, MeetingError> {
    let networks = runtime.ok_or(MeetingError::NoPlace)?.join("networks");
    let directory = networks.join(name);
    let failed = |doing| {
        let (network, directory) = (name.to_owned(), directory.clone());
        move |source| MeetingError::Io {
            doing,
            network,
            directory,
            source,
        }
    };
    let lock = lock(&directory).map_err(failed("lock"))?;
    let found = fs::metadata(&directory).map_err(failed("look at"))?;
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(MeetingError::NotPrivate(directory));
    }
    sweep(&networks, name);
    let connected = connect_all(&directory).map_err(failed("reach the other processes of"))?;
    let kept = directory.join("subnet");
    let has = fs::read_to_string(&kept)
        .ok()
        .filter(|_| !connected.is_empty());
    let subnet = match has.and_then(|text| text.trim().parse::<Subnet>().ok()) {
        Some(has) => match wanted {
            Some(wanted) if wanted != has => {
                return Err(MeetingError::OtherSubnet {
                    network: name.to_owned(),
                    has,
                    wanted,
                });
            }
            _ => has,
        },
        None => wanted.unwrap_or(default),
    };
    fs::write(&kept, format!("{subnet}\n")).map_err(failed("keep the subnet of"))?;
    let mut others = Vec::new();
    for socket in connected {
        let members = greet(&socket).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => MeetingError::Silent {
                network: name.to_owned(),
                pid: socket_peercred(&socket).map_or(0, |peer| peer.pid.as_raw_nonzero().get()),
            },
            _ => failed("hear who is on")(error),
        });
        match members {
            Ok(members) => others.push((socket, members)),
            // It ended just now.
            Err(MeetingError::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => return Err(error),
        }
    }
    let addresses = open(&directory.join("addresses")).map_err(failed("lease addresses of"))?;
    let (listener, socket) = listen(&directory).map_err(failed("take connections for"))?;
    Ok(Entrance {
        meeting: Meeting {
            name: name.to_owned(),
            directory,
            addresses,
            socket,
        },
        subnet,
        listener,
        others,
        lock,
    })
}

impl Meeting {
    /// Takes `address` for this process. Whether it is free.
    pub(crate) fn take(&self, address: Ipv4Addr) -> Result<bool, MeetingError> {
        lock_byte(&self.addresses, address.to_bits().into()).map_err(|source| MeetingError::Io {
            doing: "lease an address of",
            network: self.name.clone(),
            directory: self.directory.clone(),
            source,
        })
    }

    /// Gives `address` back.
    pub(crate) fn release(&self, address: Ipv4Addr) {
        // It is given back at the end of this process at the latest.
        let _ = unlock_byte(&self.addresses, address.to_bits().into());
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        // Without the lock nothing may be removed; the next process to come will.
        let Ok(_lock) = lock(&self.directory) else {
            return;
        };
        let _ = fs::remove_file(&self.socket);
        // What killed processes left is no reason to leave anything; who cannot be asked is.
        if connect_all(&self.directory).is_ok() {
            leave(&self.directory);
        }
    }
}

/// Removes the directory, which the caller has locked, where no socket is in it.
fn leave(directory: &Path) {
    if sockets(directory).is_ok_and(|sockets| sockets.is_empty()) {
        // In this order: who finds the lock gone makes everything anew.
        for name in ["subnet", "addresses", "lock"] {
            let _ = fs::remove_file(directory.join(name));
        }
        for directory in directory.ancestors().take(2) {
            // ENOTEMPTY: another network's.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Removes what killed processes left of other networks, where nobody is busy with them.
fn sweep(networks: &Path, name: &str) {
    let Ok(entries) = fs::read_dir(networks) else {
        return;
    };
    for entry in entries.flatten().filter(|entry| entry.file_name() != name) {
        let directory = entry.path();
        let Ok(held) = open(&directory.join("lock")) else {
            continue;
        };
        if flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_current(&directory, &held).is_ok_and(|current| current)
            && connect_all(&directory).is_ok()
        {
            leave(&directory);
        }
    }
}

/// Waits until nobody else comes or goes.
fn lock(directory: &Path) -> io::Result<File> {
    loop {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let lock = match open(&directory.join("lock")) {
            // Removed by its last user meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))?;
        if is_current(directory, &lock)? {
            return Ok(lock);
        }
    }
}

/// Whether this lock is the one that others will find.
fn is_current(directory: &Path, lock: &File) -> io::Result<bool> {
    let held = lock.metadata()?;
    let found = fs::metadata(directory.join("lock"));
    Ok(found.is_ok_and(|found| (found.dev(), found.ino()) == (held.dev(), held.ino())))
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    options.open(path)
}

fn sockets(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == SOCKET) {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The address of a socket in `directory`, whose path may be longer than an address: by its descriptor.
fn address(directory: &File, path: &Path) -> io::Result<SocketAddrUnix> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    Ok(SocketAddrUnix::new(short.join(name))?)
}

fn socket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socket_with(
        family,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Connects with every process that is there, and removes what is left of those that are not.
fn connect_all(directory: &Path) -> io::Result<Vec<OwnedFd>> {
    let opened = File::open(directory)?;
    let mut connected = Vec::new();
    for path in sockets(directory)? {
        let connection = socket()?;
        // A process that takes no connections would keep this one waiting.
        set_socket_timeout(&connection, Timeout::Send, Some(PATIENCE))?;
        match rustix::net::connect(&connection, &address(&opened, &path)?) {
            Ok(()) => connected.push(connection),
            Err(Errno::CONNREFUSED) => fs::remove_file(&path)?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(connected)
}

fn greet(connection: &OwnedFd) -> io::Result<Vec<Known>> {
    set_socket_timeout(connection, Timeout::Recv, Some(PATIENCE))?;
    greeting(connection.as_fd())
}

fn listen(directory: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let opened = File::open(directory)?;
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let path = directory.join(format!("{:016x}.{SOCKET}", u64::from_ne_bytes(bytes)));
    let listener = socket()?;
    rustix::net::bind(&listener, &address(&opened, &path)?)?;
    rustix::net::listen(&listener, 128)?;
    rustix::io::ioctl_fionbio(&listener, true)?;
    Ok((listener, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    fn enter(runtime: &Path, wanted: Option<&str>) -> Result<Entrance, MeetingError> {
        let wanted = wanted.map(subnet);
        super::enter(
            Some(runtime.to_owned()),
            "lab",
            wanted,
            subnet("10.1.0.0/24"),
        )
    }

    #[test]
    fn what_a_dead_process_left_is_removed_by_the_next() {
        let runtime = tempfile::tempdir().unwrap();
        let first = enter(runtime.path(), Some("10.7.0.0/24")).unwrap();
        let directory = first.meeting.directory.clone();
        // As if it had been killed: its socket is there, and nobody listens.
        std::mem::forget(first.meeting);
        drop((first.listener, first.lock));
        assert_eq!(sockets(&directory).unwrap().len(), 1);
        // Nor does its subnet bind anybody.
        let second = enter(runtime.path(), None).unwrap();
        assert!(second.others.is_empty());
        assert_eq!(second.subnet, subnet("10.1.0.0/24"));
        assert_eq!(sockets(&directory).unwrap().len(), 1);
        let Entrance { meeting, lock, .. } = second;
        drop(lock);
        drop(meeting);
        assert!(!directory.exists() && !runtime.path().join("networks").exists());
    }

    #[test]
    fn what_a_dead_process_left_goes_with_the_last_that_lives() {
        let runtime = tempfile::tempdir().unwrap();
        let last = enter(runtime.path(), None).unwrap();
        let directory = last.meeting.directory.clone();
        // As if another had come, and had been killed.
        let (listener, left) = listen(&directory).unwrap();
        drop((listener, last.lock));
        drop(last.meeting);
        assert!(!left.exists());
        assert!(!directory.exists() && !runtime.path().join("networks").exists());
    }

    #[test]
    fn an_address_is_one_process_s_at_a_time() {
        let runtime = tempfile::tempdir().unwrap();
        let first = enter(runtime.path(), None).unwrap().meeting;
        let other = File::options()
            .write(true)
            .open(first.directory.join("addresses"))
            .unwrap();
        let address = Ipv4Addr::new(10, 1, 0, 2);
        assert!(first.take(address).unwrap());
        assert!(!lock_byte(&other, address.to_bits().into()).unwrap());
        first.release(address);
        assert!(lock_byte(&other, address.to_bits().into()).unwrap());
        assert!(!first.take(address).unwrap());
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let runtime = tempfile::tempdir().unwrap();
        let directory = runtime.path().join("networks/lab");
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = enter(runtime.path(), None);
        assert!(matches!(refused, Err(MeetingError::NotPrivate(_))));
    }
}
