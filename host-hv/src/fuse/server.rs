//! The server: requests in, answers out, on any number of threads.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use super::abi::{self, IN_HEADER, WRITE_IN, init, op};
use super::handle::Handles;
use super::node::{Node, Nodes};
use super::owner::Ids;
use super::replay::Replays;
use super::reply::{Answer, Attributes, Bytes, Room, Validity, copy_out, part};
use super::request::{self, BODY_MAX, Header, Operation};
use super::share::{self, Share, ShareError, ShareSpec};
use super::sys::{self, Errno, Identity, Meta};
use crate::io::IoBuf;

/// How long the guest may believe names and attributes.
pub(super) const VALID: Validity = Validity { seconds: 1, nanos: 0 };

/// The most bytes of one read or write.
pub(super) const MAX_TRANSFER: u32 = 1 << 20;

/// Requests that the guest's kernel lets wait in the background, and when it calls that congestion.
const MAX_BACKGROUND: u16 = 128;
const CONGESTION: u16 = 96;

/// Bytes of a request, without its header and a write's data, that need no allocation.
const SMALL_BODY: usize = 320;

/// Shares at a time.
const MAX_SHARES: usize = 256;

/// What a guest may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files that the guest knows, a few hundred bytes each.
    pub nodes: usize,
    /// Open files and directories, a descriptor each.
    pub handles: usize,
    /// Directories that keep a descriptor besides.
    pub directories: usize,
}

impl Limits {
    /// Nodes by default.
    pub const NODES: usize = 2 << 20;

    /// What a process with so many descriptors can give.
    pub fn within(descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        Self { nodes: Self::NODES, handles: descriptors / 2, directories: (descriptors / 4).min(16384) }
    }
}

/// What the guest's root directory is made of.
pub(super) enum Target {
    /// The directory of all shares.
    Root,
    /// A file of a share.
    Node(Arc<Node>),
}

/// A FUSE server for one guest.
pub struct Server {
    pub(super) nodes: Nodes,
    pub(super) handles: Handles,
    pub(super) shares: RwLock<Vec<Arc<Share>>>,
    /// Held for writing while a name comes to lead elsewhere at the guest's word, and for reading while a file is
    /// looked at and then opened.
    pub(super) renames: RwLock<()>,
    pub(super) replays: Replays,
    last_share: AtomicU32,
    pub(super) privileged: bool,
    started: (i64, u32),
}

impl Server {
    /// One with no shares.
    pub fn new(limits: Limits) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            nodes: Nodes::new(limits.nodes, limits.directories),
            handles: Handles::new(limits.handles),
            shares: RwLock::default(),
            renames: RwLock::default(),
            replays: Replays::default(),
            last_share: AtomicU32::new(0),
            privileged: sys::is_privileged(),
            started: (now.as_secs().cast_signed(), now.subsec_nanos()),
        }
    }

    /// Shares a directory from now on.
    pub fn add_share(&self, spec: ShareSpec) -> Result<(), ShareError> {
        let root = share::open_root(&spec.path)?;
        self.add_opened(spec, root)
    }

    /// As [`add_share`](Self::add_share), of a directory that somebody has opened.
    pub fn add_opened(&self, spec: ShareSpec, root: OwnedFd) -> Result<(), ShareError> {
        let share = Share::new(self.last_share.fetch_add(1, Ordering::Relaxed) + 1, spec, root)?;
        let mut shares = self.shares.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = shares.iter().find(|other| other.name == share.name) {
            return Err(ShareError::Taken { name: share.name, path: other.path.clone() });
        }
        if shares.len() >= MAX_SHARES {
            return Err(ShareError::Limit { limit: MAX_SHARES });
        }
        shares.push(Arc::new(share));
        Ok(())
    }

    /// Ends a share: what the guest has open of it fails from now on.
    pub fn remove_share(&self, name: &str) -> Result<ShareSpec, ShareError> {
        let share = {
            let mut shares = self.shares.write().unwrap_or_else(PoisonError::into_inner);
            let Some(at) = shares.iter().position(|share| share.name == name) else {
                return Err(ShareError::unknown(name, shares.iter().map(|share| &*share.name)));
            };
            shares.remove(at)
        };
        share.set_gone();
        self.handles.retain(|handle| handle.node.share.id != share.id);
        self.nodes.release(&share);
        Ok(share.spec())
    }

    /// Lets the guest write to a share, or not.
    pub fn set_read_only(&self, name: &str, read_only: bool) -> Result<(), ShareError> {
        let shares = self.shares.read().unwrap_or_else(PoisonError::into_inner);
        let Some(share) = shares.iter().find(|share| share.name == name) else {
            return Err(ShareError::unknown(name, shares.iter().map(|share| &*share.name)));
        };
        share.set_read_only(read_only);
        Ok(())
    }

    /// What is shared.
    pub fn shares(&self) -> Vec<ShareSpec> {
        let shares = self.shares.read().unwrap_or_else(PoisonError::into_inner);
        shares.iter().map(|share| share.spec()).collect()
    }

    /// Files that the guest knows at present.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Files and directories that the guest has open at present.
    pub fn handles(&self) -> usize {
        self.handles.len()
    }

    /// Forgets the guest: another one begins.
    pub fn reset(&self) {
        self.handles.retain(|_| false);
        self.nodes.clear();
    }

    /// Serves one request; returns the bytes of the answer written.
    pub fn serve(&self, request: &[IoBuf<'_>], reply: &[IoBuf<'_>]) -> usize {
        let mut raw = [0; IN_HEADER];
        if copy_out(request, 0, &mut raw) < IN_HEADER {
            tracing::warn!("The guest's request is too short for a header");
            return 0;
        }
        let header = Header::decode(&raw);
        let room = Room::new(reply);
        let result = self.answer(&header, request, &room);
        room.put(header.unique, result.as_ref().map_err(|error| error.raw_os_error()))
    }

    fn answer(&self, header: &Header, request: &[IoBuf<'_>], room: &Room<'_, '_>) -> Result<Answer, Errno> {
        let present: usize = request.iter().map(IoBuf::len).sum();
        let mut size = present.min(header.len as usize).saturating_sub(IN_HEADER);
        if header.opcode == op::WRITE {
            size = size.min(WRITE_IN);
        }
        if size > BODY_MAX {
            tracing::warn!(opcode = header.opcode, bytes = size, "The guest's request is too long");
            return Err(Errno::INVAL);
        }
        // Nearly every request fits into the first.
        let (mut small, mut large) = ([0; SMALL_BODY], Vec::new());
        let body = if size <= SMALL_BODY {
            &mut small[..size]
        } else {
            large.resize(size, 0);
            &mut large[..]
        };
        copy_out(request, IN_HEADER, body);
        let operation = request::decode(header.opcode, body).map_err(|fault| {
            tracing::warn!(opcode = header.opcode, %fault, "The guest's request is refused");
            match fault {
                request::Malformed::NameLength { .. } => Errno::NAMETOOLONG,
                _ => Errno::INVAL,
            }
        })?;
        if let Some(result) = self.replay(header, &operation) {
            return result;
        }
        let data = |size: u32| part(request, IN_HEADER + WRITE_IN, size as usize);
        self.perform(header, &operation, data, room)
    }

    fn perform<'m>(
        &self,
        header: &Header,
        operation: &Operation<'_>,
        data: impl FnOnce(u32) -> Vec<IoBuf<'m>>,
        room: &Room<'_, '_>,
    ) -> Result<Answer, Errno> {
        let node = header.node;
        match *operation {
            Operation::Lookup { name } => self.lookup(node, name),
            Operation::Forget { count } => {
                self.nodes.forget(node, count);
                Ok(Answer::None)
            }
            Operation::BatchForget { pairs } => {
                let (pairs, _) = pairs.as_chunks::<16>();
                for pair in pairs {
                    let (node, count) = pair.split_at(8);
                    let number = |raw: &[u8]| raw.first_chunk().map_or(0, |raw| u64::from_le_bytes(*raw));
                    self.nodes.forget(number(node), number(count));
                }
                Ok(Answer::None)
            }
            Operation::GetAttr { handle } => self.get_attr(node, handle),
            Operation::StatX { handle } => self.stat_x(node, handle),
            Operation::SetAttr(ref change) => self.set_attr(node, change),
            Operation::ReadLink => self.read_link(node),
            Operation::SymLink { name, target } => self.make_link(header, name, target),
            Operation::MkNod { name, mode, device } => self.make_node(header, name, mode, device),
            Operation::MkDir { name, mode } => self.make_directory(header, name, mode),
            Operation::Unlink { name } => self.remove(node, name, false),
            Operation::RmDir { name } => self.remove(node, name, true),
            Operation::Rename { name, to, to_name, flags } => self.rename(node, name, to, to_name, flags),
            Operation::Link { node: old, name } => self.link(old, node, name),
            Operation::Open { flags, .. } => self.open(node, flags),
            Operation::Create { name, flags, mode, .. } => self.create(header, name, flags, mode),
            Operation::TmpFile { flags, mode } => self.temporary(header, flags, mode),
            Operation::Read { handle, offset, size } => self.read(handle, offset, size, room),
            Operation::Write { handle, offset, size, .. } => {
                if size > MAX_TRANSFER {
                    return Err(Errno::INVAL);
                }
                let pieces = data(size);
                if pieces.iter().map(IoBuf::len).sum::<usize>() < size as usize {
                    return Err(Errno::INVAL);
                }
                self.write(handle, offset, &pieces)
            }
            Operation::StatFs => self.stat_fs(node),
            Operation::Release { handle } | Operation::ReleaseDir { handle } => {
                self.handles.remove(handle);
                Ok(Answer::done())
            }
            Operation::Sync { handle, data_only } => self.sync(node, handle, data_only),
            Operation::SetXattr { name, value, flags } => self.set_xattr(node, name, value, flags),
            Operation::GetXattr { name, size } => self.get_xattr(node, name, size),
            Operation::ListXattr { size } => self.list_xattrs(node, size),
            Operation::RemoveXattr { name } => self.remove_xattr(node, name),
            Operation::Init { major, minor, readahead, flags } => self.init(major, minor, readahead, flags),
            Operation::OpenDir => self.open_directory(node),
            Operation::ReadDir { handle, offset, size, plus } => self.list(
                node,
                handle,
                offset,
                room.bytes().saturating_sub(abi::OUT_HEADER).min(size as usize),
                plus,
            ),
            Operation::Allocate { handle, offset, length, mode } => {
                self.allocate(handle, offset, length, mode)
            }
            Operation::Seek { handle, offset, whence } => self.seek(handle, offset, whence),
            Operation::CopyRange { from, from_offset, to, to_offset, length, flags } => {
                if flags != 0 {
                    return Err(Errno::INVAL);
                }
                self.copy_range((from, from_offset), (to, to_offset), length)
            }
            Operation::SyncFs => self.sync_all(node),
            Operation::Destroy => {
                self.reset();
                Ok(Answer::done())
            }
            // Nothing here waits for anything but a disk.
            Operation::Interrupt { .. } => Ok(Answer::None),
            Operation::Unknown => Err(Errno::NOSYS),
        }
    }

    fn init(&self, major: u32, minor: u32, readahead: u32, offered: u64) -> Result<Answer, Errno> {
        let mut out = Bytes::with_capacity(64);
        if major < abi::MAJOR || major == abi::MAJOR && minor < abi::MINOR_MIN {
            tracing::error!(major, minor, "The guest's kernel is too old: it takes Linux 5.4 or newer");
            return Err(Errno::PROTO);
        }
        // A guest with a newer major version asks again with ours.
        if major > abi::MAJOR {
            out.u32(abi::MAJOR).u32(abi::MINOR).zeros(56);
            return Ok(out.into());
        }
        self.reset();
        // Without HANDLE_KILLPRIV_V2 the guest's kernel takes set-id bits away itself when somebody writes to a program: with
        // it the host does, and the guest believes in the old bits for a second.
        // Without READDIRPLUS_AUTO it asks for attributes with every name. They cost one call here, and
        // a request apiece later: whoever lists a directory nearly always looks at what is in it.
        let wanted = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::SUBMOUNTS
            | init::INIT_EXT;
        let flags = offered & wanted;
        if flags & init::SUBMOUNTS == 0 {
            tracing::warn!("The guest's kernel knows no submounts: its shares are one file system to it");
        }
        let low = |flags: u64| u32::try_from(flags & 0xffff_ffff).unwrap_or_default();
        out.u32(abi::MAJOR).u32(minor.min(abi::MINOR)).u32(readahead).u32(low(flags));
        out.u16(MAX_BACKGROUND).u16(CONGESTION).u32(MAX_TRANSFER).u32(1);
        out.u16(u16::try_from(MAX_TRANSFER / 4096).unwrap_or(u16::MAX))
            .u16(0)
            .u32(low(flags >> 32))
            .zeros(28);
        tracing::info!(minor, "The guest has mounted its shares");
        Ok(out.into())
    }

    /// What a number stands for, with this thread acting as whom it takes.
    pub(super) fn target(&self, id: u64) -> Result<Target, Errno> {
        if id == abi::ROOT {
            return Ok(Target::Root);
        }
        self.node(id).map(Target::Node)
    }

    /// A share's file, with this thread acting as whom it takes.
    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        if id == abi::ROOT {
            // The directory of shares is not the guest's to change.
            return Err(Errno::ROFS);
        }
        let node = self.nodes.get(id)?;
        self.act(&node.share);
        Ok(node)
    }

    /// As [`node`](Self::node), to change something.
    pub(super) fn writable(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let node = self.node(id)?;
        if node.share.is_read_only() { Err(Errno::ROFS) } else { Ok(node) }
    }

    pub(super) fn act(&self, share: &Share) {
        if self.privileged {
            sys::act_as(share.actor);
        }
    }

    /// Makes something that belongs to whom it should.
    pub(super) fn making<T>(&self, share: &Share, header: &Header, mode: u32, make: impl FnOnce() -> T) -> T {
        let ids = Ids { uid: header.uid, gid: header.gid };
        // What root makes is root's without a word, unless it has bits that a thread like this one may not set.
        let plain = ids == share.actor && mode & abi::SET_IDS == 0;
        if self.privileged && share.owner == super::Owner::Raw && !plain {
            sys::with_ids(ids, make)
        } else {
            make()
        }
    }

    /// The permissions that a new file, or a changed one, may have.
    pub(super) fn permissions(share: &Share, mode: u32, is_directory: bool) -> u32 {
        let keeps = share.owner.keeps_set_ids() || is_directory;
        if keeps { mode & 0o7777 } else { mode & 0o7777 & !abi::SET_IDS }
    }

    pub(super) fn attributes<'a>(share: &Share, meta: &'a Meta) -> Attributes<'a> {
        Attributes { meta, ids: share.owner.seen(meta.ids, share.host), submount: meta.mount_root }
    }

    /// The directory of shares, as a file.
    pub(super) fn root_meta(&self) -> Meta {
        Meta {
            identity: Identity { device: 0, inode: abi::ROOT, born: self.started },
            mode: abi::kind::DIRECTORY | 0o555,
            links: 2,
            ids: Ids { uid: 0, gid: 0 },
            device: 0,
            size: 0,
            blocks: 0,
            block_size: 4096,
            atime: self.started,
            mtime: self.started,
            ctime: self.started,
            mount_root: false,
        }
    }
}
