//! The kernel's clocks: `clock_gettime(2)`, and what `adjtimex(2)` sets.
#![expect(unsafe_code, reason = "no crate of ours has adjtimex(2)")]

use std::io;

use nix::time::{ClockId, clock_gettime};

use super::SECOND;

/// Units of the kernel's frequency in a part per million: it is a fixed-point number with 16 bits behind the point.
const PPM: i64 = 1 << 16;

/// Nanoseconds of a clock.
///
/// # Errors
/// What the kernel says.
pub fn now(clock: ClockId) -> io::Result<i64> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec().saturating_mul(SECOND).saturating_add(time.tv_nsec()))
}

/// Nanoseconds since boot, sleep included; nobody sets it.
///
/// # Errors
/// What the kernel says.
pub fn boot() -> io::Result<i64> {
    now(ClockId::CLOCK_BOOTTIME)
}

/// Nanoseconds that `CLOCK_REALTIME` is ahead of `CLOCK_BOOTTIME`, by the shortest of three looks.
///
/// # Errors
/// What the kernel says.
pub fn real_ahead() -> io::Result<i64> {
    let mut best = (i64::MAX, 0);
    for _ in 0..3 {
        let before = boot()?;
        let real = now(ClockId::CLOCK_REALTIME)?;
        let after = boot()?;
        let took = after - before;
        if took < best.0 {
            best = (took, real - before - took / 2);
        }
    }
    Ok(best.1)
}

/// Nanoseconds that this machine has slept since boot.
///
/// # Errors
/// What the kernel says.
pub fn slept() -> io::Result<i64> {
    Ok(boot()? - now(ClockId::CLOCK_MONOTONIC)?)
}

/// Sets the clock by so many nanoseconds, at once.
///
/// # Errors
/// What the kernel says: `PermissionDenied` without `CAP_SYS_TIME`.
pub fn step(by: i64) -> io::Result<()> {
    let mut request = blank();
    request.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    request.time.tv_sec = by.div_euclid(SECOND);
    request.time.tv_usec = by.rem_euclid(SECOND);
    adjust(&mut request).map(drop)
}

/// Brings the clock by so many nanoseconds, half a millisecond in a second, in place of what was still to be brought.
///
/// # Errors
/// As [`step`].
pub fn slew(by: i64) -> io::Result<()> {
    let mut request = blank();
    request.modes = libc::ADJ_OFFSET_SINGLESHOT;
    request.offset = by / 1000;
    adjust(&mut request).map(drop)
}

/// The correction of the frequency, in parts per billion.
///
/// # Errors
/// What the kernel says.
pub fn frequency() -> io::Result<i64> {
    let mut request = blank();
    adjust(&mut request)?;
    Ok(request.freq.saturating_mul(1000) / PPM)
}

/// Sets the correction of the frequency, in parts per billion.
///
/// # Errors
/// As [`step`].
pub fn set_frequency(ppb: i64) -> io::Result<()> {
    let mut request = blank();
    request.modes = libc::ADJ_FREQUENCY;
    request.freq = ppb.saturating_mul(PPM) / 1000;
    adjust(&mut request).map(drop)
}

fn blank() -> libc::timex {
    // SAFETY: all of timex is integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn adjust(request: &mut libc::timex) -> io::Result<libc::c_int> {
    // SAFETY: the structure is whole and ours alone while the kernel reads and writes it.
    let state = unsafe { libc::adjtimex(request) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(state) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_can_be_read_together() {
        let real = now(ClockId::CLOCK_REALTIME).unwrap();
        let both = real_ahead().unwrap() + boot().unwrap();
        assert!(both.abs_diff(real) < SECOND.unsigned_abs(), "{both} {real}");
        assert!(slept().unwrap() >= -SECOND);
        assert!(frequency().unwrap().abs() <= 500_001);
    }
}
