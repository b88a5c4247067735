//! Where a copy goes, as the users of cp and rsync expect it.
//!
//! | the target | what comes | where it goes |
//! |---|---|---|
//! | is a directory | an entry | into it, under its own name |
//! | is a directory | contents (`dir/`) | into it |
//! | is missing, or is a file | one entry | the target is its new name |
//! | is missing, and ends in a slash, or several entries or contents come | | it is made, and they go into it |

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hospes_protocol::error::{ErrorKind, WireError};
use rustix::fs::{FileType, Mode, OFlags, mkdir, open, stat};
use rustix::io::Errno;

use crate::fault::system;
use crate::read::Source;

/// Where a copy goes.
#[derive(Debug, Clone)]
pub struct Target {
    path: Vec<u8>,
    into: bool,
    /// The top names that may come; all where the sender is us.
    admitted: Option<Vec<Vec<u8>>>,
}

/// The target once it is open.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) dir: Arc<OwnedFd>,
    /// The one entry's new name, where the target is that and no directory.
    pub(super) name: Option<Vec<u8>>,
    /// The new name was used.
    pub(super) taken: bool,
    /// The directory was made for this copy.
    pub(super) made: bool,
    /// Nothing that is there will be replaced.
    pub(super) fresh: bool,
}

impl Target {
    /// The target at a path of this system; `into` where several sources, or contents, come.
    #[must_use]
    pub fn new(path: &[u8], into: bool) -> Self {
        Self { path: path.to_vec(), into, admitted: None }
    }

    /// Takes nothing but what these sources stand for: a sender that slips in another name is refused.
    #[must_use]
    pub fn only(mut self, sources: &[Source]) -> Self {
        self.admitted = Some(sources.iter().map(|source| source.name().to_vec()).collect());
        self
    }

    /// Whether a top name may come; the empty one stands for contents.
    pub(super) fn admits(&self, name: &[u8]) -> bool {
        self.admitted.as_ref().is_none_or(|admitted| admitted.iter().any(|admitted| admitted == name))
    }

    /// Looks, and makes nothing.
    pub(super) fn check(&self) -> Result<(), WireError> {
        match self.directory() {
            Err(Errno::NOENT) => {
                let (parent, _) = self.split()?;
                stat(parent).map(drop).map_err(|errno| {
                    self.error("Cannot write to", errno).hint("Make the directory above it first")
                })
            }
            Ok(false) if self.into || self.is_slashed() => Err(self.error("Cannot copy into", Errno::NOTDIR)),
            Ok(_) => Ok(()),
            Err(errno) => Err(self.error("Cannot write to", errno)),
        }
    }

    /// Opens it, or what it is to be made in.
    pub(super) fn open(&self) -> Result<Root, WireError> {
        let open = |path: &[u8]| {
            open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| self.error("Cannot open", errno))
        };
        let root =
            |dir: OwnedFd| Root { dir: dir.into(), name: None, taken: false, made: false, fresh: false };
        match self.directory() {
            Ok(true) => return Ok(root(open(&self.path)?)),
            Err(Errno::NOENT) if self.into || self.is_slashed() => {
                mkdir(&self.path, Mode::from_raw_mode(0o777))
                    .map_err(|errno| self.error("Cannot make", errno))?;
                return Ok(Root { made: true, fresh: true, ..root(open(&self.path)?) });
            }
            Ok(false) if self.into || self.is_slashed() => {
                return Err(self.error("Cannot copy into", Errno::NOTDIR));
            }
            _ => (),
        }
        let (parent, name) = self.split()?;
        Ok(Root { name: Some(name.to_vec()), ..root(open(parent)?) })
    }

    fn directory(&self) -> Result<bool, Errno> {
        stat(&self.path[..]).map(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
    }

    fn is_slashed(&self) -> bool {
        self.path.ends_with(b"/")
    }

    /// The directory above, and the last name.
    fn split(&self) -> Result<(&[u8], &[u8]), WireError> {
        let end = self.path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let path = &self.path[..end];
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..=slash], &path[slash + 1..]),
            None => (&b"."[..], path),
        };
        if matches!(name, b"" | b"." | b"..") {
            Err(self.error("Cannot write to", Errno::NOENT))
        } else {
            Ok((parent, name))
        }
    }

    fn error(&self, act: &str, errno: Errno) -> WireError {
        let path = String::from_utf8_lossy(&self.path);
        let error = system(&format!("{act} {path:?}"), errno);
        if errno == Errno::LOOP { WireError { kind: ErrorKind::OS, ..error } } else { error }
    }
}
