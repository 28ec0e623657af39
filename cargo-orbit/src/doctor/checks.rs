//! What is checked: each by a sandbox that needs it.

use std::{
    io::ErrorKind,
    net::TcpStream,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use orbit::{
    __private::{self, Ids},
    Egress, Error, Network, NetworkMode, Outcome, Sandbox, SandboxBuilder,
};
use serde::Serialize;

/// How long a sandbox of a check may take: one that works takes milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// The bridge that is made, and removed again, on the host.
const BRIDGE: &str = "orbit-doctor";

/// One thing that a sandbox can do.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    /// What it stands on, by name.
    pub(super) needs: &'static [&'static str],
    /// Without it nothing works.
    pub(super) is_essential: bool,
    pub(super) make: fn() -> Found,
}

/// What a check came to.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(super) enum Found {
    Works { detail: String },
    Missing { detail: String, fix: Option<String> },
    NotTried { detail: String },
}

const fn check(name: &'static str, what: &'static str, make: fn() -> Found) -> Check {
    Check {
        name,
        what,
        needs: &["sandbox"],
        is_essential: false,
        make,
    }
}

/// All of them, in an order in which each comes after what it needs.
pub(super) const CHECKS: &[Check] = &[
    Check {
        needs: &[],
        is_essential: true,
        ..check(
            "sandbox",
            "own processes, files, users and network, over the host's files",
            sandbox,
        )
    },
    Check {
        needs: &[],
        ..check("ids", "several users in one sandbox", ids)
    },
    check("ports", "ports published on this machine", ports),
    check("networks", "networks that sandboxes share", networks),
    check("bridge", "a bridge of the host's (--bridge)", bridge),
    check("egress", "a way out, as far as it is allowed", egress),
    check("denied", "a record of what was refused", denied),
    check("memory", "limits of memory", || {
        limited(|it| it.memory("64M"))
    }),
    check("cpu", "limits of CPU time", || limited(|it| it.cpus(0.5))),
    check("pids", "limits of processes", || limited(|it| it.pids(16))),
    check("cpuset", "a choice of CPUs", || {
        limited(|it| it.cpuset("0"))
    }),
    check("clock", "clocks that are ahead", || {
        of(program().clock_offset(Duration::from_secs(60)).run())
    }),
    Check {
        needs: &[],
        ..check("cache", "a place for images and snapshots", cache)
    },
];

/// A program that ends at once, over the host's files.
fn program() -> SandboxBuilder {
    Sandbox::builder().cmd(["true"]).timeout(LIMIT)
}

/// What came of a program that was to end well.
fn of(result: Result<Outcome, Error>) -> Found {
    match result {
        Ok(outcome) if outcome.success() => match outcome.warnings.first() {
            Some(warning) => missing(warning),
            None => works(""),
        },
        Ok(outcome) => missing(&format!("`true` ran in the sandbox and {}", outcome.status)),
        Err(error) => missing(&error),
    }
}

fn works(detail: impl Into<String>) -> Found {
    Found::Works {
        detail: detail.into(),
    }
}

/// The errors of the library say themselves what to do.
fn missing(why: &impl ToString) -> Found {
    Found::Missing {
        detail: why.to_string(),
        fix: None,
    }
}

fn sandbox() -> Found {
    let mut took = Vec::new();
    for _ in 0..4 {
        let started = Instant::now();
        match of(program().run()) {
            Found::Works { .. } => took.push(started.elapsed()),
            other => return other,
        }
    }
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let (first, rest) = (took[0], took[1..].iter().min().copied().unwrap_or_default());
    works(format!(
        "the first took {:.1} ms, with all it starts; a later one {:.1} ms",
        milliseconds(first),
        milliseconds(rest)
    ))
}

fn ids() -> Found {
    match __private::ids() {
        Ok(Ids::Privileged { count }) => {
            works(format!("{count} ids, as this process may map them"))
        }
        Ok(Ids::Helpers { count }) => works(format!("{count} ids, by newuidmap and newgidmap")),
        Ok(Ids::Single { because, fix }) => Found::Missing {
            detail: format!(
                "there is one id, as {because}; images that need other users do not start"
            ),
            fix: Some(fix),
        },
        Err(error) => missing(&format!("cannot read the facts of this machine: {error}")),
    }
}

fn ports() -> Found {
    let reached = Sandbox::builder()
        .cmd(["sleep", "60"])
        .timeout(LIMIT)
        .expose(80)
        .start()
        .map(|sandbox| {
            let address = sandbox.addr(80);
            match TcpStream::connect_timeout(&address, LIMIT) {
                Ok(_) => Ok(()),
                // Nobody serves inside, which whoever was let in is told.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
                Err(error) => Err(format!(
                    "{address}, which stands for port 80, cannot be reached: {error}"
                )),
            }
        });
    match reached {
        Ok(Ok(())) => works(""),
        Ok(Err(why)) => missing(&why),
        Err(error) => missing(&error),
    }
}

fn networks() -> Found {
    match Network::builder().create() {
        Ok(network) => of(program().network(&network).run()),
        Err(error) => missing(&error),
    }
}

fn bridge() -> Found {
    of(program().network(NetworkMode::Bridge).bridge(BRIDGE).run())
}

fn egress() -> Found {
    match of(program().egress(Egress::all()).run()) {
        Found::Missing { detail, .. } => Found::Missing {
            detail,
            fix: what_lets_tun_be_opened(Path::new("/dev/net/tun")),
        },
        other => other,
    }
}

/// What lets everybody open the device by which pasta leads out; nothing where they can.
fn what_lets_tun_be_opened(tun: &Path) -> Option<String> {
    const FOR_ALL: u32 = 0o006;
    let fix = match tun.metadata() {
        Err(_) => "sudo modprobe tun; in a container, start it with --device /dev/net/tun",
        Ok(it) if it.mode() & FOR_ALL != FOR_ALL => {
            "sudo chmod 666 /dev/net/tun, as udev would: the root of a sandbox is not the host's"
        }
        Ok(_) => return None,
    };
    Some(fix.to_owned())
}

fn denied() -> Found {
    of(program().record_denied(true).run())
}

fn limited(limit: fn(SandboxBuilder) -> SandboxBuilder) -> Found {
    of(limit(program()).run())
}

fn cache() -> Found {
    let Some(directory) = __private::cache_dir() else {
        return Found::Missing {
            detail: "there is no home directory, and no other place was named".to_owned(),
            fix: Some("set ORBIT_CACHE_DIR to a directory of this user's".to_owned()),
        };
    };
    let at = directory.display();
    let tried = std::fs::create_dir_all(&directory)
        .and_then(|()| tempfile::tempfile_in(&directory))
        .and_then(|_| Ok(rustix::fs::statvfs(&directory)?));
    match tried {
        Ok(space) => {
            const GIB: f64 = 1_073_741_824.0;
            #[expect(clippy::cast_precision_loss, reason = "it is shown with one digit")]
            let free = (space.f_bavail as f64) * (space.f_frsize as f64) / GIB;
            works(format!("{at}, with {free:.1} GiB free"))
        }
        Err(error) => Found::Missing {
            detail: format!("nothing can be written to {at}: {error}"),
            fix: Some(
                "make it this user's, or set ORBIT_CACHE_DIR to another directory".to_owned(),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_device_that_only_root_may_open_is_told_with_the_command() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let fix = |mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(device.path(), permissions).unwrap();
            what_lets_tun_be_opened(device.path())
        };
        assert!(fix(0o600).is_some_and(|fix| fix.contains("chmod 666")));
        assert_eq!(fix(0o666), None);
        let nowhere = what_lets_tun_be_opened(Path::new("/nowhere/tun"));
        assert!(nowhere.is_some_and(|fix| fix.contains("modprobe tun")));
    }
}
