//! Sockets in `/run/hospes` by which this machine's own programs reach the daemon.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::UnixListener;

/// Who may connect. What a connection is good for is decided by who made it, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Root alone: mode 0600.
    Root,
    /// Every user: mode 0666.
    Everybody,
}

/// Listens at `path`, in place of what an earlier daemon left there.
///
/// # Errors
/// What the file system says.
pub fn bind(path: &Path, callers: Callers) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let mode = match callers {
        Callers::Root => 0o600,
        Callers::Everybody => 0o666,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}
