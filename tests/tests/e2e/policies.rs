//! What becomes of tests that fail, linger or leave something behind, and which tests run: as `cargo orbit test` was asked, with a
//! sandbox for each binary and with one for each test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Case, Context, Who};
use serde_json::Value;

use crate::told::{self, Told, package, seconds};

const DEADLINE: Duration = Duration::from_secs(600);
const ISOLATIONS: [&str; 2] = ["binary", "test"];

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context, &str) -> Result<()>| {
        Case::new(format!("policies::{name}"), move |context| {
            ISOLATIONS.into_iter().try_for_each(|isolation| {
                run(context, isolation).with_context(|| format!("--isolate {isolation}"))
            })
        })
        .who(Who::RANGED)
        .needs_toolchain()
        .deadline(DEADLINE)
    };
    vec![
        case("the_first_failure_ends_the_run", fail_fast),
        case("a_failed_test_is_tried_again", retries),
        case("a_slow_test_is_told_and_ended", slow),
        case("what_is_left_behind_fails_where_asked", left_behind),
        case("what_is_reached_for_fails_where_asked", reached_out),
        case("shares_are_the_whole", partitions),
        case("a_seed_is_an_order", shuffled),
        case("a_list_runs_nothing", listed),
        case("repeated_tests_are_told_each_time", repeated),
        case("what_failed_last_is_what_runs", failed_again),
        case("github_is_told_where", github),
    ]
}

fn command(context: &Context, isolation: &str, words: &[&str]) -> Result<Command> {
    let mut command = told::command(context, &context.work().join("package"))?;
    command
        .args(["--tests", "--isolate", isolation])
        .args(words);
    Ok(command)
}

fn run(context: &Context, isolation: &str, words: &[&str]) -> Result<Told> {
    Told::of(&command(context, isolation, words)?.output()?)
}

impl Told {
    fn has_code(&self, code: i32) -> Result<()> {
        let Self { stderr, .. } = self;
        ensure!(self.code == Some(code), "code {:?}\n{stderr}", self.code);
        Ok(())
    }

    /// What the last event says of how many.
    fn counts(&self) -> Result<BTreeMap<&str, u64>> {
        let last = self.one("run-finished", "")?.as_object();
        let last = last.context("no object")?;
        Ok(last
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_u64()?)))
            .collect())
    }

    fn count(&self, name: &str, expected: u64) -> Result<()> {
        let count = self.counts()?.get(name).copied();
        let Self { stderr, .. } = self;
        ensure!(count == Some(expected), "{name}: {count:?}\n{stderr}");
        Ok(())
    }
}

/// Three binaries, each with a test that fails: whichever is first, one of them runs.
fn fail_fast(context: &Context, isolation: &str) -> Result<()> {
    let text = "
        #[test] fn fails() { panic!(\"boom\"); }
        #[test] fn fails_too() { panic!(\"boom\"); }";
    package(context, &[("one", text), ("three", text), ("two", text)])?;
    let told = run(context, isolation, &["--jobs", "1"])?;
    told.has_code(101)?;
    // Those that share a sandbox are one program, which goes on. Of binaries that were not built yet, the build is ended.
    let (failed, most_not_reached) = if isolation == "test" { (1, 5) } else { (2, 4) };
    told.count("failed", failed)?;
    let not_reached = told.counts()?.get("not_reached").copied();
    let least = u64::from(isolation == "test");
    ensure!(
        not_reached.is_some_and(|it| (least..=most_not_reached).contains(&it)),
        "{not_reached:?} not reached\n{}",
        told.stderr
    );
    let ending = told.one("ending", "")?;
    ensure!(ending["why"] == "failure", "{ending}");

    let told = run(context, isolation, &["--jobs", "1", "--no-fail-fast"])?;
    told.has_code(101)?;
    told.count("failed", 6)?;
    told.count("not_reached", 0)?;
    ensure!(told.all("ending", "").count() == 0);
    Ok(())
}

fn retries(context: &Context, isolation: &str) -> Result<()> {
    let counts = context.work().join("counts");
    // Each run is a first one.
    let _ = fs::remove_dir_all(&counts);
    fs::create_dir_all(&counts)?;
    let counts_text = counts.to_string_lossy();
    let text = format!(
        "
        fn time(name: &str) -> u32 {{
            let path = std::path::Path::new({counts_text:?}).join(name);
            let time = std::fs::read(&path).map_or(0, |it| it.len()) + 1;
            std::fs::write(path, vec![b'x'; time]).unwrap();
            time as u32
        }}
        #[test] fn passes() {{ time(\"passes\"); }}
        #[test] fn third_time() {{ assert_eq!(time(\"third_time\"), 3, \"not yet\"); }}
        #[test] fn never() {{ panic!(\"time {{}}\", time(\"never\")); }}
        "
    );
    package(context, &[("tries", &text)])?;
    let counts_path = counts.to_string_lossy().into_owned();
    let words = |name: &'static str, retries: &'static str| {
        vec![
            "--no-fail-fast".to_owned(),
            "--writable".to_owned(),
            counts_path.clone(),
            "--retries".to_owned(),
            retries.to_owned(),
            name.to_owned(),
        ]
    };
    let tried = |name, retries| {
        let words = words(name, retries);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run(context, isolation, &words)
    };

    // A run in which each has passed in the end is a good one.
    let told = tried("third_time", "2:fixed:300ms")?;
    told.has_code(0)?;
    let flaky = told.one("test-finished", "third_time")?;
    ensure!(flaky["class"] == "flaky", "{flaky}");
    told.count("flaky", 1)?;
    ensure!(told.stderr.contains("FLAKY"), "{}", told.stderr);
    let attempts = flaky["attempts"].as_array().context("no attempts")?;
    ensure!(attempts.len() == 3, "{flaky}");
    let verdicts: Vec<&Value> = attempts.iter().map(|it| &it["verdict"]["kind"]).collect();
    ensure!(verdicts == ["failed", "failed", "passed"], "{verdicts:?}");
    for pair in attempts.windows(2) {
        let ended = seconds(&pair[0], "started_seconds")? + seconds(&pair[0], "wall_seconds")?;
        let waited = seconds(&pair[1], "started_seconds")? - ended;
        ensure!(waited > 0.29, "tried again after {waited} s");
    }
    ensure!(told.all("test-retried", "third_time").count() == 2);

    let told = tried("never", "1")?;
    told.has_code(101)?;
    let never = told.one("test-finished", "never")?;
    ensure!(never["class"] == "failed", "{never}");
    let said: Vec<String> = never["attempts"]
        .as_array()
        .context("no attempts")?
        .iter()
        .map(|attempt| format!("{}{}", attempt["stdout"]["text"], attempt["stderr"]["text"]))
        .collect();
    // Of each attempt, what it printed.
    ensure!(
        said.len() == 2 && said[0].contains("time 1") && said[1].contains("time 2"),
        "{said:?}"
    );
    let told = tried("passes", "5")?;
    told.has_code(0)?;
    ensure!(told.attempt("passes")?["verdict"]["kind"] == "passed");
    Ok(())
}

fn slow(context: &Context, isolation: &str) -> Result<()> {
    let text = "
        fn sleep(ms: u64) { std::thread::sleep(std::time::Duration::from_millis(ms)); }
        #[test] fn lingers() { sleep(1500); }
        #[test] fn quick() {}
        #[test] fn stays() { sleep(100_000); }";
    package(context, &[("slow", text)])?;
    let told = run(
        context,
        isolation,
        &["--slow-timeout", "400ms", "--", "lingers", "quick"],
    )?;
    told.has_code(0)?;
    let slow: Vec<f64> = told
        .all("test-slow", "lingers")
        .map(|event| seconds(event, "running_for_seconds"))
        .collect::<Result<_>>()?;
    ensure!(
        (2..=4).contains(&slow.len()) && slow[0] >= 0.4,
        "told after {slow:?}"
    );
    ensure!(told.all("test-slow", "quick").count() == 0);
    ensure!(told.stderr.contains("SLOW"), "{}", told.stderr);

    let began = Instant::now();
    let words = ["--slow-timeout", "400ms:3", "--no-fail-fast"];
    let words = [&words[..], &["--", "stays", "quick"]].concat();
    let told = run(context, isolation, &words)?;
    let took = began.elapsed();
    told.has_code(101)?;
    let verdict = &told.attempt("stays")?["verdict"];
    ensure!(
        verdict["kind"] == "timed-out" && verdict["limit_seconds"] == 1.2,
        "{verdict}"
    );
    ensure!(took < Duration::from_secs(60), "it took {took:?}");
    ensure!(told.attempt("quick")?["verdict"]["kind"] == "passed");
    told.count("passed", 1)
}

/// A test of the fixture `quiet`, once as it is and once where `key` says that it fails.
fn judged(context: &Context, isolation: &str, test: &str, key: &str, kind: &str) -> Result<()> {
    let fixture = context.in_workspace("fixtures/verdicts/tests/quiet.rs");
    package(context, &[("quiet", &fs::read_to_string(fixture)?)])?;
    for (policy, code) in [("pass", 0), ("fail", 101)] {
        let told = run(context, isolation, &[key, policy, test])?;
        told.has_code(code)?;
        // What shares a sandbox shares the blame: it is the binary's.
        let name = if isolation == "test" { test } else { "" };
        let finished = told.one("test-finished", name)?;
        let verdict = &finished["attempts"][0]["verdict"]["kind"];
        let expected = if code == 0 { "passed" } else { kind };
        ensure!(verdict == expected, "{key} {policy}: {finished}");
        told.count("failed", u64::from(code != 0))?;
        let passed = told.all("test-finished", test).count();
        ensure!(passed == 1, "{}", told.stderr);
    }
    Ok(())
}

fn left_behind(context: &Context, isolation: &str) -> Result<()> {
    judged(context, isolation, "leaves_a_child", "--leak", "leaked")
}

fn reached_out(context: &Context, isolation: &str) -> Result<()> {
    let key = "--reach-out";
    judged(context, isolation, "reaches_out", key, "reached-out")
}

/// Two binaries of so many tests.
fn many(context: &Context, tests: u32) -> Result<()> {
    let tests: Vec<String> = (0..tests)
        .map(|number| format!("#[test] fn t{number:02}() {{}}"))
        .collect();
    let text = tests.join("\n");
    package(context, &[("left", &text), ("right", &text)])?;
    Ok(())
}

fn partitions(context: &Context, isolation: &str) -> Result<()> {
    const TESTS: u32 = 10;
    many(context, TESTS)?;
    let all = run(context, isolation, &[])?.names("test-finished");
    let all: BTreeSet<String> = all.into_iter().collect();
    ensure!(all.len() == 2 * TESTS as usize, "{all:?}");
    for by in ["hash", "count"] {
        let mut seen = BTreeSet::new();
        for share in 1..=3 {
            let share = format!("{by}:{share}/3");
            let told = run(context, isolation, &["--partition", &share])?;
            told.has_code(0)?;
            let ran = told.names("test-finished");
            ensure!(!ran.is_empty(), "{share} is empty");
            told.count("passed", ran.len() as u64)?;
            told.count("filtered_out", (all.len() - ran.len()) as u64)?;
            if by == "count" {
                for binary in ["package::left ", "package::right "] {
                    let tests = ran.iter().filter(|name| name.starts_with(binary)).count();
                    ensure!((3..=4).contains(&tests), "{share}: {ran:?}");
                }
            }
            let named = names_of_list(context, isolation, &["--partition", &share])?;
            let ran: BTreeSet<String> = ran.into_iter().collect();
            ensure!(named == ran, "{share}: listed {named:?}, ran {ran:?}");
            for name in ran {
                ensure!(!seen.contains(&name), "{name} is in two shares by {by}");
                seen.insert(name);
            }
        }
        ensure!(seen == all, "by {by}: {seen:?}");
    }
    Ok(())
}

fn names_of_list(context: &Context, isolation: &str, words: &[&str]) -> Result<BTreeSet<String>> {
    let output = command(context, isolation, words)?.arg("--list").output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{stderr}");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The order in which things begin: of tests with a sandbox each, or of binaries.
fn order(context: &Context, isolation: &str, words: &[&str]) -> Result<(Vec<String>, Told)> {
    let words = [&["--jobs", "1", "--no-fail-fast"], words].concat();
    let told = run(context, isolation, &words)?;
    told.has_code(0)?;
    Ok((told.names("test-started"), told))
}

fn shuffled(context: &Context, isolation: &str) -> Result<()> {
    let names = ["a", "b", "c", "d", "e"];
    let text = "#[test] fn one() {}\n#[test] fn two() {}\n";
    let binaries: Vec<(&str, &str)> = names.map(|name| (name, text)).to_vec();
    let directory = package(context, &binaries)?;
    let (first, _) = order(context, isolation, &["--shuffle=7"])?;
    ensure!(first.len() == 10, "{first:?}");
    // Of those that need no building, cargo tells first: the order is no other for that.
    touch(&directory.join("tests/a.rs"), text)?;
    let (again, _) = order(context, isolation, &["--shuffle=7"])?;
    ensure!(first == again, "{first:?}, then {again:?}");
    let others = ["--shuffle=8", "--shuffle=9", "--shuffle=10"];
    let mut is_other = false;
    for other in others {
        is_other |= order(context, isolation, &[other])?.0 != first;
    }
    ensure!(is_other, "all seeds give one order");

    // The seed of an order that nobody chose is told, and gives it again.
    let (random, told) = order(context, isolation, &["--shuffle"])?;
    let seed = told.one("run-started", "")?["shuffle"].clone();
    let said = format!("--shuffle={seed}");
    ensure!(told.stderr.contains(&said), "{said}: {}", told.stderr);
    let (same, _) = order(context, isolation, &[&said])?;
    ensure!(same == random, "{said}: {random:?}, then {same:?}");
    Ok(())
}

/// Has it built again.
fn touch(file: &Path, text: &str) -> Result<()> {
    Ok(fs::write(file, format!("{text}// again\n"))?)
}

fn listed(context: &Context, isolation: &str) -> Result<()> {
    let traces = context.work().join("traces");
    fs::create_dir_all(&traces)?;
    let traces_text = traces.to_string_lossy();
    let text = format!(
        "
        fn trace() {{ std::fs::write({traces_text:?}.to_owned() + \"/been-here\", \"\").unwrap(); }}
        #[test] fn one() {{ trace(); }}
        #[test] fn two() {{ trace(); }}
        #[test] #[ignore] fn ignored() {{ trace(); }}"
    );
    package(context, &[("traces", &text)])?;
    let writable = traces.to_string_lossy().into_owned();
    let list = |words: &[&str]| {
        names_of_list(
            context,
            isolation,
            &[&["--writable", &writable], words].concat(),
        )
    };
    let names = |names: &[&str]| -> BTreeSet<String> {
        names
            .iter()
            .map(|name| format!("package::traces {name}"))
            .collect()
    };
    for (words, expected) in [
        (&[][..], &["one", "two"][..]),
        (&["--include-ignored"], &["ignored", "one", "two"]),
        (&["--ignored"], &["ignored"]),
        (&["-E", "test(=two)"], &["two"]),
        (&["one"], &["one"]),
        (&["none"], &[]),
    ] {
        let found = list(words)?;
        ensure!(found == names(expected), "{words:?}: {found:?}");
    }
    ensure!(!traces.join("been-here").exists(), "a test ran");
    let told = run(context, isolation, &["--writable", &writable])?;
    told.has_code(0)?;
    ensure!(traces.join("been-here").exists(), "it leaves no trace");
    Ok(fs::remove_file(traces.join("been-here"))?)
}

fn repeated(context: &Context, isolation: &str) -> Result<()> {
    many(context, 2)?;
    let told = run(context, isolation, &["--repeat", "3"])?;
    told.has_code(0)?;
    told.count("passed", 12)?;
    let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in told.all("test-finished", "t00") {
        let test = &event["test"];
        let time = test["repetition"].as_u64().context("no number")?;
        let binary = test["binary"].to_string();
        times.entry(binary).or_default().push(time);
    }
    ensure!(times.len() == 2, "{times:?}");
    for times in times.values_mut() {
        times.sort_unstable();
        ensure!(*times == [1, 2, 3], "{times:?}");
    }
    Ok(())
}

fn failed_again(context: &Context, isolation: &str) -> Result<()> {
    let text = |fails: bool| {
        format!(
            "#[test] fn passes() {{}}
             #[test] fn fails() {{ assert!(!{fails}); }}
             #[test] fn always() {{ panic!(\"boom\"); }}"
        )
    };
    let run = |words: &[&str]| run(context, isolation, &[&["--no-fail-fast"], words].concat());
    let directory = package(context, &[("again", &text(true))])?;
    run(&[])?.count("failed", 2)?;
    let of = |told: &Told| {
        let mut names = told.names("test-finished");
        names.sort();
        names
    };
    let both = ["package::again always", "package::again fails"];
    let told = run(&["--failed"])?;
    ensure!(of(&told) == both, "{}", told.stderr);
    fs::write(directory.join("tests/again.rs"), text(false))?;
    let told = run(&["--failed"])?;
    told.count("passed", 1)?;
    ensure!(of(&told) == both, "{}", told.stderr);
    // What passes is forgotten; what was not asked for is not.
    let told = run(&["--failed"])?;
    told.has_code(101)?;
    ensure!(of(&told) == both[..1], "{}", told.stderr);
    let told = run(&["passes"])?;
    told.has_code(0)?;
    let told = run(&["--failed"])?;
    ensure!(of(&told) == both[..1], "{}", told.stderr);
    Ok(())
}

fn github(context: &Context, isolation: &str) -> Result<()> {
    let times = context.work().join("times");
    let _ = fs::remove_dir_all(&times);
    fs::create_dir_all(&times)?;
    let times_text = times.to_string_lossy();
    let text = format!(
        "#[test]
fn fails() {{
    println!(\"\\n::error::it is not the test's to say\");
    panic!(\"boom, 100%\");
}}
#[test]
fn flaky() {{
    let path = {times_text:?}.to_owned() + \"/been-here\";
    if std::fs::metadata(&path).is_err() {{
        std::fs::write(path, \"\").unwrap();
        panic!(\"the first time\");
    }}
}}
"
    );
    let directory = package(context, &[("annotated", &text)])?;
    let summary = context.work().join("summary.md");
    fs::write(&summary, "# An earlier step\n\n")?;
    let writable = times.to_string_lossy().into_owned();
    let words = [
        "--no-fail-fast",
        "--retries",
        "1",
        "--writable",
        writable.as_str(),
    ];
    let mut command = command(context, isolation, &words)?;
    command
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_WORKSPACE", &directory)
        .env("GITHUB_STEP_SUMMARY", &summary);
    let told = Told::of(&command.output()?)?;
    told.has_code(101)?;
    let mut obeyed = Vec::new();
    let mut stopped: Option<&str> = None;
    // As the runner of GitHub reads it.
    for line in told.stderr.lines() {
        match stopped {
            Some(word) if line == format!("::{word}::") => stopped = None,
            Some(_) => {}
            None => match line.strip_prefix("::stop-commands::") {
                Some(word) => stopped = Some(word),
                None if line.starts_with("::") => obeyed.push(line),
                None => {}
            },
        }
    }
    let expected = [
        "::error file=tests/annotated.rs,line=4,col=5,title=package%3A%3Aannotated fails::boom, 100%25",
        "::warning file=tests/annotated.rs,line=11,col=9,title=package%3A%3Aannotated flaky::the first time",
    ];
    ensure!(obeyed == expected, "{obeyed:#?}\n{}", told.stderr);
    let mut lines = told.stderr.lines().map(str::trim_start);
    let is_said = lines.any(|line| line == "::error::it is not the test's to say");
    ensure!(is_said, "what it printed is not shown: {}", told.stderr);
    let text = fs::read_to_string(&summary)?;
    for wanted in [
        "# An earlier step\n\n## 1 of 2 tests failed\n",
        "1 passed, 1 flaky, 1 failed, ",
        "### Failed\n",
        "### Flaky\n",
        "### Slowest\n",
    ] {
        ensure!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
    let command = run(context, isolation, &words)?;
    let is_quiet = !command
        .stderr
        .lines()
        .any(|line| line.starts_with("::error "));
    ensure!(is_quiet, "{}", command.stderr);
    Ok(())
}
