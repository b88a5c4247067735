//! Versions and capabilities, agreed in the handshake.
//!
//! A version is a promise about the meaning of frames that exist in it; a capability says that one optional feature is
//! there. New features come as capabilities; a version changes only when the rules between frames do.

use serde::{Deserialize, Serialize};

use crate::limits::VERSIONS;

/// A protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u16);

impl Version {
    /// The first release.
    pub const V1: Self = Self(1);
    /// What this release speaks, best first.
    pub const SUPPORTED: &'static [Self] = &[Self::V1];

    /// The best version that both speak.
    #[must_use]
    pub fn choose(offered: &[Self]) -> Option<Self> {
        Self::SUPPORTED
            .iter()
            .copied()
            .find(|ours| offered.iter().take(VERSIONS).any(|theirs| theirs == ours))
    }
}

/// A set of optional features, one bit each. Unknown bits are kept and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Commands: exec, attach, ps, kill.
    pub const EXEC: Self = Self(1 << 0);
    /// Copying files and trees.
    pub const COPY: Self = Self(1 << 1);
    /// File verbs: stat, ls, mkdir, rm, mv, mktemp, read, write.
    pub const FILE: Self = Self(1 << 2);
    /// Forwarded connections, both ways.
    pub const FORWARD: Self = Self(1 << 3);
    /// Guest variables.
    pub const VARIABLES: Self = Self(1 << 4);
    /// Shutdown, reboot, halt, suspend.
    pub const POWER: Self = Self(1 << 5);
    /// Guest information and its live events.
    pub const INFO: Self = Self(1 << 6);
    /// The guest's clock, set by the host's.
    pub const TIME: Self = Self(1 << 7);
    /// File systems frozen, thawed and trimmed.
    pub const FREEZE: Self = Self(1 << 8);
    /// The clipboard of the desktop.
    pub const CLIPBOARD: Self = Self(1 << 10);
    /// The screens of the desktop.
    pub const DISPLAY: Self = Self(1 << 11);

    /// Whether every bit of `other` is here.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets' bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bits that both have.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}
