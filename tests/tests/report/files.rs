//! The reports for programs, read by other programs than the one that wrote them.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use orbit_tests::{Case, Context, Finished, Program, Who, workspace};

use crate::{samples, write_samples};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, needs, run: fn(&Context) -> Result<()>| {
        Case::new(name, run)
            .needs(needs)
            .who(&[Who::Root])
            .prepare(write_samples)
    };
    vec![
        case("junit::validates", NEEDS_XMLLINT, junit_is_valid),
        case(
            "junit::another_reader_counts_the_same",
            &["python3-junitparser"],
            junit_is_read,
        ),
        case("json::each_line_is_an_object", &["jq"], json_is_read),
    ]
}

pub(crate) const NEEDS_XMLLINT: &[&str] = &["libxml2-utils"];

fn xmllint(file: &Path) -> Result<Finished> {
    Program::new("/usr/bin/xmllint")
        .args(["--noout", "--nonet", "--schema"])
        .arg(workspace().join("tests/tests/report/junit.xsd"))
        .arg(file)
        .run()
}

/// Whether a JUnit file is as the schema beside this file says.
pub(crate) fn validate(file: &Path) -> Result<()> {
    xmllint(file)?.success().map(drop)
}

/// That the schema is heeded: the same file is refused with a few letters changed.
pub(crate) fn is_refused(context: &Context, file: &Path) -> Result<()> {
    // What xmllint exits with where a document is not as its schema says.
    const INVALID: i32 = 3;
    let text = fs::read_to_string(file)?;
    let changed = context.work().join("changed.xml");
    for (from, to) in [
        ("<system-out>", "<system-out odd=\"\">"),
        (" classname=\"", " class=\""),
        (" time=\"", " time=\"-"),
        ("<skipped ", "<ignored/><skipped "),
        (" tests=\"", " tests=\"some "),
    ] {
        ensure!(text.contains(from), "{from:?} is not in the file");
        fs::write(&changed, text.replacen(from, to, 1))?;
        xmllint(&changed)?.code(INVALID)?;
    }
    Ok(fs::remove_file(changed)?)
}

fn junit_is_valid(context: &Context) -> Result<()> {
    let file = |sample: &str| samples().join(sample).join("junit.xml");
    validate(&file("large"))?;
    // That one has everything in it that a file can have.
    validate(&file("small"))?;
    is_refused(context, &file("small"))
}

const READ_JUNIT: &str = r"
import sys
from junitparser import JUnitXml, Failure, Error, Skipped
xml = JUnitXml.fromfile(sys.argv[1])
results = [type(result).__name__ for suite in xml for case in suite for result in case.result]
print(xml.tests, xml.failures, xml.errors, xml.skipped)
print(sum(1 for suite in xml for case in suite), *(results.count(name) for name in ('Failure', 'Error', 'Skipped')))
cases = {case.name: case for suite in xml for case in suite}
answers = cases['http::answers']
print(answers.classname, answers.time, 'http.rs:42:9' in answers.system_err)
print(*(child.tag for child in cases['store::survives_a_restart']._elem))
print(*(child.tag for child in cases['never::passes']._elem))
";

fn junit_is_read(_: &Context) -> Result<()> {
    let read = Program::new("/usr/bin/python3")
        .args(["-c", READ_JUNIT])
        .arg(samples().join("small/junit.xml"))
        .run()?
        .success()?
        .stdout;
    // What the file says in its heads is what its cases come to.
    let wanted = "21 8 2 2\n21 8 2 2\napi 0.412 True\nproperties flakyFailure\n\
                  properties failure rerunFailure system-err\n";
    ensure!(read == wanted, "{read}");
    Ok(())
}

fn json_is_read(_: &Context) -> Result<()> {
    let jq = |filter: &str| -> Result<String> {
        let read = Program::new("/usr/bin/jq").args(["-r", "-s", filter]);
        let file = samples().join("small/events.jsonl");
        Ok(read.arg(file).run()?.success()?.stdout)
    };
    let formats = jq("map(.format) | unique | tostring")?;
    ensure!(formats == "[1]\n", "{formats}");
    let last = jq(".[-1] | [.event, .passed, .failed] | tostring")?;
    ensure!(last == "[\"run-finished\",9,10]\n", "{last}");
    let bytes = jq(
        "map(select(.event == \"test-finished\" and .test.binary == \"evil\"))[0].attempts[0].stdout.base64",
    )?;
    ensure!(bytes.trim().len() > 20, "{bytes}");
    Ok(())
}
