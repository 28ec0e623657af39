//! Readiness: each way to wait, and what is told where it does not come.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orbit::{Error, HealthCheck, LogStream, Sandbox, SandboxBuilder, State, Status, Stdin, Wait};
use orbit_tests::{Case, Context};

use crate::support::{VIEWS, View, case, has, read};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("ready::a_port_that_listens", a_port_that_listens),
        case("ready::an_answer_over_http", an_answer_over_http),
        case("ready::what_is_sent_over_http", what_is_sent_over_http),
        case(
            "ready::a_server_that_is_silent_takes_no_more_than_the_timeout",
            a_server_that_is_silent_takes_no_more_than_the_timeout,
        ),
        case("ready::lines_of_the_log", lines_of_the_log),
        case(
            "ready::programs_and_health_checks",
            programs_and_health_checks,
        ),
        case("ready::a_file_that_appears", a_file_that_appears),
        case("ready::an_end_that_was_wanted", an_end_that_was_wanted),
        case("ready::all_and_any", all_and_any),
        case(
            "ready::what_did_not_come_is_told",
            what_did_not_come_is_told,
        ),
        case(
            "ready::a_program_that_ends_is_told_at_once",
            a_program_that_ends_is_told_at_once,
        ),
        case(
            "ready::what_is_wrong_is_told_before_anything_starts",
            what_is_wrong_is_told_before_anything_starts,
        ),
        case(
            "ready::an_event_is_seen_in_milliseconds",
            an_event_is_seen_in_milliseconds,
        ),
    ]
}

fn unready(sandbox: SandboxBuilder) -> Result<String> {
    match sandbox.start() {
        Ok(_) => anyhow::bail!("it is ready"),
        Err(error) => {
            ensure!(error.is_not_ready(), "{error}");
            Ok(error.to_string())
        }
    }
}

fn a_port_that_listens(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view.role("late-port")?.wait_for(Wait::port(8099)).start()?;
        // It was asked of the kernel, and not of the server.
        ensure!(
            sandbox.logs().all(|line| line.text != "accepted"),
            "a wait connected"
        );
        drop(sandbox.connect(8099)?);
        ensure!(
            sandbox
                .logs()
                .follow_for(Duration::from_secs(5))
                .any(|line| line.text == "accepted")
        );
    }
    Ok(())
}

fn server(script: &str) -> Result<SandboxBuilder> {
    View::Image.sh(&format!(
        "mkdir -p /srv/www\n{script}\nexec httpd -f -p 8080 -h /srv/www"
    ))
}

fn an_answer_over_http(_: &Context) -> Result<()> {
    let up = server("echo up >/srv/www/health; sleep 0.1")?
        .wait_for(
            Wait::http("/health")
                .on_port(8080)
                .status(200)
                .header("Content-Length", "3")
                .body("up"),
        )
        .start()?;
    ensure!(read(&up, "wget -qO- http://127.0.0.1:8080/health")? == "up\n");
    // There, and then well.
    let late = server("(sleep 0.3; echo well >/srv/www/health) &")?
        .wait_for(Wait::http("/health").on_port(8080))
        .start()?;
    ensure!(late.read_file("/srv/www/health")? == b"well\n");
    let never = server("true")?
        .wait_for(Wait::http("/health").on_port(8080).status(200))
        // Time for a whole answer, also on a busy machine.
        .startup_timeout(Duration::from_secs(2));
    has(
        &unready(never)?,
        &["http /health on port 8080 with 200", "the status is 404"],
    )
}

/// The method, headers, who asks and the body arrive, by a CGI program of busybox's server that tells what it was asked.
fn what_is_sent_over_http(_: &Context) -> Result<()> {
    let server = || {
        server(
            "mkdir -p /srv/www/cgi-bin\n\
             printf '/cgi-bin/guarded:admin:secret\\n' >/srv/httpd.conf\n\
             cat >/srv/www/cgi-bin/tell <<'EOF'\n#!/bin/sh\n\
             printf 'Content-Type: text/plain\\r\\n\\r\\n'\n\
             echo \"$REQUEST_METHOD $HTTP_X_TRACE $HTTP_HOST $(head -c $CONTENT_LENGTH)\"\nEOF\n\
             printf '#!/bin/sh\\nprintf \"\\\\r\\\\n$REMOTE_USER\"\\n' >/srv/www/cgi-bin/guarded\n\
             chmod +x /srv/www/cgi-bin/*\n\
             exec httpd -f -p 8080 -h /srv/www -c /srv/httpd.conf",
        )
    };
    let ask = |path: &str| Wait::http(path).on_port(8080);
    let told = ask("/cgi-bin/tell")
        .method("POST")
        .send_header("X-Trace", "seven")
        .send_header("Host", "shop.example")
        .send_body("a body")
        .status(200)
        .body_matches("^POST seven shop.example a body\n$");
    let guarded = ask("/cgi-bin/guarded").basic_auth("admin", "secret");
    let mut sandbox = server()?.wait_for(told).wait_for(guarded).start()?;
    // Long enough for a whole answer of a program on a busy machine, which the last of the wait's may have to be.
    let short = Duration::from_millis(1500);
    for (wait, why) in [
        (ask("/cgi-bin/guarded"), "the status is 401"),
        (
            ask("/cgi-bin/guarded").basic_auth("admin", "other"),
            "the status is 401",
        ),
        (
            ask("/cgi-bin/tell").method("POST").body("GET"),
            "`GET` is not in the body",
        ),
        (
            ask("/cgi-bin/tell").method("POST").body_matches("^GET"),
            "/^GET/ is not in the body",
        ),
    ] {
        let error = sandbox.wait_for(&wait, short).expect_err("it is not so");
        has(&error.to_string(), &[why])?;
    }
    Ok(())
}

/// A server that takes the connection and never answers, and one whose queue is full, so that it takes none.
fn a_server_that_is_silent_takes_no_more_than_the_timeout(_: &Context) -> Result<()> {
    {
        for script in [
            "exec nc -ll -p 8097 -e sleep 1000",
            "nc -ll -p 8097 -e sleep 1000 & sleep 0.2; kill -STOP $!; sleep 1000",
        ] {
            let began = Instant::now();
            let limit = Duration::from_millis(600);
            let silent = View::Image
                .sh(script)?
                .wait_for(Wait::http("/").on_port(8097).send_body(vec![b'x'; 8 << 20]))
                .startup_timeout(limit);
            let text = unready(silent)?;
            ensure!(
                began.elapsed() < limit + Duration::from_secs(2),
                "{:?}: {text}",
                began.elapsed()
            );
            has(&text, &["startup timeout of 600ms"])?;
        }
    }
    Ok(())
}

fn lines_of_the_log(_: &Context) -> Result<()> {
    for view in VIEWS {
        let script =
            "echo ready; sleep 0.05; echo ready >&2; sleep 0.05; echo ready >&2; exec sleep 1000";
        let sandbox = view
            .sh(script)?
            .wait_for(Wait::log("^re.dy$").on(LogStream::Stderr).times(2))
            .start()?;
        ensure!(sandbox.logs().count() == 3);
        let error = view
            .sh("echo other; exec sleep 1000")?
            .wait_for(Wait::log("ready").on(LogStream::Stdout))
            .startup_timeout(Duration::from_millis(200));
        has(
            &unready(error)?,
            &[
                "not met",
                "log /ready/ on stdout",
                "0 of 1 lines matched",
                "stdout| other",
            ],
        )?;
    }
    Ok(())
}

fn programs_and_health_checks(_: &Context) -> Result<()> {
    for view in VIEWS {
        let script = "sleep 0.2; echo ok >/tmp/state; exec sleep 1000";
        let sandbox = view
            .sh(script)?
            .wait_for(Wait::exec(["grep", "ok", "/tmp/state"]))
            .start()?;
        ensure!(sandbox.read_file("/tmp/state")? == b"ok\n");
        view.sh(script)?
            .wait_for(Wait::exec(["sh", "-c", "exit 7"]).code(7))
            .start()?;
        let check = HealthCheck::shell("test -s /tmp/state");
        let healthy = view
            .sh(script)?
            .healthcheck(check)
            .wait_for(Wait::healthcheck())
            .start()?;
        ensure!(healthy.read_file("/tmp/state").is_ok());
        let check = HealthCheck::shell("echo the-cause >&2; exit 1")
            .interval(Duration::from_millis(20))
            .retries(3);
        let sick = view
            .sh("exec sleep 1000")?
            .healthcheck(check)
            .wait_for(Wait::healthcheck());
        has(
            &unready(sick)?,
            &[
                "its health check failed 3 times in a row",
                "exited with code 1: the-cause",
            ],
        )?;
        let slow = HealthCheck::new(["sleep", "1000"]).timeout(Duration::from_millis(50));
        let slow = view
            .sh("exec sleep 1000")?
            .healthcheck(slow.start_period(Duration::from_secs(100)))
            .wait_for(Wait::healthcheck())
            .startup_timeout(Duration::from_millis(400));
        has(
            &unready(slow)?,
            &[
                "startup timeout of 400ms",
                "killed after its timeout of 50ms",
            ],
        )?;
    }
    Ok(())
}

fn a_file_that_appears(_: &Context) -> Result<()> {
    for view in VIEWS {
        let script =
            "sleep 0.1; mkdir -p /tmp/a/b; sleep 0.1; touch /tmp/a/b/file; exec sleep 1000";
        let sandbox = view
            .sh(script)?
            .wait_for(Wait::file("/tmp/a/b/file"))
            .start()?;
        ensure!(sandbox.read_file("/tmp/a/b/file")?.is_empty());
        let never = view
            .idle()?
            .wait_for(&Wait::file("/tmp/none"), Duration::from_millis(100));
        ensure!(never.is_err_and(|error| error.is_not_ready()));
    }
    Ok(())
}

fn an_end_that_was_wanted(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view
            .sh("echo made; exit 4")?
            .wait_for(Wait::exit(4))
            .start()?;
        ensure!(sandbox.inspect().state == State::Ended(Status::Exited(4)));
        let outcome = sandbox.wait()?;
        ensure!(outcome.stdout_text() == "made\n" && outcome.status == Status::Exited(4));
        has(
            &unready(view.sh("exit 5")?.wait_for(Wait::exit(4)))?,
            &["exited with code 5", "not met", "exit with code 4"],
        )?;
    }
    Ok(())
}

fn all_and_any(_: &Context) -> Result<()> {
    for view in VIEWS {
        let script = "touch /tmp/one; sleep 0.1; echo two; exec sleep 1000";
        let both = [Wait::file("/tmp/one"), Wait::log("two")];
        let sandbox = view.sh(script)?.wait_for(Wait::all(both.clone())).start()?;
        ensure!(sandbox.logs().count() == 1);
        let one = Wait::any([Wait::port(1), Wait::exit(0), Wait::file("/tmp/one")]);
        view.sh(script)?.wait_for(one).start()?;
        let either = Wait::any([
            Wait::port(9),
            Wait::all([both[0].clone(), Wait::log("never")]),
        ]);
        let error = view
            .sh(script)?
            .wait_for(either)
            .startup_timeout(Duration::from_millis(400));
        let error = unready(error)?;
        has(
            &error,
            &["port 9", "log /never/", "met after", "file /tmp/one"],
        )?;
    }
    Ok(())
}

fn what_did_not_come_is_told(_: &Context) -> Result<()> {
    let limit = Duration::from_millis(300);
    let started = Instant::now();
    let error = unready(
        View::Image
            .sh("echo first; for i in $(seq 1 100); do echo line $i; done; exec sleep 1000")?
            .name("db")
            .wait_for(Wait::log("^first$"))
            .wait_for(Wait::port(5432))
            .startup_timeout(limit),
    )?;
    ensure!(started.elapsed() >= limit && started.elapsed() < Duration::from_secs(5));
    has(
        &error,
        &[
            "`db`",
            "its startup timeout of 300ms passed",
            "met after",
            "log /^first$/",
            "not met in 3",
            "port 5432",
            "61 lines before",
            "stdout| line 100",
        ],
    )
}

fn a_program_that_ends_is_told_at_once(_: &Context) -> Result<()> {
    for view in VIEWS {
        let started = Instant::now();
        let error = unready(
            view.sh("echo no such table >&2; exit 3")?
                .wait_for(Wait::port(1)),
        )?;
        has(
            &error,
            &[
                "its program exited with code 3",
                "not met",
                "port 1",
                "stderr| no such table",
            ],
        )?;
        let error = unready(view.sh("kill -SEGV $$")?.wait_for(Wait::log("x")))?;
        has(
            &error,
            &["its program killed by SIGSEGV", "It wrote nothing"],
        )?;
        let limit = Duration::from_millis(200);
        let error = unready(
            view.sh("sleep 1000")?
                .timeout(limit)
                .wait_for(Wait::port(1)),
        )?;
        has(&error, &["killed after its timeout of 200ms"])?;
        ensure!(started.elapsed() < Duration::from_secs(10));
    }
    Ok(())
}

fn what_is_wrong_is_told_before_anything_starts(_: &Context) -> Result<()> {
    let refused = |wait: Wait| -> Result<Error> {
        match View::Host.sh("exec sleep 1000")?.wait_for(wait).start() {
            Ok(_) => anyhow::bail!("it started"),
            Err(error) => Ok(error),
        }
    };
    for wait in [
        Wait::log("("),
        Wait::port(0),
        Wait::port(1).times(2),
        Wait::healthcheck(),
        Wait::any([Wait::healthcheck()]),
    ] {
        let error = refused(wait)?;
        ensure!(error.is_spec(), "{error}");
    }
    let mut sandbox = View::Host.sh("exec sleep 1000")?.start()?;
    let later = sandbox.wait_for(&Wait::healthcheck(), Duration::from_secs(60));
    for error in [
        refused(Wait::healthcheck())?,
        later.expect_err("there is none"),
    ] {
        has(&error.to_string(), &["add `.healthcheck(…)`"])?;
    }
    Ok(())
}

/// A line and a file are events: what is told 130 ms into a wait is not first seen when its pause of 500 ms is over.
fn an_event_is_seen_in_milliseconds(_: &Context) -> Result<()> {
    let mut late = Vec::new();
    for wait in [Wait::log("now"), Wait::file("/tmp/now")] {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let (input, mut to_program) = std::io::pipe()?;
            let mut sandbox: Sandbox = View::Image
                .sh("read x; echo now; touch /tmp/now; exec sleep 1000")?
                .stdin(Stdin::Fd(input.into()))
                .start()?;
            let started = thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    sandbox
                        .wait_for(&wait, Duration::from_secs(10))
                        .map(|()| Instant::now())
                });
                thread::sleep(Duration::from_millis(130));
                let told = Instant::now();
                std::io::Write::write_all(&mut to_program, b"x\n").expect("it reads");
                waiting
                    .join()
                    .expect("no panic")
                    .map(|seen| seen.saturating_duration_since(told))
            })?;
            best = best.min(started);
        }
        late.push((wait.to_string(), best));
    }
    ensure!(
        late.iter()
            .all(|(_, best)| *best < Duration::from_millis(100)),
        "{late:?}"
    );
    Ok(())
}
