//! `cargo orbit doctor`: it finds what this machine and this user have, and what is missing comes with the way to it.

use std::{
    collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Case, Context, Finished, Program, Who};
use serde_json::Value;

use orbit_tests::view::has;

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("doctor::{name}"), run).deadline(Duration::from_secs(120))
    };
    vec![
        case("finds_what_works", finds_what_works).needs(&["passt"]),
        case("one_id_is_told_with_the_fix", one_id).who(&[Who::Single]),
        case("what_is_required_fails", what_is_required_fails).who(Who::RANGED),
        case(
            "no_user_namespaces_are_told_with_the_fix",
            no_user_namespaces,
        )
        .who(&[Who::Root]),
        case("a_cache_that_takes_nothing_is_told", no_cache).who(Who::ROOTLESS),
    ]
}

/// What is there where control groups are of version 2.
const UNIFIED: &str = "/sys/fs/cgroup/cgroup.controllers";

/// What a run in JSON says of each check.
fn checks(finished: &Finished) -> Result<BTreeMap<String, Value>> {
    let lines = finished.stdout.lines().map(|line| {
        let told: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let name = told["check"].as_str().context("no name")?.to_owned();
        Ok((name, told))
    });
    lines.collect()
}

fn finds_what_works(context: &Context) -> Result<()> {
    let finished = context
        .orbit("doctor")?
        .args(["--message-format", "json"])
        .run()?
        .success()?;
    let checks = checks(&finished)?;
    for name in [
        "sandbox", "ports", "networks", "bridge", "denied", "clock", "cache",
    ] {
        ensure!(checks[name]["state"] == "works", "{name}: {finished}");
    }
    // Where this machine keeps the device to itself, that is said.
    let fix = match fs::metadata("/dev/net/tun") {
        Ok(it) if it.permissions().mode() & 0o006 == 0o006 => None,
        Ok(_) => Some("chmod 666 /dev/net/tun"),
        Err(_) => Some("modprobe tun"),
    };
    match fix {
        None => ensure!(checks["egress"]["state"] == "works", "{finished}"),
        Some(fix) => has(checks["egress"]["fix"].as_str().unwrap_or_default(), &[fix])?,
    }
    // This machine has control groups of version 1; the virtual machine of the limits has the others.
    if !Path::new(UNIFIED).exists() {
        for name in ["memory", "cpu", "pids", "cpuset"] {
            ensure!(checks[name]["state"] == "missing", "{name}: {finished}");
            let detail = checks[name]["detail"].as_str().unwrap_or_default();
            has(detail, &["systemd.unified_cgroup_hierarchy=1"])?;
        }
    }
    // The same for people.
    let finished = context.orbit("doctor")?.run()?.success()?;
    has(&finished.stdout, &["ok  sandbox", "Sandboxes work here"])?;
    Ok(())
}

fn one_id(context: &Context) -> Result<()> {
    let finished = context.orbit("doctor")?.run()?.success()?;
    has(
        &finished.stdout,
        &[
            "ok  sandbox",
            "no  ids",
            "fix: as root: usermod --add-subuids",
        ],
    )?;
    Ok(())
}

fn what_is_required_fails(context: &Context) -> Result<()> {
    let doctor = |names: &str| {
        context
            .orbit("doctor")?
            .args(["--require", names, "--message-format", "json"])
            .run()
    };
    doctor("ids,ports")?.success()?;
    if !Path::new(UNIFIED).exists() {
        doctor("ports,memory")?.code(1)?;
    }
    let finished = doctor("memroy")?.code(2)?;
    has(
        &finished.stderr,
        &["memroy", "similar value exists: 'memory'"],
    )?;
    Ok(())
}

/// The limit is that of a user namespace, so that only what is in there is refused.
fn no_user_namespaces(context: &Context) -> Result<()> {
    let doctor = orbit_tests::orbit_cli::binary()?;
    let finished = Program::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c"])
        .arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" orbit doctor")
        .arg(doctor)
        .current_dir(context.work())
        .run()?
        .code(1)?;
    // Its lines are broken where they are too long.
    let words: Vec<&str> = finished.stdout.split_whitespace().collect();
    has(
        &words.join(" "),
        &[
            "no sandbox",
            "sudo sysctl user.max_user_namespaces",
            "it needs sandbox",
            "Needed, and missing: sandbox.",
        ],
    )?;
    Ok(())
}

fn no_cache(context: &Context) -> Result<()> {
    let finished = context
        .orbit("doctor")?
        .env("ORBIT_CACHE_DIR", "/proc/nothing")
        .args(["--require", "cache"])
        .run()?
        .code(1)?;
    has(&finished.stdout, &["no  cache", "set ORBIT_CACHE_DIR"])?;
    Ok(())
}
