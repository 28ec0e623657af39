//! The supervisor of `cargo orbit run`, which is a fork of the command: it has nothing of it that an execution would not
//! have.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Case, Context, Program, Who, images, orbit_cli, proc_fs::descendants};

use crate::kit::status_field;

const NAME: &[u8] = b"orbit-supervisor\0";

pub(crate) fn cases() -> Vec<Case> {
    let case =
        |name: &str, run: fn(&Context) -> Result<()>| Case::new(format!("early::{name}"), run);
    vec![
        case("it_forgets_what_the_command_was", forgets),
        case("who_starts_nothing_leaves_nothing", leaves_nothing),
        // As an ordinary user nobody may trace newuidmap, which is another user's.
        case("one_that_cannot_start_is_executed", executed)
            .who(&[Who::Root])
            .needs(&["strace"]),
    ]
}

fn forgets(context: &Context) -> Result<()> {
    let image = images::reference("busybox")?;
    let script = "tr '\\0' . </proc/1/cmdline; echo; echo up; read line";
    let mut child = Command::new(orbit_cli::binary()?)
        .args(["orbit", "run", "--interactive", "--image", &image])
        .args(["--env", "WORD=of-a-flag", "--", "sh", "-c", script])
        .env("ORBIT_TEST_SECRET", "of-the-environment")
        .current_dir(context.work())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let inside = lines.next().context("the init's command line")??;
    let name = inside.trim_end_matches('.');
    ensure!(name == "orbit-supervisor", "from inside: {inside}");
    ensure!(lines.next().context("it runs")?? == "up");

    let ours: Vec<_> = descendants(i32::try_from(child.id())?)
        .into_iter()
        .filter(|it| {
            fs::read(format!("/proc/{}/cmdline", it.pid)).is_ok_and(|it| it.starts_with(NAME))
        })
        .collect();
    ensure!(ours.len() >= 2, "a supervisor and an init, but {ours:?}");
    for process in &ours {
        let directory = format!("/proc/{}", process.pid);
        let words = fs::read(format!("{directory}/cmdline"))?;
        ensure!(
            words[NAME.len()..].iter().all(|byte| *byte == 0),
            "{process:?}: {}",
            String::from_utf8_lossy(&words)
        );
        // Who is not root may not look, as the process is not dumpable.
        if let Ok(environment) = fs::read(format!("{directory}/environ")) {
            ensure!(environment.iter().all(|byte| *byte == 0), "{process:?}");
        }
        let streams = process
            .files()
            .into_iter()
            .filter(|(fd, _)| ["0", "1", "2"].contains(&&**fd));
        for (fd, target) in streams {
            ensure!(target == "/dev/null", "{process:?}: {fd} is {target}");
        }
        // Rust has the command ignore SIGPIPE. The C library keeps 32 and 33 to itself.
        let status = fs::read_to_string(format!("{directory}/status"))?;
        for field in ["SigIgn", "SigCgt"] {
            let signals = u64::from_str_radix(status_field(&status, field)?, 16)?;
            ensure!(
                signals & !(0b11 << 31) == 0,
                "{process:?}: {field} {signals:x}"
            );
        }
    }
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}

/// It has started a supervisor by the time at which it finds out.
fn leaves_nothing(context: &Context) -> Result<()> {
    let audit = context.audit();
    for flags in [
        &["--no-such-flag"][..],
        &["--image", "dir:/no/such/directory"],
    ] {
        let program = context.orbit("run")?.args(flags);
        program.args(["--", "true"]).run()?.code(125)?;
    }
    audit.check()?;
    Ok(())
}

/// What the fork does first fails, so that it cannot become a supervisor, and an executed one does.
fn executed(context: &Context) -> Result<()> {
    let trace = context.work().join("trace");
    let finished = Program::new("strace")
        .args(["--follow-forks", "--quiet=all", "--trace=write"])
        .args([
            "--trace-path=anon_inode:[eventfd]",
            "--inject=write:error=EIO",
        ])
        .arg("--output")
        .arg(&trace)
        .arg(orbit_cli::binary()?)
        .args(["orbit", "run", "--image", &images::reference("busybox")?])
        .args(["--", "sh", "-c", "tr '\\0' . </proc/1/cmdline"])
        .run()?;
    let text = fs::read_to_string(&trace)?;
    fs::remove_file(trace)?;
    ensure!(text.matches("INJECTED").count() == 1, "{text}\n{finished}");
    // An executed one has no other words.
    ensure!(
        finished.success()?.stdout.trim() == "orbit-supervisor.",
        "{text}"
    );
    Ok(())
}
