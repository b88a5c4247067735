//! Guest variables: small named values that the host leaves for the guest, and the guest for its host.
//!
//! The daemon holds them and writes them under `/run/hospes`, so that they outlive it and end with the boot. Those that
//! are no secrets stand in a file that everybody in the guest may read: no user makes the daemon work by reading.
//! Secrets stand in a file of root's, and leave it before their one reader gets them. What the guest's root sets or
//! takes goes over the [local socket](local).

pub mod local;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::limits::{VARIABLES, VARIABLES_TOTAL};
use hospes_protocol::variable::{Owner, Variable, VariableError, check_name, check_value};
use tokio::sync::watch;

use crate::atomic_file::{self, Durability};

/// Bytes that either file may have: every variable, and what the codec adds to each.
const FILE: u64 = (VARIABLES_TOTAL + VARIABLES * 16) as u64;
/// Changes whose names are remembered for a subscriber that is behind. One further behind is told every name.
const CHANGES: usize = 2 * VARIABLES;

/// The variables of this boot.
#[derive(Debug)]
pub struct Variables {
    run: PathBuf,
    map: BTreeMap<String, Stored>,
    /// Bytes of all names and values.
    total: usize,
    /// Names that changed, oldest first, each with the number of its change.
    changes: VecDeque<(u64, String)>,
    serial: watch::Sender<u64>,
}

#[derive(Debug)]
struct Stored {
    value: Vec<u8>,
    secret: bool,
}

impl Variables {
    /// The variables that an earlier daemon of this boot left. A file that cannot be read leaves none of its own.
    #[must_use]
    pub fn load(run: &Path) -> Self {
        let mut variables = Self {
            run: run.into(),
            map: BTreeMap::new(),
            total: 0,
            changes: VecDeque::new(),
            serial: watch::Sender::new(0),
        };
        let files = [(public_file(run), false), (secret_file(run), true)];
        for (path, secret) in files {
            match read_file(&path) {
                Ok(list) => variables.restore(list.into_iter().filter(|variable| variable.secret == secret)),
                Err(error) => tracing::error!("{} is lost: {error}", path.display()),
            }
        }
        variables
    }

    fn restore(&mut self, list: impl Iterator<Item = Variable>) {
        for Variable { name, value, secret } in list {
            self.total += name.len() + value.len();
            self.map.insert(name, Stored { value, secret });
        }
    }

    /// Every variable by its name, secrets without their values.
    #[must_use]
    pub fn list(&self) -> Vec<Variable> {
        self.map.iter().map(|(name, stored)| shown(name, stored)).collect()
    }

    /// One variable. A secret is the guest's root's alone, who may read it once: it is gone when this returns.
    ///
    /// # Errors
    /// `NOT_FOUND`, `FORBIDDEN`, or `OS` where a secret's going cannot be written down; it then stays unread.
    pub fn get(&mut self, name: &str, by: Owner) -> Result<Variable, WireError> {
        let stored = self.map.get(name).ok_or_else(|| missing(name))?;
        if !stored.secret {
            return Ok(shown(name, stored));
        }
        if by == Owner::Host {
            return Err(WireError::new(ErrorKind::FORBIDDEN, format!("{} is a secret", quoted(name)))
                .hint("Only the guest's root can read it, once: hospes-tools var get"));
        }
        let value = stored.value.clone();
        self.remove_stored(name)?;
        Ok(Variable { name: name.to_owned(), value, secret: true })
    }

    /// Sets a variable.
    ///
    /// # Errors
    /// `FORBIDDEN` for the other side's name, `LIMIT`, `OTHER` for what is no name, `OS`.
    pub fn set(&mut self, variable: Variable, by: Owner) -> Result<(), WireError> {
        check_name(&variable.name, by).map_err(|error| refused(&error))?;
        check_value(&variable.value).map_err(|error| refused(&error))?;
        let Variable { name, value, secret } = variable;
        let before = self.map.get(&name).map(|stored| name.len() + stored.value.len());
        if before.is_none() && self.map.len() >= VARIABLES {
            let message = format!("The guest keeps {VARIABLES} variables, its limit");
            return Err(WireError::new(ErrorKind::LIMIT, message).hint("Unset some first"));
        }
        let total = self.total - before.unwrap_or(0) + name.len() + value.len();
        if total > VARIABLES_TOTAL {
            let message =
                format!("All variables would be {total} bytes, the guest's limit is {VARIABLES_TOTAL}");
            return Err(
                WireError::new(ErrorKind::LIMIT, message).hint("Unset some first, or copy a file instead")
            );
        }
        let old = self.map.insert(name.clone(), Stored { value, secret });
        let touched = [secret, old.as_ref().map_or(secret, |old| old.secret)];
        if let Err(error) = self.write(touched) {
            match old {
                Some(old) => self.map.insert(name, old),
                None => self.map.remove(&name),
            };
            return Err(error);
        }
        self.total = total;
        self.changed(name);
        Ok(())
    }

    /// Removes a variable.
    ///
    /// # Errors
    /// `NOT_FOUND`, `FORBIDDEN`, `OTHER`, `OS`.
    pub fn remove(&mut self, name: &str, by: Owner) -> Result<(), WireError> {
        check_name(name, by).map_err(|error| refused(&error))?;
        self.remove_stored(name)
    }

    fn remove_stored(&mut self, name: &str) -> Result<(), WireError> {
        let Some((name, stored)) = self.map.remove_entry(name) else { return Err(missing(name)) };
        if let Err(error) = self.write([stored.secret; 2]) {
            self.map.insert(name, stored);
            return Err(error);
        }
        self.total -= name.len() + stored.value.len();
        self.changed(name);
        Ok(())
    }

    /// Tells when something changed, and what since: see [`changed_since`](Self::changed_since).
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.serial.subscribe()
    }

    /// The names that changed after change number `seen`, each once. Where that is too long ago, every name.
    #[must_use]
    pub fn changed_since(&self, seen: u64) -> Vec<String> {
        let known = self.changes.front().is_some_and(|(first, _)| *first <= seen + 1);
        let mut names: Vec<String> = if known {
            self.changes.iter().filter(|(serial, _)| *serial > seen).map(|(_, name)| name.clone()).collect()
        } else if *self.serial.borrow() > seen {
            self.changes.iter().map(|(_, name)| name).chain(self.map.keys()).cloned().collect()
        } else {
            Vec::new()
        };
        names.sort_unstable();
        names.dedup();
        names
    }

    fn changed(&mut self, name: String) {
        let serial = *self.serial.borrow() + 1;
        if self.changes.len() == CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back((serial, name));
        self.serial.send_replace(serial);
    }

    /// Writes the files of those kinds; `true` is secrets.
    fn write(&self, kinds: [bool; 2]) -> Result<(), WireError> {
        let failed = |error: io::Error| {
            let message = format!("The guest cannot write its variables down: {error}");
            WireError::new(ErrorKind::OS, message)
        };
        // Secrets first: whatever happens in between, nothing secret is ever in the other file.
        if kinds.contains(&true) {
            let secrets: Vec<Variable> = self.kind(true).collect();
            write_file(&secret_file(&self.run), &secrets, 0o600).map_err(failed)?;
        }
        if kinds.contains(&false) {
            let public: Vec<Variable> = self.kind(false).collect();
            write_file(&public_file(&self.run), &public, 0o644).map_err(failed)?;
        }
        Ok(())
    }

    fn kind(&self, secret: bool) -> impl Iterator<Item = Variable> {
        self.map.iter().filter(move |(_, stored)| stored.secret == secret).map(|(name, stored)| Variable {
            name: name.clone(),
            value: stored.value.clone(),
            secret: stored.secret,
        })
    }
}

/// The variables that are no secrets, as anybody in the guest may read them without the daemon.
///
/// # Errors
/// What the file system says; [`io::ErrorKind::InvalidData`] for a file of another release.
pub fn read_public(run: &Path) -> io::Result<Vec<Variable>> {
    read_file(&public_file(run))
}

fn public_file(run: &Path) -> PathBuf {
    run.join("variables")
}

fn secret_file(run: &Path) -> PathBuf {
    run.join("variables.secret")
}

fn read_file(path: &Path) -> io::Result<Vec<Variable>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(FILE + 1).read_to_end(&mut bytes)?;
    codec::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn write_file(path: &Path, list: &[Variable], mode: u32) -> io::Result<()> {
    let mut bytes = Vec::new();
    codec::encode_into(&list, &mut bytes);
    atomic_file::replace(path, &bytes, mode, Durability::Memory)
}

fn shown(name: &str, stored: &Stored) -> Variable {
    let value = if stored.secret { Vec::new() } else { stored.value.clone() };
    Variable { name: name.to_owned(), value, secret: stored.secret }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", crate::audit::printable(name.as_bytes()))
}

fn missing(name: &str) -> WireError {
    WireError::new(ErrorKind::NOT_FOUND, format!("No variable is named {}", quoted(name)))
}

fn refused(error: &VariableError) -> WireError {
    match error {
        VariableError::Name(_) => WireError::new(ErrorKind::OTHER, error),
        VariableError::Value(_) => WireError::new(ErrorKind::LIMIT, error).hint("Copy a file instead"),
        VariableError::Owner { owner: "guest", .. } => WireError::new(ErrorKind::FORBIDDEN, error)
            .hint("Names that begin with \"guest.\" are set in the guest: hospes-tools var set"),
        VariableError::Owner { .. } => {
            WireError::new(ErrorKind::FORBIDDEN, error).hint("The guest's own names begin with \"guest.\"")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn variable(name: &str, value: &[u8], secret: bool) -> Variable {
        Variable { name: name.into(), value: value.to_vec(), secret }
    }

    fn fresh() -> (tempfile::TempDir, Variables) {
        let run = tempfile::tempdir().unwrap();
        let variables = Variables::load(run.path());
        (run, variables)
    }

    #[test]
    fn what_is_set_is_there_after_the_daemon_died_and_ends_with_the_boot() {
        let (run, mut variables) = fresh();
        variables.set(variable("build.id", b"\x00\xff", false), Owner::Host).unwrap();
        variables.set(variable("guest.ready", b"yes", false), Owner::Guest).unwrap();
        variables.set(variable("token", b"hunter2", true), Owner::Host).unwrap();
        drop(variables);
        let mut again = Variables::load(run.path());
        assert_eq!(again.get("build.id", Owner::Host).unwrap().value, b"\x00\xff");
        assert_eq!(again.get("token", Owner::Guest).unwrap().value, b"hunter2");
        let (_other_boot, empty) = fresh();
        assert_eq!(empty.list(), []);
    }

    #[test]
    fn a_secret_is_read_once_by_the_guest_alone_and_is_in_no_file_that_others_read() {
        let (run, mut variables) = fresh();
        variables.set(variable("token", b"hunter2", true), Owner::Host).unwrap();
        variables.set(variable("plain", b"x", false), Owner::Host).unwrap();
        assert_eq!(variables.list()[1], variable("token", b"", true));
        assert_eq!(variables.get("token", Owner::Host).unwrap_err().kind, ErrorKind::FORBIDDEN);
        let names: Vec<String> = read_public(run.path()).unwrap().into_iter().map(|v| v.name).collect();
        assert_eq!(names, ["plain"]);
        let mode =
            |file: &str| std::fs::metadata(run.path().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("variables"), mode("variables.secret")), (0o644, 0o600));

        assert_eq!(variables.get("token", Owner::Guest).unwrap().value, b"hunter2");
        let on_disk = std::fs::read(run.path().join("variables.secret")).unwrap();
        assert!(!on_disk.windows(7).any(|bytes| bytes == b"hunter2"));
        for by in [Owner::Guest, Owner::Host] {
            assert_eq!(variables.get("token", by).unwrap_err().kind, ErrorKind::NOT_FOUND);
        }
        assert_eq!(Variables::load(run.path()).list().len(), 1);
    }

    #[test]
    fn a_secret_that_becomes_plain_leaves_the_secrets_and_the_other_way_round() {
        let (run, mut variables) = fresh();
        variables.set(variable("a", b"plain text", false), Owner::Host).unwrap();
        variables.set(variable("a", b"now secret", true), Owner::Host).unwrap();
        assert_eq!(read_public(run.path()).unwrap(), []);
        assert!(!std::fs::read(run.path().join("variables")).unwrap().ends_with(b"plain text\0"));
        variables.set(variable("a", b"again", false), Owner::Host).unwrap();
        assert_eq!(Variables::load(run.path()).list(), [variable("a", b"again", false)]);
    }

    #[test]
    fn each_side_sets_and_unsets_its_own_names_only() {
        let (_run, mut variables) = fresh();
        variables.set(variable("guest.ready", b"1", false), Owner::Guest).unwrap();
        let error = variables.set(variable("guest.ready", b"0", false), Owner::Host).unwrap_err();
        assert_eq!(error.kind, ErrorKind::FORBIDDEN);
        assert_eq!(variables.remove("guest.ready", Owner::Host).unwrap_err().kind, ErrorKind::FORBIDDEN);
        let error = variables.set(variable("build.id", b"0", false), Owner::Guest).unwrap_err();
        assert!(error.hint.contains("guest."), "{error:?}");
        variables.remove("guest.ready", Owner::Guest).unwrap();
        assert_eq!(variables.remove("guest.ready", Owner::Guest).unwrap_err().kind, ErrorKind::NOT_FOUND);
    }

    #[test]
    fn the_caps_hold_and_what_is_replaced_does_not_count() {
        let (_run, mut variables) = fresh();
        let full = vec![b'v'; 65_536];
        for n in 0..15 {
            variables.set(variable(&format!("v{n}"), &full, false), Owner::Host).unwrap();
        }
        let error = variables.set(variable("v15", &full, false), Owner::Host).unwrap_err();
        assert_eq!(error.kind, ErrorKind::LIMIT);
        assert!(error.message.contains("1048576"), "{error}");
        variables.set(variable("v0", &full, false), Owner::Host).unwrap();
        variables.set(variable("v0", b"", false), Owner::Host).unwrap();
        variables.set(variable("v15", &full, false), Owner::Host).unwrap();
        let error = variables.set(variable("big", &[0; 65_537], false), Owner::Host).unwrap_err();
        assert_eq!(error.kind, ErrorKind::LIMIT);
        for n in 0..15 {
            variables.remove(&format!("v{n}"), Owner::Host).unwrap();
        }
        for n in 0..VARIABLES - 1 {
            variables.map.insert(format!("n{n}"), Stored { value: Vec::new(), secret: false });
        }
        let error = variables.set(variable("one.more", b"", false), Owner::Host).unwrap_err();
        assert!(error.message.contains("1024 variables"), "{error}");
    }

    #[test]
    fn a_write_that_fails_changes_nothing() {
        let (run, mut variables) = fresh();
        variables.set(variable("token", b"hunter2", true), Owner::Host).unwrap();
        let gone = run.path().join("moved");
        variables.run = gone.clone();
        assert_eq!(variables.get("token", Owner::Guest).unwrap_err().kind, ErrorKind::OS);
        assert_eq!(variables.set(variable("a", b"", false), Owner::Host).unwrap_err().kind, ErrorKind::OS);
        std::fs::create_dir(&gone).unwrap();
        assert_eq!(variables.list().len(), 1);
        assert_eq!(variables.get("token", Owner::Guest).unwrap().value, b"hunter2");
    }

    #[test]
    fn a_subscriber_is_told_each_changed_name_once_however_far_behind_it_is() {
        let (_run, mut variables) = fresh();
        let serial = variables.subscribe();
        variables.set(variable("a", b"1", false), Owner::Host).unwrap();
        let seen = *serial.borrow();
        variables.set(variable("b", b"1", false), Owner::Host).unwrap();
        variables.set(variable("b", b"2", false), Owner::Host).unwrap();
        variables.remove("a", Owner::Host).unwrap();
        assert_eq!(variables.changed_since(seen), ["a", "b"]);
        assert_eq!(variables.changed_since(*serial.borrow()), Vec::<String>::new());
        for n in 0..=CHANGES {
            variables.changed(format!("n{n}"));
        }
        assert!(variables.changed_since(0).contains(&"b".to_owned()), "what is still there is told");
    }
}
