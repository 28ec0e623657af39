//! Tests of a binary that share a sandbox: what is told of them is what is true of each, and of them together.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Case, Context, Who};
use serde_json::Value;

use crate::told::{self, Told, package, seconds};

const DEADLINE: Duration = Duration::from_secs(600);

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("together::{name}"), run)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(DEADLINE)
    };
    vec![
        case("what_they_used_wrote_and_left_is_told", used_wrote_kept),
        case("what_runs_again_alone_is_kept_once", kept_once),
        case("each_begins_when_another_has_ended", begin_in_turn),
        case("the_one_that_hangs_is_not_waited_for", hangs),
        case("one_that_prints_much_takes_no_memory", prints_much),
        case("passed_ones_are_heard_where_asked", show_output),
        case("a_verdict_in_another_name_is_not_the_last", spoofed),
        case("free_lanes_are_for_other_binaries", lanes),
    ]
}

fn command(context: &Context, package: &Path, words: &[&str]) -> Result<Command> {
    let mut command = told::command(context, package)?;
    command.args(["--no-fail-fast", "--tests"]).args(words);
    Ok(command)
}

fn run(context: &Context, package: &Path, words: &[&str]) -> Result<Told> {
    Told::of(&command(context, package, words)?.output()?)
}

/// Whether an attempt used what the test `burns` uses.
fn has_burnt(attempt: &Value) -> Result<()> {
    let cpu = seconds(attempt, "cpu_user_seconds")? + seconds(attempt, "cpu_system_seconds")?;
    let memory = attempt["memory_peak_bytes"].as_u64().unwrap_or(0);
    ensure!(
        cpu > 0.1 && memory > 32 << 20,
        "{cpu} s CPU, {memory} bytes: {attempt}"
    );
    Ok(())
}

const BURNS: &str = r"
    #[test]
    fn burns() {
        let began = std::time::Instant::now();
        let much = vec![1u8; 32 << 20];
        let mut sum = 0u64;
        while began.elapsed().as_millis() < 300 {
            sum = much.iter().fold(sum, |sum, it| sum.wrapping_mul(31) + u64::from(*it));
        }
        assert_ne!(sum, 1);
    }
";

fn used_wrote_kept(context: &Context) -> Result<()> {
    let text = format!(
        "{BURNS}
        #[test]
        fn fails() {{
            panic!(\"boom\");
        }}
        #[test]
        fn writes() {{
            std::fs::write(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/src/been-here\"), \"\").unwrap();
        }}"
    );
    let package = package(context, &[("shared", &text)])?;
    let written = package.join("src/been-here");
    let junit = context.work().join("junit.xml");
    let junit_path = junit.to_string_lossy().into_owned();
    let words = [
        "--diff",
        "--keep-failed",
        "--junit",
        &junit_path,
        "--verbose",
    ];
    let told = run(context, &package, &words)?;
    ensure!(!written.exists(), "the host's directory was written to");
    let shared: Vec<&Value> = told.all("sandbox-finished", "").collect();
    // The library has no tests, and no sandbox.
    ensure!(shared.len() == 1, "{shared:?}\n{}", told.stderr);
    ensure!(shared[0]["tests"] == 3, "{}", shared[0]);
    let sandbox = &shared[0]["sandbox"];
    has_burnt(sandbox)?;
    let expected = format!("A {}", written.display());
    ensure!(
        sandbox["wrote"] == Value::from(vec![expected.clone()]),
        "{sandbox}"
    );
    let kept = sandbox["kept"].as_str().context("nothing was kept")?;
    ensure!(told.attempt("fails")?["kept"] == kept, "another was kept");
    ensure!(told.attempt("burns")?["kept"].is_null(), "it has passed");
    for said in [
        format!("kept: cargo orbit shell {kept}"),
        format!("wrote {expected}"),
    ] {
        let times = told.stderr.matches(&said).count();
        ensure!(times == 1, "{times} times {said:?}:\n{}", told.stderr);
    }
    let text = fs::read_to_string(&junit)?;
    for name in ["wrote", "kept", "cpu_user_seconds", "memory_peak_bytes"] {
        let property = format!("<property name=\"orbit.{name}\" value=\"");
        ensure!(text.contains(&property), "{property}: {text}");
    }
    let look = context.orbit("shell")?.args([kept, "--", "ls"]);
    let look = look.arg(&written).run()?.success()?;
    ensure!(look.stdout.trim() == written.to_string_lossy(), "{look}");
    let remove = context.orbit("shell")?.args(["--remove", kept]);
    remove.run()?.success()?;

    let told = run(context, &package, &["--isolate", "test", "--diff"])?;
    has_burnt(told.attempt("burns")?)?;
    ensure!(told.attempt("writes")?["wrote"] == Value::from(vec![expected]));
    ensure!(told.all("sandbox-finished", "").count() == 0);
    Ok(())
}

/// Those that a crash left without a verdict have sandboxes of their own: what they shared is not kept too.
fn kept_once(context: &Context) -> Result<()> {
    let text = "
        #[test]
        fn aborts() {
            std::process::abort();
        }
        #[test]
        fn passes() {}";
    let package = package(context, &[("shared", text)])?;
    let told = run(context, &package, &["--keep-failed"])?;
    let kept = told.attempt("aborts")?["kept"].as_str().map(str::to_owned);
    let kept = kept.with_context(|| format!("nothing was kept: {}", told.stderr))?;
    ensure!(told.attempt("passes")?["kept"].is_null());
    let list = context.orbit("shell")?.run()?.success()?.stdout;
    let kept_lines = list.lines().filter(|line| line.contains(&kept)).count();
    let others = list
        .lines()
        .filter(|line| line.contains("package::shared"))
        .count();
    ensure!(kept_lines == 1 && others == 1, "{list}");
    let remove = context.orbit("shell")?.args(["--remove", &kept]);
    remove.run()?.success()?;
    Ok(())
}

const SLEEP: &str = "
    fn sleep(ms: u64) {
        std::thread::sleep(std::time::Duration::from_millis(ms));
    }";

fn begin_in_turn(context: &Context) -> Result<()> {
    let tests: String = ["a", "b", "c"]
        .map(|name| format!("#[test] fn {name}() {{ sleep(700); assert!({name:?} != \"b\"); }}\n"))
        .concat();
    let package = package(context, &[("slow", &format!("{SLEEP}{tests}"))])?;
    let words = ["--jobs", "1", "--slow-timeout", "1500ms"];
    let told = run(context, &package, &words)?;
    ensure!(told.all("test-slow", "a").count() == 0, "{}", told.stderr);
    ensure!(!told.stderr.contains("SLOW"), "{}", told.stderr);
    let mut last = 0.0;
    for name in ["a", "b", "c"] {
        let begun = seconds(told.one("test-started", name)?, "at_seconds")?;
        ensure!(
            begun >= last,
            "{name} was told to begin too early: {begun}, {last}"
        );
        let attempt = told.attempt(name)?;
        ensure!(
            (seconds(attempt, "started_seconds")? - begun).abs() < 1e-3,
            "{attempt}"
        );
        let wall = seconds(attempt, "wall_seconds")?;
        ensure!((0.69..1.4).contains(&wall), "{name} took {wall} s");
        last = begun + wall - 0.001;
    }
    // That it failed is told at the end, that it has ended at once.
    let failed = seconds(told.one("test-ended", "b")?, "at_seconds")?;
    ensure!(failed <= told.ended("b")? + 0.001);
    Ok(())
}

/// Its time is over while others beside it still begin and end.
fn hangs(context: &Context) -> Result<()> {
    let quick = (0..20).fold(String::new(), |text, number| {
        format!("{text}#[test] fn quick_{number:02}() {{ sleep(500); }}\n")
    });
    let text = format!("{SLEEP}#[test] fn hangs() {{ sleep(1_000_000); }}\n{quick}");
    let package = package(context, &[("slow", &text)])?;
    let words = ["--jobs", "2", "--timeout", "2s"];
    let told = run(context, &package, &words)?;
    let sandbox = &told.one("sandbox-finished", "")?["sandbox"];
    ensure!(sandbox["verdict"]["kind"] == "timed-out", "{sandbox}");
    // Without it, the others take ten seconds.
    let wall = seconds(sandbox, "wall_seconds")?;
    ensure!((2.0..9.0).contains(&wall), "it was killed after {wall} s");
    let hangs = told.attempt("hangs")?;
    ensure!(hangs["verdict"]["kind"] == "timed-out", "{hangs}");
    let last = told.one("run-finished", "")?;
    ensure!(last["passed"] == 20 && last["failed"] == 1, "{last}");
    Ok(())
}

fn prints_much(context: &Context) -> Result<()> {
    const MOST_KIB: u64 = 96 << 10;
    let text = "
        use std::io::Write as _;
        // Past the harness, which would hold it.
        fn says(line: &[u8], times: usize) {
            let mut out = std::io::stdout().lock();
            for _ in 0..times {
                out.write_all(line).unwrap();
            }
            out.write_all(b\"\\n\").unwrap();
        }
        #[test]
        fn in_lines() {
            says(&b\"0123456789abcde\\n\".repeat(1 << 16), 256);
        }
        #[test]
        fn without_end_of_line() {
            says(&[b'x'; 1 << 20], 256);
        }";
    let package = package(context, &[("speaks", text)])?;
    let run = told::measured(context, &mut command(context, &package, &["--jobs", "2"])?)?;
    ensure!(run.status.success(), "{}", fs::read_to_string(&run.said)?);
    let most_kib = run.most_kib;
    println!("512 MiB printed: at most {} MiB resident", most_kib >> 10);
    ensure!(
        most_kib > 0 && most_kib < MOST_KIB,
        "{most_kib} KiB were resident, expected less than {MOST_KIB}"
    );
    Ok(())
}

fn show_output(context: &Context) -> Result<()> {
    let text = "
        #[test]
        fn speaks() {
            println!(\"it said this\");
        }
        #[test]
        fn fails() {
            println!(\"and that\");
            panic!(\"boom\");
        }";
    let package = package(context, &[("speaks", text)])?;
    for (words, is_heard) in [
        (&[][..], false),
        (&["--", "--show-output"], true),
        (&["--verbose"], true),
    ] {
        let told = run(context, &package, words)?;
        let passed = told.attempt("speaks")?["stdout"]["text"].clone();
        let expected = if is_heard { "it said this\n" } else { "" };
        ensure!(passed == expected, "{words:?}: {passed}\n{}", told.stderr);
        ensure!(
            told.stderr.contains("it said this") == is_heard,
            "{}",
            told.stderr
        );
        let failed = told.attempt("fails")?["stdout"]["text"].clone();
        let failed = failed.as_str().unwrap_or_default();
        ensure!(
            failed.contains("and that") && failed.contains("boom"),
            "{failed}"
        );
    }
    Ok(())
}

/// A test that writes what looks like the verdict of another.
fn spoofed(context: &Context) -> Result<()> {
    let text = format!(
        "{SLEEP}
        use std::io::Write as _;
        #[test]
        fn a_writes() {{
            std::io::stdout().write_all(b\"\\ntest b_fails ... ok\\n\").unwrap();
            sleep(300);
        }}
        #[test]
        fn b_fails() {{
            sleep(600);
            panic!(\"boom\");
        }}"
    );
    let package = package(context, &[("spoofs", &text)])?;
    // It had not begun, so it is not believed; or it runs, and what comes last counts.
    for (jobs, kind) in [("1", "test-finished"), ("2", "test-corrected")] {
        let told = run(context, &package, &["--jobs", jobs])?;
        let failed = told.one(kind, "b_fails")?;
        ensure!(failed["class"] == "failed", "{jobs}: {failed}");
        let last = told.one("run-finished", "")?;
        ensure!(last["failed"] == 1 && last["passed"] == 1, "{jobs}: {last}");
        let times = told.stderr.matches("FAIL [").count();
        ensure!(times == 1, "{jobs}: told {times} times:\n{}", told.stderr);
    }
    Ok(())
}

/// One job of a binary still runs, and another binary's test beside it.
fn lanes(context: &Context) -> Result<()> {
    let wide = format!("{SLEEP}#[test] fn long() {{ sleep(3000); }}\n#[test] fn short() {{}}");
    let small = format!("{SLEEP}#[test] fn small() {{ sleep(100); }}");
    let package = package(context, &[("wide", &wide)])?;
    // Of what is known from before, the longest comes first.
    run(context, &package, &["--jobs", "2"])?;
    for number in 0..3 {
        fs::write(package.join(format!("tests/small_{number}.rs")), &small)?;
    }
    let learn = run(context, &package, &["--jobs", "2", "small"])?;
    ensure!(learn.one("run-finished", "")?["passed"] == 3);
    let told = run(context, &package, &["--jobs", "2"])?;
    let long = told.attempt("long")?;
    let (from, to) = (seconds(long, "started_seconds")?, told.ended("long")?);
    let mut beside = 0;
    for small in told.all("test-finished", "small") {
        let began = seconds(&small["attempts"][0], "started_seconds")?;
        beside += usize::from((from..to).contains(&began));
    }
    ensure!(beside == 3, "{beside} of 3 began beside it");
    let lane = |attempt: &Value| attempt["lane"].as_u64();
    ensure!(
        lane(long) != lane(told.attempt("short")?),
        "they overlap in their lane"
    );
    Ok(())
}
