//! Further programs: what they are, how they end, and that they get no more than the first one has.

use std::{
    io::Read as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit::{Init, NetworkMode, Sandbox, Status, Stdin};
use orbit_tests::{Case, Context, Who};

use crate::support::{ROLE, VIEWS, View, case, count, describe, has, read, until};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "exec::is_confined_as_the_first_program",
            is_confined_as_the_first_program,
        ),
        case("exec::is_started_as_asked", is_started_as_asked),
        case(
            "exec::a_user_is_one_of_the_image",
            a_user_is_one_of_the_image,
        )
        .who(&[Who::Root, Who::User]),
        case(
            "exec::a_user_without_an_id_is_refused",
            a_user_without_an_id_is_refused,
        )
        .who(&[Who::Single]),
        case(
            "exec::what_is_malformed_is_refused",
            what_is_malformed_is_refused,
        ),
        case("exec::ends_are_told", ends_are_told),
        case("exec::outputs_of_ten_megabytes", outputs_of_ten_megabytes),
        case(
            "exec::a_timeout_and_a_drop_kill_the_group",
            a_timeout_and_a_drop_kill_the_group,
        ),
        case("exec::a_daemon_holds_nobody_up", a_daemon_holds_nobody_up),
        case("exec::has_a_terminal", has_a_terminal),
        case(
            "exec::works_beside_a_program_that_is_process_1",
            works_beside_a_program_that_is_process_1,
        ),
        case("exec::ends_with_the_sandbox", ends_with_the_sandbox),
        case("exec::many_at_once", many_at_once),
        // Nobody else may end a process of the sandboxes' own ids.
        case(
            "exec::a_killed_worker_holds_nobody_up",
            a_killed_worker_holds_nobody_up,
        )
        .who(&[Who::Root]),
    ]
}

/// All of the kernel's account that confinement shows in, and the namespaces.
const ACCOUNT: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|Umask)' /proc/self/status; \
    for ns in mnt pid ipc uts net cgroup user; do readlink /proc/self/ns/$ns; done; \
    cat /proc/self/cgroup; ulimit -n; pwd; env | grep -vE '^(SHLVL|_|OLDPWD)=' | sort";

fn is_confined_as_the_first_program(_: &Context) -> Result<()> {
    for view in VIEWS {
        for build in [0, 1, 2, 3, 4, 5] {
            let sandbox = view.sh(&format!("({ACCOUNT}) > /tmp/account; exec sleep 1000"))?;
            let sandbox = match build {
                1 => sandbox
                    .cap_add("NET_ADMIN")
                    .cap_drop("CHOWN")
                    .ulimit("nofile", 77, 99),
                2 => sandbox.nested(true),
                3 => sandbox.cap_drop("ALL").init(Init::Program),
                4 => sandbox.network(NetworkMode::Host),
                5 => sandbox.network(NetworkMode::Host).init(Init::Program),
                _ => sandbox,
            };
            let sandbox = sandbox.env("GIVEN", "a b").start()?;
            until("the account", || {
                Ok(sandbox.read_file("/tmp/account").is_ok_and(|text| {
                    text.ends_with(b"\n") && text.windows(6).any(|w| w == b"GIVEN=")
                }))
            })?;
            let first = String::from_utf8(sandbox.read_file("/tmp/account")?)?;
            let further = read(&sandbox, ACCOUNT)?;
            ensure!(
                first == further,
                "{view:?} {build}:\n{first}\nis not\n{further}"
            );
            has(
                &further,
                &[
                    "CapInh:\t0000000000000000",
                    "CapAmb:\t0000000000000000",
                    "NoNewPrivs:\t1",
                    "Seccomp:\t2",
                ],
            )?;
            // Its parent is outside; it is no zombie's, and no stranger's.
            let parent = read(
                &sandbox,
                "grep PPid /proc/self/status | cut -f2; ls /proc | grep -cE '^[0-9]+$'",
            )?;
            ensure!(!parent.is_empty());
        }
        let sandbox = view
            .role("descriptors")?
            .cmd(["sh", "-c", "exec sleep 1000"])
            .start()?;
        let exe = if view == View::Image {
            orbit_tests::view::BINARY.into()
        } else {
            std::env::current_exe()?
        };
        let open = sandbox.exec([exe]).env(ROLE, "descriptors").run()?;
        ensure!(open.stdout_text() == "0 1 2\n", "{}", describe(&open));
    }
    Ok(())
}

fn is_started_as_asked(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view.sh("exec sleep 1000")?.env("KEPT", "1").start()?;
        let outcome = sandbox
            .exec(["sh", "-c", "pwd; echo $KEPT $MORE; cat"])
            .working_dir("/tmp")
            .env("MORE", "2")
            .stdin(Stdin::Bytes(b"typed".to_vec()))
            .run()?;
        ensure!(
            outcome.stdout_text() == "/tmp\n1 2\ntyped",
            "{view:?}: {}",
            describe(&outcome)
        );
        let outcome = sandbox
            .exec(["/usr/bin/env"])
            .env_clear()
            .env("A", "b")
            .run()?;
        let text = outcome.stdout_text();
        ensure!(
            text.lines()
                .all(|line| line == "A=b" || line.starts_with("HOME=")),
            "{view:?}: {text}"
        );
        ensure!(outcome.wall_time > Duration::ZERO && outcome.usage.max_rss_bytes > 0);
        let missing = sandbox
            .exec(["no-such-program"])
            .run()
            .expect_err("it is refused");
        ensure!(missing.is_program_not_found(), "{missing}");
        let nowhere = sandbox
            .exec(["true"])
            .working_dir("/nowhere")
            .run()
            .expect_err("it is refused");
        has(&nowhere.to_string(), &["working directory /nowhere"])?;
    }
    Ok(())
}

fn a_user_is_one_of_the_image(_: &Context) -> Result<()> {
    let sandbox = View::Image.idle()?;
    let id = |user: &str| -> Result<String> {
        let outcome = sandbox
            .exec(["sh", "-c", "id -u; id -g; id -G; echo $HOME; touch /etc/x"])
            .user(user)
            .run()?;
        ensure!(!outcome.success(), "{user} may write /etc");
        Ok(outcome.stdout_text())
    };
    ensure!(
        id("www-data")? == "33\n33\n33\n/var/www\n",
        "{}",
        id("www-data")?
    );
    ensure!(
        id("1234:33")?.starts_with("1234\n33\n33\n"),
        "{}",
        id("1234:33")?
    );
    let fields = sandbox
        .exec(["grep", "-E", "^Cap(Inh|Prm|Eff|Amb)", "/proc/self/status"])
        .user("www-data")
        .run()?;
    ensure!(
        fields
            .stdout_text()
            .lines()
            .all(|line| line.ends_with("0000000000000000")),
        "{}",
        describe(&fields)
    );
    let unknown = sandbox
        .exec(["true"])
        .user("nosuch")
        .run()
        .expect_err("it is refused")
        .to_string();
    has(&unknown, &["no user `nosuch` in the image's /etc/passwd"])?;
    Ok(())
}

fn a_user_without_an_id_is_refused(_: &Context) -> Result<()> {
    let sandbox = View::Image.idle()?;
    let error = sandbox
        .exec(["true"])
        .user("www-data")
        .run()
        .expect_err("it is refused")
        .to_string();
    has(&error, &["has no id in this sandbox"])?;
    ensure!(sandbox.exec(["true"]).user("root").run()?.success());
    Ok(())
}

fn what_is_malformed_is_refused(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view.idle()?;
        for user in [
            "",
            "0:",
            ":0",
            "ro ot",
            "-1",
            "0\0",
            "a:b:c",
            "4294967295",
            "root\n",
        ] {
            let error = sandbox
                .exec(["true"])
                .user(user)
                .run()
                .expect_err("it is refused");
            ensure!(error.is_spec(), "{user:?}: {error}");
        }
        let several = sandbox
            .exec(["true", "a\0b"])
            .env("=", "")
            .working_dir("tmp")
            .run()
            .expect_err("it is refused");
        ensure!(several.is_spec());
        has(&several.to_string(), &["exec", "env", "working_dir"])?;
        ensure!(
            sandbox
                .exec(Vec::<String>::new())
                .run()
                .expect_err("it is refused")
                .is_spec()
        );
        // A way out through a descriptor that was left open (CVE-2024-21626).
        for fd in 3..20 {
            let directory = format!("/proc/self/fd/{fd}");
            let entered = sandbox.exec(["pwd"]).working_dir(&directory).run();
            ensure!(entered.is_err(), "{directory} is {}", describe(&entered?));
        }
    }
    Ok(())
}

fn ends_are_told(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view.idle()?;
        for (script, status) in [
            ("exit 0", Status::Exited(0)),
            ("exit 255", Status::Exited(255)),
            ("kill -SEGV $$", Status::Signaled(11)),
            ("kill -KILL $$", Status::Signaled(9)),
        ] {
            let outcome = sandbox.exec(["sh", "-c", script]).run()?;
            ensure!(outcome.status == status, "{script}: {}", outcome.status);
        }
        let mut exec = sandbox.exec(["sleep", "1000"]).start()?;
        ensure!(exec.pid().is_some());
        ensure!(exec.wait_timeout(Duration::from_millis(10))?.is_none());
        exec.signal(libc::SIGTERM)?;
        ensure!(exec.wait()?.status == Status::Signaled(15));
        ensure!(exec.signal(0).is_err() && exec.pid().is_none());
        // Nothing of them is left inside but the sandbox's own.
        until("they are gone", || Ok(count(&sandbox, "sleep 1000")? == 1))?;
    }
    Ok(())
}

fn outputs_of_ten_megabytes(_: &Context) -> Result<()> {
    let sandbox = View::Host.idle()?;
    let outcome = sandbox
        .exec([
            "sh",
            "-c",
            "head -c 10485760 /dev/zero; head -c 10485760 /dev/zero >&2",
        ])
        .run()?;
    ensure!(
        outcome.success() && outcome.stdout.len() == 10 << 20 && outcome.stderr.len() == 10 << 20
    );
    Ok(())
}

fn a_timeout_and_a_drop_kill_the_group(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view.idle()?;
        let alive = || -> Result<bool> { Ok(count(&sandbox, "sleep 77")? > 0) };
        let limit = Duration::from_millis(200);
        let started = Instant::now();
        let outcome = sandbox
            .exec(["sh", "-c", "echo before; sleep 770 & sleep 771"])
            .timeout(limit)
            .run()?;
        ensure!(
            outcome.status == Status::TimedOut(limit),
            "{}",
            outcome.status
        );
        ensure!(outcome.stdout_text() == "before\n" && started.elapsed() < Duration::from_secs(5));
        until("what it started is gone", || Ok(!alive()?))?;
        let exec = sandbox
            .exec(["sh", "-c", "sleep 772 & sleep 773"])
            .start()?;
        until("it runs", alive)?;
        drop(exec);
        until("what it started is gone", || Ok(!alive()?))?;
    }
    Ok(())
}

fn a_daemon_holds_nobody_up(_: &Context) -> Result<()> {
    let sandbox = View::Host.idle()?;
    let started = Instant::now();
    let outcome = sandbox
        .exec(["sh", "-c", "setsid sleep 1000 & echo started"])
        .run()?;
    ensure!(outcome.stdout_text() == "started\n" && started.elapsed() < Duration::from_secs(5));
    // It lives on, as on the host.
    ensure!(count(&sandbox, "sleep 1000")? == 2);
    Ok(())
}

fn has_a_terminal(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view.idle()?;
        let outcome = sandbox
            .exec([
                "sh",
                "-c",
                "test -t 0 && test -t 2 && tty && echo $TERM && echo hi >/dev/tty",
            ])
            .tty(true)
            .run()?;
        has(&outcome.stdout_text(), &["/dev/pts/", "xterm", "hi"])
            .with_context(|| format!("{view:?}"))?;
        let mut typed = sandbox
            .exec(["sh", "-c", "read line; echo got $line"])
            .tty(true)
            .start()?;
        let mut terminal = std::fs::File::from(typed.take_terminal().context("a terminal")?);
        std::io::Write::write_all(&mut terminal, b"words\n")?;
        let mut text = Vec::new();
        // Its end is EIO.
        let _ = terminal.read_to_end(&mut text);
        has(&String::from_utf8_lossy(&text), &["got words"])?;
        ensure!(typed.wait()?.success());
    }
    Ok(())
}

fn works_beside_a_program_that_is_process_1(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view
            .sh("echo up; exec sleep 1000")?
            .init(Init::Program)
            .start()?;
        until("it is the program", || {
            Ok(read(&sandbox, "cat /proc/1/comm")? == "sleep\n")
        })?;
        sandbox.write_file("/tmp/f", "x")?;
        ensure!(read(&sandbox, "cat /tmp/f")? == "x" && sandbox.read_file("/tmp/f")? == b"x");
        sandbox.kill();
        sandbox.wait()?;
        ensure!(
            sandbox
                .exec(["true"])
                .run()
                .expect_err("it is refused")
                .is_ended()
        );
    }
    Ok(())
}

fn ends_with_the_sandbox(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view.sh("sleep 0.3")?.start()?;
        let mut exec = sandbox.exec(["sleep", "1000"]).start()?;
        let late = sandbox.exec(["true"]);
        ensure!(sandbox.wait()?.success());
        ensure!(exec.wait()?.status == Status::Signaled(9));
        let error = late.run().expect_err("it is refused");
        ensure!(error.is_ended(), "{error}");
        ensure!(
            sandbox
                .exec(["true"])
                .run()
                .expect_err("it is refused")
                .is_ended()
        );
        ensure!(
            sandbox
                .read_file("/etc/passwd")
                .expect_err("it is refused")
                .is_ended()
        );
        // Dropped first, with one under way.
        let sandbox = view.idle()?;
        let mut exec = sandbox.exec(["sleep", "1000"]).start()?;
        drop(sandbox);
        ensure!(exec.wait()?.status == Status::Signaled(9));
    }
    Ok(())
}

fn many_at_once(_: &Context) -> Result<()> {
    let sandbox: Sandbox = View::Host.idle()?;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let sandbox = &sandbox;
                scope.spawn(move || -> Result<()> {
                    for number in 0..8 {
                        let text = format!("{worker}-{number}");
                        let outcome = sandbox
                            .exec(["sh", "-c", &format!("echo {text}; exit {number}")])
                            .run()?;
                        ensure!(
                            outcome.status == Status::Exited(number)
                                && outcome.stdout_text().trim() == text
                        );
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("no panic"))
    })
}

/// The process that sees to a further program is ended from outside. The program is then the supervisor's own child, and
/// the kernel keeps the sandbox until that has reaped it.
fn a_killed_worker_holds_nobody_up(context: &Context) -> Result<()> {
    let first = Sandbox::builder().cmd(["sleep", "1000"]).start()?;
    let audit = context.audit();
    for _ in 0..3 {
        let sandbox = Sandbox::builder().cmd(["sleep", "1000"]).start()?;
        let further = sandbox.exec(["sleep", "1000"]).start()?;
        let pid = further.pid().context("it runs")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let worker = parent.context("it has a parent")?.trim().parse()?;
        kill(Pid::from_raw(worker), Signal::SIGKILL)?;
        let mut sandbox = sandbox;
        let begun = Instant::now();
        sandbox.kill();
        let outcome = sandbox.wait()?;
        ensure!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        ensure!(outcome.status == Status::Signaled(9), "{}", outcome.status);
        drop((further, sandbox));
    }
    audit.check()?;
    drop(first);
    Ok(())
}
