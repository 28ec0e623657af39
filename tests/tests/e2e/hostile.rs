//! The hostile cases of security.md: a payload that means to get out, and an image made to lead the way.
//!
//! Each case first makes sure that what it tries would be seen if it worked.

mod bombs;
mod descriptors;
mod full;
mod layouts;
mod libraries;
mod paths;
mod registries;
mod signals;
mod words;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use orbit::{Mount, NetworkMode, Sandbox};
use orbit_tests::{Case, Context, Program, Who, orbit_cli};

use crate::{
    kit::{ROLE, VIEWS, View, describe, exe, has, printed},
    run::sha256,
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(
            "cve_2019_5736_the_binary_is_out_of_reach",
            cve_2019_5736_the_binary_is_out_of_reach,
        ),
        case(
            "cve_2024_21626_no_directory_of_the_host_is_open",
            cve_2024_21626_no_directory_of_the_host_is_open,
        ),
        case(
            "cve_2020_15257_no_abstract_socket",
            cve_2020_15257_no_abstract_socket,
        ),
        case(
            "cve_2017_5226_nothing_is_typed",
            cve_2017_5226_nothing_is_typed,
        ),
        case("cve_2022_27650_users", cve_2022_27650_users),
        case("system_calls_that_lead_out", system_calls_that_lead_out),
        case("init_is_a_closed_book", init_is_a_closed_book),
        case("setuid_programs_gain_nothing", setuid_programs_gain_nothing),
        case(
            "a_read_only_bind_stays_read_only",
            a_read_only_bind_stays_read_only,
        ),
        case(
            "all_capabilities_are_still_not_the_hosts",
            all_capabilities_are_still_not_the_hosts,
        ),
        case("nested_is_still_inside", nested_is_still_inside),
        // A machine that is emulated fills 300 MiB of memory in a minute and more.
        case(
            "a_full_disk_is_the_sandboxes_own",
            a_full_disk_is_the_sandboxes_own,
        )
        .deadline(Duration::from_secs(90)),
    ];
    cases.extend(paths::cases());
    cases.extend(descriptors::cases());
    cases.extend(signals::cases());
    cases.extend(libraries::cases());
    cases.extend(bombs::cases());
    cases.extend(full::cases());
    cases.extend(registries::cases());
    cases.extend(words::cases());
    cases
}

fn case(name: &str, run: fn(&Context) -> Result<()>) -> Case {
    Case::new(format!("hostile::{name}"), run).deadline(Duration::from_secs(30))
}

/// A root filesystem with the host's busybox in it, to be spoilt.
fn rootfs(context: &Context, name: &str) -> Result<PathBuf> {
    let root = context.work().join(name);
    for directory in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/usr/bin/busybox", root.join("bin/busybox"))?;
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    for applet in [
        "sh", "cat", "ls", "echo", "true", "id", "readlink", "mount", "stat",
    ] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(root)
}

fn over(root: &Path, script: &str) -> orbit::SandboxBuilder {
    Sandbox::builder()
        .image(&format!("dir:{}", root.display()))
        .cmd(["sh", "-c", script])
}

fn cve_2019_5736_the_binary_is_out_of_reach(context: &Context) -> Result<()> {
    let binaries = [exe()?, orbit_cli::binary()?];
    let sums = || {
        binaries
            .iter()
            .map(|path| sha256(path))
            .collect::<Result<Vec<_>>>()
    };
    let before = sums()?;
    let root = rootfs(context, "root")?;
    fs::write(root.join("bin/again"), "#!/proc/self/exe\n")?;
    symlink("/proc/self/exe", root.join("bin/self"))?;
    fs::set_permissions(root.join("bin/again"), fs::Permissions::from_mode(0o755))?;
    let image = format!("dir:{}", root.display());
    for program in [
        "/bin/again",
        "/bin/self",
        "/proc/self/exe",
        "/proc/1/exe",
        "/proc/self/fd/3",
        "/proc/self/fd/0",
    ] {
        // Refused, or the payload's own binary: never Orbit's.
        let started = Sandbox::builder()
            .image(&image)
            .entrypoint([program])
            .arg("--help")
            .timeout(Duration::from_secs(5))
            .run();
        if let Ok(outcome) = started {
            let said = outcome.stdout_text() + &outcome.stderr_text();
            ensure!(
                !said.contains("libtest") && !said.contains("--test-threads"),
                "{program} is this binary: {said}"
            );
        }
        let finished = context
            .orbit("run")?
            .args([
                "--image",
                &image,
                "--timeout",
                "5s",
                "--entrypoint",
                program,
                "--",
                "orbit",
                "--help",
            ])
            .run()?;
        ensure!(
            !finished.stdout.contains("cargo orbit"),
            "{program} is cargo-orbit: {finished}"
        );
    }
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do for p in /proc/[0-9]*/exe; do \
                  [ $p = /proc/$$/exe ] || { (echo pwned >$p) 2>/dev/null; cat $p >/tmp/copy 2>/dev/null && ls -l $p; }; \
                  done; done; ls -l /proc/1/exe 2>&1 | grep -o -e '->.*'; true";
    for view in VIEWS {
        let outcome = view.sh(script)?.run()?;
        ensure!(
            !outcome.stdout_text().contains("e2e-"),
            "{view:?}: {}",
            describe(&outcome)
        );
        ensure!(
            !outcome.stdout_text().contains("/proc/1/exe"),
            "{view:?}: {}",
            describe(&outcome)
        );
    }
    ensure!(before == sums()?, "a binary of the host has changed");
    Ok(())
}

fn cve_2024_21626_no_directory_of_the_host_is_open(context: &Context) -> Result<()> {
    let mark = context.work().join("mark");
    fs::write(&mark, "")?;
    // Left open by a careless harness, without close-on-exec.
    let directory = fs::File::open(context.work())?;
    let _careless = nix::unistd::dup(&directory)?;
    for view in VIEWS {
        for place in (0..24).map(|fd| format!("/proc/self/fd/{fd}")).chain(
            [
                "/proc/1/cwd",
                "/proc/1/root",
                "/proc/self/cwd/../../../..",
                "/proc/thread-self/fd/7/../..",
            ]
            .map(str::to_owned),
        ) {
            let sandbox = view.sandbox()?.cmd([
                "sh",
                "-c",
                "pwd -P; ls -a . ; ls ../../../../work 2>/dev/null; true",
            ]);
            if let Ok(outcome) = sandbox
                .working_dir(&place)
                .timeout(Duration::from_secs(5))
                .run()
            {
                let seen = outcome.stdout_text();
                ensure!(
                    !seen.contains("mark") && !seen.contains("unreachable"),
                    "{view:?} {place}: {seen}"
                );
            }
        }
    }
    let root = rootfs(context, "root")?;
    for fd in [3, 5, 7, 9] {
        let link = root.join(format!("dir{fd}"));
        symlink(format!("/proc/self/fd/{fd}"), &link)?;
        let sandbox = over(&root, "pwd -P; ls").working_dir(format!("/dir{fd}"));
        if let Ok(outcome) = sandbox.run() {
            ensure!(
                !outcome.stdout_text().contains("mark"),
                "{}",
                describe(&outcome)
            );
        }
    }
    Ok(())
}

fn cve_2020_15257_no_abstract_socket(_: &Context) -> Result<()> {
    // One of ours, so that it is known that they are seen.
    let name =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
            format!("orbit-e2e-{}", std::process::id()),
        )?;
    let _listener = std::os::unix::net::UnixListener::bind_addr(&name)?;
    let _other = View::Image.sandbox()?.cmd(["sleep", "60"]).start()?;
    let found = printed(View::Host.role("abstract")?.network(NetworkMode::Host))?;
    has(&found, &[&format!("orbit-e2e-{}: ok", std::process::id())])?;
    let ours: Vec<&str> = found
        .lines()
        .filter(|line| line.contains("orbit") && !line.contains("orbit-e2e-"))
        .collect();
    ensure!(ours.is_empty(), "{ours:?}");
    // In a network of its own, there are none at all.
    ensure!(printed(View::Host.role("abstract")?)? == "0 seen\n");
    Ok(())
}

/// On the caller's own terminal: script(1) makes one, and what is typed into it would be run by its shell.
fn cve_2017_5226_nothing_is_typed(context: &Context) -> Result<()> {
    let (orbit, exe) = (orbit_cli::binary()?, exe()?);
    for terminal in ["-i", "-it"] {
        let command = format!(
            "{} orbit run --image host {terminal} --env '{ROLE}=type-into-terminal' -- {}",
            orbit.display(),
            exe.display()
        );
        let finished = Program::new("script")
            .args(["-q", "-e", "-c", &command, "/dev/null"])
            .current_dir(context.work())
            .run()?;
        let found = finished.stdout.replace('\r', "");
        for line in found
            .lines()
            .filter(|line| line.contains("TIOCSTI") || line.contains("TIOCLINUX"))
        {
            ensure!(line.ends_with(": EPERM"), "{terminal}: {line}\n{found}");
        }
        ensure!(
            found
                .lines()
                .filter(|line| line.contains("TIOCSTI"))
                .count()
                == 6,
            "{terminal}: {finished}"
        );
        if terminal == "-i" {
            // The caller's terminal is nobody's controlling terminal inside.
            has(&found, &["TIOCSCTTY: EPERM", "/dev/tty: ENXIO"])?;
        }
    }
    Ok(())
}

fn cve_2022_27650_users(context: &Context) -> Result<()> {
    for user in [
        "",
        ":",
        "a:b:c",
        "-1",
        "0:-1",
        "4294967295",
        "99999999999999",
        "0 0",
        "root\n",
        "no-such-user",
        "0:no-such-group",
        "../etc",
        "1e3",
        "0x0",
    ] {
        let started = View::Image.sandbox()?.cmd(["id", "-u"]).user(user).run();
        if let Ok(outcome) = started {
            // Nothing said is root, as an image's config with an empty user.
            ensure!(
                user.is_empty(),
                "user {user:?} is taken: {}",
                describe(&outcome)
            );
        }
    }
    let script =
        "id -u; id -g; id -G; grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status | tr -d '0\\n\\t'";
    for (user, expected) in [
        ("1000:1000", "1000\n1000\n1000\n"),
        ("nobody", "65534\n65534\n65534\n"),
        ("1234", "1234\n0\n0\n"),
    ] {
        let started = View::Image.sh(script)?.user(user).run();
        if context.who == Who::Single {
            let error = started
                .err()
                .context("it has an id that is not there")?
                .to_string();
            ensure!(!error.is_empty());
            continue;
        }
        match started {
            Ok(outcome) => ensure!(
                outcome.stdout_text() == format!("{expected}CapInh:CapPrm:CapEff:CapAmb:"),
                "{user}: {}",
                describe(&outcome)
            ),
            // The image may not name it.
            Err(error) => ensure!(user == "nobody", "{user}: {error}"),
        }
    }
    Ok(())
}

/// What is answered with something else than EPERM, and why that is as good.
const OTHERWISE: &[(&str, &str)] = &[
    ("clone3", "ENOSYS"), // so that libc uses clone, which the filter sees through
    ("x32 getpid", "ENOSYS"),
    ("mknod fifo", "ok"),
    ("getpid", "ok"),
    ("kill KILL", "ok"), // answered, and not delivered: process 1
    ("kill STOP", "ok"),
    ("kill SEGV", "ok"),
];

fn system_calls_that_lead_out(context: &Context) -> Result<()> {
    for view in VIEWS {
        let outcome = view.role("denied")?.run()?;
        ensure!(outcome.success(), "{}", describe(&outcome));
        let answers: BTreeMap<String, String> = outcome
            .stdout_text()
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, answer)| (name.to_owned(), answer.to_owned()))
            .collect();
        ensure!(answers.len() > 45, "{answers:?}");
        let mut wrong = Vec::new();
        for (name, answer) in &answers {
            let expected = OTHERWISE
                .iter()
                .find(|(call, _)| call == name)
                .map_or("EPERM", |(_, answer)| answer);
            // Signals to process 1 are another user's, where the program is no root.
            let is_kill = name.starts_with("kill ") && answer == "EPERM";
            if answer != expected && !is_kill {
                wrong.push(format!("{name}: {answer}, not {expected}"));
            }
        }
        ensure!(wrong.is_empty(), "{view:?} as {}: {wrong:#?}", context.who);
    }
    Ok(())
}

fn init_is_a_closed_book(_: &Context) -> Result<()> {
    let script = "for f in mem environ maps auxv io stack syscall fd fdinfo/0 root/etc/hosts cwd/etc map_files pagemap exe; do \
                  cat /proc/1/$f >/tmp/out 2>/dev/null && [ -s /tmp/out ] && echo read $f; \
                  ls /proc/1/$f/ 2>/dev/null | head -3; done; \
                  (echo x >/proc/1/mem) 2>/dev/null && echo wrote; \
                  kill -9 1; kill -STOP 1; kill -INT 1; kill -TERM -1 2>/dev/null; sleep 0.1; echo alive";
    for view in VIEWS {
        let outcome = view.sh(&format!("trap '' TERM INT; {script}"))?.run()?;
        let found = outcome.stdout_text();
        ensure!(found == "alive\n", "{view:?}: {}", describe(&outcome));
    }
    Ok(())
}

fn setuid_programs_gain_nothing(context: &Context) -> Result<()> {
    // Over the host's files: su, passwd and their like are there, with their bits.
    if context.who != Who::Root {
        let script = "for f in /usr/bin/su /usr/bin/passwd /usr/bin/newuidmap; do [ -u $f ] && echo bit; done | sort -u; \
                      cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id && /tmp/id -u; newuidmap $$ 0 0 1 2>/dev/null && echo mapped; true";
        let found = View::Host.read(script)?;
        ensure!(
            found == format!("bit\n{}\n", context.who.user()?.uid),
            "{found}"
        );
    }
    // In an image: root's own, for another user.
    if context.who != Who::Single {
        let root = rootfs(context, "root")?;
        fs::create_dir(root.join("setuid"))?;
        fs::copy("/usr/bin/busybox", root.join("setuid/busybox"))?;
        fs::set_permissions(
            root.join("setuid/busybox"),
            fs::Permissions::from_mode(0o6755),
        )?;
        let outcome = over(&root, "[ -u /setuid/busybox ] && /setuid/busybox id -u; grep CapEff /proc/self/status | tr -d '0\\t'").user("1000:1000").run()?;
        ensure!(
            outcome.stdout_text() == "1000\nCapEff:\n",
            "{}",
            describe(&outcome)
        );
    }
    // Made by root inside, through a bind mount: it is the caller's, and nobody else's. For root that is what SECURITY.md
    // says of writable bind mounts.
    let shared = context.work().join("shared");
    fs::create_dir(&shared)?;
    let made = View::Image
        .sh("cp /bin/busybox /s/id && chown 0:0 /s/id && chmod 6755 /s/id && /s/id id -u")?
        .mount(Mount::bind(&shared, "/s"));
    made.run()?;
    let found = fs::metadata(shared.join("id"))?;
    let caller = context.who.user()?.uid.as_raw();
    ensure!(
        (found.uid(), found.mode() & 0o7777) == (caller, 0o6755),
        "{found:?}"
    );
    Ok(())
}

fn a_read_only_bind_stays_read_only(context: &Context) -> Result<()> {
    let shared = context.work().join("shared");
    fs::create_dir_all(shared.join("deep"))?;
    fs::write(shared.join("file"), "as it was")?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777))?;
    let script = "cd /s; for try in 'echo x >file' 'rm file' 'mkdir new' 'chmod 777 file' 'touch deep/new' 'mv file other' \
                  'ln file hard' 'mount -o remount,rw /s' 'mount -o remount,bind,rw /s' 'umount /s' 'echo x >/f' \
                  'head -c 9 /dev/zero >/proc/self/cwd/file'; do (eval \"$try\") 2>/dev/null && echo did: $try; done; cat file";
    // Who is given SYS_ADMIN can make it writable again, as under Docker: that is left out.
    for (view, capability) in [
        (View::Host, "CHOWN"),
        (View::Image, "CHOWN"),
        (View::Image, "NET_ADMIN"),
        (View::Image, "DAC_READ_SEARCH"),
    ] {
        let sandbox = view
            .sh(script)?
            .cap_add(capability)
            .mount(Mount::bind_read_only(&shared, "/s"))
            .mount(Mount::bind_read_only(shared.join("file"), "/f"));
        let found = printed(sandbox)?;
        ensure!(found == "as it was", "{view:?} with {capability}: {found}");
        ensure!(fs::read_to_string(shared.join("file"))? == "as it was");
        ensure!(fs::read_dir(&shared)?.count() == 2);
    }
    Ok(())
}

fn all_capabilities_are_still_not_the_hosts(context: &Context) -> Result<()> {
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let panic = fs::read_to_string("/proc/sys/kernel/panic")?;
    let script = "mount -t tmpfs none /tmp && echo mounted; (mknod /tmp/d b 254 0 && cat /tmp/d | head -c 1) 2>/dev/null && echo disk; \
                  umount -l /proc/sys 2>/dev/null; (echo 77 >/proc/sys/kernel/panic) 2>/dev/null && echo panic; \
                  (echo o >/proc/sysrq-trigger) 2>/dev/null && echo sysrq; \
                  hostname changed; hostname; \
                  mount -t proc proc /mnt 2>/dev/null; mkdir -p /p; mount -t proc proc /p && (echo 77 >/p/sys/kernel/panic) 2>/dev/null && echo panic; \
                  for n in /dev/mem /dev/kmsg /proc/kcore; do head -c 1 $n 2>/dev/null; done; \
                  chroot /proc/1/root ls / 2>/dev/null | grep -x work; nsenter -t 1 -m ls / 2>/dev/null | grep -x work; true";
    let sandbox = View::Image
        .sh(script)?
        .cap_add("ALL")
        .timeout(Duration::from_secs(10));
    let found = printed(sandbox)?;
    for sign in ["disk", "panic", "sysrq", "work"] {
        ensure!(
            !found.lines().any(|line| line == sign),
            "as {}: {found}",
            context.who
        );
    }
    has(&found, &["mounted", "changed"])?;
    ensure!(fs::read_to_string("/proc/sys/kernel/hostname")? == hostname);
    ensure!(fs::read_to_string("/proc/sys/kernel/panic")? == panic);
    Ok(())
}

fn nested_is_still_inside(context: &Context) -> Result<()> {
    let before = fs::read_to_string("/proc/self/mountinfo")?;
    let script = "unshare -Urm sh -c 'mount -t tmpfs none /tmp && echo mounted; ls /proc/1/root/ 2>/dev/null; \
                  mount --bind / /mnt 2>/dev/null && ls /mnt | grep -x host; \
                  (echo x >/etc/orbit-e2e) 2>/dev/null; umount -l /proc 2>/dev/null; umount -l / 2>/dev/null; id -u'";
    let outcome = View::Host.sh(script)?.nested(true).run()?;
    ensure!(
        outcome.success() && outcome.stdout_text() == "mounted\n0\n",
        "as {}: {}",
        context.who,
        describe(&outcome)
    );
    ensure!(!fs::exists("/etc/orbit-e2e")?);
    ensure!(fs::read_to_string("/proc/self/mountinfo")? == before);
    let refused = View::Host.sh("unshare -Ur true")?.run()?;
    ensure!(
        !refused.success(),
        "it may make a user namespace without being asked to"
    );
    Ok(())
}

fn a_full_disk_is_the_sandboxes_own(_: &Context) -> Result<()> {
    for view in VIEWS {
        // Twice what there is, to every place that can be written to.
        let script = "for d in /tmp $HOME . /dev/shm /run; do [ -w $d ] || continue; \
                      head -c 200000000 /dev/zero 2>/dev/null >$d/fill && echo $d took it; rm -f $d/fill; done; \
                      [ ! -w /dev ] || { head -c 200000000 /dev/zero 2>/dev/null >/dev/fill && echo /dev took it; }; true";
        let found = printed(view.sh(script)?.disk("16M"))?;
        ensure!(!found.contains("took it"), "{view:?}: {found}");
        let small = Mount::tmpfs("/t").size(orbit::Bytes::mib(1));
        let found = view.sh("head -c 2000000 /dev/zero >/t/x; echo $?; head -c 500000 /dev/zero >/t/x && echo fits")?.mount(small).run()?;
        ensure!(
            found.stdout_text() == "1\nfits\n" && !found.stderr.is_empty(),
            "{}",
            describe(&found)
        );
    }
    Ok(())
}
