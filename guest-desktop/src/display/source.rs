//! What the VM's display offers, as the kernel tells it: uevents for when, the connectors' EDIDs for what.
//!
//! A display that changes its size gives one uevent of the subsystem drm (linux, `drivers/gpu/drm/drm_sysfs.c`,
//! `drm_sysfs_hotplug_event`), and by then its connector's file `edid` is new. Its file `modes` is not, until somebody
//! probes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use hospes_clipboard::readiness::register;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::edid::{self, Best};

/// The kernel's own uevents; group 2 is udev's, which come later and are only as good as udev.
const KERNEL: u32 = 1;
/// Bytes of a uevent that are looked at: the kernel makes none longer.
const UEVENT: usize = 4096;
/// Connectors that are looked at.
const CONNECTORS: usize = 64;

/// The kernel's news of displays.
#[derive(Debug)]
pub struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Listens. Anybody may.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
        Ok(Self(register(fd, Interest::READABLE)?))
    }

    /// Returns once something of a display has changed.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn changed(&self) -> io::Result<()> {
        let mut bytes = [0; UEVENT];
        self.0
            .async_io(Interest::READABLE, |fd| {
                loop {
                    match recvfrom::<NetlinkAddr>(fd.as_raw_fd(), &mut bytes) {
                        // Of the kernel alone: a program can send here too.
                        Ok((len, Some(from))) if from.pid() == 0 && is_display(&bytes[..len]) => {
                            return Ok(());
                        }
                        Ok(_) | Err(Errno::EINTR) => (),
                        // More came than was read: what it was is not known.
                        Err(Errno::ENOBUFS) => return Ok(()),
                        Err(Errno::EAGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                        Err(error) => return Err(error.into()),
                    }
                }
            })
            .await
    }
}

/// Whether a uevent, words with a zero behind each, is of a display.
#[must_use]
pub fn is_display(uevent: &[u8]) -> bool {
    uevent.split(|byte| *byte == 0).any(|word| word == b"SUBSYSTEM=drm")
}

/// What each connected display offers, by its connector's name as compositors have it: `Virtual-1`.
#[must_use]
pub fn offered(class: &Path) -> BTreeMap<String, Best> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let mut offered = BTreeMap::new();
    for entry in entries.take(CONNECTORS * 4) {
        let file = entry.file_name();
        // card0-Virtual-1; card0 itself and renderD128 are no connectors.
        let Some((card, name)) = file.to_str().and_then(|name| name.split_once('-')) else { continue };
        if !card.starts_with("card") || offered.len() >= CONNECTORS {
            continue;
        }
        let mut bytes = Vec::new();
        let most = edid::MOST as u64;
        let read = fs::File::open(entry.path().join("edid"))
            .and_then(|file| file.take(most).read_to_end(&mut bytes));
        if let (Ok(_), Some(best)) = (read, edid::best(&bytes)) {
            offered.insert(name.to_owned(), best);
        }
    }
    offered
}

#[cfg(test)]
mod tests {
    use hospes_protocol::display::Size;

    use super::*;

    #[test]
    fn connectors_are_read_by_name_and_what_is_none_is_passed_over() {
        let class = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            fs::create_dir_all(class.path().join(name)).unwrap();
            fs::write(class.path().join(name).join("edid"), bytes).unwrap();
        };
        put("card0-Virtual-1", &edid::tests::edid(1733, 911));
        put("card0-Virtual-2", b"");
        put("card0", &edid::tests::edid(1, 1));
        put("renderD128", b"");
        let offered = offered(class.path());
        let sizes: Vec<_> = offered.iter().map(|(name, best)| (name.as_str(), best.size)).collect();
        assert_eq!(sizes, [("Virtual-1", Size { width: 1733, height: 911 })]);
        assert!(super::offered(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn a_uevent_of_a_display_is_told_from_others() {
        assert!(is_display(b"change@/devices/x/drm/card0\0ACTION=change\0SUBSYSTEM=drm\0HOTPLUG=1\0"));
        assert!(!is_display(b"change@/devices/x\0ACTION=change\0SUBSYSTEM=drm_dp_aux_dev\0"));
        assert!(!is_display(b""));
    }

    #[tokio::test]
    async fn uevents_can_be_listened_to() {
        Uevents::new().unwrap();
    }
}
