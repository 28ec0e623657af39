//! Sandboxes that are made before they are asked for: each is used once, is as fresh as any other, and ends with its owner.

use std::{
    io::{BufRead as _, BufReader},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit::{Init, Network, SandboxBuilder, Status, Stdin};
use orbit_tests::{Case, Context, Who, proc_fs::descendants};

use crate::{
    kit::{VIEWS, View, describe, harness, printed},
    steps::supervisor,
};

/// Long enough for one or two to be made, also where everything is slow.
const A_WHILE: Duration = Duration::from_millis(500);

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("ahead::{name}"), run).deadline(Duration::from_secs(60))
    };
    vec![
        case("it_was_there_before_it_was_asked_for", it_was_there_before),
        case("the_wrong_one_is_not_kept", the_wrong_one_is_not_kept).who(&[Who::Root, Who::User]),
        case("each_is_used_once", each_is_used_once),
        case("many_at_once", many_at_once),
        case("programs_differ", programs_differ).who(&[Who::Root, Who::User]),
        case("it_is_a_sandbox_like_others", it_is_a_sandbox_like_others),
        case(
            "another_kind_is_not_mistaken_for_it",
            another_kind_is_not_mistaken_for_it,
        ),
        case("they_end_with_their_owner", they_end_with_their_owner),
        case("an_init_stands_by_for_any", an_init_stands_by_for_any),
        case(
            "one_that_is_killed_is_not_missed",
            one_that_is_killed_is_not_missed,
        ),
        case(
            "one_that_stands_by_makes_whatever_is_asked_for",
            one_that_stands_by_makes_whatever_is_asked_for,
        )
        .who(&[Who::Root, Who::User]),
    ]
}

fn sh(view: View, script: &str) -> Result<SandboxBuilder> {
    Ok(view.sh(script)?.prepare_ahead(2))
}

/// For how long process 1 and the program have been there, in clock ticks, of which a second has 100. Source:
/// proc_pid_stat(5), `starttime`; of a name without spaces.
fn ages(sandbox: SandboxBuilder) -> Result<(u64, u64)> {
    let text = printed(sandbox)?;
    let started = |line: Option<&str>| -> Result<u64> {
        let field = line.and_then(|line| line.rsplit_once(')')?.1.split_whitespace().nth(19));
        Ok(field.context(text.clone())?.parse()?)
    };
    let mut lines = text.lines();
    let (init, program) = (started(lines.next())?, started(lines.next())?);
    let up = lines.next().and_then(|line| line.split(' ').next());
    let up: u64 = up.context(text.clone())?.replace('.', "").parse()?;
    Ok((up.saturating_sub(init), up.saturating_sub(program)))
}

/// By the shell alone, which would else have a child to be asked for.
const TELL_AGES: &str = "read -r a < /proc/1/stat; read -r b < /proc/self/stat; read -r c < /proc/uptime; echo \"$a\"; \
                         echo \"$b\"; echo \"$c\"";

fn it_was_there_before(_: &Context) -> Result<()> {
    for view in VIEWS {
        let (first, _) = ages(sh(view, TELL_AGES)?)?;
        thread::sleep(2 * A_WHILE);
        let (second, program) = ages(sh(view, TELL_AGES)?)?;
        ensure!(
            first < 50 && second >= 50,
            "{view:?}: process 1 was {first} ticks old, and then {second}"
        );
        ensure!(
            program >= 50,
            "{view:?}: the program was not poised, but {program} ticks old"
        );
    }
    Ok(())
}

/// Who is poised is who the program before was: for another it is not kept, and nothing of it is left.
fn the_wrong_one_is_not_kept(_: &Context) -> Result<()> {
    const TELL_PROCESSES: &str = "cd /proc && echo [0-9]*";

    let image = |script| sh(View::Image, script);
    for other in [
        image(TELL_AGES)?.user("1"),
        image(TELL_AGES)?.cap_drop("ALL"),
    ] {
        printed(image("true")?)?;
        thread::sleep(2 * A_WHILE);
        let (init, program) = ages(other)?;
        ensure!(init >= 50, "process 1 was {init} ticks old");
        ensure!(program < 50, "the program was {program} ticks old");
    }
    printed(image("true")?)?;
    thread::sleep(A_WHILE);
    let processes = printed(image(TELL_PROCESSES)?.user("1"))?;
    let count = processes.split_whitespace().count();
    ensure!(
        count == 2,
        "process 1, the program, and who else? {processes}"
    );
    Ok(())
}

fn each_is_used_once(_: &Context) -> Result<()> {
    for view in VIEWS {
        for round in 0..6 {
            let text = printed(sh(
                view,
                "ls -A /tmp /dev/shm; touch /tmp/here /dev/shm/here; hostname",
            )?)?;
            ensure!(!text.contains("here"), "{view:?}, round {round}: {text}");
            if round % 2 == 0 {
                thread::sleep(A_WHILE / 5);
            }
        }
    }
    Ok(())
}

fn many_at_once(_: &Context) -> Result<()> {
    printed(sh(View::Image, "true")?)?;
    for _ in 0..3 {
        thread::sleep(A_WHILE / 5);
        thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|number| {
                    scope.spawn(move || {
                        printed(sh(View::Image, &format!("echo {number}; ls /tmp"))?)
                    })
                })
                .collect();
            for (number, one) in all.into_iter().enumerate() {
                let text = one.join().expect("no panic")?;
                ensure!(text.trim() == number.to_string(), "{number}: {text}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What is the program's own is not of the sandbox that was made.
fn programs_differ(_: &Context) -> Result<()> {
    printed(sh(View::Image, "true")?)?;
    thread::sleep(A_WHILE);
    let text = printed(
        sh(
            View::Image,
            "id -u; echo $GREETING; pwd; ulimit -n; grep CapBnd /proc/self/status",
        )?
        .user("1")
        .env("GREETING", "hello")
        .cap_drop("ALL")
        .ulimit("nofile", 33, 33),
    )?;
    ensure!(
        text == "1\nhello\n/\n33\nCapBnd:\t0000000000000000\n",
        "{text}"
    );
    thread::sleep(A_WHILE);
    let outcome = sh(View::Image, "cat; exec sleep 1000")?
        .stdin(Stdin::Bytes(b"typed".into()))
        .timeout(Duration::from_millis(300))
        .run()?;
    ensure!(
        matches!(outcome.status, Status::TimedOut(_)) && outcome.stdout_text() == "typed",
        "{}",
        describe(&outcome)
    );
    // Well beyond the time that it stood and waited: what counts is the program's.
    ensure!(outcome.wall_time < Duration::from_secs(20), "{outcome:?}");
    thread::sleep(A_WHILE);
    let error = View::Image
        .sandbox()?
        .prepare_ahead(2)
        .cmd(["/no/such/program"])
        .run()
        .err()
        .context("it ran")?;
    ensure!(error.to_string().contains("/no/such/program"), "{error}");
    Ok(())
}

fn it_is_a_sandbox_like_others(_: &Context) -> Result<()> {
    printed(sh(View::Image, "true")?)?;
    thread::sleep(A_WHILE);
    let mut sandbox = sh(View::Image, "echo up > /tmp/file; exec sleep 1000")?
        .wait_for(orbit::Wait::file("/tmp/file"))
        .start()?;
    let outcome = sandbox.exec(["cat", "/tmp/file"]).run()?;
    ensure!(outcome.stdout_text() == "up\n", "{}", describe(&outcome));
    ensure!(sandbox.read_file("/tmp/file")? == b"up\n");
    sandbox.pause()?;
    sandbox.unpause()?;
    sandbox.restart(Duration::ZERO)?;
    let outcome = sandbox.stop(Duration::ZERO)?;
    ensure!(!outcome.success(), "{}", describe(&outcome));
    Ok(())
}

fn another_kind_is_not_mistaken_for_it(_: &Context) -> Result<()> {
    for name in ["one", "two", "three", "four", "five", "one", "two"] {
        let named = || Ok::<_, anyhow::Error>(sh(View::Image, "hostname")?.hostname(name));
        for _ in 0..2 {
            let text = printed(named()?)?;
            ensure!(text == format!("{name}\n"), "{text}");
            thread::sleep(A_WHILE / 5);
        }
    }
    Ok(())
}

fn they_end_with_their_owner(_: &Context) -> Result<()> {
    // The audit after each case looks for what is left of it.
    let mut harness = harness("harness-ahead")?;
    let output = harness.stdout.take().context("it is piped")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    ensure!(line == "ready\n", "{line}");
    harness.kill()?;
    harness.wait()?;
    Ok(())
}

/// One more for whoever has started two: it is told what it is for when that is asked for.
fn an_init_stands_by_for_any(_: &Context) -> Result<()> {
    for view in VIEWS {
        for _ in 0..2 {
            printed(view.sh("true")?)?;
        }
        thread::sleep(2 * A_WHILE);
        let (init, program) = ages(view.sh(TELL_AGES)?)?;
        ensure!(
            init >= 50 && program < 50,
            "{view:?}: process 1 was {init} ticks old, and the program {program}"
        );
    }
    Ok(())
}

fn one_that_is_killed_is_not_missed(_: &Context) -> Result<()> {
    for round in 0..3 {
        for _ in 0..2 {
            printed(View::Image.sh("true")?)?;
        }
        thread::sleep(A_WHILE);
        let supervisor = supervisor().context("there is a supervisor")?;
        let below = descendants(supervisor.as_raw());
        ensure!(below.len() == 1, "who else? {below:?}");
        kill(Pid::from_raw(below[0].pid), Signal::SIGKILL)?;
        // Who is killed as it is given a sandbox is killed with that.
        thread::sleep(A_WHILE / 5);
        let text = printed(View::Image.sh("echo here")?)?;
        ensure!(text == "here\n", "round {round}: {text}");
    }
    Ok(())
}

fn one_that_stands_by_makes_whatever_is_asked_for(_: &Context) -> Result<()> {
    let sh = |script| View::Image.sh(script);
    let network = Network::builder().create()?;
    // Longer than machines are up.
    let ahead = Duration::from_secs(1000 * 24 * 3600);
    for (what, sandbox, expected) in [
        ("process 1", sh("echo $$")?.init(Init::Program), "1"),
        ("a user", sh("id -u")?.user("1"), "1"),
        ("a host name", sh("hostname")?.hostname("other"), "other"),
        ("a terminal", sh("test -t 0 && echo yes")?.tty(true), "yes"),
        (
            "a network",
            sh("ls -d /sys/class/net/eth0")?.network(&network),
            "/sys/class/net/eth0",
        ),
        (
            "another clock",
            sh("read -r up < /proc/uptime; test ${up%%.*} -gt 86400000 && echo yes")?
                .clock_offset(ahead),
            "yes",
        ),
    ] {
        for _ in 0..2 {
            printed(sh("true")?)?;
        }
        thread::sleep(A_WHILE / 5);
        let text = printed(sandbox)?.replace('\r', "");
        ensure!(text.trim() == expected, "{what}: {text}");
    }
    Ok(())
}

/// In the harness: says when some stand ready, and waits to be killed.
pub(crate) fn stand_by() -> Result<()> {
    printed(View::Image.sh("true")?.prepare_ahead(8))?;
    thread::sleep(A_WHILE);
    println!("ready");
    thread::sleep(Duration::from_secs(60));
    Ok(())
}
