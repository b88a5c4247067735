//! Requests: from a kernel's bytes to one operation, or the reason why it is none.
//!
//! Nothing here looks at a file. Whoever calls has copied the bytes out of a guest's memory, so they
//! hold still; a name that comes out of here is one component that cannot lead out of its directory.

use std::ffi::CStr;

use thiserror::Error;

use super::abi::{self, IN_HEADER, NAME_MAX, PATH_MAX, XATTR_MAX, fattr, op};

/// The most bytes of a request besides a write's data: an extended attribute with its name, and some.
pub const BODY_MAX: usize = XATTR_MAX + 1024;

/// What a kernel does not send.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Malformed {
    #[error("The kernel's request has {bytes} bytes, too few for its kind")]
    Short { bytes: usize },
    #[error("The kernel's request has {bytes} bytes, and {limit} are the most")]
    Long { bytes: usize, limit: usize },
    #[error("The kernel's name has no end, or {limit} bytes and more")]
    NameLength { limit: usize },
    #[error("The kernel's name is empty, a dot or two, or has a slash in it")]
    Name,
    #[error("The kernel's name of an extended attribute is empty")]
    AttributeName,
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the request, this header included.
    pub len: u32,
    /// The kind of request.
    pub opcode: u32,
    /// What the answer has to carry.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
    /// Who asks, as the kernel numbers them.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// The process that asks.
    pub pid: u32,
}

impl Header {
    /// Reads `fuse_in_header`.
    pub fn decode(bytes: &[u8; IN_HEADER]) -> Self {
        let u32_at = |at: usize| bytes[at..].first_chunk().map_or(0, |raw| u32::from_le_bytes(*raw));
        let u64_at = |at: usize| bytes[at..].first_chunk().map_or(0, |raw| u64::from_le_bytes(*raw));
        Self {
            len: u32_at(0),
            opcode: u32_at(4),
            unique: u64_at(8),
            node: u64_at(16),
            uid: u32_at(24),
            gid: u32_at(28),
            pid: u32_at(32),
        }
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// As it is.
    Keep,
    /// The host's own.
    Now,
    /// Seconds since 1970 and nanoseconds.
    At(i64, u32),
}

/// What a setattr changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in stat(2)")]
pub struct SetAttr {
    pub handle: Option<u64>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Time,
    pub mtime: Time,
    /// Set-id bits and capabilities go with the change.
    pub kill_ids: bool,
}

/// A request, decoded. Names are single components.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the operations of the protocol")]
pub enum Operation<'a> {
    Lookup {
        name: &'a CStr,
    },
    Forget {
        count: u64,
    },
    BatchForget {
        pairs: &'a [u8],
    },
    GetAttr {
        handle: Option<u64>,
    },
    StatX {
        handle: Option<u64>,
    },
    SetAttr(SetAttr),
    ReadLink,
    SymLink {
        name: &'a CStr,
        target: &'a CStr,
    },
    MkNod {
        name: &'a CStr,
        mode: u32,
        device: u32,
    },
    MkDir {
        name: &'a CStr,
        mode: u32,
    },
    Unlink {
        name: &'a CStr,
    },
    RmDir {
        name: &'a CStr,
    },
    Rename {
        name: &'a CStr,
        to: u64,
        to_name: &'a CStr,
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a CStr,
    },
    Open {
        flags: u32,
        kill_ids: bool,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        size: u32,
        kill_ids: bool,
    },
    StatFs,
    Release {
        handle: u64,
    },
    Sync {
        handle: u64,
        data_only: bool,
    },
    SetXattr {
        name: &'a CStr,
        value: &'a [u8],
        flags: u32,
    },
    GetXattr {
        name: &'a CStr,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a CStr,
    },
    Init {
        major: u32,
        minor: u32,
        readahead: u32,
        flags: u64,
    },
    OpenDir,
    ReadDir {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    ReleaseDir {
        handle: u64,
    },
    Create {
        name: &'a CStr,
        flags: u32,
        mode: u32,
        kill_ids: bool,
    },
    TmpFile {
        flags: u32,
        mode: u32,
    },
    Destroy,
    /// Nobody waits for the answer to this request any more.
    Interrupt {
        unique: u64,
    },
    Allocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyRange {
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        length: u64,
        flags: u64,
    },
    SyncFs,
    /// One that is not known here; the kernel then does without.
    Unknown,
}

/// Decodes the body of a request; for a write, `body` ends before the data.
pub fn decode(opcode: u32, body: &[u8]) -> Result<Operation<'_>, Malformed> {
    let mut body = Reader { rest: body, bytes: body.len() };
    Ok(match opcode {
        op::LOOKUP => Operation::Lookup { name: body.name()? },
        op::FORGET => Operation::Forget { count: body.u64()? },
        op::BATCH_FORGET => {
            let count = body.u32()? as usize;
            body.skip(4)?;
            Operation::BatchForget { pairs: body.bytes(count.saturating_mul(16))? }
        }
        op::GETATTR => {
            let flags = body.u32()?;
            body.skip(4)?;
            let handle = body.u64()?;
            Operation::GetAttr { handle: (flags & abi::GETATTR_FH != 0).then_some(handle) }
        }
        op::STATX => {
            let flags = body.u32()?;
            body.skip(4)?;
            let handle = body.u64()?;
            // Which of them are asked for makes no difference to the host.
            body.skip(8)?;
            Operation::StatX { handle: (flags & abi::GETATTR_FH != 0).then_some(handle) }
        }
        op::SETATTR => Operation::SetAttr(set_attr(&mut body)?),
        op::READLINK => Operation::ReadLink,
        op::SYMLINK => Operation::SymLink { name: body.name()?, target: body.text(PATH_MAX)? },
        op::MKNOD => {
            let (mode, device) = (body.u32()?, body.u32()?);
            body.skip(8)?;
            Operation::MkNod { name: body.name()?, mode, device }
        }
        op::MKDIR => {
            let mode = body.u32()?;
            body.skip(4)?;
            Operation::MkDir { name: body.name()?, mode }
        }
        op::UNLINK => Operation::Unlink { name: body.name()? },
        op::RMDIR => Operation::RmDir { name: body.name()? },
        op::RENAME => {
            let to = body.u64()?;
            Operation::Rename { name: body.name()?, to, to_name: body.name()?, flags: 0 }
        }
        op::RENAME2 => {
            let (to, flags) = (body.u64()?, body.u32()?);
            body.skip(4)?;
            Operation::Rename { name: body.name()?, to, to_name: body.name()?, flags }
        }
        op::LINK => {
            let node = body.u64()?;
            Operation::Link { node, name: body.name()? }
        }
        op::OPEN => {
            let (flags, more) = (body.u32()?, body.u32()?);
            Operation::Open { flags, kill_ids: more & abi::OPEN_KILL_SUIDGID != 0 }
        }
        op::READ => {
            let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
            Operation::Read { handle, offset, size }
        }
        op::WRITE => {
            let (handle, offset, size, flags) = (body.u64()?, body.u64()?, body.u32()?, body.u32()?);
            body.skip(16)?;
            Operation::Write { handle, offset, size, kill_ids: flags & abi::WRITE_KILL_SUIDGID != 0 }
        }
        op::STATFS => Operation::StatFs,
        op::RELEASE => Operation::Release { handle: body.u64()? },
        op::FSYNC | op::FSYNCDIR => {
            let (handle, flags) = (body.u64()?, body.u32()?);
            Operation::Sync { handle, data_only: flags & abi::FSYNC_DATA != 0 }
        }
        op::SETXATTR => {
            let (size, flags) = (body.u32()? as usize, body.u32()?);
            let name = body.attribute()?;
            if size > XATTR_MAX {
                return Err(Malformed::Long { bytes: size, limit: XATTR_MAX });
            }
            Operation::SetXattr { name, value: body.bytes(size)?, flags }
        }
        op::GETXATTR => {
            let size = body.u32()?;
            body.skip(4)?;
            Operation::GetXattr { name: body.attribute()?, size }
        }
        op::LISTXATTR => Operation::ListXattr { size: body.u32()? },
        op::REMOVEXATTR => Operation::RemoveXattr { name: body.attribute()? },
        op::INIT => {
            let (major, minor) = (body.u32()?, body.u32()?);
            let (readahead, low) = (body.u32()?, u64::from(body.u32()?));
            let high = if low & abi::init::INIT_EXT != 0 { u64::from(body.u32()?) } else { 0 };
            Operation::Init { major, minor, readahead, flags: low | high << 32 }
        }
        op::OPENDIR => Operation::OpenDir,
        op::READDIR | op::READDIRPLUS => {
            let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
            Operation::ReadDir { handle, offset, size, plus: opcode == op::READDIRPLUS }
        }
        op::RELEASEDIR => Operation::ReleaseDir { handle: body.u64()? },
        op::CREATE | op::TMPFILE => {
            let (flags, mode) = (body.u32()?, body.u32()?);
            body.skip(4)?;
            let kill_ids = body.u32()? & abi::OPEN_KILL_SUIDGID != 0;
            if opcode == op::TMPFILE {
                // The name that comes with it is none.
                return Ok(Operation::TmpFile { flags, mode });
            }
            Operation::Create { name: body.name()?, flags, mode, kill_ids }
        }
        op::DESTROY => Operation::Destroy,
        op::INTERRUPT => Operation::Interrupt { unique: body.u64()? },
        op::FALLOCATE => {
            let (handle, offset, length, mode) = (body.u64()?, body.u64()?, body.u64()?, body.u32()?);
            Operation::Allocate { handle, offset, length, mode }
        }
        op::LSEEK => {
            let (handle, offset, whence) = (body.u64()?, body.u64()?, body.u32()?);
            Operation::Seek { handle, offset, whence }
        }
        op::COPY_FILE_RANGE => {
            let (from, from_offset) = (body.u64()?, body.u64()?);
            body.skip(8)?;
            let (to, to_offset, length, flags) = (body.u64()?, body.u64()?, body.u64()?, body.u64()?);
            Operation::CopyRange { from, from_offset, to, to_offset, length, flags }
        }
        op::SYNCFS => Operation::SyncFs,
        _ => Operation::Unknown,
    })
}

fn set_attr(body: &mut Reader<'_>) -> Result<SetAttr, Malformed> {
    let valid = body.u32()?;
    body.skip(4)?;
    let (handle, size) = (body.u64()?, body.u64()?);
    body.skip(8)?;
    let (atime, mtime) = (body.u64()?, body.u64()?);
    body.skip(8)?;
    let (atime_nanos, mtime_nanos) = (body.u32()?, body.u32()?);
    body.skip(4)?;
    let mode = body.u32()?;
    body.skip(4)?;
    let (uid, gid) = (body.u32()?, body.u32()?);
    let has = |flag: u32| valid & flag != 0;
    let time = |set, now, seconds: u64, nanos| {
        if has(now) {
            Time::Now
        } else if has(set) {
            Time::At(seconds.cast_signed(), nanos)
        } else {
            Time::Keep
        }
    };
    Ok(SetAttr {
        handle: has(fattr::FH).then_some(handle),
        mode: has(fattr::MODE).then_some(mode),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nanos),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nanos),
        kill_ids: has(fattr::KILL_SUIDGID),
    })
}

struct Reader<'a> {
    rest: &'a [u8],
    bytes: usize,
}

impl<'a> Reader<'a> {
    fn short(&self) -> Malformed {
        Malformed::Short { bytes: self.bytes }
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(bytes)
    }

    fn skip(&mut self, count: usize) -> Result<(), Malformed> {
        self.bytes(count).map(drop)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let (raw, rest) = self.rest.split_first_chunk().ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(u32::from_le_bytes(*raw))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        let (raw, rest) = self.rest.split_first_chunk().ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*raw))
    }

    /// A string and its closing zero.
    fn text(&mut self, limit: usize) -> Result<&'a CStr, Malformed> {
        let text =
            CStr::from_bytes_until_nul(self.rest).map_err(|_| Malformed::NameLength { limit: limit + 1 })?;
        if text.count_bytes() > limit {
            return Err(Malformed::NameLength { limit: limit + 1 });
        }
        self.rest = &self.rest[text.count_bytes() + 1..];
        Ok(text)
    }

    /// One component of a path, and none of those that lead elsewhere.
    fn name(&mut self) -> Result<&'a CStr, Malformed> {
        let name = self.text(NAME_MAX)?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Malformed::Name),
            bytes if bytes.contains(&b'/') => Err(Malformed::Name),
            _ => Ok(name),
        }
    }

    fn attribute(&mut self) -> Result<&'a CStr, Malformed> {
        let name = self.text(NAME_MAX)?;
        if name.is_empty() { Err(Malformed::AttributeName) } else { Ok(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_component() {
        for bad in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0", b"../x\0"] {
            assert_eq!(decode(op::LOOKUP, bad), Err(Malformed::Name), "{bad:?}");
        }
        let long = [b'a'; 256];
        assert!(matches!(decode(op::LOOKUP, &long), Err(Malformed::NameLength { .. })));
        assert_eq!(decode(op::LOOKUP, b"...\0"), Ok(Operation::Lookup { name: c"..." }));
        let mut rename = [0u8; 16].to_vec();
        rename.extend_from_slice(b"a\0../b\0");
        assert_eq!(decode(op::RENAME2, &rename), Err(Malformed::Name));
    }

    #[test]
    fn every_cut_of_a_request_is_refused_and_none_panics() {
        for opcode in 0..64 {
            for len in 0..128 {
                let body = vec![1u8; len];
                let _ = decode(opcode, &body);
            }
        }
        assert_eq!(decode(op::READ, &[0; 19]), Err(Malformed::Short { bytes: 19 }));
    }
}
