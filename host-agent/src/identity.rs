//! Who we are: the host's Ed25519 key, in one file of mode 0600, made at its first use.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hospes_protocol::hex;
use hospes_protocol::keys::SecretKey;
use zeroize::Zeroizing;

use crate::dirs::{self, DirsError};
use crate::registry::write_whole;

const PREFIX: &str = "hospes-ed25519-secret";

/// What went wrong with our key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No place for files.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// The operating system refused.
    #[error("Cannot {act} the host's key {}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others may read it, so it proves nothing.
    #[error("The host's key {} has mode {mode:03o}: others can read it", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no key.
    #[error("The file {} does not hold a host's key", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// The operating system gave no random bytes.
    #[error("The operating system gave no random bytes")]
    Random(#[from] getrandom::Error),
}

impl IdentityError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exposed { path, .. } => Some(format!(
                "chmod 600 {}; if somebody may have copied it, hospes key rotate makes another",
                path.display()
            )),
            Self::Malformed { path } => {
                Some(format!("Restore {} from a backup, or run hospes key rotate", path.display()))
            }
            Self::Dirs(_) | Self::Io { .. } | Self::Random(_) => None,
        }
    }
}

/// Where the key's file is.
///
/// # Errors
/// [`IdentityError::Dirs`].
pub fn path() -> Result<PathBuf, IdentityError> {
    Ok(dirs::data()?.join("host.key"))
}

/// Our key. Made now where there is none.
///
/// # Errors
/// [`IdentityError`].
pub fn load_or_create() -> Result<SecretKey, IdentityError> {
    load_or_create_at(&path()?)
}

fn load_or_create_at(path: &Path) -> Result<SecretKey, IdentityError> {
    if let Some(key) = load(path)? {
        return Ok(key);
    }
    let key = fresh()?;
    match save(path, &key, false) {
        Ok(()) => Ok(key),
        // Another process made one between our look and our write: that one is ours.
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            load(path)?.ok_or(IdentityError::Malformed { path: path.to_owned() })
        }
        Err(error) => Err(error),
    }
}

/// Makes another key in place of ours. The old one is kept beside it as `host.key.old`, so that a rotation can be
/// taken back.
///
/// # Errors
/// [`IdentityError`].
pub fn rotate() -> Result<SecretKey, IdentityError> {
    let path = path()?;
    let key = fresh()?;
    let old = path.with_extension("key.old");
    match fs::hard_link(&path, &old).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => fs::remove_file(&old).and_then(|()| fs::hard_link(&path, &old)),
        _ => Err(error),
    }) {
        Ok(()) => (),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(source) => return Err(IdentityError::Io { act: "keep", path, source }),
    }
    save(&path, &key, true)?;
    Ok(key)
}

/// Random bytes from the operating system.
///
/// # Errors
/// [`getrandom::Error`].
pub fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn fresh() -> Result<SecretKey, IdentityError> {
    Ok(SecretKey::from_bytes(&Zeroizing::new(random::<32>()?)))
}

fn load(path: &Path) -> Result<Option<SecretKey>, IdentityError> {
    use std::io::Read;
    let at = |source| IdentityError::Io { act: "read", path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(at(source)),
    };
    let mode = file.metadata().map_err(at)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::with_capacity(256));
    file.take(256).read_to_string(&mut text).map_err(at)?;
    let seed = text.strip_prefix(PREFIX).and_then(|digits| hex::decode(digits.trim()));
    let seed = Zeroizing::new(seed.ok_or_else(|| IdentityError::Malformed { path: path.to_owned() })?);
    Ok(Some(SecretKey::from_bytes(&seed)))
}

fn save(path: &Path, key: &SecretKey, replace: bool) -> Result<(), IdentityError> {
    if let Some(dir) = path.parent() {
        dirs::create(dir)?;
    }
    let seed = Zeroizing::new(key.to_bytes());
    let text = Zeroizing::new(format!("{PREFIX} {}\n", &*Zeroizing::new(hex::encode(&*seed))));
    write_whole(path, text.as_bytes(), replace).map_err(|source| IdentityError::Io {
        act: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_for_us_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data/host.key");
        let key = load_or_create_at(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(load_or_create_at(&path).unwrap().public(), key.public());
    }

    #[test]
    fn an_exposed_key_is_refused_and_a_broken_one_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.key");
        load_or_create_at(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load_or_create_at(&path), Err(IdentityError::Exposed { mode: 0o640, .. })));
        fs::write(&path, "hospes-ed25519-secret 12").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(load_or_create_at(&path), Err(IdentityError::Malformed { .. })));
    }
}
