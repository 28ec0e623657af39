//! Cargo building the test binaries, and telling of each as soon as it is there.

use std::{
    io::BufReader,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::Arc,
};

use cargo_metadata::{Artifact, Message, Metadata};

use super::{
    args::CargoArgs,
    binary::{Built, Surroundings, TestBinary},
    cargo,
};

/// A build under way.
#[derive(Debug)]
pub(crate) struct Build {
    cargo: Child,
    stdout: ChildStdout,
}

impl Build {
    /// Starts `cargo test --no-run`.
    pub(crate) fn start(args: &CargoArgs) -> std::io::Result<Self> {
        let mut cargo = Command::new(cargo::program())
            .arg("test")
            .args(&args.build_options)
            .arg("--no-run")
            .arg(message_format(args.message_format.as_deref()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = cargo
            .stdout
            .take()
            .ok_or_else(|| std::io::Error::other("cargo has no standard output"))?;
        Ok(Self { cargo, stdout })
    }

    /// Cargo's number, to pass signals on to.
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.cargo)
    }

    /// Reads to the end of the build, telling of each test binary.
    pub(crate) fn follow(
        mut self,
        metadata: &Metadata,
        around: &Surroundings,
        mut tell: impl FnMut(Arc<TestBinary>),
    ) -> std::io::Result<ExitStatus> {
        let mut built = Built::default();
        let is_set = |name: &std::ffi::OsString| std::env::var_os(name).is_some();
        // Test binaries that may start programs of which cargo has not told yet.
        let mut held: Vec<Artifact> = Vec::new();
        for message in Message::parse_stream(BufReader::new(self.stdout)) {
            match message? {
                Message::BuildScriptExecuted(script) => built.script(script),
                Message::CompilerArtifact(artifact) => {
                    built.program(&artifact);
                    held.push(artifact);
                    let (ready, still): (Vec<_>, Vec<_>) = held
                        .into_iter()
                        .partition(|it| built.has_programs_of(it, metadata));
                    held = still;
                    for artifact in ready {
                        if let Some(binary) = built.test(&artifact, metadata, around, is_set) {
                            tell(binary);
                        }
                    }
                }
                // What a build script or a macro printed.
                Message::TextLine(line) => tell!("{line}"),
                _ => {}
            }
        }
        // Their programs are not built: they need features that are not chosen, or did not compile.
        for artifact in held {
            if let Some(binary) = built.test(&artifact, metadata, around, is_set) {
                tell(binary);
            }
        }
        self.cargo.wait()
    }
}

/// Of cargo's messages we want those that are for programs; what the compiler says, cargo renders for people as they asked.
fn message_format(asked: Option<&str>) -> String {
    let short = asked == Some("short");
    let also = if short { ",json-diagnostic-short" } else { "" };
    format!("--message-format=json-render-diagnostics{also}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_diagnostics_stay_short() {
        let ours = "--message-format=json-render-diagnostics";
        for asked in [None, Some("human"), Some("json")] {
            assert_eq!(message_format(asked), ours);
        }
        let short = message_format(Some("short"));
        assert_eq!(short, format!("{ours},json-diagnostic-short"));
    }
}
