//! Lines that stay at the bottom of a terminal, while others are written above them.
//!
//! [`Picture`] says which bytes change what is seen, and does no IO; [`Screen`] writes them to standard error, where
//! that is a terminal. A write that fails is told to nobody, as who would read of it looks at that terminal. A
//! crate for this brought the only call of libm, a library more to load at each start of this program.

use std::{
    env,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use unicode_width::UnicodeWidthChar as _;

/// From one drawing to the next: nobody reads faster, and a terminal at the other end of a network has its time.
const PERIOD: Duration = Duration::from_millis(50);

/// Ends all colours.
const RESET: &str = "\x1b[0m";

/// The lines at the bottom of standard error. They are gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Screen {
    visible: bool,
    picture: Picture,
}

impl Screen {
    /// Draws nothing where standard error is no terminal, or one whose cursor does not move.
    pub(crate) fn stderr() -> Self {
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            visible: !dumb && io::stderr().is_terminal(),
            picture: Picture::default(),
        }
    }

    /// Draws nothing.
    #[cfg(test)]
    pub(crate) fn hidden() -> Self {
        Self {
            visible: false,
            picture: Picture::default(),
        }
    }

    /// Shows other lines, if the last drawing was not just now. They are asked for only where they are drawn.
    pub(crate) fn show(&mut self, lines: impl FnOnce() -> Vec<String>) {
        if self.visible && self.picture.is_due(Instant::now()) {
            self.show_now(lines);
        }
    }

    /// Shows other lines, whenever the last drawing was: for a state after which none may follow for long.
    pub(crate) fn show_now(&mut self, lines: impl FnOnce() -> Vec<String>) {
        if self.visible {
            self.picture.lines = lines();
            write(&self.picture.draw(size(), Instant::now()));
        }
    }

    /// Does what writes whole lines, with nothing in its way; then shows `lines`, which may say something else by now.
    pub(crate) fn aside<T>(
        &mut self,
        write_lines: impl FnOnce() -> T,
        lines: impl FnOnce() -> Vec<String>,
    ) -> T {
        if !self.visible {
            return write_lines();
        }
        write(&self.picture.erase());
        let result = write_lines();
        self.picture.lines = lines();
        write(&self.picture.draw(size(), Instant::now()));
        result
    }

    /// Takes the lines off the terminal.
    pub(crate) fn clear(&mut self) {
        self.picture.lines.clear();
        write(&self.picture.erase());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // What a panic says is written where the lines end, and would be erased with them.
        if !std::thread::panicking() {
            self.clear();
        }
    }
}

fn write(bytes: &str) {
    if !bytes.is_empty() {
        // In one piece, so that no state between is seen.
        let _ = io::stderr().write_all(bytes.as_bytes());
    }
}

/// Of a terminal.
#[derive(Clone, Copy, Debug)]
struct Size {
    columns: usize,
    rows: usize,
}

/// That of standard error: asked each time, since windows are resized.
fn size() -> Size {
    let told = rustix::termios::tcgetwinsize(io::stderr()).ok();
    let or = |told: Option<u16>, usual| told.filter(|&told| told > 0).map_or(usual, usize::from);
    Size {
        // A serial line knows no size.
        columns: or(told.map(|size| size.ws_col), 80),
        rows: or(told.map(|size| size.ws_row), 24),
    }
}

/// What is to be seen, and what is.
#[derive(Debug, Default)]
struct Picture {
    /// What is to be seen, in full.
    lines: Vec<String>,
    /// What is on the terminal of them: a row each, and the cursor behind the last.
    seen: Vec<String>,
    drawn: Option<Instant>,
}

impl Picture {
    fn is_due(&self, now: Instant) -> bool {
        let since = |drawn| now.saturating_duration_since(drawn);
        self.drawn.is_none_or(|drawn| since(drawn) >= PERIOD)
    }

    /// The bytes after which a terminal of this size shows the lines. Of those that do not fit the last are shown.
    fn draw(&mut self, size: Size, now: Instant) -> String {
        self.drawn = Some(now);
        // The row that is left shows that there is something above.
        let rows = size.rows.saturating_sub(1);
        let hidden = self.lines.len().saturating_sub(rows);
        let lines = self.lines[hidden..].iter();
        let lines: Vec<_> = lines.map(|line| cut(line, size.columns)).collect();
        if lines == self.seen {
            return String::new();
        }
        let mut bytes = self.erase();
        bytes += &lines.join("\r\n");
        self.seen = lines;
        bytes
    }

    /// The bytes after which nothing of the lines is seen, and the cursor is where they began.
    ///
    /// A terminal that was made narrower meanwhile may have broken them into more rows. Those stay: some terminals cut
    /// lines instead, and what would be erased there was written by somebody else.
    fn erase(&mut self) -> String {
        let mut bytes = String::new();
        if let Some(above) = self.seen.len().checked_sub(1) {
            bytes.push('\r');
            if above > 0 {
                let _ = write!(bytes, "\x1b[{above}A");
            }
            bytes += "\x1b[J";
        }
        self.seen.clear();
        bytes
    }
}

/// As much of `line` as fits, with its colours, and without all else that a terminal would obey.
fn cut(line: &str, columns: usize) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut left = columns;
    let mut coloured = false;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if let Some(sequence) = colour(rest) {
            kept += sequence;
            coloured = sequence != RESET;
            rest = &rest[sequence.len()..];
            continue;
        }
        rest = &rest[c.len_utf8()..];
        let width = match c {
            // What it follows is drawn as a picture, by many terminals in two columns.
            '\u{fe0f}' => 1,
            c => match c.width() {
                Some(width) => width,
                None => continue,
            },
        };
        let Some(less) = left.checked_sub(width) else {
            break;
        };
        left = less;
        kept.push(c);
    }
    if coloured {
        kept += RESET;
    }
    kept
}

/// The sequence for a colour with which `text` begins.
fn colour(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    let last = parameters.trim_start_matches(|c: char| c.is_ascii_digit() || ";:".contains(c));
    let rest = last.strip_prefix('m')?;
    Some(&text[..text.len() - rest.len()])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: Size = Size {
        columns: 10,
        rows: 4,
    };

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    /// What is written for one picture after the other.
    fn written(pictures: &[&[&str]], size: Size) -> String {
        let mut picture = Picture::default();
        let mut all = String::new();
        for next in pictures {
            picture.lines = lines(next);
            let bytes = picture.draw(size, Instant::now());
            let _ = writeln!(all, "{next:?}: {bytes:?}");
        }
        let _ = writeln!(all, "erase: {:?}", picture.erase());
        let _ = writeln!(all, "erase again: {:?}", picture.erase());
        all
    }

    #[test]
    fn bytes_of_a_line_and_of_several() {
        insta::assert_snapshot!(written(
            &[
                &["one"],
                &["one"],
                &["other"],
                &["a", "b"],
                &["a", "c", "d"],
                &["1", "2", "3", "4", "5"],
                &["longer than ten columns"],
                &[],
                &["again"],
            ],
            SMALL
        ));
    }

    #[test]
    fn a_size_is_that_of_the_moment() {
        let mut picture = Picture {
            lines: lines(&["one", "longer than ten columns"]),
            ..Picture::default()
        };
        let now = Instant::now();
        assert_eq!(picture.draw(SMALL, now), "one\r\nlonger tha");
        let wide = Size {
            columns: 80,
            rows: 2,
        };
        assert_eq!(
            picture.draw(wide, now),
            "\r\x1b[1A\x1b[Jlonger than ten columns"
        );
        let low = Size {
            columns: 80,
            rows: 1,
        };
        assert_eq!(picture.draw(low, now), "\r\x1b[J");
        assert_eq!(picture.draw(low, now), "");
    }

    #[test]
    fn it_is_drawn_twenty_times_a_second_at_most() {
        let mut picture = Picture::default();
        let begin = Instant::now();
        assert!(picture.is_due(begin));
        picture.draw(SMALL, begin);
        assert!(!picture.is_due(begin));
        assert!(!picture.is_due(begin + Duration::from_millis(49)));
        assert!(picture.is_due(begin + Duration::from_millis(50)));
    }

    #[test]
    fn lines_are_cut_between_characters_and_keep_their_colours() {
        for (line, columns, kept) in [
            ("12345", 5, "12345"),
            ("123456", 5, "12345"),
            ("", 5, ""),
            ("wide 漢字", 7, "wide 漢"),
            ("wide 漢字", 8, "wide 漢"),
            ("wide 漢字", 9, "wide 漢字"),
            // An accent of its own takes no column.
            ("e\u{301}f", 1, "e\u{301}"),
            ("\x1b[1m\x1b[32mab\x1b[0mcd", 3, "\x1b[1m\x1b[32mab\x1b[0mc"),
            ("\x1b[38;5;208mabcd", 2, "\x1b[38;5;208mab\x1b[0m"),
            ("\x1b[2mab\x1b[0mcd", 2, "\x1b[2mab\x1b[0m"),
            // What moves the cursor does not.
            ("a\x1b[2Jb\tc\r\nd\x1b", 80, "a[2Jbcd"),
            ("\x1b[31", 80, "[31"),
        ] {
            assert_eq!(cut(line, columns), kept, "{line:?} in {columns}");
        }
    }

    /// Of a terminal, as much as is asked of it here.
    struct Terminal {
        size: Size,
        /// Those that have left its upper edge too.
        rows: Vec<String>,
        row: usize,
    }

    impl Terminal {
        fn obey(&mut self, mut bytes: &str) {
            while let Some(c) = bytes.chars().next() {
                if let Some(up) = bytes
                    .strip_prefix("\x1b[")
                    .and_then(|rest| rest.split_once('A'))
                    .and_then(|(count, _)| count.parse::<usize>().ok())
                {
                    let top = self.rows.len().saturating_sub(self.size.rows);
                    self.row = self.row.saturating_sub(up).max(top);
                    bytes = &bytes[format!("\x1b[{up}A").len()..];
                } else if let Some(rest) = bytes.strip_prefix("\x1b[J") {
                    self.rows.truncate(self.row + 1);
                    self.rows[self.row].clear();
                    bytes = rest;
                } else if let Some(rest) = bytes.strip_prefix("\r\n").or(bytes.strip_prefix('\n')) {
                    self.down();
                    bytes = rest;
                } else if let Some(rest) = bytes.strip_prefix('\r') {
                    // Only before something is erased, up from here.
                    assert!(rest.starts_with("\x1b["), "{rest:?}");
                    bytes = rest;
                } else {
                    assert!(!c.is_control(), "{bytes:?}");
                    if self.rows[self.row].chars().count() == self.size.columns {
                        self.down();
                    }
                    self.rows[self.row].push(c);
                    bytes = &bytes[c.len_utf8()..];
                }
            }
        }

        fn down(&mut self) {
            self.row += 1;
            if self.row == self.rows.len() {
                self.rows.push(String::new());
            }
            assert!(
                self.rows[self.row].is_empty(),
                "written over {:?}",
                self.rows
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_written_above_stays_and_below_it_are_the_lines(
            columns in 1_usize..12,
            rows in 1_usize..6,
            steps in prop::collection::vec((prop::collection::vec("[a-z ]{0,15}", 0..8), "[a-z]{0,12}"), 0..12),
        ) {
            let size = Size { columns, rows };
            let mut terminal = Terminal { size, rows: vec![String::new()], row: 0 };
            let mut bare = Terminal { size, rows: vec![String::new()], row: 0 };
            let mut picture = Picture::default();
            for (lines, above) in steps {
                picture.lines = lines;
                terminal.obey(&picture.draw(size, Instant::now()));
                if !above.is_empty() {
                    let line = format!("{above}\n");
                    terminal.obey(&picture.erase());
                    terminal.obey(&line);
                    terminal.obey(&picture.draw(size, Instant::now()));
                    bare.obey(&line);
                }
                let mut expected = bare.rows.clone();
                expected.pop();
                let shown = picture.lines.len().min(rows - 1);
                let lines = &picture.lines[picture.lines.len() - shown..];
                expected.extend(lines.iter().map(|line| line.chars().take(columns).collect()));
                if shown == 0 {
                    expected.push(String::new());
                }
                prop_assert_eq!(&terminal.rows, &expected);
            }
            terminal.obey(&picture.erase());
            prop_assert_eq!(&terminal.rows, &bare.rows);
        }
    }
}
