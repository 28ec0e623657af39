//! A subtree that the user's systemd gives: a transient scope, in which the supervisor lives.
//!
//! The test process stays where it is, and works in the scope's directory, which is its user's. systemd removes the
//! scope, and whatever is still in it, when its last process has ended: when the supervisor has, however the test
//! process ended.
//!
//! Source: systemd, org.freedesktop.systemd1(5), `StartTransientUnit`; docs/CGROUP_DELEGATION.md.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::bus::{Bus, BusError, Call, Writer};

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScopeError {
    #[error("it listens nowhere: `XDG_RUNTIME_DIR` is not set, and there is no /run/user/{uid}")]
    Nowhere { uid: u32 },
    #[error("at {}: {source}", .at.display())]
    Bus { at: PathBuf, source: BusError },
    #[error("at {}: it runs in another pid namespace, and would take our process for another", .at.display())]
    OtherNamespace { at: PathBuf },
    #[error("it moved nothing into {unit} in {} s", PATIENCE.as_secs())]
    NotMoved { unit: String },
}

/// How long systemd may take to move the supervisor.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket on which the user's systemd may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Door {
    path: PathBuf,
    /// Whether a bus is behind it, or systemd itself.
    bus: bool,
}

/// Moves the process `pid` of this user into a new scope. The cgroup that it is in then, as `/proc` writes it.
///
/// # Errors
/// What the last systemd that could be reached said, or why none could.
pub(super) fn ask(unit: &str, pid: i32, uid: u32) -> Result<String, ScopeError> {
    let mut last = ScopeError::Nowhere { uid };
    for door in doors(uid, |name| env::var(name).ok()) {
        match ask_at(&door, unit, pid, uid) {
            Ok(()) => return moved(unit, pid),
            Err(ScopeError::Bus {
                source: BusError::Io(error),
                ..
            }) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Where to try, best first.
fn doors(uid: u32, variable: impl Fn(&str) -> Option<String>) -> Vec<Door> {
    let addressed = variable("DBUS_SESSION_BUS_ADDRESS").and_then(|addresses| socket(&addresses));
    let runtime = variable("XDG_RUNTIME_DIR")
        .filter(|path| path.starts_with('/'))
        .map_or_else(|| format!("/run/user/{uid}").into(), PathBuf::from);
    let mut doors: Vec<Door> = Vec::new();
    for (path, bus) in [
        (addressed, true),
        (Some(runtime.join("bus")), true),
        // Where no message bus is installed.
        (Some(runtime.join("systemd/private")), false),
    ] {
        if let Some(path) = path.filter(|path| doors.iter().all(|door| door.path != *path)) {
            doors.push(Door { path, bus });
        }
    }
    doors
}

/// The first socket of addresses such as `unix:path=/run/user/1000/bus,guid=0;tcp:host=h`.
fn socket(addresses: &str) -> Option<PathBuf> {
    let path = |address: &str| {
        let keys = address.strip_prefix("unix:")?;
        keys.split(',')
            .find_map(|key| key.strip_prefix("path="))
            .map(PathBuf::from)
    };
    addresses.split(';').find_map(path)
}

fn ask_at(door: &Door, unit: &str, pid: i32, uid: u32) -> Result<(), ScopeError> {
    let at = || door.path.clone();
    let failed = |source| ScopeError::Bus { at: at(), source };
    let mut bus = Bus::connect(&door.path, uid).map_err(failed)?;
    if bus.peer().map_err(failed)? == 0 {
        return Err(ScopeError::OtherNamespace { at: at() });
    }
    if door.bus {
        bus.hello().map_err(failed)?;
    }
    let call = Call {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member: "StartTransientUnit",
    };
    bus.call(call, "ssa(sv)a(sa(sv))", &request(unit, pid))
        .map_err(failed)
}

/// Name, what to do where there is such a unit, properties, and units that go with it: none.
fn request(unit: &str, pid: i32) -> Vec<u8> {
    let mut body = Writer::default();
    body.string(unit);
    body.string("fail");
    body.array(8, |properties| {
        properties.property("Description", "s", |value| {
            value.string("Sandboxes of a test process (orbit)");
        });
        properties.property("Delegate", "b", |value| value.number(1));
        // Nothing is kept of one that failed.
        properties.property("CollectMode", "s", |value| {
            value.string("inactive-or-failed");
        });
        properties.property("PIDs", "au", |value| {
            value.array(4, |pids| pids.number(pid.unsigned_abs()));
        });
    });
    body.array(8, |_| {});
    body.into_bytes()
}

/// Waits until the process is in the scope: the answer only says that it will be.
fn moved(unit: &str, pid: i32) -> Result<String, ScopeError> {
    let until = Instant::now() + PATIENCE;
    let file = Path::new("/proc").join(pid.to_string()).join("cgroup");
    loop {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let is_there = |line: &str| line.starts_with("0::/") && line.ends_with(unit);
        if text.lines().any(is_there) {
            return Ok(text);
        }
        if Instant::now() > until {
            return Err(ScopeError::NotMoved {
                unit: unit.to_owned(),
            });
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> Vec<String> {
        let variable = |wanted: &str| {
            let found = variables.iter().find(|(name, _)| *name == wanted)?;
            Some(found.1.to_owned())
        };
        doors(1000, variable)
            .into_iter()
            .map(|door| door.path.display().to_string())
            .collect()
    }

    #[test]
    fn systemd_is_looked_for_where_a_session_has_it() {
        let usual = ["/run/user/1000/bus", "/run/user/1000/systemd/private"];
        assert_eq!(found(&[]), usual);
        let address = "tcp:host=h;unix:path=/run/user/1000/bus,guid=1";
        assert_eq!(found(&[("DBUS_SESSION_BUS_ADDRESS", address)]), usual);
        let elsewhere = [
            (
                "DBUS_SESSION_BUS_ADDRESS",
                "unix:abstract=/tmp/x;unix:path=/b",
            ),
            ("XDG_RUNTIME_DIR", "/r"),
        ];
        assert_eq!(found(&elsewhere), ["/b", "/r/bus", "/r/systemd/private"]);
        assert_eq!(found(&[("XDG_RUNTIME_DIR", "relative")]), usual);
    }

    #[test]
    fn what_is_asked_is_laid_out_as_systemd_reads_it() {
        let rows = request("orbit-1.scope", 77);
        let rows: Vec<String> = rows
            .chunks(16)
            .map(|row| row.escape_ascii().to_string())
            .collect();
        insta::assert_snapshot!(rows.join("\n"));
    }
}
