//! Reading: directories and files become the records of an archive.
//!
//! A small file costs `openat`, `fstat`, `flistxattr`, `read` and `close`; a symbolic link `readlinkat` and `fstatat`.
//! Links are never followed below the sources: each name is opened relative to its directory's descriptor.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hospes_protocol::copy::Done;
use hospes_protocol::copy::archive::{Attributes, Fault, MODE_BITS, Record};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::limits::{COPY_DEPTH, COPY_LINKS, COPY_NAME};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat, statat};

use crate::directory::{DIRECTORY, Stack};
use crate::exclude::Exclude;
use crate::fault::{Problems, Summary, system};
use crate::frames::{Frames, Stopped};
use crate::progress::Progress;
use crate::xattr;

mod content;
mod count;
mod source;

pub use source::Source;

/// Something that fills frames: a tree's reader, or another maker of archives.
pub trait Produce: Send {
    /// Makes the whole archive and flushes it.
    ///
    /// # Errors
    /// [`Stopped`] where nobody takes it any more.
    fn run(self: Box<Self>, frames: &mut Frames) -> Result<Summary, Stopped>;
}

/// How opening a file never waits (for a FIFO's writer) and never takes a terminal.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Reads sources into an archive.
#[derive(Debug)]
pub struct Reader {
    sources: Vec<(Source, Result<Stat, WireError>)>,
    exclude: Exclude,
    count: bool,
    progress: Arc<Progress>,
    counted: Option<count::Counting>,
    /// Files with several names: their numbers.
    links: HashMap<(u64, u64), u64>,
    stack: Stack<Below>,
    /// From the copy's top to the entry at hand.
    path: Vec<u8>,
    scratch: Vec<u8>,
    xattrs: Vec<u8>,
    /// A device whose file system has no extended attributes.
    plain: Option<u64>,
    done: Done,
    problems: Problems,
}

/// What is still to do in a directory.
#[derive(Debug)]
struct Below {
    directories: Vec<CString>,
    /// Bytes of the path that belong to the directory above.
    path_len: usize,
}

impl Reader {
    /// Looks at the sources. With `count`, a second thread counts them ahead for the receiver's space check and for
    /// progress displays.
    ///
    /// # Errors
    /// The first source's where none can be read at all. One of several is a problem of the copy.
    pub fn new(
        sources: Vec<Source>,
        exclude: Exclude,
        count: bool,
        progress: Arc<Progress>,
    ) -> Result<Self, WireError> {
        let sources: Vec<_> = sources.into_iter().map(|source| source.look()).collect();
        if !sources.iter().any(|(_, stat)| stat.is_ok())
            && let Some((_, Err(error))) = sources.first()
        {
            return Err(error.clone());
        }
        Ok(Self {
            sources,
            exclude,
            count,
            progress,
            counted: None,
            links: HashMap::new(),
            stack: Stack::new(),
            path: Vec::new(),
            scratch: Vec::new(),
            xattrs: Vec::new(),
            plain: None,
            done: Done::default(),
            problems: Problems::default(),
        })
    }

    /// What there will be: from the sources themselves where they are files, else counted on the side.
    fn announce(&mut self, frames: &mut Frames) -> Result<(), Stopped> {
        let found = || self.sources.iter().filter_map(|(_, stat)| stat.as_ref().ok());
        if found().any(|stat| FileType::from_raw_mode(stat.st_mode).is_dir()) {
            if self.count {
                let sources = self.sources.iter().map(|(source, _)| source.clone()).collect();
                self.counted = Some(count::Counting::start(sources, self.exclude.clone()));
            }
            return Ok(());
        }
        let (entries, bytes) = (found().count() as u64, found().map(count::stored).sum());
        self.progress.expect(entries, bytes);
        frames.record(&Record::Total { entries, bytes })
    }

    fn top(&mut self, source: &Source, stat: &Stat, frames: &mut Frames) -> Result<(), Stopped> {
        self.path.clear();
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            self.path.extend_from_slice(source.name());
            let kind = FileType::from_raw_mode(stat.st_mode);
            return self.entry(CWD, source.path(), source.name(), kind, OFlags::empty(), frames);
        }
        let opened = open(source.path(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let name = if source.is_contents() { &[] } else { source.name() };
        self.path.extend_from_slice(name);
        match opened {
            Err(errno) => self.skip(name, &system("Cannot open the directory", errno), frames),
            Ok(fd) => {
                self.enter(fd, stat, name, 0, frames)?;
                self.walk(frames)
            }
        }
    }

    /// Goes through the directories below the one just entered, until it is left.
    fn walk(&mut self, frames: &mut Frames) -> Result<(), Stopped> {
        while let Some((fd, below)) = self.stack.top() {
            let Some(name) = below.directories.pop() else {
                self.leave(frames)?;
                continue;
            };
            let opened = openat(fd, &name, DIRECTORY, Mode::empty());
            let opened = opened.and_then(|fd| fstat(&fd).map(|stat| (fd, stat)));
            let path_len = self.path.len();
            self.push_name(name.to_bytes());
            match opened {
                Ok(_) if self.stack.depth() >= COPY_DEPTH => {
                    let error = WireError::new(
                        ErrorKind::LIMIT,
                        format_args!("More than {COPY_DEPTH} directories deep"),
                    );
                    self.skip(name.to_bytes(), &error, frames)?;
                    self.path.truncate(path_len);
                }
                Ok((fd, stat)) => self.enter(fd, &stat, name.to_bytes(), path_len, frames)?,
                Err(errno) => {
                    self.skip(name.to_bytes(), &system("Cannot open the directory", errno), frames)?;
                    self.path.truncate(path_len);
                }
            }
        }
        Ok(())
    }

    /// Says the directory, sends what is in it that is no directory, and makes it the one at hand.
    fn enter(
        &mut self,
        fd: OwnedFd,
        stat: &Stat,
        name: &[u8],
        path_len: usize,
        frames: &mut Frames,
    ) -> Result<(), Stopped> {
        let too_many = self.read_xattrs(fd.as_fd(), stat);
        let attributes = Some(attributes(stat, &self.xattrs));
        frames.record(&if name.is_empty() {
            Record::Here(attributes)
        } else {
            Record::Enter { name, attributes }
        })?;
        self.done.directories += 1;
        self.progress.entry();
        if too_many {
            self.note_xattrs(&[], frames)?;
        }
        if let Some((entries, bytes)) = self.counted.as_mut().and_then(count::Counting::result) {
            self.progress.expect(entries, bytes);
            frames.record(&Record::Total { entries, bytes })?;
        }
        let directories = self.list(&fd, frames)?;
        if let Err(error) = self.stack.push(fd, Below { directories, path_len }) {
            self.skip(&[], &error, frames)?;
        }
        Ok(())
    }

    fn list(&mut self, fd: &OwnedFd, frames: &mut Frames) -> Result<Vec<CString>, Stopped> {
        let mut directories = Vec::new();
        let mut dir = match Dir::read_from(fd) {
            Ok(dir) => dir,
            Err(errno) => {
                self.skip(&[], &system("Cannot list the directory", errno), frames)?;
                return Ok(directories);
            }
        };
        while let Some(entry) = dir.read() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    self.skip(&[], &system("Cannot list the directory further", errno), frames)?;
                    break;
                }
            };
            let (name, mut kind) = (entry.file_name(), entry.file_type());
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if kind == FileType::Unknown
                && let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)
            {
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            let path_len = self.path.len();
            self.push_name(name.to_bytes());
            if self.exclude.matches(&self.path, kind.is_dir()) {
            } else if kind.is_dir() {
                directories.push(name.to_owned());
            } else {
                self.entry(fd.as_fd(), name, name.to_bytes(), kind, OFlags::NOFOLLOW, frames)?;
            }
            self.path.truncate(path_len);
        }
        // They are taken from the end.
        directories.reverse();
        Ok(directories)
    }

    /// Sends an entry that is no directory.
    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        at: &CStr,
        name: &[u8],
        kind: FileType,
        follow: OFlags,
        frames: &mut Frames,
    ) -> Result<(), Stopped> {
        self.progress.entry();
        let sent = match kind {
            _ if name.len() > COPY_NAME => Err(WireError::new(ErrorKind::LIMIT, "Its name is too long")),
            FileType::RegularFile => return self.file(dir, at, name, follow, frames),
            FileType::Symlink => self.symlink(dir, at, name, frames)?,
            FileType::Fifo => match statat(dir, at, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    self.done.links += 1;
                    Ok(frames.record(&Record::Fifo { name, attributes: attributes(&stat, &[]) })?)
                }
                Err(errno) => Err(system("Cannot look at it", errno)),
            },
            FileType::Socket => Err(WireError::new(ErrorKind::FILE_KIND, "It is a socket")),
            FileType::CharacterDevice | FileType::BlockDevice => {
                Err(WireError::new(ErrorKind::FILE_KIND, "It is a device"))
            }
            _ => Err(WireError::new(ErrorKind::NOT_FOUND, "It went away")),
        };
        sent.or_else(|error| self.skip(name, &error, frames))
    }

    fn symlink(
        &mut self,
        dir: BorrowedFd<'_>,
        at: &CStr,
        name: &[u8],
        frames: &mut Frames,
    ) -> Result<Result<(), WireError>, Stopped> {
        let read = readlinkat(dir, at, std::mem::take(&mut self.scratch));
        let read =
            read.and_then(|target| Ok((statat(dir, at, AtFlags::SYMLINK_NOFOLLOW)?, target.into_bytes())));
        match read {
            Err(errno) => Ok(Err(system("Cannot read the symbolic link", errno))),
            Ok((stat, target)) => {
                self.done.links += 1;
                frames.record(&Record::Symlink {
                    name,
                    attributes: attributes(&stat, &[]),
                    target: &target,
                })?;
                self.scratch = target;
                Ok(Ok(()))
            }
        }
    }

    fn leave(&mut self, frames: &mut Frames) -> Result<(), Stopped> {
        match self.stack.pop() {
            Ok(Some((_, below))) => {
                self.path.truncate(below.path_len);
                frames.record(&Record::Leave)
            }
            Ok(None) => Ok(()),
            Err(error) => {
                // The way back is gone: what is left of this source cannot be reached.
                frames.record(&Record::Leave)?;
                self.skip(&[], &error, frames)?;
                for _ in 0..self.stack.depth() {
                    frames.record(&Record::Leave)?;
                }
                self.stack = Stack::new();
                Ok(())
            }
        }
    }

    /// Says what could not be sent; an empty name stands for the directory at hand.
    fn skip(&mut self, name: &[u8], error: &WireError, frames: &mut Frames) -> Result<(), Stopped> {
        self.problems.add(&self.path, error.clone());
        frames.record(&Record::Skipped { name, fault: Fault::from(error) })
    }

    /// Reads an open entry's extended attributes; true where they were too many.
    fn read_xattrs(&mut self, fd: BorrowedFd<'_>, stat: &Stat) -> bool {
        self.xattrs.clear();
        let (dev, _) = identity(stat);
        if self.plain == Some(dev) {
            return false;
        }
        let found = xattr::read(fd, &mut self.scratch, &mut self.xattrs);
        if found == xattr::Found::Unsupported {
            self.plain = Some(dev);
        }
        found == xattr::Found::TooMany
    }

    fn note_xattrs(&mut self, name: &[u8], frames: &mut Frames) -> Result<(), Stopped> {
        let error =
            WireError::new(ErrorKind::LIMIT, "Its extended attributes are too many; some were left out");
        self.skip(name, &error, frames)
    }

    /// The number of a file with several names: `Ok` the first time, `Err` with the number afterwards.
    fn link_number(&mut self, stat: &Stat) -> Result<bool, u64> {
        let next = self.links.len() as u64;
        if stat.st_nlink <= 1 {
            return Ok(false);
        }
        match self.links.get(&identity(stat)) {
            Some(number) => Err(*number),
            None if next == COPY_LINKS => Ok(false),
            None => {
                self.links.insert(identity(stat), next);
                Ok(true)
            }
        }
    }

    fn push_name(&mut self, name: &[u8]) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }
}

impl Produce for Reader {
    fn run(mut self: Box<Self>, frames: &mut Frames) -> Result<Summary, Stopped> {
        self.announce(frames)?;
        for (source, stat) in std::mem::take(&mut self.sources) {
            match stat {
                Ok(stat) => self.top(&source, &stat, frames)?,
                Err(error) => {
                    self.path = source.name().to_vec();
                    self.skip(source.name(), &error, frames)?;
                }
            }
        }
        frames.flush()?;
        self.done.problems = self.problems.count();
        Ok(Summary { done: self.done, problems: self.problems })
    }
}

#[allow(
    clippy::useless_conversion,
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    reason = "dev_t, ino_t"
)]
fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino.into())
}

#[allow(clippy::useless_conversion, reason = "mode_t differs by platform")]
fn attributes<'a>(stat: &Stat, xattrs: &'a [u8]) -> Attributes<'a> {
    Attributes {
        mode: u32::from(stat.st_mode) & MODE_BITS,
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        xattrs,
    }
}

#[allow(clippy::cast_sign_loss, reason = "off_t, never negative here")]
const fn size_of(stat: &Stat) -> u64 {
    stat.st_size as u64
}
