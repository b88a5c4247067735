//! Who owns what: users of the host as the guest sees them, and the other way round.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A user and a group, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in stat(2)")]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

/// What stands for everybody who has no counterpart.
const NOBODY: u32 = 65534;
/// The first user that Linux distributions make.
const FIRST_USER: Ids = Ids { uid: 1000, gid: 1000 };

/// How a share's owners are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The share's owner on the host is this user of the guest, and root is root; who else owns files on the host is
    /// nobody in the guest. What the guest makes belongs to the share's owner.
    Map(Ids),
    /// The same numbers on both sides. Only a privileged server can give files to others.
    Raw,
    /// All is this user's, and changes of owner are accepted and forgotten.
    Squash(Ids),
}

impl Default for Owner {
    fn default() -> Self {
        Self::Map(FIRST_USER)
    }
}

/// A word that names no mapping.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("\"{0}\" is no owner mapping: it is map, map:UID:GID, squash, squash:UID:GID or raw")]
pub struct OwnerError(String);

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        let error = || OwnerError(text.to_owned());
        let mut words = text.split(':');
        let kind = words.next().unwrap_or_default();
        let ids = match (words.next(), words.next(), words.next()) {
            (None, None, None) => FIRST_USER,
            (Some(uid), Some(gid), None) => {
                // The last number means "no change" to the kernel.
                let number = |word: &str| word.parse().ok().filter(|&id| id != u32::MAX).ok_or_else(error);
                Ids { uid: number(uid)?, gid: number(gid)? }
            }
            _ => return Err(error()),
        };
        match kind {
            "map" => Ok(Self::Map(ids)),
            "squash" => Ok(Self::Squash(ids)),
            "raw" if text == "raw" => Ok(Self::Raw),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(ids) => write!(f, "map:{}:{}", ids.uid, ids.gid),
            Self::Raw => f.write_str("raw"),
            Self::Squash(ids) => write!(f, "squash:{}:{}", ids.uid, ids.gid),
        }
    }
}

/// What a change of owner comes to on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: it is so already, or it does not matter.
    None,
    /// This number.
    To(u32),
    /// The guest may not.
    Refused,
}

impl Owner {
    /// A file's owner as the guest sees it; `host` is the share's own.
    pub fn seen(&self, file: Ids, host: Ids) -> Ids {
        let map = |id: u32, own: u32, guest: u32| match id {
            id if id == own => guest,
            0 => 0,
            _ => NOBODY,
        };
        match *self {
            Self::Map(guest) => {
                Ids { uid: map(file.uid, host.uid, guest.uid), gid: map(file.gid, host.gid, guest.gid) }
            }
            Self::Raw => file,
            Self::Squash(guest) => guest,
        }
    }

    /// What the guest's chown to `uid` means.
    pub fn change_user(&self, uid: u32, host: Ids) -> Change {
        self.change(uid, host.uid, |guest| guest.uid)
    }

    /// What the guest's chgrp to `gid` means.
    pub fn change_group(&self, gid: u32, host: Ids) -> Change {
        self.change(gid, host.gid, |guest| guest.gid)
    }

    fn change(&self, id: u32, host: u32, guest: impl Fn(&Ids) -> u32) -> Change {
        match self {
            Self::Map(ids) if id == guest(ids) => Change::To(host),
            Self::Map(_) => Change::Refused,
            Self::Raw => Change::To(id),
            Self::Squash(_) => Change::None,
        }
    }

    /// Set-id bits are kept: elsewhere they would let the guest make programs that run as a user of the host.
    pub fn keeps_set_ids(&self) -> bool {
        matches!(self, Self::Raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Ids = Ids { uid: 501, gid: 20 };

    #[test]
    fn the_shares_owner_is_the_guests_user_and_strangers_are_nobody() {
        let owner = Owner::default();
        assert_eq!(owner.seen(HOST, HOST), Ids { uid: 1000, gid: 1000 });
        assert_eq!(owner.seen(Ids { uid: 0, gid: 0 }, HOST), Ids { uid: 0, gid: 0 });
        // Another user of the host who happens to have the guest user's number is not that user.
        assert_eq!(owner.seen(Ids { uid: 1000, gid: 1000 }, HOST), Ids { uid: NOBODY, gid: NOBODY });
        assert_eq!(owner.change_user(1000, HOST), Change::To(501));
        assert_eq!(owner.change_user(0, HOST), Change::Refused);
        assert_eq!(owner.change_group(1000, HOST), Change::To(20));
    }

    #[test]
    fn words_and_mappings_are_the_same() {
        for text in ["map:1:2", "squash:0:0", "raw"] {
            assert_eq!(text.parse::<Owner>().map(|owner| owner.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("map".parse(), Ok(Owner::default()));
        for bad in ["", "raw:1:2", "map:1", "map:1:2:3", "map:a:1", "squash:4294967295:1", "MAP"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
    }
}
