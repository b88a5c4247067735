//! The guest's clock, by the host's.
//!
//! ```text
//!  occasion ─ a few exchanges ─ [estimate] ─ offset ± error ─ [mind] ─ step, slew, feed or leave it ─ [kernel], [chrony]
//! ```
//! The estimate and the decision are pure: samples, settings and the moment in, a deed out. The rim reads and sets clocks
//! ([`kernel`]), asks systemd who is in charge ([`keeper`]), and tells chrony ([`chrony`]). The exchanges themselves are
//! the daemon's (`daemon/time.rs`).
//!
//! A sample says what the host's clock was at a moment of `CLOCK_BOOTTIME`, which nobody sets: so an estimate stays true
//! when somebody sets the clock between the measurement and the deed.

pub mod chrony;
pub mod estimate;
pub mod keeper;
pub mod kernel;
pub mod mind;
pub mod ptp;

/// Nanoseconds in a millisecond.
pub(crate) const MS: i64 = 1_000_000;
/// Nanoseconds in a second.
pub(crate) const SECOND: i64 = 1_000_000_000;

/// Nanoseconds for people: `+5.000 s`, `-12.3 ms`, `+0.4 µs`.
#[must_use]
pub fn words(ns: i64) -> String {
    let sign = if ns < 0 { '-' } else { '+' };
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let size = ns.unsigned_abs() as f64;
    match ns.unsigned_abs() {
        0..1_000_000 => format!("{sign}{:.1} µs", size / 1e3),
        1_000_000..1_000_000_000 => format!("{sign}{:.1} ms", size / 1e6),
        _ => format!("{sign}{:.3} s", size / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn times_are_for_people() {
        assert_eq!(words(5 * super::SECOND), "+5.000 s");
        assert_eq!(words(-12_345_678), "-12.3 ms");
        assert_eq!(words(400), "+0.4 µs");
        assert!(words(i64::MIN).starts_with("-9223372036"));
    }
}
