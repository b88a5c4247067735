//! The clock that a machine begins by (PL031, Arm DDI 0224): this machine's time of day, in seconds.

use std::sync::{Mutex, PoisonError};

use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;

use super::bus::MmioDevice;

/// The clock on the bus. It has no alarm, and no interrupt.
pub struct Clock(Mutex<Rtc<NoEvents>>);

impl Default for Clock {
    fn default() -> Self {
        Self(Mutex::new(Rtc::new()))
    }
}

impl Clock {
    fn with(&self, act: impl FnOnce(&mut Rtc<NoEvents>)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl MmioDevice for Clock {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let mut value = [0; 4];
        // Registers are four bytes, and read as such.
        if let (Ok(offset), 4) = (u16::try_from(offset), size) {
            self.with(|clock| clock.read(offset, &mut value));
        }
        u32::from_le_bytes(value).into()
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let [a, b, c, d, ..] = value.to_le_bytes();
        if let (Ok(offset), 4) = (u16::try_from(offset), size) {
            self.with(|clock| clock.write(offset, &[a, b, c, d]));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    const TIME: u64 = 0;
    const SET: u64 = 8;

    #[test]
    fn it_has_the_hosts_time_until_the_guest_sets_it() {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let clock = Clock::default();
        let (before, read, after) = (now(), clock.read(TIME, 4), now());
        assert!(before <= read && read <= after, "{before} {read} {after}");
        assert_eq!(
            [clock.read(TIME, 2), clock.read(TIME, 8), clock.read(1, 4), clock.read(0x1_0000, 4)],
            [0; 4]
        );
        clock.write(SET, 2, 1);
        assert!(clock.read(TIME, 4) >= before);
        clock.write(SET, 4, 1_000_000_000);
        assert!((1_000_000_000..1_100_000_000).contains(&clock.read(TIME, 4)));
        clock.write(SET, 4, u64::from(u32::MAX));
        clock.read(TIME, 4);
        // Its identity, by which a driver finds it (table 3-1).
        let id = [0xfe0, 0xfe4, 0xfe8, 0xff0, 0xffc].map(|at| clock.read(at, 4));
        assert_eq!(id, [0x31, 0x10, 0x04, 0x0d, 0xb1]);
    }
}
