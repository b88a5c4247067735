//! Bytes that were left here to be pasted: in memory that no process has mapped.

use std::fs::File;
use std::io::{self, Seek};

use hospes_protocol::limits::CLIPBOARD_KEPT;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Bytes while they come, and then for good.
#[derive(Debug)]
pub struct Kept {
    file: File,
}

/// Bytes that one may have.
pub const MOST: u64 = CLIPBOARD_KEPT;

impl Kept {
    /// Nothing yet.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("hospes-clipboard", MFdFlags::MFD_CLOEXEC)?);
        Ok(Self { file })
    }

    /// A descriptor to write to.
    ///
    /// # Errors
    /// The operating system's.
    pub fn writer(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// All of it, to be read from its beginning by one reader.
    ///
    /// # Errors
    /// The operating system's.
    pub fn reader(&self) -> io::Result<File> {
        // A descriptor of its own position: several may paste at once.
        use std::os::fd::AsRawFd;
        let mut file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        file.rewind()?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn each_reader_reads_all_of_it() {
        let kept = Kept::new().unwrap();
        kept.writer().unwrap().write_all(b"hello").unwrap();
        let (mut one, mut two) = (kept.reader().unwrap(), kept.reader().unwrap());
        let mut text = String::new();
        one.read_to_string(&mut text).unwrap();
        two.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hellohello");
    }
}
