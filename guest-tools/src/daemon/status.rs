//! What the daemon says of itself in `/run/hospes/status.json`, which everybody in the guest may read and which holds no
//! secret. A file and not a socket: no user can make the daemon work by asking, and it stays when the daemon is gone.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::atomic_file::{self, Durability};

/// Bytes of the file.
const FILE: u64 = 1024 * 1024;

/// What the daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its release.
    pub release: String,
    /// Its process id, to see whether it still runs.
    pub pid: u32,
    /// How it stands.
    pub state: State,
    /// Where it listens, or why it does not.
    pub detail: String,
    /// The guest's key.
    pub fingerprint: String,
    /// The hosts it trusts.
    pub trusted: Vec<Trusted>,
    /// What is wrong with the files that say whom to trust.
    pub trust_problems: Vec<String>,
    /// Whether the next host becomes the trusted one.
    pub takes_first: bool,
    /// The fingerprints of the hosts that have a control session open, one for each session.
    pub sessions: Vec<String>,
    /// Where the policy in force comes from; none for what is built in.
    pub config: Option<String>,
    /// Why the policy file as it is now is not in force.
    pub config_error: Option<String>,
}

/// How the daemon stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It listens.
    Listening,
    /// It saw that this machine has no vsock device, and ended.
    NoDevice,
    /// It ended in order.
    #[default]
    Stopped,
    /// It could not go on.
    Failed,
}

/// A trusted host, as everybody may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted {
    /// Its key's fingerprint.
    pub fingerprint: String,
    /// Where its key comes from.
    pub source: String,
    /// The comment beside the key.
    pub comment: String,
}

impl Status {
    /// Writes the file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        atomic_file::replace(path, text.as_bytes(), 0o644, Durability::Memory)
    }

    /// Reads the file; `None` where no daemon has run since boot.
    ///
    /// # Errors
    /// What the file system says, or [`io::ErrorKind::InvalidData`].
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match atomic_file::read_text(path, FILE)? {
            Some(text) => Ok(Some(serde_json::from_str(&text)?)),
            None => Ok(None),
        }
    }
}
