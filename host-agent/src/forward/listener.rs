//! This machine's listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use hospes_protocol::forward::Address;

use super::local::Socket;

/// One listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix, with its name in the file system.
    Unix(UnixListener, Name),
}

/// A socket's name; removed with it, if it is still ours.
#[derive(Debug)]
pub struct Name {
    path: PathBuf,
    id: (u64, u64),
}

impl Name {
    fn remove(&self) {
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

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let found = path.symlink_metadata()?;
    Ok((found.dev(), found.ino()))
}

/// Listens, on every address that a name has (both of `localhost`'s) at the same port; `*` is every address there is.
/// Gives the address back with the port that was chosen for port zero.
///
/// # Errors
/// The operating system's.
pub fn listen(on: &Address) -> io::Result<(Vec<Listener>, Address)> {
    match on {
        Address::Tcp { host, port } => {
            let (listeners, port) = bind_tcp(host, *port)?;
            let listeners = listeners.into_iter().map(Listener::Tcp).collect();
            Ok((listeners, Address::Tcp { host: host.clone(), port }))
        }
        Address::Unix { path } => {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
            Ok((vec![bind_unix(path)?], on.clone()))
        }
    }
}

fn bind_tcp(host: &str, port: u16) -> io::Result<(Vec<TcpListener>, u16)> {
    let addresses: Vec<SocketAddr> = if host == "*" {
        vec![([0; 16], port).into(), ([0; 4], port).into()]
    } else {
        (host, port).to_socket_addrs()?.collect()
    };
    let (mut listeners, mut bound, mut first) = (Vec::new(), port, None);
    for mut address in addresses {
        address.set_port(bound);
        match TcpListener::bind(address) {
            Ok(listener) => {
                bound = listener.local_addr()?.port();
                listeners.push(listener);
                // One socket on the IPv6 wildcard takes IPv4's callers too.
                if host == "*" {
                    break;
                }
            }
            // Half of a pair that somebody else has is no listener, where the port was asked for.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && port > 0 => return Err(error),
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    match first {
        Some(error) if listeners.is_empty() => Err(error),
        None if listeners.is_empty() => {
            Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
        }
        _ => Ok((listeners, bound)),
    }
}

/// A socket that nobody listens at any more is replaced; anything else is not. For this user alone: it is made under
/// another name in a directory of ours, so that nobody comes in before its mode is set.
fn bind_unix(path: PathBuf) -> io::Result<Listener> {
    if path.symlink_metadata().is_ok() && !is_stale(&path) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = tempfile::Builder::new().prefix(".hospes-").tempdir_in(parent)?;
    let made = aside.path().join("s");
    let listener = UnixListener::bind(&made)?;
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o600))?;
    let id = id(&made)?;
    std::fs::rename(&made, &path)?;
    Ok(Listener::Unix(listener, Name { path, id }))
}

fn is_stale(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && UnixStream::connect(path).is_err_and(refused)
}

impl Listener {
    /// Takes its name out of the file system, if it has one: nobody new finds it.
    pub fn withdraw(&self) {
        if let Self::Unix(_, name) = self {
            name.remove();
        }
    }

    /// Takes the next caller, and says who it is.
    ///
    /// # Errors
    /// The operating system's; asking again later is right.
    pub fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, from)| (stream.into(), from.to_string())),
            Self::Unix(listener, name) => {
                listener.accept().map(|(stream, _)| (stream.into(), name.path.display().to_string()))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind_unix(path.clone()).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(bind_unix(path.clone()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        drop(UnixListener::bind(&path).unwrap());
        drop(bind_unix(path.clone()).unwrap());
        std::fs::write(&path, b"precious").unwrap();
        bind_unix(path.clone()).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn localhost_is_every_loopback_at_one_port() {
        let on = Address::Tcp { host: "localhost".to_owned(), port: 0 };
        let (listeners, Address::Tcp { port, .. }) = listen(&on).unwrap() else { panic!() };
        assert!(port > 0 && !listeners.is_empty());
        for listener in &listeners {
            let Listener::Tcp(listener) = listener else { panic!() };
            let address = listener.local_addr().unwrap();
            assert!(address.ip().is_loopback() && address.port() == port);
        }
    }
}
