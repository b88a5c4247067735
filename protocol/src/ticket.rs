//! Tickets: a MAC under the session's secret that opens one more connection in one round trip.
//!
//! ```text
//! host                                     guest
//!  | TICKET session, serial, MAC            |
//!  | EXEC … and the first bytes of stdin    |
//!  |--------------------------------------->|  each serial is taken once
//!  |          OPENED MAC, EXEC_STARTED …    |
//!  |<---------------------------------------|
//! ```
//! The agent holds the session and hands tickets to commands, which dial the guest themselves. The guest's answer
//! carries a MAC of its own, so that a command knows it speaks to the guest of that session and to no other.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroize;

use crate::error::{ErrorKind, WireError};
use crate::handshake::SessionId;
use crate::limits::TICKET_WINDOW;

/// A session's secret. Wiped when dropped, never printed.
#[derive(Clone, Zeroize)]
#[zeroize(drop)]
pub struct SessionSecret([u8; 32]);

impl std::fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionSecret(…)")
    }
}

impl SessionSecret {
    /// The secret from the handshake's 32 bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn mac(&self, label: &[u8], session: SessionId, serial: u64) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any key length");
        mac.update(label);
        mac.update(&session.0);
        mac.update(&serial.to_le_bytes());
        mac
    }
}

const TICKET_LABEL: &[u8] = b"hospes 1 ticket\0";
const OPENED_LABEL: &[u8] = b"hospes 1 opened\0";

/// Opens one connection, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The session it belongs to.
    pub session: SessionId,
    /// Its number in that session.
    pub serial: u64,
    /// HMAC-SHA256 over both under the session's secret.
    pub mac: [u8; 32],
}

/// The guest's answer to a ticket that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// HMAC-SHA256 over the ticket's session and serial, under another label.
    pub mac: [u8; 32],
}

/// The host's side: makes tickets and checks what they open. The serial is the caller's to count.
#[derive(Debug, Clone)]
pub struct Issuer {
    session: SessionId,
    secret: SessionSecret,
    next: u64,
}

impl Issuer {
    /// Tickets of this session, from serial 1.
    #[must_use]
    pub const fn new(session: SessionId, secret: SessionSecret) -> Self {
        Self { session, secret, next: 1 }
    }

    /// The next ticket, with the answer that its guest must give.
    pub fn issue(&mut self) -> (Ticket, Opened) {
        let serial = self.next;
        self.next += 1;
        let mac = |label| self.secret.mac(label, self.session, serial).finalize().into_bytes().into();
        (Ticket { session: self.session, serial, mac: mac(TICKET_LABEL) }, Opened { mac: mac(OPENED_LABEL) })
    }
}

impl Opened {
    /// Whether the guest's answer is the expected one. Takes the same time for every wrong answer.
    #[must_use]
    pub fn matches(&self, answer: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.mac.ct_eq(&answer.mac).into()
    }
}

/// The guest's side: which serials of a session were used.
#[derive(Debug)]
pub struct Window {
    session: SessionId,
    secret: SessionSecret,
    /// The highest serial seen.
    top: u64,
    /// A bit for each of the last [`TICKET_WINDOW`] serials, at its remainder.
    used: Box<[u64]>,
}

const WORDS: u64 = TICKET_WINDOW / 64;

impl Window {
    /// A session of which no ticket has been used.
    #[must_use]
    pub fn new(session: SessionId, secret: SessionSecret) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "a small constant")]
        Self { session, secret, top: 0, used: vec![0; WORDS as usize].into_boxed_slice() }
    }

    /// Takes a ticket: true once for each that its session made and that is not too old.
    ///
    /// # Errors
    /// `UNPROVED` where the MAC is wrong, the serial was used, or it is too old to know.
    pub fn take(&mut self, ticket: &Ticket) -> Result<Opened, WireError> {
        let mac = self.secret.mac(TICKET_LABEL, self.session, ticket.serial);
        if ticket.session != self.session || mac.verify_slice(&ticket.mac).is_err() {
            return Err(WireError::new(ErrorKind::UNPROVED, "The ticket was not made in this session"));
        }
        let serial = ticket.serial;
        if serial == 0 || serial.saturating_add(TICKET_WINDOW) <= self.top {
            return Err(WireError::new(ErrorKind::STALE_TICKET, "The ticket is too old"));
        }
        if serial > self.top {
            let skipped = (serial - self.top).min(TICKET_WINDOW);
            for passed in serial - skipped + 1..=serial {
                self.set(passed, false);
            }
            self.top = serial;
        }
        if self.get(serial) {
            return Err(WireError::new(ErrorKind::UNPROVED, "The ticket was used before"));
        }
        self.set(serial, true);
        Ok(Opened { mac: self.secret.mac(OPENED_LABEL, self.session, serial).finalize().into_bytes().into() })
    }

    fn get(&self, serial: u64) -> bool {
        let (word, bit) = Self::place(serial);
        self.used[word] & bit != 0
    }

    fn set(&mut self, serial: u64, value: bool) {
        let (word, bit) = Self::place(serial);
        if value { self.used[word] |= bit } else { self.used[word] &= !bit }
    }

    const fn place(serial: u64) -> (usize, u64) {
        ((serial / 64 % WORDS) as usize, 1 << (serial % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn pair() -> (Issuer, Window) {
        let (id, secret) = (SessionId([3; 16]), SessionSecret::new([4; 32]));
        (Issuer::new(id, secret.clone()), Window::new(id, secret))
    }

    #[test]
    fn a_ticket_opens_once_and_proves_the_guest() {
        let (mut issuer, mut window) = pair();
        let (ticket, expected) = issuer.issue();
        let answer = window.take(&ticket).unwrap();
        assert!(expected.matches(&answer));
        assert_eq!(window.take(&ticket).unwrap_err().kind, ErrorKind::UNPROVED);
    }

    #[test]
    fn a_forged_or_foreign_ticket_is_refused_and_uses_nothing_up() {
        let (mut issuer, mut window) = pair();
        let (ticket, _) = issuer.issue();
        let mut forged = ticket.clone();
        forged.serial = u64::MAX;
        assert_eq!(window.take(&forged).unwrap_err().kind, ErrorKind::UNPROVED);
        let (foreign, _) = Issuer::new(SessionId([3; 16]), SessionSecret::new([5; 32])).issue();
        assert_eq!(window.take(&foreign).unwrap_err().kind, ErrorKind::UNPROVED);
        assert!(window.take(&ticket).is_ok());
    }

    proptest! {
        /// In whatever order tickets arrive, none opens twice, and one within the window opens.
        #[test]
        fn none_opens_twice_and_recent_ones_open(order in proptest::collection::vec(1u64..20_000, 1..300)) {
            let (_, mut window) = pair();
            let secret = SessionSecret::new([4; 32]);
            let (mut opened, mut top) = (HashSet::new(), 0);
            for serial in order {
                let mac = secret.mac(TICKET_LABEL, SessionId([3; 16]), serial).finalize().into_bytes().into();
                let taken = window.take(&Ticket { session: SessionId([3; 16]), serial, mac }).is_ok();
                prop_assert_eq!(taken, !opened.contains(&serial) && serial + TICKET_WINDOW > top);
                if taken { opened.insert(serial); }
                top = top.max(serial);
            }
        }
    }
}
