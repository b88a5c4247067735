//! Read: a file's bytes, or a part of them.

use std::os::fd::OwnedFd;

use hospes_protocol::error::ErrorKind;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Whence, lseek};

use super::stat::is;
use super::{FileError, Home};

const ACT: &str = "read";

/// A file being read.
pub struct Reader {
    path: Vec<u8>,
    file: OwnedFd,
    left: Option<u64>,
    count: u64,
}

impl Reader {
    /// Opens a file at `offset`, for `len` bytes or to its end. Pipes and sockets are refused: reading one takes bytes
    /// away from somebody, and may wait for ever.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(home: &Home, path: &[u8], offset: u64, len: Option<u64>) -> Result<Self, FileError> {
        let failed = |errno| FileError::os(ACT, path)(errno);
        // Without waiting: opening a pipe would else block until somebody writes.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = match openat(AT_FDCWD, &home.join(path), flags, Mode::empty()) {
            Err(Errno::ENXIO) => return Err(no_file(ACT, path)),
            result => result.map_err(failed)?,
        };
        let found = fstat(&file).map_err(failed)?;
        if is(&found, SFlag::S_IFDIR) {
            return Err(failed(Errno::EISDIR));
        }
        if is(&found, SFlag::S_IFIFO) || is(&found, SFlag::S_IFSOCK) {
            return Err(no_file(ACT, path));
        }
        if offset > 0 {
            let offset = offset.try_into().map_err(|_| failed(Errno::EOVERFLOW))?;
            lseek(&file, offset, Whence::SeekSet).map_err(failed)?;
        }
        Ok(Self { path: path.to_vec(), file, left: len, count: 0 })
    }

    /// Reads the next bytes into `buffer`: how many, zero at the end.
    ///
    /// # Errors
    /// [`FileError::Os`].
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<usize, FileError> {
        let want = self
            .left
            .map_or(buffer.len(), |left| buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        if want == 0 {
            return Ok(0);
        }
        let len = loop {
            match nix::unistd::read(&self.file, &mut buffer[..want]) {
                Err(Errno::EINTR) => (),
                result => break result.map_err(FileError::os(ACT, &self.path))?,
            }
        };
        self.left = self.left.map(|left| left.saturating_sub(len as u64));
        self.count += len as u64;
        Ok(len)
    }

    /// Bytes read so far.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }
}

pub(super) fn no_file(act: &'static str, path: &[u8]) -> FileError {
    FileError::Refused {
        act,
        path: path.to_vec(),
        kind: ErrorKind::FILE_KIND,
        reason: "it is a pipe or a socket",
        hint: "Use exec with a program that speaks to it, or connect for a socket",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut Reader) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), [0; 7]);
        loop {
            let len = reader.next(&mut buffer).unwrap();
            if len == 0 {
                break all;
            }
            all.extend_from_slice(&buffer[..len]);
        }
    }

    #[test]
    fn any_part_of_a_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let bytes: Vec<u8> = (0..100).collect();
        std::fs::write(dir.path().join("f"), &bytes).unwrap();
        let part = |offset, len| read(&mut Reader::open(&home, b"f", offset, len).unwrap());
        assert_eq!(part(0, None), bytes);
        assert_eq!(part(90, None), bytes[90..]);
        assert_eq!(part(10, Some(20)), bytes[10..30]);
        assert_eq!(part(95, Some(20)), bytes[95..]);
        assert_eq!(part(1000, None), b"");
        assert_eq!(part(0, Some(0)), b"");
        let proc = read(&mut Reader::open(&home, b"/proc/self/status", 0, None).unwrap());
        assert!(proc.starts_with(b"Name:"), "files whose size is said to be zero too");
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        for path in [&b"pipe"[..], b"socket"] {
            assert!(matches!(Reader::open(&home, path, 0, None), Err(FileError::Refused { .. })));
        }
        assert_eq!(Reader::open(&home, b".", 0, None).err().unwrap().errno(), Some(Errno::EISDIR));
    }
}
