//! What one launch takes, in system calls and processes: figures that do not depend on the machine's pace, and that
//! may not grow unnoticed.

use std::{collections::BTreeMap, env, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use orbit::Output;
use orbit_tests::{Case, Context, Program, Who};

use crate::kit::{ROLE, View};

/// System calls of one sandbox over an image, of whoever asks for it, the supervisor, the init and the program.
const MAX_SYSTEM_CALLS: usize = 295;
/// The init and the program.
const MAX_PROCESSES: usize = 2;

const FEW: usize = 5;
const MANY: usize = 25;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        // As an ordinary user nobody may trace newuidmap, which is another user's.
        Case::new("structure::a_launch_has_not_grown", a_launch_has_not_grown)
            .who(&[Who::Root])
            .needs(&["strace"])
            // Not in the virtual machine: its kernel has other files in /proc to cover.
            .needs_toolchain(),
    ]
}

fn a_launch_has_not_grown(context: &Context) -> Result<()> {
    let few = trace(&context.tmp(), FEW)?;
    let many = trace(&context.tmp(), MANY)?;
    // What the process and its supervisor do once is in both.
    let each = |count: fn(&Traced) -> usize| {
        count(&many)
            .saturating_sub(count(&few))
            .div_ceil(MANY - FEW)
    };
    let (calls, processes) = (each(|it| it.calls), each(|it| it.processes));
    println!("one launch: {calls} system calls, {processes} processes");
    ensure!(
        calls > 50 && processes > 1,
        "{calls} system calls, {processes} processes: the trace is not read as it is written"
    );
    ensure!(
        calls <= MAX_SYSTEM_CALLS,
        "one launch took {calls} system calls, of {MAX_SYSTEM_CALLS} at most. Where that is worth it, raise \
         MAX_SYSTEM_CALLS in {} and say why in the commit. They were, for each launch:\n{}",
        file!(),
        table(&few, &many)
    );
    ensure!(
        processes <= MAX_PROCESSES,
        "one launch started {processes} processes, of {MAX_PROCESSES} at most. Where that is worth it, raise \
         MAX_PROCESSES in {} and say why in the commit.",
        file!()
    );
    Ok(())
}

/// In the traced process: sandboxes, one after the other.
pub(crate) fn launch(count: usize) -> Result<()> {
    for _ in 0..count {
        let outcome = View::Image
            .sandbox()?
            .cmd(["/bin/true"])
            .stdout(Output::Null)
            .stderr(Output::Null)
            .run()?;
        ensure!(outcome.success(), "{}", outcome.status);
    }
    Ok(())
}

#[derive(Default)]
struct Traced {
    calls: usize,
    processes: usize,
    by_name: BTreeMap<String, usize>,
}

fn trace(directory: &Path, launches: usize) -> Result<Traced> {
    let path = directory.join("trace");
    Program::new("strace")
        .args(["--follow-forks", "--quiet=all", "--signal=none", "--output"])
        .arg(&path)
        .arg(env::current_exe()?)
        .env(ROLE, format!("launch {launches}"))
        .run()?
        .success()?;
    let traced = read(&fs::read_to_string(&path).context("read the trace")?);
    fs::remove_file(path)?;
    Ok(traced)
}

/// Lines such as `1234 close(3) = 0`; one that was interrupted by another process's comes in two parts.
fn read(trace: &str) -> Traced {
    let mut traced = Traced::default();
    for line in trace.lines() {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let Some((name, arguments)) = call.trim_start().split_once('(') else {
            continue;
        };
        if name.is_empty()
            || !name
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || it == b'_')
        {
            continue; // The other part.
        }
        traced.calls += 1;
        *traced.by_name.entry(name.to_owned()).or_default() += 1;
        let starts = matches!(name, "clone" | "clone3" | "fork" | "vfork");
        if starts && !arguments.contains("CLONE_THREAD") {
            traced.processes += 1;
        }
    }
    traced
}

fn table(few: &Traced, many: &Traced) -> String {
    let lines = many.by_name.iter().filter_map(|(name, count)| {
        let once = few.by_name.get(name).copied().unwrap_or_default();
        let each = count.saturating_sub(once).div_ceil(MANY - FEW);
        (each > 0).then(|| format!("{each:>5} {name}"))
    });
    lines.collect::<Vec<_>>().join("\n")
}
