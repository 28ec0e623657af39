//! What is wrong with a configuration: each fault with the place it was written at, and the line itself.

use std::{fmt, ops::Range, path::Path, sync::Arc};

/// Where something was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    File {
        /// As people are told it: relative to the workspace where it lies in it.
        file: Arc<str>,
        line: usize,
        column: usize,
        /// `profile.ci`, or `override`, where it is not at the top.
        within: Option<Arc<str>>,
    },
    /// An environment variable of this name.
    Variable(String),
    /// A flag of the command line, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                file,
                line,
                column,
                within,
            } => {
                write!(f, "{file}:{line}:{column}")?;
                match within {
                    Some(within) => write!(f, " ({within})"),
                    None => Ok(()),
                }
            }
            Self::Variable(name) => write!(f, "{name} in the environment"),
            Self::Flag(name) => write!(f, "{name} on the command line"),
        }
    }
}

/// A text with a name, of which places can be told.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) name: Arc<str>,
    pub(crate) text: Arc<str>,
}

impl Text {
    /// A file's text, named relative to `root` where it lies under it.
    pub(crate) fn new(path: &Path, root: &Path, text: impl Into<Arc<str>>) -> Self {
        let name = path.strip_prefix(root).unwrap_or(path);
        Self {
            name: name.display().to_string().into(),
            text: text.into(),
        }
    }

    /// Line and column of a byte, from 1; columns count characters.
    pub(crate) fn place(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }

    pub(crate) fn origin(&self, byte: usize, within: Option<Arc<str>>) -> Origin {
        let (line, column) = self.place(byte);
        Origin::File {
            file: self.name.clone(),
            line,
            column,
            within,
        }
    }

    /// A fault of the bytes `span`.
    pub(crate) fn fault(&self, span: Range<usize>, why: impl Into<String>) -> Fault {
        Fault {
            at: self.origin(span.start, None).to_string(),
            line: self.place(span.start).0,
            why: why.into(),
            excerpt: Some(self.excerpt(span)),
        }
    }

    /// The line that `span` begins on, with the span underlined.
    pub(crate) fn excerpt(&self, span: Range<usize>) -> String {
        let (line, column) = self.place(span.start);
        let whole = self.text.lines().nth(line - 1).unwrap_or_default();
        let marked = self.text.get(span).unwrap_or_default();
        let marked = marked.lines().next().unwrap_or_default().chars().count();
        underlined(&line.to_string(), whole, column, marked)
    }
}

/// `text` with a mark under `length` characters from `column`, which counts from 1.
pub(crate) fn underlined(margin: &str, text: &str, column: usize, length: usize) -> String {
    let visible = |c: char| if c == '\t' { ' ' } else { c };
    let text: String = text.chars().map(visible).collect();
    let blank = " ".repeat(margin.len());
    let indent = " ".repeat(column.saturating_sub(1));
    let left = text.chars().count().saturating_sub(column - 1);
    let marks = "^".repeat(length.min(left).max(1));
    format!("  {margin} | {text}\n  {blank} | {indent}{marks}")
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where.
    pub(crate) at: String,
    /// From 1; 0 where there is no file.
    pub(crate) line: usize,
    pub(crate) why: String,
    pub(crate) excerpt: Option<String>,
}

impl Fault {
    pub(crate) fn new(at: impl fmt::Display, why: impl Into<String>) -> Self {
        Self {
            at: at.to_string(),
            line: 0,
            why: why.into(),
            excerpt: None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.why)?;
        match &self.excerpt {
            Some(excerpt) => write!(f, "\n{excerpt}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration cannot be used\n{}", list(.0))]
pub(crate) struct ConfigError(pub(crate) Vec<Fault>);

fn list(faults: &[Fault]) -> String {
    let texts: Vec<String> = faults.iter().map(Fault::to_string).collect();
    texts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_shows_its_line() {
        let text = Text::new(
            Path::new("/w/a.toml"),
            Path::new("/w"),
            "a = 1\n\u{e9} = 22\n",
        );
        insta::assert_snapshot!(text.fault(11..13, "why"), @r"
        a.toml:2:5: why
          2 | é = 22
            |     ^^
        ");
        // At the end of the text there is nothing to mark, and it is marked.
        insta::assert_snapshot!(text.fault(14..14, "why"), @r"
        a.toml:3:1: why
          3 | 
            | ^
        ");
    }
}
