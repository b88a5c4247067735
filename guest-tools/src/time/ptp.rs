//! A clock device of the hypervisor's: `ptp_kvm`, `virtio-rtc`. It shows the host's clock with no exchange.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use hospes_protocol::time::Source;
use nix::time::ClockId;

use super::estimate::Sample;
use super::kernel;

/// Devices whose clock is the host's, by the beginning of their name (`/sys/class/ptp/*/clock_name`).
const HOSTS: [&str; 2] = ["KVM virtual PTP", "virtio_rtc"];

/// A device that shows the host's clock.
#[derive(Debug)]
pub struct Device {
    file: File,
}

impl Device {
    /// The machine's, where it has one.
    #[must_use]
    pub fn find() -> Option<Self> {
        Self::find_in(Path::new("/sys/class/ptp"), Path::new("/dev"))
    }

    fn find_in(class: &Path, devices: &Path) -> Option<Self> {
        let mut names: Vec<_> = fs::read_dir(class).ok()?.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        names.into_iter().find_map(|name| {
            let kind = fs::read_to_string(class.join(&name).join("clock_name")).ok()?;
            if !HOSTS.iter().any(|host| kind.starts_with(host)) {
                return None;
            }
            File::open(devices.join(&name)).ok().map(|file| Self { file })
        })
    }

    /// The host's clock now, by the shortest of five looks. None where it is no clock of UTC, or cannot be read.
    #[must_use]
    pub fn sample(&self) -> Option<Sample> {
        let clock = clock_of(self.file.as_raw_fd());
        (0..5).filter_map(|_| look(clock)).min_by_key(|sample| sample.round_trip)
    }
}

fn look(clock: ClockId) -> Option<Sample> {
    let before = kernel::boot().ok()?;
    let host = kernel::now(clock).ok()?;
    let after = kernel::boot().ok()?;
    let round_trip = u64::try_from(after - before).ok()?;
    let ahead = host - before - (after - before) / 2;
    Some(Sample { ahead, error: round_trip / 2, round_trip, source: Source::PTP })
}

/// `FD_TO_CLOCKID` of `clock_getres(2)`.
fn clock_of(fd: RawFd) -> ClockId {
    ClockId::from_raw((!fd << 3) | 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_clock_will_do() {
        let root = tempfile::tempdir().unwrap();
        let (class, devices) = (root.path().join("class"), root.path().join("dev"));
        fs::create_dir_all(&devices).unwrap();
        assert!(Device::find_in(&class, &devices).is_none());
        for (name, kind) in [("ptp0", "a network card\n"), ("ptp1", "KVM virtual PTP\n")] {
            fs::create_dir_all(class.join(name)).unwrap();
            fs::write(class.join(name).join("clock_name"), kind).unwrap();
        }
        fs::write(devices.join("ptp0"), "").unwrap();
        assert!(Device::find_in(&class, &devices).is_none());
        fs::write(devices.join("ptp1"), "").unwrap();
        // It is found, and as no clock it has no time.
        assert!(Device::find_in(&class, &devices).unwrap().sample().is_none());
    }
}
