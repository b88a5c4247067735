//! A regular file: written without a name, or under a temporary one, and put in place when it is whole.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hospes_protocol::copy::archive::{Attributes, Fault};
use hospes_protocol::error::WireError;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, ftruncate, openat, unlinkat};
use rustix::io::{Errno, pwrite, retry_on_intr};

use super::{Finish, Writer, place, space};
use crate::fault::system;

/// A file under way.
#[derive(Debug)]
pub(super) struct Open {
    /// None once something went wrong: the rest is read and dropped.
    fd: Option<OwnedFd>,
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
    /// Its temporary name, where the file system has no nameless files.
    temporary: Option<Vec<u8>>,
    finish: Finish,
    size: u64,
    offset: u64,
    /// It ends in a hole so far.
    short: bool,
    /// Its number among the files with several names.
    link: Option<usize>,
    path_len: usize,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let _ = unlinkat(&self.dir, temporary, AtFlags::empty());
        }
    }
}

impl Writer {
    pub(super) fn file(
        &mut self,
        name: &[u8],
        attributes: &Attributes<'_>,
        size: u64,
        linked: bool,
        sparse: bool,
    ) -> Result<(), WireError> {
        let (dir, default_acl, name) = self.directory(name)?;
        let path_len = self.push_name(&name);
        let link = linked.then(|| {
            self.links.push(None);
            self.links.len() - 1
        });
        let mut finish = self.finish_of(attributes);
        let wanted = finish.mode.unwrap_or(0o600);
        // Attributes are set through the file's own permissions, not through the descriptor's.
        let first = if finish.xattrs.is_empty() { wanted & 0o777 } else { wanted & 0o777 | 0o200 };
        if first == wanted && self.exact_modes && !default_acl && finish.xattrs.is_empty() {
            finish.mode = None;
        }
        let made = space::check(dir.as_fd(), if sparse { 0 } else { size })
            .and_then(|()| self.create(dir.as_fd(), Mode::from_raw_mode(first)));
        let (fd, temporary) = match made {
            Ok((fd, temporary)) => (Some(fd), temporary),
            Err(error) => {
                self.problems.add(&self.path, error);
                (None, None)
            }
        };
        self.file =
            Some(Open { fd, dir, name, temporary, finish, size, offset: 0, short: false, link, path_len });
        Ok(())
    }

    fn create(&mut self, dir: BorrowedFd<'_>, mode: Mode) -> Result<(OwnedFd, Option<Vec<u8>>), WireError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        #[cfg(target_os = "linux")]
        if self.nameless {
            match openat(dir, c".", flags | OFlags::TMPFILE, mode) {
                Ok(fd) => return Ok((fd, None)),
                // The file system cannot, or the kernel's FUSE cannot.
                Err(Errno::NOTSUP | Errno::ISDIR | Errno::INVAL | Errno::NOENT | Errno::NOSYS) => {
                    self.nameless = false;
                }
                Err(errno) => return Err(system("Cannot make the file", errno)),
            }
        }
        let temporary = place::temporary_name();
        let fd = openat(dir, &temporary[..], flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode)
            .map_err(|errno| system("Cannot make the file", errno))?;
        // Where there are no locks, age alone says whether the name is left over.
        let _ = flock(&fd, FlockOperation::NonBlockingLockExclusive);
        Ok((fd, Some(temporary)))
    }

    pub(super) fn data(&mut self, mut data: &[u8]) {
        let Some(Open { fd: Some(fd), offset, short, .. }) = &mut self.file else { return };
        let mut failure = None;
        while !data.is_empty() {
            match retry_on_intr(|| pwrite(&*fd, data, *offset)) {
                Ok(0) => failure = Some(Errno::NOSPC),
                Ok(n) => {
                    *offset += n as u64;
                    data = &data[n..];
                    continue;
                }
                Err(errno) => failure = Some(errno),
            }
            break;
        }
        *short = false;
        if let Some(errno) = failure {
            self.drop_file(system("Cannot write it", errno));
        }
    }

    pub(super) fn hole(&mut self, len: u64) {
        if let Some(open) = &mut self.file {
            open.offset += len;
            open.short = true;
        }
    }

    pub(super) fn end(&mut self) {
        let Some(mut open) = self.file.take() else { return };
        let path_len = open.path_len;
        match self.put_in_place(&mut open) {
            Ok(false) => (),
            Ok(true) => {
                self.done.files += 1;
                self.done.bytes += open.size;
                if let Some(link) = open.link {
                    self.links[link] = Some(self.path.clone().into());
                }
            }
            Err(error) => self.problems.add(&self.path, error),
        }
        self.path.truncate(path_len);
    }

    /// False where the file had its problem before.
    fn put_in_place(&mut self, open: &mut Open) -> Result<bool, WireError> {
        let Some(fd) = &open.fd else { return Ok(false) };
        if open.short {
            ftruncate(fd, open.size).map_err(|errno| system("Cannot set its length", errno))?;
        }
        self.set(fd.as_fd(), &open.finish)?;
        let placed = match &open.temporary {
            None => place::name(fd, open.dir.as_fd(), &open.name),
            Some(temporary) => place::replace(open.dir.as_fd(), temporary, &open.name),
        };
        placed.map_err(|errno| place::refusal("Cannot put it in place", errno))?;
        open.temporary = None;
        Ok(true)
    }

    pub(super) fn broken(&mut self, fault: Fault<'_>) {
        let Some(open) = self.file.take() else { return };
        if open.fd.is_some() && self.options.report_skipped {
            self.problems.add(&self.path, fault.to_error());
        }
        self.path.truncate(open.path_len);
    }

    fn drop_file(&mut self, error: WireError) {
        if let Some(open) = &mut self.file {
            open.fd = None;
            if let Some(temporary) = open.temporary.take() {
                let _ = unlinkat(&open.dir, temporary, AtFlags::empty());
            }
        }
        self.problems.add(&self.path, error);
    }
}
