//! Nodes: the files that the guest's kernel knows by number.
//!
//! A node is where a file is (its directory's node and its name) and what it is (device, inode, time of birth), and no
//! descriptor: a lookup is one call, and a guest that knows a million files holds none of them open. Before a node's
//! name is used for anything whose outcome the guest takes for this file's, what lies there is compared with what the
//! node is. A name that leads elsewhere by now gives `ESTALE`, upon which the guest's kernel looks the path up again.
//!
//! Directories keep a descriptor while they are in use, as many as the limit allows: the entries beneath are reached
//! through it. Open files are reached through their handles, whatever became of their names.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use super::abi::kind;
use super::share::Share;
use super::sys::{self, Errno, Identity, Meta};

/// Where a file was last seen.
#[derive(Debug)]
pub struct Place {
    /// Its directory.
    pub parent: u64,
    /// Its name there.
    pub name: CString,
}

/// What a file was like when it was opened last: if it still is, what the guest has cached of it holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub(super) size: u64,
    pub(super) mtime: (i64, u32),
    pub(super) ctime: (i64, u32),
}

/// A file that the guest knows.
pub struct Node {
    /// Its number.
    pub id: u64,
    /// Where it belongs.
    pub share: Arc<Share>,
    /// What tells it from other files.
    pub identity: Identity,
    /// Its type, in the bits of a mode.
    pub kind: u32,
    /// Nothing: the share's root, or a file with no name.
    place: Mutex<Option<Arc<Place>>>,
    /// Its open files, by handle.
    open: Mutex<Vec<(u64, Arc<OwnedFd>)>>,
    directory: Mutex<Option<Arc<OwnedFd>>>,
    used: AtomicBool,
    pub(super) version: Mutex<Option<Version>>,
}

impl Node {
    /// It is the root of its share.
    pub fn is_share(&self) -> bool {
        self.identity == self.share.identity && self.place().is_none()
    }

    /// Where it was last seen; nothing for a share's root and for a file with no name.
    pub fn place(&self) -> Option<Arc<Place>> {
        lock(&self.place).clone()
    }

    /// It was seen there.
    pub fn seen_at(&self, parent: u64, name: &CStr) {
        let mut place = lock(&self.place);
        let same = place.as_ref().is_some_and(|place| place.parent == parent && *place.name == *name);
        if !same {
            *place = Some(Arc::new(Place { parent, name: name.to_owned() }));
        }
    }

    /// One of its open files.
    pub fn opened(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.open).last().map(|(_, file)| file.clone())
    }

    /// A handle refers to it from now on.
    pub fn add_open(&self, handle: u64, file: &Arc<OwnedFd>) {
        lock(&self.open).push((handle, file.clone()));
    }

    /// That handle does no more.
    pub fn remove_open(&self, handle: u64) {
        let mut open = lock(&self.open);
        if let Some(at) = open.iter().position(|(id, _)| *id == handle) {
            open.swap_remove(at);
        }
    }
}

struct Slot {
    node: Arc<Node>,
    /// How often the guest was told of it, less how often it forgot.
    lookups: u64,
}

#[derive(Default)]
struct Table {
    slots: HashMap<u64, Slot>,
    by_identity: HashMap<(u32, Identity), u64>,
    /// What the guest knows by which name, while somebody listens for changes.
    names: HashMap<(u64, CString), u64>,
    /// Never reused: a number that the guest made up, or kept for too long, is nobody's.
    last: u64,
}

/// Who wants to hear of directories that the guest comes to know.
pub trait Watcher: Send + Sync {
    /// The guest knows this one now; its descriptor is to be had from the nodes.
    fn directory(&self, node: &Arc<Node>);
}

/// All nodes of a guest.
pub struct Nodes {
    table: Mutex<Table>,
    /// Directories that have a descriptor, the oldest first.
    directories: Mutex<VecDeque<Weak<Node>>>,
    /// Who is told of each directory that the guest comes to know, and wants names to be kept.
    watcher: RwLock<Option<Arc<dyn Watcher>>>,
    invented: AtomicU64,
    limit: usize,
    directory_limit: usize,
}

impl Nodes {
    /// No nodes yet; up to `limit` of them, and up to `directory_limit` descriptors of directories.
    pub fn new(limit: usize, directory_limit: usize) -> Self {
        let table = Table { last: super::abi::ROOT, ..Table::default() };
        Self {
            table: Mutex::new(table),
            directories: Mutex::default(),
            watcher: RwLock::default(),
            invented: AtomicU64::new(0),
            limit,
            directory_limit,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.table).slots.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all, and all that the guest was told.
    pub fn clear(&self) {
        let mut table = lock(&self.table);
        table.slots.clear();
        table.by_identity.clear();
        table.names.clear();
        drop(table);
        lock(&self.directories).clear();
    }

    /// The node of this number, if the guest was told of it and its share is there.
    pub fn get(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let node = lock(&self.table).slots.get(&id).map(|slot| slot.node.clone()).ok_or(Errno::STALE)?;
        if node.share.is_gone() { Err(Errno::STALE) } else { Ok(node) }
    }

    /// The node of a file just seen, of which the guest is now told once more. Nothing as its place: a share's root,
    /// or a file with no name.
    pub fn tell(
        &self,
        share: &Arc<Share>,
        meta: &Meta,
        place: Option<(u64, &CStr)>,
    ) -> Result<Arc<Node>, Errno> {
        self.tell_as(share, meta, place, place)
    }

    /// As [`tell`](Self::tell), of a file that the guest is to know by another name than it has on the host. Nothing as
    /// its place: where it was.
    pub fn tell_as(
        &self,
        share: &Arc<Share>,
        meta: &Meta,
        place: Option<(u64, &CStr)>,
        known_as: Option<(u64, &CStr)>,
    ) -> Result<Arc<Node>, Errno> {
        let (node, new) = self.tell_quietly(share, meta, place)?;
        if let Some(watcher) = &*self.watcher.read().unwrap_or_else(PoisonError::into_inner) {
            if let Some((parent, name)) = known_as {
                let mut table = lock(&self.table);
                if table.names.len() >= self.limit {
                    // Old names of what was renamed again and again. Forgetting some harms nobody's files.
                    table.names.clear();
                }
                table.names.insert((parent, name.to_owned()), node.id);
            }
            if new && node.kind == kind::DIRECTORY {
                watcher.directory(&node);
            }
        }
        Ok(node)
    }

    /// True: the guest did not know it.
    fn tell_quietly(
        &self,
        share: &Arc<Share>,
        meta: &Meta,
        place: Option<(u64, &CStr)>,
    ) -> Result<(Arc<Node>, bool), Errno> {
        let mut table = lock(&self.table);
        let key = (share.id, meta.identity);
        let kind = meta.mode & kind::MASK;
        if let Some(&id) = table.by_identity.get(&key)
            && let Some(slot) = table.slots.get_mut(&id)
            && slot.node.kind == kind
        {
            slot.lookups = slot.lookups.saturating_add(1);
            let node = slot.node.clone();
            drop(table);
            if let Some((parent, name)) = place
                && !node.is_share()
            {
                node.seen_at(parent, name);
            }
            return Ok((node, false));
        }
        if table.slots.len() >= self.limit {
            tracing::warn!(limit = self.limit, "The guest knows as many files as it may, and forgets none");
            return Err(Errno::NFILE);
        }
        table.last += 1;
        let id = table.last;
        let place = place.map(|(parent, name)| Arc::new(Place { parent, name: name.to_owned() }));
        let node = Arc::new(Node {
            id,
            share: share.clone(),
            identity: meta.identity,
            kind,
            place: Mutex::new(place),
            open: Mutex::default(),
            directory: Mutex::default(),
            used: AtomicBool::new(false),
            version: Mutex::default(),
        });
        table.slots.insert(id, Slot { node: node.clone(), lookups: 1 });
        table.by_identity.insert(key, id);
        Ok((node, true))
    }

    /// Tells `watcher` of every directory that the guest knows, and of each that it comes to know; nothing ends that.
    pub fn watch(&self, watcher: Option<Arc<dyn Watcher>>) {
        let Some(new) = watcher else {
            *self.watcher.write().unwrap_or_else(PoisonError::into_inner) = None;
            lock(&self.table).names = HashMap::new();
            return;
        };
        *self.watcher.write().unwrap_or_else(PoisonError::into_inner) = Some(new.clone());
        let known: Vec<_> = lock(&self.table).slots.values().map(|slot| slot.node.clone()).collect();
        for node in known {
            if let Some(place) = node.place() {
                lock(&self.table).names.insert((place.parent, place.name.clone()), node.id);
            }
            if node.kind == kind::DIRECTORY {
                new.directory(&node);
            }
        }
    }

    /// The node that the guest knows by this name, though nothing may be there any more.
    pub fn named(&self, parent: u64, name: &CStr) -> Option<Arc<Node>> {
        let table = lock(&self.table);
        let id = table.names.get(&(parent, name.to_owned()))?;
        table.slots.get(id).map(|slot| slot.node.clone())
    }

    /// What the guest knew by one name it knows by another from now on; with `exchange`, the other way round too.
    pub fn renamed(&self, from: (u64, &CStr), to: (u64, &CStr), exchange: bool) {
        let mut table = lock(&self.table);
        if table.names.is_empty() {
            return;
        }
        let (from, to) = ((from.0, from.1.to_owned()), (to.0, to.1.to_owned()));
        let (moved, replaced) = (table.names.remove(&from), table.names.remove(&to));
        table.names.extend(moved.map(|id| (to, id)));
        table.names.extend(replaced.filter(|_| exchange).map(|id| (from, id)));
    }

    /// The guest knows nothing by this name any more.
    pub fn unnamed(&self, parent: u64, name: &CStr) {
        let mut table = lock(&self.table);
        if !table.names.is_empty() {
            table.names.remove(&(parent, name.to_owned()));
        }
    }

    /// All names by which the guest knows files, while somebody listens.
    pub fn known_names(&self) -> Vec<(u64, CString)> {
        lock(&self.table).names.keys().cloned().collect()
    }

    /// The identity of no file.
    pub fn made_up(&self) -> Identity {
        let inode = u64::MAX - self.invented.fetch_add(1, Ordering::Relaxed);
        Identity { device: u64::MAX, inode, born: (0, 0) }
    }

    /// The node of a file that the guest knows already.
    pub fn find(&self, share: &Share, identity: Identity) -> Option<Arc<Node>> {
        let table = lock(&self.table);
        let id = table.by_identity.get(&(share.id, identity))?;
        table.slots.get(id).map(|slot| slot.node.clone())
    }

    /// The guest forgets it `count` times.
    pub fn forget(&self, id: u64, count: u64) {
        let mut table = lock(&self.table);
        let Some(slot) = table.slots.get_mut(&id) else { return };
        slot.lookups = slot.lookups.saturating_sub(count);
        if slot.lookups > 0 {
            return;
        }
        let Some(slot) = table.slots.remove(&id) else { return };
        let key = (slot.node.share.id, slot.node.identity);
        if table.by_identity.get(&key) == Some(&id) {
            table.by_identity.remove(&key);
        }
        if !table.names.is_empty()
            && let Some(place) = slot.node.place()
        {
            let name = (place.parent, place.name.clone());
            if table.names.get(&name) == Some(&id) {
                table.names.remove(&name);
            }
        }
    }

    /// Lets go of every descriptor of a share that is gone.
    pub fn release(&self, share: &Share) {
        let nodes: Vec<_> = {
            let table = lock(&self.table);
            table
                .slots
                .values()
                .filter(|slot| slot.node.share.id == share.id)
                .map(|slot| slot.node.clone())
                .collect()
        };
        for node in nodes {
            lock(&node.directory).take();
            lock(&node.open).clear();
        }
    }

    /// A descriptor of a directory, through which its entries are reached.
    pub fn directory(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>, Errno> {
        // Upwards to the first that has a descriptor, then down again: as deep as the guest made it, and no recursion.
        let mut missing = Vec::new();
        let mut at = node.clone();
        let mut descriptor = loop {
            if at.kind != kind::DIRECTORY {
                return Err(Errno::NOTDIR);
            }
            if let Some(descriptor) = self.descriptor(&at) {
                break descriptor;
            }
            let place = at.place().ok_or(Errno::STALE)?;
            let parent = self.get(place.parent)?;
            if parent.share.id != at.share.id || missing.len() > self.limit {
                return Err(Errno::STALE);
            }
            missing.push((at, place));
            at = parent;
        };
        while let Some((node, place)) = missing.pop() {
            let opened = sys::open_beneath(&*descriptor, &place.name).map_err(lost)?;
            if sys::stat(&opened)?.identity != node.identity {
                return Err(Errno::STALE);
            }
            descriptor = Arc::new(opened);
            *lock(&node.directory) = Some(descriptor.clone());
            self.keep(&node);
        }
        Ok(descriptor)
    }

    fn descriptor(&self, node: &Arc<Node>) -> Option<Arc<OwnedFd>> {
        if node.is_share() {
            return Some(node.share.root.clone());
        }
        if let Some(descriptor) = &*lock(&node.directory) {
            node.used.store(true, Ordering::Relaxed);
            return Some(descriptor.clone());
        }
        node.opened()
    }

    /// Makes room for one more descriptor: the oldest go, except those used since they were last looked at.
    fn keep(&self, node: &Arc<Node>) {
        let mut directories = lock(&self.directories);
        directories.push_back(Arc::downgrade(node));
        let mut chances = directories.len();
        while directories.len() > self.directory_limit {
            let Some(oldest) = directories.pop_front() else { break };
            let Some(old) = oldest.upgrade() else { continue };
            if chances > 0 && old.used.swap(false, Ordering::Relaxed) {
                chances -= 1;
                directories.push_back(oldest);
            } else {
                lock(&old.directory).take();
            }
        }
    }

    /// Directories that have a descriptor of their own at present.
    pub fn directories(&self) -> usize {
        lock(&self.directories).len()
    }

    /// The descriptor of the directory that a node lies in, and its name there.
    pub fn entry(&self, node: &Node) -> Result<(Arc<OwnedFd>, Arc<Place>), Errno> {
        let place = node.place().ok_or(Errno::STALE)?;
        let parent = self.get(place.parent)?;
        Ok((self.directory(&parent)?, place))
    }

    /// The attributes of a node's file.
    pub fn stat(&self, node: &Arc<Node>) -> Result<Meta, Errno> {
        if let Some(file) = node.opened() {
            return sys::stat(&*file);
        }
        if node.kind == kind::DIRECTORY
            && let Some(descriptor) = self.descriptor(node)
        {
            return sys::stat(&*descriptor);
        }
        let (directory, place) = self.entry(node)?;
        let meta = sys::stat_at(&*directory, &place.name).map_err(lost)?;
        if meta.identity == node.identity { Ok(meta) } else { Err(Errno::STALE) }
    }
}

/// A known file that is not where it was: the guest's kernel is to look again.
fn lost(error: Errno) -> Errno {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Errno::STALE,
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
