//! Operations on attributes, plain and extended, and on space.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::abi::{self, kind, open};
use super::node::Node;
use super::owner::{Change, Owner};
use super::reply::{Answer, Attributes, Bytes};
use super::request::{SetAttr, Time};
use super::server::{Server, Target, VALID};
use super::share::Share;
use super::sys::{self, Errno, Meta, Place, Space};

/// Bytes of `fuse_attr_out`.
const ATTR_OUT: usize = 104;
/// Bytes of `fuse_statx_out`.
const STATX_OUT: usize = 288;

impl Server {
    pub(super) fn get_attr(&self, node: u64, handle: Option<u64>) -> Result<Answer, Errno> {
        let mut out = Bytes::with_capacity(ATTR_OUT);
        self.look(node, handle, |attributes| {
            out.attr_out(attributes, VALID);
        })?;
        Ok(out.into())
    }

    /// As [`get_attr`](Self::get_attr), with the time at which the file was made.
    pub(super) fn stat_x(&self, node: u64, handle: Option<u64>) -> Result<Answer, Errno> {
        let mut out = Bytes::with_capacity(STATX_OUT);
        self.look(node, handle, |attributes| {
            out.statx_out(attributes, VALID);
        })?;
        Ok(out.into())
    }

    fn look(&self, node: u64, handle: Option<u64>, see: impl FnOnce(&Attributes<'_>)) -> Result<(), Errno> {
        match self.target(node)? {
            Target::Root => {
                let meta = self.root_meta();
                see(&Attributes { meta: &meta, ids: meta.ids, submount: false });
            }
            Target::Node(node) => {
                let meta = match handle.map(|handle| self.handles.get(handle)) {
                    Some(Ok(handle)) if Arc::ptr_eq(&handle.node, &node) => sys::stat(&*handle.file)?,
                    _ => self.nodes.stat(&node)?,
                };
                see(&Self::attributes(&node.share, &meta));
            }
        }
        Ok(())
    }

    pub(super) fn set_attr(&self, node: u64, change: &SetAttr) -> Result<Answer, Errno> {
        let node = self.writable(node)?;
        let share = &node.share;
        if let Some(size) = change.size {
            self.truncate(&node, change.handle, size)?;
        }
        let held = Held::new(self, &node)?;
        let place = held.place();
        if let Some(mode) = change.mode {
            let bits = Self::permissions(share, mode, node.kind == kind::DIRECTORY);
            // Only who may make set-id files needs the right to keep a set-group-id bit.
            if share.owner.keeps_set_ids() && mode & abi::SET_IDS != 0 {
                self.as_owner_of_all(|| sys::change_mode(place, bits))?;
            } else {
                sys::change_mode(place, bits)?;
            }
        }
        if change.uid.is_some() || change.gid.is_some() {
            let number = |wanted: Option<Change>| match wanted {
                None | Some(Change::None) => Ok(None),
                Some(Change::To(id)) => Ok(Some(id)),
                Some(Change::Refused) => Err(Errno::PERM),
            };
            let uid = number(change.uid.map(|uid| share.owner.change_user(uid, share.host)))?;
            let gid = number(change.gid.map(|gid| share.owner.change_group(gid, share.host)))?;
            if uid.is_some() || gid.is_some() {
                sys::change_owner(place, uid, gid)?;
            }
        }
        if change.atime != Time::Keep || change.mtime != Time::Keep {
            sys::set_times(place, change.atime, change.mtime)?;
        }
        let meta = held.stat(&node)?;
        let mut out = Bytes::with_capacity(ATTR_OUT);
        out.attr_out(&Self::attributes(share, &meta), VALID);
        Ok(out.into())
    }

    fn truncate(&self, node: &Arc<Node>, handle: Option<u64>, size: u64) -> Result<(), Errno> {
        node.version.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        match handle.map(|handle| self.handles.get(handle)) {
            Some(Ok(handle)) if Arc::ptr_eq(&handle.node, node) => sys::truncate(&*handle.file, size),
            _ => {
                let (file, _) = self.open_node(node, open::WRONLY)?;
                sys::truncate(&file, size)
            }
        }
    }

    fn as_owner_of_all<T>(&self, call: impl FnOnce() -> T) -> T {
        if sys::is_privileged() { sys::with_ids(super::Ids { uid: 0, gid: 0 }, call) } else { call() }
    }

    pub(super) fn stat_fs(&self, node: u64) -> Result<Answer, Errno> {
        let space = match self.target(node)? {
            Target::Root => {
                let name_max = u32::try_from(abi::NAME_MAX).unwrap_or(u32::MAX);
                Space { block_size: 4096, fragment_size: 4096, name_max, ..Space::default() }
            }
            Target::Node(node) => match node.kind {
                kind::DIRECTORY => sys::space(&*self.nodes.directory(&node)?)?,
                _ => sys::space(&*self.nodes.entry(&node)?.0)?,
            },
        };
        let mut out = Bytes::with_capacity(80);
        out.statfs_out(&space);
        Ok(out.into())
    }

    pub(super) fn sync_all(&self, node: u64) -> Result<Answer, Errno> {
        if let Target::Node(node) = self.target(node)? {
            sys::sync_all(&*node.share.root)?;
        }
        Ok(Answer::done())
    }

    /// Whether the guest may have this attribute. Those of users, always. A program's capabilities where owners pass
    /// through, and set-id bits with them: elsewhere a guest could make programs that have more rights on the host than it.
    /// The other names mean something to the host's own kernel.
    fn allows(&self, share: &Share, attribute: &[u8]) -> bool {
        attribute.starts_with(b"user.")
            || attribute == b"security.capability" && share.owner == Owner::Raw && self.privileged
    }

    fn allowed(&self, share: &Share, attribute: &CStr) -> Result<(), Errno> {
        if self.allows(share, attribute.to_bytes()) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
    }

    pub(super) fn get_xattr(&self, node: u64, name: &CStr, size: u32) -> Result<Answer, Errno> {
        let Target::Node(node) = self.target(node)? else { return Err(Errno::OPNOTSUPP) };
        self.allowed(&node.share, name)?;
        sized(sys::get_xattr(Held::new(self, &node)?.place(), name)?, size)
    }

    pub(super) fn list_xattrs(&self, node: u64, size: u32) -> Result<Answer, Errno> {
        let Target::Node(node) = self.target(node)? else { return sized(Vec::new(), size) };
        let names = sys::list_xattrs(Held::new(self, &node)?.place())?;
        let allowed = names.split_inclusive(|&byte| byte == 0).filter(|name| {
            let name = name.strip_suffix(b"\0").unwrap_or(name);
            self.allows(&node.share, name)
        });
        sized(allowed.flatten().copied().collect(), size)
    }

    pub(super) fn set_xattr(
        &self,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> Result<Answer, Errno> {
        let node = self.writable(node)?;
        self.allowed(&node.share, name)?;
        sys::set_xattr(Held::new(self, &node)?.place(), name, value, flags)?;
        Ok(Answer::done())
    }

    pub(super) fn remove_xattr(&self, node: u64, name: &CStr) -> Result<Answer, Errno> {
        let node = self.writable(node)?;
        self.allowed(&node.share, name)?;
        sys::remove_xattr(Held::new(self, &node)?.place(), name)?;
        Ok(Answer::done())
    }
}

/// A size of 0 asks how large the value is.
fn sized(value: Vec<u8>, size: u32) -> Result<Answer, Errno> {
    if size == 0 {
        let mut out = Bytes::with_capacity(8);
        out.u32(u32::try_from(value.len()).unwrap_or(u32::MAX)).u32(0);
        return Ok(out.into());
    }
    if value.len() > size as usize { Err(Errno::RANGE) } else { Ok(value.into()) }
}

/// What keeps a node within reach while its attributes change.
enum Held {
    Open(Arc<OwnedFd>),
    At(Arc<OwnedFd>, Arc<super::node::Place>),
    /// A share's root, of which there is a descriptor that only names it.
    Root(Arc<OwnedFd>),
}

impl Held {
    fn new(server: &Server, node: &Arc<Node>) -> Result<Self, Errno> {
        if let Some(file) = node.opened() {
            return Ok(Self::Open(file));
        }
        if node.is_share() {
            return Ok(Self::Root(node.share.root.clone()));
        }
        let (directory, place) = server.nodes.entry(node)?;
        Ok(Self::At(directory, place))
    }

    fn place(&self) -> Place<'_> {
        match self {
            Self::Open(file) => Place::Open(file.as_fd()),
            Self::At(directory, place) => Place::At(directory.as_fd(), &place.name),
            Self::Root(root) => Place::At(root.as_fd(), c"."),
        }
    }

    fn stat(&self, node: &Node) -> Result<Meta, Errno> {
        let meta = match self {
            Self::Open(file) | Self::Root(file) => sys::stat(&**file)?,
            Self::At(directory, place) => sys::stat_at(&**directory, &place.name)?,
        };
        if meta.identity == node.identity { Ok(meta) } else { Err(Errno::STALE) }
    }
}
