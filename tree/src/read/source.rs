//! What a copy is told to read, by rsync's trailing-slash rule.

use std::ffi::{CStr, CString};

use hospes_protocol::error::WireError;
use rustix::fs::{AtFlags, CWD, Stat, statat};
use rustix::io::Errno;

use crate::fault::system;

/// One source. A path that ends in a slash, in `/.` or in `..` stands for what is in the directory; any other for the
/// entry itself, under its last name. A symbolic link named as a source is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    path: CString,
    name: Vec<u8>,
    contents: bool,
}

impl Source {
    /// The source at a path of this system.
    ///
    /// # Errors
    /// The error of a path that is empty or has a NUL byte.
    pub fn new(path: &[u8]) -> Result<Self, WireError> {
        let invalid = || system("Cannot use the path", Errno::INVAL);
        if path.is_empty() {
            return Err(invalid());
        }
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let contents = matches!(name, b"" | b"." | b"..");
        let name = if contents { Vec::new() } else { name.to_vec() };
        Ok(Self { path: CString::new(path).map_err(|_| invalid())?, name, contents })
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &CStr {
        &self.path
    }

    /// The name under which it arrives; empty where its contents do.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Whether it stands for what is in the directory.
    #[must_use]
    pub const fn is_contents(&self) -> bool {
        self.contents
    }

    /// What is there: behind a symbolic link, or the link itself where nothing is behind it.
    pub(super) fn look(self) -> (Self, Result<Stat, WireError>) {
        let stat = statat(CWD, &self.path, AtFlags::empty()).or_else(|errno| {
            if self.contents {
                Err(errno)
            } else {
                statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| errno)
            }
        });
        let stat = stat.map_err(|errno| {
            let path = String::from_utf8_lossy(self.path.to_bytes());
            system(&format!("Cannot read {path:?}"), errno)
        });
        (self, stat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trailing_slash_means_the_contents() {
        for (path, name, contents) in [
            ("dir", "dir", false),
            ("/a/dir", "dir", false),
            ("dir/", "", true),
            ("/", "", true),
            (".", "", true),
            ("a/.", "", true),
            ("a/..", "", true),
            ("...", "...", false),
        ] {
            let source = Source::new(path.as_bytes()).unwrap();
            assert_eq!((source.name(), source.is_contents()), (name.as_bytes(), contents), "{path}");
        }
        assert!(Source::new(b"").is_err());
        assert!(Source::new(b"a\0b").is_err());
    }
}
