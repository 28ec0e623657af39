//! What one launch takes, in system calls and processes: figures that do not depend on the machine's pace, and that
//! may not grow unnoticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use orbit::Output;
use orbit_tests::{Case, Context, Program, Who};

use crate::kit::{ROLE, VIEWS, View};

/// System calls of one sandbox over an image, of whoever asks for it, the supervisor, the init and the program.
const MAX_CALLS_OF_IMAGE: usize = 284;
/// The same over the host's files. A host with more mounts takes more: see [`MAX_CALLS_OF_MOUNT`].
const MAX_CALLS_OF_HOST: usize = 412;
/// A directory of `/` with mounts in it is bound by itself.
const MAX_CALLS_OF_MOUNT: usize = 12;
/// The init and the program.
const MAX_PROCESSES: usize = 2;

/// After which an init stands by for the next: then the supervisor has rested. Under strace everything takes longer.
const A_WHILE: Duration = Duration::from_millis(30);

const FEW: usize = 5;
const MANY: usize = 25;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        // As an ordinary user nobody may trace newuidmap, which is another user's.
        case("over_an_image", |context| {
            has_not_grown(context, View::Image, MAX_CALLS_OF_IMAGE)
        }),
        case("over_the_host", |context| {
            let most = MAX_CALLS_OF_HOST + mounts_in_root()? * MAX_CALLS_OF_MOUNT;
            has_not_grown(context, View::Host, most)
        }),
    ]
}

fn case(view: &str, run: fn(&Context) -> Result<()>) -> Case {
    Case::new(format!("structure::a_launch_{view}_has_not_grown"), run)
        // As an ordinary user nobody may trace newuidmap, which is another user's.
        .who(&[Who::Root])
        .needs(&["strace"])
        // Not in the virtual machine: its kernel has other files in /proc to cover.
        .needs_toolchain()
}

/// How many directories of `/` are mount points, or have some below.
fn mounts_in_root() -> Result<usize> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let top = points.filter_map(|point| point.split('/').nth(1).filter(|name| !name.is_empty()));
    Ok(top.collect::<BTreeSet<_>>().len())
}

fn has_not_grown(context: &Context, view: View, most: usize) -> Result<()> {
    let few = trace(&context.tmp(), view, FEW)?;
    let many = trace(&context.tmp(), view, MANY)?;
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
        calls <= most,
        "one launch took {calls} system calls, of {most} at most. Where that is worth it, raise the figure in {} \
         and say why in the commit. They were, for each launch:\n{}",
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

/// In the traced process: `COUNT VIEW`, sandboxes, one after the other.
pub(crate) fn launch(words: &str) -> Result<()> {
    let (count, name) = words.split_once(' ').context("a count and a view")?;
    let view = VIEWS.into_iter().find(|it| format!("{it:?}") == name);
    let view = view.context("no such view")?;
    for _ in 0..count.parse()? {
        let outcome = view
            .sandbox()?
            .cmd(["/bin/true"])
            .stdout(Output::Null)
            .stderr(Output::Null)
            .run()?;
        ensure!(outcome.success(), "{}", outcome.status);
        thread::sleep(A_WHILE);
    }
    Ok(())
}

#[derive(Default)]
struct Traced {
    calls: usize,
    processes: usize,
    by_name: BTreeMap<String, usize>,
}

fn trace(directory: &Path, view: View, launches: usize) -> Result<Traced> {
    let path = directory.join("trace");
    Program::new("strace")
        .args(["--follow-forks", "--quiet=all", "--signal=none", "--output"])
        .arg(&path)
        .arg(env::current_exe()?)
        .env(ROLE, format!("launch {launches} {view:?}"))
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
