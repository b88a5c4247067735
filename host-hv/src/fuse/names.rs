//! Operations on names: looking up, making, moving and removing.

use std::ffi::CStr;
use std::sync::{Arc, PoisonError};

use super::abi::kind;
use super::node::Node;
use super::reply::{Answer, Attributes, Bytes, ENTRY_OUT};
use super::request::Header;
use super::server::{Server, Target, VALID};
use super::share::Share;
use super::sys::{self, Errno, Meta};

/// renameat2(2): the two names change places.
const EXCHANGE: u32 = 2;

impl Server {
    pub(super) fn lookup(&self, parent: u64, name: &CStr) -> Result<Answer, Errno> {
        match self.target(parent)? {
            Target::Root => {
                let share = self.share(name).ok_or(Errno::NOENT)?;
                let mut out = Bytes::with_capacity(ENTRY_OUT);
                self.tell_share(&share, &mut out)?;
                Ok(out.into())
            }
            Target::Node(parent) => {
                let directory = self.nodes.directory(&parent)?;
                let meta = sys::stat_at(&*directory, name)?;
                self.tell(&parent, &meta, name)
            }
        }
    }

    fn share(&self, name: &CStr) -> Option<Arc<Share>> {
        let shares = self.shares.read().unwrap_or_else(PoisonError::into_inner);
        shares.iter().find(|share| share.name.as_bytes() == name.to_bytes()).cloned()
    }

    /// Tells the guest of a share's root, the root of a file system of its own.
    pub(super) fn tell_share(&self, share: &Arc<Share>, out: &mut Bytes) -> Result<(), Errno> {
        self.act(share);
        let meta = sys::stat(&*share.root)?;
        let node = self.nodes.tell(share, &meta, None)?;
        let attributes = Attributes { submount: true, ..Self::attributes(share, &meta) };
        out.entry_out(node.id, &attributes, VALID);
        Ok(())
    }

    /// Tells the guest of a file just seen.
    fn tell(&self, parent: &Node, meta: &Meta, name: &CStr) -> Result<Answer, Errno> {
        let node = self.nodes.tell(&parent.share, meta, Some((parent.id, name)))?;
        let mut out = Bytes::with_capacity(ENTRY_OUT);
        out.entry_out(node.id, &Self::attributes(&parent.share, meta), VALID);
        Ok(out.into())
    }

    /// Makes something and tells the guest of it.
    fn make(
        &self,
        header: &Header,
        name: &CStr,
        mode: u32,
        make: impl FnOnce(&Share, &std::os::fd::OwnedFd) -> Result<(), Errno>,
    ) -> Result<Answer, Errno> {
        let parent = self.writable(header.node)?;
        let directory = self.nodes.directory(&parent)?;
        self.making(&parent.share, header, mode, || make(&parent.share, &directory))?;
        self.tell(&parent, &sys::stat_at(&*directory, name)?, name)
    }

    pub(super) fn make_link(&self, header: &Header, name: &CStr, target: &CStr) -> Result<Answer, Errno> {
        self.make(header, name, 0, |_, directory| sys::make_link(target, directory, name))
    }

    pub(super) fn make_directory(&self, header: &Header, name: &CStr, mode: u32) -> Result<Answer, Errno> {
        self.make(header, name, mode, |share, directory| {
            sys::make_directory(directory, name, Self::permissions(share, mode, true))
        })
    }

    pub(super) fn make_node(
        &self,
        header: &Header,
        name: &CStr,
        mode: u32,
        device: u32,
    ) -> Result<Answer, Errno> {
        match mode & kind::MASK {
            kind::FILE | kind::FIFO | kind::SOCKET => {}
            // overlayfs marks what is not there with such a one; it opens nothing.
            kind::CHARACTER if device == 0 => {}
            // A device node is a door to the host's devices.
            _ => return Err(Errno::PERM),
        }
        self.make(header, name, mode, |share, directory| {
            let bits = mode & kind::MASK | Self::permissions(share, mode, false);
            sys::make_node(directory, name, bits)
        })
    }

    pub(super) fn remove(&self, parent: u64, name: &CStr, is_directory: bool) -> Result<Answer, Errno> {
        let parent = self.writable(parent)?;
        let directory = self.nodes.directory(&parent)?;
        sys::remove(&*directory, name, is_directory)?;
        self.nodes.unnamed(parent.id, name);
        Ok(Answer::done())
    }

    pub(super) fn rename(
        &self,
        parent: u64,
        name: &CStr,
        to: u64,
        to_name: &CStr,
        flags: u32,
    ) -> Result<Answer, Errno> {
        let (parent, to) = (self.writable(parent)?, self.writable(to)?);
        if parent.share.id != to.share.id {
            return Err(Errno::XDEV);
        }
        let (from, into) = (self.nodes.directory(&parent)?, self.nodes.directory(&to)?);
        {
            let _alone = self.renames.write().unwrap_or_else(PoisonError::into_inner);
            sys::rename(&*from, name, &*into, to_name, flags)?;
        }
        self.nodes.renamed((parent.id, name), (to.id, to_name), flags & EXCHANGE != 0);
        self.seen(&to, &into, to_name);
        if flags & EXCHANGE != 0 {
            self.seen(&parent, &from, name);
        }
        Ok(Answer::done())
    }

    /// A file that the guest may know is there now.
    pub(super) fn seen(&self, parent: &Node, directory: &std::os::fd::OwnedFd, name: &CStr) {
        if let Ok(meta) = sys::stat_at(directory, name)
            && let Some(node) = self.nodes.find(&parent.share, meta.identity)
        {
            node.seen_at(parent.id, name);
        }
    }

    pub(super) fn link(&self, old: u64, to: u64, name: &CStr) -> Result<Answer, Errno> {
        let (old, to) = (self.writable(old)?, self.writable(to)?);
        if old.share.id != to.share.id {
            return Err(Errno::XDEV);
        }
        let into = self.nodes.directory(&to)?;
        match (old.place(), old.opened()) {
            (None, Some(file)) => sys::link_descriptor(&*file, &*into, name)?,
            _ => {
                let (from, place) = self.nodes.entry(&old)?;
                let _alone = self.renames.write().unwrap_or_else(PoisonError::into_inner);
                if sys::stat_at(&*from, &place.name)?.identity != old.identity {
                    return Err(Errno::STALE);
                }
                sys::link(&*from, &place.name, &*into, name)?;
            }
        }
        self.tell(&to, &sys::stat_at(&*into, name)?, name)
    }

    pub(super) fn read_link(&self, node: u64) -> Result<Answer, Errno> {
        let node = self.node(node)?;
        let (directory, place) = self.nodes.entry(&node)?;
        let target = sys::read_link(&*directory, &place.name)?;
        Ok(target.into_bytes().into())
    }
}
