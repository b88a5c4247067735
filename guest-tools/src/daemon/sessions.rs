//! The sessions that hosts have open here, and what their tickets open. A session lives while its control connection
//! does.

use std::collections::HashMap;

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::handshake::{Session, SessionId};
use hospes_protocol::keys::PublicKey;
use hospes_protocol::ticket::{Opened, Ticket, Window};
use hospes_protocol::version::Capabilities;
use tokio::sync::oneshot;

/// The open sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: HashMap<SessionId, Entry>,
}

#[derive(Debug)]
struct Entry {
    window: Window,
    host: PublicKey,
    capabilities: Capabilities,
    revoke: Option<oneshot::Sender<WireError>>,
}

/// Resolves when the session is taken away; the error is for the host.
pub(super) type Revoked = oneshot::Receiver<WireError>;

impl Sessions {
    /// Opens a session after its handshake.
    ///
    /// # Errors
    /// `LIMIT` where `max` are open.
    pub(super) fn open(&mut self, session: &Session, max: usize) -> Result<Revoked, WireError> {
        if self.open.len() >= max {
            let message = format!("The guest has {max} control sessions open, its limit");
            return Err(WireError::new(ErrorKind::LIMIT, message).hint("End one, or raise [limits] sessions"));
        }
        let (revoke, revoked) = oneshot::channel();
        let entry = Entry {
            window: Window::new(session.id, session.secret.clone()),
            host: session.peer,
            capabilities: session.capabilities,
            revoke: Some(revoke),
        };
        self.open.insert(session.id, entry);
        Ok(revoked)
    }

    /// The session's control connection is gone: its tickets open nothing more.
    pub(super) fn close(&mut self, id: SessionId) {
        self.open.remove(&id);
    }

    /// Takes a ticket.
    ///
    /// # Errors
    /// `STALE_TICKET` where no such session is open, else as [`Window::take`].
    pub(super) fn take(&mut self, ticket: &Ticket) -> Result<(Opened, PublicKey, Capabilities), WireError> {
        let entry = self.open.get_mut(&ticket.session).ok_or_else(|| {
            WireError::new(ErrorKind::STALE_TICKET, "The guest does not know the ticket's session")
                .hint("Do the handshake")
        })?;
        let opened = entry.window.take(ticket)?;
        Ok((opened, entry.host, entry.capabilities))
    }

    /// Ends the sessions of hosts that are no longer trusted; `refusal` says why. Returns how many.
    pub(super) fn revoke(
        &mut self,
        trusted: impl Fn(&PublicKey) -> bool,
        refusal: impl Fn(&PublicKey) -> WireError,
    ) -> usize {
        let before = self.open.len();
        self.open.retain(|_, entry| {
            if trusted(&entry.host) {
                return true;
            }
            if let Some(revoke) = entry.revoke.take() {
                let _ = revoke.send(refusal(&entry.host));
            }
            false
        });
        before - self.open.len()
    }

    /// The hosts of the open sessions, one for each.
    pub(super) fn hosts(&self) -> impl Iterator<Item = PublicKey> {
        self.open.values().map(|entry| entry.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hospes_protocol::keys::SecretKey;
    use hospes_protocol::ticket::{Issuer, SessionSecret};
    use hospes_protocol::version::Version;

    fn session(n: u8) -> Session {
        Session {
            id: SessionId([n; 16]),
            secret: SessionSecret::new([n; 32]),
            version: Version::V1,
            capabilities: Capabilities::EXEC,
            peer: SecretKey::from_bytes(&[n; 32]).public(),
            machine: [0; 32],
        }
    }

    #[test]
    fn a_ticket_opens_once_while_its_session_lives() {
        let mut sessions = Sessions::default();
        let _revoked = sessions.open(&session(1), 64).unwrap();
        let mut issuer = Issuer::new(SessionId([1; 16]), SessionSecret::new([1; 32]));
        let (first, _) = issuer.issue();
        let (second, _) = issuer.issue();
        assert_eq!(sessions.take(&first).unwrap().1, session(1).peer);
        assert_eq!(sessions.take(&first).unwrap_err().kind, ErrorKind::UNPROVED);
        sessions.close(SessionId([1; 16]));
        assert_eq!(sessions.take(&second).unwrap_err().kind, ErrorKind::STALE_TICKET);
    }

    #[test]
    fn no_more_sessions_than_the_limit_and_an_open_one_is_not_taken_away() {
        let mut sessions = Sessions::default();
        let _one = sessions.open(&session(1), 1).unwrap();
        assert_eq!(sessions.open(&session(2), 1).unwrap_err().kind, ErrorKind::LIMIT);
        assert_eq!(sessions.hosts().collect::<Vec<_>>(), [session(1).peer]);
    }

    #[test]
    fn a_host_that_is_no_longer_trusted_loses_its_session_and_its_tickets() {
        let mut sessions = Sessions::default();
        let mut lost = sessions.open(&session(1), 64).unwrap();
        let mut kept = sessions.open(&session(2), 64).unwrap();
        let gone = session(1).peer;
        let count = sessions.revoke(|key| *key != gone, |_| WireError::new(ErrorKind::UNTRUSTED, "gone"));
        assert_eq!(count, 1);
        assert_eq!(lost.try_recv().unwrap().kind, ErrorKind::UNTRUSTED);
        assert!(kept.try_recv().is_err());
        let (ticket, _) = Issuer::new(SessionId([1; 16]), SessionSecret::new([1; 32])).issue();
        assert_eq!(sessions.take(&ticket).unwrap_err().kind, ErrorKind::STALE_TICKET);
    }
}
