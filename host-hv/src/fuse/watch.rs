//! Watches what others do on the host in the directories that a guest knows, for [`replay`](super::replay).
//!
//! Only directories that the guest was told of are watched, since nobody in the guest can watch any other. One thread
//! takes events from the kernel as fast as they come and merges those of one entry; another sends them on, as fast as
//! the guest's helper takes them, and looks at that moment at what is there: so a storm of changes to one file is a few,
//! and what is told last is how it is.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use serde::Serialize;

use super::abi::{self, kind};
use super::node::{Node, Watcher};
use super::replay::{Change, Step};
use super::server::Server;
use super::sys::{self, DirectoryId, Errno, Event, Fanotify, Stream, What};

/// Entries with changes that wait to be told. With more, all that the guest knows is told of as changed.
const WAITING: usize = 100_000;

/// The longest path that is told of: the guest's kernel takes no longer one in a call.
const PATH_LEN: usize = 4095;

/// A path in the guest, from the root of the file system. Names on the host are bytes, and mostly text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum GuestPath {
    /// As it is.
    Text(String),
    /// The bytes of one that is no text, as numbers.
    Bytes(Vec<u8>),
}

impl From<Vec<u8>> for GuestPath {
    fn from(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Self::Bytes(error.into_bytes()), Self::Text)
    }
}

/// A change, as the helper reads it: one JSON object a line.
#[derive(Debug, Serialize)]
pub struct Line {
    /// To be said to the server before acting.
    pub number: u64,
    /// What to do again.
    pub act: &'static str,
    /// To what.
    pub path: GuestPath,
    /// Where to, for a move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<GuestPath>,
    /// The bits of a mode that say what the entry is.
    pub kind: u32,
}

enum Item {
    /// Whatever was merged of this entry.
    Entry(u64, CString, What),
    Moved(Option<(u64, CString)>, Option<(u64, CString)>, bool),
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Where the last item of an entry stands, counted from the first item ever.
    last: HashMap<(u64, CString), u64>,
    first: u64,
    ended: bool,
}

/// A watch of all that one guest knows.
pub struct Watch {
    server: Arc<Server>,
    secret: String,
    fanotify: Fanotify,
    directories: Mutex<HashMap<DirectoryId, Weak<Node>>>,
    queue: Mutex<Queue>,
    more: Condvar,
    full: std::sync::atomic::AtomicBool,
}

impl Watcher for Watch {
    fn directory(&self, node: &Arc<Node>) {
        use std::sync::atomic::Ordering;
        let watched =
            self.server.nodes.directory(node).and_then(|directory| self.fanotify.watch(&*directory));
        match watched {
            Ok(id) => {
                lock(&self.directories).insert(id, Arc::downgrade(node));
            }
            // Gone already, or not to be read.
            Err(Errno::STALE | Errno::NOENT | Errno::ACCESS | Errno::PERM) => {}
            Err(error) => {
                if !self.full.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "A directory cannot be watched; its changes are not told to the guest");
                }
            }
        }
    }
}

impl Watch {
    /// Begins to watch; whoever watched before is told nothing more.
    pub fn begin(server: &Arc<Server>, secret: String) -> Result<Arc<Self>, Errno> {
        let fanotify = Fanotify::new()?;
        let watch = Arc::new(Self {
            server: server.clone(),
            secret: secret.clone(),
            fanotify,
            directories: Mutex::default(),
            queue: Mutex::default(),
            more: Condvar::new(),
            full: std::sync::atomic::AtomicBool::new(false),
        });
        server.replays.begin(secret);
        server.nodes.watch(Some(watch.clone()));
        Ok(watch)
    }

    /// The descriptor on which events come.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fanotify.as_fd()
    }

    /// Ends the watch; [`next`](Self::next) returns nothing from now on.
    pub fn end(&self) {
        self.server.replays.end(&self.secret);
        if !self.server.replays.is_active() {
            self.server.nodes.watch(None);
        }
        lock(&self.queue).ended = true;
        self.more.notify_all();
    }

    /// Takes events from the kernel, waiting for one at least.
    pub fn collect(&self) -> Result<(), Errno> {
        let events = self.fanotify.read()?;
        let mut queue = lock(&self.queue);
        for event in events {
            match event {
                Event::Entry(id, name, what) => {
                    if let Some(parent) = self.node(&id) {
                        queue.add(parent, name, what);
                    }
                }
                Event::Moved(from, to, directory) => {
                    let known = |place: Option<(DirectoryId, CString)>| {
                        place.and_then(|(id, name)| Some((self.node(&id)?, name)))
                    };
                    queue.add_move(known(from), known(to), directory);
                }
                Event::Overflow => self.all_changed(&mut queue),
            }
        }
        if queue.items.len() > WAITING {
            self.all_changed(&mut queue);
        }
        drop(queue);
        self.more.notify_all();
        Ok(())
    }

    fn node(&self, id: &DirectoryId) -> Option<u64> {
        let node = lock(&self.directories).get(id)?.upgrade()?;
        (!node.share.is_gone()).then_some(node.id)
    }

    /// Events were lost: every entry that the guest knows by name is looked at, and told of as it is.
    fn all_changed(&self, queue: &mut Queue) {
        tracing::warn!("More changed on the host than could be followed; telling the guest of all it knows");
        queue.clear();
        for (parent, name) in self.server.nodes.known_names() {
            let what = What { changed: true, ..What::default() };
            queue.add(parent, name, What { removed: true, ..what });
        }
        let watched: Vec<_> = lock(&self.directories).values().filter_map(Weak::upgrade).collect();
        for node in watched {
            // What cannot be listed now is gone, and told of as such by its parent.
            let _ = self.unknown_entries(&node, queue);
        }
    }

    /// What the guest cannot know of a directory it knows.
    fn unknown_entries(&self, node: &Arc<Node>, queue: &mut Queue) -> Result<(), Errno> {
        let directory = sys::open_directory(&*self.server.nodes.directory(node)?, c".")?;
        let (mut stream, mut offset) = (Stream::default(), 0);
        while stream.peek(&directory, offset)?.is_some() {
            let Some(entry) = stream.take() else { break };
            offset = entry.next;
            let dots = matches!(entry.name.to_bytes(), b"." | b"..");
            if !dots && self.server.nodes.named(node.id, &entry.name).is_none() {
                queue.add(node.id, entry.name, What { made: true, ..What::default() });
            }
        }
        Ok(())
    }

    /// The next change for the helper, waiting for one; nothing once the watch has ended.
    pub fn next(&self, ready: &mut VecDeque<(Change, u32)>) -> Option<Line> {
        loop {
            while let Some((change, bits)) = ready.pop_front() {
                let Some((path, to)) = self.paths(&change) else { continue };
                let act = match change.step {
                    Step::Made => "make",
                    Step::Changed => "change",
                    Step::Attributes => "touch",
                    Step::Removed => "remove",
                    Step::Moved { .. } => "move",
                };
                let number = self.server.replays.push(&self.secret, change)?;
                return Some(Line { number, act, path, to, kind: bits });
            }
            let item = {
                let mut queue = lock(&self.queue);
                loop {
                    if queue.ended {
                        return None;
                    }
                    match queue.take() {
                        Some(item) => break item,
                        None => queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            self.steps(item, ready);
        }
    }

    /// What an item comes to, by what is there now.
    fn steps(&self, item: Item, ready: &mut VecDeque<(Change, u32)>) {
        match item {
            Item::Entry(parent, name, what) => self.entry(parent, &name, what, ready),
            Item::Moved(Some((parent, name)), Some((to, new)), directory) => {
                let kind = self.kind(to, &new);
                if kind.is_none() {
                    // It moved on, or went: the rest of the story tells of where it is.
                    let what = What { removed: true, directory, ..What::default() };
                    return self.entry(parent, &name, what, ready);
                }
                // From here on what happens beneath it, or to it, is told by its new name.
                self.seen(to, &new);
                let step = Step::Moved { to, name: new };
                ready.push_back((Change { parent, name, step, directory }, kind.unwrap_or_default()));
            }
            // One of the places is nothing that the guest knows: the entry came from, or went, nowhere.
            Item::Moved(Some((parent, name)), None, directory) => {
                self.entry(parent, &name, What { removed: true, directory, ..What::default() }, ready);
            }
            Item::Moved(None, Some((parent, name)), directory) => {
                self.entry(parent, &name, What { made: true, directory, ..What::default() }, ready);
            }
            Item::Moved(None, None, _) => {}
        }
    }

    fn entry(&self, parent: u64, name: &CString, what: What, ready: &mut VecDeque<(Change, u32)>) {
        let kind = self.kind(parent, name);
        let mut push = |step, kind: u32| {
            let directory = kind == kind::DIRECTORY;
            ready.push_back((Change { parent, name: name.clone(), step, directory }, kind));
        };
        let Some(kind) = kind else {
            if what.removed {
                push(Step::Removed, if what.directory { kind::DIRECTORY } else { kind::FILE });
            }
            return;
        };
        // It is there: if it went as well, that was before it came again.
        if what.made {
            if what.removed {
                push(Step::Removed, kind);
            }
            push(Step::Made, kind);
        }
        if what.changed && kind == kind::FILE {
            push(Step::Changed, kind);
        } else if what.attributes {
            push(Step::Attributes, kind);
        }
    }

    fn kind(&self, parent: u64, name: &CString) -> Option<u32> {
        let parent = self.server.nodes.get(parent).ok()?;
        let directory = self.server.nodes.directory(&parent).ok()?;
        sys::stat_at(&*directory, name).ok().map(|meta| meta.mode & kind::MASK)
    }

    fn seen(&self, parent: u64, name: &CString) {
        if let Ok(parent) = self.server.nodes.get(parent)
            && let Ok(directory) = self.server.nodes.directory(&parent)
        {
            self.server.seen(&parent, &directory, name);
        }
    }

    fn paths(&self, change: &Change) -> Option<(GuestPath, Option<GuestPath>)> {
        let path = self.path(change.parent, &change.name)?;
        match &change.step {
            Step::Moved { to, name } => Some((path, Some(self.path(*to, name)?))),
            _ => Some((path, None)),
        }
    }

    /// Where an entry is in the guest; nothing if that is too long to be named, or nowhere any more.
    fn path(&self, parent: u64, name: &CString) -> Option<GuestPath> {
        let mut parts = vec![name.to_bytes().to_vec()];
        let mut length = name.to_bytes().len();
        let mut node = self.server.nodes.get(parent).ok()?;
        while let Some(place) = node.place() {
            length += place.name.to_bytes().len() + 1;
            if length > PATH_LEN || place.parent == abi::ROOT {
                return None;
            }
            parts.push(place.name.to_bytes().to_vec());
            node = self.server.nodes.get(place.parent).ok()?;
        }
        parts.push(node.share.name.clone().into_bytes());
        parts.reverse();
        Some(parts.join(&b'/').into())
    }
}

impl Queue {
    fn add(&mut self, parent: u64, name: CString, what: What) {
        let key = (parent, name);
        if let Some(at) = self.last.get(&key)
            && let Some(at) = at.checked_sub(self.first).and_then(|at| usize::try_from(at).ok())
            && let Some(Item::Entry(_, _, merged)) = self.items.get_mut(at)
        {
            merged.made |= what.made;
            merged.changed |= what.changed;
            merged.attributes |= what.attributes;
            merged.removed |= what.removed;
            merged.directory |= what.directory;
            return;
        }
        self.last.insert(key.clone(), self.first + self.items.len() as u64);
        let (parent, name) = key;
        self.items.push_back(Item::Entry(parent, name, what));
    }

    /// A move stays where it is in the order: what happens to either name later is another item.
    fn add_move(&mut self, from: Option<(u64, CString)>, to: Option<(u64, CString)>, directory: bool) {
        for place in [&from, &to].into_iter().flatten() {
            self.last.remove(place);
        }
        self.items.push_back(Item::Moved(from, to, directory));
    }

    fn take(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        let at = self.first;
        self.first += 1;
        if let Item::Entry(parent, name, _) = &item {
            let key = (*parent, name.clone());
            if self.last.get(&key) == Some(&at) {
                self.last.remove(&key);
            }
        }
        Some(item)
    }

    fn clear(&mut self) {
        self.first += self.items.len() as u64;
        self.items.clear();
        self.last.clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
