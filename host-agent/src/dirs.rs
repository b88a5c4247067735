//! Where our files are: the XDG base directories, and what stands in for them where a variable is unset.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, getuid};

/// Why a directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DirsError {
    /// Neither the XDG variable nor a home directory is known.
    #[error("Cannot tell where to keep {what}: neither {variable} nor HOME is set")]
    Homeless {
        /// What would be kept there.
        what: &'static str,
        /// The XDG variable.
        variable: &'static str,
    },
    /// The directory cannot be made.
    #[error("Cannot create the directory {}", path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else could reach what we put there.
    #[error("The directory {} belongs to user {owner} with mode {mode:03o}: others could reach the agent's socket", path.display())]
    Shared {
        /// Which.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
}

/// `$XDG_CONFIG_HOME/hospes`: the VMs' files.
///
/// # Errors
/// [`DirsError::Homeless`].
pub fn config() -> Result<PathBuf, DirsError> {
    base("XDG_CONFIG_HOME", ".config", "configuration")
}

/// `$XDG_DATA_HOME/hospes`: our key and the guests' pins.
///
/// # Errors
/// [`DirsError::Homeless`].
pub fn data() -> Result<PathBuf, DirsError> {
    base("XDG_DATA_HOME", ".local/share", "keys")
}

/// The agent's socket: `$XDG_RUNTIME_DIR/hospes/agent.sock`, or `~/.cache/hospes/run/agent.sock` where the login made
/// no runtime directory (macOS, su, cron).
///
/// # Errors
/// [`DirsError::Homeless`].
pub fn agent_socket() -> Result<PathBuf, DirsError> {
    Ok(runtime()?.join("agent.sock"))
}

/// The directory of the agent's socket. Nothing is created.
///
/// # Errors
/// [`DirsError::Homeless`].
pub fn runtime() -> Result<PathBuf, DirsError> {
    match absolute("XDG_RUNTIME_DIR") {
        Some(dir) => Ok(dir.join("hospes")),
        None => Ok(base("XDG_CACHE_HOME", ".cache", "the agent's socket")?.join("run")),
    }
}

/// Makes `path` with its parents, for us alone.
///
/// # Errors
/// [`DirsError::Create`].
pub fn create(path: &Path) -> Result<(), DirsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| DirsError::Create { path: path.to_owned(), source })
}

/// Makes `path`, and holds that it is ours and closed to others, even where it was there before.
///
/// # Errors
/// [`DirsError::Create`], [`DirsError::Shared`].
pub fn create_private(path: &Path) -> Result<(), DirsError> {
    create(path)?;
    let meta =
        fs::symlink_metadata(path).map_err(|source| DirsError::Create { path: path.to_owned(), source })?;
    let mode = meta.mode() & 0o777;
    if !meta.is_dir() || meta.uid() != getuid().as_raw() || mode & 0o022 != 0 {
        return Err(DirsError::Shared { path: path.to_owned(), owner: meta.uid(), mode });
    }
    Ok(())
}

fn base(variable: &'static str, under_home: &str, what: &'static str) -> Result<PathBuf, DirsError> {
    let dir = absolute(variable).or_else(|| home().map(|home| home.join(under_home)));
    Ok(dir.ok_or(DirsError::Homeless { what, variable })?.join("hospes"))
}

/// The specification has relative paths ignored.
fn absolute(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn home() -> Option<PathBuf> {
    absolute("HOME").or_else(|| User::from_uid(Uid::current()).ok().flatten().map(|user| user.dir))
}
