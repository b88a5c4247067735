//! Which hosts this guest trusts: keys that its owner put here, keys that a credential brought, and the key of the first
//! host where nothing else was said.
//!
//! `hospes-tools trust` and the daemon share this module; the daemon re-reads the files when they change.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::keys::PublicKey;

use crate::atomic_file::{self, Durability};
use crate::config::TrustMode;
use crate::paths::Paths;
use hospes_protocol::hex;

/// Bytes of one file of keys.
const FILE: u64 = 64 * 1024;
/// Keys in all. More are left out, with a word in [`TrustStore::problems`].
const KEYS: usize = 256;
/// Fingerprints that a refusal names.
const NAMED: usize = 8;

/// Where a trusted key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file that the guest's owner wrote.
    File(PathBuf),
    /// A systemd credential.
    Credential,
    /// It was the first host.
    FirstUse,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Credential => f.write_str("credential hospes.trusted-hosts"),
            Self::FirstUse => f.write_str("first use"),
        }
    }
}

/// A key that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedHost {
    /// The key.
    pub key: PublicKey,
    /// Where it comes from.
    pub source: Source,
    /// What stands behind it on its line, or empty.
    pub comment: String,
}

/// What the guest answers to a host that has proved a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The key is trusted.
    Trusted,
    /// Nothing was provisioned and no host came before: remember this one.
    FirstUse,
    /// Others are trusted, or nobody may become so by coming first.
    Refused,
}

/// The keys that are trusted now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustStore {
    /// Every key, with its source.
    pub hosts: Vec<TrustedHost>,
    /// Files and lines that could not be used. A guest whose provisioning is damaged trusts no first comer.
    pub problems: Vec<String>,
}

/// Why a change of trust failed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be written or removed.
    #[error("{} cannot be {act}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        act: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A name that would not make a file name.
    #[error("\"{0}\" is no name for a host: use letters, digits, dots, dashes and underscores")]
    Name(String),
    /// Another host has this name.
    #[error("{} exists already: choose another name, or remove it first", .0.display())]
    Exists(PathBuf),
    /// No trusted host is meant by this.
    #[error("No trusted host has the key, fingerprint or name \"{0}\"")]
    NoSuchHost(String),
    /// Removing it takes more than a command in the guest.
    #[error("{0} comes with the machine: take it away where the machine is set up")]
    Provisioned(PublicKey),
}

impl TrustStore {
    /// Reads everything that says whom to trust. It does not fail: what cannot be read is a problem to show.
    #[must_use]
    pub fn load(paths: &Paths, machine: &[u8; 32]) -> Self {
        let mut store = Self::default();
        store.read_directory(&paths.trusted_hosts());
        if let Some(path) = paths.trusted_hosts_credential() {
            store.read_file(&path, &Source::Credential);
        }
        store.read_first_use(&paths.first_use(), machine);
        store
    }

    /// Whether a host that has proved `key` is trusted.
    #[must_use]
    pub fn decide(&self, key: &PublicKey, mode: TrustMode) -> Decision {
        if self.hosts.iter().any(|host| host.key == *key) {
            return Decision::Trusted;
        }
        match mode {
            TrustMode::FirstUse if self.hosts.is_empty() && self.problems.is_empty() => Decision::FirstUse,
            _ => Decision::Refused,
        }
    }

    /// The refusal that a host is shown: both fingerprints, and the remedy.
    #[must_use]
    pub fn refusal(&self, offered: &PublicKey) -> WireError {
        let trusted: Vec<String> = self.hosts.iter().take(NAMED).map(|host| host.key.fingerprint()).collect();
        let add = format!("In the guest, as root: hospes-tools trust add '{}'", offered.to_text());
        let (message, hint) = if trusted.is_empty() {
            (format!("This guest trusts no host yet, and not {offered}"), add)
        } else {
            let more = self.hosts.len() - trusted.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let reset = if self.hosts.iter().all(|host| host.source == Source::FirstUse) {
                "; or, to let the next host in as the first: hospes-tools trust reset"
            } else {
                ""
            };
            (
                format!("This guest does not trust {offered}, it trusts {}{more}", trusted.join(", ")),
                format!("{add}{reset}"),
            )
        };
        WireError::new(ErrorKind::UNTRUSTED, message).hint(hint)
    }

    /// Remembers the first host, for good and before it is told so.
    ///
    /// # Errors
    /// [`TrustError::File`]; the host is then not trusted.
    pub fn pin_first(&mut self, paths: &Paths, machine: &[u8; 32], key: PublicKey) -> Result<(), TrustError> {
        let path = paths.first_use();
        let text = format!("{}\nmachine {}\n", key.to_text(), hex::encode(machine));
        fs::create_dir_all(&paths.state)
            .and_then(|()| atomic_file::replace(&path, text.as_bytes(), 0o600, Durability::Disk))
            .map_err(|source| TrustError::File { path, act: "written", source })?;
        self.hosts.push(TrustedHost { key, source: Source::FirstUse, comment: String::new() });
        Ok(())
    }

    fn read_directory(&mut self, directory: &Path) {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.problem(directory, &error),
        };
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "pub"))
            .filter(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")))
            .collect();
        files.sort();
        for path in files {
            self.read_file(&path, &Source::File(path.clone()));
        }
    }

    fn read_file(&mut self, path: &Path, source: &Source) {
        let text = match atomic_file::read_text(path, FILE) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => return self.problem(path, &error),
        };
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match PublicKey::from_text(line) {
                Err(error) => self.problem(path, &format!("line {}: {error}", index + 1)),
                Ok(_) if self.hosts.len() == KEYS => {
                    return self.problem(path, &format!("more than {KEYS} keys, the rest is left out"));
                }
                Ok(key) => {
                    let comment =
                        line.splitn(3, char::is_whitespace).nth(2).unwrap_or_default().trim().into();
                    self.hosts.push(TrustedHost { key, source: source.clone(), comment });
                }
            }
        }
    }

    fn read_first_use(&mut self, path: &Path, machine: &[u8; 32]) {
        let text = match atomic_file::read_text(path, FILE) {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err(error) => return self.problem(path, &error),
        };
        let mut lines = text.lines();
        let key = lines.next().and_then(|line| PublicKey::from_text(line).ok());
        let bound = lines.next().and_then(|line| hex::decode(line.strip_prefix("machine ")?));
        match (key, bound) {
            // A pin of another machine is none: this is a clone of its image.
            (Some(_), Some(bound)) if bound != *machine => {}
            (Some(key), Some(_)) => {
                self.hosts.push(TrustedHost { key, source: Source::FirstUse, comment: String::new() });
            }
            _ => self.problem(path, &"damaged, run hospes-tools trust reset"),
        }
    }

    fn problem(&mut self, path: &Path, what: &dyn fmt::Display) {
        self.problems.push(format!("{}: {what}", path.display()));
    }
}

/// Adds a host by its key's text, under a name or one made of its fingerprint. Returns the file.
///
/// # Errors
/// [`TrustError`].
pub fn add(paths: &Paths, key: &PublicKey, comment: &str, name: Option<&str>) -> Result<PathBuf, TrustError> {
    let fingerprint = key.fingerprint();
    let name = name.unwrap_or_else(|| fingerprint.split([':', '-']).nth(1).unwrap_or("host"));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.chars().all(plain) {
        return Err(TrustError::Name(name.into()));
    }
    let directory = paths.trusted_hosts();
    let path = directory.join(format!("{name}.pub"));
    if path.exists() {
        return Err(TrustError::Exists(path));
    }
    let comment: String = comment.chars().filter(|c| !c.is_control()).take(200).collect();
    let line = format!("{} {comment}", key.to_text());
    fs::create_dir_all(&directory)
        .and_then(|()| {
            atomic_file::replace(&path, format!("{}\n", line.trim_end()).as_bytes(), 0o644, Durability::Disk)
        })
        .map_err(|source| TrustError::File { path: path.clone(), act: "written", source })?;
    Ok(path)
}

/// Takes trust away from the hosts that `which` means: a key, a fingerprint, or a file's name. Returns what was removed.
///
/// # Errors
/// [`TrustError`].
pub fn remove(paths: &Paths, store: &TrustStore, which: &str) -> Result<Vec<TrustedHost>, TrustError> {
    let key = PublicKey::from_text(which).ok();
    let meant = |host: &&TrustedHost| {
        key == Some(host.key)
            || host.key.fingerprint() == which
            || matches!(&host.source, Source::File(path) if path.file_stem().is_some_and(|stem| stem == which))
    };
    let removed: Vec<TrustedHost> = store.hosts.iter().filter(meant).cloned().collect();
    if removed.is_empty() {
        return Err(TrustError::NoSuchHost(which.into()));
    }
    if let Some(host) = removed.iter().find(|host| host.source == Source::Credential) {
        return Err(TrustError::Provisioned(host.key));
    }
    for host in &removed {
        match &host.source {
            Source::File(path) => remove_key(path, &host.key)?,
            _ => remove_file(&paths.first_use())?,
        }
    }
    Ok(removed)
}

/// Forgets the first host: the next one to come is the first. Hosts that were added stay. False where none was.
///
/// # Errors
/// [`TrustError::File`].
pub fn reset(paths: &Paths) -> Result<bool, TrustError> {
    let was = paths.first_use().exists();
    remove_file(&paths.first_use())?;
    Ok(was)
}

/// Takes one key out of a file that may hold others and comments, and the file away with its last key.
fn remove_key(path: &Path, key: &PublicKey) -> Result<(), TrustError> {
    let failed = |act| move |source| TrustError::File { path: path.into(), act, source };
    let text = atomic_file::read_text(path, FILE).map_err(failed("read"))?.unwrap_or_default();
    let of = |line: &str| PublicKey::from_text(line).ok();
    let kept: Vec<&str> = text.lines().filter(|line| of(line) != Some(*key)).collect();
    if kept.iter().any(|line| of(line).is_some()) {
        let text = kept.join("\n") + "\n";
        atomic_file::replace(path, text.as_bytes(), 0o644, Durability::Disk).map_err(failed("written"))
    } else {
        remove_file(path)
    }
}

fn remove_file(path: &Path) -> Result<(), TrustError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(TrustError::File { path: path.into(), act: "removed", source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hospes_protocol::keys::SecretKey;

    const MACHINE: [u8; 32] = [5; 32];

    fn key(n: u8) -> PublicKey {
        SecretKey::from_bytes(&[n; 32]).public()
    }

    fn guest() -> (tempfile::TempDir, Paths) {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths {
            etc: directory.path().join("etc"),
            state: directory.path().join("state"),
            credentials: Some(directory.path().join("credentials")),
            ..Paths::default()
        };
        fs::create_dir_all(directory.path().join("credentials")).unwrap();
        (directory, paths)
    }

    #[test]
    fn the_first_host_is_remembered_and_the_second_is_refused_by_both_names() {
        let (_directory, paths) = guest();
        let mut store = TrustStore::load(&paths, &MACHINE);
        assert_eq!(store.decide(&key(1), TrustMode::FirstUse), Decision::FirstUse);
        assert_eq!(store.decide(&key(1), TrustMode::Pinned), Decision::Refused);
        store.pin_first(&paths, &MACHINE, key(1)).unwrap();
        for store in [store, TrustStore::load(&paths, &MACHINE)] {
            assert_eq!(store.decide(&key(1), TrustMode::Pinned), Decision::Trusted);
            assert_eq!(store.decide(&key(2), TrustMode::FirstUse), Decision::Refused);
            let refusal = store.refusal(&key(2));
            assert!(refusal.message.contains(&key(1).fingerprint()));
            assert!(refusal.message.contains(&key(2).fingerprint()));
            assert!(refusal.hint.contains(&key(2).to_text()) && refusal.hint.contains("trust reset"));
        }
    }

    #[test]
    fn a_pin_of_another_machine_is_none() {
        let (_directory, paths) = guest();
        TrustStore::default().pin_first(&paths, &[6; 32], key(1)).unwrap();
        assert_eq!(TrustStore::load(&paths, &MACHINE), TrustStore::default());
    }

    #[test]
    fn provisioned_keys_leave_no_place_for_a_first_comer() {
        let (_directory, paths) = guest();
        fs::write(
            paths.credentials.as_ref().unwrap().join("hospes.trusted-hosts"),
            key(3).to_text() + " host\n",
        )
        .unwrap();
        let store = TrustStore::load(&paths, &MACHINE);
        assert_eq!(
            store.hosts,
            [TrustedHost { key: key(3), source: Source::Credential, comment: "host".into() }]
        );
        assert_eq!(store.decide(&key(1), TrustMode::FirstUse), Decision::Refused);
        assert!(matches!(remove(&paths, &store, &key(3).fingerprint()), Err(TrustError::Provisioned(_))));
    }

    #[test]
    fn damaged_provisioning_leaves_no_place_for_a_first_comer_either() {
        let (_directory, paths) = guest();
        fs::create_dir_all(paths.trusted_hosts()).unwrap();
        fs::write(paths.trusted_hosts().join("a.pub"), "# mine\nhospes-ed25519 12\n").unwrap();
        let store = TrustStore::load(&paths, &MACHINE);
        assert!(store.problems[0].contains("a.pub: line 2"), "{:?}", store.problems);
        assert_eq!(store.decide(&key(1), TrustMode::FirstUse), Decision::Refused);
    }

    #[test]
    fn a_host_is_added_by_name_and_removed_by_name_key_or_fingerprint() {
        let (_directory, paths) = guest();
        let path = add(&paths, &key(1), "someone@laptop\n", Some("laptop")).unwrap();
        assert!(matches!(add(&paths, &key(2), "", Some("laptop")), Err(TrustError::Exists(_))));
        assert!(matches!(add(&paths, &key(2), "", Some("../x")), Err(TrustError::Name(_))));
        add(&paths, &key(2), "", None).unwrap();
        let store = TrustStore::load(&paths, &MACHINE);
        assert_eq!((store.hosts.len(), store.problems.len()), (2, 0));
        assert!(store.hosts.iter().any(|host| host.comment == "someone@laptop"));

        assert_eq!(remove(&paths, &store, "laptop").unwrap()[0].key, key(1));
        assert!(!path.exists());
        assert_eq!(remove(&paths, &store, &key(2).fingerprint()).unwrap()[0].key, key(2));
        assert_eq!(TrustStore::load(&paths, &MACHINE), TrustStore::default());
        assert!(matches!(remove(&paths, &store, "nobody"), Err(TrustError::NoSuchHost(_))));
    }

    #[test]
    fn removing_one_key_of_a_file_keeps_the_others() {
        let (_directory, paths) = guest();
        fs::create_dir_all(paths.trusted_hosts()).unwrap();
        let file = paths.trusted_hosts().join("two.pub");
        fs::write(&file, format!("# ours\n{} a\n{} b\n", key(1).to_text(), key(2).to_text())).unwrap();
        remove(&paths, &TrustStore::load(&paths, &MACHINE), &key(1).to_text()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("# ours\n{} b\n", key(2).to_text()));
    }

    #[test]
    fn a_reset_forgets_the_first_host_alone() {
        let (_directory, paths) = guest();
        TrustStore::default().pin_first(&paths, &MACHINE, key(1)).unwrap();
        add(&paths, &key(2), "", None).unwrap();
        assert!(reset(&paths).unwrap());
        assert!(!reset(&paths).unwrap());
        let store = TrustStore::load(&paths, &MACHINE);
        assert_eq!(store.hosts.iter().map(|host| host.key).collect::<Vec<_>>(), [key(2)]);
    }
}
