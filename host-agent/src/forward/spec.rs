//! What `-L` and `-R` say, as ssh's users write it and with our own address words.
//!
//! ```text
//! [LISTEN:]TARGET
//! LISTEN   PORT   HOST:PORT   [IPV6]:PORT   /PATH   unix:PATH
//! TARGET   PORT   HOST:PORT   [IPV6]:PORT   /PATH   unix:PATH
//! ```
//! A lone `PORT` is both. A path ends at the next colon where something follows it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use hospes_protocol::forward::Address;

/// One forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where to listen: on this machine for `-L`, in the guest for `-R`.
    pub listen: Address,
    /// Where callers are led, on the other side.
    pub to: Address,
}

/// Why text is no forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a forward: {text:?}; write [BIND:]PORT:HOST:PORT, PORT, or a path or unix:PATH on either side")]
pub struct SpecError {
    text: String,
}

impl Forward {
    /// Reads a forward.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn parse(text: &OsStr) -> Result<Self, SpecError> {
        let error = || SpecError { text: text.to_string_lossy().into_owned() };
        let forward = read(text.as_bytes()).ok_or_else(error)?;
        // Port zero means "any that is free", which is for listeners.
        if forward.listen.is_sane() && forward.to.is_sane() && port(&forward.to) != Some(0) {
            Ok(forward)
        } else {
            Err(error())
        }
    }
}

/// An address's port, where it has one.
#[must_use]
pub const fn port(address: &Address) -> Option<u16> {
    match address {
        Address::Tcp { port, .. } => Some(*port),
        Address::Unix { .. } => None,
    }
}

fn read(text: &[u8]) -> Option<Forward> {
    if let Some((path, rest)) = path_first(text) {
        return Some(Forward { listen: unix(path)?, to: target(rest)? });
    }
    let fields = fields(text)?;
    let tcp = |host: &str, port: &str| Some(Address::Tcp { host: host.to_owned(), port: number(port)? });
    match &fields[..] {
        [Field::Word(port)] => Some(Forward { listen: tcp("localhost", port)?, to: tcp("localhost", port)? }),
        [Field::Word(port), rest @ ..] if number(port).is_some() => {
            Some(Forward { listen: tcp("localhost", port)?, to: join(rest)? })
        }
        [Field::Word(bind), Field::Word(port), rest @ ..] => {
            let bind = if bind.is_empty() { "*" } else { bind };
            Some(Forward { listen: tcp(bind, port)?, to: join(rest)? })
        }
        _ => None,
    }
}

/// A path in front, and what follows its colon.
fn path_first(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = if text.starts_with(b"unix:") { b"unix:".len() } else { 0 };
    if start == 0 && !text.starts_with(b"/") {
        return None;
    }
    let end = start + text[start..].iter().position(|b| *b == b':')?;
    Some((&text[start..end], &text[end + 1..]))
}

enum Field {
    /// Up to a colon; without its brackets where it had them.
    Word(String),
    /// A path, to the end.
    Path(Vec<u8>),
}

/// The fields between colons. A bracketed one may hold colons, a path goes to the end.
fn fields(mut text: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    loop {
        if let Some(path) = text.strip_prefix(b"unix:").or_else(|| text.starts_with(b"/").then_some(text)) {
            fields.push(Field::Path(path.to_vec()));
            return Some(fields);
        }
        let (word, end) = if let Some(inner) = text.strip_prefix(b"[") {
            let close = inner.iter().position(|b| *b == b']')?;
            (&inner[..close], close + 2)
        } else {
            let end = text.iter().position(|b| *b == b':').unwrap_or(text.len());
            (&text[..end], end)
        };
        fields.push(Field::Word(std::str::from_utf8(word).ok()?.to_owned()));
        match text.get(end) {
            None => return Some(fields),
            Some(b':') => text = &text[end + 1..],
            Some(_) => return None,
        }
    }
}

fn join(fields: &[Field]) -> Option<Address> {
    match fields {
        [Field::Path(path)] => unix(path),
        [Field::Word(port)] => Some(Address::Tcp { host: "localhost".to_owned(), port: number(port)? }),
        [Field::Word(host), Field::Word(port)] => {
            Some(Address::Tcp { host: host.clone(), port: number(port)? })
        }
        _ => None,
    }
}

fn target(text: &[u8]) -> Option<Address> {
    join(&fields(text.strip_prefix(b"tcp:").unwrap_or(text))?)
}

fn unix(path: &[u8]) -> Option<Address> {
    (!path.is_empty()).then(|| Address::Unix { path: path.to_vec() })
}

fn number(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.to_owned(), port }
    }

    fn path(path: &str) -> Address {
        Address::Unix { path: path.as_bytes().to_vec() }
    }

    #[test]
    fn forwards_read_as_ssh_writes_them() {
        for (text, listen, to) in [
            ("8080", tcp("localhost", 8080), tcp("localhost", 8080)),
            ("8080:80", tcp("localhost", 8080), tcp("localhost", 80)),
            ("8080:web:80", tcp("localhost", 8080), tcp("web", 80)),
            ("0:web:80", tcp("localhost", 0), tcp("web", 80)),
            ("0.0.0.0:8080:web:80", tcp("0.0.0.0", 8080), tcp("web", 80)),
            ("*:8080:web:80", tcp("*", 8080), tcp("web", 80)),
            (":8080:web:80", tcp("*", 8080), tcp("web", 80)),
            ("[::1]:8080:[fe80::1]:80", tcp("::1", 8080), tcp("fe80::1", 80)),
            ("8080:[::1]:80", tcp("localhost", 8080), tcp("::1", 80)),
            ("8080:/run/x.sock", tcp("localhost", 8080), path("/run/x.sock")),
            ("127.0.0.1:8080:unix:x.sock", tcp("127.0.0.1", 8080), path("x.sock")),
            ("/tmp/a:unix:/run/b", path("/tmp/a"), path("/run/b")),
            ("/tmp/a:/run/b:c", path("/tmp/a"), path("/run/b:c")),
            ("unix:a:db:5432", path("a"), tcp("db", 5432)),
            ("/tmp/a:5432", path("/tmp/a"), tcp("localhost", 5432)),
            ("/tmp/a:tcp:5432", path("/tmp/a"), tcp("localhost", 5432)),
        ] {
            assert_eq!(Forward::parse(OsStr::new(text)).unwrap(), Forward { listen, to }, "{text}");
        }
        let bad = [
            "",
            ":",
            "x",
            "x:y",
            "8080:",
            "70000",
            "8080:web:0",
            "0",
            "8080:web:http",
            "1:2:3:4:5",
            "/tmp/a",
            "[::1:80",
            "[::1]80:web:80",
            "/tmp/a:",
            "8080:unix:",
            "+80",
        ];
        for text in bad {
            assert!(Forward::parse(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn no_text_panics() {
        // Every short text over the letters that mean something.
        let letters = b":/[]08u*";
        for n in 0..letters.len().pow(6) {
            let text: Vec<u8> =
                (0..6).map(|place| letters[n / letters.len().pow(place) % letters.len()]).collect();
            let _ = Forward::parse(OsStr::from_bytes(&text));
        }
    }
}
