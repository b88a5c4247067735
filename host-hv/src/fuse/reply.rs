//! Answers: from what the host's file system said to the bytes that the guest's kernel reads.

use super::abi::{self, OUT_HEADER};
use super::owner::Ids;
use super::sys::{Meta, Space};
use crate::io::IoBuf;

/// The answer to one request, its header apart.
pub enum Answer {
    /// The request has none.
    None,
    /// These bytes.
    Bytes(Bytes),
    /// So many bytes, which lie behind the header already.
    Placed(usize),
}

impl Answer {
    /// An answer that says only that it is done.
    pub fn done() -> Self {
        Self::Placed(0)
    }
}

/// Bytes in the making.
#[derive(Default)]
pub struct Bytes(Vec<u8>);

impl From<Bytes> for Answer {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Answer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(Bytes(bytes))
    }
}

/// How long the guest may believe what it is told.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// Whole seconds.
    pub seconds: u64,
    /// Nanoseconds besides.
    pub nanos: u32,
}

/// A file's attributes, as the guest is to see them.
pub struct Attributes<'a> {
    /// What the host says.
    pub meta: &'a Meta,
    /// Who owns it in the guest.
    pub ids: Ids,
    /// It is the root of a file system of its own.
    pub submount: bool,
}

impl Bytes {
    /// With room for so many.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// So far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None so far.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Appends other bytes.
    pub fn append(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// Appends a number.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends a number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends a number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends zeros.
    pub fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// Appends `fuse_attr`.
    fn attributes(&mut self, of: &Attributes<'_>) -> &mut Self {
        let meta = of.meta;
        self.u64(meta.identity.inode).u64(meta.size).u64(meta.blocks);
        for (seconds, _) in [meta.atime, meta.mtime, meta.ctime] {
            self.u64(seconds.cast_unsigned());
        }
        for (_, nanos) in [meta.atime, meta.mtime, meta.ctime] {
            self.u32(nanos);
        }
        self.u32(meta.mode).u32(meta.links).u32(of.ids.uid).u32(of.ids.gid);
        self.u32(meta.device).u32(meta.block_size);
        self.u32(if of.submount { abi::ATTR_SUBMOUNT } else { 0 })
    }

    /// Appends `fuse_attr_out`.
    pub fn attr_out(&mut self, of: &Attributes<'_>, valid: Validity) -> &mut Self {
        self.u64(valid.seconds).u32(valid.nanos).u32(0).attributes(of)
    }

    /// Appends `fuse_statx_out`.
    pub fn statx_out(&mut self, of: &Attributes<'_>, valid: Validity) -> &mut Self {
        let (meta, born) = (of.meta, of.meta.identity.born);
        let mask = abi::STATX_BASIC | if born == (0, 0) { 0 } else { abi::STATX_BTIME };
        self.u64(valid.seconds).u32(valid.nanos).u32(0).zeros(16);
        self.u32(mask).u32(meta.block_size).u64(0);
        // Nobody has a file of a type beyond 16 bits.
        self.u32(meta.links).u32(of.ids.uid).u32(of.ids.gid).u32(meta.mode & 0xffff);
        self.u64(meta.identity.inode).u64(meta.size).u64(meta.blocks).u64(0);
        for (seconds, nanos) in [meta.atime, born, meta.ctime, meta.mtime] {
            self.u64(seconds.cast_unsigned()).u32(nanos).u32(0);
        }
        let (major, minor) = (meta.device >> 8 & 0xfff, meta.device & 0xff | meta.device >> 12 & 0xf_ff00);
        self.u32(major).u32(minor).zeros(8 + 14 * 8)
    }

    /// Appends `fuse_entry_out`.
    pub fn entry_out(&mut self, node: u64, of: &Attributes<'_>, valid: Validity) -> &mut Self {
        self.u64(node).u64(0).u64(valid.seconds).u64(valid.seconds);
        self.u32(valid.nanos).u32(valid.nanos).attributes(of)
    }

    /// Appends `fuse_open_out`.
    pub fn open_out(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    /// Appends `fuse_dirent` with its name and padding.
    pub fn dirent(&mut self, inode: u64, next: u64, kind: u32, name: &[u8]) -> &mut Self {
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        self.u64(inode).u64(next).u32(length).u32(kind >> 12);
        self.0.extend_from_slice(name);
        self.zeros(name.len().next_multiple_of(8) - name.len())
    }

    /// Appends `fuse_kstatfs`.
    pub fn statfs_out(&mut self, space: &Space) -> &mut Self {
        self.u64(space.blocks).u64(space.free).u64(space.available).u64(space.files).u64(space.free_files);
        self.u32(space.block_size).u32(space.name_max).u32(space.fragment_size).zeros(28)
    }
}

/// Bytes of `fuse_entry_out`.
pub const ENTRY_OUT: usize = 128;
/// Bytes of `fuse_dirent` before the name.
pub const DIRENT: usize = 24;

/// Bytes that a directory entry takes.
pub fn dirent_bytes(name: &[u8], plus: bool) -> usize {
    let entry = if plus { ENTRY_OUT } else { 0 };
    entry + DIRENT + name.len().next_multiple_of(8)
}

/// Room for an answer in the guest's memory.
pub struct Room<'r, 'm> {
    pieces: &'r [IoBuf<'m>],
}

impl<'r, 'm> Room<'r, 'm> {
    /// All of these pieces.
    pub fn new(pieces: &'r [IoBuf<'m>]) -> Self {
        Self { pieces }
    }

    /// Bytes of room, the header's included.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(IoBuf::len).sum()
    }

    /// The pieces behind the header, `limit` bytes of them at most.
    pub fn behind_header(&self, limit: usize) -> Vec<IoBuf<'m>> {
        part(self.pieces, OUT_HEADER, limit)
    }

    /// Writes header and answer; returns the bytes written. An answer that does not fit becomes an I/O error.
    pub fn put(&self, unique: u64, result: Result<&Answer, i32>) -> usize {
        let room = self.bytes();
        if room < OUT_HEADER {
            return 0;
        }
        let (mut error, mut bytes) = match result {
            Ok(Answer::None) => return 0,
            Ok(Answer::Placed(bytes)) => (0, *bytes),
            Ok(Answer::Bytes(bytes)) => (0, bytes.len()),
            Err(errno) => (-errno, 0),
        };
        if bytes > room - OUT_HEADER {
            tracing::warn!(bytes, room, "The guest has too little room for an answer");
            (error, bytes) = (-super::sys::EIO, 0);
        }
        let mut header = [0; OUT_HEADER];
        let total = OUT_HEADER + bytes;
        header[..4].copy_from_slice(&u32::try_from(total).unwrap_or(u32::MAX).to_le_bytes());
        header[4..8].copy_from_slice(&error.to_le_bytes());
        header[8..].copy_from_slice(&unique.to_le_bytes());
        copy_in(self.pieces, 0, &header);
        if let (Ok(Answer::Bytes(payload)), 0) = (result, error) {
            copy_in(self.pieces, OUT_HEADER, payload.as_slice());
        }
        total
    }
}

/// The pieces from byte `skip` on, `limit` bytes of them at most.
pub fn part<'m>(pieces: &[IoBuf<'m>], skip: usize, limit: usize) -> Vec<IoBuf<'m>> {
    let (mut skip, mut left) = (skip, limit);
    let mut out = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (head, tail) = piece.split_at(skip);
        skip -= head.len();
        let (take, _) = tail.split_at(left);
        if !take.is_empty() {
            left -= take.len();
            out.push(take);
        }
    }
    out
}

/// Copies out of the pieces from byte `skip` on; returns the bytes copied.
pub fn copy_out(pieces: &[IoBuf<'_>], skip: usize, to: &mut [u8]) -> usize {
    let (mut skip, mut done) = (skip, 0);
    for piece in pieces {
        let (head, tail) = piece.split_at(skip);
        skip -= head.len();
        done += tail.copy_to(&mut to[done..]);
        if done == to.len() {
            break;
        }
    }
    done
}

/// Copies into the pieces from byte `skip` on.
fn copy_in(pieces: &[IoBuf<'_>], skip: usize, from: &[u8]) {
    let (mut skip, mut done) = (skip, 0);
    for piece in pieces {
        let (head, tail) = piece.split_at(skip);
        skip -= head.len();
        done += tail.copy_from(&from[done..]);
        if done == from.len() {
            break;
        }
    }
}
