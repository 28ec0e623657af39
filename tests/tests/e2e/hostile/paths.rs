//! Paths that lead elsewhere: an image whose directories are links, or are swapped for links while they are used.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orbit::Mount;
use orbit_tests::{Case, Context};

use super::{case, over, rootfs};
use crate::kit::{describe, has, refused};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "cve_2025_31133_links_where_orbit_mounts",
            cve_2025_31133_links_where_orbit_mounts,
        ),
        case("links_in_etc_lead_nowhere", links_in_etc_lead_nowhere),
        case("mount_targets_that_are_links", mount_targets_that_are_links),
        case(
            "cve_2021_30465_a_target_that_is_swapped",
            cve_2021_30465_a_target_that_is_swapped,
        ),
    ]
}

/// An image in which a directory that Orbit mounts on, or a file that it covers, is a link.
fn cve_2025_31133_links_where_orbit_mounts(context: &Context) -> Result<()> {
    let outside = context.work().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("null"), "outside")?;
    let climb = format!(
        "{}{}",
        "../".repeat(20),
        outside.strip_prefix("/")?.display()
    );
    let targets = [
        outside.display().to_string(),
        climb,
        "/proc/self/root".into(),
        "/proc/1/root/tmp".into(),
        "etc".into(),
        "loop".into(),
        ".".into(),
        "..".into(),
    ];
    for name in ["dev", "proc", "sys"] {
        for (number, target) in targets.iter().enumerate() {
            let root = rootfs(context, &format!("{name}-{number}"))?;
            symlink(target, root.join(name))?;
            symlink("loop", root.join("loop"))?;
            let error =
                refused(over(&root, "true")).with_context(|| format!("/{name} -> {target}"))?;
            has(&error, &[&format!("/{name}"), "directory"])?;
        }
        let root = rootfs(context, &format!("{name}-file"))?;
        fs::write(root.join(name), "")?;
        has(&refused(over(&root, "true"))?, &[&format!("/{name}")])?;
    }
    // Links below them are covered by what is mounted on them.
    let root = rootfs(context, "below")?;
    for directory in ["dev", "proc", "sys"] {
        fs::create_dir(root.join(directory))?;
    }
    for name in ["null", "pts", "shm", "mqueue", "console", "tty", "ptmx"] {
        symlink(outside.join("null"), root.join("dev").join(name))?;
    }
    for name in ["kcore", "sys", "timer_list", "self"] {
        symlink(&outside, root.join("proc").join(name))?;
    }
    let outcome = over(&root, "echo x >/dev/null; stat -c %t:%T /dev/null; cat /proc/sys/kernel/ostype; cat /proc/timer_list; mount | cat >/dev/null").run()?;
    ensure!(
        outcome.stdout_text() == "1:3\nLinux\n",
        "{}",
        describe(&outcome)
    );
    let outcome = over(&root, "ls /dev/console && tty").tty(true).run()?;
    ensure!(outcome.success(), "{}", describe(&outcome));
    ensure!(fs::read_to_string(outside.join("null"))? == "outside");
    ensure!(
        fs::read_dir(&outside)?.count() == 1,
        "something was made outside"
    );
    Ok(())
}

/// A path of the host by the name it has for the supervisor: what a link that is followed from there would hit.
fn as_supervisor(path: &Path) -> String {
    format!("/host{}", path.display())
}

fn links_in_etc_lead_nowhere(context: &Context) -> Result<()> {
    let outside = context.work().join("outside");
    fs::create_dir(&outside)?;
    for name in ["hosts", "hostname", "resolv.conf", "passwd", "group"] {
        fs::write(
            outside.join(name),
            format!("root:x:0:0:outside-{name}:/:\n"),
        )?;
    }
    let contents = || -> Result<BTreeMap<_, _>> {
        fs::read_dir(&outside)?
            .map(|entry| {
                let path = entry?.path();
                Ok((path.clone(), fs::read(path)?))
            })
            .collect()
    };
    let before = contents()?;
    let climb = format!(
        "{}{}",
        "../".repeat(20),
        outside.strip_prefix("/")?.display()
    );
    for (number, target) in [
        outside.display().to_string(),
        as_supervisor(&outside),
        climb,
        "/proc/self/cwd".into(),
        "/proc/1/root/etc".into(),
        "tmp".into(),
    ]
    .iter()
    .enumerate()
    {
        // All of /etc, then each file of it.
        let root = rootfs(context, &format!("etc-{number}"))?;
        fs::remove_dir(root.join("etc"))?;
        symlink(target, root.join("etc"))?;
        for result in [
            over(&root, "cat /etc/*").run(),
            over(&root, "cat /etc/*").user("root").run(),
        ]
        .into_iter()
        .flatten()
        {
            ensure!(
                !result.stdout_text().contains("outside-"),
                "/etc -> {target}: {}",
                describe(&result)
            );
        }
        let root = rootfs(context, &format!("files-{number}"))?;
        for name in ["hosts", "hostname", "resolv.conf", "passwd", "group"] {
            symlink(format!("{target}/{name}"), root.join("etc").join(name))?;
        }
        let outcome = over(&root, "cat /etc/hosts /etc/passwd /etc/group; true")
            .user("0:0")
            .run()?;
        ensure!(
            outcome.success() && !outcome.stdout_text().contains("outside-"),
            "{}",
            describe(&outcome)
        );
        has(&outcome.stdout_text(), &["localhost"])?;
        let error = refused(over(&root, "true").user("outside-passwd"))?;
        has(&error, &["outside-passwd"])?;
    }
    // Files that would hang or flood who reads them.
    let root = rootfs(context, "fifo")?;
    nix::unistd::mkfifo(&root.join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU)?;
    symlink("/dev/zero", root.join("etc/group"))?;
    let started = Instant::now();
    ensure!(over(&root, "true").user("0").run()?.success());
    has(&refused(over(&root, "true").user("someone"))?, &["someone"])?;
    ensure!(started.elapsed() < Duration::from_secs(5));
    ensure!(contents()? == before, "a file outside changed");
    Ok(())
}

fn mount_targets_that_are_links(context: &Context) -> Result<()> {
    let outside = context.work().join("outside");
    let source = context.work().join("source");
    for directory in [&outside, &source] {
        fs::create_dir(directory)?;
    }
    fs::write(source.join("mine"), "mine")?;
    let root = rootfs(context, "root")?;
    let climb = format!(
        "{}{}",
        "../".repeat(20),
        outside.strip_prefix("/")?.display()
    );
    for (name, target) in [
        ("supervisors", as_supervisor(&outside)),
        ("absolute", outside.display().to_string()),
        ("relative", climb),
        ("magic", "/proc/self/root".into()),
        ("magic2", "/proc/1/cwd".into()),
    ] {
        symlink(target, root.join(name))?;
        for at in [
            format!("/{name}"),
            format!("/{name}/deep/er"),
            format!("/bin/../{name}/x"),
        ] {
            let mounts = [
                Mount::bind(&source, &at),
                Mount::tmpfs(&at),
                Mount::overlay(&source, &at),
                Mount::bind(source.join("mine"), format!("{at}/file")),
            ];
            for mount in mounts {
                // Inside, or refused.
                let started = over(&root, "echo x >/tmp/x").mount(mount).run();
                if let Ok(outcome) = started {
                    ensure!(outcome.success(), "{at}: {}", describe(&outcome));
                }
            }
        }
    }
    ensure!(
        fs::read_dir(&outside)?.count() == 0,
        "made outside: {:?}",
        fs::read_dir(&outside)?.collect::<Vec<_>>()
    );
    ensure!(!root.join("tmp/x").exists());
    Ok(())
}

fn cve_2021_30465_a_target_that_is_swapped(context: &Context) -> Result<()> {
    let (volume, source) = (context.work().join("volume"), context.work().join("source"));
    let outside = context.work().join("outside");
    for directory in [&volume, &source, &outside] {
        fs::create_dir(directory)?;
    }
    fs::write(source.join("mark"), "")?;
    let root = rootfs(context, "root")?;
    // A payload that shares the volume swaps the target for a link to `/`, again and again.
    let swap = "cd /v; while :; do mkdir t 2>/dev/null; ln -s / l 2>/dev/null; mv t t2 2>/dev/null; mv l t 2>/dev/null; \
                busybox rm -rf l; busybox rm -f t; mv t2 t 2>/dev/null; busybox rmdir t 2>/dev/null; busybox rm -rf t2; done";
    symlink("busybox", root.join("bin/mkdir"))?;
    symlink("busybox", root.join("bin/ln"))?;
    symlink("busybox", root.join("bin/mv"))?;
    let _swapper = over(&root, swap)
        .mount(Mount::bind(&volume, "/v"))
        .start()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        // And so does somebody on the host, who is faster.
        scope.spawn(|| {
            let target = volume.join("h");
            while !done.load(Ordering::Relaxed) {
                let _ = fs::create_dir(&target);
                let _ = fs::remove_dir(&target);
                let _ = symlink(as_supervisor(&outside), &target);
                let _ = fs::remove_file(&target);
            }
        });
        let (until, mut started, mut refused) = (Instant::now() + Duration::from_secs(2), 0, 0);
        let mut result = Ok(());
        while Instant::now() < until && result.is_ok() {
            for at in ["/v/t", "/v/h", "/v/h/below"] {
                let script = "ls -d /mark /outside/mark 2>/dev/null; cat /proc/self/mountinfo";
                let sandbox = over(&root, script)
                    .mount(Mount::bind(&volume, "/v"))
                    .mount(Mount::bind(&source, at));
                match sandbox.run() {
                    Ok(outcome) => {
                        started += 1;
                        // On the volume, or where a link led inside the root: never outside of it.
                        let seen = outcome.stdout_text();
                        if seen.lines().any(|line| line.starts_with("/outside")) {
                            result = Err(anyhow::anyhow!("{}", describe(&outcome)));
                        }
                    }
                    Err(_) => refused += 1,
                }
                if fs::read_dir(&outside)?.count() > 0 {
                    result = Err(anyhow::anyhow!(
                        "something was made outside, by way of {at}"
                    ));
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        result?;
        ensure!(started > 0, "none of {refused} started: nothing was tried");
        Ok(())
    })?;
    Ok(())
}
