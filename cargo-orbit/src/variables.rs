//! Environment variables as people hand them over: `NAME=value`, `NAME`, and files of such lines.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// One `--env`: a variable with its value, or the name of one to take from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Variable {
    Set(String, String),
    FromHost(String),
}

impl Variable {
    /// The variable with its value; `None` where the host has none of that name, as `docker run -e` does.
    pub(crate) fn resolve(
        &self,
        host: impl Fn(&str) -> Option<OsString>,
    ) -> Option<(OsString, OsString)> {
        match self {
            Self::Set(name, value) => Some((name.into(), value.into())),
            Self::FromHost(name) => Some((name.into(), host(name)?)),
        }
    }
}

impl FromStr for Variable {
    type Err = VariableError;

    fn from_str(text: &str) -> Result<Self, VariableError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(VariableError::NoName);
        }
        if text.contains('\0') {
            return Err(VariableError::Nul);
        }
        Ok(match value {
            Some(value) => Self::Set(name.to_owned(), value.to_owned()),
            None => Self::FromHost(name.to_owned()),
        })
    }
}

/// Reads a file of variables, one a line; blank lines and lines that begin with `#` are skipped. Values are
/// taken as they stand: no quotes, no escapes, as in `docker run --env-file`.
pub(crate) fn read_file(path: &Path) -> Result<Vec<Variable>, VariableError> {
    let text = fs::read_to_string(path).map_err(|source| VariableError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        variables.push(line.parse().map_err(|source| VariableError::Line {
            path: path.to_owned(),
            number,
            source: Box::new(source),
        })?);
    }
    Ok(variables)
}

/// Why a text names no variable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VariableError {
    #[error("a variable needs a name: write NAME=value, or NAME to pass the host's own value")]
    NoName,
    #[error("a variable cannot hold a NUL byte")]
    Nul,
    #[error("cannot read the variables in {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}, line {number}", path.display())]
    Line {
        path: PathBuf,
        number: u32,
        source: Box<VariableError>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Variable {
        Variable::Set(name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_variable_is_set_or_taken_from_the_host() {
        assert_eq!("A=b=c".parse::<Variable>().unwrap(), set("A", "b=c"));
        assert_eq!("A=".parse::<Variable>().unwrap(), set("A", ""));
        let passed: Variable = "A".parse().unwrap();
        assert_eq!(
            passed.resolve(|name| (name == "A").then(|| "host's".into())),
            Some(("A".into(), "host's".into()))
        );
        assert_eq!(passed.resolve(|_| None), None);
        assert!("=x".parse::<Variable>().is_err());
        assert!("".parse::<Variable>().is_err());
        assert!("A=\0".parse::<Variable>().is_err());
    }

    #[test]
    fn a_file_is_read_line_by_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "# comment\n\nA=1\n  B= two words \nHOME\n").unwrap();
        assert_eq!(
            read_file(file.path()).unwrap(),
            [
                set("A", "1"),
                set("B", " two words "),
                Variable::FromHost("HOME".to_owned())
            ]
        );
    }

    #[test]
    fn a_faulty_file_is_named_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "A=1\n=2\n").unwrap();
        let told = |path: &Path| format!("{:#}", anyhow::Error::new(read_file(path).unwrap_err()));
        let text = told(file.path());
        assert!(text.contains(", line 2: a variable needs a name"), "{text}");
        assert_eq!(
            told(Path::new("/does/not/exist")),
            "cannot read the variables in /does/not/exist: No such file or directory (os error 2)"
        );
    }
}
