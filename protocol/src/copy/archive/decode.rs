//! Reading an archive that a stranger wrote.

use super::{
    Attributes, COPY_DEPTH, COPY_LINKS, COPY_NAME, COPY_XATTRS, DATA_LEN, ERROR_TEXT, ErrorKind, Fault,
    MODE_BITS, PATH, Record, tag,
};

/// How a sender broke the archive's rules. The copy cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// A record goes on behind its frame.
    #[error("Peer sent an archive record that its frame cuts short")]
    Short,
    /// A tag that this release does not know.
    #[error("Peer sent an archive record of unknown kind {tag:#04x}")]
    Tag {
        /// The tag.
        tag: u8,
    },
    /// A number of more than 64 bits, or outside its range.
    #[error("Peer sent an archive record with a {what} that is out of range")]
    Range {
        /// What the number is.
        what: &'static str,
    },
    /// A byte string over its limit.
    #[error("Peer sent an archive record with a byte string of {len} bytes, the limit is {max}")]
    Long {
        /// Bytes claimed.
        len: u64,
        /// Bytes allowed.
        max: usize,
    },
    /// A name that is not one component of a path.
    #[error("Peer sent the name {name:?}, which is not one component of a path")]
    Name {
        /// The name, made printable.
        name: String,
    },
    /// A symbolic link's target that is empty or has a NUL byte.
    #[error("Peer sent a symbolic link without a valid target")]
    Target,
    /// A record that may not come here.
    #[error("Peer sent {record} {place}")]
    Misplaced {
        /// The record.
        record: &'static str,
        /// Where.
        place: &'static str,
    },
    /// Deeper than the limit.
    #[error("Peer sent directories more than {COPY_DEPTH} deep")]
    Deep,
    /// A file's chunks do not add up to its length.
    #[error("Peer sent {sent} bytes for a file of {size}")]
    Size {
        /// Bytes and holes sent.
        sent: u64,
        /// The length that was said.
        size: u64,
    },
    /// A hard link to a file that was not sent.
    #[error("Peer sent a hard link to file {to} of {files}")]
    Link {
        /// The number.
        to: u64,
        /// Linked files so far.
        files: u64,
    },
    /// The archive's end came within a file or directory.
    #[error("Peer ended the archive inside a {what}")]
    Open {
        /// In what.
        what: &'static str,
    },
}

/// What of an archive has been read, from frame to frame.
#[derive(Debug, Default)]
pub struct Decoder {
    depth: usize,
    /// The file under way: its length and what came of it.
    file: Option<(u64, u64)>,
    links: u64,
}

impl Decoder {
    /// An archive of which nothing has been read.
    #[must_use]
    pub const fn new() -> Self {
        Self { depth: 0, file: None, links: 0 }
    }

    /// The records of one data frame. After an error there are no more.
    pub const fn records<'d, 'a>(&'d mut self, frame: &'a [u8]) -> Records<'d, 'a> {
        Records { decoder: self, fields: Fields::new(frame), failed: false }
    }

    /// The stream ended: nothing may be open.
    ///
    /// # Errors
    /// [`ArchiveError::Open`].
    pub const fn end(&self) -> Result<(), ArchiveError> {
        match (self.file, self.depth) {
            (Some(_), _) => Err(ArchiveError::Open { what: "file" }),
            (None, 0) => Ok(()),
            (None, _) => Err(ArchiveError::Open { what: "directory" }),
        }
    }

    fn admit(&mut self, record: &Record<'_>) -> Result<(), ArchiveError> {
        let name = name_of(record);
        if let Some((size, sent)) = &mut self.file {
            match record {
                Record::Data(data) => return advance(*size, sent, data.len() as u64),
                Record::Hole(len) => return advance(*size, sent, *len),
                Record::End if sent != size => return Err(ArchiveError::Size { sent: *sent, size: *size }),
                Record::End | Record::Broken(_) => self.file = None,
                _ => return Err(ArchiveError::Misplaced { record: name, place: "inside a file" }),
            }
            return Ok(());
        }
        match record {
            Record::Data(_) | Record::Hole(_) | Record::End | Record::Broken(_) => {
                return Err(ArchiveError::Misplaced { record: name, place: "outside a file" });
            }
            Record::Here(_) if self.depth > 0 => {
                return Err(ArchiveError::Misplaced { record: name, place: "inside a directory" });
            }
            Record::Here(_) | Record::Enter { .. } if self.depth == COPY_DEPTH => {
                return Err(ArchiveError::Deep);
            }
            Record::Here(_) | Record::Enter { .. } => self.depth += 1,
            Record::Leave => match self.depth.checked_sub(1) {
                Some(depth) => self.depth = depth,
                None => return Err(ArchiveError::Misplaced { record: name, place: "at the top" }),
            },
            Record::File { size, linked, .. } => {
                if *linked && self.links == COPY_LINKS {
                    return Err(ArchiveError::Range { what: "count of linked files" });
                }
                self.links += u64::from(*linked);
                self.file = Some((*size, 0));
            }
            Record::HardLink { to, .. } if *to >= self.links => {
                return Err(ArchiveError::Link { to: *to, files: self.links });
            }
            _ => (),
        }
        Ok(())
    }
}

fn advance(size: u64, sent: &mut u64, len: u64) -> Result<(), ArchiveError> {
    match sent.checked_add(len) {
        Some(sum) if sum <= size => *sent = sum,
        _ => return Err(ArchiveError::Size { sent: sent.saturating_add(len), size }),
    }
    Ok(())
}

const fn name_of(record: &Record<'_>) -> &'static str {
    match record {
        Record::Here(_) => "the target itself",
        Record::Enter { .. } => "a directory",
        Record::Leave => "a directory's end",
        Record::File { .. } => "a file",
        Record::Data(_) => "file content",
        Record::Hole(_) => "a hole",
        Record::End | Record::Broken(_) => "a file's end",
        Record::Symlink { .. } => "a symbolic link",
        Record::HardLink { .. } => "a hard link",
        Record::Fifo { .. } => "a FIFO",
        Record::Skipped { .. } => "a skipped entry",
        Record::Total { .. } => "a total",
    }
}

/// The records of one data frame.
#[derive(Debug)]
pub struct Records<'d, 'a> {
    decoder: &'d mut Decoder,
    fields: Fields<'a>,
    failed: bool,
}

impl<'a> Iterator for Records<'_, 'a> {
    type Item = Result<Record<'a>, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.fields.rest().is_empty() {
            return None;
        }
        let record = read(&mut self.fields).and_then(|record| self.decoder.admit(&record).map(|()| record));
        self.failed = record.is_err();
        Some(record)
    }
}

pub(super) fn read<'a>(fields: &mut Fields<'a>) -> Result<Record<'a>, ArchiveError> {
    Ok(match fields.byte()? {
        tag::HERE_BARE => Record::Here(None),
        tag::HERE => Record::Here(Some(fields.attributes()?)),
        tag::ENTER_BARE => Record::Enter { name: fields.name()?, attributes: None },
        tag::ENTER => Record::Enter { name: fields.name()?, attributes: Some(fields.attributes()?) },
        tag::LEAVE => Record::Leave,
        tag @ (tag::FILE | tag::FILE_LINKED | tag::FILE_SPARSE | tag::FILE_SPARSE_LINKED) => Record::File {
            name: fields.name()?,
            attributes: fields.attributes()?,
            size: fields.size("file's length")?,
            linked: matches!(tag, tag::FILE_LINKED | tag::FILE_SPARSE_LINKED),
            sparse: matches!(tag, tag::FILE_SPARSE | tag::FILE_SPARSE_LINKED),
        },
        tag::DATA => Record::Data(fields.data()?),
        tag::HOLE => Record::Hole(fields.size("hole's length")?),
        tag::END => Record::End,
        tag::BROKEN => Record::Broken(fields.fault()?),
        tag::SYMLINK => Record::Symlink {
            name: fields.name()?,
            attributes: fields.attributes()?,
            target: {
                let target = fields.bytes(PATH)?;
                if target.is_empty() || target.contains(&0) {
                    return Err(ArchiveError::Target);
                }
                target
            },
        },
        tag::HARD_LINK => Record::HardLink { name: fields.name()?, to: fields.number()? },
        tag::FIFO => Record::Fifo { name: fields.name()?, attributes: fields.attributes()? },
        tag::SKIPPED => {
            let name = fields.bytes(COPY_NAME)?;
            if !name.is_empty() {
                component(name)?;
            }
            Record::Skipped { name, fault: fields.fault()? }
        }
        tag::TOTAL => Record::Total { entries: fields.number()?, bytes: fields.number()? },
        tag => return Err(ArchiveError::Tag { tag }),
    })
}

fn component(name: &[u8]) -> Result<(), ArchiveError> {
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(ArchiveError::Name { name: name.escape_ascii().to_string() });
    }
    Ok(())
}

/// A record's fields, taken from the front.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn byte(&mut self) -> Result<u8, ArchiveError> {
        let (first, rest) = self.rest.split_first().ok_or(ArchiveError::Short)?;
        self.rest = rest;
        Ok(*first)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ArchiveError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(ArchiveError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, ArchiveError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ArchiveError::Range { what: "number" })
    }

    /// A length of a file or of a part of it: what a file system's signed offset can hold.
    fn size(&mut self, what: &'static str) -> Result<u64, ArchiveError> {
        let size = self.number()?;
        if i64::try_from(size).is_err() { Err(ArchiveError::Range { what }) } else { Ok(size) }
    }

    pub(super) fn bytes(&mut self, max: usize) -> Result<&'a [u8], ArchiveError> {
        let len = self.number()?;
        match usize::try_from(len) {
            Ok(len) if len <= max => self.take(len),
            _ => Err(ArchiveError::Long { len, max }),
        }
    }

    fn name(&mut self) -> Result<&'a [u8], ArchiveError> {
        let name = self.bytes(COPY_NAME)?;
        component(name).map(|()| name)
    }

    fn data(&mut self) -> Result<&'a [u8], ArchiveError> {
        let mut len = [0; 4];
        len.copy_from_slice(self.take(4)?);
        let len = u32::from_le_bytes(len);
        if len > DATA_LEN {
            return Err(ArchiveError::Long { len: u64::from(len), max: DATA_LEN as usize });
        }
        self.take(len as usize)
    }

    fn attributes(&mut self) -> Result<Attributes<'a>, ArchiveError> {
        let mode = u32::try_from(self.number()?).ok().filter(|mode| *mode <= MODE_BITS);
        let mode = mode.ok_or(ArchiveError::Range { what: "mode" })?;
        let folded = self.number()?;
        let seconds = (folded >> 1).cast_signed() ^ -((folded & 1).cast_signed());
        let nanoseconds = u32::try_from(self.number()?).ok().filter(|part| *part < 1_000_000_000);
        let nanoseconds = nanoseconds.ok_or(ArchiveError::Range { what: "time" })?;
        let xattrs = self.bytes(COPY_XATTRS)?;
        let mut pairs = Fields::new(xattrs);
        while !pairs.rest.is_empty() {
            let name = pairs.bytes(COPY_NAME)?;
            if name.is_empty() || name.contains(&0) {
                return Err(ArchiveError::Name { name: name.escape_ascii().to_string() });
            }
            pairs.bytes(COPY_XATTRS)?;
        }
        Ok(Attributes { mode, seconds, nanoseconds, xattrs })
    }

    fn fault(&mut self) -> Result<Fault<'a>, ArchiveError> {
        let kind = u16::try_from(self.number()?).map_err(|_| ArchiveError::Range { what: "error kind" })?;
        let message = std::str::from_utf8(self.bytes(ERROR_TEXT)?);
        let message = message.map_err(|_| ArchiveError::Range { what: "error message" })?;
        Ok(Fault { kind: ErrorKind(kind), message })
    }
}
