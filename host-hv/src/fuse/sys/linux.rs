//! The calls of Linux.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Statx,
    StatxAttributes, StatxFlags, Timespec, Timestamps, Uid, makedev,
};
use rustix::io::Errno;

use super::{Identity, Meta, Space};
use crate::fuse::abi::open;
use crate::fuse::owner::Ids;
use crate::fuse::request::Time;

/// Bytes of directory entries fetched in one call.
const DIRECTORY_BUFFER: usize = 32 * 1024;

fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits & 0o7777)
}

fn meta(stat: &Statx) -> Meta {
    let time = |time: &rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
    let known = StatxFlags::from_bits_retain(stat.stx_mask);
    let born = if known.contains(StatxFlags::BTIME) { time(&stat.stx_btime) } else { (0, 0) };
    // The kernel's own 32-bit form: the minor's low byte, the major, the rest of the minor.
    let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
    Meta {
        identity: Identity {
            device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            born,
        },
        mode: u32::from(stat.stx_mode),
        links: stat.stx_nlink,
        ids: Ids { uid: stat.stx_uid, gid: stat.stx_gid },
        device: minor & 0xff | major << 8 | (minor & !0xff) << 12,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        block_size: stat.stx_blksize,
        atime: time(&stat.stx_atime),
        mtime: time(&stat.stx_mtime),
        ctime: time(&stat.stx_ctime),
        mount_root: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    }
}

/// The attributes of what is open.
pub fn stat(file: impl AsFd) -> Result<Meta, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted).map(|stat| meta(&stat))
}

/// The attributes of an entry; a symbolic link's own.
pub fn stat_at(directory: impl AsFd, name: &CStr) -> Result<Meta, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, wanted).map(|stat| meta(&stat))
}

/// Opens a share's root, links followed: it is the host's user who names it.
pub fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A descriptor that names a directory, and need not be readable.
pub fn open_beneath(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Opens a directory to read its entries; the name may be a dot.
pub fn open_directory(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// What of the guest's flags counts on the host.
fn flags(guest: u32) -> OFlags {
    let mut flags = match guest & open::ACCMODE {
        open::WRONLY => OFlags::WRONLY,
        open::RDWR => OFlags::RDWR,
        _ => OFlags::RDONLY,
    };
    for (bit, flag) in
        [(open::TRUNC, OFlags::TRUNC), (open::APPEND, OFlags::APPEND), (open::DSYNC, OFlags::DSYNC)]
    {
        flags.set(flag, guest & bit != 0);
    }
    flags.set(OFlags::SYNC, guest & open::SYNC == open::SYNC);
    // Never wait for the other end of a FIFO, and never take a terminal.
    flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY
}

/// Opens a file that is there.
pub fn open_file(directory: impl AsFd, name: &CStr, guest_flags: u32) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, flags(guest_flags), Mode::empty())
}

/// Makes a file that is not there yet.
pub fn create(directory: impl AsFd, name: &CStr, guest_flags: u32, bits: u32) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, flags(guest_flags) | OFlags::CREATE | OFlags::EXCL, mode(bits))
}

/// Makes a file with no name.
pub fn temporary(directory: impl AsFd, guest_flags: u32, bits: u32) -> Result<OwnedFd, Errno> {
    let kept = guest_flags & open::EXCL != 0;
    let mut flags = (flags(guest_flags) - OFlags::NOFOLLOW) | OFlags::TMPFILE;
    flags.set(OFlags::EXCL, kept);
    rustix::fs::openat(directory, c".", flags, mode(bits))
}

/// Makes a FIFO, a socket, a regular file or the mark of overlayfs for a missing one: no other device.
pub fn make_node(directory: impl AsFd, name: &CStr, bits: u32) -> Result<(), Errno> {
    rustix::fs::mknodat(directory, name, FileType::from_raw_mode(bits), mode(bits), 0)
}

/// Makes a directory.
pub fn make_directory(directory: impl AsFd, name: &CStr, bits: u32) -> Result<(), Errno> {
    rustix::fs::mkdirat(directory, name, mode(bits))
}

/// Makes a symbolic link.
pub fn make_link(target: &CStr, directory: impl AsFd, name: &CStr) -> Result<(), Errno> {
    rustix::fs::symlinkat(target, directory, name)
}

/// A symbolic link's target.
pub fn read_link(directory: impl AsFd, name: &CStr) -> Result<CString, Errno> {
    rustix::fs::readlinkat(directory, name, Vec::with_capacity(256))
}

/// Removes an entry.
pub fn remove(directory: impl AsFd, name: &CStr, is_directory: bool) -> Result<(), Errno> {
    let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    rustix::fs::unlinkat(directory, name, flags)
}

/// Renames; `flags` as in renameat2(2).
pub fn rename(from: impl AsFd, name: &CStr, to: impl AsFd, to_name: &CStr, flags: u32) -> Result<(), Errno> {
    if flags == 0 {
        return rustix::fs::renameat(from, name, to, to_name);
    }
    let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    rustix::fs::renameat_with(from, name, to, to_name, flags)
}

/// Makes a hard link; a symbolic link is linked itself.
pub fn link(from: impl AsFd, name: &CStr, to: impl AsFd, to_name: &CStr) -> Result<(), Errno> {
    rustix::fs::linkat(from, name, to, to_name, AtFlags::empty())
}

/// Gives what is open a name.
pub fn link_descriptor(file: impl AsFd, to: impl AsFd, to_name: &CStr) -> Result<(), Errno> {
    let path = proc_path(file.as_fd());
    rustix::fs::linkat(rustix::fs::CWD, path.as_str(), to, to_name, AtFlags::SYMLINK_FOLLOW)
}

fn proc_path(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Changes permissions, of an entry or of what is open.
pub fn change_mode(file: Place<'_>, bits: u32) -> Result<(), Errno> {
    match file {
        Place::Open(file) => rustix::fs::fchmod(file, mode(bits)),
        Place::At(directory, name) => {
            // By a descriptor that cannot be a link: the call by name that follows none is younger than our oldest
            // kernel.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
            rustix::fs::chmod(proc_path(file.as_fd()).as_str(), mode(bits))
        }
    }
}

/// A file by descriptor, or by directory and name.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// Open, for more than its name.
    Open(BorrowedFd<'a>),
    /// An entry.
    At(BorrowedFd<'a>, &'a CStr),
}

/// Changes owner and group, where given.
pub fn change_owner(file: Place<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    match file {
        Place::Open(file) => rustix::fs::fchown(file, uid, gid),
        Place::At(directory, name) => {
            rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

/// Changes the times.
pub fn set_times(file: Place<'_>, atime: Time, mtime: Time) -> Result<(), Errno> {
    let timespec = |time| match time {
        Time::Keep => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Time::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        // A number beyond a second would be one of the two above.
        Time::At(tv_sec, nanos) => Timespec { tv_sec, tv_nsec: i64::from(nanos.min(999_999_999)) },
    };
    let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
    match file {
        Place::Open(file) => rustix::fs::futimens(file, &times),
        Place::At(directory, name) => {
            rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

/// Changes the length of a file that is open for writing.
pub fn truncate(file: impl AsFd, size: u64) -> Result<(), Errno> {
    rustix::fs::ftruncate(file, size)
}

/// Room on the file system.
pub fn space(file: impl AsFd) -> Result<Space, Errno> {
    let stat = rustix::fs::fstatvfs(file)?;
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(Space {
        blocks: stat.f_blocks,
        free: stat.f_bfree,
        available: stat.f_bavail,
        files: stat.f_files,
        free_files: stat.f_ffree,
        block_size: small(stat.f_bsize),
        fragment_size: small(stat.f_frsize),
        name_max: small(stat.f_namemax),
    })
}

/// Brings a file to the disk.
pub fn sync(file: impl AsFd, data_only: bool) -> Result<(), Errno> {
    if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
}

/// Brings all of the file system to the disk.
pub fn sync_all(directory: impl AsFd) -> Result<(), Errno> {
    // Not by the descriptor at hand, which only names the directory.
    rustix::fs::syncfs(open_directory(directory, c".")?)
}

/// Allocates or frees space; `mode` as in fallocate(2).
pub fn allocate(file: impl AsFd, mode: u32, offset: u64, length: u64) -> Result<(), Errno> {
    rustix::fs::fallocate(file, FallocateFlags::from_bits_retain(mode), offset, length)
}

/// Where data or a hole begins; `whence` as in lseek(2).
pub fn seek(file: impl AsFd, offset: u64, whence: u32) -> Result<u64, Errno> {
    let from = match whence {
        3 => SeekFrom::Data(offset),
        4 => SeekFrom::Hole(offset),
        _ => return Err(Errno::INVAL),
    };
    rustix::fs::seek(file, from)
}

/// Copies within the host; returns the bytes copied.
pub fn copy_range(
    from: impl AsFd,
    mut from_offset: u64,
    to: impl AsFd,
    mut to_offset: u64,
    length: usize,
) -> Result<usize, Errno> {
    rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), length)
}

/// An entry of a directory.
pub struct DirEntry {
    /// Its inode, as the directory has it.
    pub inode: u64,
    /// Where reading goes on after it.
    pub next: u64,
    /// Its type, in the bits of a mode; 0 where the directory does not know.
    pub kind: u32,
    /// Its name.
    pub name: CString,
}

/// A directory being read: what was fetched and not yet asked for.
#[derive(Default)]
pub struct Stream {
    fetched: std::collections::VecDeque<DirEntry>,
    /// Where the first of those fetched stands.
    at: u64,
}

impl Stream {
    /// The entry at `offset`, which is 0 or some entry's `next`; `None` at the end. It stays until it is taken.
    pub fn peek(&mut self, directory: impl AsFd, offset: u64) -> Result<Option<&DirEntry>, Errno> {
        let directory = directory.as_fd();
        if offset != self.at {
            self.fetched.clear();
            rustix::fs::seek(directory, SeekFrom::Start(offset))?;
            self.at = offset;
        }
        if self.fetched.is_empty() {
            self.fetch(directory)?;
        }
        Ok(self.fetched.front())
    }

    /// Goes on to the next entry.
    pub fn take(&mut self) -> Option<DirEntry> {
        let entry = self.fetched.pop_front()?;
        self.at = entry.next;
        Some(entry)
    }

    fn fetch(&mut self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut buffer = vec![MaybeUninit::uninit(); DIRECTORY_BUFFER];
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            self.fetched.push_back(DirEntry {
                inode: entry.ino(),
                next: entry.next_entry_cookie(),
                kind: match entry.file_type() {
                    FileType::Unknown => 0,
                    kind => kind.as_raw_mode(),
                },
                name: entry.file_name().to_owned(),
            });
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }
}
