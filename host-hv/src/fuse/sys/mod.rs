//! What the host's operating system is asked for: the only place of the server that makes system calls.
//!
//! Every call names a directory by descriptor and in it one component, and follows no symbolic link: that is what
//! keeps a guest in its share. Linux alone so far.

mod fanotify;
mod identity;
mod linux;
mod transfer;
mod xattr;

pub use fanotify::{DirectoryId, Event, Fanotify, What};
pub use identity::{act_as, is_privileged, prepare_thread, with_ids};
pub use linux::{
    DirEntry, Place, Stream, allocate, change_mode, change_owner, copy_range, create, link, link_descriptor,
    make_directory, make_link, make_node, open_beneath, open_directory, open_file, open_root, read_link,
    remove, rename, seek, set_times, space, stat, stat_at, sync, sync_all, temporary, truncate,
};
pub use rustix::io::Errno;
pub use transfer::{read, write};
pub use xattr::{get_xattr, list_xattrs, remove_xattr, set_xattr};

/// An input or output error, as a number.
pub const EIO: i32 = Errno::IO.raw_os_error();

/// What tells a file from every other, as long as it lives, and from one that comes to have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "as in statx(2)")]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
    /// When it was made, where the file system knows.
    pub born: (i64, u32),
}

/// A file's attributes on the host.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as in statx(2)")]
pub struct Meta {
    pub identity: Identity,
    /// Type and permissions.
    pub mode: u32,
    pub links: u32,
    pub ids: super::owner::Ids,
    /// The device that it stands for, as the FUSE protocol numbers them.
    pub device: u32,
    pub size: u64,
    pub blocks: u64,
    pub block_size: u32,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// Another file system begins here.
    pub mount_root: bool,
}

/// Room on a file system.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "as in statvfs(3)")]
pub struct Space {
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub free_files: u64,
    pub block_size: u32,
    pub fragment_size: u32,
    pub name_max: u32,
}
