//! A guest's words made safe for a terminal: no control, escape, bidirectional or invisible character passes.

use std::borrow::Cow;
use std::fmt::Write;

/// Characters of one guest string that people are shown.
const LINE_CHARS: usize = 1024;

/// One line of text: what could move the cursor, recolour, retitle, reorder or hide text is shown as its escape, and
/// an overlong text ends with an ellipsis.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    if text.len() <= LINE_CHARS && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len().min(LINE_CHARS));
    for (count, c) in text.chars().enumerate() {
        if count >= LINE_CHARS {
            clean.push('…');
            break;
        }
        if is_plain(c) {
            clean.push(c);
        } else {
            let _ = write!(clean, "\\u{{{:x}}}", u32::from(c));
        }
    }
    Cow::Owned(clean)
}

/// As [`line()`], of bytes that should be UTF-8.
#[must_use]
pub fn bytes(bytes: &[u8]) -> String {
    line(&String::from_utf8_lossy(bytes)).into_owned()
}

pub(crate) fn is_plain(c: char) -> bool {
    !(c.is_control()
        || matches!(c,
            // Line and paragraph separators, bidirectional marks, embeddings, overrides and isolates.
            '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{061c}'
            // Zero-width characters, soft hyphen, byte order mark, tags, interlinear annotation.
            | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}' | '\u{206a}'..='\u{206f}' | '\u{00ad}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_reordering_are_shown_and_not_obeyed() {
        assert_eq!(line("dev\u{1b}]0;owned\u{7}"), "dev\\u{1b}]0;owned\\u{7}");
        assert_eq!(line("a\r\nb\u{9b}31m"), "a\\u{d}\\u{a}b\\u{9b}31m");
        assert_eq!(line("abc\u{202e}txt.exe"), "abc\\u{202e}txt.exe");
        assert_eq!(line("Ünïcödé 東京"), "Ünïcödé 東京");
    }

    #[test]
    fn a_flood_is_cut() {
        assert_eq!(line(&"x".repeat(1 << 20)).chars().count(), LINE_CHARS + 1);
    }
}
