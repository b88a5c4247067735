//! What programs have open in the mount.

use std::collections::VecDeque;

use hospes_protocol::clipboard::files::{Ask, Attributes, Deed, Entry, NodeKind};
use nix::errno::Errno;

use super::{Engine, Level, Nodes, Reply, Then, TreeId, Waiting, nothing, refuse};
use crate::files::answer::{Answer, dirent_bytes};

#[derive(Debug)]
pub(super) enum Handle {
    File(File),
    Directory(Directory),
}

/// A file. A small one's bytes come with its opening.
#[derive(Debug)]
pub(super) struct File {
    pub(super) tree: TreeId,
    /// All of it.
    pub(super) head: Option<Box<[u8]>>,
    pub(super) head_comes: bool,
    /// Reads that wait for that.
    pub(super) parked: Vec<Parked>,
}

#[derive(Debug)]
pub(super) struct Parked {
    pub(super) unique: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// A directory. Its entries have places: `.`, `..`, and then what comes from the lender, in the order of its coming.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) tree: TreeId,
    pub(super) root: u32,
    pub(super) node: u64,
    entries: VecDeque<(Vec<u8>, Attributes)>,
    /// The first one's place.
    first: u64,
    /// The lender has no more.
    pub(super) done: bool,
    /// More has been asked for.
    pub(super) asking: bool,
    /// What its entries are is not known: names alone are told.
    pub(super) plain: bool,
    pub(super) parked: Option<Listing>,
}

/// The place behind `.` and `..`.
const FIRST: u64 = 2;

impl Directory {
    pub(super) fn new(tree: TreeId, root: u32, node: u64) -> Self {
        Self {
            tree,
            root,
            node,
            entries: VecDeque::new(),
            first: FIRST,
            done: false,
            asking: false,
            plain: false,
            parked: None,
        }
    }
}

/// A request to list a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listing {
    pub(super) unique: u64,
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) plus: bool,
}

impl Handle {
    pub(super) fn tree(&self) -> TreeId {
        match self {
            Self::File(file) => file.tree,
            Self::Directory(directory) => directory.tree,
        }
    }

    /// Whether the lender knows it too.
    pub(super) fn is_lent(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Directory(directory) => !(directory.plain || directory.tree == 0),
        }
    }

    pub(super) fn each_parked(&mut self, mut each: impl FnMut(u64)) {
        match self {
            Self::File(file) => {
                file.head_comes = false;
                file.parked.drain(..).for_each(|parked| each(parked.unique));
            }
            Self::Directory(directory) => {
                directory.asking = false;
                directory.done = true;
                directory.parked.take().into_iter().for_each(|listing| each(listing.unique));
            }
        }
    }

    /// Takes back a request that waits; whether it did.
    pub(super) fn unpark(&mut self, unique: u64) -> bool {
        match self {
            Self::File(file) => {
                let before = file.parked.len();
                file.parked.retain(|parked| parked.unique != unique);
                file.parked.len() < before
            }
            Self::Directory(directory) => {
                directory.parked.take_if(|listing| listing.unique == unique).is_some()
            }
        }
    }
}

impl File {
    /// These bytes of it, where all of it is here.
    pub(super) fn in_head(&self, offset: u64, size: u32) -> Option<&[u8]> {
        let head = self.head.as_deref()?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(head.len());
        Some(&head[from..head.len().min(from.saturating_add(size as usize))])
    }
}

impl Directory {
    pub(super) fn fill(&mut self, entries: impl Iterator<Item = (Vec<u8>, Attributes)>) {
        self.entries.extend(entries);
    }

    /// Lets go of what lies before a place.
    fn advance(&mut self, place: u64) {
        while self.first < place && self.entries.pop_front().is_some() {
            self.first += 1;
        }
    }
}

impl Engine {
    pub(super) fn list(&mut self, listing: Listing, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let Listing { unique, handle, offset, size, plus } = listing;
        let Some(Handle::Directory(directory)) = self.handles.get_mut(&handle) else {
            return Err(Errno::EBADF);
        };
        let (tree, node) = (directory.tree, directory.node);
        if directory.parked.is_some() {
            return Err(Errno::EBUSY);
        }
        if offset.max(FIRST) < directory.first {
            return self.begin_again(listing);
        }
        if !directory.plain && directory.tree != 0 {
            directory.advance(offset);
        }
        let skipped = offset.saturating_sub(directory.first);
        let here = usize::try_from(skipped).unwrap_or(usize::MAX) < directory.entries.len();
        if !here && !directory.done && offset >= FIRST {
            directory.parked = Some(listing);
            if !std::mem::replace(&mut directory.asking, true) {
                return self.ask_for_more(tree, handle);
            }
            return Ok(());
        }
        let mut answer = Answer::default();
        let (root, first, plain) = (directory.root, directory.first, directory.plain);
        let names = [&b"."[..], b".."].into_iter().zip(0..FIRST).filter(|(_, place)| *place >= offset);
        for (name, place) in names {
            if answer.0.len() + dirent_bytes(name, plus) > size as usize {
                break;
            }
            if plus {
                answer.no_entry_out();
            }
            answer.dirent(node, place + 1, NodeKind::DIRECTORY, name);
        }
        // Taken out, for what is told is entered among the nodes.
        let entries = std::mem::take(&mut directory.entries);
        let level = if directory.tree == 0 { Level::Top } else { Level::Lent };
        for ((name, attributes), place) in entries.iter().zip(first..) {
            if place < offset {
                continue;
            }
            if answer.0.len() + dirent_bytes(name, plus) > size as usize {
                break;
            }
            if level == Level::Lent && !plain && !self.is_good(node, attributes) {
                continue;
            }
            let mut id = place << 32;
            if plus && (plain || level == Level::Top) {
                answer.no_entry_out();
            } else if plus {
                let fresh = Nodes::fresh(tree, root, level, attributes.clone());
                match self.nodes.enter(node, name, fresh) {
                    Some(entered) => {
                        id = entered;
                        answer.entry_out(id, attributes, self.owner);
                    }
                    None => drop(answer.no_entry_out()),
                }
            }
            answer.dirent(id, place + 1, attributes.kind, name);
        }
        if let Some(Handle::Directory(directory)) = self.handles.get_mut(&handle) {
            directory.entries = entries;
        }
        reply(unique, Ok(&answer.0));
        Ok(())
    }

    /// A program looks at a directory from its beginning again.
    fn begin_again(&mut self, listing: Listing) -> Result<(), Errno> {
        let handle = listing.handle;
        let Some(Handle::Directory(directory)) = self.handles.get_mut(&handle) else {
            return Err(Errno::EBADF);
        };
        if directory.asking {
            return Err(Errno::EBUSY);
        }
        let node = directory.node;
        directory.entries.clear();
        directory.first = FIRST;
        directory.done = false;
        directory.asking = true;
        directory.parked = Some(listing);
        let tree = directory.tree;
        self.ask(node, Deed::LIST, handle, 0, Waiting { unique: 0, then: Then::Again })?;
        self.ask_for_more(tree, handle)
    }

    fn ask_for_more(&mut self, tree: TreeId, handle: u64) -> Result<(), Errno> {
        let more = Waiting { unique: 0, then: Then::More { handle } };
        let asked = self.send(tree, Ask { handle, ..nothing(Deed::MORE) }, more);
        if asked.is_err()
            && let Some(Handle::Directory(directory)) = self.handles.get_mut(&handle)
        {
            (directory.asking, directory.parked) = (false, None);
        }
        asked
    }

    /// More of a directory is here; nothing where that was all.
    pub(super) fn entries(&mut self, handle: u64, entries: Vec<Entry>, reply: &mut Reply<'_>) {
        let Some(Handle::Directory(directory)) = self.handles.get_mut(&handle) else { return };
        directory.asking = false;
        directory.done = entries.is_empty();
        directory.fill(entries.into_iter().map(|entry| (entry.name, entry.attributes)));
        if let Some(listing) = directory.parked.take()
            && let Err(errno) = self.list(listing, reply)
        {
            refuse(listing.unique, errno, reply);
        }
    }
}
