//! systemd in the machine, so that a user's is asked for a scope in earnest.
//!
//! When all else has run, the machine's process 1 becomes systemd: with a bus, a manager for the ordinary user, and one
//! service, which runs a program as that user in a cgroup that is not delegated to it. What limits are kept there
//! are kept in a scope that the user's systemd gave.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    output,
    script::{Job, SINGLE, USER},
};

pub(super) const PROGRAM: &str = "/usr/lib/systemd/systemd";
const BUS: &str = "/usr/bin/dbus-daemon";

/// The programs it is made of.
pub(super) const PROGRAMS: [&str; 2] = [PROGRAM, BUS];

/// Whether this machine has it to give.
pub(super) fn is_here() -> bool {
    PROGRAMS.iter().all(|path| Path::new(path).exists())
}

/// What their own files are.
const TREES: [&str; 3] = [
    "/usr/lib/systemd/user",
    "/usr/lib/systemd/system",
    "/usr/share/dbus-1",
];

/// Units: all that there is beside those of systemd itself.
const UNITS: [(&str, &str); 5] = [
    (
        "orbit.target",
        "[Unit]\nWants=dbus.socket dbus.service orbit-user.service orbit-test.service\n",
    ),
    (
        "dbus.socket",
        "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    ),
    (
        "dbus.service",
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\n\
         ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n",
    ),
    // As user@.service, without PAM.
    (
        "orbit-user.service",
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.service\nAfter=dbus.service\n[Service]\nType=notify\n\
         User=orbit-test\nSlice=user.slice\nDelegate=yes\n\
         Environment=XDG_RUNTIME_DIR=/run/user/1000 HOME=/home/user\n\
         ExecStartPre=+/bin/sh -c 'mkdir -p /run/user/1000; chown 1000:1000 /run/user/1000; chmod 700 /run/user/1000'\n\
         ExecStart=/usr/lib/systemd/systemd --user --unit=basic.target\n",
    ),
    (
        "orbit-test.service",
        "[Unit]\nDefaultDependencies=no\nRequires=orbit-user.service\nAfter=orbit-user.service\n\
         OnFailure=poweroff.target\n[Service]\nType=exec\nExecStart=/orbit-test\nStandardOutput=tty\n\
         StandardError=tty\nTTYPath=/dev/ttyS0\n",
    ),
];

/// Puts it on the disk, with `job` as what its service runs.
pub(super) fn place(root: &Path, job: &Job) -> Result<()> {
    for tree in TREES {
        let to = root.join(tree.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("it is in a directory")?)?;
        output(Command::new("cp").arg("-a").arg(tree).arg(&to))?;
    }
    let units = root.join("etc/systemd/system");
    fs::create_dir_all(&units)?;
    for (name, text) in UNITS {
        fs::write(units.join(name), text)?;
    }
    fs::write(root.join("etc/machine-id"), format!("{:032x}\n", 1))?;
    for (file, line) in [
        ("etc/passwd", "messagebus:x:100:100::/:/bin/false\n"),
        ("etc/group", "messagebus:x:100:\n"),
    ] {
        let path = root.join(file);
        let text = fs::read_to_string(&path)?;
        fs::write(path, text + line)?;
    }
    let script = root.join("orbit-test");
    fs::write(&script, format!("#!/bin/sh\n{}", job.under_systemd()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

const _: () = assert!(USER == 1000 && SINGLE != USER, "the units name it");
