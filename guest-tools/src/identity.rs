//! The guest's own key, made at the first start and bound to the machine: a clone of an image makes a new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hospes_protocol::handshake::machine_digest;
use hospes_protocol::keys::SecretKey;

use crate::atomic_file::{self, Durability};
use crate::paths::Paths;
use hospes_protocol::hex;

const FILE: u64 = 4 * 1024;
const FIRST_LINE: &str = "hospes-guest-key 1";

/// Who this guest is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its key.
    pub key: SecretKey,
    /// Its machine id's digest, which hosts see and pins are bound to.
    pub machine: [u8; 32],
}

/// Why the guest has no identity. The daemon cannot run without one.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The machine id cannot be read.
    #[error("The machine id cannot be read from {}: {source}", path.display())]
    MachineId {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no machine id.
    #[error("{} holds no machine id: run systemd-machine-id-setup", path.display())]
    NoMachineId {
        /// The file.
        path: PathBuf,
    },
    /// The key cannot be read or written.
    #[error("The guest's key in {} cannot be {act}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What was tried.
        act: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The key file holds something else. It is not overwritten: hosts have pinned what it held.
    #[error("{} is damaged: restore it, or remove it to get a new key (hosts will then ask)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The kernel gives no random bytes.
    #[error("The kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
}

/// This machine's digest, as hosts see it.
///
/// # Errors
/// [`IdentityError::MachineId`], [`IdentityError::NoMachineId`].
pub fn machine(path: &Path) -> Result<[u8; 32], IdentityError> {
    let text = atomic_file::read_text(path, FILE)
        .map_err(|source| IdentityError::MachineId { path: path.into(), source })?
        .unwrap_or_default();
    match text.trim() {
        // What image builders leave for the first boot to fill in.
        "" | "uninitialized" => Err(IdentityError::NoMachineId { path: path.into() }),
        id => Ok(machine_digest(id)),
    }
}

impl Identity {
    /// Reads the key, or makes one where there is none or where it was made on another machine. What was bound to that
    /// other machine (the first host's pin) is removed with it.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load_or_create(paths: &Paths) -> Result<Self, IdentityError> {
        let machine = machine(&paths.machine_id)?;
        let path = paths.guest_key();
        let failed = |act| {
            let path = path.clone();
            move |source| IdentityError::Key { path, act, source }
        };
        if let Some(text) = atomic_file::read_text(&path, FILE).map_err(failed("read"))? {
            let (bound, key) = parse(&text).ok_or_else(|| IdentityError::Damaged { path: path.clone() })?;
            if bound == machine {
                return Ok(Self { key, machine });
            }
            tracing::warn!(
                "This machine is a copy of the one that made the guest's key: \
                 the key and the first host's pin are dropped"
            );
            match fs::remove_file(paths.first_use()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("replaced")(error));
                }
                _ => {}
            }
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(IdentityError::Random)?;
        let key = SecretKey::from_bytes(&seed);
        fs::create_dir_all(&paths.state)
            .map_err(failed("written (systemd-tmpfiles --create hospes-tools.conf makes its folder)"))?;
        let text =
            format!("{FIRST_LINE}\nmachine {}\nsecret {}\n", hex::encode(&machine), hex::encode(&seed));
        atomic_file::replace(&path, text.as_bytes(), 0o600, Durability::Disk).map_err(failed("written"))?;
        tracing::info!("Made the guest's key {}", key.public());
        Ok(Self { key, machine })
    }
}

fn parse(text: &str) -> Option<([u8; 32], SecretKey)> {
    let mut lines = text.lines();
    if lines.next() != Some(FIRST_LINE) {
        return None;
    }
    let machine = hex::decode(lines.next()?.strip_prefix("machine ")?)?;
    let secret = hex::decode(lines.next()?.strip_prefix("secret ")?)?;
    Some((machine, SecretKey::from_bytes(&secret)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn machine_with(id: &str) -> (tempfile::TempDir, Paths) {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths {
            state: directory.path().join("state"),
            machine_id: directory.path().join("machine-id"),
            ..Paths::default()
        };
        fs::write(&paths.machine_id, format!("{id}\n")).unwrap();
        (directory, paths)
    }

    #[test]
    fn the_key_is_made_once_and_only_root_may_read_it() {
        let (_directory, paths) = machine_with("0123");
        let first = Identity::load_or_create(&paths).unwrap();
        let second = Identity::load_or_create(&paths).unwrap();
        assert_eq!(first.key.public(), second.key.public());
        assert_eq!(fs::metadata(paths.guest_key()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_clone_gets_a_key_of_its_own_and_forgets_the_first_host() {
        let (_directory, paths) = machine_with("0123");
        let original = Identity::load_or_create(&paths).unwrap();
        fs::write(paths.first_use(), "whoever").unwrap();
        fs::write(&paths.machine_id, "4567").unwrap();
        let clone = Identity::load_or_create(&paths).unwrap();
        assert_ne!(original.key.public(), clone.key.public());
        assert_ne!(original.machine, clone.machine);
        assert!(!paths.first_use().exists());
    }

    #[test]
    fn a_damaged_key_is_kept_and_an_image_without_a_machine_id_gets_none() {
        let (_directory, paths) = machine_with("0123");
        fs::create_dir_all(&paths.state).unwrap();
        fs::write(paths.guest_key(), "hospes-guest-key 1\nmachine 00\n").unwrap();
        assert!(matches!(Identity::load_or_create(&paths), Err(IdentityError::Damaged { .. })));
        assert!(fs::read_to_string(paths.guest_key()).unwrap().ends_with("machine 00\n"));
        fs::write(&paths.machine_id, "uninitialized\n").unwrap();
        assert!(matches!(Identity::load_or_create(&paths), Err(IdentityError::NoMachineId { .. })));
    }
}
