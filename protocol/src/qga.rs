//! The framing of the QEMU guest agent's protocol, which hosts speak that know no other: JSON objects one after the other,
//! with or without line ends between them. Its commands are in the guest tools; nothing of ours is spoken there.
//!
//! A byte 0xff, which no UTF-8 has, throws away what came before it: so a host that does not know how the last one ended
//! begins anew (QEMU's qga protocol reference, `guest-sync-delimited`).

/// Bytes of one command. The longest that is served has a few hundred.
pub const COMMAND_LEN: usize = 64 * 1024;

/// The byte that throws away what came before it.
pub const DELIMITER: u8 = 0xff;

/// What the bytes were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The bytes of one object. Whether it is JSON is for a JSON parser to say.
    Object(Vec<u8>),
    /// Bytes outside of an object. They are skipped to the next object or line end.
    Garbage,
    /// An object of more than [`COMMAND_LEN`] bytes. It is skipped to the next [`DELIMITER`] or line end.
    TooLong,
}

/// Bytes in, objects out. It holds one object at most.
#[derive(Debug, Default)]
pub struct Splitter {
    object: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// What is skipped has been told.
    skipping: bool,
    /// An object was too long: what follows may be its rest.
    lost: bool,
}

impl Splitter {
    /// One that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { object: Vec::new(), depth: 0, in_string: false, escaped: false, skipping: false, lost: false }
    }

    /// Takes bytes in and gives each piece that ends in them to `piece`.
    pub fn take(&mut self, bytes: &[u8], mut piece: impl FnMut(Piece)) {
        for &byte in bytes {
            if let Some(ended) = self.byte(byte) {
                piece(ended);
            }
        }
    }

    fn byte(&mut self, byte: u8) -> Option<Piece> {
        if byte == DELIMITER {
            *self = Self::new();
            return None;
        }
        if self.depth == 0 {
            return self.between(byte);
        }
        self.object.push(byte);
        if self.object.len() > COMMAND_LEN {
            *self = Self { lost: true, ..Self::new() };
            return Some(Piece::TooLong);
        }
        match byte {
            _ if std::mem::take(&mut self.escaped) => (),
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            b'{' | b'[' if !self.in_string => self.depth += 1,
            b'}' | b']' if !self.in_string => self.depth -= 1,
            _ => (),
        }
        (self.depth == 0).then(|| Piece::Object(std::mem::take(&mut self.object)))
    }

    fn between(&mut self, byte: u8) -> Option<Piece> {
        match byte {
            b'\n' => {
                (self.skipping, self.lost) = (false, false);
                None
            }
            _ if self.lost => None,
            _ if self.skipping && byte != b'{' => None,
            b'{' => {
                self.skipping = false;
                self.object.push(byte);
                self.depth = 1;
                None
            }
            b' ' | b'\t' | b'\r' => None,
            _ => {
                self.skipping = true;
                Some(Piece::Garbage)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        Splitter::new().take(bytes, |piece| pieces.push(piece));
        pieces
    }

    fn object(text: &str) -> Piece {
        Piece::Object(text.as_bytes().to_vec())
    }

    #[test]
    fn objects_need_no_line_ends() {
        assert_eq!(
            split(b"{\"a\": 1}{\"b\":[{}]}\r\n  {}\n"),
            [object("{\"a\": 1}"), object("{\"b\":[{}]}"), object("{}")]
        );
        assert_eq!(split(br#"{"a": "}\"{"}"#), [object(r#"{"a": "}\"{"}"#)]);
        assert_eq!(split(b"{\"a\": \"\\\\\"}"), [object("{\"a\": \"\\\\\"}")]);
    }

    #[test]
    fn the_delimiter_throws_away_what_came_before() {
        assert_eq!(split(b"{\"half\": \"\xff{}"), [object("{}")]);
        assert_eq!(split(b"\xff\xff{}\xff"), [object("{}")]);
    }

    #[test]
    fn what_is_no_object_is_told_once_and_the_next_one_is_heard() {
        assert_eq!(split(b"hello world\n{}"), [Piece::Garbage, object("{}")]);
        assert_eq!(split(b"]]{}"), [Piece::Garbage, object("{}")]);
    }

    #[test]
    fn an_object_without_an_end_is_cut_off_and_its_memory_given_back() {
        let mut splitter = Splitter::new();
        let mut pieces = Vec::new();
        splitter.take(b"{\"a\": \"", |piece| pieces.push(piece));
        for _ in 0..100 {
            splitter.take(&[b'x'; 1024], |piece| pieces.push(piece));
        }
        assert_eq!(pieces, [Piece::TooLong]);
        assert!(splitter.object.capacity() <= 1024, "{}", splitter.object.capacity());
        splitter.take(b"\n{}", |piece| pieces.push(piece));
        assert_eq!(pieces, [Piece::TooLong, object("{}")]);
    }
}
