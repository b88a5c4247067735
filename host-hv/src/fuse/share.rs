//! Shares: directories of the host that a guest may see, each with its name, its rights and its owner.

use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use super::abi::NAME_MAX;
use super::owner::{Ids, Owner};
use super::sys::{self, Errno, Identity};

/// What a share is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareSpec {
    /// Its name in the guest, one component of a path.
    pub name: String,
    /// The directory on the host.
    pub path: PathBuf,
    /// The guest may change nothing.
    pub read_only: bool,
    /// Who owns what.
    pub owner: Owner,
}

/// Why a directory cannot be shared, or a share not be found.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ShareError {
    #[error(
        "\"{name}\" cannot be a share's name: it must be 1 to 255 bytes of text with no slash, and not begin with a dot"
    )]
    Name { name: String },
    #[error("There is a share \"{name}\" already, of {}. Choose another name with --as", path.display())]
    Taken { name: String, path: PathBuf },
    #[error("There is no share \"{name}\". There {have}")]
    Unknown { name: String, have: String },
    #[error("{} is not there on the host", path.display())]
    Missing { path: PathBuf },
    #[error("{} is no directory, and only directories can be shared", path.display())]
    NotDirectory { path: PathBuf },
    #[error("The host does not let this user open {}", path.display())]
    Denied { path: PathBuf },
    #[error("{} is not a path from the root of the host's file system", path.display())]
    Relative { path: PathBuf },
    #[error("The guest has {limit} shares, the most allowed")]
    Limit { limit: usize },
    #[error("{} could not be opened on the host", path.display())]
    Open { path: PathBuf, source: std::io::Error },
}

impl ShareError {
    /// One word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Name { .. } => "bad-name",
            Self::Taken { .. } => "name-taken",
            Self::Unknown { .. } => "no-such-share",
            Self::Missing { .. } => "no-such-path",
            Self::NotDirectory { .. } => "not-a-directory",
            Self::Denied { .. } => "permission-denied",
            Self::Relative { .. } => "relative-path",
            Self::Limit { .. } => "too-many",
            Self::Open { .. } => "cannot-open",
        }
    }

    pub(super) fn unknown<'a>(name: &str, shares: impl Iterator<Item = &'a str>) -> Self {
        let mut have = String::new();
        for share in shares {
            let _ = write!(have, "{}\"{share}\"", if have.is_empty() { "are " } else { ", " });
        }
        if have.is_empty() {
            have.push_str("are none");
        }
        Self::Unknown { name: name.to_owned(), have }
    }
}

/// A directory that a guest sees.
pub struct Share {
    /// Tells it from all others of this server, removed ones included.
    pub id: u32,
    /// What was asked for.
    pub name: String,
    /// The directory on the host.
    pub path: PathBuf,
    /// Who owns what.
    pub owner: Owner,
    /// The directory's owner on the host: whom the guest's user stands for.
    pub host: Ids,
    /// As whom to act.
    pub actor: Ids,
    /// The directory itself, whatever its path comes to name later.
    pub root: Arc<OwnedFd>,
    /// What tells it from other files.
    pub identity: Identity,
    read_only: AtomicBool,
    gone: AtomicBool,
}

impl Share {
    /// Of a directory that is open.
    pub fn new(id: u32, spec: ShareSpec, root: OwnedFd) -> Result<Self, ShareError> {
        let ShareSpec { name, path, read_only, owner } = spec;
        check_name(&name)?;
        let meta = sys::stat(&root).map_err(|error| fault(&path, error))?;
        let actor = match owner {
            Owner::Raw => Ids { uid: 0, gid: 0 },
            Owner::Map(_) | Owner::Squash(_) => meta.ids,
        };
        // A server that is no root acts as itself, and what it makes is its own.
        let own = Ids { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let host = if sys::is_privileged() { meta.ids } else { own };
        Ok(Self {
            id,
            name,
            path,
            owner,
            host,
            actor,
            root: Arc::new(root),
            identity: meta.identity,
            read_only: AtomicBool::new(read_only),
            gone: AtomicBool::new(false),
        })
    }

    /// The guest may change nothing.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Changes that, for files that are open already too.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
    }

    /// It was removed: nothing of it is served any more.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// What it is.
    pub fn spec(&self) -> ShareSpec {
        ShareSpec {
            name: self.name.clone(),
            path: self.path.clone(),
            read_only: self.is_read_only(),
            owner: self.owner,
        }
    }
}

/// Opens the directory that is to be shared.
pub fn open_root(path: &Path) -> Result<OwnedFd, ShareError> {
    if !path.is_absolute() {
        return Err(ShareError::Relative { path: path.to_owned() });
    }
    sys::open_root(path).map_err(|error| fault(path, error))
}

/// The directory is there, and cannot be shared all the same.
pub fn unopened(path: &Path, source: std::io::Error) -> ShareError {
    ShareError::Open { path: path.to_owned(), source }
}

fn check_name(name: &str) -> Result<(), ShareError> {
    let good = !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.starts_with('.')
        && !name.contains(|c: char| c == '/' || c.is_control());
    if good { Ok(()) } else { Err(ShareError::Name { name: name.escape_debug().to_string() }) }
}

fn fault(path: &Path, error: Errno) -> ShareError {
    let path = path.to_owned();
    match error {
        Errno::NOENT => ShareError::Missing { path },
        Errno::NOTDIR => ShareError::NotDirectory { path },
        Errno::ACCESS | Errno::PERM => ShareError::Denied { path },
        error => ShareError::Open { path, source: error.into() },
    }
}
