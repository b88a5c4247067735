//! The handoff: the daemon gives an accepted and authorised connection to the user's worker.
//!
//! ```text
//! daemon                                                     worker (socket-activated)
//!  | connect /run/hospes/session/UID.sock                      |
//!  | SCM_RIGHTS: the connection                                |
//!  | u32 length, Head, request, rest, preamble                 |
//!  |---------------------------------------------------------->|
//!  |                                          one byte: taken  |
//!  |<----------------------------------------------------------|
//! ```
//! One Unix stream connection carries one handoff. Until the acknowledgement the daemon owns the operation and may
//! offer it to another worker; from then on the worker does, and the daemon may die. The worker starts nothing
//! before its acknowledgement is written, so no operation runs twice.
//!
//! An offer that is not taken for a while can be withdrawn ([`offer`]): shutdown(2) of the daemon's reading side makes
//! the worker's acknowledgement fail from then on, and one that was written before is still there to be read.
//!
//! The request, the rest and the preamble travel as they are, behind a small encoded head: a request may be as long
//! as the codec's decode limit, and copying it byte by byte through a codec buys nothing.
#![expect(unsafe_code, reason = "descriptors arrive as numbers in a control message and are taken over")]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hospes_protocol::codec;
use hospes_protocol::keys::PublicKey;
use hospes_protocol::limits::{HEADER_LEN, LARGE_MESSAGE_LEN, MESSAGE_LEN};
use hospes_protocol::version::Capabilities;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, recvmsg, sendmsg, shutdown};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

/// Bytes of the request's payload: the largest message there is.
pub const REQUEST_LEN: usize = LARGE_MESSAGE_LEN as usize;
/// Bytes read beyond the request: at most what a receive buffer holds, which grows to its largest frame.
pub const REST_LEN: usize = LARGE_MESSAGE_LEN as usize + HEADER_LEN + MESSAGE_LEN as usize;
/// Bytes to send before the worker's first frame.
pub const PREAMBLE_LEN: usize = MESSAGE_LEN as usize;
/// Bytes of the encoded head.
const HEAD_LEN: usize = 256;
/// Bytes of the length before the head.
const PREFIX_LEN: usize = 4;

const TAKEN: u8 = 1;
const REFUSED: u8 = 0;
/// Of a receiver that has connected to us, between two acknowledgements or before one: it has news.
pub const NEWS: u8 = 2;

/// How long to wait for room in a worker's backlog that is full.
const BACKLOG_FULL: Duration = Duration::from_millis(10);

/// What the worker must know to serve a connection from where the daemon left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handoff {
    /// The request's frame id.
    pub request_id: u16,
    /// The request's payload.
    pub request: Vec<u8>,
    /// Bytes that were read beyond the request.
    pub rest: Vec<u8>,
    /// Bytes to send before the worker's first frame.
    pub preamble: Vec<u8>,
    /// Who asks.
    pub host: PublicKey,
    /// What was agreed with the host.
    pub capabilities: Capabilities,
}

#[derive(Serialize, Deserialize)]
struct Head {
    request_id: u16,
    request_len: u32,
    rest_len: u32,
    preamble_len: u32,
    host: PublicKey,
    capabilities: Capabilities,
}

/// Why a connection was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// Nobody listens there: the user's session unit is not running. The caller's to start.
    #[error("No worker listens at {}", .path.display())]
    NoSocket {
        /// The worker's socket.
        path: PathBuf,
        /// What connect(2) said.
        source: io::Error,
    },
    /// The worker took the handoff's bytes and declined: they are malformed, or we may not ask. Asking again will
    /// not help.
    #[error("The worker refused the connection")]
    Refused,
    /// The worker ended before it took the connection, which is still ours. Asking again once is right.
    #[error("The worker ended before it took the connection")]
    Died,
    /// A part is over its cap: the caller's fault, or the sender's on the worker's side.
    #[error("The handoff's {what} has {len} bytes, the limit is {max}")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Bytes it has.
        len: usize,
        /// Bytes it may have.
        max: usize,
    },
    /// The bytes are no handoff, or came without exactly one descriptor. The sender's fault.
    #[error("Not a handoff: {0}")]
    Malformed(&'static str),
    /// The operating system refused.
    #[error("Could not {act}: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// Its words.
        source: io::Error,
    },
}

impl HandoffError {
    /// Whether the connection is still the caller's and another attempt may succeed.
    #[must_use]
    pub const fn may_retry(&self) -> bool {
        matches!(self, Self::NoSocket { .. } | Self::Died)
    }

    /// An error of a call on the handoff's own socket. A peer that went away is a worker that died.
    fn socket(act: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Died,
            _ => Self::Io { act, source },
        }
    }
}

/// Gives `connection` to the worker that listens at `socket`. On success the worker has a copy of the descriptor and
/// the operation is its own: the caller closes the connection and writes nothing more to it.
///
/// # Errors
/// [`HandoffError`]; the connection is untouched.
pub async fn send(socket: &Path, connection: BorrowedFd<'_>, handoff: &Handoff) -> Result<(), HandoffError> {
    deliver(&dial(socket).await?, connection, handoff).await
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// As after [`send`].
    Taken,
    /// Nobody took it in time, and nobody will: the connection is untouched.
    Withdrawn,
}

/// As [`send`], but withdrawn where the worker has not taken it within `patience`.
///
/// # Errors
/// As [`send`].
pub async fn offer(
    socket: &Path,
    connection: BorrowedFd<'_>,
    handoff: &Handoff,
    patience: Duration,
) -> Result<Offer, HandoffError> {
    let end = Instant::now() + patience;
    let Ok(dialled) = timeout_at(end, dial(socket)).await else { return Ok(Offer::Withdrawn) };
    let stream = dialled?;
    match timeout_at(end, deliver(&stream, connection, handoff)).await {
        Ok(sent) => sent.map(|()| Offer::Taken),
        Err(_) => withdraw(&stream),
    }
}

/// Ends an offer, unless its acknowledgement has just been written.
fn withdraw(stream: &UnixStream) -> Result<Offer, HandoffError> {
    let failed = |source: nix::Error| HandoffError::Io { act: "withdraw the handoff", source: source.into() };
    shutdown(stream.as_raw_fd(), Shutdown::Read).map_err(failed)?;
    let mut answer = [0];
    // From here on nothing more arrives, so this does not wait.
    match (nix::unistd::read(stream, &mut answer).map_err(failed)?, answer[0]) {
        (0, _) => Ok(Offer::Withdrawn),
        (_, TAKEN) => Ok(Offer::Taken),
        _ => Err(HandoffError::Refused),
    }
}

async fn dial(socket: &Path) -> Result<UnixStream, HandoffError> {
    connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            HandoffError::NoSocket { path: socket.to_owned(), source }
        }
        _ => HandoffError::Io { act: "connect to the worker", source },
    })
}

async fn deliver(
    stream: &UnixStream,
    connection: BorrowedFd<'_>,
    handoff: &Handoff,
) -> Result<(), HandoffError> {
    deliver_beside(stream, connection, handoff, || ()).await
}

/// As [`send`], to a receiver that has connected to us. Its connection may carry several handoffs, one after the other,
/// and `news` is told of each [`NEWS`] among its acknowledgements.
///
/// # Errors
/// [`HandoffError`]; the handed connection is untouched.
pub async fn deliver_beside(
    stream: &UnixStream,
    connection: BorrowedFd<'_>,
    handoff: &Handoff,
    mut news: impl FnMut(),
) -> Result<(), HandoffError> {
    let head = encode_head(handoff)?;
    let mut parts = [
        IoSlice::new(&head),
        IoSlice::new(&handoff.request),
        IoSlice::new(&handoff.rest),
        IoSlice::new(&handoff.preamble),
    ];
    let mut parts = &mut parts[..];
    let mut fds = Some([connection.as_raw_fd()]);
    while !parts.is_empty() {
        let rights = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                Ok(sendmsg::<()>(
                    stream.as_raw_fd(),
                    parts,
                    rights.as_slice(),
                    MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                    None,
                )?)
            })
            .await
            .map_err(|source| HandoffError::socket("send the handoff", source))?;
        fds = None;
        IoSlice::advance_slices(&mut parts, sent);
    }
    loop {
        let mut answer = [0];
        let got = stream
            .async_io(Interest::READABLE, || stream.try_read(&mut answer))
            .await
            .map_err(|source| HandoffError::socket("read the worker's acknowledgement", source))?;
        match (got, answer[0]) {
            (0, _) => return Err(HandoffError::Died),
            (_, TAKEN) => return Ok(()),
            (_, NEWS) => news(),
            _ => return Err(HandoffError::Refused),
        }
    }
}

/// Connects. A backlog that is full (`EAGAIN`, unix(7)) gives no event when there is room again, so it is asked for.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(BACKLOG_FULL).await,
            connected => return connected,
        }
    }
}

/// Takes one handoff from a daemon's connection and acknowledges it. The caller has checked who the peer is and
/// bounds the time.
///
/// # Errors
/// [`HandoffError`]; the operation is not ours, and the descriptor is closed.
pub async fn receive(stream: &UnixStream) -> Result<(OwnedFd, Handoff), HandoffError> {
    let answer = receive_parts(stream).await;
    let byte = if answer.is_ok() { TAKEN } else { REFUSED };
    let written = stream.async_io(Interest::WRITABLE, || stream.try_write(&[byte])).await;
    let parts = answer?;
    written.map_err(|source| HandoffError::socket("acknowledge the handoff", source))?;
    Ok(parts)
}

async fn receive_parts(stream: &UnixStream) -> Result<(OwnedFd, Handoff), HandoffError> {
    let mut bytes = Vec::with_capacity(4096);
    let connection = first_bytes(stream, &mut bytes).await?;
    read_to(stream, &mut bytes, PREFIX_LEN).await?;
    let head_len = bytes.first_chunk().map_or(0, |prefix| u32::from_le_bytes(*prefix) as usize);
    at_most("head", head_len, HEAD_LEN)?;
    let body = PREFIX_LEN + head_len;
    read_to(stream, &mut bytes, body).await?;
    let head = decode_head(&bytes[PREFIX_LEN..body])?;
    let [request, rest, preamble] = [head.request_len, head.rest_len, head.preamble_len].map(|n| n as usize);
    let end = body + request + rest + preamble;
    read_to(stream, &mut bytes, end).await?;
    if bytes.len() > end {
        return Err(HandoffError::Malformed("bytes follow its end"));
    }
    let preamble = bytes.split_off(body + request + rest);
    let rest = bytes.split_off(body + request);
    let request = bytes.split_off(body);
    let Head { request_id, host, capabilities, .. } = head;
    Ok((connection, Handoff { request_id, request, rest, preamble, host, capabilities }))
}

/// Reads what the first message brings, and the descriptor with it.
async fn first_bytes(stream: &UnixStream, bytes: &mut Vec<u8>) -> Result<OwnedFd, HandoffError> {
    let mut chunk = [0; 4096];
    // Room for one more than we take, so that a surplus is seen and not merely cut off.
    let mut space = cmsg_space!([RawFd; 2]);
    let (len, mut fds, truncated) = stream
        .async_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(&mut chunk)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
            let mut fds = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    // SAFETY: the kernel has just made these descriptors for us and nobody else knows their numbers.
                    fds.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            Ok((message.bytes, fds, message.flags.contains(MsgFlags::MSG_CTRUNC)))
        })
        .await
        .map_err(|source| HandoffError::Io { act: "read the handoff", source })?;
    if len == 0 {
        return Err(HandoffError::Malformed("the sender closed it before its first byte"));
    }
    bytes.extend_from_slice(&chunk[..len]);
    match (fds.pop(), fds.is_empty() && !truncated) {
        (Some(connection), true) => Ok(connection),
        (None, _) => Err(HandoffError::Malformed("no descriptor came with it")),
        (Some(_), false) => Err(HandoffError::Malformed("more than one descriptor came with it")),
    }
}

/// Reads until `bytes` has at least `len`.
async fn read_to(stream: &UnixStream, bytes: &mut Vec<u8>, len: usize) -> Result<(), HandoffError> {
    let mut filled = bytes.len();
    bytes.resize(len.max(filled), 0);
    while filled < len {
        let got = stream
            .async_io(Interest::READABLE, || stream.try_read(&mut bytes[filled..]))
            .await
            .map_err(|source| HandoffError::Io { act: "read the handoff", source })?;
        if got == 0 {
            return Err(HandoffError::Malformed("the sender closed it before its end"));
        }
        filled += got;
    }
    Ok(())
}

fn encode_head(handoff: &Handoff) -> Result<Vec<u8>, HandoffError> {
    let head = Head {
        request_id: handoff.request_id,
        request_len: at_most("request", handoff.request.len(), REQUEST_LEN)?,
        rest_len: at_most("rest", handoff.rest.len(), REST_LEN)?,
        preamble_len: at_most("preamble", handoff.preamble.len(), PREAMBLE_LEN)?,
        host: handoff.host,
        capabilities: handoff.capabilities,
    };
    let mut bytes = vec![0; PREFIX_LEN];
    codec::encode_into(&head, &mut bytes);
    let len = at_most("head", bytes.len() - PREFIX_LEN, HEAD_LEN)?;
    bytes[..PREFIX_LEN].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

fn decode_head(bytes: &[u8]) -> Result<Head, HandoffError> {
    let head: Head = codec::decode(bytes).map_err(|_| HandoffError::Malformed("its head does not decode"))?;
    at_most("request", head.request_len as usize, REQUEST_LEN)?;
    at_most("rest", head.rest_len as usize, REST_LEN)?;
    at_most("preamble", head.preamble_len as usize, PREAMBLE_LEN)?;
    Ok(head)
}

fn at_most(what: &'static str, len: usize, max: usize) -> Result<u32, HandoffError> {
    match u32::try_from(len) {
        Ok(short) if len <= max => Ok(short),
        _ => Err(HandoffError::TooLong { what, len, max }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream as StdStream;

    use tokio::net::UnixListener;

    use super::*;

    fn handoff(request: usize, rest: usize) -> Handoff {
        Handoff {
            request_id: 0x0100,
            request: (0..request).map(|n| u8::try_from(n % 251).unwrap()).collect(),
            rest: vec![7; rest],
            preamble: b"preamble".to_vec(),
            host: PublicKey([3; 32]),
            capabilities: Capabilities::EXEC,
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn delivered(sent: &Handoff) -> Handoff {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.sock");
        runtime().block_on(async {
            let listener = UnixListener::bind(&path).unwrap();
            let (mut ours, theirs) = StdStream::pair().unwrap();
            let (sending, receiving) = tokio::join!(send(&path, theirs.as_fd(), sent), async {
                let (stream, _) = listener.accept().await.unwrap();
                receive(&stream).await
            });
            sending.unwrap();
            let (fd, got) = receiving.unwrap();
            drop(theirs);
            // What arrived is the connection itself.
            StdStream::from(fd).write_all(b"hello").unwrap();
            let mut text = String::new();
            ours.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
            got
        })
    }

    #[test]
    fn news_among_acknowledgements_is_told_and_answers_nothing() {
        runtime().block_on(async {
            let (daemon, helper) = UnixStream::pair().unwrap();
            let (_, theirs) = StdStream::pair().unwrap();
            helper.try_write(&[NEWS, NEWS]).unwrap();
            let told = std::cell::Cell::new(0);
            let sent = handoff(40, 0);
            let delivering = deliver_beside(&daemon, theirs.as_fd(), &sent, || told.set(told.get() + 1));
            let (delivered, received) = tokio::join!(delivering, receive(&helper));
            delivered.unwrap();
            assert_eq!((told.get(), received.unwrap().1), (2, sent));
        });
    }

    #[test]
    fn a_handoff_arrives_whole_with_its_descriptor() {
        for (request, rest) in [(0, 0), (40, 0), (5000, 3), (REQUEST_LEN, REST_LEN)] {
            let sent = handoff(request, rest);
            assert_eq!(delivered(&sent), sent);
        }
    }

    #[test]
    fn what_is_over_a_cap_is_not_sent() {
        let long = handoff(REQUEST_LEN + 1, 0);
        assert!(matches!(encode_head(&long), Err(HandoffError::TooLong { what: "request", .. })));
    }

    #[test]
    fn nobody_there_a_death_and_a_refusal_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.sock");
        let (_ours, theirs) = StdStream::pair().unwrap();
        runtime().block_on(async {
            let sent = handoff(1, 1);
            let missing = send(&path, theirs.as_fd(), &sent).await.unwrap_err();
            assert!(matches!(missing, HandoffError::NoSocket { .. }) && missing.may_retry());

            let listener = UnixListener::bind(&path).unwrap();
            let (died, ()) = tokio::join!(send(&path, theirs.as_fd(), &sent), async {
                drop(listener.accept().await.unwrap());
            });
            let died = died.unwrap_err();
            assert!(matches!(died, HandoffError::Died) && died.may_retry(), "{died}");

            let (refused, ()) = tokio::join!(send(&path, theirs.as_fd(), &sent), async {
                let (stream, _) = listener.accept().await.unwrap();
                // Reads what was sent first, so that closing does not reset the answer.
                let mut sink = [0; 4096];
                stream.async_io(Interest::READABLE, || stream.try_read(&mut sink)).await.unwrap();
                stream.async_io(Interest::WRITABLE, || stream.try_write(&[REFUSED])).await.unwrap();
            });
            let refused = refused.unwrap_err();
            assert!(matches!(refused, HandoffError::Refused) && !refused.may_retry(), "{refused}");
        });
    }

    #[test]
    fn an_offer_that_nobody_takes_in_time_is_nobodys_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.sock");
        let (_ours, theirs) = StdStream::pair().unwrap();
        let moment = Duration::from_millis(30);
        runtime().block_on(async {
            let listener = UnixListener::bind(&path).unwrap();
            // One that fits into the socket, and one of which most is still to be sent.
            for len in [1, REQUEST_LEN] {
                let sent = handoff(len, 1);
                let offered = offer(&path, theirs.as_fd(), &sent, moment).await.unwrap();
                assert_eq!(offered, Offer::Withdrawn);
                let (stream, _) = listener.accept().await.unwrap();
                let taken = receive(&stream).await;
                assert!(taken.is_err(), "it runs, and would run twice");
            }
            let sent = handoff(1, 1);
            let (offered, taken) =
                tokio::join!(offer(&path, theirs.as_fd(), &sent, Duration::from_secs(60)), async {
                    let (stream, _) = listener.accept().await.unwrap();
                    receive(&stream).await
                });
            assert_eq!((offered.unwrap(), taken.unwrap().1), (Offer::Taken, sent));
        });
    }

    #[test]
    fn an_acknowledgement_that_crosses_the_withdrawal_counts() {
        let (ours, theirs) = StdStream::pair().unwrap();
        runtime().block_on(async {
            ours.set_nonblocking(true).unwrap();
            let ours = UnixStream::from_std(ours).unwrap();
            (&theirs).write_all(&[TAKEN]).unwrap();
            assert_eq!(withdraw(&ours).unwrap(), Offer::Taken);
            assert!((&theirs).write_all(&[TAKEN]).is_err(), "one that comes later does not arrive");
        });
    }

    #[test]
    fn hostile_bytes_are_refused() {
        let cases: [&[u8]; 4] =
            [b"\xff\xff\xff\xff", b"\x02\x00\x00\x00\xff\xff", b"\x00\x00\x00\x00", b"\x01"];
        for bytes in cases {
            let (ours, theirs) = StdStream::pair().unwrap();
            runtime().block_on(async {
                let rights = [theirs.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&rights)];
                sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::empty(), None)
                    .unwrap();
                ours.shutdown(std::net::Shutdown::Write).unwrap();
                theirs.set_nonblocking(true).unwrap();
                let stream = UnixStream::from_std(theirs.try_clone().unwrap()).unwrap();
                let refused = receive(&stream).await;
                assert!(
                    matches!(refused, Err(HandoffError::Malformed(_) | HandoffError::TooLong { .. })),
                    "{bytes:?}"
                );
            });
        }
    }

    #[test]
    fn a_handoff_without_a_descriptor_or_with_two_is_refused() {
        for count in [0, 2] {
            let (ours, theirs) = StdStream::pair().unwrap();
            runtime().block_on(async {
                let fds = vec![ours.as_raw_fd(); count];
                let rights = [ControlMessage::ScmRights(&fds)];
                let rights = if count == 0 { &[][..] } else { &rights[..] };
                sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"\x01")], rights, MsgFlags::empty(), None)
                    .unwrap();
                theirs.set_nonblocking(true).unwrap();
                let stream = UnixStream::from_std(theirs.try_clone().unwrap()).unwrap();
                assert!(matches!(receive(&stream).await, Err(HandoffError::Malformed(_))));
            });
        }
    }
}
