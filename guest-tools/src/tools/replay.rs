//! `hospes-tools share replay`: does again in this guest what was done to shared folders on the host, so that whoever
//! watches them here is told. The host's device knows, answers as if it happened just now, and touches nothing.
//!
//! Standard input is the device's word: a secret, then one change a line. Each change is announced to the device before
//! anything is done; a device that does not take the announcement is no device of that kind, and nothing is done at all.

use std::ffi::OsStr;
use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_NOW, XattrFlags,
};
use rustix::io::Errno;
use serde::Deserialize;

use super::share::MOUNT_POINT;

/// The attribute by which a change is announced.
const ATTRIBUTE: &str = "user.hospes.replay";

/// The most bytes of a line: two paths, of which each byte may be a number of its own, and some.
const LINE_LEN: u64 = 64 * 1024;

/// How long the kernel may believe that a name is there which it has seen already; a change that it hides is tried
/// again once after that.
const BELIEF: Duration = Duration::from_millis(1100);

/// Do again here what was done to shared folders on the host.
#[derive(Debug, Args)]
pub(super) struct Replay {}

#[derive(Deserialize)]
struct First {
    ok: Secret,
}

#[derive(Deserialize)]
struct Secret {
    secret: String,
}

/// A change, in the device's words. Paths start at the mount point.
#[derive(Debug, Deserialize)]
struct Change {
    number: u64,
    act: String,
    path: Name,
    to: Option<Name>,
    kind: u32,
}

/// A path, which is mostly text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Bytes(Vec<u8>),
}

impl Name {
    fn path(&self) -> &Path {
        match self {
            Self::Text(text) => Path::new(text),
            Self::Bytes(bytes) => Path::new(OsStr::from_bytes(bytes)),
        }
    }
}

impl Replay {
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        let mut input = io::stdin().lock();
        let first = line(&mut input)?.context("The host said nothing")?;
        let First { ok: Secret { secret } } =
            serde_json::from_slice(&first).context("The host did not begin with a secret")?;
        let root = rustix::fs::open(
            MOUNT_POINT,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("{MOUNT_POINT} cannot be opened"))?;
        // Not this process' mask: modes are the host's, and none of them is looked at.
        rustix::process::umask(Mode::empty());
        while let Some(line) = line(&mut input)? {
            let change: Change = serde_json::from_slice(&line).context("The host said what is no change")?;
            announce(&root, &secret, change.number)?;
            // What is gone by now, or cannot be told, is no reason to stop.
            let _ = replay(root.as_fd(), &change);
        }
        Ok(0)
    }
}

fn line(input: &mut impl BufRead) -> anyhow::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    input.by_ref().take(LINE_LEN).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if !line.ends_with(b"\n") {
        bail!("The host's line has no end, or more than {LINE_LEN} bytes");
    }
    Ok(Some(line))
}

/// From here on the device holds what this process does against the change.
fn announce(root: &OwnedFd, secret: &str, number: u64) -> anyhow::Result<()> {
    let value = format!("{secret} {number}");
    rustix::fs::fsetxattr(root, ATTRIBUTE, value.as_bytes(), XattrFlags::empty()).with_context(|| {
        format!("{MOUNT_POINT} is not the device that sent the change, or another listener took over")
    })
}

fn replay(root: BorrowedFd<'_>, change: &Change) -> Result<(), Errno> {
    let (parent, name) = place(root, change.path.path())?;
    match change.act.as_str() {
        "make" => twice(|| make(&parent, name, change.kind)),
        "remove" => {
            let directory = FileType::from_raw_mode(change.kind) == FileType::Directory;
            let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(&parent, name, flags)
        }
        "move" => {
            let (to, new) = place(root, change.to.as_ref().ok_or(Errno::INVAL)?.path())?;
            rustix::fs::renameat(&parent, name, &to, new)
        }
        "change" => {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
            // The device opened nothing: this byte goes nowhere.
            rustix::io::write(&file, b"\0").map(drop)
        }
        "touch" => {
            // Both times: one alone would be told as something else.
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            let times = Timestamps { last_access: now, last_modification: now };
            rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
        _ => Err(Errno::INVAL),
    }
}

fn make(parent: &OwnedFd, name: &OsStr, kind: u32) -> Result<(), Errno> {
    let mode = Mode::from_bits_truncate(0o600);
    match FileType::from_raw_mode(kind) {
        FileType::Directory => rustix::fs::mkdirat(parent, name, mode),
        FileType::Symlink => rustix::fs::symlinkat("x", parent, name),
        kind => rustix::fs::mknodat(parent, name, kind, mode, 0),
    }
}

/// The kernel says that the entry is there already where it has looked it up since it was made: as soon as it has to
/// ask again, it hears otherwise.
fn twice(make: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match make() {
        Err(Errno::EXIST) => {
            std::thread::sleep(BELIEF);
            make()
        }
        other => other,
    }
}

/// The directory of a path and the name in it. Beneath the mount point, through no link.
fn place<'p>(root: BorrowedFd<'_>, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), Errno> {
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), plain) else {
        return Err(Errno::INVAL);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok((rustix::fs::openat2(root, parent, flags, Mode::empty(), within)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out_of_the_mount_point() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("d")).unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("link")).unwrap();
        let fd = rustix::fs::open(root.path(), OFlags::PATH, Mode::empty()).unwrap();
        for bad in ["", "/etc/x", "../x", "d/../../x", "link/x", "d/..", "none/x"] {
            assert!(place(fd.as_fd(), Path::new(bad)).is_err(), "{bad}");
        }
        assert!(place(fd.as_fd(), Path::new("d/x")).is_ok());
        assert!(place(fd.as_fd(), Path::new("x")).is_ok());
    }

    #[test]
    fn a_path_is_text_or_bytes() {
        let change = |line: &str| serde_json::from_str::<Change>(line).unwrap();
        let text = change(r#"{"number":1,"act":"make","path":"src/a","kind":32768}"#);
        assert_eq!(text.path.path(), Path::new("src/a"));
        let bytes = change(r#"{"number":1,"act":"move","path":[115,47,255],"to":"s/b","kind":32768}"#);
        assert_eq!(bytes.path.path().as_os_str().as_bytes(), b"s/\xff");
    }

    #[test]
    fn a_file_system_that_takes_no_announcement_is_left_alone() {
        let fd = rustix::fs::open("/proc/self", OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(announce(&fd, "s", 1).is_err());
    }
}
