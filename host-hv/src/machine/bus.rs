//! The bus of devices that a guest reaches by loads and stores.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device on the bus. Called on vCPUs' threads, several at once: it does no I/O there.
pub trait MmioDevice: Send + Sync {
    /// What the guest reads; `size` is 1, 2, 4 or 8.
    fn read(&self, offset: u64, size: u8) -> u64;
    /// What the guest writes; `size` is 1, 2, 4 or 8, and `value` has no bit above it.
    fn write(&self, offset: u64, size: u8, value: u64);
}

/// All devices, none of which overlaps another.
#[derive(Default)]
pub struct Bus {
    /// Sorted by address.
    devices: Vec<(Range<u64>, Arc<dyn MmioDevice>)>,
    stray: AtomicBool,
}

impl Bus {
    /// Adds a device. Returns it where another one is in its place already.
    pub fn add(&mut self, place: Range<u64>, device: Arc<dyn MmioDevice>) -> Result<(), Arc<dyn MmioDevice>> {
        let index = self.devices.partition_point(|(other, _)| other.end <= place.start);
        match self.devices.get(index) {
            Some((next, _)) if next.start < place.end => Err(device),
            _ => {
                self.devices.insert(index, (place, device));
                Ok(())
            }
        }
    }

    /// A guest's read: zero where nothing is.
    pub fn read(&self, address: u64, size: u8) -> u64 {
        match self.find(address, size) {
            Some((device, offset)) => device.read(offset, size),
            None => {
                self.told("reads", address);
                0
            }
        }
    }

    /// A guest's write: lost where nothing is.
    pub fn write(&self, address: u64, size: u8, value: u64) {
        match self.find(address, size) {
            Some((device, offset)) => device.write(offset, size, value),
            None => self.told("writes", address),
        }
    }

    fn find(&self, address: u64, size: u8) -> Option<(&dyn MmioDevice, u64)> {
        let index = self.devices.partition_point(|(place, _)| place.end <= address);
        let (place, device) = self.devices.get(index)?;
        let inside = place.start <= address && u64::from(size) <= place.end - address;
        inside.then(|| (device.as_ref(), address - place.start))
    }

    /// Once for a machine: a guest that does it in a loop fills no log.
    fn told(&self, does: &str, address: u64) {
        if !self.stray.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "The guest {does} at {address:#x}, where no device is; no other such access will be told"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Notes(Mutex<Vec<(u64, u8, u64)>>);

    impl MmioDevice for Notes {
        fn read(&self, offset: u64, size: u8) -> u64 {
            offset << 8 | u64::from(size)
        }
        fn write(&self, offset: u64, size: u8, value: u64) {
            self.0.lock().unwrap().push((offset, size, value));
        }
    }

    #[test]
    fn each_access_finds_its_device_and_nothing_beside_it() {
        let (mut bus, first, second) =
            (Bus::default(), Arc::new(Notes::default()), Arc::new(Notes::default()));
        assert!(bus.add(0x2000..0x3000, second.clone()).is_ok());
        assert!(bus.add(0x1000..0x2000, first.clone()).is_ok());
        for taken in [0x1fff..0x2001, 0x0..0x1001, 0x2800..0x2801, 0x0..0x9000] {
            assert!(bus.add(taken, first.clone()).is_err());
        }
        assert_eq!([bus.read(0x1ffc, 4), bus.read(0x2000, 1)], [0xffc04, 1]);
        // Nothing, across an end, and where the address space ends.
        assert_eq!([bus.read(0xfff, 1), bus.read(0x1ffe, 4), bus.read(u64::MAX, 8)], [0; 3]);
        bus.write(0x2008, 2, 7);
        bus.write(0x3000, 2, 7);
        assert_eq!(*second.0.lock().unwrap(), [(8, 2, 7)]);
        assert!(first.0.lock().unwrap().is_empty());
    }
}
