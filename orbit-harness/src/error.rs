//! The one public error: opaque, with predicates for what a caller may want to tell apart.
//!
//! Modules have private kinds of their own; this file only gathers them.

use std::{fmt, io};

use crate::spec::SpecFault;

/// Why a sandbox could not be made, reached or ended.
///
/// The message is for people: what was being done, on what, why it failed and what to do next. To tell cases
/// apart in code, ask the predicates.
pub struct Error(Box<Kind>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error("{}", faults_text(.0))]
    Spec(Vec<SpecFault>),
    #[error("{doing}: {source}")]
    Io { doing: String, source: io::Error },
}

impl Error {
    pub(crate) fn spec(faults: Vec<SpecFault>) -> Self {
        Kind::Spec(faults).into()
    }

    pub(crate) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Kind::Io {
            doing: doing.into(),
            source: source.into(),
        }
        .into()
    }

    /// Whether the spec itself is at fault: nothing was created.
    pub fn is_spec(&self) -> bool {
        matches!(*self.0, Kind::Spec(_))
    }

    /// Scaffold.
    pub fn is_program_not_found(&self) -> bool {
        matches!(&*self.0, Kind::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Scaffold.
    pub fn is_program_not_executable(&self) -> bool {
        matches!(&*self.0, Kind::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

fn faults_text(faults: &[SpecFault]) -> String {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    match &lines[..] {
        [one] => format!("invalid {one}"),
        many => format!(
            "{} things are wrong with this sandbox:\n  - {}",
            many.len(),
            many.join("\n  - ")
        ),
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self(Box::new(kind))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// As `Display`: a test that unwraps an `Error` shows the message people can read.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
