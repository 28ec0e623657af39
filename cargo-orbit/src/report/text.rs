//! What tests wrote and what they are called, made safe to show: neither is ever trusted.
//!
//! A terminal does what escape sequences tell it, so of those in captured output only colours are passed on,
//! and of those in names none. Pure.

use std::borrow::Cow;

/// A name on one line: what would move the cursor, or turn the direction of writing, is written as an escape.
pub(crate) fn name(name: &str) -> Cow<'_, str> {
    if !name.chars().any(misleads) {
        return Cow::Borrowed(name);
    }
    let mut safe = String::with_capacity(name.len() + 16);
    for c in name.chars() {
        if misleads(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Control characters, line and paragraph separators, and the marks that turn the direction of writing.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Captured output as text: bytes that are not UTF-8 become U+FFFD, colours are kept where `colours` says so, and
/// every other escape sequence is taken out. A carriage return begins a new line.
pub(crate) fn output(bytes: &[u8], colours: bool) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut safe = String::with_capacity(text.len());
    let mut coloured = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => safe.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            '\r' => safe.push('\n'),
            '\x1b' => match chars.next_if(|&c| c != '\n') {
                Some('[') => coloured |= control_sequence(&mut chars, colours, &mut safe),
                Some(']' | 'P' | 'X' | '^' | '_') => skip_string(&mut chars),
                // `ESC ( B` and its like: intermediate characters, then the last.
                Some(' '..='/') => {
                    while chars.next_if(|c| matches!(c, ' '..='/')).is_some() {}
                    chars.next_if(|&c| c != '\n');
                }
                _ => {}
            },
            '\u{9b}' => coloured |= control_sequence(&mut chars, colours, &mut safe),
            '\0'..='\x1f' => safe.extend(char::from_u32(0x2400 + u32::from(c))),
            '\x7f' => safe.push('\u{2421}'),
            c if c.is_control() => {}
            c => safe.push(c),
        }
    }
    if coloured {
        // Before the end of the line, which is not coloured.
        safe.insert_str(safe.trim_end_matches('\n').len(), "\x1b[0m");
    }
    safe
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Reads what follows `ESC [`; whether it was a colour, and passed on.
fn control_sequence(chars: &mut Chars<'_>, colours: bool, safe: &mut String) -> bool {
    let mut parameters = String::new();
    while let Some(c) = chars.next_if(|c| matches!(c, ' '..='?')) {
        parameters.push(c);
    }
    let last = chars.next_if(|c| matches!(c, '@'..='~'));
    let colour = last == Some('m')
        && parameters
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, ';' | ':'));
    if colour && colours {
        safe.push_str("\x1b[");
        safe.push_str(&parameters);
        safe.push('m');
    }
    colour && colours
}

/// Skips a string for the terminal: to its end, or where none comes, to the end of the line.
fn skip_string(chars: &mut Chars<'_>) {
    while let Some(c) = chars.next_if(|&c| c != '\n') {
        match c {
            '\x07' | '\u{9c}' => return,
            '\x1b' => {
                chars.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

/// `bytes`, or where there are more than `most`, their beginning and end with a note between them. Where a line
/// ends near the cut, it is made there.
pub(crate) fn cut(bytes: &[u8], most: usize) -> Cow<'_, [u8]> {
    if bytes.len() <= most {
        return Cow::Borrowed(bytes);
    }
    // The end tells more: that is where a test says why it fails.
    let head = most / 4;
    let tail = most - head;
    let (head, start) = (&bytes[..head], bytes.len() - tail);
    let head = match head.iter().rposition(|&byte| byte == b'\n') {
        Some(at) if at > head.len() / 2 => &head[..=at],
        _ => head,
    };
    // A line may have ended just before.
    let tail = match bytes[start - 1..].iter().position(|&byte| byte == b'\n') {
        Some(at) if at < tail / 2 => &bytes[start + at..],
        _ => &bytes[start..],
    };
    let omitted = bytes.len() - head.len() - tail.len();
    let between = if head.is_empty() || head.ends_with(b"\n") {
        ""
    } else {
        "\n"
    };
    let note = format!("{between}[orbit: {omitted} bytes are left out here]\n");
    Cow::Owned([head, note.as_bytes(), tail].concat())
}

/// How many bytes of output a report may still hold in memory.
#[derive(Debug)]
pub(crate) struct Budget(pub(crate) usize);

impl Budget {
    /// [`cut`], and where nothing is left, no more than a note.
    pub(crate) fn cut<'a>(&mut self, bytes: &'a [u8], most: usize) -> Cow<'a, [u8]> {
        if !bytes.is_empty() && self.0 == 0 {
            let note = format!(
                "[orbit: {} bytes are left out: this report has as much output as it may hold]\n",
                bytes.len()
            );
            return Cow::Owned(note.into_bytes());
        }
        let kept = cut(bytes, most.min(self.0));
        self.0 = self.0.saturating_sub(kept.len());
        kept
    }
}

/// `1 test`, `2 tests`.
pub(crate) fn counted(count: usize, thing: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{s}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_stay_on_their_line() {
        assert_eq!(name("módulo::test"), "módulo::test");
        assert_eq!(
            name("a\x1b[2Jb\r\n\u{202e}c"),
            "a\\u{1b}[2Jb\\r\\n\\u{202e}c"
        );
    }

    #[test]
    fn colours_pass_and_nothing_else() {
        let wild = b"\x1b[1;31mred\x1b[0m\x1b[2J\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b(B\x07\r\nnext\rover\xff";
        assert_eq!(
            output(wild, true),
            "\x1b[1;31mred\x1b[0mlink\u{2407}\nnext\nover\u{fffd}\x1b[0m"
        );
        assert_eq!(output(wild, false), "redlink\u{2407}\nnext\nover\u{fffd}");
    }

    #[test]
    fn a_string_without_an_end_hides_one_line_at_most() {
        assert_eq!(output(b"a\x1b]0;never ends\nb", true), "a\nb");
    }

    #[test]
    fn the_middle_is_left_out() {
        let long = "line\n".repeat(1000);
        let short = cut(long.as_bytes(), 100);
        assert_eq!(
            String::from_utf8_lossy(&short).lines().nth(5),
            Some("[orbit: 4900 bytes are left out here]")
        );
        assert_eq!(*cut(b"short", 100), *b"short");
    }

    #[test]
    fn a_budget_ends() {
        let mut budget = Budget(10);
        assert_eq!(*budget.cut(b"12345678", 100), *b"12345678");
        let _ = budget.cut(b"12345678", 100);
        let note = budget.cut(b"12345678", 100);
        assert!(
            note.starts_with(b"[orbit: 8 bytes are left out"),
            "{note:?}"
        );
        assert_eq!(*budget.cut(b"", 100), *b"");
    }

    proptest! {
        #[test]
        fn no_bytes_reach_the_terminal_as_orders(bytes: Vec<u8>, parts in r"(\x1b[\[\]P(]?[0-9;?m\x07\\]{0,4}|.|\n){0,40}") {
            for bytes in [&bytes, parts.as_bytes()] {
                let plain = output(bytes, false);
                prop_assert!(plain.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')), "{plain:?}");
                let coloured = output(bytes, true);
                for sequence in coloured.split('\x1b').skip(1) {
                    let parameters = sequence.strip_prefix('[').unwrap_or_default();
                    let end = parameters.trim_start_matches(|c: char| c.is_ascii_digit() || ";:".contains(c));
                    prop_assert!(end.starts_with('m'), "{coloured:?}");
                }
                prop_assert!(!name(&String::from_utf8_lossy(bytes)).chars().any(char::is_control));
                prop_assert!(cut(bytes, 8).len() < 8 + 60);
            }
        }
    }
}
