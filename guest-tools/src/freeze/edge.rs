//! The kernel, as freezing needs it: one trait, so that tests have a machine of their own making.
#![expect(unsafe_code, reason = "FIFREEZE, FITHAW and FITRIM are ioctls without wrappers")]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall, munlockall};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::mounts::{self, Device, Mount};
use super::plan::{Candidate, Place};

/// Devices upon devices that are looked through: a file in a file system on LVM on a loop device …
const DEPTH: usize = 16;
/// Bytes of stack that are made before, so that none is asked for while all stands still.
const STACK: usize = 64 * 1024;

/// What freezing needs of a machine. [`freeze`](Self::freeze) and [`thaw`](Self::thaw) may not allocate, log, or touch a
/// file.
pub trait Edge: Sync {
    /// An open file system.
    type Handle: Send + Sync;

    /// What is mounted, and the kinds of file systems that need no device.
    ///
    /// # Errors
    /// The kernel's.
    fn tables(&self) -> io::Result<(Vec<Mount>, HashSet<Vec<u8>>)>;

    /// The devices of the file systems in whose files this device lies.
    fn beneath(&self, device: Device) -> Vec<Device>;

    /// Opens a file system at one of its places.
    ///
    /// # Errors
    /// The kernel's; `NotFound` where something else is mounted over every place.
    fn open(&self, candidate: &Candidate) -> io::Result<Self::Handle>;

    /// Writes out what is not on its disk yet. What goes wrong shows again in the freeze.
    fn sync(&self, handle: &Self::Handle);

    /// Locks the program's memory, and makes what may be needed of it.
    ///
    /// # Errors
    /// The kernel's.
    fn lock_memory(&self) -> io::Result<()>;

    /// Lets it go.
    fn unlock_memory(&self);

    /// Freezes. It returns when everything is written and nothing more is taken.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where its kind cannot be frozen, `EBUSY` where somebody has frozen it, and others.
    fn freeze(&self, handle: &Self::Handle) -> Result<(), Errno>;

    /// Thaws.
    ///
    /// # Errors
    /// `EINVAL` where it was not frozen, and others.
    fn thaw(&self, handle: &Self::Handle) -> Result<(), Errno>;

    /// Tells the disk what is free, in ranges of at least `minimum` bytes, and gives the bytes told of.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the disk or the file system cannot, and others.
    fn trim(&self, handle: &Self::Handle, minimum: u64) -> Result<u64, Errno>;
}

mod ioctl {
    /// `struct fstrim_range` of linux/fs.h.
    #[repr(C)]
    pub(super) struct Range {
        pub(super) start: u64,
        pub(super) len: u64,
        pub(super) minlen: u64,
    }

    nix::ioctl_readwrite!(fifreeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, libc::c_int);
    nix::ioctl_readwrite!(fitrim, b'X', 121, Range);
}

/// This machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

impl Edge for Kernel {
    type Handle = OwnedFd;

    fn tables(&self) -> io::Result<(Vec<Mount>, HashSet<Vec<u8>>)> {
        let mounts = mounts::parse(&read("/proc/self/mountinfo")?);
        Ok((mounts, mounts::without_device(&read("/proc/filesystems")?)))
    }

    fn beneath(&self, device: Device) -> Vec<Device> {
        let mut found = Vec::new();
        look_beneath(Path::new("/sys/dev/block"), device, DEPTH, &mut found);
        found
    }

    fn open(&self, candidate: &Candidate) -> io::Result<OwnedFd> {
        let mut error = None;
        for place in &candidate.places {
            match open(place, candidate) {
                Ok(Some(fd)) => return Ok(fd),
                Ok(None) => {}
                Err(source) => error = Some(source),
            }
        }
        Err(error.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is mounted over")))
    }

    fn sync(&self, handle: &OwnedFd) {
        let _ = rustix::fs::syncfs(handle);
    }

    fn lock_memory(&self) -> io::Result<()> {
        mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)?;
        touch_stack();
        Ok(())
    }

    fn unlock_memory(&self) {
        let _ = munlockall();
    }

    fn freeze(&self, handle: &OwnedFd) -> Result<(), Errno> {
        let mut unused = 0;
        // SAFETY: the descriptor is open, and the kernel reads and writes no argument of FIFREEZE's.
        unsafe { ioctl::fifreeze(handle.as_raw_fd(), &raw mut unused) }.map(drop)
    }

    fn thaw(&self, handle: &OwnedFd) -> Result<(), Errno> {
        let mut unused = 0;
        // SAFETY: as above, of FITHAW's.
        unsafe { ioctl::fithaw(handle.as_raw_fd(), &raw mut unused) }.map(drop)
    }

    fn trim(&self, handle: &OwnedFd, minimum: u64) -> Result<u64, Errno> {
        let mut range = ioctl::Range { start: 0, len: u64::MAX, minlen: minimum };
        // SAFETY: the descriptor is open, and `range` is the structure that FITRIM reads and writes.
        unsafe { ioctl::fitrim(handle.as_raw_fd(), &raw mut range) }?;
        Ok(range.len)
    }
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(mounts::TABLE + 1).read_to_end(&mut bytes)?;
    // What would be missing could be a disk.
    if bytes.len() as u64 > mounts::TABLE {
        let message = format!("{path} is longer than {} bytes", mounts::TABLE);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Opens one place, or nothing where something else lies over it.
fn open(place: &Place, candidate: &Candidate) -> io::Result<Option<OwnedFd>> {
    let point = OsStr::from_bytes(&place.point);
    // A directory: to open another kind of file may wait, or do something.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(point, flags, Mode::empty()) {
        // A file that is mounted, or a place that nobody sees any more.
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP | rustix::io::Errno::NOENT) => {
            return Ok(None);
        }
        opened => opened?,
    };
    let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let same = if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        stat.stx_mnt_id == u64::from(place.id)
    } else {
        // Before Linux 5.8. btrfs shows another number here than there.
        let device = Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor };
        device == candidate.device || candidate.kind == b"btrfs"
    };
    Ok(same.then_some(fd))
}

/// Follows a device down to the files that it lies in. `sys` is `/sys/dev/block`.
fn look_beneath(sys: &Path, device: Device, depth: usize, found: &mut Vec<Device>) {
    let Some(depth) = depth.checked_sub(1) else { return };
    let mut folder = sys.join(format!("{}:{}", device.major, device.minor));
    if folder.join("partition").exists()
        && let Ok(partition) = folder.canonicalize()
        && let Some(disk) = partition.parent()
    {
        folder = disk.to_owned();
    }
    if let Ok(mut file) = fs::read(folder.join("loop/backing_file")) {
        if file.last() == Some(&b'\n') {
            file.pop();
        }
        if let Ok(file) = fs::metadata(PathBuf::from(OsStr::from_bytes(&file))) {
            let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
            found.push(Device { major, minor });
        }
    }
    for slave in fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten() {
        let number = fs::read(slave.path().join("dev")).unwrap_or_default();
        if let Some(device) = Device::parse(number.trim_ascii()) {
            look_beneath(sys, device, depth, found);
        }
    }
}

#[inline(never)]
fn touch_stack() {
    let mut room = [0_u8; STACK];
    for at in (0..STACK).step_by(1024) {
        room[at] = 1;
    }
    std::hint::black_box(&mut room);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_device_is_followed_through_partitions_and_mappings_to_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, "").unwrap();
        let (sys, devices) = (folder.path().join("dev"), folder.path().join("devices"));
        fs::create_dir_all(devices.join("loop0/loop")).unwrap();
        fs::write(devices.join("loop0/loop/backing_file"), format!("{}\n", image.display())).unwrap();
        fs::create_dir(devices.join("loop0/loop0p1")).unwrap();
        fs::write(devices.join("loop0/loop0p1/partition"), "1\n").unwrap();
        fs::write(devices.join("loop0/loop0p1/dev"), "259:0\n").unwrap();
        fs::create_dir_all(devices.join("dm-0/slaves")).unwrap();
        symlink("../../loop0/loop0p1", devices.join("dm-0/slaves/loop0p1")).unwrap();
        fs::create_dir(&sys).unwrap();
        symlink("../devices/loop0/loop0p1", sys.join("259:0")).unwrap();
        symlink("../devices/dm-0", sys.join("253:0")).unwrap();
        let dev = fs::metadata(&image).unwrap().dev();
        let below = Device { major: rustix::fs::major(dev), minor: rustix::fs::minor(dev) };
        let look = |major, minor, depth| {
            let mut found = Vec::new();
            look_beneath(&sys, Device { major, minor }, depth, &mut found);
            found
        };
        assert_eq!(look(253, 0, DEPTH), [below]);
        assert_eq!(look(259, 0, DEPTH), [below]);
        assert_eq!(look(253, 0, 1), [], "it looks no deeper than it is told");
        assert_eq!(look(8, 0, DEPTH), []);
    }

    #[test]
    fn a_place_that_something_lies_over_is_told_from_one_that_is_there() {
        let (mounts, _) = Kernel.tables().unwrap();
        let root = mounts.iter().rfind(|mount| mount.point == b"/").unwrap();
        let candidate = |id, point: &[u8]| Candidate {
            device: root.device,
            kind: root.kind.clone(),
            places: vec![Place { id, point: point.to_vec() }],
        };
        assert!(Kernel.open(&candidate(root.id, b"/")).is_ok());
        let kind = |candidate: &Candidate| Kernel.open(candidate).unwrap_err().kind();
        assert_eq!(kind(&candidate(u32::MAX, b"/")), io::ErrorKind::NotFound);
        assert_eq!(kind(&candidate(root.id, b"/nonexistent")), io::ErrorKind::NotFound);
        assert_eq!(kind(&candidate(root.id, b"/proc/self/mountinfo")), io::ErrorKind::NotFound);
    }
}
