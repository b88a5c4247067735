//! Lists of copied files as desktops write them: `text/uri-list` (RFC 2483), and the file managers' own.
//!
//! | type | whose | what |
//! |---|---|---|
//! | `text/uri-list` | everybody's | a URI to a line, which ends in CR LF |
//! | `x-special/gnome-copied-files` | GNOME's, Xfce's, Cinnamon's | `copy` or `cut`, then a URI to a line |
//! | `x-special/mate-copied-files` | MATE's | the same |
//! | `application/x-kde4-urilist` | KDE's | as `text/uri-list` |
//!
//! That something was cut is not told on: what is pasted on another machine is always a copy.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The names of such lists, the best to read first.
pub const TYPES: [&str; 4] = [
    "text/uri-list",
    "application/x-kde4-urilist",
    "x-special/gnome-copied-files",
    "x-special/mate-copied-files",
];

/// What belongs to a list of files and means nothing on another machine: whether they were cut, keys of a document
/// portal, under which sandboxed programs find them.
pub(crate) const LOCAL: [&str; 3] =
    ["application/x-kde-cutselection", "application/vnd.portal.filetransfer", "application/vnd.portal.files"];

/// One of what was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A file or directory of this machine.
    Path(PathBuf),
    /// A link to somewhere else.
    Uri(String),
}

/// Whether it is the name of such a list.
#[must_use]
pub fn is_list(kind: &str) -> bool {
    TYPES.contains(&kind)
}

/// The best of these types to read a list as.
#[must_use]
pub fn best(types: &[String]) -> Option<&str> {
    TYPES.iter().find_map(|name| types.iter().find(|had| had == name)).map(String::as_str)
}

/// Reads a list of this type. What is no URI, or a file of another machine's, is passed over. `host` is this one's name.
#[must_use]
pub fn read(kind: &str, bytes: &[u8], host: &str) -> Vec<Item> {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    if has_deed(kind) {
        lines.next();
    }
    lines.filter_map(|line| item(line, host)).collect()
}

fn has_deed(kind: &str) -> bool {
    kind.ends_with("-copied-files")
}

fn item(line: &[u8], host: &str) -> Option<Item> {
    if !line.iter().all(|byte| (0x21..0x7f).contains(byte)) {
        return None;
    }
    let line = str::from_utf8(line).ok()?;
    let (scheme, rest) = line.split_once(':')?;
    let named = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if scheme.is_empty() || !named {
        return None;
    }
    if !scheme.eq_ignore_ascii_case("file") {
        return Some(Item::Uri(line.to_owned()));
    }
    let path = match rest.strip_prefix("//") {
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/')?);
            let here = authority.is_empty() || authority.eq_ignore_ascii_case("localhost");
            if !here && !authority.eq_ignore_ascii_case(host) {
                return None;
            }
            path
        }
        None => rest,
    };
    let path = decode(path.split(['?', '#']).next()?)?;
    if !path.starts_with(b"/") || path.contains(&0) {
        return None;
    }
    Some(Item::Path(PathBuf::from(std::ffi::OsString::from_vec(path))))
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, more)) = rest.split_first() {
        rest = more;
        if *byte == b'%' {
            let (hex, more) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()?);
            rest = more;
        } else {
            bytes.push(*byte);
        }
    }
    Some(bytes)
}

/// Writes a list of this type.
#[must_use]
pub fn write(kind: &str, items: &[Item]) -> Vec<u8> {
    let mut out = String::new();
    if has_deed(kind) {
        out.push_str("copy");
        for item in items {
            out.push('\n');
            put(item, &mut out);
        }
    } else {
        for item in items {
            put(item, &mut out);
            out.push_str("\r\n");
        }
    }
    out.into_bytes()
}

fn put(item: &Item, out: &mut String) {
    match item {
        Item::Path(path) => put_path(path, out),
        Item::Uri(uri) => out.push_str(uri),
    }
}

fn put_path(path: &Path, out: &mut String) {
    use std::fmt::Write;
    out.push_str("file://");
    for byte in OsStr::as_bytes(path.as_os_str()) {
        if byte.is_ascii_alphanumeric() || b"-._~/!$&'()*+,;=:@".contains(byte) {
            out.push(char::from(*byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(path: &str) -> Item {
        Item::Path(path.into())
    }

    #[test]
    fn a_list_is_read_as_its_program_meant_it() {
        let list = b"# a comment\r\nfile:///home/ada/a%20b\r\nfile://localhost/x\nFILE:/y\r\nhttps://example.org/a?b\r\n\r\n";
        let all =
            [path("/home/ada/a b"), path("/x"), path("/y"), Item::Uri("https://example.org/a?b".into())];
        assert_eq!(read(TYPES[0], list, "box"), all);
        assert_eq!(read(TYPES[2], b"cut\nfile:///a\nfile:///b", "box"), [path("/a"), path("/b")]);
        assert_eq!(read(TYPES[0], b"file://BOX/a\r\nfile://other/b\r\n", "box"), [path("/a")]);
    }

    #[test]
    fn what_is_no_file_of_this_machine_is_passed_over() {
        for bad in [
            "file:relative",
            "file://",
            "file:///a%0",
            "file:///a%zz",
            "file:///%00",
            "no uri",
            ":x",
            "a b:c",
        ] {
            assert_eq!(read(TYPES[0], bad.as_bytes(), "box"), [], "{bad}");
        }
    }

    #[test]
    fn a_list_is_written_as_file_managers_write_it() {
        let items = [path("/a b/\u{e9}"), Item::Uri("https://x/".into())];
        assert_eq!(write(TYPES[0], &items), b"file:///a%20b/%C3%A9\r\nhttps://x/\r\n");
        assert_eq!(write(TYPES[2], &items), b"copy\nfile:///a%20b/%C3%A9\nhttps://x/");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(names in proptest::collection::vec(proptest::collection::vec(1u8.., 1..40), 0..8), at in 0..4usize) {
            let items: Vec<Item> = names
                .into_iter()
                .map(|name| Item::Path(PathBuf::from(std::ffi::OsString::from_vec([b"/", &name[..]].concat()))))
                .collect();
            prop_assert_eq!(read(TYPES[at], &write(TYPES[at], &items), ""), items);
        }

        #[test]
        fn no_list_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0..4usize) {
            let _ = read(TYPES[at], &bytes, "box");
        }
    }
}
