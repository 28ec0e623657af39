//! What the cases share beside [`view`](orbit_tests::view), and this binary as a payload or a harness.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orbit::Sandbox;
pub(crate) use orbit_tests::view::{ROLE, VIEWS, View, describe, has};
use orbit_tests::{Case, Context};

pub(crate) fn case(name: &str, run: fn(&Context) -> Result<()>) -> Case {
    Case::new(name, run).deadline(Duration::from_secs(60))
}

/// What `sh -c script` prints in a running sandbox; it must exit with 0.
pub(crate) fn read(sandbox: &Sandbox, script: &str) -> Result<String> {
    let outcome = sandbox.exec(["sh", "-c", script]).run()?;
    ensure!(outcome.success(), "{script}: {}", describe(&outcome));
    Ok(outcome.stdout_text())
}

/// Waits until `done`, for some seconds.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not in ten seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// This binary in a role.
pub(crate) fn play(role: &str) -> ExitCode {
    let (role, argument) = role.split_once(' ').unwrap_or((role, ""));
    let done = match role {
        "swap" => swap(Path::new(argument)),
        "descriptors" => descriptors(),
        "panic" => panic_with_a_sandbox(),
        "error" => fail_with_a_sandbox(),
        "late-port" => late_port(),
        "shared" => crate::shared::end_with_a_service(argument),
        _ => Err(anyhow::anyhow!("no role {role}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{role}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes `at/name` a directory, a link out to `/`, and a link to `..` upon `..`, in turn, as fast as it can; and a
/// file `at/file` a link to `/outside`.
fn swap(at: &Path) -> Result<()> {
    fs::create_dir_all(at)?;
    let place = |name: &str| at.join(name);
    fs::create_dir(place("real"))?;
    fs::write(place("real/file"), "inside")?;
    symlink("/", place("root"))?;
    symlink("../../../../../../../../..", place("up"))?;
    fs::create_dir(place("name"))?;
    symlink("/outside", place("link"))?;
    fs::write(place("file"), "inside")?;
    println!("swapping");
    let exchange = |one: &str, other: &str| {
        nix::fcntl::renameat2(
            nix::fcntl::AT_FDCWD,
            &place(one),
            nix::fcntl::AT_FDCWD,
            &place(other),
            nix::fcntl::RenameFlags::RENAME_EXCHANGE,
        )
    };
    loop {
        for other in ["root", "real", "up"] {
            exchange("name", other)?;
        }
        // What is written in place of it changes its kind now and then.
        let _ = exchange("file", "link");
    }
}

/// Prints what is open.
fn descriptors() -> Result<()> {
    let mut found: Vec<String> = fs::read_dir("/proc/self/fd")?
        .filter_map(Result::ok)
        .filter(|entry| {
            // The one that lists them.
            fs::read_link(entry.path()).is_ok_and(|to| !to.to_string_lossy().contains("/fd"))
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    println!("{}", found.join(" "));
    Ok(())
}

fn panic_with_a_sandbox() -> Result<()> {
    let sandbox = View::Host
        .sh("echo first-line; echo the-reason >&2; exec sleep 1000")?
        .name("doomed")
        .start()?;
    sandbox.logs().follow().take(2).count();
    let quiet = View::Host
        .sh("echo not-shown; exec sleep 1000")?
        .log_on_panic(false)
        .start()?;
    quiet.logs().follow().take(1).count();
    let _gone = one_that_ended()?;
    panic!("the assertion failed");
}

fn fail_with_a_sandbox() -> Result<()> {
    let well = View::Host.sh("echo still-well; exec sleep 1000")?.start()?;
    well.logs().follow().take(1).count();
    let _gone = one_that_ended()?;
    anyhow::bail!("the test failed")
}

/// A service that ended by itself, and that nobody waited for.
fn one_that_ended() -> Result<Sandbox> {
    let gone = View::Host
        .sh("echo last-words; exit 9")?
        .name("gone")
        .start()?;
    let pid = gone.pid();
    until("it ended", || {
        Ok(pid.is_none_or(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
    })?;
    Ok(gone)
}

/// Listens, after a while, on a port that nobody waits for, then on 8099.
fn late_port() -> Result<()> {
    std::thread::sleep(Duration::from_millis(150));
    let listener = std::net::TcpListener::bind("127.0.0.1:8099").context("bind")?;
    println!("listening");
    loop {
        let (stream, _) = listener.accept()?;
        println!("accepted");
        drop(stream);
    }
}

/// How many processes of a running sandbox have these words in their command line.
pub(crate) fn count(sandbox: &Sandbox, words: &str) -> Result<usize> {
    // Written so that it does not find itself.
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null";
    let lines = read(sandbox, script)?;
    Ok(lines.lines().filter(|line| line.contains(words)).count())
}
