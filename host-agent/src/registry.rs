//! The VMs that were added: `$XDG_CONFIG_HOME/hospes/vms/NAME.toml`, one file each, readable without the agent.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::dirs::{self, DirsError};
use crate::vm::{Vm, VmName, VmSpec};

/// Bytes in a VM's file. A larger one is no VM's file.
const FILE_LEN: u64 = 64 * 1024;

/// What went wrong with the VMs' files.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No place for files.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// No file for this name.
    #[error("No VM named {name}")]
    Unknown {
        /// The name.
        name: VmName,
        /// Names that there are.
        known: Vec<VmName>,
    },
    /// Added before.
    #[error("A VM named {name} is there already: {endpoint}")]
    Exists {
        /// The name.
        name: VmName,
        /// Its endpoint.
        endpoint: String,
    },
    /// The operating system refused.
    #[error("Cannot {act} {}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no VM's.
    #[error("The file {} does not describe a VM: {reason}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
}

impl RegistryError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { known, .. } if known.is_empty() => {
                Some("No VM was added yet: hospes add NAME ENDPOINT".to_owned())
            }
            Self::Unknown { known, .. } => {
                let names: Vec<&str> = known.iter().map(VmName::as_str).collect();
                Some(format!(
                    "There are: {}. Another is added with hospes add NAME ENDPOINT",
                    names.join(", ")
                ))
            }
            Self::Exists { name, .. } => Some(format!(
                "hospes add --replace {name} ENDPOINT changes it, hospes remove {name} removes it"
            )),
            Self::Malformed { .. } => Some("A VM's file needs a line like endpoint = \"vsock:3\"".to_owned()),
            Self::Dirs(_) | Self::Io { .. } => None,
        }
    }
}

/// An entry of the list: a VM, or a name whose file cannot be read.
pub type Listed = Result<Vm, (VmName, RegistryError)>;

/// The VMs' files.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The user's.
    ///
    /// # Errors
    /// [`RegistryError::Dirs`].
    pub fn open() -> Result<Self, RegistryError> {
        Ok(Self { dir: dirs::config()?.join("vms") })
    }

    /// The directory that holds the files, which may not exist yet.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One VM.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Malformed`], [`RegistryError::Io`].
    pub fn load(&self, name: &VmName) -> Result<Vm, RegistryError> {
        let path = self.path(name);
        match read(&path) {
            Ok(text) => Ok(Vm { name: name.clone(), spec: parse(&path, &text)? }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RegistryError::Unknown { name: name.clone(), known: self.names()? })
            }
            Err(source) => Err(RegistryError::Io { act: "read", path, source }),
        }
    }

    /// Whether there is a file for this name.
    #[must_use]
    pub fn has(&self, name: &VmName) -> bool {
        self.path(name).is_file()
    }

    /// Every name, sorted. Files that are no VM's are passed over.
    ///
    /// # Errors
    /// [`RegistryError::Io`].
    pub fn names(&self) -> Result<Vec<VmName>, RegistryError> {
        let at = |source| RegistryError::Io { act: "list", path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(at(source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(at)?.file_name();
            let name =
                file.to_str().and_then(|file| file.strip_suffix(".toml")).and_then(|stem| stem.parse().ok());
            names.extend(name);
        }
        names.sort();
        Ok(names)
    }

    /// Every VM, sorted by name; a file that cannot be read is an entry of its own.
    ///
    /// # Errors
    /// [`RegistryError::Io`] where the directory cannot be listed.
    pub fn list(&self) -> Result<Vec<Listed>, RegistryError> {
        let names = self.names()?;
        Ok(names.into_iter().map(|name| self.load(&name).map_err(|error| (name, error))).collect())
    }

    /// Writes a VM's file, whole or not at all.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] unless `replace`, [`RegistryError::Io`].
    pub fn save(&self, vm: &Vm, replace: bool) -> Result<(), RegistryError> {
        let path = self.path(&vm.name);
        if !replace && let Ok(old) = self.load(&vm.name) {
            return Err(RegistryError::Exists { name: old.name, endpoint: old.spec.endpoint.to_string() });
        }
        dirs::create(&self.dir)?;
        let text = toml::to_string(&vm.spec)
            .map_err(|error| RegistryError::Malformed { path: path.clone(), reason: error.to_string() })?;
        write_whole(&path, text.as_bytes(), replace).map_err(|source| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                let endpoint = vm.spec.endpoint.to_string();
                return RegistryError::Exists { name: vm.name.clone(), endpoint };
            }
            RegistryError::Io { act: "write", path: path.clone(), source }
        })
    }

    /// Removes a VM's file.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Io`].
    pub fn remove(&self, name: &VmName) -> Result<(), RegistryError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RegistryError::Unknown { name: name.clone(), known: self.names()? })
            }
            Err(source) => Err(RegistryError::Io { act: "remove", path, source }),
        }
    }

    fn path(&self, name: &VmName) -> PathBuf {
        self.dir.join(format!("{name}.toml"))
    }
}

/// Writes a file of mode 0600 beside its place and moves it there, so that a reader sees the old or the new one.
/// Without `replace`, an existing file is `AlreadyExists`, decided by the kernel.
///
/// # Errors
/// The operating system's.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], replace: bool) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    let moved = if replace { file.persist(path) } else { file.persist_noclobber(path) };
    moved.map(drop).map_err(|error| error.error)
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_LEN).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<VmSpec, RegistryError> {
    toml::from_str(text).map_err(|error| RegistryError::Malformed {
        path: path.to_owned(),
        reason: error.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry { dir: dir.path().join("vms") };
        (dir, registry)
    }

    fn vm(name: &str, endpoint: &str) -> Vm {
        Vm {
            name: name.parse().unwrap(),
            spec: VmSpec {
                endpoint: endpoint.parse().unwrap(),
                user: None,
                hv: None,
                qmp: None,
                clipboard: false,
            },
        }
    }

    #[test]
    fn a_vm_survives_its_file_and_an_added_one_is_not_overwritten() {
        let (_dir, registry) = registry();
        let dev = vm("dev", "vsock:42");
        assert!(registry.names().unwrap().is_empty());
        registry.save(&dev, false).unwrap();
        assert_eq!(registry.load(&dev.name).unwrap(), dev);
        let other = vm("dev", "vsock:43");
        assert!(matches!(registry.save(&other, false), Err(RegistryError::Exists { .. })));
        registry.save(&other, true).unwrap();
        assert_eq!(registry.load(&dev.name).unwrap(), other);
        registry.remove(&dev.name).unwrap();
        assert!(matches!(registry.load(&dev.name), Err(RegistryError::Unknown { .. })));
    }

    #[test]
    fn a_broken_file_spoils_no_other() {
        let (_dir, registry) = registry();
        registry.save(&vm("dev", "vsock:42"), false).unwrap();
        fs::write(registry.dir().join("broken.toml"), "endpoint = 7").unwrap();
        fs::write(registry.dir().join("notes.txt"), "").unwrap();
        let list = registry.list().unwrap();
        assert_eq!(list.len(), 2);
        assert!(
            matches!(&list[0], Err((name, RegistryError::Malformed { .. })) if name.as_str() == "broken")
        );
        assert_eq!(list[1].as_ref().unwrap().name.as_str(), "dev");
    }

    #[test]
    fn unknown_keys_are_left_alone() {
        let spec = parse(Path::new("x"), "endpoint = 'vsock:3'\nuser = 'jo'\nlater = [1, 2]").unwrap();
        assert_eq!(spec.user.as_deref(), Some("jo"));
    }
}
