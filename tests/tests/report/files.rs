//! The reports for programs, read by other programs than the one that wrote them.

use anyhow::{Result, ensure};
use orbit_tests::{Case, Context, Program, Who};

use crate::{samples, write_samples};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, needs, run: fn(&Context) -> Result<()>| {
        Case::new(name, run)
            .needs(needs)
            .who(&[Who::Root])
            .prepare(write_samples)
    };
    vec![
        case("junit::is_well_formed", &["libxml2-utils"], junit_is_xml),
        case(
            "junit::another_reader_counts_the_same",
            &["python3-junitparser"],
            junit_is_read,
        ),
        case("json::each_line_is_an_object", &["jq"], json_is_read),
    ]
}

fn junit_is_xml(_: &Context) -> Result<()> {
    for sample in ["small", "large"] {
        Program::new("/usr/bin/xmllint")
            .args(["--noout", "--nonet"])
            .arg(samples().join(sample).join("junit.xml"))
            .run()?
            .success()?;
    }
    Ok(())
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
