//! What a driver asks of a disk: bytes in, a decision out, and nothing done (virtio 1.3, section 5.2.6).

use super::SECTOR;

/// Bytes of a request's header.
pub const HEADER_LEN: usize = 16;
/// Bytes that name a range to discard or to make zero.
pub const RANGE_LEN: usize = 16;
/// The most ranges in a request.
pub const RANGES_MAX: usize = 16;
/// The most sectors in a range: 1 GiB.
pub const RANGE_SECTORS_MAX: u32 = 1 << 21;

// `virtio_blk_req.type`.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A range's only flag.
const UNMAP: u32 = 1;

/// The answer, a request's last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// It cannot be done, or failed.
    IoError = 1,
    /// It is nothing that this device does.
    Unsupported = 2,
}

/// What there is to be asked of.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The disk's size.
    pub sectors: u64,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// What a request asks, within the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Fill the writable part but its last byte, from this byte of the disk on.
    Read(u64),
    /// Write the readable part behind the header, from this byte of the disk on.
    Write(u64),
    /// Make what was written last.
    Flush,
    /// Say who you are.
    Id,
    /// Discard ranges.
    Discard,
    /// Make ranges zero.
    Zero,
}

/// Reads a header. `readable` and `writable` are the bytes of the request without header and status.
///
/// # Errors
/// The answer, where there is nothing to be done.
pub fn parse(
    header: [u8; HEADER_LEN],
    readable: usize,
    writable: usize,
    limits: Limits,
) -> Result<Ask, Status> {
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let ask = match u32::from_le_bytes([a, b, c, d]) {
        IN => return place(sector, writable as u64, limits).map(Ask::Read),
        OUT => Ask::Write(0),
        FLUSH => return Ok(Ask::Flush),
        GET_ID => return Ok(Ask::Id),
        DISCARD => Ask::Discard,
        WRITE_ZEROES => Ask::Zero,
        _ => return Err(Status::Unsupported),
    };
    match ask {
        _ if limits.read_only => Err(Status::IoError),
        Ask::Write(_) => place(sector, readable as u64, limits).map(Ask::Write),
        _ if readable == 0 || !readable.is_multiple_of(RANGE_LEN) || readable / RANGE_LEN > RANGES_MAX => {
            Err(Status::IoError)
        }
        _ => Ok(ask),
    }
}

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub at: u64,
    /// How many.
    pub bytes: u64,
    /// Whether the host may have their room.
    pub unmap: bool,
}

/// Reads a range of a [`Ask::Discard`] or [`Ask::Zero`].
///
/// # Errors
/// The answer, where it cannot be.
pub fn range(raw: [u8; RANGE_LEN], ask: Ask, limits: Limits) -> Result<Range, Status> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = raw;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let (sectors, flags) = (u32::from_le_bytes([n0, n1, n2, n3]), u32::from_le_bytes(flags));
    // A discard has no flag (5.2.6.2).
    if flags & !UNMAP != 0 || (ask == Ask::Discard && flags != 0) {
        return Err(Status::Unsupported);
    }
    if sectors > RANGE_SECTORS_MAX {
        return Err(Status::IoError);
    }
    let bytes = u64::from(sectors) * SECTOR;
    Ok(Range { at: place(sector, bytes, limits)?, bytes, unmap: flags & UNMAP != 0 })
}

/// The byte at which these bytes begin, where they are whole sectors of the disk.
fn place(sector: u64, bytes: u64, limits: Limits) -> Result<u64, Status> {
    let end = sector.checked_add(bytes / SECTOR);
    let inside = bytes.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= limits.sectors);
    if inside { Ok(sector * SECTOR) } else { Err(Status::IoError) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: Limits = Limits { sectors: 100, read_only: false };

    fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN] {
        let mut header = [0xff; HEADER_LEN];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    fn raw(sector: u64, sectors: u32, flags: u32) -> [u8; RANGE_LEN] {
        let mut raw = [0; RANGE_LEN];
        raw[..8].copy_from_slice(&sector.to_le_bytes());
        raw[8..12].copy_from_slice(&sectors.to_le_bytes());
        raw[12..].copy_from_slice(&flags.to_le_bytes());
        raw
    }

    #[test]
    fn requests_within_the_disk_are_taken_and_no_others() {
        use Status::{IoError, Unsupported};
        for (kind, sector, readable, writable, expected) in [
            (IN, 0, 0, 51200, Ok(Ask::Read(0))),
            (IN, 99, 0, 512, Ok(Ask::Read(50688))),
            (IN, 99, 0, 1024, Err(IoError)),
            (IN, 100, 0, 0, Ok(Ask::Read(51200))),
            (IN, 101, 0, 0, Err(IoError)),
            (IN, 1, 0, 511, Err(IoError)),
            (IN, u64::MAX, 0, 512, Err(IoError)),
            (OUT, 3, 1024, 0, Ok(Ask::Write(1536))),
            (OUT, 99, 513, 0, Err(IoError)),
            (OUT, u64::MAX / 512, 512, 0, Err(IoError)),
            (FLUSH, u64::MAX, 0, 0, Ok(Ask::Flush)),
            (GET_ID, 0, 0, 20, Ok(Ask::Id)),
            (DISCARD, 0, 16, 0, Ok(Ask::Discard)),
            (DISCARD, 0, 0, 0, Err(IoError)),
            (WRITE_ZEROES, 0, 256, 0, Ok(Ask::Zero)),
            (WRITE_ZEROES, 0, 272, 0, Err(IoError)),
            (WRITE_ZEROES, 0, 17, 0, Err(IoError)),
            (2, 0, 0, 0, Err(Unsupported)),
            (u32::MAX, 0, 0, 0, Err(Unsupported)),
        ] {
            assert_eq!(parse(header(kind, sector), readable, writable, DISK), expected, "{kind} at {sector}");
            let read_only = Limits { read_only: true, ..DISK };
            let expected = if matches!(kind, OUT | DISCARD | WRITE_ZEROES) { Err(IoError) } else { expected };
            assert_eq!(parse(header(kind, sector), readable, writable, read_only), expected);
        }
    }

    #[test]
    fn ranges_have_the_flags_and_sizes_that_they_may_have() {
        let big = Limits { sectors: u64::MAX / 512, read_only: false };
        for (range_raw, ask, limits, expected) in [
            (raw(1, 2, 0), Ask::Discard, DISK, Ok(Range { at: 512, bytes: 1024, unmap: false })),
            (raw(1, 2, 1), Ask::Zero, DISK, Ok(Range { at: 512, bytes: 1024, unmap: true })),
            (raw(1, 2, 1), Ask::Discard, DISK, Err(Status::Unsupported)),
            (raw(1, 2, 2), Ask::Zero, DISK, Err(Status::Unsupported)),
            (raw(99, 2, 0), Ask::Zero, DISK, Err(Status::IoError)),
            (raw(u64::MAX, 1, 0), Ask::Zero, big, Err(Status::IoError)),
            (raw(0, RANGE_SECTORS_MAX, 0), Ask::Zero, big, Ok(Range { at: 0, bytes: 1 << 30, unmap: false })),
            (raw(0, RANGE_SECTORS_MAX + 1, 0), Ask::Zero, big, Err(Status::IoError)),
        ] {
            assert_eq!(range(range_raw, ask, limits), expected, "{range_raw:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_lies_on_the_disk(
            kind in 0u32..15, sector in prop_oneof![0u64..200, any::<u64>()],
            readable in 0usize..60000, writable in 0usize..60000, bytes in any::<[u8; RANGE_LEN]>(),
        ) {
            match parse(header(kind, sector), readable, writable, DISK) {
                Ok(Ask::Read(at)) => prop_assert!(at + writable as u64 <= 51200),
                Ok(Ask::Write(at)) => prop_assert!(at + readable as u64 <= 51200),
                Ok(ask) => if let Ok(range) = range(bytes, ask, DISK) {
                    prop_assert!(range.at + range.bytes <= 51200);
                },
                Err(_) => (),
            }
        }
    }
}
