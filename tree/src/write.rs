//! Writing: the records of an archive become directories and files.
//!
//! The archive and the directories are both taken for hostile. Each step is one name relative to an open directory, no
//! symbolic link is followed below the target, and a file appears under its name only when it is whole. A small file
//! costs `openat`, `pwrite64`, `utimensat`, `linkat` and `close`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hospes_protocol::copy::Done;
use hospes_protocol::copy::archive::{Attributes, Decoder, Record};
use hospes_protocol::error::{ErrorKind, WireError};
use rustix::fs::{AtFlags, FileType, Mode, RawMode, fchmod, fstat, futimens, mkdirat, openat, statat};
use rustix::io::Errno;

use crate::directory::{DIRECTORY, Stack};
use crate::fault::{Problems, Summary, system};
use crate::progress::Progress;
use crate::xattr;

mod file;
mod link;
mod mask;
mod place;
mod space;
mod target;

use target::Root;
pub use target::Target;

/// Something that takes an archive: a tree's writer, or one of another kind of archive.
pub trait Consume: Send {
    /// What takes the frames apart.
    fn decoder(&mut self) -> &mut Decoder;

    /// Takes one record.
    ///
    /// # Errors
    /// What ends the copy: a target that cannot be written at all, or records that nobody asked for. An entry's failure
    /// is none.
    fn record(&mut self, record: &Record<'_>) -> Result<(), WireError>;

    /// All records have come.
    ///
    /// # Errors
    /// What cannot be brought to its end.
    fn summary(&mut self) -> Result<Summary, WireError>;

    /// Takes one data frame's payload.
    ///
    /// # Errors
    /// As [`record`](Self::record), and a broken archive.
    fn frame(&mut self, payload: &[u8]) -> Result<(), WireError> {
        let mut decoder = std::mem::take(self.decoder());
        let result = decoder
            .records(payload)
            .try_for_each(|record| self.record(&record.map_err(WireError::protocol)?));
        *self.decoder() = decoder;
        result
    }

    /// The archive ended.
    ///
    /// # Errors
    /// As [`summary`](Self::summary), and an archive that ends inside an entry.
    fn finish(&mut self) -> Result<Summary, WireError> {
        self.decoder().end().map_err(WireError::protocol)?;
        self.summary()
    }
}

/// How to write.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Keep set-user-id and set-group-id bits.
    pub special_bits: bool,
    /// An extended attribute that cannot be kept is a problem.
    pub strict: bool,
    /// What the sender skipped is a problem here too (where the sender does not keep its own list).
    pub report_skipped: bool,
}

/// Writes an archive below a target.
#[derive(Debug)]
pub struct Writer {
    decoder: Decoder,
    options: Options,
    progress: Arc<Progress>,
    target: Target,
    root: Option<Root>,
    stack: Stack<Level>,
    /// From the target to the entry at hand.
    path: Vec<u8>,
    /// Directories deep inside one that could not be entered.
    skipping: usize,
    file: Option<file::Open>,
    /// Where the files with several names are, by their numbers; none where one was not put in place.
    links: Vec<Option<Box<[u8]>>>,
    /// Makes new files without a name where the file system can.
    nameless: bool,
    /// The thread's file mode mask is clear: files are made with the mode that they shall have.
    exact_modes: bool,
    expected: Option<u64>,
    done: Done,
    problems: Problems,
}

/// A directory on the way.
#[derive(Debug)]
struct Level {
    /// Bytes of the path that belong to the directory above.
    path_len: usize,
    /// What to set when it is left.
    finish: Finish,
    /// What is made in it gets an access list that overrules modes.
    default_acl: bool,
}

#[derive(Debug, Default)]
struct Finish {
    mode: Option<RawMode>,
    times: Option<(i64, u32)>,
    xattrs: Vec<u8>,
}

impl Writer {
    /// A writer to `target`. Nothing is made before the first record.
    ///
    /// # Errors
    /// A target that cannot be: below something missing, or a file where a directory is needed.
    pub fn new(target: Target, options: Options, progress: Arc<Progress>) -> Result<Self, WireError> {
        target.check()?;
        Ok(Self {
            decoder: Decoder::new(),
            options,
            progress,
            target,
            root: None,
            stack: Stack::new(),
            path: Vec::new(),
            skipping: 0,
            file: None,
            links: Vec::new(),
            nameless: cfg!(target_os = "linux"),
            exact_modes: false,
            expected: None,
            done: Done::default(),
            problems: Problems::default(),
        })
    }

    /// Goes into the target itself.
    fn here(&mut self, attributes: Option<Attributes<'_>>) -> Result<(), WireError> {
        let Root { dir, name, made, .. } = self.root()?;
        if name.is_some() {
            return Err(WireError::protocol(
                "Peer sent a directory's contents where one entry was asked for",
            ));
        }
        let (dir, made) = (Arc::clone(dir), *made);
        if !self.target.admits(b"") {
            return Err(WireError::protocol("Peer sent a directory's contents that were not asked for"));
        }
        // A directory that was there keeps its own mode and times: it was named as a place and not as a copy.
        let finish = attributes.filter(|_| made).map_or_else(Finish::default, |of| self.finish_of(&of));
        let default_acl = xattr::has_default_acl(dir.as_fd());
        if !made {
            place::sweep(&dir);
        }
        self.done.directories += 1;
        self.stack.push(dir, Level { path_len: 0, finish, default_acl })
    }

    fn enter(&mut self, name: &[u8], attributes: Option<Attributes<'_>>) -> Result<(), WireError> {
        let (dir, default_acl, name) = self.directory(name)?;
        let path_len = self.push_name(&name);
        match self.open_directory(dir.as_fd(), &name, attributes.as_ref(), default_acl) {
            Ok((fd, finish, made)) => {
                let default_acl = if made { default_acl } else { xattr::has_default_acl(fd.as_fd()) };
                if made && self.stack.depth() == 0 {
                    self.fresh()?;
                }
                self.done.directories += 1;
                self.stack.push(fd, Level { path_len, finish, default_acl })?;
            }
            Err(error) => {
                self.problems.add(&self.path, error);
                self.path.truncate(path_len);
                self.skipping = 1;
            }
        }
        Ok(())
    }

    /// Makes a directory, or opens the one that is there; true where it was made.
    fn open_directory(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        attributes: Option<&Attributes<'_>>,
        default_acl: bool,
    ) -> Result<(OwnedFd, Finish, bool), WireError> {
        let mut finish = attributes.map_or_else(Finish::default, |of| self.finish_of(of));
        let wanted = finish.mode.unwrap_or(0o755);
        // While it is filled, it is ours to fill.
        let first = wanted & 0o777 | 0o700;
        let made = match mkdirat(dir, name, Mode::from_raw_mode(first)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(system("Cannot make the directory", errno)),
        };
        let fd = openat(dir, name, DIRECTORY, Mode::empty()).map_err(|errno| refusal(dir, name, errno))?;
        if made {
            if first == wanted && self.exact_modes && !default_acl {
                finish.mode = None;
            }
            return Ok((fd, finish, true));
        }
        let stat = fstat(&fd).map_err(|errno| system("Cannot look at the directory", errno))?;
        let me = rustix::process::geteuid();
        if !me.is_root() && stat.st_uid != me.as_raw() {
            // Somebody else's directory: ours to fill perhaps, not to change.
            return Ok((fd, Finish::default(), false));
        }
        let now = stat.st_mode & 0o7777;
        if now & 0o300 != 0o300 && fchmod(&fd, Mode::from_raw_mode(now | 0o700)).is_ok() {
            finish.mode = finish.mode.or(Some(now));
        } else if finish.mode == Some(now) {
            finish.mode = None;
        }
        place::sweep(&fd);
        Ok((fd, finish, false))
    }

    fn leave(&mut self) -> Result<(), WireError> {
        let Some((fd, level)) = self.stack.pop()? else { return Ok(()) };
        if let Err(error) = self.set(fd.as_fd(), &level.finish) {
            self.problems.add(&self.path, error);
        }
        self.path.truncate(level.path_len);
        Ok(())
    }

    /// Gives an open entry its attributes; the mode after what the mode might forbid, the time last.
    fn set(&mut self, fd: BorrowedFd<'_>, finish: &Finish) -> Result<(), WireError> {
        let xattrs = Attributes { xattrs: &finish.xattrs, ..Attributes::default() };
        for (name, value) in xattrs.xattrs() {
            let unkept = match xattr::set(fd, name, value) {
                Some(Ok(())) => continue,
                Some(Err(errno)) => system("Cannot keep an extended attribute", errno),
                None => WireError::new(
                    ErrorKind::UNSUPPORTED,
                    "An extended attribute has no place on this system",
                ),
            };
            if self.options.strict {
                self.problems.add(&self.path, unkept);
            }
        }
        if let Some(mode) = finish.mode {
            fchmod(fd, Mode::from_raw_mode(mode)).map_err(|errno| system("Cannot set its mode", errno))?;
        }
        if let Some(times) = finish.times {
            futimens(fd, &link::times(times)).map_err(|errno| system("Cannot set its time", errno))?;
        }
        Ok(())
    }

    fn finish_of(&self, attributes: &Attributes<'_>) -> Finish {
        Finish {
            mode: Some(self.mode(attributes)),
            times: Some((attributes.seconds, attributes.nanoseconds)),
            xattrs: attributes.xattrs.to_vec(),
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::unnecessary_cast,
        reason = "mode_t is 16 bits on macOS"
    )]
    const fn mode(&self, attributes: &Attributes<'_>) -> RawMode {
        let kept = if self.options.special_bits { 0o7777 } else { 0o1777 };
        (attributes.mode & kept) as RawMode
    }

    /// Does `act` in the directory at hand, under the name that the entry gets there; its failure is a problem.
    fn link(
        &mut self,
        name: &[u8],
        act: impl FnOnce(&mut Self, &Arc<OwnedFd>, &[u8]) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let (dir, _, name) = self.directory(name)?;
        let path_len = self.push_name(&name);
        match act(self, &dir, &name) {
            Err(error) => self.problems.add(&self.path, error),
            Ok(()) => self.done.links += 1,
        }
        self.path.truncate(path_len);
        Ok(())
    }

    /// The directory at hand, whether it overrules modes, and the name that an entry gets there.
    fn directory(&mut self, name: &[u8]) -> Result<(Arc<OwnedFd>, bool, Vec<u8>), WireError> {
        if let Some((dir, level)) = self.stack.top() {
            return Ok((Arc::clone(dir), level.default_acl, name.to_vec()));
        }
        if !self.target.admits(name) {
            return Err(unasked(name));
        }
        let Root { dir, name: renamed, taken, .. } = self.root()?;
        match renamed {
            Some(_) if *taken => {
                Err(WireError::protocol("Peer sent several entries where one was asked for"))
            }
            Some(renamed) => {
                *taken = true;
                Ok((Arc::clone(dir), xattr::has_default_acl(dir.as_fd()), renamed.clone()))
            }
            None => Ok((Arc::clone(dir), xattr::has_default_acl(dir.as_fd()), name.to_vec())),
        }
    }

    fn root(&mut self) -> Result<&mut Root, WireError> {
        if self.root.is_none() {
            self.root = Some(self.target.open()?);
            self.exact_modes = mask::clear();
        }
        self.root.as_mut().ok_or_else(|| WireError::new(ErrorKind::OTHER, "The target is not open"))
    }

    /// Appends a name to the path; gives the length to cut it to afterwards.
    fn push_name(&mut self, name: &[u8]) -> usize {
        let path_len = self.path.len();
        if path_len > 0 && !name.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        path_len
    }
}

impl Consume for Writer {
    fn decoder(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    fn record(&mut self, record: &Record<'_>) -> Result<(), WireError> {
        if self.skipping > 0 {
            match record {
                Record::Enter { .. } => self.skipping += 1,
                Record::Leave => self.skipping -= 1,
                Record::File { linked: true, .. } => self.links.push(None),
                _ => (),
            }
            return Ok(());
        }
        match *record {
            Record::Here(attributes) => self.here(attributes)?,
            Record::Enter { name, attributes } => self.enter(name, attributes)?,
            Record::Leave => return self.leave(),
            Record::File { name, attributes, size, linked, sparse } => {
                self.file(name, &attributes, size, linked, sparse)?;
            }
            Record::Data(data) => {
                self.progress.add(data.len() as u64);
                self.data(data);
                return Ok(());
            }
            Record::Hole(len) => {
                self.hole(len);
                return Ok(());
            }
            Record::End => {
                self.end();
                return Ok(());
            }
            Record::Broken(fault) => {
                self.broken(fault);
                return Ok(());
            }
            Record::Symlink { name, attributes, target } => {
                self.link(name, |writer, dir, name| writer.symlink(dir, name, &attributes, target))?;
            }
            Record::HardLink { name, to } => {
                self.link(name, |writer, dir, name| writer.hard_link(dir, name, to))?;
            }
            Record::Fifo { name, attributes } => {
                self.link(name, |writer, dir, name| writer.fifo(dir, name, &attributes))?;
            }
            Record::Skipped { name, fault } => {
                if self.options.report_skipped {
                    let path_len = self.push_name(name);
                    self.problems.add(&self.path, fault.to_error());
                    self.path.truncate(path_len);
                }
                return Ok(());
            }
            Record::Total { entries, bytes } => {
                self.progress.expect(entries, bytes);
                self.expected = Some(bytes);
                return self.check_total();
            }
        }
        self.progress.entry();
        Ok(())
    }

    fn summary(&mut self) -> Result<Summary, WireError> {
        self.done.problems = self.problems.count();
        Ok(Summary { done: self.done, problems: std::mem::take(&mut self.problems) })
    }
}

/// The refusal of a top name that was not asked for.
#[must_use]
pub fn unasked(name: &[u8]) -> WireError {
    WireError::protocol(format_args!("Peer sent {}, which was not asked for", name.escape_ascii()))
}

/// Why an entry cannot be entered as a directory.
fn refusal(dir: BorrowedFd<'_>, name: &[u8], errno: Errno) -> WireError {
    let kind = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kind {
        Ok(FileType::Symlink) => WireError::new(
            ErrorKind::ESCAPES,
            "A symbolic link is in the directory's place, and following it would leave the target",
        ),
        Ok(FileType::Directory) | Err(_) => system("Cannot open the directory", errno),
        Ok(_) => {
            WireError::new(ErrorKind::FILE_KIND, "Something that is no directory is in the directory's place")
        }
    }
}

#[cfg(test)]
mod tests;
