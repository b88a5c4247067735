//! Operations on open files.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::abi::{self, kind, open};
use super::handle::Handle;
use super::node::{Node, Version};
use super::reply::{Answer, Bytes, ENTRY_OUT, Room};
use super::request::Header;
use super::server::{MAX_TRANSFER, Server, VALID};
use super::sys::{self, Errno, Meta};
use crate::io::IoBuf;

/// Bytes of `fuse_open_out`.
const OPEN_OUT: usize = 16;

/// The most bytes copied within the host for one request, so that no request keeps a thread for minutes.
const MAX_COPY: u64 = 64 << 20;

impl Server {
    pub(super) fn open(&self, node: u64, flags: u32) -> Result<Answer, Errno> {
        let node = self.node(node)?;
        let (file, keep) = self.open_node(&node, flags)?;
        let handle = self.handles.insert(file, &node)?;
        let mut out = Bytes::with_capacity(OPEN_OUT);
        out.open_out(handle, abi::FOPEN_NOFLUSH | if keep { abi::FOPEN_KEEP_CACHE } else { 0 });
        Ok(out.into())
    }

    /// Opens the file that a node is: a regular one, and this one. True: what the guest has cached of it holds.
    pub(super) fn open_node(&self, node: &Arc<Node>, flags: u32) -> Result<(OwnedFd, bool), Errno> {
        let changes = flags & open::ACCMODE != 0 || flags & open::TRUNC != 0;
        if changes && node.share.is_read_only() {
            return Err(Errno::ROFS);
        }
        let (directory, place) = self.nodes.entry(node)?;
        // From the look to the opening the guest cannot put anything else there.
        let _still = self.renames.read().unwrap_or_else(PoisonError::into_inner);
        let meta = sys::stat_at(&*directory, &place.name).map_err(|_| Errno::STALE)?;
        if meta.identity != node.identity {
            return Err(Errno::STALE);
        }
        check_regular(&meta)?;
        let unchanged = note(node, &meta, flags);
        Ok((sys::open_file(&*directory, &place.name, flags)?, unchanged))
    }

    pub(super) fn create(
        &self,
        header: &Header,
        name: &CStr,
        flags: u32,
        mode: u32,
    ) -> Result<Answer, Errno> {
        let parent = self.writable(header.node)?;
        let directory = self.nodes.directory(&parent)?;
        let bits = Self::permissions(&parent.share, mode, false);
        let made = self.making(&parent.share, header, bits, || sys::create(&*directory, name, flags, bits));
        let (file, meta) = match made {
            Ok(file) => {
                let meta = sys::stat(&file)?;
                (file, meta)
            }
            // Somebody else made it first.
            Err(Errno::EXIST) if flags & open::EXCL == 0 => {
                let _still = self.renames.read().unwrap_or_else(PoisonError::into_inner);
                let meta = sys::stat_at(&*directory, name)?;
                check_regular(&meta)?;
                (sys::open_file(&*directory, name, flags)?, meta)
            }
            Err(error) => return Err(error),
        };
        self.tell_open(&parent, Some(name), &meta, file)
    }

    pub(super) fn temporary(&self, header: &Header, flags: u32, mode: u32) -> Result<Answer, Errno> {
        let parent = self.writable(header.node)?;
        let directory = self.nodes.directory(&parent)?;
        let bits = Self::permissions(&parent.share, mode, false);
        let file = self.making(&parent.share, header, bits, || sys::temporary(&*directory, flags, bits))?;
        let meta = sys::stat(&file)?;
        self.tell_open(&parent, None, &meta, file)
    }

    fn tell_open(
        &self,
        parent: &Node,
        name: Option<&CStr>,
        meta: &Meta,
        file: OwnedFd,
    ) -> Result<Answer, Errno> {
        let place = name.map(|name| (parent.id, name));
        let node = self.nodes.tell(&parent.share, meta, place)?;
        let handle = self.handles.insert(file, &node).inspect_err(|_| self.nodes.forget(node.id, 1))?;
        let mut out = Bytes::with_capacity(ENTRY_OUT + OPEN_OUT);
        out.entry_out(node.id, &Self::attributes(&parent.share, meta), VALID);
        out.open_out(handle, abi::FOPEN_NOFLUSH);
        Ok(out.into())
    }

    fn handle(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.handles.get(id)?;
        self.act(&handle.node.share);
        Ok(handle)
    }

    fn writable_handle(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.handle(id)?;
        if handle.node.share.is_read_only() { Err(Errno::ROFS) } else { Ok(handle) }
    }

    pub(super) fn read(
        &self,
        handle: u64,
        offset: u64,
        size: u32,
        room: &Room<'_, '_>,
    ) -> Result<Answer, Errno> {
        let handle = self.handle(handle)?;
        let pieces = room.behind_header(size.min(MAX_TRANSFER) as usize);
        if pieces.is_empty() {
            return Ok(Answer::done());
        }
        sys::read(&*handle.file, &pieces, offset).map(Answer::Placed)
    }

    pub(super) fn write(&self, handle: u64, offset: u64, pieces: &[IoBuf<'_>]) -> Result<Answer, Errno> {
        let handle = self.writable_handle(handle)?;
        let written = if pieces.is_empty() { 0 } else { sys::write(&*handle.file, pieces, offset)? };
        lock(&handle.node.version).take();
        let mut out = Bytes::with_capacity(8);
        out.u32(u32::try_from(written).unwrap_or(u32::MAX)).u32(0);
        Ok(out.into())
    }

    pub(super) fn sync(&self, node: u64, handle: u64, data_only: bool) -> Result<Answer, Errno> {
        if node != abi::ROOT {
            sys::sync(&*self.handle(handle)?.file, data_only)?;
        }
        Ok(Answer::done())
    }

    pub(super) fn allocate(&self, handle: u64, offset: u64, length: u64, mode: u32) -> Result<Answer, Errno> {
        let handle = self.writable_handle(handle)?;
        lock(&handle.node.version).take();
        sys::allocate(&*handle.file, mode, offset, length)?;
        Ok(Answer::done())
    }

    pub(super) fn seek(&self, handle: u64, offset: u64, whence: u32) -> Result<Answer, Errno> {
        let handle = self.handle(handle)?;
        let mut out = Bytes::with_capacity(8);
        out.u64(sys::seek(&*handle.file, offset, whence)?);
        Ok(out.into())
    }

    pub(super) fn copy_range(
        &self,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        length: u64,
    ) -> Result<Answer, Errno> {
        let (from, to) = (self.handle(from)?, self.writable_handle(to)?);
        if from.node.share.id != to.node.share.id {
            return Err(Errno::XDEV);
        }
        lock(&to.node.version).take();
        let length = usize::try_from(length.min(MAX_COPY)).map_err(|_| Errno::INVAL)?;
        let copied = sys::copy_range(&*from.file, from_offset, &*to.file, to_offset, length)?;
        let mut out = Bytes::with_capacity(8);
        out.u32(u32::try_from(copied).unwrap_or(u32::MAX)).u32(0);
        Ok(out.into())
    }
}

fn check_regular(meta: &Meta) -> Result<(), Errno> {
    match meta.mode & kind::MASK {
        kind::FILE => Ok(()),
        kind::DIRECTORY => Err(Errno::ISDIR),
        kind::LINK => Err(Errno::LOOP),
        // The guest's kernel opens these itself and never asks.
        _ => Err(Errno::NXIO),
    }
}

/// Remembers what the file is like as it is opened; true if it was so the last time.
fn note(node: &Node, meta: &Meta, flags: u32) -> bool {
    let now = Version { size: meta.size, mtime: meta.mtime, ctime: meta.ctime };
    // A change within the clock's own grain does not show: what changed just now may change again unseen.
    let age = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
    let settled = age.saturating_sub(meta.ctime.0) > 1 && flags & open::TRUNC == 0;
    let before = std::mem::replace(&mut *lock(&node.version), settled.then_some(now));
    settled && before == Some(now)
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
