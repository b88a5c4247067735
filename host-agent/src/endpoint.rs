//! How a VM's vsock is reached from this machine.
//!
//! | text | what is behind it |
//! |---|---|
//! | `vsock:CID` | `AF_VSOCK`, on Linux hosts: QEMU, libvirt, crosvm, cloud-hypervisor with vhost |
//! | `unix:PATH` | a socket on which `CONNECT port` selects the guest's port: Firecracker, cloud-hypervisor, `host-hv` |
//! | `socket:PATH` | a socket that a VMM maps to the guest's one port: vfkit, libkrun |

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use hospes_protocol::limits::GUEST_PORT;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde::{Deserialize, Serialize};

use crate::{printable, sys};

/// Bytes of a `unix:` endpoint's answer to `CONNECT`, which is `OK` and a number, or our own device's `ERR` and a reason.
const ANSWER_LEN: usize = 128;

/// Where a VM is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// `vsock:CID`.
    Vsock(u32),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `socket:PATH`.
    Socket(PathBuf),
}

/// Why text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No kind before a colon, or one that is not known.
    #[error("Not an endpoint: {text:?}")]
    Kind {
        /// The text.
        text: String,
    },
    /// A context id that no guest has.
    #[error("Not a guest's context id: {text:?}")]
    Cid {
        /// The text.
        text: String,
    },
    /// A path that depends on where one stands.
    #[error("The path of an endpoint is absolute, this one is not: {text:?}")]
    Relative {
        /// The text.
        text: String,
    },
}

impl EndpointError {
    /// What to do next.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Kind { .. } | Self::Relative { .. } => {
                "An endpoint is vsock:CID, unix:/PATH (a socket that takes CONNECT, as Firecracker's), or \
                 socket:/PATH (a socket for the guest's port alone, as vfkit's)"
            }
            Self::Cid { .. } => "A guest's context id is a number from 3 up, as the VMM was told",
        }
    }
}

impl Endpoint {
    /// The socket's path, where the endpoint has one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Vsock(_) => None,
            Self::Unix(path) | Self::Socket(path) => Some(path),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let owned = || text.to_owned();
        let absolute = |path: &str| match Path::new(path).is_absolute() {
            true => Ok(PathBuf::from(path)),
            false => Err(EndpointError::Relative { text: owned() }),
        };
        match text.split_once(':') {
            // 0 to 2 are the hypervisor, loopback and the host; the last is "any".
            Some(("vsock", cid)) => match cid.parse() {
                Ok(cid) if (3..u32::MAX).contains(&cid) => Ok(Self::Vsock(cid)),
                _ => Err(EndpointError::Cid { text: owned() }),
            },
            Some(("unix", path)) => absolute(path).map(Self::Unix),
            Some(("socket", path)) => absolute(path).map(Self::Socket),
            _ => Err(EndpointError::Kind { text: owned() }),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock(cid) => write!(f, "vsock:{cid}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Socket(path) => write!(f, "socket:{}", path.display()),
        }
    }
}

/// Why an endpoint cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The socket is not there or does not take the connection.
    #[error("Cannot connect to {endpoint}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// Why not.
        source: io::Error,
    },
    /// The VMM is there, and nobody listens on the port in its guest.
    #[error("The VM behind {endpoint} does not take a connection to port {GUEST_PORT}: {reason}")]
    Refused {
        /// Where.
        endpoint: Endpoint,
        /// The VMM's words, cleaned, or ours where it only hung up.
        reason: String,
    },
    /// What answers is no VMM's vsock.
    #[error("What listens at {endpoint} does not answer CONNECT as a VMM does")]
    Answer {
        /// Where.
        endpoint: Endpoint,
    },
    /// Nothing came in time.
    #[error("No answer from {endpoint} in {} s", after.as_secs_f32())]
    TimedOut {
        /// Where.
        endpoint: Endpoint,
        /// How long we waited.
        after: Duration,
    },
}

impl DialError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Connect { source, endpoint } => match (source.kind(), endpoint) {
                (io::ErrorKind::NotFound, _) => "The socket is not there: is the VM running?",
                (io::ErrorKind::ConnectionRefused, _) => {
                    "Nobody serves that socket any more: is the VM running?"
                }
                (io::ErrorKind::ConnectionReset, Endpoint::Vsock(_)) => {
                    "The VM is up and nothing in it listens: is hospes-tools installed and running in the guest?"
                }
                (io::ErrorKind::PermissionDenied, Endpoint::Vsock(_)) => {
                    "/dev/vsock and AF_VSOCK must be open to this user"
                }
                (io::ErrorKind::PermissionDenied, _) => {
                    "The VM's socket belongs to another user: run the VM as yourself, or get access to the socket"
                }
                (io::ErrorKind::Unsupported, _) => {
                    "This machine has no AF_VSOCK: reach the VM through its VMM's Unix socket, as unix:/PATH"
                }
                _ => match source.raw_os_error().map(nix::errno::Errno::from_raw) {
                    Some(nix::errno::Errno::ENODEV) => "No VM has this context id: is it running?",
                    Some(nix::errno::Errno::EAFNOSUPPORT) => {
                        "The kernel module vsock is not loaded: modprobe vhost_vsock"
                    }
                    _ => return None,
                },
            },
            Self::Refused { .. } => {
                "It may still be booting (hospes wait waits for it); if not, install hospes-tools in the guest"
            }
            Self::Answer { .. } => "A socket that leads to the guest's port directly is written socket:/PATH",
            Self::TimedOut { .. } => {
                "The VM may be paused or still booting: hospes wait waits for it, --connect-timeout waits longer"
            }
        };
        Some(hint.to_owned())
    }

    /// Whether it may well be otherwise in a moment, as while a VM boots.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Refused { .. } | Self::TimedOut { .. } => true,
            Self::Answer { .. } => false,
        }
    }
}

/// A byte stream to a guest's port.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    /// Bytes that came behind the VMM's own answer.
    pub(crate) early: Vec<u8>,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Stream {
    /// A stream of an open socket.
    #[must_use]
    pub const fn new(fd: OwnedFd) -> Self {
        Self { fd, early: Vec::new() }
    }

    /// The socket. Bytes behind the VMM's own answer are gone with the stream.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl Endpoint {
    /// Connects to the guest's port, in `timeout` at most.
    ///
    /// # Errors
    /// [`DialError`].
    pub fn dial(&self, timeout: Duration) -> Result<Stream, DialError> {
        let deadline = Instant::now() + timeout;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                DialError::TimedOut { endpoint: self.clone(), after: timeout }
            }
            _ => DialError::Connect { endpoint: self.clone(), source },
        };
        match self {
            Self::Vsock(cid) => {
                sys::vsock::connect(*cid, GUEST_PORT, deadline).map(Stream::new).map_err(failed)
            }
            Self::Socket(path) => UnixStream::connect(path).map(|s| Stream::new(s.into())).map_err(failed),
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(failed)?;
                let early = self.select_port(&stream, deadline).map_err(|error| match error {
                    Select::Io(error) => failed(error),
                    Select::Refused(reason) => DialError::Refused { endpoint: self.clone(), reason },
                    Select::Answer => DialError::Answer { endpoint: self.clone() },
                })?;
                Ok(Stream { fd: stream.into(), early })
            }
        }
    }

    /// Says which port we want. The guest speaks only when spoken to, so what follows the answer is nearly always
    /// nothing; what there is belongs to the connection.
    fn select_port(&self, mut stream: &UnixStream, deadline: Instant) -> Result<Vec<u8>, Select> {
        use std::io::{Read, Write};
        stream.write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes()).map_err(Select::from)?;
        let mut answer = Vec::with_capacity(ANSWER_LEN);
        loop {
            wait_readable(stream.as_fd(), Some(deadline)).map_err(Select::Io)?;
            let mut bytes = [0; ANSWER_LEN];
            let n = stream.read(&mut bytes).map_err(Select::from)?;
            if n == 0 {
                // Every such VMM closes the connection where nobody listens in the guest.
                return Err(if answer.is_empty() { Select::hung_up() } else { Select::Answer });
            }
            answer.extend_from_slice(&bytes[..n]);
            if let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
                let early = answer.split_off(end + 1);
                let good = answer
                    .strip_prefix(b"OK ")
                    .is_some_and(|port| port[..port.len() - 1].iter().all(u8::is_ascii_digit));
                // Our own device says why; the others only hang up.
                let reason = answer.strip_prefix(b"ERR ").map(String::from_utf8_lossy);
                return match reason {
                    _ if good => Ok(early),
                    Some(reason) => Err(Select::Refused(printable::line(reason.trim()).into_owned())),
                    None => Err(Select::Answer),
                };
            }
            if answer.len() >= ANSWER_LEN {
                return Err(Select::Answer);
            }
        }
    }
}

enum Select {
    Io(io::Error),
    Refused(String),
    Answer,
}

impl Select {
    fn hung_up() -> Self {
        Self::Refused("nothing listens there".to_owned())
    }
}

impl From<io::Error> for Select {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::hung_up(),
            _ => Self::Io(error),
        }
    }
}

/// Waits until `fd` can be read, or is at its end.
///
/// # Errors
/// `TimedOut` at the deadline, and the operating system's.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<()> {
    wait(fd, PollFlags::POLLIN, deadline)
}

/// Waits until `fd` can be written.
///
/// # Errors
/// `TimedOut` at the deadline, and the operating system's.
pub(crate) fn wait_writable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<()> {
    wait(fd, PollFlags::POLLOUT, deadline)
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let timeout = deadline.map_or(PollTimeout::NONE, timeout_until);
        match nix::poll::poll(&mut [PollFd::new(fd, flags)], timeout) {
            Ok(0) if deadline.is_some_and(|at| at <= Instant::now()) => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(0) | Err(nix::errno::Errno::EINTR) => (),
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What poll(2) is told to wait until `deadline`: whole milliseconds, rounded up so as not to spin at the end.
pub(crate) fn timeout_until(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    let ms = left.as_micros().div_ceil(1000);
    i32::try_from(ms).ok().and_then(|ms| PollTimeout::try_from(ms).ok()).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn endpoints_survive_their_text_and_wrong_ones_are_told_apart() {
        for text in ["vsock:3", "vsock:4294967294", "unix:/run/vm/dev.sock", "socket:/tmp/a:b"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["vsock:2", "vsock:4294967295", "vsock:-1", "vsock:"] {
            assert!(matches!(text.parse::<Endpoint>(), Err(EndpointError::Cid { .. })), "{text}");
        }
        assert!(matches!("unix:dev.sock".parse::<Endpoint>(), Err(EndpointError::Relative { .. })));
        for text in ["", "/run/dev.sock", "tcp:1.2.3.4", "3"] {
            assert!(matches!(text.parse::<Endpoint>(), Err(EndpointError::Kind { .. })), "{text}");
        }
    }

    fn vmm(answer: &'static [u8]) -> (tempfile::TempDir, Endpoint, std::thread::JoinHandle<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut line = [0; 12];
            peer.read_exact(&mut line).unwrap();
            peer.write_all(answer).unwrap();
            line.to_vec()
        });
        (dir, Endpoint::Unix(path), thread)
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn the_port_is_asked_for_and_bytes_behind_the_answer_are_kept() {
        let (_dir, endpoint, thread) = vmm(b"OK 1073741824\nrest");
        let stream = endpoint.dial(LONG).unwrap();
        assert_eq!(thread.join().unwrap(), b"CONNECT 650\n");
        assert!(b"rest".starts_with(&stream.early));
    }

    #[test]
    fn a_guest_that_does_not_listen_a_foreign_server_and_a_flood_are_told_apart() {
        let (_dir, endpoint, _thread) = vmm(b"");
        assert!(matches!(endpoint.dial(LONG), Err(DialError::Refused { .. })));
        let (_dir, endpoint, _thread) = vmm(b"HTTP/1.1 400 Bad Request\r\n");
        assert!(matches!(endpoint.dial(LONG), Err(DialError::Answer { .. })));
        let (_dir, endpoint, _thread) = vmm(&[b'O'; 4096]);
        assert!(matches!(endpoint.dial(LONG), Err(DialError::Answer { .. })));
    }

    #[test]
    fn a_vmm_that_never_answers_is_given_up_and_a_missing_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let endpoint = Endpoint::Unix(path);
        assert!(matches!(endpoint.dial(Duration::from_millis(30)), Err(DialError::TimedOut { .. })));
        let missing = Endpoint::Socket(dir.path().join("none.sock"));
        let error = missing.dial(LONG).unwrap_err();
        assert!(error.hint().unwrap().contains("running"), "{error}");
    }
}
