//! Answers to the kernel: layouts of `include/uapi/linux/fuse.h`, as far as a file system to be read needs them.

use hospes_fuse::abi::{self, kind};
use hospes_protocol::clipboard::files::{Attributes, NodeKind};

/// Seconds for which the kernel need not ask again what a name or a file is.
const VALID: u64 = 60;
/// Bytes of `fuse_dirent` before its name, and of the `fuse_entry_out` before it.
const DIRENT: usize = 24;
const ENTRY: usize = 128;
/// Requests that the kernel has under way of its own accord (it reads ahead), and how many are many.
const BACKGROUND: u16 = 12;
const CONGESTED: u16 = 9;
/// The least that the kernel takes; nothing is written.
const MAX_WRITE: u32 = 4096;

/// Whose the files are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A directory that is there whatever was copied.
pub(super) fn directory() -> Attributes {
    Attributes {
        kind: NodeKind::DIRECTORY,
        executable: true,
        size: 0,
        modified: 0,
        modified_ns: 0,
        target: Vec::new(),
    }
}

/// Bytes in the making.
#[derive(Debug, Default)]
pub(super) struct Answer(pub(super) Vec<u8>);

impl Answer {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// `fuse_attr`.
    fn attributes(&mut self, node: u64, of: &Attributes, owner: Owner) -> &mut Self {
        let (mode, size) = match of.kind {
            NodeKind::DIRECTORY => (kind::DIRECTORY | 0o755, 4096),
            NodeKind::LINK => (kind::LINK | 0o777, of.target.len() as u64),
            _ => (kind::FILE | if of.executable { 0o755 } else { 0o644 }, of.size),
        };
        self.u64(node).u64(size).u64(size.div_ceil(512));
        for _ in 0..3 {
            self.u64(of.modified.cast_unsigned());
        }
        for _ in 0..3 {
            self.u32(of.modified_ns.min(999_999_999));
        }
        self.u32(mode).u32(1).u32(owner.uid).u32(owner.gid).u32(0).u32(4096).u32(0)
    }

    /// `fuse_attr_out`.
    pub(super) fn attr_out(&mut self, node: u64, of: &Attributes, owner: Owner) -> &mut Self {
        self.u64(VALID).u32(0).u32(0).attributes(node, of, owner)
    }

    /// `fuse_entry_out`.
    pub(super) fn entry_out(&mut self, node: u64, of: &Attributes, owner: Owner) -> &mut Self {
        self.u64(node).u64(0).u64(VALID).u64(VALID).u32(0).u32(0).attributes(node, of, owner)
    }

    /// A `fuse_entry_out` of which the kernel keeps nothing.
    pub(super) fn no_entry_out(&mut self) -> &mut Self {
        self.zeros(ENTRY)
    }

    /// `fuse_open_out`.
    pub(super) fn open_out(&mut self, handle: u64) -> &mut Self {
        self.u64(handle).u32(abi::FOPEN_NOFLUSH).u32(0)
    }

    /// `fuse_dirent` with its name and padding; `next` is where the one behind it begins.
    pub(super) fn dirent(&mut self, node: u64, next: u64, of: NodeKind, name: &[u8]) -> &mut Self {
        let kind = match of {
            NodeKind::DIRECTORY => kind::DIRECTORY,
            NodeKind::LINK => kind::LINK,
            _ => kind::FILE,
        };
        self.u64(node).u64(next).u32(u32::try_from(name.len()).unwrap_or(0)).u32(kind >> 12);
        self.0.extend_from_slice(name);
        self.zeros(name.len().next_multiple_of(8) - name.len())
    }

    /// `fuse_kstatfs`: nothing is free, for nothing can be written.
    pub(super) fn statfs_out(&mut self) -> &mut Self {
        self.zeros(40).u32(4096).u32(255).u32(4096).zeros(28)
    }

    /// `fuse_init_out`.
    pub(super) fn init_out(&mut self, minor: u32, readahead: u32, flags: u64) -> &mut Self {
        let low = u32::try_from(flags & 0xffff_ffff).unwrap_or(0);
        self.u32(abi::MAJOR).u32(minor.min(abi::MINOR)).u32(readahead).u32(low);
        self.u16(BACKGROUND).u16(CONGESTED).u32(MAX_WRITE).u32(1).u16(0).u16(0).u32(0).zeros(28)
    }
}

/// Bytes that an entry of a directory takes.
pub(super) fn dirent_bytes(name: &[u8], plus: bool) -> usize {
    DIRENT + name.len().next_multiple_of(8) + if plus { ENTRY } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layout_has_the_kernels_size() {
        let owner = Owner { uid: 1, gid: 2 };
        let len = |fill: &dyn Fn(&mut Answer) -> &mut Answer| fill(&mut Answer::default()).0.len();
        assert_eq!(len(&|a| a.attr_out(1, &directory(), owner)), 104);
        assert_eq!(len(&|a| a.entry_out(1, &directory(), owner)), ENTRY);
        assert_eq!(len(&|a| a.open_out(1)), 16);
        assert_eq!(len(&|a| a.dirent(1, 2, NodeKind::FILE, b"123456789")), dirent_bytes(b"123456789", false));
        assert_eq!(len(&|a| a.statfs_out()), 80);
        assert_eq!(len(&|a| a.init_out(41, 0, 0)), 64);
    }
}
