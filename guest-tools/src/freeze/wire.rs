//! What the daemon and the helper say to each other over the helper's socket. Both are of one package; the first byte
//! says which pair, so that a daemon that was upgraded and a helper that was not part as strangers.
//!
//! ```text
//! request   release, op, 6 × 0, value u64, serial u64               24 bytes
//! answer    release, kind, 2 × 0, length u32, payload
//!   PLAN     serial u64, then the list of file systems as the protocol encodes it
//!   FROZEN   whole u8, took µs u64, then for each planned one: state u8, errno i32
//!   THAWED   cause u8, held µs u64, the same
//!   TRIMMED, REFUSED  as the protocol encodes them; NOTHING: none is frozen
//! ```
//! All of `FROZEN` and `THAWED` is of a fixed width: they are written while nothing may be allocated.

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::freeze::{FileSystem, FsState, ThawCause};
use hospes_protocol::limits::{FREEZE_FILE_SYSTEMS, LARGE_MESSAGE_LEN};
use nix::errno::Errno;

use super::engine::Standing;

const RELEASE: u8 = 1;

/// Bytes of a request.
pub const REQUEST: usize = 24;
/// Bytes of an answer's head.
pub const HEAD: usize = 8;
/// Bytes of an answer's payload, at most.
pub const PAYLOAD: u32 = LARGE_MESSAGE_LEN;
/// Bytes of the longest answer of a fixed width.
pub const FIXED: usize = HEAD + 9 + STANDING * FREEZE_FILE_SYSTEMS;

const STANDING: usize = 5;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Freeze, for so many milliseconds at most, under this number.
    Freeze {
        /// Milliseconds.
        timeout_ms: u64,
        /// The freeze's number.
        serial: u64,
    },
    /// Thaw.
    Thaw,
    /// What is frozen? Whoever asks is told of its end, too.
    Status,
    /// Trim, in ranges of so many bytes at least.
    Trim {
        /// Bytes.
        minimum: u64,
    },
}

impl Op {
    /// Its bytes.
    #[must_use]
    pub fn encode(self) -> [u8; REQUEST] {
        let (op, value, serial) = match self {
            Self::Freeze { timeout_ms, serial } => (1, timeout_ms, serial),
            Self::Thaw => (2, 0, 0),
            Self::Status => (3, 0, 0),
            Self::Trim { minimum } => (4, minimum, 0),
        };
        let mut bytes = [0; REQUEST];
        bytes[0] = RELEASE;
        bytes[1] = op;
        bytes[8..16].copy_from_slice(&value.to_le_bytes());
        bytes[16..].copy_from_slice(&serial.to_le_bytes());
        bytes
    }

    /// Reads it. None where it is another release's, or nothing.
    #[must_use]
    pub fn decode(bytes: &[u8; REQUEST]) -> Option<Self> {
        let value = u64_at(bytes, 8)?;
        match (bytes[0], bytes[1]) {
            (RELEASE, 1) => Some(Self::Freeze { timeout_ms: value, serial: u64_at(bytes, 16)? }),
            (RELEASE, 2) => Some(Self::Thaw),
            (RELEASE, 3) => Some(Self::Status),
            (RELEASE, 4) => Some(Self::Trim { minimum: value }),
            _ => None,
        }
    }
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// What is about to be frozen.
    Plan = 1,
    /// What became of it.
    Frozen = 2,
    /// It is thawed.
    Thawed = 3,
    /// What became of a trim.
    Trimmed = 4,
    /// It was not done.
    Refused = 5,
    /// Nothing is frozen here.
    Nothing = 6,
}

/// Puts an answer's head and payload.
pub fn put(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&[RELEASE, kind as u8, 0, 0]);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Puts an answer of a fixed width into `out`, which has room for [`FIXED`] bytes: a byte, microseconds, and how each
/// file system stands.
pub fn put_fixed(
    kind: Kind,
    word: u8,
    microseconds: u64,
    standings: impl Iterator<Item = Standing>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&[RELEASE, kind as u8, 0, 0, 0, 0, 0, 0, word]);
    out.extend_from_slice(&microseconds.to_le_bytes());
    for Standing { state, error } in standings {
        out.push(state.0);
        out.extend_from_slice(&error.to_le_bytes());
    }
    let length = u32::try_from(out.len() - HEAD).unwrap_or(u32::MAX);
    out[4..HEAD].copy_from_slice(&length.to_le_bytes());
}

/// Reads an answer's head: its kind and its payload's length.
///
/// # Errors
/// Why it is none.
pub fn head(bytes: [u8; HEAD]) -> Result<(Kind, usize), WireError> {
    let kind = match bytes[1] {
        1 => Kind::Plan,
        2 => Kind::Frozen,
        3 => Kind::Thawed,
        4 => Kind::Trimmed,
        5 => Kind::Refused,
        6 => Kind::Nothing,
        _ => return Err(foreign()),
    };
    let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    if bytes[0] != RELEASE || length > PAYLOAD {
        return Err(foreign());
    }
    Ok((kind, length as usize))
}

/// What a `FROZEN` or a `THAWED` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whether all is frozen; or the [`ThawCause`].
    pub word: u8,
    /// Microseconds.
    pub microseconds: u64,
    /// How each planned file system stands.
    pub standings: Vec<Standing>,
}

impl Told {
    /// Reads it.
    ///
    /// # Errors
    /// Why it is none.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let (Some(word), Some(microseconds)) = (payload.first(), u64_at(payload, 1)) else {
            return Err(foreign());
        };
        let standing = |bytes: &[u8]| Standing {
            state: FsState(bytes[0]),
            error: i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]),
        };
        let standings = payload[9..].chunks_exact(STANDING).map(standing).collect();
        Ok(Self { word: *word, microseconds, standings })
    }

    /// Why it was thawed, of a `THAWED`.
    #[must_use]
    pub const fn cause(&self) -> ThawCause {
        ThawCause(self.word)
    }

    /// Writes what it says into the list of the plan, of which the first ones were planned.
    pub fn apply(&self, list: &mut [FileSystem]) {
        for (file_system, standing) in list.iter_mut().zip(&self.standings) {
            file_system.state = standing.state;
            if standing.error != 0 {
                file_system.error = Errno::from_raw(standing.error).desc().to_owned();
            }
        }
    }
}

/// What says something else than a helper of this release.
#[must_use]
pub fn foreign() -> WireError {
    WireError::new(ErrorKind::OTHER, "The guest's freeze helper is of another release")
        .hint("In the guest: systemctl restart hospes-toolsd, and hospes-freeze once nothing is frozen")
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_come_back_as_they_were() {
        for op in [
            Op::Freeze { timeout_ms: 10_000, serial: 1 << 40 },
            Op::Thaw,
            Op::Status,
            Op::Trim { minimum: 7 },
        ] {
            assert_eq!(Op::decode(&op.encode()), Some(op));
        }
        assert_eq!(Op::decode(&[0; REQUEST]), None);
        let standings = [
            Standing { state: FsState::FROZEN, error: 0 },
            Standing { state: FsState::FAILED, error: Errno::EBUSY as i32 },
        ];
        let mut out = Vec::with_capacity(FIXED);
        put_fixed(Kind::Thawed, ThawCause::DEADLINE.0, 77, standings.into_iter(), &mut out);
        let (kind, length) = head(*out.first_chunk().unwrap()).unwrap();
        assert_eq!((kind, length), (Kind::Thawed, out.len() - HEAD));
        let told = Told::decode(&out[HEAD..]).unwrap();
        assert_eq!(
            (told.cause(), told.microseconds, told.standings.as_slice()),
            (ThawCause::DEADLINE, 77, &standings[..])
        );
        let fs = |state| FileSystem { mount: b"/".to_vec(), kind: "xfs".into(), state, error: String::new() };
        let mut list = [fs(FsState::UNDONE), fs(FsState::UNDONE), fs(FsState::NETWORK)];
        told.apply(&mut list);
        assert_eq!(list[1].error, "Device or resource busy");
        assert_eq!(list.map(|fs| fs.state), [FsState::FROZEN, FsState::FAILED, FsState::NETWORK]);
    }

    #[test]
    fn another_releases_words_are_refused() {
        let mut out = Vec::new();
        put(Kind::Nothing, &[], &mut out);
        assert!(head(*out.first_chunk().unwrap()).is_ok());
        out[0] = 2;
        assert!(head(*out.first_chunk().unwrap()).is_err());
        assert!(Told::decode(&[1, 2, 3]).is_err());
        assert!(head([1, 2, 0, 0, 255, 255, 255, 255]).is_err());
    }
}
