//! What is wrong with a spec that no image and no machine could mend.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use super::{MAX_AHEAD, published};
use crate::{
    net::{egress::Policy, names, ports},
    rootfs::normal,
    spec::{Link, NetworkMode, Spec, SpecFault},
};

/// What is wrong with single fields.
pub(super) fn of_fields(spec: &Spec) -> Vec<SpecFault> {
    let mut faults = Vec::new();
    let mut absolute = |field: &str, path: &Path| {
        if !path.is_absolute() {
            faults.push(SpecFault::new(
                field,
                path.display().to_string(),
                "expected an absolute path",
            ));
        }
    };
    if let Some(path) = &spec.working_dir {
        absolute("working_dir", path);
    }
    for mount in &spec.mounts {
        absolute("mount target", &mount.target);
    }
    for file in &spec.files {
        absolute("file", &file.at);
    }
    let view = &spec.host_view;
    for path in view
        .paths
        .iter()
        .chain(&view.read_only_paths)
        .chain(&view.hidden)
        .chain(&view.home)
    {
        absolute("host path", path);
    }
    for mount in spec
        .mounts
        .iter()
        .filter(|mount| normal(&mount.target) == Path::new("/"))
    {
        faults.push(SpecFault::new(
            "mount target",
            mount.target.display().to_string(),
            "the root cannot be covered",
        ));
    }
    for (name, value) in &spec.env {
        let bad =
            name.is_empty() || name.as_bytes().contains(&b'=') || has_nul(name) || has_nul(value);
        if bad {
            let why =
                "a name is not empty and has no `=`, and neither name nor value has a NUL byte";
            faults.push(SpecFault::new("env", name.to_string_lossy(), why));
        }
    }
    let words = spec
        .entrypoint
        .iter()
        .chain(&spec.cmd)
        .flatten()
        .chain(&spec.args);
    for word in words.filter(|word| has_nul(word)) {
        faults.push(SpecFault::new(
            "cmd",
            word.to_string_lossy(),
            "an argument has a NUL byte",
        ));
    }
    if let Some(user) = &spec.user
        && let Err(fault) = user.parse::<crate::security::user::UserSpec>()
    {
        faults.push(fault);
    }
    for file in &spec.files {
        if let Some(owner) = &file.owner
            && let Err(fault) = owner.parse::<crate::security::user::UserSpec>()
        {
            faults.push(fault);
        }
        if file.at.file_name().is_none() || file.at.as_os_str().as_bytes().contains(&0) {
            let why = "expected the path of a file, without NUL bytes";
            faults.push(SpecFault::new("file", file.at.display().to_string(), why));
        }
    }
    if let Some(signal) = spec.stop_signal.filter(|it| !(1..=64).contains(it)) {
        let why = "expected a number from signal(7), such as 15";
        faults.push(SpecFault::new("stop_signal", signal.to_string(), why));
    }
    if spec.timeout == Some(Duration::ZERO) {
        faults.push(SpecFault::new("timeout", "0s", "expected more than zero"));
    }
    port_faults(spec, &mut faults);
    link_faults(spec, &mut faults);
    faults
}

fn link_faults(spec: &Spec, faults: &mut Vec<SpecFault>) {
    for alias in &spec.aliases {
        let why = match names::check_alias(alias) {
            Err(why) => why,
            Ok(()) if spec.links.is_empty() => "the sandbox is on no network that has names",
            Ok(()) => continue,
        };
        faults.push(SpecFault::new("network alias", alias, why));
    }
    if let (NetworkMode::Host, Some(link)) = (&spec.network, spec.links.first()) {
        let why = "a sandbox on the host's own network cannot be on another";
        faults.push(SpecFault::new("network", &link.network, why));
    }
    for (number, link) in spec.links.iter().enumerate() {
        let overlap = |other: &&Link| other.subnet.overlaps(link.subnet);
        if let Some(other) = spec.links[..number].iter().find(overlap) {
            let why = format!(
                "its subnet {} overlaps with {} of the network {}, which this sandbox is on too",
                link.subnet, other.subnet, other.network
            );
            faults.push(SpecFault::new("network", &link.network, why));
        }
    }
}

fn port_faults(spec: &Spec, faults: &mut Vec<SpecFault>) {
    for port in spec.expose.iter().filter(|port| **port == 0) {
        let why = "a port is a number from 1 to 65535";
        faults.push(SpecFault::new("expose", port.to_string(), why));
    }
    if let (NetworkMode::Host, Some(ports)) = (&spec.network, spec.publish.first()) {
        let why = "on the host's own network the program listens on the host itself; leave publish out, or \
                   leave out the host's network";
        faults.push(SpecFault::new("publish", ports.to_string(), why));
    }
    if let Some((host, protocol)) = ports::first_conflict(&published(spec)) {
        let why = "this port of the host is published twice";
        faults.push(SpecFault::new("publish", format!("{host}/{protocol}"), why));
    }
}

/// What a sandbox that is made before it is asked for cannot have: somebody's name or address, or a place among limits
/// that it would have to be born in.
pub(super) fn cannot_be_ahead(spec: &Spec, is_limited: bool) -> Option<String> {
    let lets_out = matches!(spec.egress, Some(Policy::All | Policy::Allow(_)));
    if spec.ahead == 0 {
        None
    } else if spec.ahead > MAX_AHEAD {
        Some(format!("at most {MAX_AHEAD} are kept"))
    } else if is_limited {
        Some("a sandbox with limits of a control group is born in it, and cannot be made ahead; leave out one of the two".to_owned())
    } else if !spec.links.is_empty() || spec.network == NetworkMode::Bridge {
        Some("a sandbox on a network has an address of its own there, and cannot be made ahead; leave out one of the two".to_owned())
    } else if lets_out {
        Some("the way out of a sandbox is not made ahead; leave out `egress` or this".to_owned())
    } else {
        None
    }
}

fn has_nul(text: &OsStr) -> bool {
    text.as_bytes().contains(&0)
}
