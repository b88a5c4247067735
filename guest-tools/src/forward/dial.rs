//! Calls an address in the guest.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::forward::{Address, SOCKET_PATH};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::socket::Socket;

/// Connects, and says to what. A name is looked up as the user would, and its addresses are tried in order.
pub(super) async fn dial(to: &Address, home: &Path) -> Result<(Socket, String), WireError> {
    let failed = |error: io::Error| unreachable(to, &error);
    match to {
        Address::Tcp { host, port } => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in lookup_host((host.as_str(), *port)).await.map_err(failed)? {
                match TcpStream::connect(address).await {
                    Ok(stream) => {
                        let fd = OwnedFd::from(stream.into_std().map_err(failed)?);
                        return Ok((Socket::tcp(fd).map_err(failed)?, format!("tcp:{address}")));
                    }
                    Err(error) => last = error,
                }
            }
            Err(failed(last))
        }
        Address::Unix { path } => {
            let path = socket_path(home, path)?;
            let stream = UnixStream::connect(&path).await.map_err(failed)?;
            let fd = OwnedFd::from(stream.into_std().map_err(failed)?);
            Ok((Socket::unix(fd).map_err(failed)?, to.to_string()))
        }
    }
}

/// A Unix socket's path in full, as short as the kernel wants it.
pub(super) fn socket_path(home: &Path, path: &[u8]) -> Result<PathBuf, WireError> {
    let full = home.join(std::ffi::OsStr::from_bytes(path));
    let len = full.as_os_str().len();
    if len > SOCKET_PATH {
        let message = format!("The socket's path has {len} bytes, Linux allows {SOCKET_PATH}");
        return Err(WireError::new(ErrorKind::LIMIT, message));
    }
    Ok(full)
}

fn unreachable(to: &Address, error: &io::Error) -> WireError {
    let kind = match (to, error.kind()) {
        (Address::Unix { .. }, io::ErrorKind::NotFound) => ErrorKind::NOT_FOUND,
        (_, io::ErrorKind::PermissionDenied) => ErrorKind::PERMISSION,
        (_, io::ErrorKind::TimedOut) => ErrorKind::TIMED_OUT,
        _ => ErrorKind::UNREACHABLE,
    };
    let told = WireError::new(kind, format!("Could not connect to {to} in the guest: {}", reason(error)));
    match error.kind() {
        io::ErrorKind::ConnectionRefused => told.hint("Nothing listens there"),
        _ => told,
    }
}

/// The kernel's words without Rust's number behind them.
pub(super) fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}
