//! What happens in directories of the host, and whether it was we who did it: fanotify(7), which needs no privilege for
//! directories that one may read (Linux 5.17 for renames told whole).
#![expect(unsafe_code, reason = "fanotify and file handles have no safe binding that tells names")]

use std::ffi::{CStr, CString};
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Bytes of events read at a time.
const BUFFER: usize = 64 * 1024;
/// The largest file handle of any file system (`MAX_HANDLE_SZ`).
const HANDLE_MAX: usize = 128;

/// Bytes of `fanotify_event_metadata`, of an information record's header, and of a file system's id.
const METADATA: usize = size_of::<libc::fanotify_event_metadata>();
const INFO_HEADER: usize = 4;
const FSID: usize = 8;

const RENAME: u64 = 0x1000_0000;
const RECORD_NAME: u8 = 2;
const RECORD_OLD_NAME: u8 = 10;
const RECORD_NEW_NAME: u8 = 12;

/// A directory as events name it: its file system and its handle there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DirectoryId {
    fsid: [u8; FSID],
    handle: Vec<u8>,
}

/// What happened to an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say it")]
pub struct What {
    pub made: bool,
    pub changed: bool,
    pub attributes: bool,
    pub removed: bool,
    pub directory: bool,
}

/// An event.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Something happened to an entry. Several things may have, in whatever order.
    Entry(DirectoryId, CString, What),
    /// An entry was moved; where one of the places is not watched, it is left out. True: it is a directory.
    Moved(Option<(DirectoryId, CString)>, Option<(DirectoryId, CString)>, bool),
    /// More happened than could be kept.
    Overflow,
}

/// A group of watched directories.
pub struct Fanotify(OwnedFd);

impl Fanotify {
    /// One that watches nothing yet.
    pub fn new() -> Result<Self, Errno> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_REPORT_DFID_NAME;
        // SAFETY: plain numbers.
        let fd = unsafe { libc::fanotify_init(flags, libc::O_RDONLY as libc::c_uint) };
        if fd < 0 {
            return Err(last_error());
        }
        // SAFETY: the call above has just made this descriptor, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches a directory; returns what events will call it.
    pub fn watch(&self, directory: impl AsFd) -> Result<DirectoryId, Errno> {
        let directory = directory.as_fd();
        let mask = libc::FAN_CREATE
            | libc::FAN_DELETE
            | libc::FAN_MODIFY
            | libc::FAN_ATTRIB
            | RENAME
            | libc::FAN_EVENT_ON_CHILD
            | libc::FAN_ONDIR;
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR;
        // SAFETY: the path is a C string that outlives the call, the rest plain numbers.
        let result = unsafe {
            libc::fanotify_mark(self.0.as_raw_fd(), flags, mask, directory.as_raw_fd(), c".".as_ptr())
        };
        if result < 0 {
            return Err(last_error());
        }
        identify(directory.as_raw_fd())
    }

    /// Waits for events and returns them; nobody's but others' events are told.
    pub fn read(&self) -> Result<Vec<Event>, Errno> {
        let mut buffer = vec![0; BUFFER];
        let count = loop {
            match rustix::io::read(&self.0, &mut buffer) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        Ok(parse(&buffer[..count], own))
    }

    /// The descriptor, to be waited for.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn identify(directory: i32) -> Result<DirectoryId, Errno> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; HANDLE_MAX],
    }
    let mut handle =
        Handle { bytes: u32::try_from(HANDLE_MAX).unwrap_or_default(), kind: 0, data: [0; HANDLE_MAX] };
    let mut mount = 0;
    // SAFETY: the structure is laid out as the kernel's `file_handle`, with the room that it announces; the path is a
    // C string; all outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            directory,
            c".".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    if result < 0 {
        return Err(last_error());
    }
    let mut raw = Vec::new();
    raw.extend_from_slice(&handle.kind.to_ne_bytes());
    raw.extend_from_slice(&handle.data[..(handle.bytes as usize).min(HANDLE_MAX)]);
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call, which fills it.
    if unsafe { libc::fstatfs(directory, &raw mut stat) } < 0 {
        return Err(last_error());
    }
    let mut fsid = [0; FSID];
    // SAFETY: a file system's id is two plain numbers, eight bytes.
    let id: [u8; FSID] = unsafe { std::mem::transmute(stat.f_fsid) };
    fsid.copy_from_slice(&id);
    Ok(DirectoryId { fsid, handle: raw })
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn parse(mut buffer: &[u8], own: i32) -> Vec<Event> {
    let mut events = Vec::new();
    while buffer.len() >= METADATA {
        let u32_at =
            |at: usize| buffer[at..].first_chunk().map_or(0, |raw| u32::from_ne_bytes(*raw)) as usize;
        let length = u32_at(offset_of!(libc::fanotify_event_metadata, event_len));
        if length < METADATA || length > buffer.len() {
            break;
        }
        let (event, rest) = buffer.split_at(length);
        buffer = rest;
        let mask = event[offset_of!(libc::fanotify_event_metadata, mask)..]
            .first_chunk()
            .map_or(0, |raw| u64::from_ne_bytes(*raw));
        let pid = event[offset_of!(libc::fanotify_event_metadata, pid)..]
            .first_chunk()
            .map_or(0, |raw| i32::from_ne_bytes(*raw));
        if mask & libc::FAN_Q_OVERFLOW != 0 {
            events.push(Event::Overflow);
        } else if pid != own {
            events.extend(one(mask, &event[METADATA..]));
        }
    }
    events
}

fn one(mask: u64, mut records: &[u8]) -> Option<Event> {
    let (mut at, mut from, mut to) = (None, None, None);
    while records.len() >= INFO_HEADER {
        let length = usize::from(u16::from_ne_bytes([records[2], records[3]]));
        if length < INFO_HEADER || length > records.len() {
            break;
        }
        let (record, rest) = records.split_at(length);
        records = rest;
        let place = place(&record[INFO_HEADER..]);
        match record[0] {
            RECORD_NAME => at = place,
            RECORD_OLD_NAME => from = place,
            RECORD_NEW_NAME => to = place,
            _ => {}
        }
    }
    let directory = mask & libc::FAN_ONDIR != 0;
    if mask & RENAME != 0 {
        return Some(Event::Moved(from, to, directory));
    }
    let (id, name) = at?;
    // A dot is the directory itself, which its own parent tells of.
    if name.as_bytes() == b"." {
        return None;
    }
    let what = What {
        made: mask & libc::FAN_CREATE != 0,
        changed: mask & libc::FAN_MODIFY != 0,
        attributes: mask & libc::FAN_ATTRIB != 0,
        removed: mask & libc::FAN_DELETE != 0,
        directory,
    };
    Some(Event::Entry(id, name, what))
}

/// A directory's id and a name in it.
fn place(record: &[u8]) -> Option<(DirectoryId, CString)> {
    let (fsid, rest) = record.split_first_chunk::<FSID>()?;
    let (bytes, rest) = rest.split_first_chunk::<4>()?;
    // The handle's type and its bytes.
    let (handle, name) = rest.split_at_checked(4 + u32::from_ne_bytes(*bytes) as usize)?;
    let name = CStr::from_bytes_until_nul(name).ok()?;
    Some((DirectoryId { fsid: *fsid, handle: handle.to_vec() }, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn no_bytes_break_the_reader() {
        let mut state = 1u32;
        for _ in 0..2000 {
            let mut bytes = vec![0u8; 120];
            for byte in &mut bytes {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = state.to_le_bytes()[3];
            }
            bytes[0] %= 120;
            bytes[1..4].fill(0);
            parse(&bytes, 0);
        }
    }

    #[test]
    fn what_others_do_is_told_and_our_own_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let fanotify = match Fanotify::new() {
            Ok(fanotify) => fanotify,
            // Where the kernel or a container does not allow it, there is nothing to see.
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => return,
            Err(error) => panic!("{error}"),
        };
        let file = super::super::open_root(directory.path()).expect("open");
        let id = fanotify.watch(&file).expect("watched");
        fs::write(directory.path().join("own"), "x").expect("written");
        let other = std::process::Command::new("sh")
            .args(["-c", "mkdir d; echo > f; mv f g"])
            .current_dir(directory.path())
            .status();
        assert!(other.expect("sh").success());
        let events = fanotify.read().expect("events");
        let told = |event: &Event| match event {
            Event::Entry(at, name, what) => (at == &id, name.clone(), what.directory),
            Event::Moved(Some((at, name)), Some((_, to)), false) if to.as_c_str() == c"g" => {
                (at == &id, name.clone(), false)
            }
            other => panic!("{other:?}"),
        };
        let told: Vec<_> = events.iter().map(told).collect();
        let expected =
            [(true, c"d".to_owned(), true), (true, c"f".to_owned(), false), (true, c"f".to_owned(), false)];
        assert_eq!(told, expected);
    }
}
