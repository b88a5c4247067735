//! Files that were copied: what they are called crosses when somebody pastes, what is in them when that is read.
//!
//! ```text
//! host                                       guest's desktop
//!  | CLIPBOARD_FILES of offer 5               |  somebody pastes files on the host
//!  |----------------------------------------->|
//!  |    CLIPBOARD_ROOTS                       |
//!  |<-----------------------------------------|
//!  | CLIPBOARD_ASK 1, 2 …                     |
//!  |----------------------------------------->|
//!  |    CLIPBOARD_NODE 1, CLIPBOARD_BYTES 2 … |
//!  |<-----------------------------------------|
//!
//!  |    CLIPBOARD_WANT_FILES: call, offer 3   |  somebody pastes files in the guest
//!  |<-----------------------------------------|
//!  | on a new connection: CLIPBOARD_LEND call |
//!  | CLIPBOARD_ROOTS                          |
//!  |----------------------------------------->|
//!  |    CLIPBOARD_ASK …                       |
//!  |<-----------------------------------------|
//! ```
//! One end lends, the other borrows. The lender gives what lies beneath the roots and nothing else, to be read and not
//! to be changed: files, directories, and symbolic links that do not lead out of their root; all else is not there.
//! Answers come in the order of the questions; closing the connection is the end, for either.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Selection;
use crate::codec::CodecError;
use crate::error::{ErrorKind, WireError};
use crate::frame::{self, Frame, FrameId};
use crate::limits::{
    CLIPBOARD_ASKS, CLIPBOARD_ENTRIES, CLIPBOARD_NAME, CLIPBOARD_ROOTS, CLIPBOARD_URI, DATA_LEN, PATH,
};
use crate::open_enum;

/// Bytes of the question's number before the bytes of a [`FrameId::CLIPBOARD_BYTES`].
pub const BYTES_HEAD: usize = 8;
/// The most bytes that one question may ask for.
pub const READ_MOST: u32 = DATA_LEN - 8;

/// Asks for the files that the guest offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// On which selection.
    pub selection: Selection,
    /// The offer.
    pub serial: u64,
}

/// Somebody pastes files in the guest that the host offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantFiles {
    /// The paste's number, as [`Want::call`](super::Want::call).
    pub call: [u8; 16],
    /// On which selection.
    pub selection: Selection,
    /// The offer.
    pub serial: u64,
}

/// Lends what a [`WantFiles`] asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lend {
    /// The paste's number.
    pub call: [u8; 16],
}

/// What was copied. First from the lender.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roots {
    /// In the order in which it was copied.
    pub roots: Vec<Root>,
}

/// One of the things that were copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// A file's or directory's name. Empty where it is neither, but a link to somewhere else.
    pub name: Vec<u8>,
    /// That link.
    pub uri: String,
    /// Where it is in a folder that host and guest share.
    pub shared: Option<Shared>,
}

/// A place in a shared folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// The folder's name in the guest.
    pub share: String,
    /// The path in it; empty for the folder itself.
    pub path: Vec<u8>,
}

open_enum! {
    /// What is asked.
    pub struct Deed(u8) {
        /// Describe a path: a node.
        STAT = 0,
        /// Open a directory under a handle: a node.
        LIST = 1,
        /// The next entries of a directory's handle; none at its end.
        MORE = 2,
        /// Open a file under a handle: a node.
        OPEN = 3,
        /// Bytes of a file's handle; fewer than asked for at its end.
        READ = 4,
        /// A handle is not used any more. It has no answer.
        CLOSE = 5,
    }
}

/// A question. What its deed does not need is zero or empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Its number, which the answer has.
    pub id: u64,
    /// What is asked.
    pub deed: Deed,
    /// The root's place in [`Roots`].
    pub root: u32,
    /// The path beneath the root; empty for the root itself.
    pub path: Vec<u8>,
    /// The handle: the borrower's own numbers.
    pub handle: u64,
    /// From this byte.
    pub offset: u64,
    /// So many bytes.
    pub len: u32,
}

open_enum! {
    /// What lies at a path.
    pub struct NodeKind(u8) {
        /// A file.
        FILE = 0,
        /// A directory.
        DIRECTORY = 1,
        /// A symbolic link.
        LINK = 2,
    }
}

/// What is known of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// What it is.
    pub kind: NodeKind,
    /// Its owner may execute it.
    pub executable: bool,
    /// Bytes.
    pub size: u64,
    /// When it was last changed: seconds since 1970.
    pub modified: i64,
    /// And nanoseconds.
    pub modified_ns: u32,
    /// Where a symbolic link points to.
    pub target: Vec<u8>,
}

/// Answers [`Deed::STAT`], [`Deed::LIST`], [`Deed::OPEN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The question's number.
    pub id: u64,
    /// What lies there.
    pub attributes: Attributes,
}

/// Answers [`Deed::MORE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    /// The question's number.
    pub id: u64,
    /// Some, in no order; none at the end.
    pub entries: Vec<Entry>,
}

/// What a directory has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// What lies there.
    pub attributes: Attributes,
}

/// Answers what cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The question's number.
    pub id: u64,
    /// Why not.
    pub kind: ErrorKind,
}

/// How the peer broke the rules of lending.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A message does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A frame that may not come now, or not from this side.
    #[error("Peer sent {id} where it may not come on a connection that lends files")]
    Unexpected {
        /// The frame.
        id: FrameId,
    },
    /// An answer to another question than the next one, or of another kind.
    #[error("Peer answered question {id} with {with}, which is no answer to what was to be answered next")]
    Answer {
        /// The question's number, as the answer has it.
        id: u64,
        /// The frame.
        with: FrameId,
    },
    /// A name or path that leads elsewhere, or is none.
    #[error("Peer sent a name or path of {len} bytes that is none")]
    Name {
        /// Its bytes.
        len: usize,
    },
    /// Too much of something.
    #[error("Peer sent {count} {what}, at most {most} may be")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many may be.
        most: usize,
    },
}

/// Whether it is one component of a path, which leads nowhere else, and which Linux has room for.
///
/// # Errors
/// [`FilesError::Name`].
pub fn check_name(name: &[u8]) -> Result<(), FilesError> {
    let good = (1..=CLIPBOARD_NAME).contains(&name.len())
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
        && !matches!(name, b"." | b"..");
    if good { Ok(()) } else { Err(FilesError::Name { len: name.len() }) }
}

/// Whether it is a path beneath something: empty, or names with a slash between.
///
/// # Errors
/// [`FilesError::Name`].
pub fn check_path(path: &[u8]) -> Result<(), FilesError> {
    if path.len() > PATH {
        return Err(FilesError::Name { len: path.len() });
    }
    if path.is_empty() { Ok(()) } else { path.split(|byte| *byte == b'/').try_for_each(check_name) }
}

/// Whether a symbolic link with this target, in a directory so deep beneath its root, stays beneath that root, by what
/// it says: no symbolic link on its way is followed by that, and each of those stays there itself.
#[must_use]
pub fn stays(target: &[u8], mut depth: usize) -> bool {
    if target.is_empty() || target.len() > PATH || target[0] == b'/' || target.contains(&0) {
        return false;
    }
    // Up only at the beginning: behind a name, which may be a link, `..` may lead anywhere.
    let mut down = false;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => (),
            b".." if down || depth == 0 => return false,
            b".." => depth -= 1,
            _ => down = true,
        }
    }
    true
}

impl Roots {
    /// Holds it against its limits.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn check(&self) -> Result<(), FilesError> {
        let count = self.roots.len();
        if count > CLIPBOARD_ROOTS {
            return Err(FilesError::TooMany { what: "files", count, most: CLIPBOARD_ROOTS });
        }
        for Root { name, uri, shared } in &self.roots {
            if name.is_empty() {
                let good = uri.len() <= CLIPBOARD_URI && uri.bytes().all(|byte| (0x21..0x7f).contains(&byte));
                let file = uri.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:"));
                if !good || file || !uri.contains(':') {
                    return Err(FilesError::Name { len: uri.len() });
                }
            } else {
                check_name(name)?;
            }
            if let Some(Shared { share, path }) = shared {
                check_name(share.as_bytes())?;
                check_path(path)?;
            }
        }
        Ok(())
    }
}

impl Attributes {
    fn check(&self) -> Result<(), FilesError> {
        let named = !self.target.is_empty() && self.target.len() <= PATH && !self.target.contains(&0);
        if named == (self.kind == NodeKind::LINK) {
            Ok(())
        } else {
            Err(FilesError::Name { len: self.target.len() })
        }
    }
}

impl Ask {
    /// Holds a question against its limits. Whether its handle is one is the lender's to know.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn check(&self) -> Result<(), FilesError> {
        if self.len > READ_MOST {
            let (count, most) = (self.len as usize, READ_MOST as usize);
            return Err(FilesError::TooMany { what: "bytes in a question", count, most });
        }
        check_path(&self.path)
    }
}

/// What the lender said.
#[derive(Debug, PartialEq, Eq)]
pub enum Lent<'a> {
    /// Nothing that matters here.
    Nothing,
    /// What was copied. Once, and first.
    Roots(Roots),
    /// A node.
    Node(u64, Attributes),
    /// Entries of a directory, none at its end.
    Entries(u64, Vec<Entry>),
    /// Bytes of a file.
    Bytes(u64, &'a [u8]),
    /// What was asked cannot be done.
    Refused(u64, ErrorKind),
    /// The files cannot be lent.
    Failed(WireError),
}

/// The borrower's end of a connection.
#[derive(Debug, Default)]
pub struct Borrower {
    last: u64,
    /// Questions without an answer yet: number, deed, bytes asked for.
    open: VecDeque<(u64, Deed, u32)>,
    begun: bool,
}

impl Borrower {
    /// One to which nothing has been said.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks, and gives the question its number; `None` where too many are open already.
    pub fn ask(&mut self, mut ask: Ask, out: &mut Vec<u8>) -> Option<u64> {
        if ask.deed != Deed::CLOSE {
            if self.open.len() >= CLIPBOARD_ASKS {
                return None;
            }
            self.last += 1;
            ask.id = self.last;
            self.open.push_back((ask.id, ask.deed, ask.len));
        }
        frame::put(FrameId::CLIPBOARD_ASK, &ask, out);
        Some(ask.id)
    }

    /// A frame arrived.
    ///
    /// # Errors
    /// [`FilesError`]: the peer broke the protocol; the connection cannot go on.
    pub fn receive<'a>(&mut self, frame: Frame<'a>) -> Result<Lent<'a>, FilesError> {
        match frame.id {
            FrameId::CLIPBOARD_ROOTS if !self.begun => {
                self.begun = true;
                let roots: Roots = frame.decode()?;
                roots.check()?;
                Ok(Lent::Roots(roots))
            }
            FrameId::CLIPBOARD_NODE => {
                let Node { id, attributes } = frame.decode()?;
                self.answered(id, frame.id, |deed| matches!(deed, Deed::STAT | Deed::LIST | Deed::OPEN))?;
                attributes.check()?;
                Ok(Lent::Node(id, attributes))
            }
            FrameId::CLIPBOARD_ENTRIES => {
                let Entries { id, entries } = frame.decode()?;
                self.answered(id, frame.id, |deed| deed == Deed::MORE)?;
                let count = entries.len();
                if count > CLIPBOARD_ENTRIES {
                    return Err(FilesError::TooMany { what: "entries", count, most: CLIPBOARD_ENTRIES });
                }
                for Entry { name, attributes } in &entries {
                    check_name(name)?;
                    attributes.check()?;
                }
                Ok(Lent::Entries(id, entries))
            }
            FrameId::CLIPBOARD_BYTES => {
                let Some((id, bytes)) = frame.payload.split_first_chunk() else {
                    return Err(FilesError::Unexpected { id: frame.id });
                };
                let id = u64::from_le_bytes(*id);
                let most = self.answered(id, frame.id, |deed| deed == Deed::READ)? as usize;
                if bytes.len() > most {
                    return Err(FilesError::TooMany { what: "bytes", count: bytes.len(), most });
                }
                Ok(Lent::Bytes(id, bytes))
            }
            FrameId::CLIPBOARD_REFUSAL => {
                let Refusal { id, kind } = frame.decode()?;
                self.answered(id, frame.id, |_| true)?;
                Ok(Lent::Refused(id, kind))
            }
            FrameId::FAILED => Ok(Lent::Failed(frame.decode()?)),
            FrameId::UNKNOWN => Ok(Lent::Nothing),
            id => Err(FilesError::Unexpected { id }),
        }
    }

    /// The next question to be answered is this one, and of a fitting kind; the bytes that it asked for.
    fn answered(&mut self, id: u64, with: FrameId, fits: impl Fn(Deed) -> bool) -> Result<u32, FilesError> {
        match self.open.pop_front() {
            Some((asked, deed, len)) if asked == id && fits(deed) => Ok(len),
            _ => Err(FilesError::Answer { id, with }),
        }
    }
}

/// The lender's end, which answers one question after the other.
#[derive(Debug, Default)]
pub struct Lender {
    _private: (),
}

impl Lender {
    /// One that says what was copied.
    pub fn new(roots: &Roots, out: &mut Vec<u8>) -> Self {
        frame::put(FrameId::CLIPBOARD_ROOTS, roots, out);
        Self { _private: () }
    }

    /// A frame arrived: the question, or `None` where it is none that is answered.
    ///
    /// # Errors
    /// [`FilesError`]: the peer broke the protocol; the connection cannot go on.
    pub fn receive(&mut self, frame: Frame<'_>) -> Result<Option<Ask>, FilesError> {
        match frame.id {
            FrameId::CLIPBOARD_ASK => {
                let ask: Ask = frame.decode()?;
                ask.check()?;
                Ok(Some(ask))
            }
            FrameId::UNKNOWN => Ok(None),
            id => Err(FilesError::Unexpected { id }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put<T: Serialize>(id: FrameId, message: &T) -> Vec<u8> {
        let mut out = Vec::new();
        frame::put(id, message, &mut out);
        out.split_off(crate::limits::HEADER_LEN)
    }

    fn hear<'p>(borrower: &mut Borrower, id: FrameId, payload: &'p [u8]) -> Result<Lent<'p>, FilesError> {
        borrower.receive(Frame { id, channel: 0, payload })
    }

    fn ask(deed: Deed) -> Ask {
        Ask { id: 0, deed, root: 0, path: Vec::new(), handle: 1, offset: 0, len: 4 }
    }

    fn attributes(kind: NodeKind, target: &[u8]) -> Attributes {
        let target = target.to_vec();
        Attributes { kind, executable: false, size: 1, modified: 0, modified_ns: 0, target }
    }

    #[test]
    fn a_path_leads_nowhere_else() {
        for good in [&b""[..], b"a", b"a/b c/...", b"\xff\n/x"] {
            assert!(check_path(good).is_ok(), "{good:?}");
        }
        let long = [b'x'; CLIPBOARD_NAME + 1];
        for bad in [&b"/"[..], b"/a", b"a/", b"a//b", b"..", b"a/../b", b".", b"a\0b", &long, &[b'/'; 5000]] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        assert!(check_name(b"a/b").is_err() && check_name(b"").is_err() && check_name(&long[1..]).is_ok());
    }

    #[test]
    fn a_link_stays_beneath_its_root_or_is_none() {
        assert!(stays(b"x", 0) && stays(b"./x/y", 0) && stays(b"../x", 1) && stays(b"../../x/y", 2));
        for bad in [&b""[..], b"/etc/passwd", b"../x", b"x/../../y", b"x/../y", b"a\0"] {
            assert!(!stays(bad, 0), "{bad:?}");
        }
        assert!(!stays(b"../../x", 1));
    }

    #[test]
    fn an_answer_is_to_the_next_question_and_of_its_kind() {
        let mut borrower = Borrower::new();
        let mut out = Vec::new();
        let node =
            |id| put(FrameId::CLIPBOARD_NODE, &Node { id, attributes: attributes(NodeKind::FILE, b"") });
        assert!(hear(&mut borrower, FrameId::CLIPBOARD_NODE, &node(1)).is_err(), "nothing was asked");
        assert_eq!(borrower.ask(ask(Deed::STAT), &mut out), Some(1));
        assert_eq!(borrower.ask(ask(Deed::READ), &mut out), Some(2));
        assert_eq!(borrower.ask(ask(Deed::CLOSE), &mut out), Some(0));
        assert!(matches!(hear(&mut borrower, FrameId::CLIPBOARD_NODE, &node(1)), Ok(Lent::Node(1, _))));
        let bytes = |id: u64, len| [&id.to_le_bytes()[..], &vec![7; len]].concat();
        let (some, more) = (bytes(2, 4), bytes(2, 5));
        assert!(hear(&mut borrower, FrameId::CLIPBOARD_BYTES, &more).is_err(), "more than was asked for");
        borrower.ask(ask(Deed::READ), &mut out);
        assert!(hear(&mut borrower, FrameId::CLIPBOARD_BYTES, &some).is_err(), "another question's");
        borrower.ask(ask(Deed::READ), &mut out);
        let refusal = put(FrameId::CLIPBOARD_REFUSAL, &Refusal { id: 4, kind: ErrorKind::NOT_FOUND });
        assert_eq!(
            hear(&mut borrower, FrameId::CLIPBOARD_REFUSAL, &refusal).unwrap(),
            Lent::Refused(4, ErrorKind::NOT_FOUND)
        );
    }

    #[test]
    fn what_a_hostile_lender_names_is_refused() {
        let root = |name: &[u8], uri: &str| Root { name: name.to_vec(), uri: uri.into(), shared: None };
        let many = vec![root(b"x", ""); CLIPBOARD_ROOTS + 1];
        let share = |share: &str, path: &[u8]| Root {
            shared: Some(Shared { share: share.into(), path: path.to_vec() }),
            ..root(b"x", "")
        };
        for bad in [
            vec![root(b"..", "")],
            vec![root(b"a/b", "")],
            vec![root(b"", "FILE:///etc/passwd")],
            vec![root(b"", "http://x/\r\nfile:///etc")],
            vec![root(b"", "")],
            vec![share("..", b"")],
            vec![share("src", b"../x")],
            many,
        ] {
            let wire = put(FrameId::CLIPBOARD_ROOTS, &Roots { roots: bad });
            assert!(hear(&mut Borrower::new(), FrameId::CLIPBOARD_ROOTS, &wire).is_err());
        }
        let good = Roots { roots: vec![root(b"a b", ""), root(b"", "https://x/"), share("src", b"a/b")] };
        let wire = put(FrameId::CLIPBOARD_ROOTS, &good);
        let mut borrower = Borrower::new();
        assert_eq!(hear(&mut borrower, FrameId::CLIPBOARD_ROOTS, &wire).unwrap(), Lent::Roots(good));
        assert!(hear(&mut borrower, FrameId::CLIPBOARD_ROOTS, &wire).is_err(), "twice");
        borrower.ask(ask(Deed::MORE), &mut Vec::new());
        let entry = Entry { name: b"../x".to_vec(), attributes: attributes(NodeKind::FILE, b"") };
        let wire = put(FrameId::CLIPBOARD_ENTRIES, &Entries { id: 1, entries: vec![entry] });
        assert!(matches!(
            hear(&mut borrower, FrameId::CLIPBOARD_ENTRIES, &wire),
            Err(FilesError::Name { len: 4 })
        ));
    }

    #[test]
    fn questions_are_counted() {
        let (mut borrower, mut out) = (Borrower::new(), Vec::new());
        for _ in 0..CLIPBOARD_ASKS {
            assert!(borrower.ask(ask(Deed::STAT), &mut out).is_some());
        }
        assert_eq!(borrower.ask(ask(Deed::STAT), &mut out), None);
        let mut lender = Lender::new(&Roots::default(), &mut Vec::new());
        let far = put(FrameId::CLIPBOARD_ASK, &Ask { len: READ_MOST + 1, ..ask(Deed::READ) });
        assert!(lender.receive(Frame { id: FrameId::CLIPBOARD_ASK, channel: 0, payload: &far }).is_err());
        let out_of = put(FrameId::CLIPBOARD_ASK, &Ask { path: b"../x".to_vec(), ..ask(Deed::STAT) });
        assert!(lender.receive(Frame { id: FrameId::CLIPBOARD_ASK, channel: 0, payload: &out_of }).is_err());
    }
}
