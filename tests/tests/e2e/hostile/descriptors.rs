//! CVE-2024-21626: a working directory that is reached through a descriptor of whoever starts the program.
//!
//! The harness is as careless as can be: each number that is free in it is a directory of the host, open over an execve.

use std::{
    fs::{self, File},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{Init, Outcome, Sandbox};
use orbit_tests::{Case, Context};

use super::{case, layouts::Layout};
use crate::kit::{VIEWS, describe};

pub(super) fn cases() -> Vec<Case> {
    // Some hundred starts each.
    let case = |name, run| case(name, run).deadline(Duration::from_secs(90));
    vec![
        case(
            "cve_2024_21626_no_number_is_a_way_out",
            no_number_is_a_way_out,
        ),
        case(
            "cve_2024_21626_nor_for_a_further_program",
            nor_for_a_further_program,
        ),
        case(
            "cve_2024_21626_nor_where_the_image_says_so",
            nor_where_the_image_says_so,
        ),
        case("cve_2024_21626_nor_for_the_command", nor_for_the_command),
        case(
            "a_program_has_three_descriptors_and_no_more",
            three_descriptors,
        ),
    ]
}

const LAST: i32 = 64;

/// In the sandbox: whether the working directory is what has its name there, and what is in it and around it. A directory
/// that cannot be reached from the root has no name, or that of something else.
const WHERE: &str = "cd -P . 2>/dev/null; d=$(readlink /proc/self/cwd); \
                     [ \"$(stat -c %d:%i .)\" = \"$(stat -c %d:%i \"$d\" 2>&1)\" ] && echo inside: $d || echo outside: $d; \
                     ls -a . .. ../.. ../../.. ../../../.. 2>/dev/null; true";

/// A directory of the host that no sandbox shows, and descriptors of it.
struct Careless {
    outside: tempfile::TempDir,
    _open: Vec<OwnedFd>,
}

impl Careless {
    fn new() -> Result<Self> {
        let outside = tempfile::tempdir()?;
        fs::write(outside.path().join("mark"), "")?;
        let directory = File::open(outside.path())?;
        let mut open = Vec::new();
        loop {
            // Unlike what the standard library opens, these stay open when something is executed.
            let next = nix::unistd::dup(&directory)?;
            if next.as_raw_fd() > LAST {
                break;
            }
            open.push(next);
        }
        ensure!(open.len() > 40, "{} descriptors are open", open.len());
        // That it would be seen: a program of the host gets there by each of them.
        let number = open[0].as_raw_fd();
        let found = std::process::Command::new("sh")
            .args(["-c", &format!("cd /proc/self/fd/{number}; {WHERE}")])
            .output()?;
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        ensure!(found.contains("mark"), "{number}: {found}");
        Ok(Self {
            outside,
            _open: open,
        })
    }

    /// That a program that was started did so inside of its root.
    fn check(&self, place: &Path, found: &str) -> Result<()> {
        let at = found.lines().find_map(|line| line.strip_prefix("inside: "));
        let is_inside = at.is_some_and(|path| path.starts_with('/'));
        let name = self.outside.path().file_name().context("a name")?;
        ensure!(
            is_inside && !found.contains("mark") && !found.contains(&*name.to_string_lossy()),
            "{}: {found}",
            place.display()
        );
        Ok(())
    }

    /// The same of one that may have been refused instead; gives whether it was.
    fn is_refused(&self, place: &Path, started: Result<Outcome, orbit::Error>) -> Result<bool> {
        match started {
            Ok(outcome) => {
                ensure!(outcome.success(), "{}", describe(&outcome));
                self.check(place, &outcome.stdout_text())?;
                Ok(false)
            }
            Err(error) => {
                let error = error.to_string();
                ensure!(is_told(&error, place), "{error}");
                Ok(true)
            }
        }
    }
}

/// Whether the directory is what is refused: it is looked up in the root, or made there, without any descriptor's help.
fn is_told(error: &str, place: &Path) -> bool {
    let has = |word| error.contains(word);
    (has("directory /proc/") || has("working directory")) && has(&*place.to_string_lossy())
}

/// Through each number, and through a number of other processes.
fn places() -> impl Iterator<Item = String> {
    let numbers = (3..=LAST).map(|number| format!("/proc/self/fd/{number}"));
    let others = (3..16).flat_map(|number| {
        [
            format!("/proc/1/fd/{number}"),
            format!("/proc/thread-self/fd/{number}"),
            format!("/proc/self/fd/{number}/below"),
        ]
    });
    numbers.chain(others)
}

fn no_number_is_a_way_out(_: &Context) -> Result<()> {
    let careless = Careless::new()?;
    for view in VIEWS {
        let mut refused = 0;
        for place in places() {
            let started = view.sh(WHERE)?.working_dir(&place).run();
            refused += i32::from(careless.is_refused(place.as_ref(), started)?);
        }
        ensure!(refused > 0, "{view:?}: none was refused");
        // As process 1, which no init has started.
        for number in 3..=LAST {
            let place = format!("/proc/self/fd/{number}");
            let sandbox = view.sh(WHERE)?.init(Init::Program).working_dir(&place);
            careless.is_refused(place.as_ref(), sandbox.run())?;
        }
    }
    Ok(())
}

fn nor_for_a_further_program(_: &Context) -> Result<()> {
    let careless = Careless::new()?;
    for view in VIEWS {
        let sandbox = view.idle()?;
        let mut refused = 0;
        for place in places() {
            let further = sandbox.exec(["sh", "-c", WHERE]).working_dir(&place);
            refused += i32::from(careless.is_refused(place.as_ref(), further.run())?);
        }
        ensure!(refused > 0, "{view:?}: none was refused");
    }
    Ok(())
}

fn nor_where_the_image_says_so(context: &Context) -> Result<()> {
    let careless = Careless::new()?;
    let mut layout = Layout::of_busybox(context, "led")?;
    for number in 3..=LAST {
        // The second is what a recipe that forgets the first slash comes to.
        for place in [
            format!("/proc/self/fd/{number}"),
            format!("proc/self/fd/{number}/../.."),
        ] {
            layout.config["config"]["WorkingDir"] = place.as_str().into();
            let started = Sandbox::builder()
                .image(&layout.write()?)
                .cmd(["sh", "-c", WHERE])
                .run();
            careless.is_refused(place.as_ref(), started)?;
        }
    }
    Ok(())
}

/// `cargo orbit run` becomes its own supervisor by a fork, and inherits what its caller left open.
fn nor_for_the_command(context: &Context) -> Result<()> {
    let careless = Careless::new()?;
    let image = orbit_tests::images::reference("busybox")?;
    for image in [&image, "host"] {
        for number in 3..=LAST {
            let place = format!("/proc/self/fd/{number}");
            let words = ["--image", image, "-w", &place, "--", "sh", "-c", WHERE];
            let finished = context.orbit("run")?.args(words).run()?;
            match finished.status.code() {
                Some(0) => careless.check(place.as_ref(), &finished.stdout)?,
                Some(125) if is_told(&finished.stderr, place.as_ref()) => {}
                _ => bail!("{place}: {finished}"),
            }
        }
    }
    Ok(())
}

/// Whoever starts it, and as what: a program's descriptors are its standard streams.
fn three_descriptors(context: &Context) -> Result<()> {
    const LISTED: &str = "for n in $(seq 0 300); do [ -L /proc/$$/fd/$n ] && echo $n; done; true";
    let _careless = Careless::new()?;
    let all = "0\n1\n2\n";
    for view in VIEWS {
        let sandboxes = [
            ("run", view.sh(LISTED)?),
            // The second of its kind may find a child that stands ready.
            ("run again", view.sh(LISTED)?),
            ("process 1", view.sh(LISTED)?.init(Init::Program)),
            ("nested", view.sh(LISTED)?.nested(true)),
            ("terminal", view.sh(LISTED)?.tty(true)),
        ];
        for (name, sandbox) in sandboxes {
            let outcome = sandbox.run()?;
            let found = outcome.stdout_text().replace('\r', "");
            ensure!(found == all, "{view:?}, {name}: {}", describe(&outcome));
        }
        let sandbox = view.idle()?;
        for _ in 0..2 {
            let outcome = sandbox.exec(["sh", "-c", LISTED]).run()?;
            let found = outcome.stdout_text();
            ensure!(found == all, "{view:?}, exec: {}", describe(&outcome));
        }
        // Nor does it see those of who started it.
        let found = view.read("ls /proc/1/fd 2>/dev/null; true")?;
        ensure!(found.is_empty(), "{view:?}, of process 1: {found}");
    }
    let image = orbit_tests::images::reference("busybox")?;
    for image in [&image, "host"] {
        let words = ["--image", image, "--", "sh", "-c", LISTED];
        let finished = context.orbit("run")?.args(words).run()?.success()?;
        ensure!(finished.stdout == all, "{finished}");
    }
    // That it would be seen.
    let found = std::process::Command::new("sh")
        .args(["-c", LISTED])
        .output()?;
    ensure!(found.stdout.len() > 100, "{found:?}");
    Ok(())
}
