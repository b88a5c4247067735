//! `hospes-tools share`: the folders that the host shares with this guest.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::replay::Replay;
use super::{UNHEALTHY, json};
use crate::audit::printable;

/// Where the package mounts the host's folders, and the tag of the device that has them.
pub const MOUNT_POINT: &str = "/mnt/hospes";
const TAG: &str = "hospes";

/// Bytes of /proc/self/mountinfo that are looked at.
const MOUNTS_LEN: usize = 1 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum Share {
    /// List the folders that the host shares, and other virtio file systems
    List(List),
    /// Do again here what was done to shared folders on the host
    #[command(hide = true)]
    Replay(Replay),
}

/// List the folders that the host shares, and other virtio file systems.
#[derive(Debug, Args)]
pub(super) struct List {
    /// As JSON: {"shares": [{"name", "path"}], "others": [{"tag", "path"}], "problem"}
    #[arg(long)]
    json: bool,
}

impl Share {
    pub(super) fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        match self {
            Self::List(list) => list.run(out),
            Self::Replay(replay) => replay.run(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Folder {
    name: String,
    path: PathBuf,
}

#[derive(Debug, Serialize)]
struct Other {
    tag: String,
    /// Nothing: it is not mounted.
    path: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Found {
    shares: Vec<Folder>,
    others: Vec<Other>,
    problem: Option<String>,
}

impl List {
    fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        let found = look();
        let code = if found.problem.is_some() { UNHEALTHY } else { 0 };
        if self.json {
            json(&found, out)?;
            return Ok(code);
        }
        for Folder { name, path } in &found.shares {
            writeln!(
                out,
                "{:24} {}",
                printable(name.as_bytes()),
                printable(path.as_os_str().as_encoded_bytes())
            )?;
        }
        for Other { tag, path } in &found.others {
            let tag = printable(tag.as_bytes());
            match path {
                Some(path) => {
                    let path = printable(path.as_os_str().as_encoded_bytes());
                    writeln!(out, "{tag:24} {path} (another device's)")?;
                }
                None => writeln!(out, "{tag:24} not mounted: systemctl enable --now hospes-share@{tag}")?,
            }
        }
        match &found.problem {
            Some(problem) => writeln!(out, "{problem}")?,
            None if found.shares.is_empty() => {
                writeln!(out, "The host shares nothing at present: hospes share add VM FOLDER, on the host")?;
            }
            None => {}
        }
        Ok(code)
    }
}

fn look() -> Found {
    let mounts = mounted(&read(Path::new("/proc/self/mountinfo")));
    let ours = mounts.iter().any(|(tag, path)| tag == TAG && path == Path::new(MOUNT_POINT));
    let tags = tags(Path::new("/sys/fs/virtiofs"));
    let mut others: Vec<Other> = Vec::new();
    for tag in mounts.iter().map(|(tag, _)| tag).chain(&tags) {
        let known = others.iter().any(|other| other.tag == *tag);
        if tag != TAG && !known {
            let path = mounts.iter().find(|(mounted, _)| mounted == tag).map(|(_, path)| path.clone());
            others.push(Other { tag: tag.clone(), path });
        }
    }
    let (mut shares, mut problem) = (Vec::new(), None);
    if ours {
        match folders(Path::new(MOUNT_POINT)) {
            Ok(found) => shares = found,
            Err(error) => problem = Some(format!("{MOUNT_POINT} cannot be read: {error}")),
        }
    } else {
        problem = Some(why_not(&tags));
    }
    Found { shares, others, problem }
}

/// Why the host's folders are not mounted, and what to do about it.
fn why_not(tags: &[String]) -> String {
    let filesystems = read(Path::new("/proc/filesystems"));
    if !filesystems.lines().any(|line| line.ends_with("\tvirtiofs")) && !has_device() {
        return "This guest has no virtio-fs device, or its kernel no virtio-fs (CONFIG_VIRTIO_FS): on the host, host-hv fs \
                and QEMU's -device vhost-user-fs-pci,tag=hospes"
            .to_owned();
    }
    if tags.iter().any(|tag| tag == TAG) {
        return "The host's folders are not mounted: systemctl start mnt-hospes.mount, and its status says why not".to_owned();
    }
    "This guest has no virtio-fs device with the tag hospes: on the host, host-hv fs and QEMU's -device \
     vhost-user-fs-pci,tag=hospes"
        .to_owned()
}

fn has_device() -> bool {
    fs::read_dir("/sys/bus/virtio/drivers/virtiofs").is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("virtio"))
    })
}

/// A share is a directory there; its name is the host's word.
fn folders(root: &Path) -> std::io::Result<Vec<Folder>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        folders.push(Folder { path: entry.path(), name });
    }
    folders.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(folders)
}

/// The tags of all virtio file systems, on a kernel that tells them.
fn tags(sysfs: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(sysfs) else { return Vec::new() };
    let mut tags: Vec<String> = entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("tag")).ok())
        .map(|tag| tag.trim_end_matches('\n').to_owned())
        .collect();
    tags.sort();
    tags
}

/// Tag and place of each virtio file system in a mountinfo(5), the shares beneath one left out.
fn mounted(mountinfo: &str) -> Vec<(String, PathBuf)> {
    let mut mounts: Vec<(String, PathBuf)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let mut back = back.split(' ');
        let (Some("virtiofs"), Some(tag)) = (back.next(), back.next()) else { continue };
        let Some(place) = front.split(' ').nth(4) else { continue };
        let (tag, place) = (unescape(tag), PathBuf::from(unescape(place)));
        if !mounts.iter().any(|(known, above)| *known == tag && place.starts_with(above)) {
            mounts.push((tag, place));
        }
    }
    mounts
}

/// Spaces, tabs, newlines and backslashes are octal there.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(byte);
            rest = &after[3..];
        } else {
            plain.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..bytes.len().min(MOUNTS_LEN)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_once_and_with_their_spaces() {
        let text = "22 1 0:20 / / rw - ext4 /dev/vda rw\n\
                    30 22 0:31 / /mnt/hospes rw,nosuid - virtiofs hospes rw\n\
                    31 30 0:32 / /mnt/hospes/src rw,nosuid - virtiofs hospes rw\n\
                    32 22 0:33 / /mnt/my\\040files rw - virtiofs my\\040files rw\n\
                    broken";
        let mounts = mounted(text);
        assert_eq!(
            mounts,
            [
                ("hospes".to_owned(), PathBuf::from("/mnt/hospes")),
                ("my files".to_owned(), PathBuf::from("/mnt/my files"))
            ]
        );
        assert_eq!(unescape("a\\04"), "a\\04");
    }

    #[test]
    fn tags_and_folders_are_sorted() {
        let root = tempfile::tempdir().unwrap();
        for (name, tag) in [("2", "zed\n"), ("1", "hospes\n")] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("tag"), tag).unwrap();
        }
        assert_eq!(tags(root.path()), ["hospes", "zed"]);
        let names: Vec<_> = folders(root.path()).unwrap().into_iter().map(|folder| folder.name).collect();
        assert_eq!(names, ["1", "2"]);
        assert!(tags(&root.path().join("none")).is_empty());
    }
}
