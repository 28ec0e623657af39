//! Pauses, stops, restarts, and what a handle tells of its sandbox.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use orbit::{Init, Paused, State, Status, Wait};
use orbit_tests::{Case, Context, Who};

use crate::support::{VIEWS, View, case, count, has, read, until};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("handle::pause_stops_everything", pause_stops_everything),
        case(
            "handle::stop_sends_the_signal_that_was_asked_for",
            stop_sends_the_signal_that_was_asked_for,
        ),
        case(
            "handle::restart_keeps_files_log_and_ports",
            restart_keeps_files_log_and_ports,
        ),
        case(
            "handle::restart_ends_what_does_not_listen",
            restart_ends_what_does_not_listen,
        ),
        case("handle::inspect_tells", inspect_tells),
        case("handle::paused_in_either_way", paused_in_either_way),
        case(
            "handle::another_user_without_privileges_is_in_reach",
            another_user_without_privileges_is_in_reach,
        )
        .who(Who::RANGED),
        case(
            "handle::the_longest_times_are_none",
            the_longest_times_are_none,
        ),
    ]
}

/// Signals come from whoever has the sandbox, whatever its program may and is.
fn another_user_without_privileges_is_in_reach(_: &Context) -> Result<()> {
    let sh = |words: &str| -> Result<_> {
        let sandbox = View::Image.sh(words)?;
        Ok(sandbox.user("1000").cap_drop("ALL"))
    };
    let left = sh("sleep 1000 & exit 3")?.timeout(Duration::from_secs(20));
    let outcome = left.run()?;
    ensure!(outcome.status == Status::Exited(3), "{:?}", outcome.status);

    let listens = "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done";
    let mut sandbox = sh(listens)?.wait_for(Wait::log("up")).start()?;
    sandbox.pause()?;
    sandbox.unpause()?;
    sandbox.restart(Duration::from_secs(20))?;
    sandbox.wait_for(&Wait::log("up"), Duration::from_secs(20))?;
    let started = Instant::now();
    let outcome = sandbox.stop(Duration::from_secs(20))?;
    ensure!(outcome.status == Status::Exited(5), "{:?}", outcome.status);
    ensure!(started.elapsed() < Duration::from_secs(20));
    Ok(())
}

/// What cannot be added to the time is no fault, and is waited for as long as it takes.
fn the_longest_times_are_none(_: &Context) -> Result<()> {
    const LONGEST: Duration = Duration::MAX;

    for view in VIEWS {
        let mut sandbox = view
            .sh("trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done")?
            .timeout(LONGEST)
            .startup_timeout(LONGEST)
            .wait_for(Wait::log("up"))
            .start()?;
        let quick = sandbox.exec(["true"]).timeout(LONGEST);
        ensure!(
            quick
                .start()?
                .wait_timeout(LONGEST)?
                .is_some_and(|it| it.success())
        );
        sandbox.restart(LONGEST)?;
        sandbox.wait_for(&Wait::exec(["true"]), LONGEST)?;
        let followed = sandbox.logs().follow_for(LONGEST).next();
        ensure!(followed.is_some_and(|line| line.text == "up"));
        ensure!(sandbox.stop(LONGEST)?.status == Status::Exited(5));
    }
    let refused = View::Image.sh("true")?.clock_offset(LONGEST).run();
    has(
        &refused.expect_err("it is refused").to_string(),
        &["clock_offset", "a hundred years at most"],
    )
}

fn pause_stops_everything(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view
            .sh("(while :; do echo x >> /tmp/child; sleep 0.005; done) & while :; do echo x >> /tmp/main; sleep 0.005; done")?
            .start()?;
        let _beside = sandbox
            .exec([
                "sh",
                "-c",
                "while :; do echo x >> /tmp/exec; sleep 0.005; done",
            ])
            .start()?;
        let sizes = || {
            ["/tmp/child", "/tmp/main", "/tmp/exec"]
                .map(|path| sandbox.read_file(path).map_or(0, |bytes| bytes.len()))
        };
        until("all run", || Ok(sizes().iter().all(|size| *size > 0)))?;
        let how = sandbox.pause()?;
        ensure!(matches!(how, Paused::Frozen | Paused::Stopped));
        std::thread::sleep(Duration::from_millis(20));
        let paused = sizes();
        std::thread::sleep(Duration::from_millis(100));
        ensure!(sizes() == paused, "{view:?}: {paused:?} is {:?}", sizes());
        sandbox.unpause()?;
        until("all go on", || {
            Ok(sizes()
                .iter()
                .zip(paused)
                .all(|(now, before)| *now > before))
        })?;
        // One that stands still can be ended.
        sandbox.pause()?;
        drop(sandbox);
        let alone = view.sh("exec sleep 1000")?.init(Init::Program).start()?;
        has(
            &alone.pause().expect_err("it is refused").to_string(),
            &["accounting(true)"],
        )?;
    }
    Ok(())
}

fn stop_sends_the_signal_that_was_asked_for(_: &Context) -> Result<()> {
    for view in VIEWS {
        let script = "trap 'echo quit; exit 9' QUIT; trap 'echo term; exit 8' TERM; echo up; while :; do sleep 0.01; done";
        let mut asked = view
            .sh(script)?
            .stop_signal(libc::SIGQUIT)
            .wait_for(Wait::log("up"))
            .start()?;
        let outcome = asked.stop(Duration::from_secs(10))?;
        ensure!(outcome.status == Status::Exited(9) && outcome.stdout_text() == "up\nquit\n");
        let mut usual = view.sh(script)?.wait_for(Wait::log("up")).start()?;
        ensure!(usual.stop(Duration::from_secs(10))?.status == Status::Exited(8));
        ensure!(
            view.sh(script)?
                .stop_signal(0)
                .start()
                .expect_err("it is refused")
                .is_spec()
        );
    }
    Ok(())
}

fn restart_keeps_files_log_and_ports(_: &Context) -> Result<()> {
    let mut sandbox = View::Image
        .sh("echo s >> /starts; (sleep 1000 &); echo up $(wc -l < /starts); trap 'exit 5' TERM; httpd -f -p 80 -h / & wait $!")?
        .expose(80)
        .wait_for(Wait::log("up"))
        .wait_for(Wait::port(80))
        .start()?;
    let address = sandbox.addr(80);
    for round in 2..5 {
        let before = sandbox.pid();
        sandbox.restart(Duration::from_secs(5))?;
        ensure!(sandbox.pid().is_some() && sandbox.pid() != before && sandbox.addr(80) == address);
        until("it answers", || {
            Ok(std::net::TcpStream::connect(address).is_ok() && sandbox.connect(80).is_ok())
        })?;
        ensure!(
            sandbox
                .logs()
                .any(|line| line.text == format!("up {round}"))
        );
        // What the one before left running is gone.
        ensure!(count(&sandbox, "sleep 1000")? == 2);
    }
    let outcome = sandbox.stop(Duration::from_secs(5))?;
    ensure!(outcome.status == Status::Exited(5), "{}", outcome.status);
    ensure!(
        outcome.stdout_text() == "up 1\nup 2\nup 3\nup 4\n",
        "{}",
        outcome.stdout_text()
    );
    ensure!(
        outcome.leaked.iter().any(|process| process.pid > 1),
        "{:?}",
        outcome.leaked
    );
    ensure!(
        sandbox
            .restart(Duration::ZERO)
            .expect_err("it is refused")
            .is_ended()
    );
    Ok(())
}

fn restart_ends_what_does_not_listen(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view
            .sh("trap '' TERM; echo up; while :; do sleep 0.01; done")?
            .wait_for(Wait::log("up"))
            .start()?;
        let started = Instant::now();
        for round in 2..4 {
            sandbox.restart(Duration::from_millis(100))?;
            // What the one before said makes nobody ready.
            ensure!(sandbox.logs().filter(|line| line.text == "up").count() == round);
        }
        ensure!(started.elapsed() < Duration::from_secs(10));
        sandbox.signal(libc::SIGKILL)?;
        ensure!(sandbox.wait()?.status == Status::Signaled(9));
        let mut first = view.sh("exec sleep 1000")?.init(Init::Program).start()?;
        has(
            &first
                .restart(Duration::ZERO)
                .expect_err("it is refused")
                .to_string(),
            &["process 1"],
        )?;
    }
    Ok(())
}

fn paused_in_either_way(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view.idle()?;
        ensure!(sandbox.inspect().state == State::Running);
        sandbox.pause()?;
        ensure!(sandbox.inspect().state == State::Frozen, "{view:?}");
        let began = Instant::now();
        let refused = sandbox
            .restart(Duration::from_secs(30))
            .expect_err("it is refused");
        has(&refused.to_string(), &["paused"])?;
        ensure!(began.elapsed() < Duration::from_secs(10));
        sandbox.unpause()?;
        ensure!(sandbox.inspect().state == State::Running);
        sandbox.restart(Duration::ZERO)?;
        ensure!(sandbox.inspect().state == State::Running);
    }
    Ok(())
}

fn inspect_tells(_: &Context) -> Result<()> {
    let sandbox = View::Image
        .sh("exec sleep 1000")?
        .name("web")
        .label("a", "b")
        .env("K", "v")
        .working_dir("/tmp")
        .expose(80)
        .start()?;
    let found = sandbox.inspect();
    ensure!(
        found.name.as_deref() == Some("web") && found.hostname == "web" && found.labels["a"] == "b"
    );
    ensure!(
        found.pid == sandbox.pid() && found.ports[&80] == sandbox.addr(80) && found.user == "root"
    );
    ensure!(found.working_dir.as_os_str() == "/tmp" && found.env[std::ffi::OsStr::new("K")] == "v");
    ensure!(found.steps.iter().any(|line| line == "pivot_root") && found.words[0] == "sh");
    ensure!(read(&sandbox, "hostname")?.trim() == "web");
    Ok(())
}
