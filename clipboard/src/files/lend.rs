//! Lends files of this machine: answers a borrower's questions, on a thread of its own, for a file may make its reader
//! wait. What is read is what the user who runs us may read, beneath what was copied, and nothing else: no symbolic link
//! is followed there, whoever puts one in the way.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hospes_protocol::clipboard::files::{
    Ask, Attributes, BYTES_HEAD, Deed, Entries, Entry, FilesError, Lender, Node, NodeKind, Refusal, Root,
    Roots, Shared, check_name, stays,
};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameBuffer, FrameError, FrameId, Header};
use hospes_protocol::limits::{
    CLIPBOARD_ENTRIES, CLIPBOARD_HANDLES, CLIPBOARD_ROOTS, DATA_LEN, HEADER_LEN, LARGE_MESSAGE_LEN,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2, readlinkat, statat,
};
use rustix::io::{Errno, pread};

use super::list::Item;

/// Bytes of a listing's page.
const PAGE: usize = 48 * 1024;
/// Bytes of answers that are sent at once.
const FULL: usize = DATA_LEN as usize;
/// Bytes of the thread's stack.
const STACK: usize = 256 * 1024;

/// Why lending ended before the borrower closed.
#[derive(Debug, thiserror::Error)]
pub enum LendError {
    /// The connection broke.
    #[error("The connection that lends files was lost: {0}")]
    Io(#[from] io::Error),
    /// The peer broke the protocol.
    #[error("The peer broke the protocol: {0}")]
    Protocol(#[from] FilesError),
    /// Its frames are none.
    #[error("The peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
}

/// What was copied, to be lent.
#[derive(Debug, Clone)]
pub struct Lending {
    roots: Roots,
    /// Each root's path; empty where it is none of a file.
    paths: Vec<PathBuf>,
    _counted: Arc<()>,
}

impl Lending {
    /// Of a list; `shared` knows the folders that the peer has too. `counted` is let go of when lending is over.
    ///
    /// # Errors
    /// `LIMIT` where there are too many, `NOT_FOUND` where there are none.
    pub fn new(
        items: Vec<Item>,
        shared: impl Fn(&Path) -> Option<Shared>,
        counted: Arc<()>,
    ) -> Result<Self, WireError> {
        if items.len() > CLIPBOARD_ROOTS {
            let message = format!("{} files were copied, at most {CLIPBOARD_ROOTS} can be", items.len());
            return Err(WireError::new(ErrorKind::LIMIT, message).hint("Copy the folder that they are in"));
        }
        let (mut roots, mut paths) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                Item::Uri(uri) => {
                    roots.push(Root { uri, ..Root::default() });
                    paths.push(PathBuf::new());
                }
                Item::Path(path) => {
                    // What has no name, as `/`, or one that nobody could have, cannot be pasted.
                    let Some(name) = path.file_name().map(|name| name.as_bytes().to_vec()) else { continue };
                    if check_name(&name).is_ok() {
                        roots.push(Root { name, uri: String::new(), shared: shared(&path) });
                        paths.push(path);
                    }
                }
            }
        }
        let roots = Roots { roots };
        let mut out = Vec::new();
        hospes_protocol::codec::encode_into(&roots, &mut out);
        if roots.check().is_err() || out.len() > LARGE_MESSAGE_LEN as usize {
            return Err(WireError::new(ErrorKind::LIMIT, "The names of what was copied are too long in all"));
        }
        if roots.roots.is_empty() {
            return Err(WireError::new(ErrorKind::NOT_FOUND, "No file was copied"));
        }
        Ok(Self { roots, paths, _counted: counted })
    }

    /// Lends them over a connection until that ends, on a thread of its own; `done` is called with how it ended.
    /// `first` is what is to be sent before, `rest` what was read already.
    ///
    /// # Errors
    /// The operating system's.
    pub fn spawn(
        self,
        connection: OwnedFd,
        first: Vec<u8>,
        rest: Vec<u8>,
        done: impl FnOnce(Result<(), LendError>) + Send + 'static,
    ) -> io::Result<()> {
        let builder = std::thread::Builder::new().name("lend".into()).stack_size(STACK);
        builder.spawn(move || done(self.serve(connection, first, &rest))).map(drop)
    }

    /// As [`spawn`](Self::spawn), on this thread.
    ///
    /// # Errors
    /// [`LendError`].
    pub fn serve(self, connection: OwnedFd, mut out: Vec<u8>, rest: &[u8]) -> Result<(), LendError> {
        let flags = OFlag::from_bits_retain(fcntl(&connection, FcntlArg::F_GETFL).map_err(io::Error::from)?);
        fcntl(&connection, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
        let mut stream = File::from(connection);
        let mut machine = Lender::new(&self.roots, &mut out);
        let mut shelf = Shelf { paths: self.paths, ..Shelf::default() };
        let mut input = FrameBuffer::new();
        input.push(rest);
        loop {
            while let Some(frame) = input.take()? {
                if let Some(ask) = machine.receive(frame)? {
                    shelf.answer(&ask, &mut out);
                }
                if out.len() > FULL {
                    stream.write_all(&out)?;
                    out.clear();
                }
            }
            stream.write_all(&out)?;
            out.clear();
            // What one large answer took is not kept while nothing is asked.
            out.shrink_to(FULL);
            match stream.read(input.space()) {
                Ok(0) => return Ok(()),
                Ok(n) => input.filled(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What is open for the borrower.
#[derive(Debug, Default)]
struct Shelf {
    paths: Vec<PathBuf>,
    /// The root that was last asked about.
    root: Option<(u32, OwnedFd)>,
    open: HashMap<u64, Open>,
}

#[derive(Debug)]
enum Open {
    File(OwnedFd),
    /// A directory, how deep beneath its root, and an entry that had no room in the last page.
    Directory(Dir, usize, Option<Entry>),
}

impl Shelf {
    fn answer(&mut self, ask: &Ask, out: &mut Vec<u8>) {
        let id = ask.id;
        let answered = match ask.deed {
            Deed::STAT => self.stat(ask).map(|attributes| node(id, attributes, out)),
            Deed::LIST => self.list(ask).map(|attributes| node(id, attributes, out)),
            Deed::OPEN => self.open(ask).map(|attributes| node(id, attributes, out)),
            Deed::MORE => self.more(ask.handle).map(|entries| {
                frame::put(FrameId::CLIPBOARD_ENTRIES, &Entries { id, entries }, out);
            }),
            Deed::READ => self.read(ask, out),
            Deed::CLOSE => {
                self.open.remove(&ask.handle);
                Ok(())
            }
            _ => Err(ErrorKind::UNSUPPORTED),
        };
        if let Err(kind) = answered {
            frame::put(FrameId::CLIPBOARD_REFUSAL, &Refusal { id, kind }, out);
        }
    }

    /// Opens what lies at the question's path. A root may be a link, which its user copied; beneath it none is followed.
    fn at(&mut self, ask: &Ask, flags: OFlags) -> Result<OwnedFd, ErrorKind> {
        // openat2(2) takes no others with O_PATH.
        let more =
            if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY | OFlags::NONBLOCK };
        let flags = flags | OFlags::CLOEXEC | more;
        let path = self.paths.get(ask.root as usize).ok_or(ErrorKind::NOT_FOUND)?;
        if path.as_os_str().is_empty() {
            return Err(ErrorKind::NOT_FOUND);
        }
        if ask.path.is_empty() {
            return open(path, flags - OFlags::NOFOLLOW, Mode::empty()).map_err(kind);
        }
        if self.root.as_ref().is_none_or(|(root, _)| *root != ask.root) {
            let root = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            self.root = Some((ask.root, root.map_err(kind)?));
        }
        let Some((_, root)) = &self.root else { return Err(ErrorKind::OS) };
        beneath(root.as_fd(), &ask.path, flags).map_err(kind)
    }

    fn stat(&mut self, ask: &Ask) -> Result<Attributes, ErrorKind> {
        let fd = self.at(ask, OFlags::PATH | OFlags::NOFOLLOW)?;
        let stat = fstat(&fd).map_err(kind)?;
        attributes(&stat, depth(&ask.path), || readlinkat(&fd, c"", Vec::new())).ok_or(ErrorKind::NOT_FOUND)
    }

    fn list(&mut self, ask: &Ask) -> Result<Attributes, ErrorKind> {
        let attributes = self.stat(ask)?;
        if attributes.kind != NodeKind::DIRECTORY {
            return Err(ErrorKind::FILE_KIND);
        }
        let fd = self.at(ask, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let deep = if ask.path.is_empty() { 0 } else { depth(&ask.path) + 1 };
        let directory = Dir::new(fd).map_err(kind)?;
        self.keep(ask.handle, Open::Directory(directory, deep, None))?;
        Ok(attributes)
    }

    fn open(&mut self, ask: &Ask) -> Result<Attributes, ErrorKind> {
        // Looked at before: opening a device may do something.
        if self.stat(ask)?.kind != NodeKind::FILE {
            return Err(ErrorKind::FILE_KIND);
        }
        let fd = self.at(ask, OFlags::RDONLY | OFlags::NOFOLLOW)?;
        let stat = fstat(&fd).map_err(kind)?;
        let attributes = attributes(&stat, 0, || Err(Errno::INVAL)).ok_or(ErrorKind::NOT_FOUND)?;
        self.keep(ask.handle, Open::File(fd))?;
        Ok(attributes)
    }

    fn keep(&mut self, handle: u64, open: Open) -> Result<(), ErrorKind> {
        if self.open.len() >= CLIPBOARD_HANDLES && !self.open.contains_key(&handle) {
            return Err(ErrorKind::LIMIT);
        }
        self.open.insert(handle, open);
        Ok(())
    }

    fn more(&mut self, handle: u64) -> Result<Vec<Entry>, ErrorKind> {
        let Some(Open::Directory(directory, deep, left)) = self.open.get_mut(&handle) else {
            return Err(ErrorKind::NOT_FOUND);
        };
        let mut entries: Vec<Entry> = left.take().into_iter().collect();
        let mut bytes = 0;
        while entries.len() < CLIPBOARD_ENTRIES {
            let Some(found) = directory.read() else { break };
            let found = found.map_err(kind)?;
            let name = found.file_name();
            if check_name(name.to_bytes()).is_err() {
                continue;
            }
            let fd = directory.fd().map_err(kind)?;
            // It may be gone by now.
            let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let target = || readlinkat(fd, name, Vec::new());
            let Some(attributes) = attributes(&stat, *deep, target) else { continue };
            let entry = Entry { name: name.to_bytes().to_vec(), attributes };
            bytes += entry.name.len() + entry.attributes.target.len() + 64;
            if bytes > PAGE {
                *left = Some(entry);
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn read(&mut self, ask: &Ask, out: &mut Vec<u8>) -> Result<(), ErrorKind> {
        let Some(Open::File(file)) = self.open.get(&ask.handle) else { return Err(ErrorKind::NOT_FOUND) };
        let start = out.len();
        let from = start + HEADER_LEN + BYTES_HEAD;
        out.resize(from + ask.len as usize, 0);
        let mut have = from;
        while have < out.len() {
            match pread(file, &mut out[have..], ask.offset.saturating_add((have - from) as u64)) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(Errno::INTR) => (),
                Err(error) => {
                    out.truncate(start);
                    return Err(kind(error));
                }
            }
        }
        out.truncate(have);
        let len = u32::try_from(have - start - HEADER_LEN).map_err(|_| ErrorKind::LIMIT)?;
        let header = Header { id: FrameId::CLIPBOARD_BYTES, channel: 0, len };
        out[start..start + HEADER_LEN].copy_from_slice(&header.to_bytes());
        out[start + HEADER_LEN..from].copy_from_slice(&ask.id.to_le_bytes());
        Ok(())
    }
}

fn node(id: u64, attributes: Attributes, out: &mut Vec<u8>) {
    frame::put(FrameId::CLIPBOARD_NODE, &Node { id, attributes }, out);
}

fn depth(path: &[u8]) -> usize {
    path.iter().filter(|byte| **byte == b'/').count()
}

fn beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            // Something on the way was renamed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => (),
            other => return other,
        }
    }
}

/// What can be lent of this: a link only where it stays beneath its root, in a directory so deep there.
fn attributes(
    stat: &Stat,
    deep: usize,
    target: impl FnOnce() -> Result<std::ffi::CString, Errno>,
) -> Option<Attributes> {
    let (kind, target) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => (NodeKind::FILE, Vec::new()),
        FileType::Directory => (NodeKind::DIRECTORY, Vec::new()),
        FileType::Symlink => {
            (NodeKind::LINK, target().ok().filter(|to| stays(to.to_bytes(), deep))?.into_bytes())
        }
        _ => return None,
    };
    Some(Attributes {
        kind,
        executable: stat.st_mode & 0o100 != 0,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: stat.st_mtime,
        modified_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        target,
    })
}

fn kind(errno: Errno) -> ErrorKind {
    match errno {
        // A link in the way is no way.
        Errno::NOENT | Errno::LOOP | Errno::XDEV => ErrorKind::NOT_FOUND,
        Errno::NOTDIR | Errno::ISDIR => ErrorKind::FILE_KIND,
        Errno::ACCESS | Errno::PERM => ErrorKind::PERMISSION,
        Errno::MFILE | Errno::NFILE => ErrorKind::LIMIT,
        _ => ErrorKind::OS,
    }
}
