//! Power: shutdown, reboot, halt and suspend, with the guest's scripts before them.

use serde::{Deserialize, Serialize};

use crate::open_enum;

open_enum! {
    /// What to do.
    pub struct PowerAction(u8) {
        /// Shut down and power off.
        POWEROFF = 0,
        /// Shut down and start again.
        REBOOT = 1,
        /// Shut down and stop the processors.
        HALT = 2,
        /// Suspend to memory.
        SUSPEND = 3,
    }
}

impl PowerAction {
    /// Its word, as people, units and script folders have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::POWEROFF => "poweroff",
            Self::REBOOT => "reboot",
            Self::HALT => "halt",
            Self::SUSPEND => "suspend",
            _ => "unknown",
        }
    }
}

/// A power request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Power {
    /// What to do.
    pub action: PowerAction,
    /// Go on where an inhibitor, or a failed script, says no. A second request within a minute of such a refusal forces
    /// too.
    pub force: bool,
    /// Milliseconds for each script; none for the guest's own setting.
    pub script_timeout_ms: Option<u64>,
}

/// What one script did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptReport {
    /// Its file name.
    pub name: String,
    /// Its exit status as a shell shows it; none where its time ran out.
    pub status: Option<u8>,
    /// The last of its output.
    pub output: Vec<u8>,
}

/// The guest is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PowerReply {
    /// The scripts that ran, in order.
    pub scripts: Vec<ScriptReport>,
    /// Who does it: `logind`, `systemd` or `kernel`.
    pub by: String,
}
