//! File systems on real storage.

use std::path::Path;

use hospes_protocol::info::Disk;
use nix::sys::statvfs::statvfs;

use super::read;

/// Disks in one answer.
const DISKS: usize = 256;

/// Types that are storage without a device of their own, and whose statvfs(3) cannot hang on a network.
const DEVICELESS: &[&str] = &["virtiofs", "9p", "zfs", "bcachefs", "btrfs", "overlay"];

pub(super) fn mounted() -> Vec<Disk> {
    let mut disks = in_mountinfo(&read("/proc/self/mountinfo"));
    disks.retain_mut(|disk| match statvfs(Path::new(&disk.mount_point)) {
        Ok(space) => {
            let unit = space.fragment_size();
            disk.total = space.blocks().saturating_mul(unit);
            disk.free = space.blocks_available().saturating_mul(unit);
            disk.total > 0
        }
        // Hidden from this service, or gone meanwhile.
        Err(_) => false,
    });
    disks
}

/// One disk for each storage, at its shortest mount point: bind mounts of parts of it are not news.
fn in_mountinfo(text: &str) -> Vec<Disk> {
    let mut found: Vec<(String, Disk)> = Vec::new();
    for line in text.lines() {
        // proc_pid_mountinfo(5): id parent major:minor root mount-point options fields… - type source options
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut left = left.split(' ').skip(2);
        let mut right = right.split(' ');
        let (Some(device), Some(_root), Some(point)) = (left.next(), left.next(), left.next()) else {
            continue;
        };
        let (Some(kind), Some(source)) = (right.next(), right.next()) else { continue };
        let on_storage = source.starts_with("/dev/") && !source.starts_with("/dev/loop");
        if !on_storage && !DEVICELESS.contains(&kind) {
            continue;
        }
        let disk = Disk {
            mount_point: unescaped(point),
            source: unescaped(source),
            kind: kind.into(),
            ..Disk::default()
        };
        // An overlay over the root of a container runtime is no storage of the guest's own, unless it is its root.
        if kind == "overlay" && disk.mount_point != "/" {
            continue;
        }
        if found.len() == DISKS {
            break;
        }
        match found.iter_mut().find(|(known, _)| known == device) {
            Some((_, known)) if known.mount_point.len() > disk.mount_point.len() => *known = disk,
            Some(_) => {}
            None => found.push((device.into(), disk)),
        }
    }
    let mut disks: Vec<Disk> = found.into_iter().map(|(_, disk)| disk).collect();
    disks.sort_by(|a, b| a.mount_point.cmp(&b.mount_point));
    disks
}

/// Spaces, tabs, line ends and backslashes stand as three octal digits.
fn unescaped(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                plain.push(value);
                at += 4;
            }
            _ => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_listed_once_at_its_shortest_mount_point() {
        let text = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
            23 22 0:20 / /proc rw - proc proc rw\n\
            24 22 254:1 /var/tmp /srv/bind rw - ext4 /dev/vda1 rw\n\
            25 22 0:44 / /mnt/My\\040Folder rw - virtiofs mac rw\n\
            26 22 7:0 / /snap/core ro - squashfs /dev/loop0 ro\n\
            27 22 0:50 / /net rw - nfs4 server:/x rw\n\
            28 22 0:51 / /var/lib/docker/overlay2/x rw - overlay overlay rw\n\
            broken\n";
        let points: Vec<_> =
            in_mountinfo(text).into_iter().map(|disk| (disk.mount_point, disk.kind)).collect();
        assert_eq!(
            points,
            [("/".into(), "ext4".into()), ("/mnt/My Folder".into(), String::from("virtiofs"))]
        );
    }

    #[test]
    fn a_backslash_without_digits_stays() {
        assert_eq!(unescaped("a\\"), "a\\");
        assert_eq!(unescaped("a\\1"), "a\\1");
        assert_eq!(unescaped("\\134\\777"), "\\\\777");
    }
}
