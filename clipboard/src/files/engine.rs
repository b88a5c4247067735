//! Between the kernel's requests and the lenders' answers: a file system in which nothing is. It does no I/O.
//!
//! Its directory has one directory for each of the things that were copied, by a number, and that thing in it: names
//! that are twice in one copy are no trouble. What is beneath is asked of the lender. A request whose answer is not here
//! yet waits; a program that is ended meanwhile does not, and neither does one whose lender is gone.

use std::collections::{BTreeMap, HashMap, VecDeque};

use hospes_fuse::abi::{self, init, open};
use hospes_fuse::request::{Header, Malformed, Operation};
use hospes_protocol::clipboard::files::{
    Ask, Attributes, Borrower, Deed, FilesError, Lent, NodeKind, READ_MOST, Roots, stays,
};
use hospes_protocol::error::ErrorKind;
use hospes_protocol::frame::Frame;
use nix::errno::Errno;

use self::handle::{Directory, File, Handle, Listing, Parked};
use super::answer::{Answer, Owner};
use super::node::{Level, Nodes};

mod handle;

/// The files of one copy, by the number of their first root.
pub type TreeId = u64;

/// Bytes of a small file that are fetched with its opening, so that it takes one round trip and not two.
const HEAD: u32 = 32 * 1024;

/// An answer to a request: its number, and its bytes or why not.
pub type Reply<'r> = dyn FnMut(u64, Result<&[u8], Errno>) + 'r;

/// The file system.
#[derive(Debug)]
pub struct Engine {
    owner: Owner,
    nodes: Nodes,
    trees: BTreeMap<TreeId, Tree>,
    handles: HashMap<u64, Handle>,
    /// The next number for a handle, and for a root.
    next_handle: u64,
    next_root: u64,
}

#[derive(Debug)]
struct Tree {
    roots: Roots,
    borrower: Borrower,
    /// Questions without an answer, in their order.
    waiting: VecDeque<Waiting>,
    /// What is to be sent.
    out: Vec<u8>,
    /// Files and directories of it that programs have open.
    open: usize,
    /// Requests about it so far.
    used: u64,
}

/// What becomes of an answer.
#[derive(Debug)]
struct Waiting {
    /// The request that waits for it; zero where nobody does, or not any more.
    unique: u64,
    then: Then,
}

#[derive(Debug)]
enum Then {
    Lookup {
        parent: u64,
        root: u32,
        name: Vec<u8>,
    },
    GetAttr {
        node: u64,
    },
    Open {
        handle: u64,
        node: u64,
    },
    OpenDir {
        handle: u64,
    },
    Head {
        handle: u64,
    },
    Read,
    More {
        handle: u64,
    },
    /// The directory is begun anew.
    Again,
}

impl Engine {
    /// A file system in which there is nothing yet, whose files are this user's.
    #[must_use]
    pub fn new(uid: u32, gid: u32) -> Self {
        Self {
            owner: Owner { uid, gid },
            nodes: Nodes::default(),
            trees: BTreeMap::new(),
            handles: HashMap::new(),
            next_handle: 1,
            next_root: 1,
        }
    }

    /// What a lender lends is there from now on.
    pub fn add(&mut self, roots: Roots, borrower: Borrower) -> TreeId {
        let id = self.next_root;
        self.next_root += (roots.roots.len() as u64).max(1);
        let (waiting, out) = (VecDeque::new(), Vec::new());
        self.trees.insert(id, Tree { roots, borrower, waiting, out, open: 0, used: 0 });
        id
    }

    /// What a tree's roots are called in the mount, for those that are files: none for the others.
    #[must_use]
    pub fn names(&self, tree: TreeId) -> Vec<Option<(u64, Vec<u8>)>> {
        let Some(found) = self.trees.get(&tree) else { return Vec::new() };
        let named = |(root, at): (&hospes_protocol::clipboard::files::Root, u64)| {
            (!root.name.is_empty()).then(|| (at, root.name.clone()))
        };
        found.roots.roots.iter().zip(tree..).map(named).collect()
    }

    /// The roots, as their lender named them.
    #[must_use]
    pub fn roots(&self, tree: TreeId) -> Option<&Roots> {
        Some(&self.trees.get(&tree)?.roots)
    }

    /// What is to be sent to a tree's lender.
    pub fn outgoing(&mut self, tree: TreeId) -> Vec<u8> {
        self.trees.get_mut(&tree).map(|tree| std::mem::take(&mut tree.out)).unwrap_or_default()
    }

    /// The trees whose lenders something is to be sent to.
    pub fn ready(&self) -> impl Iterator<Item = TreeId> + '_ {
        self.trees.iter().filter(|(_, tree)| !tree.out.is_empty()).map(|(id, _)| *id)
    }

    /// Requests about a tree so far, where it is there and a program has something of it open or waits for it.
    #[must_use]
    pub fn use_of(&self, tree: TreeId) -> (u64, bool) {
        self.trees
            .get(&tree)
            .map_or((0, false), |tree| (tree.used, tree.open > 0 || !tree.waiting.is_empty()))
    }

    /// A lender is gone, and what it lent.
    pub fn remove(&mut self, tree: TreeId, reply: &mut Reply<'_>) {
        let Some(gone) = self.trees.remove(&tree) else { return };
        for waiting in gone.waiting {
            refuse(waiting.unique, Errno::EIO, reply);
        }
        for handle in self.handles.values_mut() {
            if handle.tree() == tree {
                handle.each_parked(|unique| refuse(unique, Errno::EIO, reply));
            }
        }
    }

    /// The kernel asks.
    pub fn request(
        &mut self,
        header: &Header,
        asked: Result<Operation<'_>, Malformed>,
        reply: &mut Reply<'_>,
    ) {
        let Header { unique, node, .. } = *header;
        let done = match asked {
            Err(_) => Err(Errno::EINVAL),
            Ok(operation) => self.operate(unique, node, &operation, reply),
        };
        if let Err(errno) = done {
            refuse(unique, errno, reply);
        }
    }

    fn operate(
        &mut self,
        unique: u64,
        node: u64,
        operation: &Operation<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let mut answer = Answer::default();
        match *operation {
            Operation::Init { major, minor, readahead, flags } => {
                if major != abi::MAJOR || minor < abi::MINOR_MIN {
                    return Err(Errno::EPROTO);
                }
                let wanted = init::ASYNC_READ | init::DO_READDIRPLUS;
                answer.init_out(minor, readahead, flags & wanted);
            }
            Operation::Lookup { name } => return self.lookup(unique, node, name.to_bytes(), reply),
            Operation::Forget { count } => {
                self.nodes.forget(node, count);
                return Ok(());
            }
            Operation::BatchForget { pairs } => {
                for pair in pairs.chunks_exact(16) {
                    let number = |at: usize| {
                        pair[at..].first_chunk().map_or(0, |raw: &[u8; 8]| u64::from_le_bytes(*raw))
                    };
                    self.nodes.forget(number(0), number(8));
                }
                return Ok(());
            }
            Operation::GetAttr { .. } => {
                let found = self.nodes.get(node).ok_or(Errno::ESTALE)?;
                if found.level == Level::Lent {
                    return self.ask(
                        node,
                        Deed::STAT,
                        0,
                        0,
                        Waiting { unique, then: Then::GetAttr { node } },
                    );
                }
                answer.attr_out(node, &found.attributes, self.owner);
            }
            Operation::ReadLink => {
                let found = self.nodes.get(node).ok_or(Errno::ESTALE)?;
                if found.attributes.kind != NodeKind::LINK {
                    return Err(Errno::EINVAL);
                }
                answer.0.extend_from_slice(&found.attributes.target);
            }
            Operation::Open { flags, .. } => {
                if flags & open::ACCMODE != 0 || flags & open::TRUNC != 0 {
                    return Err(Errno::EROFS);
                }
                return self.open(unique, node);
            }
            Operation::OpenDir => return self.open_directory(unique, node, reply),
            Operation::Read { handle, offset, size } => {
                return self.read(unique, handle, offset, size, reply);
            }
            Operation::ReadDir { handle, offset, size, plus } => {
                return self.list(Listing { unique, handle, offset, size, plus }, reply);
            }
            Operation::Release { handle } | Operation::ReleaseDir { handle } => self.close(handle),
            Operation::StatFs => drop(answer.statfs_out()),
            Operation::Destroy => (),
            Operation::Interrupt { unique } => {
                self.interrupt(unique, reply);
                return Ok(());
            }
            // What a kernel does not get from us it does without from then on; what writes never comes here: the mount
            // is read-only.
            _ => return Err(Errno::ENOSYS),
        }
        reply(unique, Ok(&answer.0));
        Ok(())
    }

    /// Nobody waits for the answer to this request any more: the program was ended.
    fn interrupt(&mut self, unique: u64, reply: &mut Reply<'_>) {
        for tree in self.trees.values_mut() {
            if let Some(waiting) = tree.waiting.iter_mut().find(|waiting| waiting.unique == unique) {
                waiting.unique = 0;
                return refuse(unique, Errno::EINTR, reply);
            }
        }
        for handle in self.handles.values_mut() {
            if handle.unpark(unique) {
                return refuse(unique, Errno::EINTR, reply);
            }
        }
    }

    fn lookup(&mut self, unique: u64, parent: u64, name: &[u8], reply: &mut Reply<'_>) -> Result<(), Errno> {
        let directory = self.nodes.get(parent).ok_or(Errno::ESTALE)?;
        let (tree, root) = (directory.tree, directory.root);
        let then = Then::Lookup { parent, root, name: name.to_vec() };
        match directory.level {
            Level::Mount => {
                let (tree, root) = self.top(name).ok_or(Errno::ENOENT)?;
                let fresh = Nodes::fresh(tree, root, Level::Top, super::answer::directory());
                let id = self.nodes.enter(parent, name, fresh).ok_or(Errno::ENOMEM)?;
                let mut answer = Answer::default();
                answer.entry_out(id, &super::answer::directory(), self.owner);
                reply(unique, Ok(&answer.0));
                Ok(())
            }
            Level::Top => {
                let known = self.trees.get(&tree).ok_or(Errno::EIO)?.roots.roots.get(root as usize);
                if known.is_none_or(|known| known.name != name) {
                    return Err(Errno::ENOENT);
                }
                self.ask_about(tree, root, Vec::new(), Deed::STAT, (0, 0), Waiting { unique, then })
            }
            Level::Lent => {
                let mut path = self.nodes.path(parent).ok_or(Errno::ENAMETOOLONG)?;
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                self.ask_about(tree, root, path, Deed::STAT, (0, 0), Waiting { unique, then })
            }
        }
    }

    /// The tree and the root that this name in the mount's directory stands for.
    fn top(&self, name: &[u8]) -> Option<(TreeId, u32)> {
        let number: u64 = str::from_utf8(name).ok()?.parse().ok()?;
        if number.to_string().as_bytes() != name {
            return None;
        }
        let (id, tree) = self.trees.range(..=number).next_back()?;
        let at = usize::try_from(number - id).ok()?;
        let root = tree.roots.roots.get(at)?;
        if root.name.is_empty() { None } else { Some((*id, u32::try_from(at).ok()?)) }
    }

    fn open(&mut self, unique: u64, node: u64) -> Result<(), Errno> {
        let found = self.nodes.get(node).ok_or(Errno::ESTALE)?;
        let (tree, size) = (found.tree, found.attributes.size);
        let handle = self.next_handle;
        self.ask(node, Deed::OPEN, handle, 0, Waiting { unique, then: Then::Open { handle, node } })?;
        self.next_handle += 1;
        let mut file = File { tree, head: None, head_comes: false, parked: Vec::new() };
        if (1..=u64::from(HEAD)).contains(&size) {
            let head = Waiting { unique: 0, then: Then::Head { handle } };
            file.head_comes = self.ask(node, Deed::READ, handle, HEAD, head).is_ok();
        }
        self.keep(handle, Handle::File(file));
        Ok(())
    }

    fn open_directory(&mut self, unique: u64, node: u64, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let found = self.nodes.get(node).ok_or(Errno::ESTALE)?;
        let (tree, root, level) = (found.tree, found.root, found.level);
        let handle = self.next_handle;
        let mut directory = Directory::new(tree, root, node);
        match level {
            Level::Mount => {
                let tops = self.trees.iter().flat_map(|(id, tree)| {
                    let named = tree.roots.roots.iter().zip(*id..).filter(|(root, _)| !root.name.is_empty());
                    named.map(|(_, number)| number.to_string().into_bytes())
                });
                directory.fill(tops.map(|name| (name, super::answer::directory())));
                directory.done = true;
            }
            // What it is is not known before it is looked up.
            Level::Top => {
                let known = self.trees.get(&tree).ok_or(Errno::EIO)?.roots.roots.get(root as usize);
                directory
                    .fill(known.map(|known| (known.name.clone(), super::answer::directory())).into_iter());
                directory.done = true;
                directory.plain = true;
            }
            Level::Lent => {
                let then = Then::OpenDir { handle };
                self.ask(node, Deed::LIST, handle, 0, Waiting { unique, then })?;
                let more = Waiting { unique: 0, then: Then::More { handle } };
                directory.asking = self.ask(node, Deed::MORE, handle, 0, more).is_ok();
            }
        }
        self.next_handle += 1;
        self.keep(handle, Handle::Directory(directory));
        if level != Level::Lent {
            let mut answer = Answer::default();
            answer.open_out(handle);
            reply(unique, Ok(&answer.0));
        }
        Ok(())
    }

    fn keep(&mut self, handle: u64, of: Handle) {
        if let Some(tree) = self.trees.get_mut(&of.tree()) {
            tree.open += 1;
        }
        self.handles.insert(handle, of);
    }

    fn close(&mut self, handle: u64) {
        let Some(closed) = self.handles.remove(&handle) else { return };
        if let Some(tree) = self.trees.get_mut(&closed.tree()) {
            tree.open -= 1;
        }
        let close = Ask { handle, ..nothing(Deed::CLOSE) };
        if let Some(tree) = self.trees.get_mut(&closed.tree())
            && closed.is_lent()
        {
            tree.borrower.ask(close, &mut tree.out);
        }
    }

    fn read(
        &mut self,
        unique: u64,
        handle: u64,
        offset: u64,
        size: u32,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let Some(Handle::File(file)) = self.handles.get_mut(&handle) else { return Err(Errno::EBADF) };
        let tree = file.tree;
        if file.head_comes {
            file.parked.push(Parked { unique, offset, size });
            return Ok(());
        }
        if let Some(bytes) = file.in_head(offset, size) {
            reply(unique, Ok(bytes));
            return Ok(());
        }
        let ask = Ask { handle, offset, len: size.min(READ_MOST), ..nothing(Deed::READ) };
        self.send(tree, ask, Waiting { unique, then: Then::Read })
    }

    /// Asks about a node's path.
    fn ask(&mut self, node: u64, deed: Deed, handle: u64, len: u32, waiting: Waiting) -> Result<(), Errno> {
        let found = self.nodes.get(node).ok_or(Errno::ESTALE)?;
        let (tree, root) = (found.tree, found.root);
        // What is asked by its handle needs no path.
        let by_handle = matches!(deed, Deed::READ | Deed::MORE);
        let path = if by_handle { Vec::new() } else { self.nodes.path(node).ok_or(Errno::ENAMETOOLONG)? };
        self.ask_about(tree, root, path, deed, (handle, len), waiting)
    }

    fn ask_about(
        &mut self,
        tree: TreeId,
        root: u32,
        path: Vec<u8>,
        deed: Deed,
        (handle, len): (u64, u32),
        waiting: Waiting,
    ) -> Result<(), Errno> {
        self.send(tree, Ask { root, path, handle, len, ..nothing(deed) }, waiting)
    }

    fn send(&mut self, tree: TreeId, ask: Ask, waiting: Waiting) -> Result<(), Errno> {
        let tree = self.trees.get_mut(&tree).ok_or(Errno::EIO)?;
        tree.used += 1;
        tree.borrower.ask(ask, &mut tree.out).ok_or(Errno::EBUSY)?;
        tree.waiting.push_back(waiting);
        Ok(())
    }

    /// A frame of a lender's arrived.
    ///
    /// # Errors
    /// [`FilesError`]: it broke the protocol; the connection cannot go on.
    pub fn receive(
        &mut self,
        tree: TreeId,
        frame: Frame<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), FilesError> {
        let id = frame.id;
        let Some(lender) = self.trees.get_mut(&tree) else { return Ok(()) };
        let said = lender.borrower.receive(frame)?;
        if matches!(said, Lent::Nothing) {
            return Ok(());
        }
        if matches!(said, Lent::Failed(_) | Lent::Roots(_)) {
            return Err(FilesError::Unexpected { id });
        }
        let Some(Waiting { unique, then }) = lender.waiting.pop_front() else {
            return Err(FilesError::Unexpected { id });
        };
        match said {
            Lent::Refused(_, kind) => self.refused(unique, &then, errno(kind), reply),
            Lent::Node(_, attributes) => self.found(unique, then, tree, &attributes, reply),
            Lent::Bytes(_, bytes) => match then {
                Then::Head { handle } => self.head(handle, bytes, reply),
                _ if unique != 0 => reply(unique, Ok(bytes)),
                _ => (),
            },
            Lent::Entries(_, entries) => {
                if let Then::More { handle } = then {
                    self.entries(handle, entries, reply);
                }
            }
            Lent::Nothing | Lent::Roots(_) | Lent::Failed(_) => (),
        }
        Ok(())
    }

    fn refused(&mut self, unique: u64, then: &Then, errno: Errno, reply: &mut Reply<'_>) {
        match *then {
            Then::Open { handle, .. } | Then::OpenDir { handle } => self.close(handle),
            Then::Head { handle } => self.head(handle, &[], reply),
            Then::More { handle } => {
                if let Some(Handle::Directory(directory)) = self.handles.get_mut(&handle) {
                    directory.asking = false;
                    directory.done = true;
                    if let Some(listing) = directory.parked.take() {
                        refuse(listing.unique, errno, reply);
                    }
                }
            }
            _ => (),
        }
        refuse(unique, errno, reply);
    }

    /// A path is this.
    fn found(
        &mut self,
        unique: u64,
        then: Then,
        tree: TreeId,
        attributes: &Attributes,
        reply: &mut Reply<'_>,
    ) {
        let mut answer = Answer::default();
        match then {
            Then::Lookup { parent, root, name } => {
                // Whom nobody tells of it does not forget it either.
                if unique == 0 {
                    return;
                }
                if !self.is_good(parent, attributes) {
                    return refuse(unique, Errno::ENOENT, reply);
                }
                let fresh = Nodes::fresh(tree, root, Level::Lent, attributes.clone());
                let Some(id) = self.nodes.enter(parent, &name, fresh) else {
                    return refuse(unique, Errno::ENOMEM, reply);
                };
                answer.entry_out(id, attributes, self.owner);
            }
            Then::GetAttr { node } => {
                self.nodes.learn(node, attributes);
                answer.attr_out(node, attributes, self.owner);
            }
            Then::Open { handle, node } => {
                if unique == 0 {
                    return self.close(handle);
                }
                self.nodes.learn(node, attributes);
                answer.open_out(handle);
            }
            Then::OpenDir { handle } => {
                if unique == 0 {
                    return self.close(handle);
                }
                answer.open_out(handle);
            }
            Then::Head { .. } | Then::Read | Then::More { .. } | Then::Again => return,
        }
        if unique != 0 {
            reply(unique, Ok(&answer.0));
        }
    }

    /// Whether what lies in this directory may be shown: not a link that leads out of what was copied, whatever its
    /// lender says.
    fn is_good(&self, directory: u64, attributes: &Attributes) -> bool {
        if attributes.kind != NodeKind::LINK {
            return true;
        }
        let Some(node) = self.nodes.get(directory) else { return false };
        let deep = match self.nodes.path(directory) {
            // A root is no link: whoever copied one copied what it leads to.
            _ if node.level != Level::Lent => return false,
            None => return false,
            Some(path) if path.is_empty() => 0,
            Some(path) => 1 + path.iter().filter(|byte| **byte == b'/').count(),
        };
        stays(&attributes.target, deep)
    }

    /// A small file's bytes are here, or cannot be had this way.
    fn head(&mut self, handle: u64, bytes: &[u8], reply: &mut Reply<'_>) {
        let Some(Handle::File(file)) = self.handles.get_mut(&handle) else { return };
        file.head_comes = false;
        // A file that grew is read as all others are.
        if !bytes.is_empty() && bytes.len() < HEAD as usize {
            file.head = Some(bytes.into());
        }
        for Parked { unique, offset, size } in std::mem::take(&mut file.parked) {
            if let Err(errno) = self.read(unique, handle, offset, size, reply) {
                refuse(unique, errno, reply);
            }
        }
    }

    /// Names that the kernel may be asked to forget, where it knows very many.
    pub fn crowded(&mut self, most: usize) -> Vec<(u64, std::rc::Rc<[u8]>)> {
        self.nodes.crowded(most)
    }
}

fn nothing(deed: Deed) -> Ask {
    Ask { id: 0, deed, root: 0, path: Vec::new(), handle: 0, offset: 0, len: 0 }
}

fn refuse(unique: u64, errno: Errno, reply: &mut Reply<'_>) {
    if unique != 0 {
        reply(unique, Err(errno));
    }
}

fn errno(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::NOT_FOUND => Errno::ENOENT,
        ErrorKind::PERMISSION | ErrorKind::FORBIDDEN => Errno::EACCES,
        ErrorKind::FILE_KIND => Errno::ENOTDIR,
        ErrorKind::LIMIT => Errno::EMFILE,
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests;
