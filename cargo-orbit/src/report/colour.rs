//! Whether to write in colours, by the usual variables. Pure: the variables are given.

use std::ffi::OsString;

use anstyle::{AnsiColor, Style};

/// Whether colours are written to a stream. In order: `--color` (`choice`), `CARGO_TERM_COLOR`, `NO_COLOR`,
/// `CLICOLOR_FORCE`, `CLICOLOR`, and whether the stream is a terminal that can show them.
pub(crate) fn wanted(
    choice: Option<&str>,
    variable: impl Fn(&str) -> Option<OsString>,
    is_terminal: bool,
) -> bool {
    let cargo = variable("CARGO_TERM_COLOR");
    let said = [choice, cargo.as_ref().and_then(|value| value.to_str())];
    for said in said.into_iter().flatten() {
        match said {
            "always" => return true,
            "never" => return false,
            _ => {}
        }
    }
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    let dumb = variable("TERM").is_none_or(|term| term == "dumb");
    is_terminal && !dumb && set("CLICOLOR").is_none_or(|value| value != "0")
}

pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default().bold();
pub(crate) const BINARY: Style = AnsiColor::Magenta.on_default();
pub(crate) const TEST: Style = AnsiColor::Cyan.on_default().bold();
pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();

/// Paints, or does not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brush {
    pub(crate) colours: bool,
}

impl Brush {
    /// `text`, which must be safe to show, in `style`.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self.colours {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_variables_are_heeded_in_order() {
        let wanted = |choice, variables: &[(&str, &str)], terminal| {
            wanted(
                choice,
                |name| {
                    let found = variables.iter().find(|(known, _)| *known == name);
                    found.map(|(_, value)| OsString::from(value))
                },
                terminal,
            )
        };
        let term = ("TERM", "xterm");
        assert!(wanted(None, &[term], true));
        assert!(!wanted(None, &[term], false));
        assert!(!wanted(None, &[("TERM", "dumb")], true));
        assert!(!wanted(None, &[term, ("NO_COLOR", "1")], true));
        assert!(wanted(None, &[term, ("NO_COLOR", "")], true));
        assert!(!wanted(None, &[term, ("CLICOLOR", "0")], true));
        assert!(wanted(None, &[("CLICOLOR_FORCE", "1")], false));
        assert!(!wanted(
            None,
            &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")],
            false
        ));
        assert!(wanted(
            None,
            &[("CARGO_TERM_COLOR", "always"), ("NO_COLOR", "1")],
            false
        ));
        assert!(!wanted(
            Some("never"),
            &[term, ("CARGO_TERM_COLOR", "always")],
            true
        ));
        assert!(wanted(
            Some("auto"),
            &[("CARGO_TERM_COLOR", "always")],
            false
        ));
        assert!(wanted(Some("always"), &[("NO_COLOR", "1")], false));
    }
}
