//! Power: shutdown, reboot, halt and suspend, with the guest's scripts before them.
//!
//! The reply leaves before the guest goes down, and after it every control session gets
//! [`Event::Stopping`](crate::control::Event::Stopping). That the guest is down shows in its endpoint alone.

use serde::{Deserialize, Serialize};

use crate::error::WireError;
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

open_enum! {
    /// What became of a script.
    pub struct ScriptEnd(u8) {
        /// It ran to its end; the status says how.
        ENDED = 0,
        /// Its time ran out and it was killed.
        TIMED_OUT = 1,
        /// It was not run; the output says why.
        SKIPPED = 2,
        /// It could not be run; the output says why.
        BROKEN = 3,
    }
}

/// What one script did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptReport {
    /// Its file name. Bytes that are no UTF-8 are replaced.
    pub name: String,
    /// What became of it.
    pub end: ScriptEnd,
    /// Its exit status as a shell shows it, where it has one; else zero.
    pub status: u8,
    /// The last of its output, [`SCRIPT_OUTPUT`](crate::limits::SCRIPT_OUTPUT) bytes at most.
    pub output: Vec<u8>,
}

impl ScriptReport {
    /// Whether the script says no: it failed, or nobody knows. One that was skipped has no say.
    #[must_use]
    pub fn objects(&self) -> bool {
        match self.end {
            ScriptEnd::ENDED => self.status != 0,
            ScriptEnd::SKIPPED => false,
            _ => true,
        }
    }
}

/// Who in the guest asked that this wait (inhibitor locks of logind).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inhibitor {
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

/// What came of a power request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PowerReply {
    /// The scripts that there are, in order.
    pub scripts: Vec<ScriptReport>,
    /// Who asked that this wait.
    pub inhibitors: Vec<Inhibitor>,
    /// Why the guest stays up; none where it is on its way.
    pub refused: Option<WireError>,
    /// Who does it: `logind`, `systemd` or `kernel`. Empty where nobody does.
    pub by: String,
}
