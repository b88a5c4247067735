//! A disk's bytes: a raw image file or a block device of the host.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::SECTOR;
use crate::io::{IoBuf, read_exact_at, write_all_at};

/// Bytes of a serial number (virtio 1.3, section 5.2.6).
const SERIAL_LEN: usize = 20;

/// Zeros, as many as are written at a time where a file cannot be told to have them.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Why a file cannot be a disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It does not open.
    #[error("The disk {} could not be opened{}", path.display(), remedy(source))]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Two machines that write one disk destroy it.
    #[error(
        "The disk {} is in use by another machine. End that one, or give it to both as read-only: \
         --disk {}:ro", path.display(), path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is a directory, a socket, or such.
    #[error("{} is neither a file nor a block device, and cannot be a disk", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// It is an image that has to be interpreted.
    #[error(
        "The disk {} is a {format} image, and only raw ones are read here: \
         qemu-img convert -O raw {} FILE makes one of it", path.display(), path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: &'static str,
    },
    /// It ends within a sector, or has none.
    #[error(
        "The disk {} has {bytes} bytes, which are not one or more whole sectors of {SECTOR}: \
         truncate --size %{SECTOR} {} rounds it up", path.display(), path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => ". An empty one of 20 GiB is made by: truncate --size 20G FILE",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            ". One that may only be read is given as FILE:ro"
        }
        _ => "",
    }
}

/// A disk, opened and locked.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    serial: [u8; SERIAL_LEN],
}

impl Disk {
    /// Opens one. It is this process's alone until it is dropped, or shared with others that only read it too.
    ///
    /// # Errors
    /// It is not there, is not a raw disk, or is in use.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind { path: path.to_owned() });
        }
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        if let Some(format) = format(&mut file).map_err(failed)? {
            return Err(DiskError::Format { path: path.to_owned(), format });
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(DiskError::Size { path: path.to_owned(), bytes });
        }
        Ok(Self { file, sectors: bytes / SECTOR, read_only, serial: serial(path) })
    }

    /// How large it is.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it may only be read.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// What the guest finds it by (`/dev/disk/by-id/virtio-…`): the file's name.
    #[must_use]
    pub fn serial(&self) -> &[u8; SERIAL_LEN] {
        &self.serial
    }

    /// Reads from a byte on. What is asked for lies on the disk.
    ///
    /// # Errors
    /// The file's.
    pub fn read(&self, at: u64, to: &mut [IoBuf<'_>]) -> io::Result<()> {
        read_exact_at(&self.file, to, at)
    }

    /// Writes from a byte on; it lasts once it is flushed.
    ///
    /// # Errors
    /// The file's.
    pub fn write(&self, at: u64, from: &mut [IoBuf<'_>]) -> io::Result<()> {
        write_all_at(&self.file, from, at)
    }

    /// Returns when everything written is where a power cut does not reach it.
    ///
    /// # Errors
    /// The file's: what was written may be lost.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the host the room of bytes that the guest does not need: they may read as anything afterwards.
    ///
    /// # Errors
    /// The file's; [`ErrorKind::Unsupported`] where its file system has no holes.
    pub fn discard(&self, at: u64, bytes: u64) -> io::Result<()> {
        sys::punch(&self.file, at, bytes)
    }

    /// Makes bytes zero, and gives the host their room where `unmap` says that it may have it.
    ///
    /// # Errors
    /// The file's.
    pub fn zero(&self, at: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        let quickly =
            if unmap { sys::punch(&self.file, at, bytes) } else { sys::zero(&self.file, at, bytes) };
        match quickly {
            Err(error) if error.kind() == ErrorKind::Unsupported => (),
            done => return done,
        }
        let (mut at, mut left) = (at, bytes);
        while left > 0 {
            let some = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..some], at)?;
            at += some as u64;
            left -= some as u64;
        }
        Ok(())
    }
}

/// An image's format, where it has one. A raw disk's first sector is a boot sector, a file system's, or empty.
fn format(file: &mut File) -> io::Result<Option<&'static str>> {
    let mut start = Vec::new();
    file.take(8).read_to_end(&mut start)?;
    Ok(match &start[..] {
        [b'Q', b'F', b'I', 0xfb, ..] => Some("qcow2"),
        [b'K', b'D', b'M', b'V', ..] => Some("VMDK"),
        b"vhdxfile" => Some("VHDX"),
        b"conectix" => Some("VHD"),
        _ => None,
    })
}

fn serial(path: &Path) -> [u8; SERIAL_LEN] {
    let mut serial = [0; SERIAL_LEN];
    let name = path.file_name().unwrap_or(path.as_os_str()).as_encoded_bytes();
    // udev makes a link of it.
    for (to, from) in serial.iter_mut().zip(name) {
        *to = if from.is_ascii_alphanumeric() || b"-_.".contains(from) { *from } else { b'_' };
    }
    serial
}

#[cfg(target_os = "linux")]
mod sys {
    use std::fs::File;
    use std::io;

    use rustix::fs::{FallocateFlags, fallocate};

    pub(super) fn punch(file: &File, at: u64, bytes: u64) -> io::Result<()> {
        Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, bytes)?)
    }

    pub(super) fn zero(file: &File, at: u64, bytes: u64) -> io::Result<()> {
        Ok(fallocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, at, bytes)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    use std::fs::File;
    use std::io;

    pub(super) fn punch(_: &File, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn zero(_: &File, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().prefix("a disk").tempfile().unwrap();
        std::fs::write(&file, bytes).unwrap();
        file
    }

    #[test]
    fn what_is_no_raw_disk_is_told_with_what_to_do() {
        let mut qcow2 = [0; 512];
        qcow2[..4].copy_from_slice(b"QFI\xfb");
        for (bytes, words) in [
            (&[][..], "0 bytes"),
            (
                &[0; 513][..],
                "513 bytes, which are not one or more whole sectors of 512: truncate --size %512 ",
            ),
            (&qcow2[..], "qemu-img convert -O raw "),
        ] {
            let file = file(bytes);
            let error = Disk::open(file.path(), false).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = Disk::open(Path::new("/nonexistent"), false).unwrap_err().to_string();
        assert!(error.contains("truncate --size 20G"), "{error}");
        let error = Disk::open(Path::new("/"), true).unwrap_err().to_string();
        assert!(error.contains("neither a file nor a block device"), "{error}");
    }

    #[test]
    fn writers_are_alone_and_readers_are_not() {
        let file = file(&[7; 1024]);
        let reader = Disk::open(file.path(), true).unwrap();
        assert!(Disk::open(file.path(), true).is_ok());
        let error = Disk::open(file.path(), false).unwrap_err();
        assert!(matches!(error, DiskError::InUse { .. }) && error.to_string().contains(":ro"));
        drop(reader);
        let writer = Disk::open(file.path(), false).unwrap();
        assert_eq!((writer.sectors(), writer.read_only()), (2, false));
        assert!(Disk::open(file.path(), true).is_err());
        assert!(writer.serial().starts_with(b"a_disk"));
    }

    #[test]
    fn zeros_and_holes_are_where_they_were_asked_for() {
        let file = file(&[7; 8192]);
        let disk = Disk::open(file.path(), false).unwrap();
        disk.zero(512, 512, false).unwrap();
        disk.zero(4096, 4096, true).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 8192);
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte == 0, (512..1024).contains(&at) || at >= 4096, "byte {at}");
        }
    }
}
