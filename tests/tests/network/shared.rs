//! Networks that several processes are on.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit::{Network, Sandbox, Status};
use orbit_tests::{Case, Context, Who, images};

use crate::support::{await_port, rate, service};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("shared::processes_meet_on_a_network", processes_meet).needs(&["busybox-static"]),
        Case::new(
            "shared::a_page_is_fetched_by_name_from_another_process",
            page_from_image,
        )
        .who(Who::RANGED)
        .needs(&["busybox-static"]),
        Case::new(
            "shared::no_two_processes_have_an_address",
            no_two_have_an_address,
        ),
        Case::new("shared::what_a_killed_process_had_is_gone", killed_process),
        Case::new(
            "shared::a_process_that_stands_still_is_named",
            stopped_process,
        ),
        Case::new("shared::tests_of_one_run_meet", tests_of_one_run_meet)
            .who(&[Who::User])
            .needs(&["busybox-static"])
            .deadline(Duration::from_secs(600)),
        Case::new("shared::bad_networks_are_one_clear_error", bad_networks),
    ]
}

/// Where this identity's processes meet.
fn meeting(context: &Context, name: &str) -> PathBuf {
    let runtime = match context.who {
        Who::Root => "/run/orbit".into(),
        _ => context.cache().join("run"),
    };
    runtime.join("networks").join(name)
}

fn lab() -> Result<Network, orbit::Error> {
    Network::builder().name("lab").shared(true).create()
}

/// `cargo orbit run --network lab` with these options and this program, over the host's files.
fn run(context: &Context, options: &[&str], program: &[&str]) -> Result<Command> {
    run_image(context, "host", options, program)
}

fn run_image(
    context: &Context,
    image: &str,
    options: &[&str],
    program: &[&str],
) -> Result<Command> {
    let exe = std::env::current_exe()?;
    let mut command =
        Command::new(std::env::var_os("ORBIT_TESTS_CARGO_ORBIT").context("main sets it")?);
    command
        .args(["orbit", "run", "--network", "lab", "--timeout", "60s"])
        .args(["--image", image])
        .args(options)
        .arg("--")
        .args(program)
        .current_dir(exe.parent().context("a directory")?)
        .env("TMPDIR", context.tmp())
        .env_remove("XDG_RUNTIME_DIR")
        .stdin(Stdio::null());
    Ok(command)
}

/// A sandbox of another process that serves its name, once it does.
fn served_elsewhere(context: &Context, name: &str) -> Result<Child> {
    let exe = std::env::current_exe()?.display().to_string();
    let script = format!(
        "(until busybox nc 127.0.0.1 80 </dev/null >/dev/null 2>&1; do :; done; echo ready) & \
         exec {exe} serve-text 0.0.0.0:80 {name}"
    );
    let mut child = run(context, &["--name", name], &["sh", "-c", &script])?
        .stdout(Stdio::piped())
        .spawn()?;
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().context("piped")?).read_line(&mut first)?;
    ensure!(first.contains("ready"), "{first:?}");
    Ok(child)
}

/// Asks it to end: it takes what it made along.
fn end(mut child: Child) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    child.wait()?;
    Ok(())
}

/// Ends it before it can do anything more.
fn kill_now(mut child: Child) -> Result<()> {
    // Of a child of ours, which nobody has waited for.
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn fetched(network: &Network, at: &str) -> Result<String> {
    let outcome = service(&["fetch", at])?
        .network(network)
        .timeout(Duration::from_secs(10))
        .run()?;
    ensure!(outcome.status == Status::Exited(0), "{at}: {outcome:?}");
    Ok(outcome.stdout_text().clone())
}

fn processes_meet(context: &Context) -> Result<()> {
    const BYTES: u64 = 64 << 20;
    // Whoever comes first.
    let before = served_elsewhere(context, "before")?;
    let network = lab()?;
    ensure!(network.subnet().to_string() == "10.88.0.0/16");
    let _own = {
        let sandbox = service(&["serve-text", "0.0.0.0:80", "own"])?
            .network(&network)
            .network_alias("own")
            .start()?;
        drop(await_port(&sandbox, 80)?);
        sandbox
    };
    let after = served_elsewhere(context, "after")?;
    for name in ["before", "own", "after"] {
        ensure!(fetched(&network, &format!("{name}:80"))? == name, "{name}");
        let exe = std::env::current_exe()?.display().to_string();
        let output = run(
            context,
            &["--name", "asks"],
            &[&exe, "fetch", &format!("{name}:80")],
        )?
        .output()?;
        ensure!(output.stdout == name.as_bytes(), "{name}: {output:?}");
    }
    // The same again is the same network, in one process too.
    ensure!(fetched(&lab()?, "before:80")? == "before");
    end(after)?;
    kill_now(before)?;
    let outcome = service(&["fetch", "before:80"])?.network(&network).run()?;
    ensure!(outcome.stderr_text().contains("lookup"), "{outcome:?}");
    ensure!(fetched(&network, "own:80")? == "own");

    let zeros = service(&["serve-zeros", "0.0.0.0:81", &BYTES.to_string()])?
        .network(&network)
        .network_alias("zeros")
        .start()?;
    drop(await_port(&zeros, 81)?);
    let exe = std::env::current_exe()?.display().to_string();
    let started = Instant::now();
    let output = run(context, &[], &[&exe, "discard", "zeros:81"])?.output()?;
    let took = started.elapsed();
    ensure!(output.stdout == BYTES.to_string().as_bytes(), "{output:?}");
    let started = Instant::now();
    let outcome = service(&["discard", "zeros:81"])?.network(&network).run()?;
    ensure!(outcome.stdout_text() == BYTES.to_string(), "{outcome:?}");
    println!(
        "64 MiB: to another process {:.0} MB/s, within one {:.0} MB/s",
        rate(BYTES, took),
        rate(BYTES, started.elapsed())
    );
    Ok(())
}

fn page_from_image(context: &Context) -> Result<()> {
    let image = images::reference("busybox")?;
    let network = lab()?;
    let script = "mkdir /www && echo a page >/www/index.html && exec httpd -f -p 80 -h /www";
    let web = Sandbox::builder()
        .image(&image)
        .cmd(["sh", "-c", script])
        .network(&network)
        .network_alias("web")
        .start()?;
    drop(await_port(&web, 80)?);
    let program = ["wget", "-q", "-O-", "http://web/"];
    let output = run_image(context, &image, &[], &program)?.output()?;
    ensure!(output.stdout == b"a page\n", "{output:?}");
    Ok(())
}

fn no_two_have_an_address(context: &Context) -> Result<()> {
    let network = Network::builder()
        .name("lab")
        .subnet("10.3.0.0/29")
        .shared(true)
        .create()?;
    let sleeper = || {
        Sandbox::builder()
            .cmd(["sleep", "60"])
            .network(&network)
            .start()
    };
    let mut own = vec![sleeper()?, sleeper()?];
    let elsewhere = [
        served_elsewhere(context, "first")?,
        served_elsewhere(context, "second")?,
    ];
    own.push(sleeper()?);
    let mut addresses: Vec<String> = own
        .iter()
        .filter_map(|sandbox| sandbox.address(&network))
        .map(|address| address.to_string())
        .collect();
    addresses.sort();
    ensure!(
        addresses == ["10.3.0.2", "10.3.0.3", "10.3.0.6"],
        "{addresses:?}"
    );
    match sleeper() {
        Ok(_) => bail!("there was a sixth address of five"),
        Err(error) => ensure!(error.to_string().contains("is full"), "{error}"),
    }
    for child in elsewhere {
        kill_now(child)?;
    }
    // At once: what the dead had is free, and nothing of theirs answers there.
    let again = service(&["serve-text", "0.0.0.0:80", "again"])?
        .network(&network)
        .network_alias("again")
        .start()?;
    drop(await_port(&again, 80)?);
    ensure!(fetched(&network, "again:80")? == "again");
    Ok(())
}

fn killed_process(context: &Context) -> Result<()> {
    let directory = meeting(context, "lab");
    // This process's supervisor is to be there before.
    drop(Sandbox::builder().cmd(["true"]).expose(80).start()?);
    let audit = context.audit();
    let killed = served_elsewhere(context, "killed")?;
    let network = lab()?;
    ensure!(fetched(&network, "killed:80")? == "killed");
    ensure!(sockets(&directory)? == 2);
    kill_now(killed)?;
    let outcome = service(&["fetch", "killed:80"])?.network(&network).run()?;
    ensure!(outcome.stderr_text().contains("lookup"), "{outcome:?}");
    // A socket that refuses connections is left of it, until somebody comes.
    ensure!(sockets(&directory)? == 2);
    let next = served_elsewhere(context, "next")?;
    ensure!(sockets(&directory)? == 2 && fetched(&network, "next:80")? == "next");
    drop(network);
    end(next)?;
    // Of another name: who comes removes what is left of all. The kernel may not be done with the process yet.
    let until = Instant::now() + Duration::from_secs(5);
    while directory.exists() {
        ensure!(Instant::now() < until, "{} is left", directory.display());
        drop(Network::builder().name("other").shared(true).create()?);
    }
    Ok(audit.check()?)
}

fn sockets(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        count += usize::from(entry?.path().extension().is_some_and(|it| it == "sock"));
    }
    Ok(count)
}

fn stopped_process(context: &Context) -> Result<()> {
    // All that it started, for the broker to stand still.
    let stopped = served_elsewhere(context, "stopped")?;
    let all = orbit_tests::proc_fs::descendants(i32::try_from(stopped.id())?);
    let broker: Vec<i32> = all.iter().map(|process| process.pid).collect();
    ensure!(!broker.is_empty());
    for pid in &broker {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP)?;
    }
    let answer = lab();
    for pid in &broker {
        kill(Pid::from_raw(*pid), Signal::SIGCONT)?;
    }
    match answer {
        Ok(network) => bail!("{network:?}"),
        Err(error) => {
            let text = error.to_string();
            ensure!(
                text.contains(&format!("process {}, which is on", stopped.id()))
                    && text.contains("does not answer"),
                "{text}"
            );
        }
    }
    ensure!(fetched(&lab()?, "stopped:80")? == "stopped");
    end(stopped)
}

fn bad_networks(context: &Context) -> Result<()> {
    drop(Sandbox::builder().cmd(["true"]).expose(80).start()?);
    let audit = context.audit();
    let fails = |made: std::result::Result<Network, orbit::Error>, part: &str| match made {
        Ok(network) => bail!("{network:?}"),
        Err(error) if error.to_string().contains(part) => Ok(()),
        Err(error) => bail!("no {part:?} in {error}"),
    };
    let shared = || Network::builder().shared(true);
    fails(shared().create(), "by its name; give it one")?;
    for name in ["../up", "a b", "", "a/b"] {
        fails(shared().name(name).create(), "expected labels of letters")?;
    }
    fails(
        shared().name("lab").subnet("10.0.0.1/24").create(),
        "did you mean 10.0.0.0/24?",
    )?;
    let holds = served_elsewhere(context, "holds")?;
    let clash = shared().name("lab").subnet("10.9.0.0/24").create();
    fails(clash, "lab is 10.88.0.0/16 while another process is on it")?;
    let same = shared().name("lab").subnet("10.88.0.0/16").create()?;
    fails(
        shared().name("lab").subnet("10.9.0.0/24").create(),
        "lab is 10.88.0.0/16 while another process is on it",
    )?;
    let output = run(context, &["--subnet", "10.9.0.0/24"], &["true"])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(125) && said.contains("10.88.0.0/16 while another"),
        "{output:?}"
    );
    end(holds)?;
    drop(same);
    Ok(audit.check()?)
}

/// Each test of a run is a process in a sandbox; what those make is a sandbox in that.
fn tests_of_one_run_meet(context: &Context) -> Result<()> {
    let finished = context
        .orbit("test")?
        .arg("--manifest-path")
        .arg(context.in_workspace("fixtures/meeting/Cargo.toml"))
        .env("CARGO_TARGET_DIR", context.work().join("target"))
        .deadline(Duration::from_secs(600))
        .run()?
        .success()?;
    let said = format!("{}{}", finished.stdout, finished.stderr);
    ensure!(said.contains("2 passed"), "{said}");
    // The place where they met is gone.
    let sessions = context.cache().join("run/sessions");
    ensure!(
        !sessions.exists() || fs::read_dir(&sessions)?.next().is_none(),
        "{} is not empty",
        sessions.display()
    );
    Ok(())
}
