//! Published crates end the same under `cargo orbit test` as under `cargo test`.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Uid;
use orbit_tests::{
    Case, Context, LeakAudit, Program, Who,
    published::{
        CRATES, DEADLINE, Published, Verdict, Verdicts, cargo_test_verdicts, orbit_test_verdicts,
    },
};

pub(crate) fn cases() -> Vec<Case> {
    let case = |krate: &'static Published| {
        Case::new(
            format!("published::{}_ends_the_same", krate.name),
            move |context| ends_the_same(context, krate),
        )
        .who(Who::RANGED)
        .needs_toolchain()
        .deadline(2 * DEADLINE)
        .prepare(move |who| {
            let user = who.user()?;
            krate.copy_for(user.uid, user.gid).map(drop)
        })
    };
    let mut cases: Vec<Case> = CRATES.iter().map(case).collect();
    let hello = Case::new("published::hello_ends_the_same", hello_ends_the_same);
    cases.push(hello.needs_toolchain().deadline(DEADLINE));
    cases
}

/// The fixture of the README's first command: the same tests end the same, and so does the command.
fn hello_ends_the_same(context: &Context) -> Result<()> {
    let run = |program: Program| {
        program
            .arg("--manifest-path")
            .arg(context.in_workspace("fixtures/hello/Cargo.toml"))
            .arg("--target-dir")
            .arg(context.work().join("target"))
            .args(["--offline", "--no-fail-fast"])
            .env("CARGO_TERM_COLOR", "never")
            .deadline(DEADLINE)
            .run()
    };
    let plain = run(context.cargo()?.arg("test"))?;
    let orbit = run(context.orbit("test")?.args(["--message-format", "json"]))?;
    let differences =
        Verdicts::parse(&plain.stdout)?.differences(&Verdicts::of_orbit(&orbit.stdout)?);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    ensure!(
        plain.status.code() == orbit.status.code(),
        "{plain}\nand not\n{orbit}"
    );
    Ok(())
}

fn ends_the_same(context: &Context, krate: &Published) -> Result<()> {
    let copy = krate.copy_of(Uid::current());
    // Some of these suites leave temporary files (so do build scripts) or processes (duct: three). Without
    // Orbit that is theirs, so it is put aside; with Orbit it would be ours, and the audit sees it.
    let audit = LeakAudit::adopting([], []);
    let plain_tmp = context.work().join("tmp");
    fs::create_dir(&plain_tmp)?;
    let before = named_after(krate)?;
    let plain = || Ok(context.cargo()?.arg("test").env("TMPDIR", &plain_tmp));
    let plain = cargo_test_verdicts(krate, &copy, &plain).context("cargo test")?;
    audit.sweep();
    // Some names are in `/tmp` whatever TMPDIR says.
    for left in named_after(krate)?.difference(&before) {
        fs::remove_dir_all(left).with_context(|| left.display().to_string())?;
    }
    // What is compared with must be what is known to be right.
    ensure!(plain.count(Verdict::Failed) == 0, "without Orbit: {plain}");
    ensure!(
        plain.count(Verdict::Passed) == krate.passed,
        "known are {} passed, found {plain}",
        krate.passed
    );

    let orbit = orbit_test_verdicts(krate, &copy, &|| context.orbit("test"))
        .with_context(|| format!("cargo orbit test, where cargo test gives {plain}"))?;
    let differences = plain.differences(&orbit);
    ensure!(
        differences.is_empty(),
        "cargo test / cargo orbit test:\n{}",
        differences.join("\n")
    );
    Ok(())
}

/// This user's directories in `/tmp` that tests of the crate made, by their names.
fn named_after(krate: &Published) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/tmp")? {
        let entry = entry?;
        let is_named = entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{} test ", krate.name));
        let is_own = |it: fs::Metadata| it.is_dir() && it.uid() == Uid::current().as_raw();
        if is_named && entry.metadata().is_ok_and(is_own) {
            found.insert(entry.path());
        }
    }
    Ok(found)
}
