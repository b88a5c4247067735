//! The archive inside a copy's stream: one record after the other, each whole within its data frame.
//!
//! ```text
//! archive   = { here { entry } leave | entry }   the target itself, or entries of it
//! entry     = enter { entry } leave | file { data | hole } end | symlink | hard link | fifo | skipped | total
//! ```
//! A record is a tag byte and its fields: numbers as LEB128, byte strings with their length before them. A name is one
//! component: no slash, no NUL, not `.` or `..`, not empty. So there is no record that leaves its directory, and what
//! remains for the receiver to mind are the symbolic links that it finds on its own disk.
//!
//! [`Decoder`] holds what a frame brings against this grammar, with every count capped; it never panics and never
//! allocates by a number that it was sent.

use crate::error::{ErrorKind, WireError};
use crate::limits::{COPY_DEPTH, COPY_LINKS, COPY_NAME, COPY_XATTRS, DATA_LEN, ERROR_TEXT, PATH};

mod decode;

pub use decode::{ArchiveError, Decoder, Records};

/// Permission bits, sticky, set-user-id and set-group-id: what a mode on the wire may hold.
pub const MODE_BITS: u32 = 0o7777;

/// One step of an archive, borrowed from its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// What follows goes into the target itself, a directory. Without attributes where the source has none.
    Here(Option<Attributes<'a>>),
    /// A directory; what follows is in it. Without attributes where it is only on the way (a tar without the entry).
    Enter {
        /// Its name.
        name: &'a [u8],
        /// Its attributes, set when it is left.
        attributes: Option<Attributes<'a>>,
    },
    /// Back to the directory above.
    Leave,
    /// A regular file; its chunks follow, then its end.
    File {
        /// Its name.
        name: &'a [u8],
        /// Its attributes.
        attributes: Attributes<'a>,
        /// Its length, holes included: chunks never pass it, and reach it unless the end says otherwise.
        size: u64,
        /// It has other names: it gets the next number, from zero, for [`Record::HardLink`].
        linked: bool,
        /// It has holes: it needs less room than its length.
        sparse: bool,
    },
    /// The next bytes of the file.
    Data(&'a [u8]),
    /// So many zero bytes that the source does not store.
    Hole(u64),
    /// The file is whole.
    End,
    /// The file could not be read whole: it is not to be put in place.
    Broken(Fault<'a>),
    /// A symbolic link.
    Symlink {
        /// Its name.
        name: &'a [u8],
        /// Its attributes; only the time is used.
        attributes: Attributes<'a>,
        /// What it says.
        target: &'a [u8],
    },
    /// Another name of a file sent before.
    HardLink {
        /// The name.
        name: &'a [u8],
        /// The file's number among those that were `linked`.
        to: u64,
    },
    /// A FIFO.
    Fifo {
        /// Its name.
        name: &'a [u8],
        /// Its attributes.
        attributes: Attributes<'a>,
    },
    /// What the sender could not send, or could send only in part.
    Skipped {
        /// Its name; that of the directory itself is empty.
        name: &'a [u8],
        /// Why.
        fault: Fault<'a>,
    },
    /// How much there will be, where the sender knows. A hint.
    Total {
        /// Entries of every kind.
        entries: u64,
        /// Bytes of files, holes not included.
        bytes: u64,
    },
}

/// What an entry has beside its name and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes<'a> {
    /// [`MODE_BITS`].
    pub mode: u32,
    /// Modified, seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds, below 1 000 000 000.
    pub nanoseconds: u32,
    /// Extended attributes as pairs of byte strings; read with [`Attributes::xattrs`], written with [`put_xattr`].
    pub xattrs: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The extended attributes, by their Linux names (`user.…`, `system.posix_acl_…`).
    #[must_use]
    pub const fn xattrs(&self) -> Xattrs<'a> {
        Xattrs { rest: self.xattrs }
    }
}

/// Name and value of each extended attribute.
#[derive(Debug, Clone)]
pub struct Xattrs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut fields = decode::Fields::new(self.rest);
        let pair = (fields.bytes(COPY_XATTRS).ok()?, fields.bytes(COPY_XATTRS).ok()?);
        self.rest = fields.rest();
        Some(pair)
    }
}

/// Appends one extended attribute to what becomes [`Attributes::xattrs`].
pub fn put_xattr(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    bytes(name, out);
    bytes(value, out);
}

/// What went wrong with an entry: a [`WireError`] that borrows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault<'a> {
    /// What kind.
    pub kind: ErrorKind,
    /// What happened.
    pub message: &'a str,
}

impl Fault<'_> {
    /// The same, owned.
    #[must_use]
    pub fn to_error(self) -> WireError {
        WireError::new(self.kind, self.message)
    }
}

impl<'a> From<&'a WireError> for Fault<'a> {
    fn from(error: &'a WireError) -> Self {
        Self { kind: error.kind, message: &error.message }
    }
}

/// Bytes of a data record's header, its length a fixed four so that a file can be read in behind it.
pub const DATA_HEADER: usize = 5;

/// The header of a data record of `len` bytes; the bytes come right behind it.
#[must_use]
pub const fn data_header(len: u32) -> [u8; DATA_HEADER] {
    let [a, b, c, d] = len.to_le_bytes();
    [tag::DATA, a, b, c, d]
}

mod tag {
    pub(super) const HERE: u8 = 0x01;
    pub(super) const HERE_BARE: u8 = 0x02;
    pub(super) const ENTER: u8 = 0x03;
    pub(super) const ENTER_BARE: u8 = 0x04;
    pub(super) const LEAVE: u8 = 0x05;
    pub(super) const FILE: u8 = 0x06;
    pub(super) const FILE_LINKED: u8 = 0x07;
    pub(super) const DATA: u8 = 0x08;
    pub(super) const HOLE: u8 = 0x09;
    pub(super) const END: u8 = 0x0a;
    pub(super) const BROKEN: u8 = 0x0b;
    pub(super) const SYMLINK: u8 = 0x0c;
    pub(super) const HARD_LINK: u8 = 0x0d;
    pub(super) const FIFO: u8 = 0x0e;
    pub(super) const SKIPPED: u8 = 0x0f;
    pub(super) const TOTAL: u8 = 0x10;
    pub(super) const FILE_SPARSE: u8 = 0x11;
    pub(super) const FILE_SPARSE_LINKED: u8 = 0x12;
}

impl Record<'_> {
    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Record::Here(None) => out.push(tag::HERE_BARE),
            Record::Here(Some(of)) => {
                out.push(tag::HERE);
                attributes(&of, out);
            }
            Record::Enter { name, attributes: None } => {
                out.push(tag::ENTER_BARE);
                bytes(name, out);
            }
            Record::Enter { name, attributes: Some(of) } => {
                out.push(tag::ENTER);
                bytes(name, out);
                attributes(&of, out);
            }
            Record::Leave => out.push(tag::LEAVE),
            Record::File { name, attributes: of, size, linked, sparse } => {
                out.push(match (sparse, linked) {
                    (false, false) => tag::FILE,
                    (false, true) => tag::FILE_LINKED,
                    (true, false) => tag::FILE_SPARSE,
                    (true, true) => tag::FILE_SPARSE_LINKED,
                });
                bytes(name, out);
                attributes(&of, out);
                number(size, out);
            }
            Record::Data(data) => {
                #[expect(clippy::cast_possible_truncation, reason = "a record is within its frame")]
                out.extend_from_slice(&data_header(data.len() as u32));
                out.extend_from_slice(data);
            }
            Record::Hole(len) => {
                out.push(tag::HOLE);
                number(len, out);
            }
            Record::End => out.push(tag::END),
            Record::Broken(of) => {
                out.push(tag::BROKEN);
                fault(&of, out);
            }
            Record::Symlink { name, attributes: of, target } => {
                out.push(tag::SYMLINK);
                bytes(name, out);
                attributes(&of, out);
                bytes(target, out);
            }
            Record::HardLink { name, to } => {
                out.push(tag::HARD_LINK);
                bytes(name, out);
                number(to, out);
            }
            Record::Fifo { name, attributes: of } => {
                out.push(tag::FIFO);
                bytes(name, out);
                attributes(&of, out);
            }
            Record::Skipped { name, fault: of } => {
                out.push(tag::SKIPPED);
                bytes(name, out);
                fault(&of, out);
            }
            Record::Total { entries, bytes } => {
                out.push(tag::TOTAL);
                number(entries, out);
                number(bytes, out);
            }
        }
    }
}

fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "seven bits of it")]
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 128")]
    out.push(value as u8);
}

fn bytes(value: &[u8], out: &mut Vec<u8>) {
    number(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn attributes(of: &Attributes<'_>, out: &mut Vec<u8>) {
    number(u64::from(of.mode & MODE_BITS), out);
    // Zigzag, so that times just before 1970 stay short.
    number(((of.seconds << 1) ^ (of.seconds >> 63)).cast_unsigned(), out);
    number(u64::from(of.nanoseconds), out);
    bytes(of.xattrs, out);
}

fn fault(of: &Fault<'_>, out: &mut Vec<u8>) {
    number(u64::from(of.kind.0), out);
    bytes(of.message.as_bytes(), out);
}

#[cfg(test)]
mod tests;
