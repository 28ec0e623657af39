//! What a program finds around it is what the plan says: read from within, over the host's files and over an
//! image, as every identity.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Case, Context, Who};

use crate::kit::{VIEWS, View, own_status, printed, status_field};

/// Docker's default capabilities. Source: moby, `oci/caps/defaults.go`.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

/// Many times what any of these takes.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("inside::{name}"), run).deadline(DEADLINE)
    };
    vec![
        case("ids_are_mapped", ids_are_mapped),
        case(
            "root_of_an_image_is_not_the_hosts",
            root_of_an_image_is_not_the_hosts,
        ),
        case(
            "every_mount_is_known_and_bound",
            every_mount_is_known_and_bound,
        ),
        case("a_device_has_its_number", a_device_has_its_number),
        case("capabilities", capabilities),
        case(
            "no_more_than_three_descriptors",
            no_more_than_three_descriptors,
        ),
        case(
            "the_environment_is_what_was_said",
            the_environment_is_what_was_said,
        ),
        case("no_new_privs_and_a_filter", no_new_privs_and_a_filter),
        case(
            "signals_are_as_a_shell_leaves_them",
            signals_are_as_a_shell_leaves_them,
        ),
        case("every_namespace_is_another", every_namespace_is_another),
        case(
            "the_hosts_mounts_stay_as_they_are",
            the_hosts_mounts_stay_as_they_are,
        ),
        case("kernel_files_are_masked", kernel_files_are_masked),
        case(
            "kernel_settings_are_read_only",
            kernel_settings_are_read_only,
        ),
        case("names_session_mask_and_place", names_session_mask_and_place),
        case("loopback_and_no_other_link", loopback_and_no_other_link),
        case("limits_are_the_callers", limits_are_the_callers),
    ]
}

/// `inside outside count` of each line of a map.
fn map(text: &str) -> Vec<[u32; 3]> {
    let number = |word: &str| word.parse().unwrap_or(u32::MAX);
    text.lines()
        .filter_map(|line| {
            let words: Vec<u32> = line.split_whitespace().map(number).collect();
            words.try_into().ok()
        })
        .collect()
}

fn ids_are_mapped(context: &Context) -> Result<()> {
    let user = context.who.user()?;
    for (file, own) in [
        ("uid_map", user.uid.as_raw()),
        ("gid_map", user.gid.as_raw()),
    ] {
        // An image's ids are those of the supervisor's namespace, whose parent is the host's.
        let image = map(&View::Image.read(&format!("cat /proc/self/{file}"))?);
        // As seen by a program in it, the second column is in the parent's ids.
        match context.who {
            Who::Root => {
                ensure!(image.len() == 1 && image[0][0] == 0, "{image:?}");
                ensure!(
                    image[0][1] >= 65536,
                    "root inside is {} outside",
                    image[0][1]
                );
                ensure!(image[0][2] == 65536, "{image:?}");
            }
            Who::User => {
                ensure!(image[0] == [0, own, 1], "{file}: {image:?}");
                let others: u32 = image[1..].iter().map(|line| line[2]).sum();
                ensure!(others >= 65535, "{file}: {image:?}");
                ensure!(
                    image[1..].iter().all(|line| line[1] >= 100_000),
                    "{file} has ids that are not subordinate: {image:?}"
                );
            }
            Who::Single => ensure!(image == [[0, own, 1]], "{file}: {image:?}"),
        }
        // Over the host's files, the caller keeps the own number.
        let host = View::Host.read(if file == "uid_map" { "id -u" } else { "id -g" })?;
        ensure!(
            host.trim() == own.to_string(),
            "{} is {host} inside",
            context.who
        );
    }
    let setgroups = View::Image.read("cat /proc/self/setgroups")?;
    // CVE-2018-7169, CVE-2014-8989: who maps the own group alone must not be able to leave others.
    let expected = if context.who == Who::Single {
        "deny"
    } else {
        "allow"
    };
    ensure!(setgroups.trim() == expected, "setgroups is {setgroups}");
    let setgroups = View::Host.read("cat /proc/self/setgroups")?;
    ensure!(
        context.who != Who::Single || setgroups.trim() == "deny",
        "setgroups over the host's files is {setgroups}"
    );
    Ok(())
}

fn root_of_an_image_is_not_the_hosts(context: &Context) -> Result<()> {
    ensure!(View::Image.read("id -u; id -g")? == "0\n0\n");
    // What it makes in a bind mount is the caller's on the host, for root as for everyone.
    let shared = context.work().join("shared");
    fs::create_dir(&shared)?;
    let sandbox = View::Image
        .sh("touch /s/made && stat -c %u:%g /s/made")?
        .mount(orbit::Mount::bind(&shared, "/s"));
    ensure!(printed(sandbox)? == "0:0\n");
    let made = fs::metadata(shared.join("made"))?;
    let user = context.who.user()?;
    ensure!(
        std::os::unix::fs::MetadataExt::uid(&made) == user.uid.as_raw(),
        "a file made through a bind mount is not the caller's"
    );
    Ok(())
}

/// One line of mountinfo. Source: proc_pid_mountinfo(5).
#[derive(Debug)]
struct MountLine {
    root: String,
    at: String,
    options: Vec<String>,
    propagation: String,
    kind: String,
}

fn mount_table(text: &str) -> Result<Vec<MountLine>> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let dash = words.iter().position(|word| *word == "-")?;
        Some(MountLine {
            root: (*words.get(3)?).to_owned(),
            at: (*words.get(4)?).to_owned(),
            options: words.get(5)?.split(',').map(str::to_owned).collect(),
            propagation: words.get(6..dash)?.join(" "),
            kind: (*words.get(dash + 1)?).to_owned(),
        })
    };
    text.lines()
        .map(|text| line(text).with_context(|| text.to_owned()))
        .collect()
}

/// The flags that the mounts of the plan have, whatever the root.
const FIXED: &[(&str, &str, &[&str])] = &[
    ("/proc", "proc", &["rw", "nosuid", "nodev", "noexec"]),
    ("/proc/bus", "proc", &["ro", "nosuid", "nodev", "noexec"]),
    ("/proc/fs", "proc", &["ro", "nosuid", "nodev", "noexec"]),
    ("/proc/irq", "proc", &["ro", "nosuid", "nodev", "noexec"]),
    ("/proc/sys", "proc", &["ro", "nosuid", "nodev", "noexec"]),
    (
        "/proc/sysrq-trigger",
        "proc",
        &["ro", "nosuid", "nodev", "noexec"],
    ),
    ("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"]),
    ("/dev", "tmpfs", &["rw", "nosuid", "noexec"]),
    ("/dev/pts", "devpts", &["rw", "nosuid", "noexec"]),
    ("/dev/shm", "tmpfs", &["rw", "nosuid", "nodev", "noexec"]),
    (
        "/dev/mqueue",
        "mqueue",
        &["rw", "nosuid", "nodev", "noexec"],
    ),
];

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

fn every_mount_is_known_and_bound(context: &Context) -> Result<()> {
    for view in VIEWS {
        let table = mount_table(&view.read("cat /proc/self/mountinfo")?)?;
        for (at, kind, flags) in FIXED {
            let Some(line) = table.iter().rfind(|line| line.at == *at) else {
                // Those of /proc are there where this kernel has the file.
                ensure!(
                    at.starts_with("/proc/"),
                    "{view:?}: nothing is mounted at {at}"
                );
                continue;
            };
            ensure!(line.kind == *kind, "{view:?}: {line:?}");
            for flag in *flags {
                ensure!(
                    line.options.iter().any(|option| option == flag),
                    "{view:?}: {flag} is missing: {line:?}"
                );
            }
        }
        for line in &table {
            let device = line
                .at
                .strip_prefix("/dev/")
                .is_some_and(|name| DEVICES.contains(&name));
            let flag = |flag: &str| line.options.iter().any(|option| option == flag);
            ensure!(
                !line.propagation.contains("shared") && !line.propagation.contains("master"),
                "{view:?}: a mount propagates: {line:?}"
            );
            ensure!(
                flag("nodev")
                    || device
                    || ["/dev", "/dev/pts"].contains(&line.at.as_str())
                    || covers(line),
                "{view:?}: devices work on {line:?}"
            );
            ensure!(
                ["overlay", "tmpfs", "proc", "sysfs", "devpts", "mqueue"].contains(&line.kind.as_str())
                    || device
                    || covers(line)
                    // A directory of the host with mounts below it is bound, read-only.
                    || view == View::Host && flag("ro") && flag("nosuid"),
                "{view:?}: an unexpected mount: {line:?}"
            );
            for host in ["/host", "/stage", "/original"] {
                ensure!(
                    !line.at.starts_with(host),
                    "{view:?}: the supervisor's: {line:?}"
                );
            }
        }
        // The caller's own directories are nowhere in the names of the mounts, but for those it asked for.
        if view == View::Image {
            let work = context.work().display().to_string();
            ensure!(
                table.iter().all(|line| !line.root.contains(&work)),
                "{table:?}"
            );
            ensure!(
                table[0].at == "/" && table[0].kind == "overlay",
                "{:?}",
                table[0]
            );
        }
    }
    Ok(())
}

/// A file covered with the host's `/dev/null`.
fn covers(line: &MountLine) -> bool {
    line.root == "/null" && (line.at.starts_with("/proc/") || line.at.starts_with("/sys/"))
}

fn a_device_has_its_number(_: &Context) -> Result<()> {
    for view in VIEWS {
        let found = view.read(
            "stat -c '%n %t:%T' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; \
             ls /dev | tr '\\n' ' '; echo x >/dev/null; head -c 3 /dev/zero | wc -c",
        )?;
        let expected = "/dev/null 1:3\n/dev/zero 1:5\n/dev/full 1:7\n/dev/random 1:8\n/dev/urandom 1:9\n\
                        /dev/tty 5:0\nfd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom \
                        zero 3\n";
        ensure!(found == expected, "{view:?}:\n{found}");
        ensure!(view.read("ls /dev/pts")? == "ptmx\n");
    }
    Ok(())
}

fn capabilities(context: &Context) -> Result<()> {
    for view in VIEWS {
        let status = view.read("cat /proc/self/status")?;
        // Over the host's files an ordinary user is one.
        let held = if view == View::Host && context.who != Who::Root {
            "0000000000000000"
        } else {
            DEFAULT_CAPABILITIES
        };
        for (set, expected) in [
            ("CapEff", held),
            ("CapPrm", held),
            ("CapBnd", DEFAULT_CAPABILITIES),
            // CVE-2022-24769, CVE-2022-27650.
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
        ] {
            let found = status_field(&status, set)?;
            ensure!(
                found == expected,
                "{view:?}: {set} is {found}, not {expected}"
            );
        }
    }
    Ok(())
}

fn no_more_than_three_descriptors(context: &Context) -> Result<()> {
    // Some that this process has open, without close-on-exec, as a careless library would.
    let file = fs::File::open("/etc/hostname")?;
    let careless = nix::unistd::dup(&file)?;
    for view in VIEWS {
        let found = view.read("ls /proc/$$/fd; true")?;
        ensure!(found == "0\n1\n2\n", "{view:?}: descriptors {found}");
        // The init's are out of sight, and so is all of it.
        let init = view.sh(
            "ls -l /proc/1/fd /proc/1/cwd /proc/1/root /proc/1/exe 2>/dev/null | grep -- '->'",
        )?;
        let outcome = init.run()?;
        ensure!(
            outcome.stdout.is_empty(),
            "{view:?}: {}",
            outcome.stdout_text()
        );
    }
    drop(careless);
    let finished = context
        .orbit("run")?
        .args(["--image", "host", "--", "sh", "-c", "ls /proc/$$/fd; true"])
        .run()?
        .success()?;
    ensure!(finished.stdout == "0\n1\n2\n", "{finished}");
    Ok(())
}

fn variables(text: &str) -> BTreeMap<String, String> {
    text.split('\0')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn the_environment_is_what_was_said(context: &Context) -> Result<()> {
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    };
    let path = std::env::var("PATH")?;
    let home = context.home().display().to_string();
    let said = |view: View| -> Result<_> {
        Ok(variables(&printed(
            view.sandbox()?
                .cmd(["cat", "/proc/self/environ"])
                .env("SAID", "a b=c\n"),
        )?))
    };
    let host = said(View::Host)?;
    ensure!(
        host == pairs(&[("PATH", &path), ("HOME", &home), ("SAID", "a b=c\n")]),
        "{host:?}"
    );
    let image = said(View::Image)?;
    ensure!(
        image.get("SAID").map(String::as_str) == Some("a b=c\n"),
        "{image:?}"
    );
    for name in image.keys() {
        ensure!(
            ["PATH", "HOME", "HOSTNAME", "SAID"].contains(&name.as_str()),
            "{image:?}"
        );
    }
    for view in VIEWS {
        let cleared = view
            .sandbox()?
            .cmd(["/bin/cat", "/proc/self/environ"])
            .env_clear()
            .env("A", "1");
        let found = variables(&printed(cleared)?);
        let named = found
            .keys()
            .filter(|name| *name != "HOME")
            .collect::<Vec<_>>();
        ensure!(named == ["A"], "{view:?}: {found:?}");
    }
    Ok(())
}

fn no_new_privs_and_a_filter(context: &Context) -> Result<()> {
    for view in VIEWS {
        let status = view.read("cat /proc/self/status")?;
        ensure!(status_field(&status, "NoNewPrivs")? == "1", "{view:?}");
        ensure!(status_field(&status, "Seccomp")? == "2", "{view:?}");
    }
    let finished = context
        .orbit("run")?
        .args(["--image", "host", "--", "cat", "/proc/self/status"])
        .run()?
        .success()?;
    ensure!(status_field(&finished.stdout, "NoNewPrivs")? == "1");
    ensure!(status_field(&finished.stdout, "Seccomp")? == "2");
    ensure!(status_field(&finished.stdout, "CapBnd")? == DEFAULT_CAPABILITIES);
    Ok(())
}

/// Signals 32 and 33: glibc's own, which it lets nobody set. A caller that has them ignored passes that on.
const OF_THE_C_LIBRARY: u64 = 0b11 << 31;

/// Rust ignores SIGPIPE, and init and supervisor block what they wait for: none of it may reach a program.
fn signals_are_as_a_shell_leaves_them(_: &Context) -> Result<()> {
    for view in VIEWS {
        let status = printed(view.sandbox()?.cmd(["cat", "/proc/self/status"]))?;
        for set in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
            let found = u64::from_str_radix(status_field(&status, set)?, 16)?;
            ensure!(
                found & !OF_THE_C_LIBRARY == 0,
                "{view:?}: {set} is {found:016x}"
            );
        }
    }
    Ok(())
}

fn every_namespace_is_another(context: &Context) -> Result<()> {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let own = kinds
        .iter()
        .map(|kind| {
            Ok(fs::read_link(format!("/proc/self/ns/{kind}"))?
                .display()
                .to_string())
        })
        .collect::<Result<Vec<_>>>()?;
    // All alive at once: the number of a namespace that is gone is soon another's.
    let mut held = Vec::new();
    let mut seen = Vec::new();
    for view in [View::Host, View::Image, View::Host, View::Image] {
        let (reader, writer) = std::io::pipe()?;
        let links = kinds
            .map(|kind| format!("readlink /proc/self/ns/{kind}"))
            .join(";");
        held.push(
            view.sh(&format!("{links}; exec sleep 60 >/dev/null"))?
                .stdout(orbit::Output::Fd(writer.into()))
                .start()?,
        );
        let found: Vec<String> = std::io::read_to_string(reader)?
            .lines()
            .map(str::to_owned)
            .collect();
        ensure!(found.len() == own.len(), "{found:?}");
        for (own, found) in own.iter().zip(&found) {
            ensure!(own != found, "{}: {view:?} shares {own}", context.who);
        }
        seen.push(found);
    }
    // From each other they are apart too, but for the user namespaces, which one supervisor's sandboxes share.
    for (number, kind) in kinds
        .iter()
        .enumerate()
        .filter(|(_, kind)| **kind != "user")
    {
        let mut each: Vec<&String> = seen.iter().map(|found| &found[number]).collect();
        each.sort();
        each.dedup();
        ensure!(
            each.len() == held.len(),
            "sandboxes share the {kind} namespace: {seen:?}"
        );
    }
    let host = View::Image
        .sandbox()?
        .cmd(["readlink", "/proc/self/ns/net"]);
    let found = printed(host.network(orbit::NetworkMode::Host))?;
    ensure!(found.trim() == own[3], "network host is {found}");
    Ok(())
}

/// As root, a supervisor is given copies of the host's mounts. On a machine where those propagate (any with
/// systemd), what it mounts and unmounts must not.
fn the_hosts_mounts_stay_as_they_are(_: &Context) -> Result<()> {
    let table = || fs::read_to_string("/proc/self/mountinfo");
    let before = table()?;
    for view in VIEWS {
        let mut sandbox = view.sandbox()?.cmd(["sleep", "60"]).start()?;
        let during = table()?;
        ensure!(
            during == before,
            "{view:?}: during:\n{during}\nand not\n{before}"
        );
        sandbox.kill();
        sandbox.wait()?;
        let after = table()?;
        ensure!(
            after == before,
            "{view:?}: after:\n{after}\nand not\n{before}"
        );
    }
    Ok(())
}

fn kernel_files_are_masked(_: &Context) -> Result<()> {
    let script = "for f in acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list; do \
                  p=/proc/$f; if [ -d $p ]; then ls -A $p; elif [ -e $p ]; then head -c 100 $p; fi; done; \
                  for d in /sys/firmware /sys/devices/virtual/powercap; do [ ! -d $d ] || ls -A $d; done; \
                  [ -e /proc/timer_list ] || [ -d /proc/scsi ] || [ -d /sys/firmware ] && echo covered";
    for view in VIEWS {
        let found = view.read(script)?;
        ensure!(found == "covered\n", "{view:?}: {found}");
        // Covered for good: the cover cannot be taken away.
        let undone = view.read(
            "for f in /proc/timer_list /proc/kcore /proc/interrupts; do umount $f 2>/dev/null; \
             [ ! -e $f ] || head -c 10 $f; done; umount /sys/firmware 2>/dev/null; \
             [ ! -d /sys/firmware ] || ls -A /sys/firmware",
        )?;
        ensure!(undone.is_empty(), "{view:?}: {undone} can be read");
    }
    Ok(())
}

fn kernel_settings_are_read_only(_: &Context) -> Result<()> {
    let script = "for f in /proc/sys/kernel/hostname /proc/sys/kernel/core_pattern /proc/sys/vm/swappiness \
                  /proc/sysrq-trigger /sys/kernel/uevent_helper /sys/power/state; do \
                  [ -e $f ] || continue; if (echo x >$f) 2>/dev/null; then echo wrote $f; fi; done";
    for view in VIEWS {
        let found = view.read(script)?;
        ensure!(found.is_empty(), "{view:?}: {found}");
        let found =
            view.read("mkdir /sys/fs/cgroup/x 2>/dev/null || mkdir /sys/x 2>/dev/null || echo no")?;
        ensure!(found == "no\n", "{view:?}: a directory was made in /sys");
    }
    Ok(())
}

fn names_session_mask_and_place(context: &Context) -> Result<()> {
    let here = std::env::current_dir()?.display().to_string();
    let hostname = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    for (view, name, place) in [
        (View::Host, hostname.as_str(), here.as_str()),
        (View::Image, "orbit", "/"),
    ] {
        let script = "hostname; cat /proc/1/comm; echo $$; cut -d' ' -f6,7 /proc/$$/stat; umask; pwd; \
                      ls -d /proc/[0-9]* | wc -l";
        let found = view.read(script)?;
        let lines: Vec<&str> = found.lines().collect();
        // Process 2, at the head of its session, without a terminal; seen are init, sh, ls and wc.
        let expected = [name, "orbit", "2", "2 0", "0022", place];
        ensure!(
            lines[..6] == expected,
            "{view:?} as {}: {lines:?}",
            context.who
        );
        ensure!(
            lines[6].parse::<u32>()? <= 4,
            "{view:?}: {} processes",
            lines[6]
        );
        let named = view.sh("hostname")?.hostname("other.example");
        ensure!(printed(named)? == "other.example\n");
    }
    ensure!(
        View::Image.read("cat /etc/hostname; grep -c orbit /etc/hosts; cat /etc/resolv.conf")?
            == "orbit\n1\n"
    );
    Ok(())
}

fn loopback_and_no_other_link(_: &Context) -> Result<()> {
    for view in VIEWS {
        let links = view.read("ls /sys/class/net; tail -n +3 /proc/net/dev | wc -l")?;
        ensure!(links == "lo\n1\n", "{view:?}: {links}");
        let found = printed(view.role("loopback")?)?;
        ensure!(
            found == "v4 ok\nv6 ok\nout ENETUNREACH\nunix ok\nnetlink ok\n",
            "{view:?}: {found}"
        );
    }
    Ok(())
}

fn limits_are_the_callers(_: &Context) -> Result<()> {
    let own = fs::read_to_string("/proc/self/limits")?;
    for view in VIEWS {
        let found = view.read("cat /proc/self/limits")?;
        ensure!(found == own, "{view:?}:\n{found}\nand not\n{own}");
    }
    let own = own_status()?;
    let found = printed(View::Host.sandbox()?.cmd(["cat", "/proc/self/status"]))?;
    ensure!(
        status_field(&own, "Cpus_allowed")? == status_field(&found, "Cpus_allowed")?,
        "other processors"
    );
    Ok(())
}
