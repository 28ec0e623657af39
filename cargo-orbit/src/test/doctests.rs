//! Doctests: `cargo test --doc`, with [`crate::runner`] before each program that rustdoc makes.
//!
//! Rustdoc compiles doctests, decides which share a program, and runs them; only cargo knows what to tell it. So they
//! come last, in one go, and their verdicts are read from what rustdoc says.

use std::{
    fs::File,
    io::Read as _,
    process::{Command, Stdio},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{
    attempt::{Ground, Target},
    event::{Attempt, BinaryId, Skipped, TestId, TestResult, Used, Verdict},
    libtest::{self, Said},
};

/// Doctests to run.
#[derive(Debug)]
pub(crate) struct Doctests {
    /// `cargo test --doc …`, as yet without its streams.
    pub(crate) command: Command,
    /// By the names that cargo calls libraries by.
    pub(crate) packages: Vec<(String, String)>,
}

/// All doctests of a run, where it cannot be said whose.
pub(crate) fn all() -> BinaryId {
    BinaryId("doctests".to_owned())
}

impl Doctests {
    /// Runs them all. The attempt is there where it went wrong beside the tests, such as in the compiler.
    pub(crate) fn run(
        mut self,
        ground: &Ground,
        lane: usize,
    ) -> (Vec<TestResult>, Option<Attempt>) {
        let started = ground.began.elapsed();
        let failed = |why: String| Attempt {
            started,
            lane,
            wall_time: ground.began.elapsed().saturating_sub(started),
            ..Attempt::new(Verdict::SetupFailed { why }, Used::default())
        };
        // One pipe for both, so that what cargo says of a library stands before what rustdoc says of its tests.
        let output = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).and_then(
            |(reader, writer)| {
                let second = rustix::io::fcntl_dupfd_cloexec(&writer, 3)?;
                Ok((reader, writer, second))
            },
        );
        let (reader, writer, second) = match output {
            Ok(pipe) => pipe,
            Err(error) => {
                return (
                    Vec::new(),
                    Some(failed(format!("no pipe for cargo's output: {error}"))),
                );
            }
        };
        self.command
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(second);
        let mut cargo = match self.command.spawn() {
            Ok(cargo) => cargo,
            Err(error) => {
                return (
                    Vec::new(),
                    Some(failed(format!("cannot start cargo: {error}"))),
                );
            }
        };
        let process = pidfd_open(Pid::from_child(&cargo), PidfdFlags::empty());
        let place = process
            .ok()
            .map(|process| ground.running.enter(Target::Process(process)));
        // It holds the other ends of the pipe, which would never end.
        self.command = Command::new("");
        let mut output = Vec::new();
        let read = File::from(reader).read_to_end(&mut output);
        let status = cargo.wait();
        if let Some(place) = place {
            ground.running.leave(place);
        }
        let wall_time = ground.began.elapsed().saturating_sub(started);
        let results = self.results(&output, |verdict, stdout| Attempt {
            started,
            wall_time,
            lane,
            alone: false,
            stdout,
            ..Attempt::new(verdict, Used::default())
        });
        let fault = match (read, status) {
            (Err(error), _) | (_, Err(error)) => {
                Some(failed(format!("cannot hear from cargo: {error}")))
            }
            (_, Ok(status)) => {
                let told = results
                    .iter()
                    .any(|result| result.class() == super::event::Class::Failed);
                (!status.success() && !told).then(|| Attempt {
                    verdict: Verdict::Failed {
                        code: status.code(),
                    },
                    stderr: output,
                    ..failed(String::new())
                })
            }
        };
        (results, fault)
    }

    /// What rustdoc said, library by library.
    fn results(
        &self,
        output: &[u8],
        attempt: impl Fn(Verdict, Vec<u8>) -> Attempt,
    ) -> Vec<TestResult> {
        let mut results = Vec::new();
        for (library, part) in parts(output) {
            let package = self
                .packages
                .iter()
                .find(|(name, _)| *name == library)
                .map_or(library.as_str(), |(_, package)| package.as_str());
            let binary = BinaryId(format!("{package}::doc"));
            let mut told = libtest::told(part, |_| true);
            for (name, said) in std::mem::take(&mut told.verdicts) {
                let id = TestId {
                    binary: binary.clone(),
                    name: name.clone(),
                    repetition: None,
                };
                let stdout = told.outputs.remove(&name).unwrap_or_default();
                let (attempts, skipped) = match said {
                    Said::Ignored => (Vec::new(), Some(Skipped::Ignored)),
                    Said::Passed => (vec![attempt(Verdict::Passed, Vec::new())], None),
                    Said::Failed => (vec![attempt(Verdict::Failed { code: None }, stdout)], None),
                };
                results.push(TestResult {
                    id,
                    attempts,
                    skipped,
                });
            }
        }
        results
    }
}

/// What stands after each `   Doc-tests NAME`.
fn parts(output: &[u8]) -> Vec<(String, &[u8])> {
    let mut starts: Vec<(String, usize, usize)> = Vec::new();
    let mut at = 0;
    for line in output.split_inclusive(|byte| *byte == b'\n') {
        let end = at + line.len();
        let name = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.trim().strip_prefix("Doc-tests "));
        if let Some(name) = name.filter(|name| !name.contains(' ')) {
            starts.push((name.to_owned(), at, end));
        }
        at = end;
    }
    let ends = starts
        .iter()
        .skip(1)
        .map(|(_, at, _)| *at)
        .chain([output.len()])
        .collect::<Vec<_>>();
    starts
        .into_iter()
        .zip(ends)
        .map(|((name, _, start), end)| (name, &output[start..end]))
        .collect()
}

/// Libraries that have doctests, by the name that cargo calls each by, with their packages.
pub(crate) fn libraries(metadata: &cargo_metadata::Metadata) -> Vec<(String, String)> {
    metadata
        .workspace_packages()
        .into_iter()
        .flat_map(|package| {
            let targets = package.targets.iter().filter(|target| target.doctest);
            targets.map(|target| (target.name.replace('-', "_"), package.name.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "   Doc-tests first

running 2 tests
test src/lib.rs - one (line 1) ... ok
test src/lib.rs - two (line 5) - compile fail ... FAILED

failures:

---- src/lib.rs - two (line 5) - compile fail stdout ----
Test compiled successfully, but it's marked `compile_fail`.

failures:
    src/lib.rs - two (line 5) - compile fail

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s

error: doctest failed, to rerun pass `-p first --doc`
   Doc-tests second_one

running 1 test
test src/lib.rs - one (line 1) ... ignored

test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s
";

    #[test]
    fn libraries_are_told_apart() {
        let doctests = Doctests {
            command: Command::new("true"),
            packages: vec![("second_one".into(), "second-one".into())],
        };
        let results = doctests.results(OUTPUT.as_bytes(), |verdict, stdout| Attempt {
            stdout,
            ..Attempt::new(verdict, Used::default())
        });
        let lines: Vec<String> = results
            .iter()
            .map(|result| {
                let output = result
                    .attempts
                    .first()
                    .map(|it| String::from_utf8_lossy(&it.stdout));
                format!(
                    "{:?} {} {}",
                    result.class(),
                    result.id,
                    output.unwrap_or_default()
                )
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
