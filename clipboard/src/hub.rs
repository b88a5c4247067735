//! Who owns which selection, and who is told: the engine between a desktop and its peers. It does no I/O.
//!
//! Each selection has one owner: the desktop's own programs, one of the peers, or bytes that were left here. Whoever
//! copies last is the owner; everybody else is offered what it has, and nobody is offered their own: nothing echoes.
//! A peer's first offer on a selection says what was there when it came, and takes the place of nothing.

use std::collections::BTreeMap;

use hospes_protocol::clipboard::{Offer, Selection, Share, Side};

use crate::types;

/// A machine that the clipboard is shared with.
pub type PeerId = u64;

/// The selections there are; an offer on another is passed over.
pub const SELECTIONS: [Selection; 2] = [Selection::CLIPBOARD, Selection::PRIMARY];

/// A selection's place in arrays, where this release knows it.
#[must_use]
pub fn place(selection: Selection) -> Option<usize> {
    SELECTIONS.iter().position(|known| *known == selection)
}

/// Who has what can be pasted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: there is nothing.
    Nobody,
    /// A program of this desktop.
    Desktop,
    /// A peer, and its own number for the offer.
    Peer(PeerId, u64),
    /// Bytes that were left here.
    Kept,
}

/// What the rim does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Own the desktop's selection with these types; give it up where there are none.
    Show(Shown),
    /// Send a peer this offer.
    Tell(PeerId, Offer),
}

/// What the desktop is to show on a selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The selection.
    pub selection: Selection,
    /// Our number for it: a paste of an older one is refused.
    pub serial: u64,
    /// As what it can be pasted; none gives the selection up.
    pub types: Vec<String>,
}

#[derive(Debug, Clone)]
struct Held {
    owner: Owner,
    /// Our number for what is held: of the hub, greater with each change of any selection.
    serial: u64,
    /// The owner's words, without our own.
    types: Vec<String>,
    /// The number of what the desktop was last told to show.
    showing: u64,
}

#[derive(Debug)]
struct Peer {
    /// What crosses; seen from the hub, whichever side of the wire it is on.
    told: bool,
    heard: bool,
    /// Selections of which its first offer has come.
    greeted: [bool; SELECTIONS.len()],
}

/// The engine.
#[derive(Debug)]
pub struct Hub {
    held: [Held; SELECTIONS.len()],
    serial: u64,
    peers: BTreeMap<PeerId, Peer>,
}

impl Default for Hub {
    fn default() -> Self {
        let nothing = |serial| Held { owner: Owner::Nobody, serial, types: Vec::new(), showing: 0 };
        Self { held: [nothing(1), nothing(2)], serial: 2, peers: BTreeMap::new() }
    }
}

impl Hub {
    /// A hub that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A program of the desktop took the selection, or nobody has it any more. `after` is the number of what the desktop
    /// showed last before that: where it has been told to show something else since, that takes the program's place.
    pub fn desktop_changed(&mut self, selection: Selection, types: Vec<String>, after: u64) -> Vec<Action> {
        let Some(at) = place(selection) else { return Vec::new() };
        if after < self.held[at].showing {
            return Vec::new();
        }
        // A secret is the desktop's own: it takes the place of what others had, and they are told of nothing.
        let secret = types::is_secret(&types);
        let types = if secret { Vec::new() } else { types::to_wire(types) };
        let owner = if types.is_empty() && !secret { Owner::Nobody } else { Owner::Desktop };
        if owner == Owner::Nobody && self.held[at].owner == Owner::Nobody {
            return Vec::new();
        }
        self.take(at, owner, types);
        self.tell_others(at, None)
    }

    /// A desktop is there, which shows nothing of ours yet.
    pub fn desktop_came(&mut self) {
        for held in &mut self.held {
            held.showing = 0;
        }
    }

    /// The desktop is gone, and what its programs had.
    pub fn desktop_gone(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for at in 0..SELECTIONS.len() {
            self.held[at].showing = 0;
            if self.held[at].owner == Owner::Desktop {
                self.take(at, Owner::Nobody, Vec::new());
                actions.extend(self.tell_others(at, None));
            }
        }
        actions
    }

    /// A desktop has come whose selection nobody has: it is shown what others have.
    #[must_use]
    pub fn desktop_empty(&mut self, selection: Selection) -> Option<Action> {
        let at = place(selection)?;
        matches!(self.held[at].owner, Owner::Peer(..) | Owner::Kept).then(|| self.show(at))
    }

    /// A peer is there: it is told what there is, even where that is nothing, so that it knows which offer was first.
    /// `side` is ours on the wire; with `share` it says which way offers go.
    pub fn peer_came(&mut self, id: PeerId, share: Share, side: Side) -> Vec<Action> {
        let (told, heard) = match side {
            Side::Host => (share.to_guest, share.to_host),
            Side::Guest => (share.to_host, share.to_guest),
        };
        self.peers.insert(id, Peer { told, heard, greeted: [false; SELECTIONS.len()] });
        if !told {
            return Vec::new();
        }
        let mut offers: Vec<Offer> = (0..SELECTIONS.len()).map(|at| self.offer(at)).collect();
        offers.sort_by_key(|offer| offer.serial);
        offers.into_iter().map(|offer| Action::Tell(id, offer)).collect()
    }

    /// A peer made an offer.
    pub fn peer_offered(&mut self, id: PeerId, offer: Offer) -> Vec<Action> {
        let Some(at) = place(offer.selection) else { return Vec::new() };
        let Some(peer) = self.peers.get_mut(&id) else { return Vec::new() };
        if !peer.heard {
            return Vec::new();
        }
        let first = !std::mem::replace(&mut peer.greeted[at], true);
        let types = types::to_wire(offer.types);
        let held = &self.held[at];
        // What was there before may be added to nothing, and takes the place of nothing else.
        if first && (types.is_empty() || held.owner != Owner::Nobody) {
            return Vec::new();
        }
        if types.is_empty() {
            // Only the owner can say that there is nothing any more.
            if !matches!(held.owner, Owner::Peer(owner, _) if owner == id) {
                return Vec::new();
            }
            return self.give_up(at, id);
        }
        self.take(at, Owner::Peer(id, offer.serial), types);
        let mut actions = vec![self.show(at)];
        actions.extend(self.tell_others(at, Some(id)));
        actions
    }

    /// A peer is gone, and what it had.
    pub fn peer_left(&mut self, id: PeerId) -> Vec<Action> {
        self.peers.remove(&id);
        let mut actions = Vec::new();
        for at in 0..SELECTIONS.len() {
            if matches!(self.held[at].owner, Owner::Peer(owner, _) if owner == id) {
                actions.extend(self.give_up(at, id));
            }
        }
        actions
    }

    /// Bytes were left here.
    pub fn kept(&mut self, selection: Selection, types: Vec<String>) -> Vec<Action> {
        let Some(at) = place(selection) else { return Vec::new() };
        let types = types::to_wire(types);
        if types.is_empty() {
            return Vec::new();
        }
        self.take(at, Owner::Kept, types);
        let mut actions = vec![self.show(at)];
        actions.extend(self.tell_others(at, None));
        actions
    }

    /// Somebody pastes `kind` of the offer that we numbered `serial`: who has it, and as which of the owner's types.
    /// `None` where that offer was replaced or never had such a type.
    #[must_use]
    pub fn resolve(&self, selection: Selection, serial: u64, kind: &str) -> Option<(Owner, String)> {
        let held = &self.held[place(selection)?];
        if held.serial != serial || held.owner == Owner::Nobody {
            return None;
        }
        let kind = types::owners(kind, &held.types)?;
        Some((held.owner, kind.to_owned()))
    }

    /// Whether a peer may be given what is pasted here.
    #[must_use]
    pub fn is_told(&self, id: PeerId) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.told)
    }

    /// Who has the selection.
    #[must_use]
    pub fn owner(&self, selection: Selection) -> Owner {
        place(selection).map_or(Owner::Nobody, |at| self.held[at].owner)
    }

    fn take(&mut self, at: usize, owner: Owner, types: Vec<String>) {
        self.serial += 1;
        self.held[at] = Held { owner, serial: self.serial, types, showing: self.held[at].showing };
    }

    fn give_up(&mut self, at: usize, id: PeerId) -> Vec<Action> {
        self.take(at, Owner::Nobody, Vec::new());
        let mut actions = vec![self.show(at)];
        actions.extend(self.tell_others(at, Some(id)));
        actions
    }

    fn show(&mut self, at: usize) -> Action {
        let Held { serial, types, showing, .. } = &mut self.held[at];
        *showing = *serial;
        Action::Show(Shown {
            selection: SELECTIONS[at],
            serial: *serial,
            types: types::to_desktop(&types::to_offer(types)),
        })
    }

    fn offer(&self, at: usize) -> Offer {
        let Held { serial, types, .. } = &self.held[at];
        Offer { serial: *serial, selection: SELECTIONS[at], types: types::to_offer(types) }
    }

    fn tell_others(&self, at: usize, but: Option<PeerId>) -> Vec<Action> {
        self.peers
            .iter()
            .filter(|(id, peer)| peer.told && Some(**id) != but)
            .map(|(id, _)| Action::Tell(*id, self.offer(at)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
