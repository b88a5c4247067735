//! Who each guest is: its key and machine, pinned per VM at first use, in `$XDG_DATA_HOME/hospes/pins/NAME.toml`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hospes_protocol::hex;
use hospes_protocol::keys::PublicKey;
use serde::{Deserialize, Serialize};

use crate::dirs::{self, DirsError};
use crate::registry::write_whole;
use crate::vm::VmName;

/// What went wrong with a guest's pin.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No place for files.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// The machine we know shows another key.
    #[error("{vm} shows another key than the one it is known by\n  known: {known}\n  shown: {shown}")]
    OtherKey {
        /// The VM.
        vm: VmName,
        /// The pinned key.
        known: PublicKey,
        /// The key it showed and proved.
        shown: PublicKey,
    },
    /// Another machine answers at the VM's endpoint.
    #[error(
        "Another machine answers as {vm} than the one it is known by\n  known: {known}\n  shown: {shown}"
    )]
    OtherMachine {
        /// The VM.
        vm: VmName,
        /// The pinned key.
        known: PublicKey,
        /// The key it showed and proved.
        shown: PublicKey,
    },
    /// The pin's file cannot be read, and a guest is not trusted anew because of that.
    #[error("The pin {} is damaged", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("Cannot {act} the pin {}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl PinError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::OtherKey { vm, .. } => Some(format!(
                "Nothing was sent to it. If its guest tools were reinstalled, hospes forget {vm} makes the next \
                 connection pin the new key; if not, somebody may be posing as {vm}"
            )),
            Self::OtherMachine { vm, .. } => Some(format!(
                "Nothing was sent to it. If {vm} was recreated or is a clone, hospes forget {vm} makes the next \
                 connection pin it; if both are to be kept, hospes add gives the clone a name of its own"
            )),
            Self::Malformed { path } => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                Some(format!("hospes forget {name} removes it; the next connection pins the guest anew"))
            }
            Self::Dirs(_) | Self::Io { .. } => None,
        }
    }
}

/// A guest as we know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Its key.
    pub key: PublicKey,
    /// Its machine, as [`ServerHelloBody::machine`](hospes_protocol::handshake::ServerHelloBody::machine).
    pub machine: [u8; 32],
}

/// How a guest compares with its pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the one we know.
    Known,
    /// It was never seen before and is pinned now.
    FirstUse,
    /// The key we know on another machine: an image that was copied with its key. The pin follows.
    Moved,
}

#[derive(Serialize, Deserialize)]
struct PinFile {
    key: String,
    machine: String,
}

/// The pins' files.
#[derive(Debug, Clone)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// The user's.
    ///
    /// # Errors
    /// [`PinError::Dirs`].
    pub fn open() -> Result<Self, PinError> {
        Ok(Self { dir: dirs::data()?.join("pins") })
    }

    /// The directory that holds the files, which may not exist yet.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A VM's pin, where there is one.
    ///
    /// # Errors
    /// [`PinError::Malformed`], [`PinError::Io`].
    pub fn load(&self, vm: &VmName) -> Result<Option<Pin>, PinError> {
        let path = self.path(vm);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(PinError::Io { act: "read", path, source }),
        };
        let pin = toml::from_str::<PinFile>(&text).ok().and_then(|file| {
            Some(Pin { key: PublicKey::from_text(&file.key).ok()?, machine: hex::decode(&file.machine)? })
        });
        pin.map(Some).ok_or(PinError::Malformed { path })
    }

    /// Holds a guest that has proved its key against the VM's pin, and pins it where there is none.
    ///
    /// # Errors
    /// [`PinError::OtherKey`], [`PinError::OtherMachine`], and those of the file.
    pub fn check(&self, vm: &VmName, shown: Pin) -> Result<Verdict, PinError> {
        loop {
            return match self.load(vm)? {
                Some(known) if known == shown => Ok(Verdict::Known),
                Some(known) if known.key == shown.key => {
                    self.save(vm, shown, true)?;
                    Ok(Verdict::Moved)
                }
                Some(known) if known.machine == shown.machine => {
                    Err(PinError::OtherKey { vm: vm.clone(), known: known.key, shown: shown.key })
                }
                Some(known) => {
                    Err(PinError::OtherMachine { vm: vm.clone(), known: known.key, shown: shown.key })
                }
                None => match self.save(vm, shown, false) {
                    Ok(()) => Ok(Verdict::FirstUse),
                    // Another command pinned a guest between our look and our write: look again.
                    Err(PinError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
        }
    }

    /// Drops a VM's pin; whether there was one.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn forget(&self, vm: &VmName) -> Result<bool, PinError> {
        let path = self.path(vm);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(PinError::Io { act: "remove", path, source }),
        }
    }

    fn save(&self, vm: &VmName, pin: Pin, replace: bool) -> Result<(), PinError> {
        dirs::create(&self.dir)?;
        let path = self.path(vm);
        let text = format!("key = \"{}\"\nmachine = \"{}\"\n", pin.key.to_text(), hex::encode(&pin.machine));
        write_whole(&path, text.as_bytes(), replace).map_err(|source| PinError::Io {
            act: "write",
            path,
            source,
        })
    }

    fn path(&self, vm: &VmName) -> PathBuf {
        self.dir.join(format!("{vm}.toml"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hospes_protocol::keys::SecretKey;

    fn pin(key: u8, machine: u8) -> Pin {
        Pin { key: SecretKey::from_bytes(&[key; 32]).public(), machine: [machine; 32] }
    }

    fn pins() -> (tempfile::TempDir, Pins, VmName) {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins { dir: dir.path().join("pins") };
        (dir, pins, "dev".parse().unwrap())
    }

    #[test]
    fn first_use_pins_and_another_key_is_told_with_both_fingerprints() {
        let (_dir, pins, dev) = pins();
        assert_eq!(pins.check(&dev, pin(1, 1)).unwrap(), Verdict::FirstUse);
        assert_eq!(pins.check(&dev, pin(1, 1)).unwrap(), Verdict::Known);
        let error = pins.check(&dev, pin(2, 1)).unwrap_err();
        assert!(matches!(error, PinError::OtherKey { .. }));
        let text = error.to_string();
        assert!(text.contains(&pin(1, 1).key.fingerprint()) && text.contains(&pin(2, 1).key.fingerprint()));
        assert!(error.hint().unwrap().contains("hospes forget dev"));
        assert!(pins.forget(&dev).unwrap() && !pins.forget(&dev).unwrap());
        assert_eq!(pins.check(&dev, pin(2, 1)).unwrap(), Verdict::FirstUse);
    }

    #[test]
    fn a_clone_is_told_from_an_impostor() {
        let (_dir, pins, dev) = pins();
        pins.check(&dev, pin(1, 1)).unwrap();
        assert!(matches!(pins.check(&dev, pin(2, 2)), Err(PinError::OtherMachine { .. })));
        assert_eq!(pins.check(&dev, pin(1, 2)).unwrap(), Verdict::Moved);
        assert_eq!(pins.check(&dev, pin(1, 2)).unwrap(), Verdict::Known);
    }

    #[test]
    fn a_damaged_pin_is_not_a_first_use() {
        let (_dir, pins, dev) = pins();
        pins.check(&dev, pin(1, 1)).unwrap();
        fs::write(pins.path(&dev), "key = ").unwrap();
        assert!(matches!(pins.check(&dev, pin(1, 1)), Err(PinError::Malformed { .. })));
    }
}
