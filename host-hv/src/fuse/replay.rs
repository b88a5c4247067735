//! Changes of the host, told to a guest in the one way in which its kernel makes inotify events of them: somebody in the
//! guest does them again, and the server, which knows, says yes and touches nothing.
//!
//! A helper in the guest gets each change with a number ([`watch`](super::watch) sends it). Before it acts it says the
//! number, by setting an extended attribute on the root; from then on its requests, and no other process', are held
//! against that change. What fits is answered as if it happened just now; whatever else would change something is
//! refused, so that nothing ever comes back to the host.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::abi::{self, kind};
use super::node::Node;
use super::reply::{Answer, Bytes, ENTRY_OUT};
use super::request::{Header, Operation};
use super::server::{Server, VALID};
use super::sys::{self, Errno, Meta};

/// The attribute of the root by which the helper says what it is about to do: the secret, a space, the number.
const ATTRIBUTE: &CStr = c"user.hospes.replay";

/// The handle of a file that is opened only to be seen opened.
const HANDLE: u64 = u64::MAX;

/// Changes that are sent and not yet begun, at the most.
const WINDOW: usize = 64;

/// What happened, in the guest's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An entry is there that was not.
    Made,
    /// A file has other bytes.
    Changed,
    /// A file has other attributes.
    Attributes,
    /// An entry is gone.
    Removed,
    /// An entry is elsewhere.
    Moved {
        /// The node of the directory that it is in now.
        to: u64,
        /// Its name there.
        name: CString,
    },
}

/// A change to be replayed.
#[derive(Clone, Debug)]
pub struct Change {
    /// The node of the directory.
    pub parent: u64,
    /// The entry.
    pub name: CString,
    /// What happened to it.
    pub step: Step,
    /// The entry is, or was, a directory.
    pub directory: bool,
}

struct Pending {
    number: u64,
    change: Change,
    /// The step itself was answered: names are looked up again.
    done: bool,
}

#[derive(Default)]
struct State {
    /// Nobody listens without one.
    secret: Option<String>,
    pending: VecDeque<Pending>,
    last: u64,
    current: Option<u64>,
}

/// The changes that a guest is being told of.
#[derive(Default)]
pub struct Replays {
    state: Mutex<State>,
    room: Condvar,
    /// The helper's process, as the guest numbers them; 0 while there is none.
    helper: AtomicU32,
    active: AtomicBool,
}

impl Replays {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody listens.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// A listener with this secret takes over.
    pub fn begin(&self, secret: String) {
        *self.state() = State { secret: Some(secret), ..State::default() };
        self.helper.store(0, Ordering::Relaxed);
        self.active.store(true, Ordering::Relaxed);
        self.room.notify_all();
    }

    /// The listener with this secret is gone.
    pub fn end(&self, secret: &str) {
        let mut state = self.state();
        if state.secret.as_deref() == Some(secret) {
            *state = State::default();
            self.active.store(false, Ordering::Relaxed);
            self.helper.store(0, Ordering::Relaxed);
        }
        drop(state);
        self.room.notify_all();
    }

    /// Takes a change in, and gives its number. Waits while the helper is behind; nothing once another has taken over.
    pub fn push(&self, secret: &str, change: Change) -> Option<u64> {
        let mut state = self.state();
        loop {
            if state.secret.as_deref() != Some(secret) {
                return None;
            }
            if state.pending.len() < WINDOW {
                break;
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.last += 1;
        let number = state.last;
        state.pending.push_back(Pending { number, change, done: false });
        Some(number)
    }

    /// The helper says what it is about to do: all before it is done.
    fn select(&self, pid: u32, value: &[u8]) -> Result<(), Errno> {
        let (secret, number) = std::str::from_utf8(value)
            .ok()
            .and_then(|value| value.split_once(' '))
            .and_then(|(secret, number)| Some((secret, number.parse::<u64>().ok()?)))
            .ok_or(Errno::INVAL)?;
        let mut state = self.state();
        if state.secret.as_deref() != Some(secret) {
            return Err(Errno::PERM);
        }
        while state.pending.front().is_some_and(|pending| pending.number < number) {
            state.pending.pop_front();
        }
        state.current = Some(number);
        drop(state);
        self.helper.store(pid, Ordering::Relaxed);
        self.room.notify_all();
        Ok(())
    }

    /// The change that the helper acts on, and whether it was answered.
    fn current(&self) -> Option<(Change, bool)> {
        let state = self.state();
        let number = state.current?;
        let pending = state.pending.iter().find(|pending| pending.number == number)?;
        Some((pending.change.clone(), pending.done))
    }

    fn done(&self) {
        let mut state = self.state();
        if let Some(number) = state.current
            && let Some(pending) = state.pending.iter_mut().find(|pending| pending.number == number)
        {
            pending.done = true;
        }
    }
}

impl Server {
    /// Answers a request that belongs to a replay; nothing for all others, which is nearly all.
    pub(super) fn replay(&self, header: &Header, operation: &Operation<'_>) -> Option<Result<Answer, Errno>> {
        if !self.replays.is_active() {
            return None;
        }
        if let Operation::SetXattr { name, value, .. } = operation
            && header.node == abi::ROOT
            && *name == ATTRIBUTE
        {
            return Some(self.replays.select(header.pid, value).map(|()| Answer::done()));
        }
        if header.pid == 0 || header.pid != self.replays.helper.load(Ordering::Relaxed) {
            return None;
        }
        let fits = self.replays.current().and_then(|(change, done)| {
            if let Ok(node) = self.nodes.get(change.parent) {
                self.act(&node.share);
            }
            self.fit(header.node, operation, &change, done)
        });
        if fits.is_some() {
            return fits;
        }
        // Reading is harmless; anything else would be the helper's own doing.
        match operation {
            Operation::SetAttr(_)
            | Operation::SymLink { .. }
            | Operation::MkNod { .. }
            | Operation::MkDir { .. }
            | Operation::Unlink { .. }
            | Operation::RmDir { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. }
            | Operation::Open { .. }
            | Operation::Write { .. }
            | Operation::Create { .. }
            | Operation::TmpFile { .. }
            | Operation::SetXattr { .. }
            | Operation::RemoveXattr { .. }
            | Operation::Allocate { .. }
            | Operation::CopyRange { .. } => Some(Err(Errno::STALE)),
            _ => None,
        }
    }

    fn fit(
        &self,
        node: u64,
        operation: &Operation<'_>,
        change: &Change,
        done: bool,
    ) -> Option<Result<Answer, Errno>> {
        let here = |name: &CStr| node == change.parent && *name == *change.name;
        match (operation, &change.step) {
            (Operation::Lookup { name }, Step::Made) if here(name) && !done => Some(Err(Errno::NOENT)),
            (Operation::Lookup { name }, Step::Removed) if here(name) && !done => {
                Some(self.remembered(change.parent, name, change.directory))
            }
            (Operation::Lookup { name }, Step::Moved { to, name: to_name }) if !done => {
                if here(name) {
                    return Some(self.moved(change, *to, to_name));
                }
                (node == *to && **name == **to_name).then(|| self.replaced(change, *to, to_name))
            }
            (
                Operation::MkNod { name, .. }
                | Operation::MkDir { name, .. }
                | Operation::SymLink { name, .. },
                Step::Made,
            ) if here(name) => {
                self.replays.done();
                Some(self.lookup(node, name))
            }
            (Operation::Unlink { name } | Operation::RmDir { name }, Step::Removed) if here(name) => {
                self.replays.done();
                self.nodes.unnamed(node, name);
                Some(Ok(Answer::done()))
            }
            (Operation::Rename { name, to, to_name, .. }, Step::Moved { to: new, name: new_name })
                if here(name) && to == new && **to_name == **new_name =>
            {
                self.replays.done();
                // The guest may have believed in both names, and have asked for neither.
                self.nodes.renamed((node, name), (*to, to_name), false);
                Some(Ok(Answer::done()))
            }
            (Operation::Open { .. }, Step::Changed) if self.is_entry(node, change) => {
                let mut out = Bytes::with_capacity(16);
                // Past the guest's cache: what is written there is no byte of the file's.
                out.open_out(HANDLE, abi::FOPEN_DIRECT_IO | abi::FOPEN_NOFLUSH);
                Some(Ok(out.into()))
            }
            (Operation::Write { handle: HANDLE, size, .. }, Step::Changed) => {
                let mut out = Bytes::with_capacity(8);
                out.u32(*size).u32(0);
                Some(Ok(out.into()))
            }
            (Operation::SetAttr(_), Step::Attributes) if self.is_entry(node, change) => {
                Some(self.get_attr(node, None))
            }
            (Operation::Release { handle: HANDLE }, _) => Some(Ok(Answer::done())),
            _ => None,
        }
    }

    fn is_entry(&self, node: u64, change: &Change) -> bool {
        self.nodes.get(node).is_ok_and(|node| {
            node.place().is_some_and(|place| place.parent == change.parent && *place.name == *change.name)
        })
    }

    /// The entry of a file that is where it was moved to.
    fn moved(&self, change: &Change, to: u64, name: &CStr) -> Result<Answer, Errno> {
        let parent = self.node(to)?;
        let directory = self.nodes.directory(&parent)?;
        let meta = sys::stat_at(&*directory, name)?;
        // Not by its new name yet: what the guest knows by that one may be about to be replaced.
        let known_as = Some((change.parent, &*change.name));
        let node = self.nodes.tell_as(&parent.share, &meta, Some((to, name)), known_as)?;
        let mut out = Bytes::with_capacity(ENTRY_OUT);
        out.entry_out(node.id, &Self::attributes(&parent.share, &meta), VALID);
        Ok(out.into())
    }

    /// The entry of the file that a moved one took the place of, if the guest knew one there.
    fn replaced(&self, change: &Change, to: u64, name: &CStr) -> Result<Answer, Errno> {
        let parent = self.node(to)?;
        let old = self.nodes.named(to, name).ok_or(Errno::NOENT)?;
        let moved = self.nodes.named(change.parent, &change.name);
        let is_another = moved.is_none_or(|moved| moved.id != old.id);
        // The guest's kernel takes no other pair for a move.
        if !is_another || (old.kind == kind::DIRECTORY) != change.directory {
            return Err(Errno::NOENT);
        }
        self.gone(&parent, &old, name)
    }

    /// The entry of a file that is gone: the one that the guest knew, or one made up, since all that happens to it next
    /// is to be removed. What has its name by now is told of only if the guest knew nothing else there.
    fn remembered(&self, parent: u64, name: &CStr, directory: bool) -> Result<Answer, Errno> {
        let parent = self.node(parent)?;
        let there = self.nodes.directory(&parent).and_then(|directory| sys::stat_at(&*directory, name));
        match (self.nodes.named(parent.id, name), there) {
            (Some(known), Err(_)) => self.gone(&parent, &known, name),
            (Some(known), Ok(meta)) if meta.identity != known.identity => self.gone(&parent, &known, name),
            (_, Ok(_)) => self.lookup(parent.id, name),
            (None, Err(_)) => {
                let bits = if directory { kind::DIRECTORY } else { kind::FILE };
                let meta = self.made_up(&parent, self.nodes.made_up(), bits);
                self.told(&parent, &meta, name)
            }
        }
    }

    /// The entry of a file that the guest knew and that has this name no more: its last one, so far as the guest's kernel
    /// is told, unless it is known to have others.
    fn gone(&self, parent: &Node, known: &Arc<Node>, name: &CStr) -> Result<Answer, Errno> {
        // Whoever has it open in the guest reads on.
        let meta = match self.nodes.stat(known) {
            Ok(meta) => Meta { links: meta.links.saturating_add(1), ..meta },
            Err(_) => self.made_up(parent, known.identity, known.kind),
        };
        self.told(parent, &meta, name)
    }

    fn made_up(&self, parent: &Node, identity: sys::Identity, bits: u32) -> Meta {
        Meta { identity, mode: bits | 0o644, ids: parent.share.host, links: 1, ..self.root_meta() }
    }

    fn told(&self, parent: &Node, meta: &Meta, name: &CStr) -> Result<Answer, Errno> {
        let node = self.nodes.tell_as(&parent.share, meta, None, Some((parent.id, name)))?;
        let mut out = Bytes::with_capacity(ENTRY_OUT);
        out.entry_out(node.id, &Self::attributes(&parent.share, meta), VALID);
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &CStr) -> Change {
        Change { parent: 2, name: name.to_owned(), step: Step::Made, directory: false }
    }

    #[test]
    fn only_who_knows_the_secret_replays_and_what_is_begun_makes_room() {
        let replays = Replays::default();
        assert_eq!(replays.push("s", change(c"a")), None, "nobody listens");
        replays.begin("s".into());
        for number in 1..=WINDOW as u64 {
            assert_eq!(replays.push("s", change(c"a")), Some(number));
        }
        assert_eq!(replays.select(7, b"other 1"), Err(Errno::PERM));
        assert_eq!(replays.select(7, b"s"), Err(Errno::INVAL));
        assert_eq!(replays.select(7, b"s 3"), Ok(()));
        assert!(replays.current().is_some_and(|(_, done)| !done));
        replays.done();
        assert!(replays.current().is_some_and(|(_, done)| done));
        assert_eq!(replays.push("s", change(c"b")), Some(WINDOW as u64 + 1));
        replays.begin("t".into());
        assert_eq!(replays.push("s", change(c"a")), None, "another took over");
        replays.end("t");
        assert!(!replays.is_active());
    }
}
