//! Whether this machine is a guest with a vsock device: asked of the virtio bus, whoever the hypervisor is.

use std::fmt;
use std::fs;
use std::path::Path;

/// The virtio device id of a socket device (virtio 1.2, section 5.10).
const VSOCK: &str = "0x0013";

/// Why there is no vsock device to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoDevice {
    /// The machine has no virtio bus: no guest, or one of a hypervisor without virtio.
    NoVirtio,
    /// The guest has virtio devices, and none of them is a vsock device.
    NotAmongThem,
    /// The device is there and no driver has it.
    NoDriver,
}

impl fmt::Display for NoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoVirtio => "this machine has no virtio devices, so it is no guest that Hospes can serve",
            Self::NotAmongThem => "this guest has no vsock device: give it one where the machine is set up",
            Self::NoDriver => {
                "the vsock device has no driver: load vmw_vsock_virtio_transport (CONFIG_VIRTIO_VSOCKETS)"
            }
        })
    }
}

/// Looks for the device.
///
/// # Errors
/// [`NoDevice`].
pub fn find() -> Result<(), NoDevice> {
    find_in(Path::new("/sys/bus/virtio/devices"))
}

fn find_in(bus: &Path) -> Result<(), NoDevice> {
    let devices: Vec<_> =
        fs::read_dir(bus).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    if devices.is_empty() {
        return Err(NoDevice::NoVirtio);
    }
    let is_vsock = |path: &&std::path::PathBuf| {
        fs::read_to_string(path.join("device")).is_ok_and(|id| id.trim() == VSOCK)
    };
    let mut found = Err(NoDevice::NotAmongThem);
    for device in devices.iter().filter(is_vsock) {
        if device.join("driver").exists() {
            return Ok(());
        }
        found = Err(NoDevice::NoDriver);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_found_by_its_id_and_its_driver() {
        let bus = tempfile::tempdir().unwrap();
        assert_eq!(find_in(&bus.path().join("none")), Err(NoDevice::NoVirtio));
        let device = |name: &str, id: &str| {
            let path = bus.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("device"), format!("{id}\n")).unwrap();
            path
        };
        device("virtio0", "0x0001");
        assert_eq!(find_in(bus.path()), Err(NoDevice::NotAmongThem));
        let vsock = device("virtio1", "0x0013");
        assert_eq!(find_in(bus.path()), Err(NoDevice::NoDriver));
        fs::create_dir(vsock.join("driver")).unwrap();
        assert_eq!(find_in(bus.path()), Ok(()));
    }
}
