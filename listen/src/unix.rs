//! A private name in the file system.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket's name; removed with the value, if it is still this socket's.
#[derive(Debug)]
pub struct Name {
    path: PathBuf,
    id: (u64, u64),
}

impl Name {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes it out of the file system now: nobody new finds the socket.
    pub fn remove(&self) {
        if id(&self.path).is_ok_and(|id| id == self.id) {
            // There is nobody left to tell.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Listens at `path`, with mode 0600 from the first moment on. A socket that nobody listens at any more is replaced.
///
/// # Errors
/// The operating system's; `AddrInUse` where somebody listens there, or where something is that is no socket.
pub fn listen(path: PathBuf) -> io::Result<(UnixListener, Name)> {
    let listener = match bind(&path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(&path) => {
            std::fs::remove_file(&path)?;
            bind(&path)?
        }
        bound => bound?,
    };
    let id = id(&path)?;
    Ok((listener, Name { path, id }))
}

/// The name is made with the socket's own mode: nobody else can come in between.
#[cfg(target_os = "linux")]
fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use nix::sys::stat::{Mode, fchmod};

    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd.into())
}

/// Where a socket has no mode before it has a name, it gets its name in a directory of ours, and moves.
#[cfg(not(target_os = "linux"))]
fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;

    if path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = tempfile::Builder::new().prefix(".hospes-").tempdir_in(parent)?;
    let made = aside.path().join("s");
    let listener = UnixListener::bind(&made)?;
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&made, path)?;
    Ok(listener)
}

fn is_stale(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && UnixStream::connect(path).is_err_and(refused)
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let found = path.symlink_metadata()?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        (dir, path)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let (dir, path) = place();
        let (first, name) = listen(path.clone()).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(listen(path.clone()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        std::mem::forget(name);
        drop(first);
        assert!(path.exists(), "left behind, as by a process that was killed");
        drop(listen(path.clone()).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        std::fs::write(&path, b"precious").unwrap();
        assert_eq!(listen(path.clone()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_name_that_became_somebody_elses_is_left_alone() {
        let (_dir, path) = place();
        let ours = listen(path.clone()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let theirs = listen(path.clone()).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
        assert!(!path.exists());
    }

    #[test]
    fn a_name_as_long_as_the_system_takes_will_do() {
        let (dir, _) = place();
        let room = 107 - dir.path().as_os_str().len() - 1;
        listen(dir.path().join("x".repeat(room))).unwrap();
    }
}
