//! Scenarios: in order, in parallel, all or nothing.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orbit::{Error, Network, Scenario, ScenarioBuilder, Status, Wait};
use orbit_tests::{Case, Context};
use tokio::runtime::Builder;

use crate::support::{VIEWS, View, case, has, read, until};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "scenario::each_starts_when_what_it_needs_is_ready",
            each_starts_when_what_it_needs_is_ready,
        ),
        case(
            "scenario::those_that_need_nothing_start_in_parallel",
            those_that_need_nothing_start_in_parallel,
        ),
        case(
            "scenario::one_that_fails_takes_all_with_it",
            one_that_fails_takes_all_with_it,
        ),
        case(
            "scenario::who_ended_meanwhile_is_told",
            who_ended_meanwhile_is_told,
        ),
        case(
            "scenario::what_is_wrong_is_told_before_anything_starts",
            what_is_wrong_is_told_before_anything_starts,
        ),
        case(
            "scenario::dependents_end_before_what_they_need",
            dependents_end_before_what_they_need,
        ),
        case("scenario::the_async_form", the_async_form),
    ]
}

fn refused(scenario: ScenarioBuilder) -> Result<Error> {
    match scenario.start() {
        Ok(started) => anyhow::bail!("it started: {started:?}"),
        Err(error) => Ok(error),
    }
}

/// Whether a program of this machine has these words in its command line, which are a pattern that does not match
/// itself.
fn is_alive(words: &str) -> Result<bool> {
    Ok(Command::new("pgrep")
        .args(["-f", words])
        .output()?
        .status
        .success())
}

/// Answers `hello` over HTTP on port 80, after a while.
fn server(network: &Network) -> Result<ScenarioBuilder> {
    let script =
        "sleep 0.2; mkdir -p /srv/www; echo hello >/srv/www/hello; exec httpd -f -p 80 -h /srv/www";
    let server = View::Image.sh(script)?.wait_for(Wait::port(80));
    Ok(Scenario::builder()
        .network(network)
        .service("server", server))
}

fn each_starts_when_what_it_needs_is_ready(_: &Context) -> Result<()> {
    let network = Network::builder().create()?;
    // Each would fail, were the one before not ready: by name over the network, and by having done its work.
    let prepare = View::Image
        .sh("wget -qO- http://server/hello")?
        .wait_for(Wait::exit(0));
    let app = View::Image
        .sh("wget -qO- http://server/hello && echo up && exec sleep 1000")?
        .wait_for(Wait::log("up"));
    let mut scenario = server(&network)?
        .service("app", app)
        .service("prepare", prepare)
        .after("app", ["server", "prepare"])
        .after("prepare", ["server"])
        .start()?;
    ensure!(scenario.names().collect::<Vec<_>>() == ["server", "prepare", "app"]);
    ensure!(read(&scenario["app"], "wget -qO- http://server/hello")? == "hello\n");
    ensure!(scenario["app"].name() == Some("app") && scenario.get("other").is_none());
    let prepare = scenario.get_mut("prepare").expect("it is there").wait()?;
    ensure!(prepare.stdout_text() == "hello\n");
    let ends = scenario.stop(Duration::from_secs(5))?;
    let names: Vec<&str> = ends.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(names == ["app", "prepare", "server"], "{names:?}");
    ensure!(ends[0].1.status == Status::Signaled(15) && ends[1].1.status == Status::Exited(0));
    Ok(())
}

fn those_that_need_nothing_start_in_parallel(_: &Context) -> Result<()> {
    for view in VIEWS {
        let started = Instant::now();
        let mut scenario = Scenario::builder();
        for number in 0..6 {
            let slow = view.sh("sleep 0.4; echo up; exec sleep 1000")?;
            scenario = scenario.service(format!("s{number}"), slow.wait_for(Wait::log("up")));
        }
        let scenario = scenario.after("s5", ["s0"]).start()?;
        let took = started.elapsed();
        ensure!(scenario.names().count() == 6 && scenario.names().last() == Some("s5"));
        // Two after each other, not six.
        ensure!(
            took >= Duration::from_millis(800) && took < Duration::from_millis(1600),
            "{took:?}"
        );
    }
    Ok(())
}

fn one_that_fails_takes_all_with_it(_: &Context) -> Result<()> {
    for view in VIEWS {
        let started = Instant::now();
        let error = refused(
            Scenario::builder()
                .service(
                    "fine",
                    view.sh("echo up; exec sleep 4711")?
                        .wait_for(Wait::log("up")),
                )
                .service("slow", view.sh("exec sleep 4711")?.wait_for(Wait::port(1)))
                .service(
                    "bad",
                    view.sh("sleep 0.3; echo no such table >&2; exit 3")?
                        .wait_for(Wait::port(1)),
                )
                .service("never", view.sh("exec sleep 4711")?)
                .after("bad", ["fine"])
                .after("never", ["bad", "slow"]),
        )?;
        // Not the minute that `slow` may take.
        ensure!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            started.elapsed()
        );
        has(
            &error.to_string(),
            &[
                "the service `bad` failed, and the scenario with it",
                "its program exited with code 3",
                "stderr| no such table",
                "Stopped: fine.",
                "Broken off while starting: slow.",
                "Not started: never.",
            ],
        )?;
        ensure!(error.is_not_ready() && !error.is_spec());
        ensure!(!is_alive("sleep 47[1]1")?);
        // One that cannot be executed at all.
        let error = refused(
            Scenario::builder()
                .service("fine", view.sh("exec sleep 4711")?)
                .service("none", view.sandbox()?.cmd(["/no/such/program"])),
        )?;
        ensure!(error.is_program_not_found(), "{error}");
        has(&error.to_string(), &["`none`", "/no/such/program"])?;
        ensure!(!is_alive("sleep 47[1]1")?);
    }
    Ok(())
}

fn who_ended_meanwhile_is_told(_: &Context) -> Result<()> {
    let error = refused(
        Scenario::builder()
            .service(
                "db",
                View::Image
                    .sh("echo up; sleep 0.1; echo disk on fire; exit 9")?
                    .wait_for(Wait::log("up")),
            )
            .service("done", View::Image.sh("echo done")?.wait_for(Wait::exit(0)))
            .service(
                "app",
                View::Image.sh("sleep 0.5; exit 1")?.wait_for(Wait::port(1)),
            )
            .after("app", ["db", "done"]),
    )?
    .to_string();
    has(
        &error,
        &[
            "the service `app` failed",
            "The service `db`, which was ready, had ended by itself: its program exited with code 9",
            "disk on fire",
        ],
    )?;
    // Its end was wanted.
    ensure!(!error.contains("`done`"), "{error}");
    Ok(())
}

fn what_is_wrong_is_told_before_anything_starts(context: &Context) -> Result<()> {
    let witness = context.work().join("started");
    let touch = || -> Result<_> {
        let mount = orbit::Mount::bind(context.work(), context.work());
        let script = format!("touch {}", witness.display());
        Ok(View::Host.sh(&script)?.mount(mount).wait_for(Wait::exit(0)))
    };
    let pair = || -> Result<_> {
        let scenario = Scenario::builder().service("one", touch()?);
        Ok(scenario.service("two", touch()?))
    };
    for (scenario, told) in [
        (
            pair()?.after("two", ["three"]),
            "there is no service `three`; there are one, two",
        ),
        (
            pair()?.service("one", touch()?),
            "two services are called `one`",
        ),
        (
            pair()?.after("two", ["one"]).after("one", ["two"]),
            "after `one`",
        ),
        (
            pair()?.service("three", touch()?.memory("much")),
            "service `three`: memory `much`",
        ),
    ] {
        let error = refused(scenario)?;
        ensure!(error.is_spec(), "{error}");
        has(&error.to_string(), &["invalid scenario", told])?;
    }
    let all = refused(
        pair()?
            .service("one", touch()?.memory("much"))
            .after("x", ["one"]),
    )?;
    has(
        &all.to_string(),
        &["3 things are wrong", "`one`", "`x`", "`much`"],
    )?;
    ensure!(!witness.exists(), "something has started");
    // It would have been seen.
    drop(pair()?.start()?);
    ensure!(witness.exists());
    std::fs::remove_file(&witness)?;
    Ok(())
}

/// What has a connection to something that ends sees the end, unless it ends before.
fn dependents_end_before_what_they_need(_: &Context) -> Result<()> {
    let lost = Arc::new(AtomicUsize::new(0));
    let scenario = |network: &Network| -> Result<ScenarioBuilder> {
        let lost = Arc::clone(&lost);
        let app = View::Image
            .sh("mkfifo /p; sleep 1000 >/p & (nc server 80 </p; echo lost) & sleep 0.1; echo up; wait")?
            .wait_for(Wait::log("up"))
            .on_log(move |line| {
                if line.text == "lost" {
                    lost.fetch_add(1, Ordering::SeqCst);
                }
            });
        // Takes a moment to be ended, in which a connection to the server would be seen to break.
        let between = View::Image.sh("exec sleep 1000")?;
        Ok(server(network)?
            .service("between", between)
            .service("app", app)
            .after("app", ["between"])
            .after("between", ["server"]))
    };
    for _ in 0..3 {
        let network = Network::builder().create()?;
        drop(scenario(&network)?.start()?);
        ensure!(lost.load(Ordering::SeqCst) == 0, "the server ended first");
    }
    // The app would have seen it.
    let network = Network::builder().create()?;
    let started = scenario(&network)?.start()?;
    started["server"].kill();
    until("the app sees the end", || {
        Ok(lost.load(Ordering::SeqCst) == 1)
    })
}

fn the_async_form(_: &Context) -> Result<()> {
    for mut runtime in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let runtime = runtime.enable_all().build()?;
        for view in VIEWS {
            let up = || -> Result<_> {
                Ok(view
                    .sh("echo up; exec sleep 4242")?
                    .wait_for(Wait::log("up")))
            };
            let pair = Scenario::builder()
                .service("one", up()?)
                .service("two", up()?);
            let never = view.sh("exec sleep 4242")?.wait_for(Wait::port(1));
            let stuck = Scenario::builder()
                .service("one", up()?)
                .service("never", never);
            runtime.block_on(async {
                let scenario = pair.after("two", ["one"]).start_async().await?;
                ensure!(scenario.names().collect::<Vec<_>>() == ["one", "two"]);
                drop(scenario);
                ensure!(!is_alive("sleep 42[4]2")?);
                let given_up =
                    tokio::time::timeout(Duration::from_millis(300), stuck.start_async());
                ensure!(given_up.await.is_err());
                Ok(())
            })?;
            // At once, not after the minute that it may take.
            until("what was given up is gone", || {
                Ok(!is_alive("sleep 42[4]2")?)
            })?;
        }
    }
    Ok(())
}
