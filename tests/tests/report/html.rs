//! The HTML report in headless Chromium: looked at, and read.
//!
//! The photographs stay in `target/report-photographs`, for people to look at.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use orbit_tests::{Case, Context, Finished, Program, Who, target_dir};

use crate::{samples, write_samples};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("html::{name}"), run)
            .needs(NEEDS)
            .who(&[Who::Root, Who::User])
            .prepare(write_samples)
    };
    vec![
        case("a_browser_shows_the_run", shows_the_run),
        case("a_link_opens_a_test", opens_a_test),
        case("what_a_test_wrote_is_text", is_text),
        case("ten_thousand_tests_are_shown", shows_ten_thousand),
        case("it_is_photographed", is_photographed),
    ]
}

pub(crate) const NEEDS: &[&str] = &["chromium", "fonts-dejavu-core"];

/// Chromium on a page, a path with or without a `#`, with `arguments`.
fn chromium(context: &Context, page: impl AsRef<Path>, arguments: &[&str]) -> Result<Finished> {
    let url = format!("file://{}", page.as_ref().display());
    let mut program = Program::new("/usr/bin/chromium");
    if context.who == Who::Root {
        program = program.arg("--no-sandbox");
    }
    let profile = context.work().join("profile");
    // Processes of the browser that outlive it by a moment still have files there.
    let temporary = context.work().join("tmp");
    fs::create_dir_all(&temporary)?;
    let finished = program
        .env("TMPDIR", temporary)
        .args(["--headless", "--disable-gpu", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.display()))
        // What the page's script does with time is over then.
        .arg("--virtual-time-budget=5000")
        .args(["--enable-logging=stderr", "--window-size=1360,1000"])
        .args(arguments)
        .arg(url)
        .run()?
        .success()?;
    // Faults of the script, and breaches of the page's policy: the browser's own pages complain too.
    let console = finished
        .stderr
        .lines()
        .find(|line| line.contains(":CONSOLE") && line.contains("source: file:"));
    ensure!(console.is_none(), "the browser complains: {console:?}");
    Ok(finished)
}

/// The page's elements, after its script has made them.
pub(crate) fn elements(context: &Context, page: impl AsRef<Path>) -> Result<String> {
    // High enough for all lines of the small sample: what is out of sight is not drawn.
    let arguments = ["--dump-dom", "--window-size=1360,2000"];
    let dom = chromium(context, page, &arguments)?.stdout;
    // The data that was put in would hold what is looked for too.
    let (before, data) = dom.split_once(r#"id="data">"#).context("no data")?;
    let after = data
        .split_once("</script>")
        .context("no end of the data")?
        .1;
    // So would the script.
    let after = after.split_once("</script>").context("no script")?.1;
    Ok(format!("{before}{after}"))
}

pub(crate) fn has(elements: &str, wanted: &[&str]) -> Result<()> {
    for wanted in wanted {
        ensure!(
            elements.contains(wanted),
            "{wanted:?} is not in\n{elements}"
        );
    }
    Ok(())
}

fn shows_the_run(context: &Context) -> Result<()> {
    let page = elements(context, samples().join("small/index.html"))?;
    has(
        &page,
        &[
            "<title>sample: test report</title>",
            "10 of 19 tests failed",
            "9 passed · 1 flaky · 1 ignored · 1 not reached · 6 filtered out",
            r#"aria-rowcount="22""#,
            ">http::answers<",
            ">名前::テスト_🦀<",
            "left processes behind",
            r#"aria-label="21 bars, one for each time a test was run; memory, at most "#,
        ],
    )?;
    for word in [
        "PASS", "FLAKY", "FAIL", "KILLED", "TIMEOUT", "OOM", "NOT RUN", "LEAK", "NETWORK",
        "STOPPED", "IGNORED",
    ] {
        ensure!(page.contains(&format!(">{word}</span>")), "no {word}");
    }
    let rows = page.matches(r#"class="row""#).count();
    ensure!(rows == 21, "{rows} rows");
    // It is drawn in the order of what matters: what failed is first.
    let at = |name: &str| page.find(&format!(">{name}<"));
    ensure!(at("http::answers") < at("parse::empty"), "not sorted");
    Ok(())
}

/// A test by its place: the samples' tests come in the order in which they ended.
fn place_of(name: &str) -> Result<usize> {
    let lines = fs::read_to_string(samples().join("small/events.jsonl"))?;
    let mut finished = lines.lines().filter_map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["event"] == "test-finished").then_some(event)
    });
    finished
        .position(|event| {
            event["test"]["name"]
                .as_str()
                .is_some_and(|it| it.contains(name))
        })
        .with_context(|| format!("no test {name}"))
}

fn opens_a_test(context: &Context) -> Result<()> {
    let page = |name| {
        elements(
            context,
            samples().join(format!("small/index.html#test-{}", place_of(name)?)),
        )
    };
    has(
        &page("http::answers")?,
        &[
            "panicked at crates/api/src/http.rs:42:9:",
            "failed with exit code 101",
            // In the colour that the test chose.
            r#"<span class="a32">200</span>"#,
            "25.9 MiB",
            "Ran beside",
        ],
    )?;
    has(
        &page("never::passes")?,
        &["Attempt 2 of 2", "Attempt 1 of 2", ">first\n", ">second\n"],
    )?;
    has(
        &page("phones_home")?,
        &["not let out to", "192.0.2.1:443/tcp (3 times)"],
    )?;
    let closed = elements(context, samples().join("small/index.html"))?;
    ensure!(!closed.contains("panicked at"), "a test is open");
    Ok(())
}

fn is_text(context: &Context) -> Result<()> {
    let place = place_of("alert(1)")?;
    let page = elements(
        context,
        samples().join(format!("small/index.html#test-{place}")),
    )?;
    has(
        &page,
        &[
            "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;",
            "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\u{1b}]0;owned",
        ],
    )?;
    // The tag around the data is what is left of the page's own.
    let scripts = page.matches("<script").count();
    ensure!(scripts == 1, "{scripts} scripts");
    for wrong in ["<img", "alert(1)</script", "\x1b", "\x07"] {
        ensure!(!page.contains(wrong), "{wrong:?} is in\n{page}");
    }
    Ok(())
}

fn shows_ten_thousand(context: &Context) -> Result<()> {
    let page = elements(context, samples().join("large/index.html"))?;
    has(
        &page,
        &["48 of 10,000 tests failed", r#"aria-rowcount="10001""#],
    )?;
    let rows = page.matches(r#"class="row""#).count();
    ensure!((10..100).contains(&rows), "{rows} rows are drawn");
    Ok(())
}

/// A photograph of a page, at `to`.
pub(crate) fn photograph(context: &Context, page: &Path, to: &Path) -> Result<()> {
    let screenshot = format!("--screenshot={}", to.display());
    chromium(context, page, &[&screenshot]).map(drop)
}

fn is_photographed(context: &Context) -> Result<()> {
    let keep = target_dir().join("report-photographs");
    let answers = format!("small/index.html#test-{}", place_of("http::answers")?);
    let mut sizes = Vec::new();
    for (name, page, more) in [
        ("light", "small/index.html", &[][..]),
        (
            "dark",
            &answers,
            &["--blink-settings=preferredColorScheme=0"],
        ),
        ("large", "large/index.html", &[]),
        ("narrow", "small/index.html", &["--window-size=500,1000"]),
    ] {
        let file = context.work().join(format!("{name}.png"));
        let screenshot = format!("--screenshot={}", file.display());
        let words = [&[screenshot.as_str()], more].concat();
        chromium(context, samples().join(page), &words)?;
        let photograph = fs::read(&file)?;
        let Some((b"\x89PNG\r\n\x1a\n", rest)) = photograph.split_at_checked(8) else {
            bail!("{name} is no PNG");
        };
        // IHDR: length, name, width, height.
        let number = |at: usize| {
            rest.get(at..at + 4)
                .and_then(|it| it.try_into().ok())
                .map(u32::from_be_bytes)
        };
        let size = (number(8), number(12));
        let width = if name == "narrow" { 500 } else { 1360 };
        ensure!(size == (Some(width), Some(1000)), "{name} is {size:?}");
        // A blank page of this size takes some 5 KB.
        ensure!(
            photograph.len() > 40_000,
            "{name} shows nothing: {} bytes",
            photograph.len()
        );
        sizes.push(format!("{name} {} KB", photograph.len() / 1000));
        if context.who == Who::Root {
            fs::create_dir_all(&keep)?;
            fs::write(keep.join(format!("{name}.png")), photograph)?;
        }
    }
    println!("photographs: {}", sizes.join(", "));
    Ok(())
}
