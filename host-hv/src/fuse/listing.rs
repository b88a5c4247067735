//! Reading directories, with and without what a lookup of each entry would say.

use std::sync::{Arc, PoisonError};

use super::abi::{self, kind};
use super::node::Node;
use super::reply::{Answer, Bytes, ENTRY_OUT, dirent_bytes};
use super::server::{Server, Target, VALID};
use super::sys::{self, DirEntry, Errno};

/// Where the first share stands in the directory of shares, after the two dots.
const FIRST_SHARE: u64 = 2;

impl Server {
    pub(super) fn open_directory(&self, node: u64) -> Result<Answer, Errno> {
        let mut out = Bytes::with_capacity(16);
        match self.target(node)? {
            Target::Root => out.open_out(0, 0),
            Target::Node(node) => {
                let file = self.open_listing(&node)?;
                out.open_out(self.handles.insert(file, &node)?, 0)
            }
        };
        Ok(out.into())
    }

    fn open_listing(&self, node: &Arc<Node>) -> Result<std::os::fd::OwnedFd, Errno> {
        if node.is_share() {
            return sys::open_directory(&*node.share.root, c".");
        }
        let (directory, place) = self.nodes.entry(node)?;
        let file = sys::open_directory(&*directory, &place.name)?;
        if sys::stat(&file)?.identity == node.identity { Ok(file) } else { Err(Errno::STALE) }
    }

    pub(super) fn list(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        room: usize,
        plus: bool,
    ) -> Result<Answer, Errno> {
        let mut out = Bytes::with_capacity(room.min(64 * 1024));
        let Target::Node(node) = self.target(node)? else {
            self.list_shares(offset, room, plus, &mut out)?;
            return Ok(out.into());
        };
        let handle = self.handles.get(handle)?;
        if !Arc::ptr_eq(&handle.node, &node) {
            return Err(Errno::BADF);
        }
        let mut stream = handle.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut offset = offset;
        while let Some(entry) = stream.peek(&*handle.file, offset)? {
            if out.len() + dirent_bytes(entry.name.to_bytes(), plus) > room {
                break;
            }
            let Some(entry) = stream.take() else { break };
            offset = entry.next;
            if plus {
                self.tell_entry(&node, &handle.file, &entry, &mut out);
            } else {
                out.dirent(entry.inode, entry.next, entry.kind, entry.name.to_bytes());
            }
        }
        Ok(out.into())
    }

    /// An entry with what a lookup would say. One that has gone meanwhile, or cannot be told of, comes without that:
    /// the guest's kernel then looks it up when it needs it.
    fn tell_entry(&self, parent: &Node, directory: &std::os::fd::OwnedFd, entry: &DirEntry, out: &mut Bytes) {
        let name = entry.name.to_bytes();
        let dots = matches!(name, b"." | b"..");
        let seen = if dots { None } else { sys::stat_at(directory, &entry.name).ok() };
        let told = seen.and_then(|meta| {
            let node = self.nodes.tell(&parent.share, &meta, Some((parent.id, &entry.name))).ok()?;
            Some((node, meta))
        });
        let mut inode = entry.inode;
        if let Some((node, meta)) = told {
            inode = meta.identity.inode;
            out.entry_out(node.id, &Self::attributes(&parent.share, &meta), VALID);
        } else {
            out.zeros(ENTRY_OUT);
        }
        out.dirent(inode, entry.next, entry.kind, name);
    }

    fn list_shares(&self, offset: u64, room: usize, plus: bool, out: &mut Bytes) -> Result<(), Errno> {
        for (at, name) in [&b"."[..], b".."].into_iter().enumerate() {
            let at = at as u64;
            if at >= offset && out.len() + dirent_bytes(name, plus) <= room {
                out.zeros(if plus { ENTRY_OUT } else { 0 });
                out.dirent(abi::ROOT, at + 1, kind::DIRECTORY, name);
            }
        }
        // A share's place in the directory is its number, whatever comes and goes before it.
        let shares = self.shares.read().unwrap_or_else(PoisonError::into_inner).clone();
        for share in &shares {
            let next = FIRST_SHARE + u64::from(share.id);
            if next <= offset {
                continue;
            }
            if out.len() + dirent_bytes(share.name.as_bytes(), plus) > room {
                break;
            }
            if plus {
                let mut entry = Bytes::with_capacity(ENTRY_OUT);
                if self.tell_share(share, &mut entry).is_err() {
                    continue;
                }
                out.append(&entry);
            }
            out.dirent(share.identity.inode, next, kind::DIRECTORY, share.name.as_bytes());
        }
        Ok(())
    }
}
