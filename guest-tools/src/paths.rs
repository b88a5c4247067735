//! Where the guest tools keep things. One struct, so that tests point all of it elsewhere.

use std::path::PathBuf;

/// The directories and files of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// What the guest's owner writes: `tools.toml` and `trusted-hosts.d/`.
    pub etc: PathBuf,
    /// What the daemon remembers: the guest's key and the first-use pin.
    pub state: PathBuf,
    /// What lasts until the next boot: workers' sockets and the status file.
    pub run: PathBuf,
    /// The machine's identity, machine-id(5).
    pub machine_id: PathBuf,
    /// The service's credentials (systemd.exec(5), `$CREDENTIALS_DIRECTORY`), where it has any.
    pub credentials: Option<PathBuf>,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            etc: "/etc/hospes".into(),
            state: "/var/lib/hospes".into(),
            run: "/run/hospes".into(),
            machine_id: "/etc/machine-id".into(),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }
}

impl Paths {
    /// The policy file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.etc.join("tools.toml")
    }

    /// The policy as a credential, which takes the file's place where it is present.
    #[must_use]
    pub fn config_credential(&self) -> Option<PathBuf> {
        self.credential("hospes.tools.toml")
    }

    /// The directory of trusted hosts' keys, one or more per `*.pub` file.
    #[must_use]
    pub fn trusted_hosts(&self) -> PathBuf {
        self.etc.join("trusted-hosts.d")
    }

    /// Trusted hosts' keys as a credential.
    #[must_use]
    pub fn trusted_hosts_credential(&self) -> Option<PathBuf> {
        self.credential("hospes.trusted-hosts")
    }

    /// The key that the first host left.
    #[must_use]
    pub fn first_use(&self) -> PathBuf {
        self.state.join("first-use")
    }

    /// The guest's own secret key.
    #[must_use]
    pub fn guest_key(&self) -> PathBuf {
        self.state.join("guest-key")
    }

    /// What the daemon says of itself, for `hospes-tools status`.
    #[must_use]
    pub fn status(&self) -> PathBuf {
        self.run.join("status.json")
    }

    /// The socket of a user's worker.
    #[must_use]
    pub fn worker_socket(&self, uid: u32) -> PathBuf {
        self.run.join("session").join(format!("{uid}.sock"))
    }

    fn credential(&self, name: &str) -> Option<PathBuf> {
        self.credentials.as_ref().map(|directory| directory.join(name)).filter(|path| path.exists())
    }
}
