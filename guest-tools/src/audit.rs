//! Audit lines: one for each thing that a host did here, and for each that it was refused.
//!
//! They go to the journal with fields of their own (`HOSPES_HOST=`, `HOSPES_VERB=`, `HOSPES_USER=` …), and their text
//! has no byte of a request that a terminal would obey. What a stranger can cause without limit (refusals) is limited
//! in number, and the lines left out are counted.

use std::time::{Duration, Instant};

use hospes_protocol::keys::PublicKey;

use crate::verb::Verb;

/// Bytes of a request's subject that a line keeps.
pub const SUBJECT: usize = 400;
/// Refusals that are written at once, and then one per [`REFILL`].
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(3);

/// Writes a host's deed, before it is done.
pub fn allowed(host: &PublicKey, verb: Verb, user: &str, subject: &[u8]) {
    let (subject, user) = (printable(subject), printable(user.as_bytes()));
    tracing::info!(
        target: "audit",
        outcome = "allowed",
        host = %host,
        verb = verb.name(),
        user = user,
        subject = subject,
        "{verb} as {user} by {host}: {subject}"
    );
}

/// Writes what else a host did that counts: opened or ended a session, became the first.
pub fn noted(host: &PublicKey, what: &str) {
    tracing::info!(target: "audit", outcome = "noted", host = %host, "Host {host} {what}");
}

/// Writes that the clock was set, and why.
pub fn clock(host: &PublicKey, text: &str) {
    tracing::info!(target: "audit", outcome = "allowed", host = %host, verb = "time", "{text}, by {host}");
}

/// Writes what somebody did who had to prove nothing, by the door that they came through.
pub fn unproved(door: &str, text: &str) {
    tracing::info!(target: "audit", outcome = "allowed", host = door, "By {door}, unproved: {text}");
}

/// Refusals, as many as a log can bear.
#[derive(Debug)]
pub struct Refusals {
    left: u32,
    since: Option<Instant>,
    omitted: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { left: BURST, since: None, omitted: 0 }
    }
}

impl Refusals {
    /// Writes a refusal, or counts it.
    pub fn refused(&mut self, now: Instant, who: &str, what: &str) {
        match self.admit(now) {
            None => self.omitted += 1,
            Some(omitted) => {
                let (who, what) = (printable(who.as_bytes()), printable(what.as_bytes()));
                let more =
                    if omitted > 0 { format!(" ({omitted} more refusals not shown)") } else { String::new() };
                tracing::warn!(target: "audit", outcome = "refused", host = who, "Refused {who}: {what}{more}");
            }
        }
    }

    /// The refusals left out since the last line, where another line may be written now.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let earned = now.saturating_duration_since(since).as_millis() / REFILL.as_millis();
        let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
        if earned > 0 {
            self.left = (self.left + earned).min(BURST);
            self.since = Some(since + REFILL * earned);
            if self.left == BURST {
                self.since = Some(now);
            }
        }
        self.left = self.left.checked_sub(1)?;
        Some(std::mem::take(&mut self.omitted))
    }
}

/// At most [`SUBJECT`] bytes of `bytes` as text in which nothing is left that a terminal or a log obeys.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let cut = bytes.len() > SUBJECT;
    let mut text = String::new();
    for chunk in bytes[..bytes.len().min(SUBJECT)].utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_harmless(c) { text.push(c) } else { text.extend(c.escape_unicode()) }
        }
        // Where the cut fell into a character, its first bytes are no news.
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    if cut {
        text.push('…');
    }
    text
}

/// Neither a control nor an invisible sign that turns or joins what is written beside it.
fn is_harmless(c: char) -> bool {
    let format = matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    c != '\\' && !c.is_control() && !format
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_holds_nothing_that_a_terminal_obeys() {
        assert_eq!(printable(b"echo \x1b[31m\n\xff"), "echo \\u{1b}[31m\\u{a}\\xff");
        assert_eq!(printable("a\u{202e}b — ü".as_bytes()), "a\\u{202e}b — ü");
        // A backslash of the request cannot pass for one of ours.
        assert_eq!(printable(b"\\x41"), "\\u{5c}x41");
    }

    #[test]
    fn refusals_are_limited_and_those_left_out_are_counted() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let admit = |after: Duration, refusals: &mut Refusals| {
            let admitted = refusals.admit(start + after);
            if admitted.is_none() {
                refusals.omitted += 1;
            }
            admitted
        };
        let written = (0..100).filter(|_| admit(Duration::ZERO, &mut refusals).is_some()).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(admit(REFILL, &mut refusals), Some(100 - u64::from(BURST)));
        assert_eq!(admit(REFILL, &mut refusals), None);
        assert_eq!(admit(REFILL * 1000, &mut refusals), Some(1));
    }

    proptest! {
        #[test]
        fn no_control_survives_and_the_length_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let text = printable(&bytes);
            prop_assert!(text.chars().all(is_harmless_or_ours));
            prop_assert!(text.chars().count() <= SUBJECT * 10 + 1);
        }
    }

    fn is_harmless_or_ours(c: char) -> bool {
        c == '\\' || is_harmless(c)
    }
}
