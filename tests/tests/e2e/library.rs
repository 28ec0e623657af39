//! `Sandbox` as a test uses it: streams, signals, ends, many at once, and what it makes of odd programs.

use std::{
    fs,
    io::{Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orbit::{Init, Output, Sandbox, Status, Stdin};
use orbit_tests::{Case, Context, main_loop::patience};

use crate::kit::{VIEWS, View, describe, has, printed, refused};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("library::{name}"), run).deadline(Duration::from_secs(30))
    };
    vec![
        case("ends_are_told", ends_are_told),
        case("input_is_what_was_given", input_is_what_was_given),
        case(
            "ten_megabytes_on_both_outputs",
            ten_megabytes_on_both_outputs,
        ),
        case(
            "an_output_ends_when_the_program_closes_it",
            an_output_ends_when_the_program_closes_it,
        ),
        case(
            "outputs_go_where_they_are_sent",
            outputs_go_where_they_are_sent,
        ),
        case(
            "a_handle_signals_stops_and_kills",
            a_handle_signals_stops_and_kills,
        ),
        case("stop_is_patient_and_then_not", stop_is_patient_and_then_not),
        case(
            "stop_ends_a_program_that_never_stops_writing",
            stop_ends_a_program_that_never_stops_writing,
        ),
        case("a_timeout_ends_all_of_it", a_timeout_ends_all_of_it),
        case("dropped_is_gone", dropped_is_gone),
        case(
            "one_that_stays_takes_further_programs",
            one_that_stays_takes_further_programs,
        ),
        case("a_clock_ahead", a_clock_ahead),
        case("orphans_are_reaped", orphans_are_reaped),
        case("daemons_are_killed_and_named", daemons_are_killed_and_named),
        case(
            "a_daemon_that_holds_the_output_open_delays_nobody",
            a_daemon_that_holds_the_output_open_delays_nobody,
        ),
        case("a_program_may_be_process_1", a_program_may_be_process_1),
        case(
            "process_1_that_cannot_start_is_an_error",
            process_1_that_cannot_start_is_an_error,
        ),
        case(
            "a_stopped_program_can_be_ended",
            a_stopped_program_can_be_ended,
        ),
        case(
            "sixty_four_at_once_from_sixteen_threads",
            sixty_four_at_once_from_sixteen_threads,
        ),
        case(
            "it_outlives_the_thread_that_started_it",
            it_outlives_the_thread_that_started_it,
        ),
        case(
            "a_fork_bomb_ends_with_its_sandbox",
            a_fork_bomb_ends_with_its_sandbox,
        ),
        case(
            "words_and_variables_of_any_size",
            words_and_variables_of_any_size,
        ),
        case("a_terminal", a_terminal),
        case(
            "a_failed_one_does_not_harm_the_next",
            a_failed_one_does_not_harm_the_next,
        ),
    ]
}

fn ends_are_told(_: &Context) -> Result<()> {
    for view in VIEWS {
        for (script, status) in [
            ("exit 0", Status::Exited(0)),
            ("exit 255", Status::Exited(255)),
            ("kill -KILL $$", Status::Signaled(9)),
            ("kill -SEGV $$", Status::Signaled(11)),
            ("ulimit -t 1; while :; do :; done", Status::Signaled(9)),
        ] {
            let outcome = view.sh(script)?.run()?;
            // A processor's time is up with SIGXCPU or with SIGKILL, as soft and hard limits are one.
            let ended = outcome.status == status
                || script.contains("ulimit") && outcome.status == Status::Signaled(24);
            ensure!(ended, "{view:?} {script}: {}", describe(&outcome));
        }
        let outcome = view
            .sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 0.2")?
            .run()?;
        ensure!(
            outcome.wall_time >= Duration::from_millis(200),
            "{outcome:?}"
        );
        ensure!(
            outcome.usage.cpu_user > Duration::ZERO && outcome.usage.max_rss_bytes > 100_000,
            "{outcome:?}"
        );
    }
    Ok(())
}

fn input_is_what_was_given(context: &Context) -> Result<()> {
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1])
        .collect();
    for view in VIEWS {
        let outcome = view
            .sandbox()?
            .cmd(["cat"])
            .stdin(Stdin::Bytes(bytes.clone()))
            .run()?;
        ensure!(
            outcome.stdout == bytes,
            "{view:?}: {} bytes came back",
            outcome.stdout.len()
        );
        let outcome = view.sandbox()?.cmd(["cat"]).run()?;
        ensure!(outcome.success() && outcome.stdout.is_empty());
        // One that does not read it harms nobody.
        let outcome = view
            .sandbox()?
            .cmd(["true"])
            .stdin(Stdin::Bytes(bytes.clone()))
            .run()?;
        ensure!(outcome.success());
    }
    fs::write(context.work().join("in"), "from a file")?;
    let file = fs::File::open(context.work().join("in"))?;
    ensure!(
        printed(
            Sandbox::builder()
                .cmd(["cat"])
                .stdin(Stdin::Fd(file.into()))
        )? == "from a file"
    );
    // A program that closes its input is seen to.
    let (reader, mut writer) = std::io::pipe()?;
    let mut sandbox = Sandbox::builder()
        .cmd(["sh", "-c", "exec <&-; sleep 20"])
        .stdin(Stdin::Fd(reader.into()))
        .start()?;
    thread::sleep(Duration::from_millis(200));
    let broken = writer.write_all(&vec![0; 1 << 17]);
    ensure!(
        broken
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe),
        "someone else holds the program's input: {broken:?}"
    );
    sandbox.kill();
    sandbox.wait()?;
    Ok(())
}

fn ten_megabytes_on_both_outputs(_: &Context) -> Result<()> {
    const COUNT: usize = 10 << 20;
    for view in VIEWS {
        let outcome = view.role(&format!("flood {COUNT}"))?.run()?;
        ensure!(outcome.success(), "{}", outcome.status);
        ensure!(
            outcome.stdout.len() == COUNT && outcome.stderr.len() == COUNT,
            "{} and {}",
            outcome.stdout.len(),
            outcome.stderr.len()
        );
    }
    // Started, and waited for late: the program waits for a reader, and nothing is lost.
    let mut sandbox = View::Host.role("flood 1048576")?.start()?;
    thread::sleep(Duration::from_millis(300));
    ensure!(sandbox.wait()?.stdout.len() == 1 << 20);
    Ok(())
}

fn an_output_ends_when_the_program_closes_it(_: &Context) -> Result<()> {
    for view in VIEWS {
        let (mut reader, writer) = std::io::pipe()?;
        let started = Instant::now();
        let mut sandbox = view
            .sh("echo last; exec >&-; sleep 20")?
            .stdout(Output::Fd(writer.into()))
            .start()?;
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        ensure!(
            text == "last\n" && started.elapsed() < Duration::from_secs(10),
            "{text:?} after {:?}",
            started.elapsed()
        );
        sandbox.kill();
        sandbox.wait()?;
    }
    Ok(())
}

fn outputs_go_where_they_are_sent(context: &Context) -> Result<()> {
    let file = fs::File::create(context.work().join("out"))?;
    let outcome = View::Image
        .sh("echo out; echo err >&2")?
        .stdout(Output::Fd(file.into()))
        .stderr(Output::Null)
        .run()?;
    ensure!(outcome.stdout.is_empty() && outcome.stderr.is_empty());
    ensure!(fs::read_to_string(context.work().join("out"))? == "out\n");
    let outcome = View::Host.sh("echo out; echo err >&2; exit 3")?.run()?;
    ensure!(outcome.stdout == b"out\n" && outcome.stderr == b"err\n");
    Ok(())
}

fn a_handle_signals_stops_and_kills(_: &Context) -> Result<()> {
    for view in VIEWS {
        let (mut reader, writer) = std::io::pipe()?;
        let mut sandbox = view
            .sh("trap 'echo usr1; exit 4' USR1; echo up; while :; do sleep 0.01; done")?
            .stdout(Output::Fd(writer.into()))
            .start()?;
        let mut up = [0; 3];
        reader.read_exact(&mut up)?;
        let pid = sandbox.pid().context("it runs")?;
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        ensure!(
            ["sh\n", "dash\n", "busybox\n"].contains(&comm.as_str()),
            "pid {pid} is {comm}"
        );
        ensure!(sandbox.id().len() == 12);
        ensure!(sandbox.signal(0).is_err() && sandbox.signal(1000).is_err());
        sandbox.signal(libc::SIGUSR1)?;
        let outcome = sandbox.wait()?;
        ensure!(outcome.status == Status::Exited(4), "{}", outcome.status);
        let mut rest = String::new();
        reader.read_to_string(&mut rest)?;
        ensure!(rest == "usr1\n", "{rest}");
        ensure!(sandbox.pid().is_none() && !fs::exists(format!("/proc/{pid}"))?);
        // Once more is the same, and a signal to nobody is nothing.
        ensure!(sandbox.wait()?.status == outcome.status);
        sandbox.signal(libc::SIGTERM)?;
        sandbox.kill();
        ensure!(sandbox.stop(Duration::ZERO)?.status == outcome.status);

        // A real-time signal, which has a number and no name.
        let mut sandbox = view.sandbox()?.cmd(["sleep", "60"]).start()?;
        sandbox.signal(36)?;
        ensure!(sandbox.wait()?.status == Status::Signaled(36));

        let mut sandbox = view.sandbox()?.cmd(["sleep", "60"]).start()?;
        sandbox.kill();
        ensure!(sandbox.wait()?.status == Status::Signaled(9));
    }
    Ok(())
}

fn stop_is_patient_and_then_not(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view.sandbox()?.cmd(["sleep", "60"]).start()?;
        ensure!(sandbox.stop(Duration::from_secs(10))?.status == Status::Signaled(15));
        let mut sandbox = view
            .sh("trap 'sleep 0.2; exit 6' TERM; while :; do sleep 0.01; done")?
            .start()?;
        thread::sleep(Duration::from_millis(100));
        ensure!(sandbox.stop(Duration::from_secs(10))?.status == Status::Exited(6));
        let mut sandbox = view
            .sh("trap '' TERM INT HUP QUIT; while :; do sleep 0.01; done")?
            .start()?;
        thread::sleep(Duration::from_millis(100));
        let started = Instant::now();
        ensure!(sandbox.stop(Duration::from_millis(300))?.status == Status::Signaled(9));
        let took = started.elapsed();
        ensure!(
            took >= Duration::from_millis(300) && took < Duration::from_secs(3),
            "{took:?}"
        );
    }
    Ok(())
}

fn stop_ends_a_program_that_never_stops_writing(_: &Context) -> Result<()> {
    let mut sandbox = View::Host.sh("trap '' TERM; exec yes")?.start()?;
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    let outcome = sandbox.stop(Duration::from_millis(300))?;
    let took = started.elapsed();
    ensure!(
        outcome.status == Status::Signaled(9) && took < Duration::from_secs(5),
        "{} after {took:?}",
        outcome.status
    );
    Ok(())
}

fn a_timeout_ends_all_of_it(_: &Context) -> Result<()> {
    // Enough for `echo`.
    let limit = Duration::from_millis(300) * patience();
    for view in VIEWS {
        for init in [Init::Orbit, Init::Program] {
            let started = Instant::now();
            let script = "echo before; (trap '' TERM; setsid sleep 60 &); sleep 60";
            let outcome = view.sh(script)?.init(init).timeout(limit).run()?;
            ensure!(
                outcome.status == Status::TimedOut(limit),
                "{view:?} {init:?}: {}",
                describe(&outcome)
            );
            ensure!(outcome.stdout == b"before\n");
            ensure!(started.elapsed() < limit * 10, "{:?}", started.elapsed());
        }
        let outcome = view
            .sandbox()?
            .cmd(["true"])
            .timeout(Duration::from_secs(60))
            .run()?;
        ensure!(outcome.success());
    }
    Ok(())
}

fn dropped_is_gone(context: &Context) -> Result<()> {
    drop(View::Image.sandbox()?.cmd(["true"]).start()?);
    let audit = context.audit();
    for _ in 0..20 {
        drop(View::Host.sh("(setsid sleep 60 &); sleep 60")?.start()?);
    }
    // The supervisor stays, and what it needs; nothing else does, and at once.
    let processes = orbit_tests::proc_fs::descendants(std::process::id() as i32);
    ensure!(
        processes
            .iter()
            .all(|process| !process.command.contains("sleep")),
        "{processes:?}"
    );
    audit.check()?;
    Ok(())
}

/// As `cargo orbit test` asks a binary twice for its tests in one sandbox. Its program ends before anything is asked.
fn one_that_stays_takes_further_programs(_: &Context) -> Result<()> {
    let script = "echo first > /tmp/said; sleep 60 & exit 3";
    let sandbox = Sandbox::builder().cmd(["sh", "-c", script]);
    let mut sandbox = orbit::__private::stay(sandbox).start()?;
    let first = sandbox.wait()?;
    ensure!(first.status == Status::Exited(3), "{first:?}");
    ensure!(first.leaked.len() == 1, "{:?}", first.leaked);
    for _ in 0..2 {
        let further = sandbox.exec(["sh", "-c", "cat /tmp/said; exit 4"]).run()?;
        ensure!(further.status == Status::Exited(4), "{further:?}");
        ensure!(further.stdout_text() == "first\n", "{further:?}");
    }
    // Nothing but this ends it: what is left is seen by the audit.
    drop(sandbox);
    Ok(())
}

fn orphans_are_reaped(_: &Context) -> Result<()> {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do (sh -c 'true & true &' ); done; sleep 0.2; \
                  grep -h '^State' /proc/[0-9]*/status 2>/dev/null | grep -c Z; true";
    for view in VIEWS {
        let found = view.read(script)?;
        ensure!(found == "0\n", "{view:?}: {found} zombies");
        let outcome = view.sh(script)?.run()?;
        ensure!(outcome.leaked.is_empty(), "{:?}", outcome.leaked);
    }
    Ok(())
}

fn daemons_are_killed_and_named(_: &Context) -> Result<()> {
    for view in VIEWS {
        let started = Instant::now();
        let outcome = view
            .sh(
                // Until it is the program whose name it is told by.
                "(trap '' TERM; setsid sleep 600 >/dev/null 2>&1 </dev/null &) ; sleep 0.5; exit 5",
            )?
            .run()?;
        ensure!(outcome.status == Status::Exited(5), "{}", outcome.status);
        ensure!(started.elapsed() < Duration::from_secs(5));
        let named = outcome
            .leaked
            .iter()
            .any(|process| ["sleep", "busybox"].contains(&process.name.as_str()));
        ensure!(named, "{view:?}: {:?}", outcome.leaked);
    }
    Ok(())
}

fn a_daemon_that_holds_the_output_open_delays_nobody(_: &Context) -> Result<()> {
    for view in VIEWS {
        let started = Instant::now();
        let outcome = view.sh("(setsid sleep 600 &); echo done")?.run()?;
        ensure!(
            outcome.success() && outcome.stdout == b"done\n",
            "{}",
            describe(&outcome)
        );
        ensure!(
            started.elapsed() < Duration::from_secs(5),
            "{:?}",
            started.elapsed()
        );
    }
    Ok(())
}

fn a_program_may_be_process_1(_: &Context) -> Result<()> {
    for view in VIEWS {
        let outcome = view
            .sh("echo $$; cat /proc/1/comm; exit 9")?
            .init(Init::Program)
            .run()?;
        ensure!(
            outcome.status == Status::Exited(9),
            "{}",
            describe(&outcome)
        );
        has(&outcome.stdout_text(), &["1\n", "sh\n"])?;
        // It asks to be told: so it is.
        let script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done";
        let mut sandbox = view.sh(script)?.init(Init::Program).start()?;
        thread::sleep(Duration::from_millis(200));
        let outcome = sandbox.stop(Duration::from_secs(3))?;
        ensure!(
            outcome.status == Status::Exited(3),
            "{view:?}: {}",
            describe(&outcome)
        );
    }
    Ok(())
}

fn process_1_that_cannot_start_is_an_error(_: &Context) -> Result<()> {
    for view in VIEWS {
        for init in [Init::Orbit, Init::Program] {
            let error = view
                .sandbox()?
                .cmd(["/no/such"])
                .init(init)
                .start()
                .err()
                .context("it started")?;
            ensure!(error.is_program_not_found(), "{error}");
            let error = view
                .sandbox()?
                .cmd(["/etc"])
                .init(init)
                .run()
                .err()
                .context("it ran")?;
            ensure!(error.is_program_not_executable(), "{error}");
            let error = view
                .sandbox()?
                .cmd(["true"])
                .working_dir("/etc/passwd/x")
                .init(init)
                .run()
                .err();
            ensure!(!error.context("it ran")?.to_string().is_empty());
        }
    }
    Ok(())
}

fn a_stopped_program_can_be_ended(_: &Context) -> Result<()> {
    // The init is process 1, so the program is 2.
    let has_stopped = "until grep -q '^State:.T' /proc/2/status; do sleep 0.01; done";
    for view in VIEWS {
        let mut sandbox = view.sh("kill -STOP $$")?.start()?;
        sandbox.exec(["sh", "-c", has_stopped]).run()?;
        let outcome = sandbox.stop(Duration::from_millis(200))?;
        ensure!(outcome.status == Status::Signaled(9), "{}", outcome.status);
        let mut sandbox = view.sh("kill -STOP $$; exit 8")?.start()?;
        sandbox.exec(["sh", "-c", has_stopped]).run()?;
        sandbox.signal(libc::SIGCONT)?;
        ensure!(sandbox.wait()?.status == Status::Exited(8));
    }
    Ok(())
}

fn sixty_four_at_once_from_sixteen_threads(context: &Context) -> Result<()> {
    let audit = context.audit();
    let _first = Sandbox::builder().cmd(["true"]).run()?;
    let faults: Vec<String> = thread::scope(|scope| {
        let launch = |number: usize| -> Result<()> {
            let mut held = Vec::new();
            for each in 0..4 {
                let view = VIEWS[(number + each) % 2];
                held.push((
                    each,
                    view.sh(&format!("read x; echo {number} {each} $x"))?
                        .stdin(Stdin::Bytes(b"in\n".to_vec()))
                        .start()?,
                ));
            }
            for (each, mut sandbox) in held {
                let outcome = sandbox.wait()?;
                ensure!(
                    outcome.stdout_text() == format!("{number} {each} in\n"),
                    "{}",
                    describe(&outcome)
                );
            }
            Ok(())
        };
        let threads: Vec<_> = (0..16)
            .map(|number| scope.spawn(move || launch(number)))
            .collect();
        let ended = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result.err().map(|fault| format!("{fault:#}")),
            Err(_) => Some("panicked".to_owned()),
        });
        ended.flatten().collect()
    });
    ensure!(faults.is_empty(), "{faults:?}");
    let left = audit
        .check()
        .err()
        .map(|leaks| leaks.to_string())
        .unwrap_or_default();
    ensure!(!left.contains("sh -c"), "{left}");
    Ok(())
}

fn it_outlives_the_thread_that_started_it(_: &Context) -> Result<()> {
    let started = thread::spawn(|| -> Result<Sandbox> {
        Ok(View::Host.sh("sleep 0.5; echo alive")?.start()?)
    });
    let mut sandbox = started.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    let outcome = sandbox.wait()?;
    ensure!(outcome.stdout == b"alive\n", "{}", describe(&outcome));
    // Waited for elsewhere too.
    let mut sandbox = View::Host.sh("exit 2")?.start()?;
    let status = thread::spawn(move || sandbox.wait().map(|outcome| outcome.status)).join();
    ensure!(status.map_err(|_| anyhow::anyhow!("panicked"))?? == Status::Exited(2));
    Ok(())
}

fn a_fork_bomb_ends_with_its_sandbox(_: &Context) -> Result<()> {
    for view in VIEWS {
        let started = Instant::now();
        let outcome = view.role("fork-bomb 300")?.run()?;
        ensure!(
            outcome.success() && outcome.stdout == b"300 forked\n",
            "{}",
            describe(&outcome)
        );
        ensure!(
            outcome.leaked.len() == 300,
            "{} named",
            outcome.leaked.len()
        );
        ensure!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            started.elapsed()
        );
    }
    // One that goes on forking until it is stopped: at most some hundred at a time.
    let script = "f() { sleep 0.2 & f2 & }; f2() { sleep 0.1; f; }; for i in 1 2 3 4 5 6 7 8; do f; done; sleep 0.4";
    let outcome = View::Host.sh(script)?.run()?;
    ensure!(
        outcome.success() && !outcome.leaked.is_empty(),
        "{}",
        describe(&outcome)
    );
    Ok(())
}

fn words_and_variables_of_any_size(_: &Context) -> Result<()> {
    let long = "x".repeat(100 << 10);
    for view in VIEWS {
        // Together far more than one message to the supervisor holds.
        let sandbox = (0..4).fold(view.sh("echo ${#A0} ${#A3} ${#1}")?, |sandbox, number| {
            sandbox.env(format!("A{number}"), &long)
        });
        let found = printed(sandbox.args(["sh", &long]))?;
        ensure!(found == "102400 102400 102400\n", "{found}");
        let many = printed(
            view.sandbox()?
                .cmd(["sh", "-c", "echo $#", "sh"])
                .args((0..20_000).map(|n| n.to_string())),
        )?;
        ensure!(many == "20000\n", "{many}");
        // More than the kernel takes: told, and by whom.
        let error = refused(
            view.sandbox()?
                .cmd(["true"])
                .env("A", "x".repeat(256 << 10)),
        )?;
        has(&error, &["true", "too long"])?;
        let odd = printed(
            view.sh("printf %s \"$ODD\"")?
                .env("ODD", "a'b\"c\n$d\\ \u{1}é"),
        )?;
        ensure!(odd == "a'b\"c\n$d\\ \u{1}é", "{odd:?}");
    }
    let faults = refused(
        Sandbox::builder()
            .cmd(["a\0b"])
            .env("A=", "x")
            .env("N", "a\0b"),
    )?;
    has(&faults, &["NUL", "A="])
}

fn a_terminal(_: &Context) -> Result<()> {
    for view in VIEWS {
        let outcome = view.sh("tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; echo typed >/dev/tty; ls -l /proc/self/fd/0 | grep -o 'pts/.*'; stty size")?.tty(true).run()?;
        let text = outcome.stdout_text().replace('\r', "");
        ensure!(outcome.success(), "{view:?}: {}", describe(&outcome));
        has(&text, &["/dev/", "all\n", "typed\n"])?;
        // What is typed arrives, Ctrl-C too.
        let mut sandbox = view.sh("trap 'echo int; exit 5' INT; echo up; read line; echo got $line; while :; do sleep 0.05; done")?.tty(true).start()?;
        let mut terminal = fs::File::from(sandbox.take_terminal().context("a terminal")?);
        thread::sleep(Duration::from_millis(200));
        terminal.write_all(b"hello\n")?;
        thread::sleep(Duration::from_millis(200));
        terminal.write_all(b"\x03")?;
        let outcome = sandbox.wait()?;
        ensure!(
            outcome.status == Status::Exited(5),
            "{}",
            describe(&outcome)
        );
    }
    Ok(())
}

fn a_failed_one_does_not_harm_the_next(context: &Context) -> Result<()> {
    let mut held = Sandbox::builder().cmd(["sleep", "60"]).start()?;
    let audit = context.audit();
    for _ in 0..10 {
        refused(Sandbox::builder().cmd(["no-such-program"]))?;
        refused(Sandbox::builder().cmd(["true"]).image("dir:/no/such"))?;
        refused(
            View::Host
                .sandbox()?
                .cmd(["true"])
                .mount(orbit::Mount::bind("/etc", "/proc/self/fd/3/x")),
        )?;
    }
    audit.check()?;
    ensure!(printed(Sandbox::builder().cmd(["echo", "on"]))? == "on\n");
    ensure!(held.pid().is_some(), "another sandbox ended with them");
    ensure!(held.stop(Duration::from_secs(5))?.status == Status::Signaled(15));
    Ok(())
}

/// The clocks since boot are ahead, for whatever runs in it, and the time of day is not.
fn a_clock_ahead(_: &Context) -> Result<()> {
    const AHEAD: Duration = Duration::from_secs(1000 * 86_400);
    const TELL: &str = "cat /proc/uptime; date +%s; sleep 0.01; cat /proc/uptime";

    let uptime =
        |text: &str| -> Result<f64> { Ok(text.split(' ').next().unwrap_or_default().parse()?) };
    let check = |what: String, text: &str| -> Result<()> {
        let lines: Vec<&str> = text.lines().collect();
        ensure!(lines.len() == 3, "{what}: {text}");
        let before = uptime(&fs::read_to_string("/proc/uptime")?)?;
        for line in [lines[0], lines[2]] {
            let off = uptime(line)? - before - AHEAD.as_secs_f64();
            ensure!((-30.0..1.0).contains(&off), "{what}: {off} s off");
        }
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        ensure!(now - lines[1].parse::<u64>()? < 30, "{what}: {text}");
        Ok(())
    };
    for view in VIEWS {
        for init in [Init::Orbit, Init::Program] {
            let script = format!("{TELL}; read -r line");
            let (until, writer) = std::io::pipe()?;
            let mut sandbox = view
                .sh(&script)?
                .init(init)
                .clock_offset(AHEAD)
                .stdin(Stdin::Fd(until.into()))
                .start()?;
            let further = sandbox.exec(["sh", "-c", TELL]).run()?;
            check(
                format!("a further program, {view:?}, {init:?}"),
                &further.stdout_text(),
            )?;
            drop(writer);
            let outcome = sandbox.wait()?;
            check(
                format!("the program, {view:?}, {init:?}"),
                &outcome.stdout_text(),
            )?;
            for took in [further.wall_time, outcome.wall_time] {
                ensure!(
                    took < Duration::from_secs(30),
                    "{view:?}, {init:?}: {took:?}"
                );
            }
        }
    }
    Ok(())
}
