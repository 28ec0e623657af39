//! Reports of real runs: of the fixture whose tests end in every way there is, in both isolations.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit_tests::{Case, Context, Finished, Program, Who, orbit_cli, target_dir};
use serde_json::Value;

use crate::{
    files::{self, is_refused, validate},
    html::{self, has},
};

const DEADLINE: Duration = Duration::from_secs(600);
const FIXTURE: &str = "fixtures/verdicts";
const ISOLATIONS: [&str; 2] = ["binary", "test"];

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, needs, run: fn(&Context, &str) -> Result<()>| {
        Case::new(format!("real::{name}"), move |context| {
            ISOLATIONS.into_iter().try_for_each(|isolation| {
                run(context, isolation).with_context(|| format!("--isolate {isolation}"))
            })
        })
        .needs(needs)
        .needs_toolchain()
        .who(Who::RANGED)
        .deadline(DEADLINE)
    };
    vec![
        case(
            "junit_of_every_verdict_validates",
            files::NEEDS_XMLLINT,
            junit_validates,
        ),
        case("a_browser_shows_it", html::NEEDS, is_shown),
    ]
}

/// What a run left.
struct Ran {
    events: Vec<Value>,
    junit: PathBuf,
    page: PathBuf,
    finished: Finished,
}

fn program(context: &Context, isolation: &str, words: &[&str]) -> Result<Program> {
    let program = orbit_cli::orbit("test")?
        .args(["--offline", "--message-format", "json", "--isolate"])
        .arg(isolation)
        .arg("--target-dir")
        .arg(context.work().join("target"))
        .arg("--junit")
        .arg(context.work().join("junit.xml"))
        .arg("--report")
        .arg(context.work().join("page"))
        .args(words);
    Ok(program
        .current_dir(context.in_workspace(FIXTURE))
        .env("RUST_BACKTRACE", "0")
        .deadline(DEADLINE))
}

fn run(context: &Context, isolation: &str, words: &[&str]) -> Result<Ran> {
    let (junit, page) = (
        context.work().join("junit.xml"),
        context.work().join("page"),
    );
    let _ = fs::remove_file(&junit);
    let _ = fs::remove_dir_all(&page);
    let finished = program(context, isolation, words)?.run()?;
    let lines = finished.stdout.lines();
    let events = lines
        .map(|line| serde_json::from_str(line).with_context(|| finished.to_string()))
        .collect::<Result<Vec<Value>>>()?;
    ensure!(junit.exists() && page.exists(), "no report: {finished}");
    Ok(Ran {
        events,
        junit,
        page,
        finished,
    })
}

/// All tests of the fixture, one of which passes at the second attempt.
fn run_all(context: &Context, isolation: &str, more: &[&str]) -> Result<Ran> {
    let flaky = context.work().join("flaky");
    let _ = fs::remove_dir_all(&flaky);
    fs::create_dir_all(&flaky)?;
    let flaky = flaky.to_string_lossy().into_owned();
    let variable = format!("FLAKY_DIR={flaky}");
    let words = ["--no-fail-fast", "--retries", "1", "--timeout", "3s"];
    let places = ["--env", &variable, "--writable", &flaky];
    run(context, isolation, &[&words[..], &places, more].concat())
}

/// `BINARY NAME` of each test that was told, and its class.
fn told(events: &[Value]) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let finished = events
        .iter()
        .filter(|event| event["event"] == "test-finished");
    finished
        .map(|event| {
            let (binary, name) = (text(&event["test"]["binary"]), text(&event["test"]["name"]));
            // A program as a whole has its own name in the file.
            let name = if name.is_empty() { &binary } else { &name };
            (format!("{binary} {name}"), text(&event["class"]))
        })
        .collect()
}

fn xpath(file: &Path, expression: &str) -> Result<String> {
    let read = Program::new("/usr/bin/xmllint")
        .args(["--nonet", "--xpath", expression])
        .arg(file)
        .run()?
        .success()?;
    Ok(read.stdout.trim().to_owned())
}

/// The cases for which `condition` holds, as [`told`] names them.
fn named(file: &Path, condition: &str) -> Result<BTreeSet<String>> {
    let count: usize = xpath(file, &format!("count(//testcase[{condition}])"))?.parse()?;
    let mut names = BTreeSet::new();
    for place in 1..=count {
        let case = format!("(//testcase[{condition}])[{place}]");
        let name = format!("concat({case}/@classname, ' ', {case}/@name)");
        names.insert(xpath(file, &name)?);
    }
    Ok(names)
}

/// The words of verdicts in the file.
fn words(file: &Path) -> Result<BTreeSet<String>> {
    let types = xpath(file, "//@type")?;
    let words = types.split('"').skip(1).step_by(2);
    Ok(words.map(str::to_owned).collect())
}

fn junit_validates(context: &Context, isolation: &str) -> Result<()> {
    let mut seen = BTreeSet::new();
    let ran = run_all(context, isolation, &[])?;
    validate(&ran.junit)?;
    let told = told(&ran.events);
    ensure!(told.len() > 20, "{told:?}\n{}", ran.finished);
    for (condition, class) in [
        ("failure or error", "failed"),
        ("flakyFailure", "flaky"),
        ("skipped", "ignored"),
        ("not(failure or error or flakyFailure or skipped)", "passed"),
    ] {
        let of_class = told.iter().filter(|(_, it)| *it == class);
        let of_class: BTreeSet<String> = of_class.map(|(name, _)| name.clone()).collect();
        let found = named(&ran.junit, condition)?;
        ensure!(
            found == of_class,
            "{class}: the file has {found:?}, and told were {of_class:?}"
        );
    }
    for (count, of) in [
        ("tests", "testcase"),
        ("failures", "failure"),
        ("errors", "error"),
        ("skipped", "skipped"),
    ] {
        let agree = format!(
            "/testsuites/@{count} = count(//{of}) and not(//testsuite[@{count} != count(.//{of})])"
        );
        let agree = xpath(&ran.junit, &agree)?;
        ensure!(agree == "true", "{count} is not how many there are");
    }
    let output = "//testcase[@name='tests::panics']";
    let said = xpath(
        &ran.junit,
        &format!("concat({output}/system-out, {output}/system-err)"),
    )?;
    ensure!(
        said.contains("before it") && said.contains("boom"),
        "{said}"
    );
    seen.extend(words(&ran.junit)?);
    is_refused(context, &ran.junit)?;

    // What the table has no line for.
    let not_there = context.work().join("not-there");
    let image = format!("dir:{}", not_there.display());
    for (words, word) in [
        (&["--test", "quiet", "--leak", "fail", "leaves"][..], "LEAK"),
        (
            &["--test", "quiet", "--reach-out", "fail", "reaches"],
            "NETWORK",
        ),
        (&["--lib", "--image", &image], "NOT RUN"),
        (&["--lib", "--repeat", "2", "--jobs", "1"], "FAIL"),
    ] {
        let ran = run(context, isolation, words)?;
        validate(&ran.junit).with_context(|| format!("{words:?}"))?;
        let found = self::words(&ran.junit)?;
        ensure!(
            found.contains(word),
            "{words:?}: {found:?}\n{}",
            ran.finished
        );
        seen.extend(found);
    }
    interrupted(context, isolation)?;
    let junit = context.work().join("junit.xml");
    validate(&junit)?;
    seen.extend(words(&junit)?);
    let expected = [
        "FAIL", "KILLED", "LEAK", "NETWORK", "NOT RUN", "STOPPED", "TIMEOUT",
    ];
    let expected: BTreeSet<String> = expected.map(str::to_owned).into();
    // `OOM` needs a host that keeps limits; the sample of `files` has it.
    seen.remove("OOM");
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

/// A run that is ended while a test hangs.
fn interrupted(context: &Context, isolation: &str) -> Result<()> {
    let events = context.work().join("events");
    let mut child = std::process::Command::new(orbit_cli::binary()?)
        .args(["orbit", "test", "--offline", "--message-format", "json"])
        .args(["--isolate", isolation, "--test", "violent"])
        .arg("--target-dir")
        .arg(context.work().join("target"))
        .arg("--junit")
        .arg(context.work().join("junit.xml"))
        .arg("hangs")
        .current_dir(context.in_workspace(FIXTURE))
        .stdin(std::process::Stdio::null())
        .stdout(fs::File::create(&events)?)
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let began = std::time::Instant::now();
    while !fs::read_to_string(&events)?.contains("test-started") && began.elapsed() < DEADLINE / 4 {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGINT)?;
    let ended = child.wait()?;
    ensure!(ended.code() == Some(130), "{ended:?}");
    Ok(())
}

/// The page of a run, photographed, read, opened at a test, and filtered.
fn is_shown(context: &Context, isolation: &str) -> Result<()> {
    let filter = "not test(=overflows_its_stack)";
    let ran = run_all(context, isolation, &["--lib", "--tests", "-E", filter])?;
    let page = ran.page.join("index.html");
    let told = told(&ran.events);
    let last = ran.events.last().context("nothing was told")?;
    let count = |name: &str| last[name].as_u64().unwrap_or_default();
    let (passed, failed) = (count("passed"), count("failed"));
    ensure!(failed > 5 && passed > 5, "{last}");

    let shown = html::elements(context, &page)?;
    let attempts: u64 = ran
        .events
        .iter()
        .filter(|event| event["event"] == "test-finished")
        .filter_map(|event| Some(event["attempts"].as_array()?.len() as u64))
        .sum();
    has(
        &shown,
        &[
            "<title>verdicts: test report</title>",
            &format!("{failed} of {} tests failed", passed + failed),
            &format!(
                "{passed} passed · 1 flaky · {} ignored · ",
                count("ignored")
            ),
            &format!("{} filtered out", count("filtered_out")),
            // The timeline is drawn; what it has is said beside it.
            &format!(
                r#"aria-label="{attempts} bars, one for each time a test was run; memory, at most "#
            ),
            &format!("-E {filter}"),
            &format!(r#"aria-rowcount="{}""#, told.len() + 1),
        ],
    )?;
    ensure!(
        !shown.contains(">overflows_its_stack<"),
        "it was filtered out"
    );
    for name in told.keys() {
        let (binary, name) = name.rsplit_once(' ').context("no name")?;
        let name = if binary == name {
            "(the whole program)"
        } else {
            name
        };
        has(&shown, &[&format!("<i>{binary}</i>{name}")])?;
    }
    for word in ["PASS", "FLAKY", "FAIL", "KILLED", "TIMEOUT", "IGNORED"] {
        has(&shown, &[&format!(">{word}</span>")])?;
    }

    let place = |name: &str| -> Result<usize> {
        let mut finished = ran
            .events
            .iter()
            .filter(|event| event["event"] == "test-finished");
        let found = finished.position(|event| event["test"]["name"] == name);
        found.with_context(|| format!("no test {name}"))
    };
    let open = html::elements(
        context,
        format!("{}#test-{}", page.display(), place("tests::panics")?),
    )?;
    has(
        &open,
        &["before it\n", "boom", "Ran beside", "Attempt 2 of 2"],
    )?;
    let open = html::elements(
        context,
        format!("{}#test-{}", page.display(), place("hangs")?),
    )?;
    has(&open, &["killed after its timeout of 3s"])?;

    // The page's own filter, as if its words were typed.
    let filtered = ran.page.join("filtered.html");
    fs::write(
        &filtered,
        typed(&fs::read_to_string(&page)?, "panics before")?,
    )?;
    let shown = html::elements(context, &filtered)?;
    has(
        &shown,
        &[r#"aria-rowcount="2""#, &format!("1 of {}", told.len())],
    )?;
    let rows = shown.matches(r#"class="row""#).count();
    ensure!(
        rows == 1 && shown.contains("</i>tests::panics<"),
        "{rows} rows\n{shown}"
    );

    let photograph = context.work().join("real.png");
    html::photograph(context, &page, &photograph)?;
    let bytes = fs::read(&photograph)?;
    println!(
        "photograph of --isolate {isolation}: {} KB",
        bytes.len() / 1000
    );
    ensure!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"), "no PNG");
    ensure!(
        bytes.len() > 40_000,
        "it shows nothing: {} bytes",
        bytes.len()
    );
    if context.who == Who::Root {
        let keep = target_dir().join("report-photographs");
        fs::create_dir_all(&keep)?;
        fs::write(keep.join(format!("real-{isolation}.png")), bytes)?;
    }
    Ok(())
}

/// The page with a script more, which types `words` into its filter. The page's policy lets no script run but its own, so
/// that goes.
fn typed(page: &str, words: &str) -> Result<String> {
    let (before, rest) = page
        .split_once("<meta http-equiv=\"Content-Security-Policy\"")
        .context("no policy")?;
    let (_, rest) = rest.split_once('>').context("no end of the policy")?;
    let script = format!(
        "<script>$('search').value = '{words}'; $('search').dispatchEvent(new Event('input'));</script>"
    );
    let (body, end) = rest.rsplit_once("</body>").context("no end")?;
    Ok(format!("{before}{body}{script}</body>{end}"))
}
