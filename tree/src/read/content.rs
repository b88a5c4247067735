//! A regular file's bytes.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hospes_protocol::copy::archive::{Fault, Record};
use hospes_protocol::error::{ErrorKind, WireError};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat, fstat, openat, seek};
use rustix::io::{Errno, pread, read, retry_on_intr};

use super::count::stored;
use super::{FILE, Frames, Reader, Stopped, attributes, size_of};
use crate::fault::system;

/// Files up to this size are read before they are announced: their length is what was read, so that one that grows, and
/// one of /proc or /sys that does not know its length, is nothing special.
const SMALL: usize = 64 * 1024;

/// The most that a file of unknown length (it says zero) may hold.
const UNKNOWN: usize = 16 * 1024 * 1024;

/// Least room in a frame that is worth a read.
const WORTH: usize = 16 * 1024;

/// A stretch of a file that is stored, or is not.
enum Stretch {
    Data(u64),
    Hole(u64),
}

enum Fail {
    Stopped(Stopped),
    Read(Errno),
}

impl From<Stopped> for Fail {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

impl Reader {
    pub(super) fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        at: &CStr,
        name: &[u8],
        follow: OFlags,
        frames: &mut Frames,
    ) -> Result<(), Stopped> {
        let opened = openat(dir, at, FILE | follow, Mode::empty());
        let (fd, stat) = match opened.and_then(|fd| fstat(&fd).map(|stat| (fd, stat))) {
            Ok(opened) => opened,
            Err(errno) => return self.skip(name, &system("Cannot open it", errno), frames),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let error = WireError::new(ErrorKind::FILE_KIND, "It changed into something that is no file");
            return self.skip(name, &error, frames);
        }
        let linked = match self.link_number(&stat) {
            Ok(linked) => linked,
            Err(to) => {
                self.done.links += 1;
                return frames.record(&Record::HardLink { name, to });
            }
        };
        let too_many = self.read_xattrs(fd.as_fd(), &stat);
        let sent = if size_of(&stat) <= SMALL as u64 {
            self.small(&fd, &stat, name, linked, frames)?
        } else {
            self.large(&fd, &stat, name, linked, frames)?
        };
        if let Err(error) = sent {
            self.problems.add(&self.path, error);
        } else if too_many {
            self.note_xattrs(name, frames)?;
        }
        Ok(())
    }

    fn small(
        &mut self,
        fd: &OwnedFd,
        stat: &Stat,
        name: &[u8],
        linked: bool,
        frames: &mut Frames,
    ) -> Result<Result<(), WireError>, Stopped> {
        let expected = usize::try_from(size_of(stat)).unwrap_or(0);
        let buffer = &mut self.scratch;
        buffer.resize(SMALL + 1, 0);
        let mut len = 0;
        let read = loop {
            match retry_on_intr(|| read(fd, &mut buffer[len..])) {
                Ok(0) => break Ok(()),
                Ok(n) => len += n,
                Err(errno) => break Err(system("Cannot read it", errno)),
            }
            if len == expected || len > UNKNOWN {
                break Ok(());
            }
            if len == buffer.len() {
                buffer.resize(2 * len, 0);
            }
        };
        let size = len as u64;
        let attributes = attributes(stat, &self.xattrs);
        frames.record(&Record::File { name, attributes, size, linked, sparse: false })?;
        let unknown = WireError::new(ErrorKind::LIMIT, "It does not say its length and is over 16 MiB");
        if let Err(error) = read.and(if len > UNKNOWN { Err(unknown) } else { Ok(()) }) {
            frames.record(&Record::Broken(Fault::from(&error)))?;
            return Ok(Err(error));
        }
        let mut rest = &self.scratch[..len];
        while !rest.is_empty() {
            let sent = frames.data::<Stopped>(rest.len().min(WORTH), rest.len(), |room| {
                let n = rest.len().min(room.len() - 1);
                room[..n].copy_from_slice(&rest[..n]);
                Ok(n)
            })?;
            rest = &rest[sent..];
        }
        frames.record(&Record::End)?;
        self.sent(size, size);
        Ok(Ok(()))
    }

    fn large(
        &mut self,
        fd: &OwnedFd,
        stat: &Stat,
        name: &[u8],
        linked: bool,
        frames: &mut Frames,
    ) -> Result<Result<(), WireError>, Stopped> {
        let size = size_of(stat);
        let sparse = stored(stat) < size;
        let attributes = attributes(stat, &self.xattrs);
        frames.record(&Record::File { name, attributes, size, linked, sparse })?;
        let mut offset = 0;
        while offset < size {
            let stretch = if sparse { next_stretch(fd, offset, size) } else { Stretch::Data(size) };
            let moved = match stretch {
                Stretch::Hole(to) => {
                    frames.record(&Record::Hole(to - offset))?;
                    Ok(to)
                }
                Stretch::Data(to) => self.stretch(fd, offset, to, frames),
            };
            match moved {
                Ok(to) => offset = to,
                Err(Fail::Stopped(stopped)) => return Err(stopped),
                Err(Fail::Read(errno)) => {
                    let error = system("Cannot read it further", errno);
                    frames.record(&Record::Broken(Fault::from(&error)))?;
                    return Ok(Err(error));
                }
            }
            if offset < size && matches!(stretch, Stretch::Data(to) if to != offset) {
                let error = WireError::new(
                    ErrorKind::OS,
                    format_args!("It shrank from {size} to {offset} bytes while it was read"),
                );
                frames.record(&Record::Broken(Fault::from(&error)))?;
                return Ok(Err(error));
            }
        }
        frames.record(&Record::End)?;
        self.sent(size, 0);
        if let Ok(now) = fstat(fd)
            && (now.st_mtime, now.st_mtime_nsec, now.st_size)
                != (stat.st_mtime, stat.st_mtime_nsec, stat.st_size)
        {
            let error = WireError::new(
                ErrorKind::OS,
                "It changed while it was read; the copy may hold some of both versions",
            );
            frames.record(&Record::Skipped { name, fault: Fault::from(&error) })?;
            return Ok(Err(error));
        }
        Ok(Ok(()))
    }

    /// Sends bytes `from` to `to`, read straight into the frames; gives where the file ended.
    fn stretch(&self, fd: &OwnedFd, from: u64, to: u64, frames: &mut Frames) -> Result<u64, Fail> {
        let mut offset = from;
        while offset < to {
            let left = usize::try_from(to - offset).unwrap_or(usize::MAX);
            let sent = frames.data(left.min(WORTH), left, |room| {
                let room_len = room.len() - 1;
                retry_on_intr(|| pread(fd, &mut room[..room_len], offset)).map_err(Fail::Read)
            })?;
            if sent == 0 {
                break;
            }
            offset += sent as u64;
            self.progress.add(sent as u64);
        }
        Ok(offset)
    }

    fn sent(&mut self, size: u64, fresh: u64) {
        self.done.files += 1;
        self.done.bytes += size;
        self.progress.add(fresh);
    }
}

/// The stretch that begins at `offset`: data where the file system cannot say.
fn next_stretch(fd: &OwnedFd, offset: u64, size: u64) -> Stretch {
    match seek(fd, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => Stretch::Hole(data.min(size)),
        Ok(_) => match seek(fd, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => Stretch::Data(hole.min(size)),
            _ => Stretch::Data(size),
        },
        Err(Errno::NXIO) => Stretch::Hole(size),
        Err(_) => Stretch::Data(size),
    }
}
