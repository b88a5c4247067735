//! Handles: what the guest's processes have open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::node::Node;
use super::sys::{Errno, Stream};

/// An open file or directory.
pub struct Handle {
    /// The host's descriptor.
    pub file: Arc<OwnedFd>,
    /// What it is of.
    pub node: Arc<Node>,
    /// How far a directory has been read.
    pub stream: Mutex<Stream>,
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Arc<Handle>>,
    last: u64,
}

/// All handles of a guest.
pub struct Handles {
    table: RwLock<Table>,
    limit: usize,
}

impl Handles {
    /// None yet, and `limit` at most.
    pub fn new(limit: usize) -> Self {
        Self { table: RwLock::default(), limit }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).open.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes an open file in.
    pub fn insert(&self, file: OwnedFd, node: &Arc<Node>) -> Result<u64, Errno> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.open.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        table.last += 1;
        let id = table.last;
        let file = Arc::new(file);
        node.add_open(id, &file);
        let handle = Handle { file, node: node.clone(), stream: Mutex::default() };
        table.open.insert(id, Arc::new(handle));
        Ok(id)
    }

    /// The handle of this number, if its share is there.
    pub fn get(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let handle = table.open.get(&id).cloned().ok_or(Errno::BADF)?;
        if handle.node.share.is_gone() { Err(Errno::STALE) } else { Ok(handle) }
    }

    /// Closes.
    pub fn remove(&self, id: u64) {
        let handle = self.table.write().unwrap_or_else(PoisonError::into_inner).open.remove(&id);
        if let Some(handle) = handle {
            handle.node.remove_open(id);
        }
    }

    /// Closes all that `which` says.
    pub fn retain(&self, which: impl Fn(&Handle) -> bool) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).open.retain(|_, handle| which(handle));
    }
}
