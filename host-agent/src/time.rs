//! What this machine says when a guest asks for the time, and what the guest reports.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::time::{Occasion, Probe, Report, Stamp, Time};

use crate::client::{Client, ClientError};
use crate::connection::ExpectError;

/// This machine's clock, in nanoseconds since 1970.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Has a guest look at its clock by `clock`, and gives its report.
///
/// # Errors
/// [`ClientError`]; the guest's refusal is [`ClientError::Refused`].
pub fn look(
    client: &Client,
    occasion: Occasion,
    deadline: Instant,
    clock: impl Fn() -> u64,
) -> Result<Report, ClientError> {
    let mut operation = Vec::new();
    frame::put(FrameId::TIME, &Time { occasion }, &mut operation);
    let mut connection = client.open(&operation)?;
    connection.set_deadline(Some(deadline));
    loop {
        let frame = connection.frame()?;
        let received_ns = clock();
        match frame.id {
            FrameId::TIME_PROBE => {
                let Probe { serial } = frame.decode()?;
                let stamp = Stamp { serial, received_ns, sent_ns: clock() };
                frame::put(FrameId::TIME_STAMP, &stamp, connection.queue());
                connection.flush()?;
            }
            FrameId::TIME_REPORT => {
                let report = frame.decode()?;
                frame::put_raw(FrameId::BYE, 0, &[], connection.queue());
                // The guest has said all that it will.
                let _ = connection.flush();
                return Ok(report);
            }
            FrameId::FAILED => return Err(ClientError::Refused(frame.decode()?)),
            FrameId::UNKNOWN => return Err(ClientError::Refused(unknown())),
            found => {
                return Err(ExpectError::Other { found, expected: FrameId::TIME_REPORT }.into());
            }
        }
    }
}

fn unknown() -> hospes_protocol::error::WireError {
    use hospes_protocol::error::{ErrorKind, WireError};
    WireError::new(ErrorKind::UNSUPPORTED, "The guest tools do not know how to keep time")
        .hint("Upgrade hospes-tools in the guest")
}

/// Nanoseconds for people, with a sign: `+5.000 s`, `-12.3 ms`.
#[must_use]
pub fn words(ns: i64) -> String {
    format!("{}{}", if ns < 0 { '-' } else { '+' }, length(ns.unsigned_abs()))
}

/// Nanoseconds for people.
#[must_use]
pub fn length(ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let size = ns as f64;
    match ns {
        0..1_000_000 => format!("{:.1} µs", size / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", size / 1e6),
        _ => format!("{:.3} s", size / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        assert_eq!(words(5_000_000_000), "+5.000 s");
        assert_eq!(words(-12_345_678), "-12.3 ms");
        assert_eq!(length(400), "0.4 µs");
        assert!(words(i64::MIN).starts_with("-9223372036"));
    }
}
