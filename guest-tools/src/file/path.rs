//! Where a path of a request leads.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The user's home: where relative paths start.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// The home of the worker's user.
    #[must_use]
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self(home.into())
    }

    /// The path in full. Nothing is resolved: `..` and symbolic links are the kernel's.
    #[must_use]
    pub fn join(&self, path: &[u8]) -> PathBuf {
        self.0.join(OsStr::from_bytes(path))
    }
}

/// A path as the directory that holds the entry, and the entry's name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) parent: PathBuf,
    /// One component: `.`, `..` and the root are `None`.
    pub(super) name: Option<OsString>,
    /// A slash stood at the end: the entry must be a directory.
    pub(super) directory: bool,
}

pub(super) fn split(path: &Path) -> Split {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    let (trimmed, directory) = (&bytes[..end], end < bytes.len());
    let start = trimmed.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    let name = &trimmed[start..];
    let parent = match &trimmed[..start] {
        b"" if trimmed.is_empty() => b"/",
        b"" => &b"."[..],
        parent => parent,
    };
    let name = (!matches!(name, b"" | b"." | b"..")).then(|| OsString::from_vec(name.to_vec()));
    Split { parent: PathBuf::from(OsString::from_vec(parent.to_vec())), name, directory }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_at_their_last_component() {
        let parts = |path: &str| {
            let split = split(Path::new(path));
            (split.parent.to_str().unwrap().to_owned(), split.name, split.directory)
        };
        let name = |name: &str| Some(OsString::from(name));
        assert_eq!(parts("/a/b"), ("/a/".into(), name("b"), false));
        assert_eq!(parts("/a/b//"), ("/a/".into(), name("b"), true));
        assert_eq!(parts("/b"), ("/".into(), name("b"), false));
        assert_eq!(parts("b"), (".".into(), name("b"), false));
        assert_eq!(parts("a/.."), ("a/".into(), None, false));
        assert_eq!(parts("/a/."), ("/a/".into(), None, false));
        assert_eq!(parts("//"), ("/".into(), None, true));
    }

    #[test]
    fn a_relative_path_starts_at_home_and_an_absolute_one_does_not() {
        let home = Home::new("/home/dev");
        assert_eq!(home.join(b"a\xff"), Path::new("/home/dev").join(OsStr::from_bytes(b"a\xff")));
        assert_eq!(home.join(b"/etc"), Path::new("/etc"));
    }
}
