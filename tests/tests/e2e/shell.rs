//! `cargo orbit shell`: a sandbox that was kept is found again as it was left, with a shell in it, on a terminal too.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::pty::openpty;
use orbit::{Sandbox, SandboxBuilder, kept};
use orbit_tests::{Case, Context, Finished, Program};

use crate::kit::{VIEWS, View, has};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("shell::{name}"), run).deadline(Duration::from_secs(60))
    };
    vec![
        case("finds_what_was_left", finds_what_was_left),
        case("on_a_terminal", on_a_terminal),
        case("where_the_image_has_none", where_the_image_has_none),
        case("lists_and_removes", lists_and_removes),
    ]
}

/// Runs `sandbox` to its end, which is to fail, and keeps it.
fn keep(sandbox: SandboxBuilder, title: &str) -> Result<String> {
    let mut sandbox = sandbox.start()?;
    let outcome = sandbox.wait()?;
    ensure!(!outcome.success(), "{outcome:?}");
    Ok(kept::keep(&mut sandbox, title)?)
}

/// What a shell in `id` makes of `script`, which it reads from a pipe.
fn typed(context: &Context, id: &str, script: &str) -> Result<Finished> {
    Program::new("sh")
        .args(["-c", "printf '%s\\n' \"$2\" | \"$0\" orbit shell \"$1\""])
        .arg(orbit_tests::orbit_cli::binary()?)
        .args([id, script])
        .current_dir(context.work())
        .run()?
        .success()
}

fn finds_what_was_left(context: &Context) -> Result<()> {
    for view in VIEWS {
        let id = keep(
            view.sh("echo why > /tmp/log; echo $GREETING > here; exit 3")?
                .env("GREETING", "hello there")
                .working_dir("/var/tmp"),
            "tests::fails",
        )?;
        let script = "cat /tmp/log; pwd; cat here; echo $GREETING; id -u; rm /tmp/log; exit 7";
        // Twice: what is done there is thrown away.
        for _ in 0..2 {
            let finished = context
                .orbit("shell")?
                .args([&id, "--", "sh", "-c", script])
                .run()?;
            let uid = match view {
                View::Host => nix::unistd::getuid().as_raw(),
                View::Image => 0,
            };
            let expected = format!("why\n/var/tmp\nhello there\nhello there\n{uid}\n");
            ensure!(finished.stdout == expected, "{view:?}: {finished}");
            ensure!(finished.status.code() == Some(7), "{finished}");
        }
        // A shell, fed from a pipe; the beginning of the id is enough.
        let finished = typed(context, &id[..6], "echo $GREETING from $0")?;
        has(&finished.stdout, &["hello there from /bin/"])?;
        context
            .orbit("shell")?
            .args(["--remove", &id])
            .run()?
            .success()?;
    }
    Ok(())
}

fn on_a_terminal(_: &Context) -> Result<()> {
    let id = keep(
        View::Image.sh("echo why > /tmp/log; exit 1")?,
        "tests::fails",
    )?;
    let pair = openpty(None, None)?;
    let program = || -> Result<Stdio> { Ok(Stdio::from(pair.slave.try_clone()?)) };
    let mut command = std::process::Command::new(orbit_tests::orbit_cli::binary()?);
    command
        .args(["orbit", "shell", &id])
        .stdin(program()?)
        .stdout(program()?)
        .stderr(program()?);
    let mut child = command.spawn()?;
    drop(command);
    let mut terminal = File::from(pair.master);
    terminal.write_all(b"tty; cat /tmp/log; echo $((40+2)); exit 5\n")?;
    drop(pair.slave);
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    // Its end is an error, as a terminal's is.
    while let Ok(count) = terminal.read(&mut buffer) {
        shown.extend(&buffer[..count]);
    }
    let shown = String::from_utf8_lossy(&shown).into_owned();
    let until = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        ensure!(Instant::now() < until, "it does not end: {shown}");
        std::thread::sleep(Duration::from_millis(5));
    };
    ensure!(status.code() == Some(5), "{status}: {shown}");
    has(&shown, &["/dev/pts/0", "why", "42"])?;
    Ok(())
}

fn where_the_image_has_none(context: &Context) -> Result<()> {
    // One file, and no shell.
    let root = context.work().join("root");
    std::fs::create_dir_all(root.join("app"))?;
    std::fs::copy("/usr/bin/busybox", root.join("app/false"))?;
    let id = keep(
        Sandbox::builder()
            .image(&format!("dir:{}", root.display()))
            .cmd(["/app/false"]),
        "tests::no_shell",
    )?;
    let script = "ls /app; echo *; cat /etc/hostname; echo x > /app/y && echo written";
    let finished = typed(context, &id, script)?;
    has(&finished.stdout, &["false", "app", "orbit", "written"])?;
    has(&finished.stderr, &["there is no shell in it", "busybox"])?;
    Ok(())
}

fn lists_and_removes(context: &Context) -> Result<()> {
    let shell = |words: &[&str]| context.orbit("shell")?.args(words).run();
    let gc = |words: &[&str]| context.orbit("gc")?.args(words).run()?.success();
    let none = shell(&[])?.success()?;
    ensure!(none.stdout.is_empty(), "{none}");
    has(&none.stderr, &["no sandbox is kept", "--keep-failed"])?;
    let view = View::Image;
    let first = keep(view.sh("echo 12345678 > /tmp/x; exit 1")?, "tests::first")?;
    let second = keep(view.sh("exit 1")?, "tests::\x1b[31msecond")?;
    let listed = shell(&[])?.success()?;
    let lines: Vec<&str> = listed.stdout.lines().collect();
    ensure!(lines.len() == 2, "{listed}");
    let line = |id: &str| {
        let mut lines = lines.iter();
        lines
            .find(|line| line.starts_with(id))
            .copied()
            .context("no line")
    };
    has(line(&first)?, &["tests::first", "oci:", " ago", "9 bytes"])?;
    has(line(&second)?, &["tests::\\u{1b}[31msecond"])?;

    shell(&["--remove", &first])?.success()?;
    let again = shell(&["--remove", &first])?;
    ensure!(!again.status.success());
    has(&again.stderr, &["no sandbox", &first, "cargo orbit shell"])?;
    for hostile in ["../../x", "", "zz", "/"] {
        let refused = shell(&[hostile])?;
        ensure!(hostile.is_empty() || !refused.status.success(), "{refused}");
    }
    // Young enough to stay; then not, whatever the age.
    gc(&[])?;
    ensure!(shell(&[])?.stdout.lines().count() == 1);
    let removed = gc(&["--kept"])?;
    has(&removed.stdout, &["removed 1 kept sandboxes"])?;
    ensure!(shell(&[])?.stdout.is_empty());
    gc(&["--unused-for", "0s"])?;
    ensure!(kept::list()?.is_empty());
    Ok(())
}
