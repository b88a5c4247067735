//! What is mounted, as `/proc/self/mountinfo` has it (`proc_pid_mountinfo(5)`).
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//! id parent dev root point options optional… - kind source super-options
//! ```

use std::collections::HashSet;

/// Bytes of a table that are read. A hundred thousand mounts are less.
pub const TABLE: u64 = 16 * 1024 * 1024;

/// A device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    /// The kind of device; zero for file systems without a device of their own, btrfs among them.
    pub major: u32,
    /// Which one.
    pub minor: u32,
}

impl Device {
    /// Reads `major:minor`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: number(major.as_bytes())?, minor: number(minor.as_bytes())? })
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its id, which `statx(2)` gives too.
    pub id: u32,
    /// Its file system's device.
    pub device: Device,
    /// The directory of the file system that is shown.
    pub root: Vec<u8>,
    /// Where.
    pub point: Vec<u8>,
    /// The file system's kind: `ext4`, `fuse.sshfs`.
    pub kind: Vec<u8>,
    /// Whether the file system takes no writes, wherever it is mounted. One mount of several may be read-only by itself.
    pub read_only: bool,
}

/// Reads a table. A line that is none is left out: the kernel writes no such.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = number(words.next()?)?;
    let _parent = number(words.next()?)?;
    let device = Device::parse(words.next()?)?;
    let (root, point) = (plain(words.next()?), plain(words.next()?));
    let _options = words.next()?;
    // Optional words, as many as there are, up to a dash.
    words.find(|word| *word == b"-")?;
    let kind = plain(words.next()?);
    let _source = words.next()?;
    let read_only = words.next()?.split(|byte| *byte == b',').any(|option| option == b"ro");
    let whole = !root.is_empty() && point.first() == Some(&b'/') && !kind.is_empty();
    whole.then_some(Mount { id, device, root, point, kind, read_only })
}

/// A word with its escapes undone: space, tab, line feed, backslash and hash as three octal digits.
fn plain(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

fn number(word: &[u8]) -> Option<u32> {
    // `parse` takes a sign, which the kernel does not write.
    let digits = word.first().is_some_and(u8::is_ascii_digit);
    std::str::from_utf8(word).ok().filter(|_| digits)?.parse().ok()
}

/// The kinds that need no device, of `/proc/filesystems` (proc(5)).
#[must_use]
pub fn without_device(table: &[u8]) -> HashSet<Vec<u8>> {
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.strip_prefix(b"nodev\t")).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_parts_and_optional_words_are_passed_over() {
        let table = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            25 1 0:22 / / rw shared:1 master:3 propagate_from:2 - btrfs /dev/vda2 rw,ssd\n\
            37 36 7:1 / /snap ro,nodev - squashfs /dev/loop1 ro,errors=continue\n";
        let mounts = parse(table);
        assert_eq!(
            mounts[0],
            Mount {
                id: 36,
                device: Device { major: 98, minor: 0 },
                root: b"/mnt1".to_vec(),
                point: b"/mnt2".to_vec(),
                kind: b"ext3".to_vec(),
                read_only: false
            }
        );
        assert_eq!((mounts[1].kind.as_slice(), mounts[1].read_only), (&b"btrfs"[..], false));
        assert!(mounts[2].read_only);
        assert_eq!(mounts.len(), 3);
    }

    #[test]
    fn a_mount_that_is_read_only_on_a_file_system_that_is_not_takes_part() {
        assert!(!parse(b"1 0 8:1 / /a ro,relatime - ext4 /dev/sda1 rw\n")[0].read_only);
        assert!(!parse(b"1 0 8:1 / /a rw - ext4 /dev/sda1 rw,errors=remount-ro\n")[0].read_only);
    }

    #[test]
    fn names_come_with_their_escapes_undone() {
        let mounts = parse(b"1 0 8:1 / /a\\040b\\011\\012\\134040\\043 rw - ext4 /dev/sda1 rw\n");
        assert_eq!(mounts[0].point, b"/a b\t\n\\040#");
        // No escape of the kernel's: it stays as it is.
        assert_eq!(parse(b"1 0 8:1 / /a\\9\\477\\0 rw - ext4 x rw\n")[0].point, b"/a\\9\\477\\0");
        assert_eq!(parse(b"1 0 8:1 / /\xe4\xff rw - ext4 x rw\n")[0].point, b"/\xe4\xff");
    }

    #[test]
    fn an_empty_source_is_a_word_too() {
        assert_eq!(parse(b"1 0 0:9 / /a rw - tmpfs  rw\n").len(), 1);
    }

    #[test]
    fn what_is_no_line_is_left_out() {
        for bad in [
            &b""[..],
            b"1",
            b"x 0 8:1 / /a rw - ext4 x rw",
            b"1 0 8 / /a rw - ext4 x rw",
            b"1 0 +8:1 / /a rw - ext4 x rw",
            b"1 0 8:99999999999 / /a rw - ext4 x rw",
            b"1 0 8:1 / /a rw ext4 x rw",
            b"1 0 8:1 / /a rw - ext4 x",
            b"1 0 8:1 / a rw - ext4 x rw",
        ] {
            assert_eq!(parse(bad), [], "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn the_kinds_without_a_device_are_the_kernels_word() {
        let kinds = without_device(b"nodev\tsysfs\nnodev\tfuse\n\text4\n\tfuseblk\n");
        assert!(kinds.contains(&b"fuse"[..]) && !kinds.contains(&b"ext4"[..]) && kinds.len() == 2);
    }
}
