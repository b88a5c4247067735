//! What people see: tables, notes, colours where they are wanted, and JSON that is safe on a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};

use crate::command_error::CommandError;

/// A note on stderr, for people: only where they see it.
pub fn note(text: impl Display) {
    if io::stderr().is_terminal() {
        // A terminal in raw mode needs the carriage return, any other does not mind it.
        eprint!("hospes: {text}\r\n");
    }
}

/// A warning on stderr, for people and logs.
pub fn warn(text: impl Display) {
    eprintln!("hospes: {text}");
}

/// Tells a failure on stderr: for people, or as one line of JSON.
pub fn tell(error: &CommandError, json: bool) {
    if json {
        #[derive(Serialize)]
        struct Told<'e> {
            error: &'e CommandError,
        }
        eprintln!("{}", to_json(&Told { error }));
        return;
    }
    let paint = Paint::of(&io::stderr());
    eprintln!("{} {}", paint.red("Error:"), error.message);
    if let Some(hint) = &error.hint {
        eprintln!("{} {hint}", paint.bold("Hint:"));
    }
}

/// Prints one line on stdout. A reader that went away is no failure of ours.
///
/// # Errors
/// The operating system's, but for `BrokenPipe`.
pub fn line(text: impl Display) -> Result<(), CommandError> {
    line_read(text).map(drop)
}

/// As [`line()`]; false where nobody reads any more.
///
/// # Errors
/// As [`line()`].
pub fn line_read(text: impl Display) -> Result<bool, CommandError> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CommandError::io("Cannot write the output", &error)),
    }
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// As [`line()`].
pub fn json(value: &impl Serialize) -> Result<(), CommandError> {
    line(to_json(value))
}

/// A value as JSON in one line, in which every character that a terminal might obey is an escape.
#[must_use]
pub fn to_json(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, SafeFormatter);
    // Our own types, written to memory: nothing in them refuses.
    let _ = value.serialize(&mut serializer);
    String::from_utf8(bytes).unwrap_or_default()
}

/// Everything outside printable ASCII and plain letters is escaped, as JSON allows.
struct SafeFormatter;

impl Formatter for SafeFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut buffer = [0; 4];
        for c in fragment.chars() {
            if crate::printable::is_plain(c) {
                writer.write_all(c.encode_utf8(&mut buffer).as_bytes())?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        escape: serde_json::ser::CharEscape,
    ) -> io::Result<()> {
        CompactFormatter.write_char_escape(writer, escape)
    }
}

/// Colours, where the stream is a terminal and nobody said no.
#[derive(Debug, Clone, Copy)]
pub struct Paint(bool);

impl Paint {
    /// For a stream. `NO_COLOR` and `TERM=dumb` are honoured.
    #[must_use]
    pub fn of(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(!refused && stream.is_terminal())
    }

    /// For failures.
    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// For what is well.
    #[must_use]
    pub fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// For what may become well.
    #[must_use]
    pub fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// For headings.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Columns of text under headings, two spaces apart.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
struct Cell {
    text: String,
    style: Option<fn(Paint, &str) -> String>,
}

impl Table {
    /// A table with these headings.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        let cell = |text: &&str| Cell { text: (*text).to_owned(), style: Some(Paint::bold) };
        Self { rows: vec![headings.iter().map(cell).collect()] }
    }

    /// Adds a row. The strings have been made safe.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|text| Cell { text: text.into(), style: None }).collect());
    }

    /// Colours the last row's cell.
    pub fn style(&mut self, column: usize, style: fn(Paint, &str) -> String) {
        if let Some(cell) = self.rows.last_mut().and_then(|row| row.get_mut(column)) {
            cell.style = Some(style);
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// As [`line()`].
    pub fn print(&self) -> Result<(), CommandError> {
        let paint = Paint::of(&io::stdout());
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let painted = cell.style.map_or_else(|| cell.text.clone(), |style| style(paint, &cell.text));
                text.push_str(&painted);
                if column + 1 < row.len() {
                    let pad = widths[column].saturating_sub(cell.text.chars().count()) + 2;
                    text.extend(std::iter::repeat_n(' ', pad));
                }
            }
            text.push('\n');
        }
        line(text.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_json_and_moves_no_cursor() {
        let text = to_json(&"a\u{1b}[31m\u{9b}\u{202e}\u{e0001}\"ü\n");
        assert!(text.chars().all(crate::printable::is_plain), "{text}");
        let back: String = serde_json::from_str(&text).unwrap();
        assert_eq!(back, "a\u{1b}[31m\u{9b}\u{202e}\u{e0001}\"ü\n");
    }
}
