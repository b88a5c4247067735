//! Constants and layouts of the FUSE kernel protocol, version 7.41 (Linux 6.12, `include/uapi/linux/fuse.h`), as far
//! as our servers speak it. All numbers are little-endian: both ends run on such machines.

/// The protocol's major version; another one cannot be spoken.
pub const MAJOR: u32 = 7;
/// The newest minor version that our servers know.
pub const MINOR: u32 = 41;
/// The oldest minor version served (Linux 5.4, the first with virtio-fs).
pub const MINOR_MIN: u32 = 31;

/// Bytes of a request's header: `fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Bytes of an answer's header: `fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Bytes of `fuse_write_in`, after which a write's data begins.
pub const WRITE_IN: usize = 40;

/// The node of the file system's root.
pub const ROOT: u64 = 1;

/// The longest name of a directory entry that Linux passes on.
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, without its closing zero.
pub const PATH_MAX: usize = 4095;
/// The largest value of an extended attribute, and the longest list of their names.
pub const XATTR_MAX: usize = 65536;

/// `fuse_in_header.opcode`.
#[expect(missing_docs, reason = "named as in the kernel's header")]
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// `fuse_init_in.flags` and `flags2` above it.
#[expect(missing_docs, reason = "named as in the kernel's header")]
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const INIT_EXT: u64 = 1 << 30;
}

/// `fuse_attr.flags`: the directory is the root of a file system of its own.
pub const ATTR_SUBMOUNT: u32 = 1;

/// `fuse_getattr_in.getattr_flags`: the handle is meant.
pub const GETATTR_FH: u32 = 1;

/// `fuse_statx.mask`: all that is in `fuse_attr` too, and when the file was made.
pub const STATX_BASIC: u32 = 0x7ff;
/// As above.
pub const STATX_BTIME: u32 = 0x800;

/// `fuse_open_out.open_flags`: reads and writes go past the guest's cache.
pub const FOPEN_DIRECT_IO: u32 = 1;
/// `fuse_open_out.open_flags`: what the guest has cached of the file holds.
pub const FOPEN_KEEP_CACHE: u32 = 2;
/// `fuse_open_out.open_flags`: a close need not be told before the last one.
pub const FOPEN_NOFLUSH: u32 = 32;

/// `fuse_open_in.open_flags`: the file loses its set-id bits and capabilities when it is truncated.
pub const OPEN_KILL_SUIDGID: u32 = 1;
/// `fuse_write_in.write_flags`: the same for a write.
pub const WRITE_KILL_SUIDGID: u32 = 4;
/// `fuse_fsync_in.fsync_flags`: the data, and of the rest only what it takes to find it.
pub const FSYNC_DATA: u32 = 1;

/// `fuse_setattr_in.valid`.
#[expect(missing_docs, reason = "named as in the kernel's header")]
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Flags of open(2) as the guest's kernel numbers them. Only those that every architecture numbers alike: the others
/// (`O_DIRECT`, `O_NOFOLLOW`, `O_DIRECTORY`) differ between x86 and Arm, and are the guest kernel's own business.
#[expect(missing_docs, reason = "named as in open(2)")]
pub mod open {
    pub const ACCMODE: u32 = 0o3;
    pub const WRONLY: u32 = 0o1;
    pub const RDWR: u32 = 0o2;
    pub const EXCL: u32 = 0o200;
    pub const TRUNC: u32 = 0o1000;
    pub const APPEND: u32 = 0o2000;
    pub const DSYNC: u32 = 0o10000;
    pub const SYNC: u32 = 0o4010000;
}

/// File types in `mode`, as in stat(2).
#[expect(missing_docs, reason = "named as in inode(7)")]
pub mod kind {
    pub const MASK: u32 = 0o170000;
    pub const SOCKET: u32 = 0o140000;
    pub const LINK: u32 = 0o120000;
    pub const FILE: u32 = 0o100000;
    pub const DIRECTORY: u32 = 0o040000;
    pub const CHARACTER: u32 = 0o020000;
    pub const FIFO: u32 = 0o010000;
}

/// Set-user-id and set-group-id.
pub const SET_IDS: u32 = 0o6000;
