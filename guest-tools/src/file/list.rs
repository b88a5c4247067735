//! Ls: a directory's entries, in parts, so that its size does not matter.

use hospes_protocol::file::{Entries, Entry};
use nix::dir::{Dir, OwningIter};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

use super::stat::{describe, is_dot, nothing_but};
use super::{FileError, Home, Names};

/// A part is sent when it has about this many bytes.
const PART: usize = 64 * 1024;
/// About what an entry takes beside its names.
const ENTRY: usize = 48;

/// A listing under way.
pub struct Listing {
    path: Vec<u8>,
    entries: OwningIter,
    directory: std::os::fd::OwnedFd,
    names: Names,
    count: u64,
}

impl Listing {
    /// Opens the directory.
    ///
    /// # Errors
    /// [`FileError::Os`].
    pub fn open(home: &Home, path: &[u8]) -> Result<Self, FileError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = || {
            let directory = openat(AT_FDCWD, &home.join(path), flags, Mode::empty())?;
            // A second descriptor: the iterator owns the first and gives no access to it.
            let entries = Dir::from_fd(directory.try_clone().map_err(|_| Errno::EMFILE)?)?.into_iter();
            Ok((directory, entries))
        };
        let (directory, entries) = open().map_err(FileError::os("list", path))?;
        Ok(Self { path: path.to_vec(), entries, directory, names: Names::default(), count: 0 })
    }

    /// The next part, or `None` after the last entry. An entry that vanishes meanwhile is left out; one that may be
    /// listed and not described has its type alone.
    ///
    /// # Errors
    /// [`FileError::Os`].
    pub fn next_part(&mut self) -> Result<Option<Entries>, FileError> {
        let (mut part, mut len) = (Vec::new(), 0);
        while len < PART {
            let Some(entry) = self.entries.next() else { break };
            let entry = entry.map_err(FileError::os("list", &self.path))?;
            if is_dot(entry.file_name()) {
                continue;
            }
            let stat = match describe(&self.directory, entry.file_name(), false, &mut self.names) {
                Ok(stat) => stat,
                Err(Errno::ENOENT) => continue,
                Err(_) => nothing_but(entry.file_type()),
            };
            let name = entry.file_name().to_bytes().to_vec();
            len += ENTRY + name.len() + stat.target.len() + stat.user.len() + stat.group.len();
            part.push(Entry { name, stat });
        }
        self.count += part.len() as u64;
        Ok(if part.is_empty() { None } else { Some(Entries(part)) })
    }

    /// Entries so far.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hospes_protocol::codec;
    use hospes_protocol::limits::LARGE_MESSAGE_LEN;
    use std::collections::BTreeSet;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_large_directory_comes_in_parts_with_every_name_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = BTreeSet::new();
        for n in 0..3000 {
            let name = format!("{n:0200}").into_bytes();
            std::fs::write(dir.path().join(OsStr::from_bytes(&name)), []).unwrap();
            expected.insert(name);
        }
        let raw = b"\xff\n\x1b".to_vec();
        std::fs::write(dir.path().join(OsStr::from_bytes(&raw)), []).unwrap();
        expected.insert(raw);
        let mut listing = Listing::open(&Home::new(dir.path()), b".").unwrap();
        let (mut seen, mut parts) = (BTreeSet::new(), 0);
        while let Some(part) = listing.next_part().unwrap() {
            let mut bytes = Vec::new();
            codec::encode_into(&part, &mut bytes);
            assert!(bytes.len() < LARGE_MESSAGE_LEN as usize / 8);
            parts += 1;
            for entry in part.0 {
                assert!(seen.insert(entry.name), "a name came twice");
            }
        }
        assert!(parts > 5);
        assert_eq!(listing.count(), 3001);
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_file_is_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), []).unwrap();
        let error = Listing::open(&Home::new(dir.path()), b"f").err().unwrap();
        assert_eq!(error.to_string(), "Could not list \"f\": Not a directory");
    }
}
