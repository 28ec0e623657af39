//! What is mounted on the host, as a sandbox shows it to who asks for it: all of it, and nothing of it reaches the host.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use orbit::Mount;
use orbit_tests::{Case, Context, Program, Who, images, orbit_cli};

use crate::kit::{View, printed};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("host_mounts::{name}"), run)
    };
    vec![
        case("the_kernels_own_are_shown_to_who_asks", shown_to_who_asks),
        case("a_link_to_them_is_followed", a_link_is_followed),
        // Who else gets the host's mounts has copies that the kernel lets nobody change.
        case("nothing_of_them_reaches_the_host", nothing_reaches_the_host).who(&[Who::Root]),
    ]
}

/// The names in a directory of the host.
fn names(directory: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// The names in `source` of the host where a sandbox shows it, in `below` of it.
fn names_inside(source: &Path, below: &str) -> Result<BTreeSet<String>> {
    let sandbox = View::Image
        // Of a process that ends meanwhile ls tells.
        .sh(&format!("ls -A /shown{below} 2>/dev/null; true"))?
        .mount(Mount::bind_read_only(source, "/shown"));
    Ok(printed(sandbox)?.lines().map(str::to_owned).collect())
}

/// Where filesystems are mounted below `/sys` that everybody may list: others belong to nobody inside.
fn mounted_in_sys() -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let is_open = |point: &str| {
        fs::metadata(point).is_ok_and(|it| it.is_dir() && it.permissions().mode() & 0o005 == 0o005)
    };
    Ok(points
        .filter(|point| is_open(point))
        .filter_map(|point| point.strip_prefix("/sys"))
        .filter(|point| !point.is_empty())
        .map(str::to_owned)
        .collect())
}

/// Of a supervisor that has none of them, as its first sandbox asked for none; and of one that has all.
fn shown_to_who_asks(_: &Context) -> Result<()> {
    ensure!(View::Image.read("ls /")?.contains("proc"));
    let mounted = mounted_in_sys()?;
    ensure!(!mounted.is_empty(), "nothing is mounted in /sys here");
    for _ in 0..2 {
        for below in &mounted {
            let (found, expected) = (
                names_inside(Path::new("/sys"), below)?,
                names(Path::new(&format!("/sys{below}")))?,
            );
            ensure!(
                found == expected,
                "/sys{below}: {found:?} is not {expected:?}"
            );
        }
        ensure!(names_inside(Path::new("/dev"), "/pts")?.contains("ptmx"));
        ensure!(names_inside(Path::new("/proc"), "")?.contains("meminfo"));
    }
    // What is shown to one is not to the next.
    let fresh = View::Image.read("ls -A /sys/fs/cgroup")?;
    let hosts = names(Path::new("/sys/fs/cgroup"))?;
    ensure!(
        !hosts
            .iter()
            .any(|name| fresh.lines().any(|line| line == name)),
        "{fresh}"
    );
    Ok(())
}

fn a_link_is_followed(context: &Context) -> Result<()> {
    let link = context.work().join("link");
    symlink("/sys/fs", &link)?;
    let (found, expected) = (
        names_inside(&link, "/cgroup")?,
        names(Path::new("/sys/fs/cgroup"))?,
    );
    ensure!(found == expected, "{found:?} is not {expected:?}");
    Ok(())
}

/// In a mount namespace whose mounts are shared with what is copied of them, as they are under systemd.
fn nothing_reaches_the_host(context: &Context) -> Result<()> {
    let script = r#"
        before=$(cat /proc/self/mountinfo)
        "$0" orbit run --image "$1" --mount /sys:/shown:ro -- sh -c "echo up; sleep 1" > up &
        until grep -q up up || ! kill -0 $!; do sleep 0.01; done
        test "$before" = "$(cat /proc/self/mountinfo)" || echo changed while it runs
        for pid in $(cat /proc/$!/task/$!/children); do
            echo "supervisor $pid $(grep -c . /proc/$pid/mountinfo)"
            grep -e shared: -e master: /proc/$pid/mountinfo
        done
        wait
        test "$before" = "$(cat /proc/self/mountinfo)" || echo changed at its end
        grep -c shared: /proc/self/mountinfo
    "#;
    let finished = Program::new("unshare")
        .args(["--mount", "--propagation=shared", "sh", "-c", script])
        .arg(orbit_cli::binary()?)
        .arg(images::reference("busybox")?)
        .current_dir(context.work())
        .run()?
        .success()?;
    let lines: Vec<&str> = finished.stdout.lines().collect();
    ensure!(
        lines.len() == 2 && lines[0].starts_with("supervisor "),
        "{finished}"
    );
    // The namespace was what it should be.
    ensure!(lines[1].parse::<usize>()? > 2, "{finished}");
    Ok(())
}
