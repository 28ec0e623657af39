//! What is in the machine: a disk with the programs and all they need, and the first root that finds it.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    cpio::Archive,
    kernel::Kernel,
    output,
    script::{self, Job, PROBED, SINGLE, USER},
    systemd,
};

/// The programs that tests and rootless sandboxes call, where this machine has them.
const PROGRAMS: [&str; 13] = [
    "/usr/bin/newuidmap",
    "/usr/bin/newgidmap",
    "/usr/bin/setpriv",
    "/usr/sbin/ip",
    "/usr/sbin/nft",
    "/usr/bin/ps",
    "/usr/bin/lsns",
    "/usr/bin/unshare",
    "/usr/bin/mount",
    "/usr/bin/script",
    // Busybox has one that goes on where nothing can be written,
    "/usr/bin/head",
    // and its shell takes its own programs for all others.
    "/usr/bin/sh",
    "/usr/bin/env",
];

/// The disk for `jobs`.
pub(super) fn disk(directory: &Path, jobs: &[Job]) -> Result<PathBuf> {
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for path in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "etc",
        "home/user",
        "home/single",
        "srv",
        "mnt",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "var/tmp",
    ] {
        fs::create_dir_all(root.join(path))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link))?;
    }
    for (path, content) in files() {
        fs::write(root.join(path), content)?;
    }
    let busybox = root.join("usr/bin/busybox");
    fs::copy("/bin/busybox", &busybox)
        .context("copy /bin/busybox: install the package busybox-static")?;
    for applet in output(Command::new("/bin/busybox").arg("--list"))?.lines() {
        let link = root.join("usr/bin").join(applet);
        // `busybox` itself is among them.
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    let mut programs: BTreeSet<PathBuf> = jobs.iter().map(|job| job.program.clone()).collect();
    programs.extend(
        PROGRAMS
            .iter()
            .map(PathBuf::from)
            .filter(|path| path.exists()),
    );
    for program in &programs {
        place_program(&root, program)?;
    }
    let extra: BTreeSet<&PathBuf> = jobs.iter().flat_map(|job| &job.extra).collect();
    for extra in extra {
        if extra.is_file() {
            place_program(&root, extra)?;
        } else {
            place_tree(&root, extra)?;
        }
    }
    if let Some(job) = jobs.iter().find(|job| job.systemd) {
        for program in systemd::PROGRAMS {
            place_program(&root, Path::new(program))?;
        }
        systemd::place(&root, job)?;
    }
    let script = root.join("init");
    fs::write(&script, script::init(jobs))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;

    let image = directory.join("disk.img");
    let content_mib = output(Command::new("du").arg("-sm").arg(&root))?
        .split_whitespace()
        .next()
        .and_then(|mib| mib.parse::<u64>().ok())
        .unwrap_or(0);
    let file = fs::File::create(&image)?;
    file.set_len((content_mib * 5 / 4 + 1024) << 20)?;
    output(
        Command::new("mke2fs")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-E",
                "root_owner=0:0",
                "-O",
                "^has_journal",
                "-d",
            ])
            .arg(&root)
            .arg(&image),
    )?;
    Ok(image)
}

fn files() -> [(&'static str, String); 7] {
    [
        (
            "etc/passwd",
            format!(
                "root:x:0:0:root:/root:/bin/sh\norbit-test:x:{USER}:{USER}::/home/user:/bin/sh\n\
                 orbit-single:x:{SINGLE}:{SINGLE}::/home/single:/bin/sh\n\
                 nobody:x:65534:65534::/:/bin/false\n"
            ),
        ),
        (
            "etc/group",
            format!(
                "root:x:0:\norbit-test:x:{USER}:\norbit-single:x:{SINGLE}:\nnogroup:x:65534:\n"
            ),
        ),
        ("etc/subuid", "orbit-test:100000:65536\n".to_owned()),
        ("etc/subgid", "orbit-test:100000:65536\n".to_owned()),
        ("etc/hostname", "orbit-vm\n".to_owned()),
        ("etc/hosts", "127.0.0.1 localhost orbit-vm\n".to_owned()),
        (
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n".to_owned(),
        ),
    ]
}

/// Copies a program, and what it loads, to the same paths.
fn place_program(root: &Path, program: &Path) -> Result<()> {
    place(root, program)?;
    // A static program loads nothing, and ldd says so by failing.
    let libraries = output(Command::new("ldd").arg(program)).unwrap_or_default();
    for word in libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        place(root, Path::new(word))?;
    }
    Ok(())
}

fn place(root: &Path, file: &Path) -> Result<()> {
    let to = inside(root, file)?;
    // Busybox has some of them too, in its own way.
    if to.is_symlink() {
        fs::remove_file(&to)?;
    }
    if !to.exists() {
        fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
        fs::copy(file, &to).with_context(|| format!("copy {}", file.display()))?;
    }
    Ok(())
}

/// Where an absolute path is in the root, with the links of its top followed there.
fn inside(root: &Path, path: &Path) -> Result<PathBuf> {
    ensure!(path.is_absolute(), "{} is not absolute", path.display());
    let relative = path.strip_prefix("/").unwrap_or(path);
    let first = relative.iter().next().unwrap_or_default();
    let merged = ["bin", "sbin", "lib", "lib64"]
        .iter()
        .any(|top| first == *top);
    Ok(if merged {
        root.join("usr").join(relative)
    } else {
        root.join(relative)
    })
}

/// Copies a file or a directory with all in it.
fn place_tree(root: &Path, path: &Path) -> Result<()> {
    let to = inside(root, path)?;
    fs::create_dir_all(to.parent().context("it is in a directory")?)?;
    output(Command::new("cp").arg("-a").arg(path).arg(to))?;
    Ok(())
}

/// The first root: loads what the disk needs, and goes on from there.
pub(super) fn initramfs(directory: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for path in ["bin", "dev", "proc", "root", "modules"] {
        archive.directory(path);
    }
    archive.program("bin/busybox", &fs::read("/bin/busybox")?);
    let mut script =
        vec!["#!/bin/busybox sh\nB=/bin/busybox\n$B mount -t devtmpfs dev /dev\n".to_owned()];
    for (number, module) in kernel.modules.iter().enumerate() {
        let name = format!("modules/{number:02}.ko");
        archive.program(&name, &fs::read(module)?);
        script.push(format!("$B insmod /{name}\n"));
    }
    script.push(format!(
        "test -b /dev/vda || {{ echo '{PROBED}'; $B poweroff -f; }}\n\
         $B mount -t ext4 -o rw /dev/vda /root || echo 'orbit-vm: no disk'\n\
         $B umount /dev\n\
         exec $B switch_root /root /init\n",
    ));
    archive.program("init", script.concat().as_bytes());
    let path = directory.join("initramfs.cpio");
    fs::write(&path, archive.finish())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::inside;

    #[test]
    fn paths_stay_what_they_are_but_for_merged_tops() {
        let at = |path| inside(Path::new("/r"), Path::new(path)).unwrap();
        assert_eq!(at("/lib64/ld.so"), Path::new("/r/usr/lib64/ld.so"));
        assert_eq!(at("/work/a"), Path::new("/r/work/a"));
        assert!(inside(Path::new("/r"), Path::new("a")).is_err());
    }
}
