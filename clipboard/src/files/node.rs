//! What the kernel knows of the mount: numbers for paths, for as long as it remembers them.

use std::collections::HashMap;
use std::rc::Rc;

use hospes_fuse::abi;
use hospes_protocol::clipboard::files::Attributes;
use hospes_protocol::limits::PATH;

use super::answer;
use super::engine::TreeId;

/// Paths that the kernel may know at once. It is asked to forget some long before ([`Nodes::crowded`]).
const MOST: usize = 131_072;
/// Beyond this many it is asked to forget those that it has known longest.
const CROWDED: usize = 16_384;

/// Where a number leads.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// The tree, and the root's place in it; of the mount's own directory no tree's.
    pub(super) tree: TreeId,
    pub(super) root: u32,
    /// The directory that it is in.
    pub(super) parent: u64,
    pub(super) name: Rc<[u8]>,
    pub(super) level: Level,
    pub(super) attributes: Attributes,
    /// How often the kernel was told of it and has not forgotten it.
    lookups: u64,
    /// Nodes whose parent it is.
    children: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// The mount's own directory.
    Mount,
    /// A directory of the mount's in which one root is.
    Top,
    /// A root, or what lies beneath it.
    Lent,
}

#[derive(Debug)]
pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    by_name: HashMap<(u64, Rc<[u8]>), u64>,
    last: u64,
    /// The next number to be looked at where there are too many.
    oldest: u64,
}

impl Default for Nodes {
    fn default() -> Self {
        let mount = Node {
            tree: 0,
            root: 0,
            parent: 0,
            name: Rc::from(&b""[..]),
            level: Level::Mount,
            attributes: answer::directory(),
            lookups: 1,
            children: 0,
        };
        Self {
            nodes: HashMap::from([(abi::ROOT, mount)]),
            by_name: HashMap::new(),
            last: abi::ROOT,
            oldest: abi::ROOT + 1,
        }
    }
}

impl Nodes {
    pub(super) fn get(&self, id: u64) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The kernel is told of a name once more: its number. `None` where it knows too many.
    pub(super) fn enter(&mut self, parent: u64, name: &[u8], of: Node) -> Option<u64> {
        let key = (parent, Rc::from(name));
        if let Some(id) = self.by_name.get(&key) {
            let node = self.nodes.get_mut(id)?;
            node.lookups += 1;
            node.attributes = of.attributes;
            return Some(*id);
        }
        if self.nodes.len() >= MOST {
            return None;
        }
        self.nodes.get_mut(&parent)?.children += 1;
        self.last += 1;
        let id = self.last;
        self.nodes.insert(id, Node { name: Rc::clone(&key.1), parent, lookups: 1, children: 0, ..of });
        self.by_name.insert(key, id);
        Some(id)
    }

    /// What would be entered there.
    pub(super) fn fresh(tree: TreeId, root: u32, level: Level, attributes: Attributes) -> Node {
        let name = Rc::from(&b""[..]);
        Node { tree, root, parent: 0, name, level, attributes, lookups: 0, children: 0 }
    }

    /// News of what lies there.
    pub(super) fn learn(&mut self, id: u64, attributes: &Attributes) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.attributes = attributes.clone();
        }
    }

    /// The kernel forgets so many tellings.
    pub(super) fn forget(&mut self, mut id: u64, count: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        // What has only been kept for what is in it goes with that.
        while id != abi::ROOT {
            match self.nodes.get(&id) {
                Some(node) if node.lookups == 0 && node.children == 0 => (),
                _ => return,
            }
            let Some(node) = self.nodes.remove(&id) else { return };
            self.by_name.remove(&(node.parent, node.name));
            if let Some(parent) = self.nodes.get_mut(&node.parent) {
                parent.children -= 1;
            }
            id = node.parent;
        }
    }

    /// The path beneath its root, which is empty for the root itself. `None` where it is too long.
    pub(super) fn path(&self, mut id: u64) -> Option<Vec<u8>> {
        let mut names: Vec<&[u8]> = Vec::new();
        loop {
            let node = self.nodes.get(&id)?;
            match node.level {
                Level::Mount => return None,
                Level::Top => break,
                Level::Lent => names.push(&node.name),
            }
            id = node.parent;
        }
        // The root's own name.
        names.pop();
        names.reverse();
        let path = names.join(&b'/');
        (path.len() <= PATH).then_some(path)
    }

    /// Some names that the kernel may be asked to forget, where it knows very many: the directory's number and the name.
    pub(super) fn crowded(&mut self, most: usize) -> Vec<(u64, Rc<[u8]>)> {
        let mut names = Vec::new();
        if self.nodes.len() <= CROWDED {
            return names;
        }
        for _ in 0..most * 4 {
            if names.len() == most {
                break;
            }
            if self.oldest >= self.last {
                self.oldest = abi::ROOT;
            }
            self.oldest += 1;
            if let Some(node) = self.nodes.get(&self.oldest)
                && node.level == Level::Lent
                && node.children == 0
            {
                names.push((node.parent, Rc::clone(&node.name)));
            }
        }
        names
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }
}
