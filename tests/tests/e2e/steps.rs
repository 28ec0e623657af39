//! Faults at each step of a launch: whoever is at it is killed, or the kernel has too little of something.
//!
//! strace(1) does that: it counts the system calls of each process, and puts a signal or an error in the place of the one
//! that is asked for. Nothing may be left, nothing may hang, and what runs is hardened as ever or not at all.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit::Sandbox;
use orbit_tests::{Case, Context, Finished, LeakAudit, Program, Who, images, orbit_cli};

use crate::kit::{View, describe};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("steps::{name}"), run)
            .needs(&["strace"])
            .deadline(Duration::from_secs(90))
    };
    // As an ordinary user nobody may trace newuidmap, which is another user's: who has one id does without it.
    let traceable = &[Who::Root, Who::Single];
    vec![
        case(
            "a_harness_killed_at_any_system_call_leaves_nothing",
            a_harness_killed_at_any_system_call_leaves_nothing,
        ),
        case(
            "a_supervisor_killed_at_any_time_is_an_error",
            a_supervisor_killed_at_any_time_is_an_error,
        ),
        case(
            "whoever_is_killed_at_a_step_the_rest_ends",
            whoever_is_killed_at_a_step_the_rest_ends,
        )
        .who(traceable),
        case("what_lacks_at_a_step_is_said", what_lacks_at_a_step_is_said).who(traceable),
        case(
            "hardening_that_fails_is_an_error",
            hardening_that_fails_is_an_error,
        )
        .who(traceable),
    ]
}

/// `cargo orbit run` of `cat`, which says how it was made and then exits with 1, for a file that is not there: a program's
/// own exit code, which no failure of Orbit's may look like. Under strace with `flags`, where there are any.
fn launch(context: &Context, flags: &[&str]) -> Result<Finished> {
    let orbit = orbit_cli::binary()?;
    let program = match flags {
        [] => Program::new(orbit),
        flags => Program::new("strace")
            .args(["--quiet=all", "--signal=none"])
            .args(["--output".as_ref(), context.work().join("log").as_os_str()])
            .args(flags)
            .arg(orbit),
    };
    program
        .args(["orbit", "run", "--image", &images::reference("busybox")?])
        // So that every mount of the host is handed over.
        .args(["--mount", "/sys:/late:ro", "--", "cat"])
        .args(["status", "mountinfo", "limits"].map(|file| format!("/proc/self/{file}")))
        .args(["/etc/hosts", "/no/such/file"])
        .current_dir(context.work())
        .deadline(Duration::from_secs(20))
        .run()
}

/// What of a program's output says how it is confined, and is the same each time.
fn hardening(output: &str) -> Vec<&str> {
    const FIELDS: [&str; 8] = [
        "Umask", "Uid", "Gid", "Groups", "SigBlk", "Cap", "NoNew", "Seccomp",
    ];
    let told = |line: &&str| match line.split_once(":\t") {
        Some((name, _)) => FIELDS.iter().any(|field| name.starts_with(field)),
        None => true,
    };
    output.lines().filter(told).map(without_numbers).collect()
}

/// A line of the mount table without the numbers of the mount, of that below it, and of its device. Others as they are.
fn without_numbers(line: &str) -> &str {
    let mut words = line.splitn(4, ' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(id), Some(_), Some(device), Some(rest))
            if device.contains(':') && id.parse::<u32>().is_ok() =>
        {
            rest
        }
        _ => line,
    }
}

/// A launch as it should be.
fn sound(context: &Context) -> Result<Finished> {
    let finished = launch(context, &[])?.code(1)?;
    let found = hardening(&finished.stdout);
    ensure!(
        found.contains(&"NoNewPrivs:\t1") && found.contains(&"Seccomp:\t2") && found.len() > 30,
        "{finished}"
    );
    Ok(finished)
}

/// An audit that also sees what loses its parents.
fn audit(context: &Context) -> LeakAudit {
    LeakAudit::adopting(
        [context.tmp(), context.cache().join("v1/tmp")],
        [context.cache().join("run")],
    )
}

/// `count` numbers from 1 to `most`, others in each run.
fn spread(most: usize, count: usize) -> Vec<usize> {
    let step = (most / count).max(1);
    let jitter = std::process::id() as usize % step;
    (0..count)
        .map(|number| number * step + jitter + 1)
        .filter(|number| *number <= most)
        .collect()
}

fn log(context: &Context) -> Result<String> {
    Ok(fs::read_to_string(context.work().join("log"))?)
}

fn a_harness_killed_at_any_system_call_leaves_nothing(context: &Context) -> Result<()> {
    sound(context)?;
    // It alone is traced: what it starts goes on at full speed, as newuidmap must.
    launch(context, &["--trace=all"])?.code(1)?;
    let log = log(context)?;
    let all = log.lines().count();
    // Before that it reads its flags and the facts of the machine.
    let first = log
        .lines()
        .position(|line| line.starts_with("socketpair("))
        .context("no channel is made")?;
    ensure!(all - first > 30, "{first} of {all}:\n{log}");
    let early = spread(first, 4);
    let late = spread(all - first, 22).into_iter().map(|it| it + first);
    let names: Vec<&str> = log
        .lines()
        .map(|line| line.split('(').next().unwrap_or_default())
        .collect();
    let numbers: Vec<usize> = early.into_iter().chain(late).collect();
    let mut killed = 0;
    for number in &numbers {
        let number = *number;
        let audit = audit(context);
        // strace counts each system call by itself.
        let name = names[number - 1];
        let nth = names[..number].iter().filter(|it| **it == name).count();
        let inject = format!("--inject={name}:signal=SIGKILL:when={nth}");
        let finished = launch(context, &[&inject])?;
        let told = || format!("killed at system call {number} of {all}, {name} {nth}: {finished}");
        if finished.status.signal() == Some(libc::SIGKILL) {
            killed += 1;
        } else {
            // How often it waits differs: then it comes to its end.
            ensure!(finished.status.code() == Some(1), "{}", told());
        }
        audit.check().with_context(told)?;
    }
    let tried = numbers.len();
    ensure!(killed + 5 >= tried, "{killed} of {tried} were killed");
    sound(context)?;
    Ok(())
}

/// A supervisor is the child of whoever asks for sandboxes. Orphans of the starter are not.
pub(crate) fn supervisor() -> Option<Pid> {
    let own = std::process::id() as i32;
    let ours = orbit_tests::proc_fs::descendants(own);
    let found = ours.iter().find(|it| it.parent == own && !it.is_zombie())?;
    Some(Pid::from_raw(found.pid))
}

/// Waits until there is another supervisor, or none.
fn await_end_of(supervisor_before: Option<Pid>) {
    let until = Instant::now() + Duration::from_secs(2);
    while supervisor_before.is_some() && supervisor() == supervisor_before && Instant::now() < until
    {
        thread::sleep(Duration::from_millis(1));
    }
}

fn a_supervisor_killed_at_any_time_is_an_error(context: &Context) -> Result<()> {
    let audit = context.audit();
    let one = || View::Image.sh("echo up; sleep 0.005; echo down");
    let (mut failed, mut ran) = (0, 0);
    for round in 0..30_u64 {
        // Half of them with one that is there already, the others while it starts.
        if round % 2 == 0 {
            ensure!(one()?.run()?.success());
        }
        let after = Duration::from_micros(round * 700);
        let started = Instant::now();
        let outcome = thread::scope(|scope| -> Result<_> {
            let launched = scope.spawn(|| one().map(orbit::SandboxBuilder::run));
            thread::sleep(after);
            let found = supervisor();
            if let Some(pid) = found {
                // ESRCH: it has ended by itself.
                let _ = kill(pid, Signal::SIGKILL);
            }
            await_end_of(found);
            launched.join().ok().context("a panic")?
        })?;
        let told = || format!("round {round}, killed after {after:?}");
        match outcome {
            Ok(outcome) => {
                let whole = outcome.stdout_text() == "up\ndown\n" && outcome.success();
                ensure!(whole, "{}: {}", told(), describe(&outcome));
                ran += 1;
            }
            Err(error) => {
                let error = error.to_string();
                ensure!(error.contains("supervisor"), "{}: {error}", told());
                failed += 1;
            }
        }
        ensure!(started.elapsed() < Duration::from_secs(5), "{}", told());
    }
    println!("{failed} failed, {ran} ran");
    ensure!(failed > 3, "nothing was tried");
    // The next sandbox gets another one, which is all that may be left.
    ensure!(one()?.run()?.success());
    let last = supervisor().context("a supervisor")?;
    kill(last, Signal::SIGKILL)?;
    await_end_of(Some(last));
    ensure!(Sandbox::builder().cmd(["true"]).run()?.success());
    let left = audit.check().err().map(|leaks| leaks.to_string());
    let left = left.unwrap_or_default();
    ensure!(
        !left.contains("sleep") && left.matches("process ").count() <= 1,
        "{left}"
    );
    Ok(())
}

/// How often the one process that makes it most often makes each system call, in a launch.
fn most_calls(context: &Context) -> Result<BTreeMap<String, usize>> {
    launch(context, &["--follow-forks", "--trace=all"])?.code(1)?;
    let mut calls: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in log(context)?.lines() {
        let (pid, call) = line.split_once(' ').unwrap_or_default();
        if let Some((name, _)) = call.trim_start().split_once('(') {
            *calls.entry((name.to_owned(), pid.to_owned())).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    for ((name, _), count) in calls {
        let known = most.entry(name).or_default();
        *known = count.max(*known);
    }
    Ok(most)
}

/// Whether something was done to a process of Orbit's, and whether to the program.
fn hit(log: &str, sign: &str) -> (bool, bool) {
    let (mut programs, mut orbits, mut ours, mut theirs) = (Vec::new(), Vec::new(), false, false);
    for line in log.lines() {
        let pid = line.split(' ').next().unwrap_or_default();
        if line.contains(sign) {
            let is_programs = programs.contains(&pid);
            theirs |= is_programs;
            ours |= !is_programs;
        }
        if line.contains("/cargo-orbit\"") || line.contains("\"orbit-supervisor\"") {
            orbits.push(pid);
        } else if line.contains("execve") && line.ends_with("= 0") && !orbits.contains(&pid) {
            // Who traces may not read its arguments, where the user namespace is another.
            programs.push(pid);
        }
    }
    (ours, theirs)
}

/// In each process of a launch, at the same time: one of them comes first, and the others must notice.
fn whoever_is_killed_at_a_step_the_rest_ends(context: &Context) -> Result<()> {
    const CALLS: [&str; 18] = [
        "recvmsg",
        "sendmsg",
        "mount",
        "move_mount",
        "openat2",
        "pivot_root",
        "setsid",
        "setresuid",
        "close_range",
        "epoll_create1",
        "epoll_pwait",
        "socket",
        "sethostname",
        "signalfd4",
        "prctl",
        "capset",
        "chdir",
        "wait4",
    ];
    let expected = sound(context)?;
    let most = most_calls(context)?;
    let mut killed = 0;
    for call in CALLS {
        let count = most.get(call).copied().unwrap_or_default();
        for number in spread(count, 2) {
            let audit = audit(context);
            let inject = format!("--inject={call}:signal=SIGKILL:when={number}");
            let trace = format!("--trace=execve,{call}");
            let finished = launch(context, &["--follow-forks", &trace, &inject])?;
            let told = || format!("killed at {call} {number} of {count}: {finished}");
            let code = finished.status.code();
            let whole = hardening(&finished.stdout) == hardening(&expected.stdout);
            ensure!(
                finished.status.signal() == Some(libc::SIGKILL)
                    || code == Some(125) && complaint(&finished).is_some()
                    // The program itself, or its init once it had ended.
                    || code == Some(137)
                    || code == Some(1) && whole,
                "{}",
                told()
            );
            audit.check().with_context(told)?;
            killed += usize::from(code != Some(1));
        }
    }
    println!("{killed} launches did not come to their end");
    ensure!(killed > 15, "{killed} of them were killed");
    sound(context)?;
    Ok(())
}

/// What Orbit says, beside what the program did.
fn complaint(finished: &Finished) -> Option<&str> {
    let at = finished.stderr.find("orbit: ")?;
    Some(finished.stderr[at..].trim())
}

/// Runs a launch in which the `number`th `call` of each process fails with `error`: it must be as ever, or an error.
/// `None` where no process of Orbit's came to it.
fn lacking(
    context: &Context,
    expected: &Finished,
    (call, error, number): (&str, &str, usize),
) -> Result<Option<bool>> {
    let audit = audit(context);
    let inject = format!("--inject={call}:error={error}:when={number}");
    let trace = format!("--trace=execve,{call}");
    let finished = launch(context, &["--follow-forks", &trace, &inject])?;
    let told = || format!("{error} of {call} {number}: {finished}");
    audit.check().with_context(told)?;
    let (ours, theirs) = hit(&log(context)?, "(INJECTED)");
    if !ours || theirs && finished.status.code() != Some(125) {
        return Ok(None);
    }
    match finished.status.code() {
        Some(125) => {
            let said = complaint(&finished).with_context(told)?;
            ensure!(
                said.starts_with("orbit: cannot ")
                    || said
                        .starts_with("orbit: the supervisor of this process's sandboxes cannot ")
                    || said.starts_with("orbit: the sandbox vanished"),
                "{}",
                told()
            );
            ensure!(
                said.contains("os error") || said.contains("vanished"),
                "{}",
                told()
            );
            ensure!(
                !said.contains("panicked") && !said.contains("please report"),
                "{}",
                told()
            );
            Ok(Some(true))
        }
        Some(1) if hardening(&finished.stdout) == hardening(&expected.stdout) => Ok(Some(false)),
        _ => bail!("{}", told()),
    }
}

/// What a launch asks of the kernel, and what each may lack. How often each is tried, at most.
const LACKS: &[(&str, &[&str], usize)] = &[
    ("mount", &["ENOSPC", "ENOMEM", "EDQUOT"], 6),
    ("open_tree", &["ENOSPC", "EMFILE", "ENOMEM"], 3),
    ("mount_setattr", &["ENOMEM"], 3),
    ("move_mount", &["ENOSPC", "ENOMEM"], 2),
    ("mkdirat", &["ENOSPC", "EDQUOT"], 4),
    ("mknodat", &["ENOSPC"], 2),
    ("symlinkat", &["EDQUOT"], 1),
    ("openat2", &["EMFILE", "ENOMEM"], 5),
    ("openat", &["EMFILE"], 5),
    ("clone3", &["EAGAIN", "ENOMEM", "ENOSPC"], 3),
    ("clone", &["EAGAIN"], 1),
    ("pivot_root", &["ENOMEM"], 2),
    ("sendmsg", &["ENOMEM", "EMFILE", "ENOSPC"], 6),
    ("recvmsg", &["ENOMEM", "EMFILE"], 5),
    ("socketpair", &["EMFILE", "ENOMEM"], 4),
    ("socket", &["EMFILE", "ENOMEM"], 1),
    ("pidfd_open", &["EMFILE", "ENOMEM"], 2),
    ("epoll_create1", &["EMFILE"], 1),
    ("epoll_ctl", &["ENOSPC", "ENOMEM"], 4),
    ("signalfd4", &["EMFILE"], 1),
    ("fcntl", &["EMFILE"], 2),
    ("dup3", &["EMFILE"], 1),
];

fn what_lacks_at_a_step_is_said(context: &Context) -> Result<()> {
    let expected = sound(context)?;
    let most = most_calls(context)?;
    let (mut refused, mut ran) = (0, 0);
    let mut untried = Vec::new();
    for (call, errors, tries) in LACKS {
        let count = most.get(*call).copied().unwrap_or_default();
        let mut tried = false;
        for (error, number) in errors.iter().cycle().zip(spread(count, *tries)) {
            match lacking(context, &expected, (call, error, number))? {
                Some(true) => refused += 1,
                Some(false) => ran += 1,
                None => continue,
            }
            tried = true;
        }
        if !tried {
            untried.push(*call);
        }
    }
    println!("{refused} launches were refused, {ran} could do without; not called: {untried:?}");
    ensure!(refused > 25, "{refused} were refused: nothing was tried");
    ensure!(untried.len() < 5, "not tried: {untried:?}");
    sound(context)?;
    Ok(())
}

/// A program runs with all of it, or does not run: what fails is no matter of what is lacking.
fn hardening_that_fails_is_an_error(context: &Context) -> Result<()> {
    let expected = sound(context)?;
    let most = most_calls(context)?;
    let mut refused = BTreeMap::new();
    // Of prctl(2), the last are no_new_privs, the filter and what the program itself asks: the steps before are those that drop capabilities.
    for (call, last) in [
        ("prctl", 4),
        ("capset", 1),
        ("setgroups", 1),
        ("setresuid", 1),
        ("setresgid", 1),
        ("setsid", 1),
        ("close_range", 4),
        ("setns", 1),
    ] {
        let count = most.get(call).copied().unwrap_or_default();
        for number in (1..=count).rev().take(last) {
            let found = lacking(context, &expected, (call, "EPERM", number));
            let found = found.with_context(|| call.to_owned())?;
            // The first of these are also those of a fork that is to be the supervisor. Where it cannot, one is executed, in
            // which the same number fails, unless neither it nor an init makes as many.
            ensure!(
                found != Some(false) || call == "close_range",
                "{call} {number} of {count} failed, and the program ran"
            );
            *refused.entry(call).or_insert(0) += usize::from(found == Some(true));
        }
    }
    for call in ["prctl", "capset", "setresuid", "setresgid", "close_range"] {
        ensure!(
            refused.get(call) > Some(&0),
            "{call} was not tried: {refused:?}"
        );
    }
    // Of close_range the second is the init's, below an executed supervisor, and the last the forked one's own.
    ensure!(
        refused["prctl"] >= 3 && refused["close_range"] >= 3,
        "{refused:?}"
    );
    Ok(())
}
