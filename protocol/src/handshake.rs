//! The handshake: host and guest prove who they are and agree on a session secret.
//!
//! ```text
//! host                                                        guest
//!  | CLIENT_HELLO  versions, capabilities, host key, X25519 share, nonce
//!  |------------------------------------------------------------>|
//!  |               version, capabilities, guest key, X25519 share, nonce,
//!  |               session id, machine id, guest's signature     |
//!  |<------------------------------------------------------------| SERVER_HELLO
//!  | CLIENT_AUTH   host's signature                              |
//!  | … and at once the first operation                           |
//!  |------------------------------------------------------------>|
//!  |                                               READY, or FAILED with both fingerprints
//!  |<------------------------------------------------------------|
//! ```
//! Both sign `SHA-256(CLIENT_HELLO ‖ SERVER_HELLO without its signature)` under a label of their own (this is the SIGMA
//! pattern). The transcript holds both public keys, so a signature made for one guest proves nothing to another and
//! nothing can be relayed. The session secret is HKDF-SHA256 of the X25519 result, salted with the transcript: it makes
//! [tickets](crate::ticket). The bytes that follow are not encrypted: vsock ends at the VMM, which could read the
//! guest's memory anyway.
//!
//! Both machines are pure: random bytes are an argument, and who is trusted is the caller's decision, taken after the
//! signature held.

use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey as Share, StaticSecret};

use crate::codec;
use crate::error::{ErrorKind, WireError};
use crate::frame::{self, FrameId};
use crate::keys::{PublicKey, SecretKey, SignatureBytes};
use crate::ticket::SessionSecret;
use crate::version::{Capabilities, Version};

const GUEST_LABEL: &[u8] = b"hospes 1 guest proves itself\0";
const HOST_LABEL: &[u8] = b"hospes 1 host proves itself\0";

/// A session's name: random, chosen by the guest, no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(pub [u8; 16]);

/// The host's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHello {
    /// Versions it speaks.
    pub versions: Vec<Version>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Its identity.
    pub host_key: PublicKey,
    /// Its X25519 share, fresh for this connection.
    pub share: [u8; 32],
    /// Random bytes, fresh for this connection.
    pub nonce: [u8; 32],
}

/// The guest's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerHello {
    /// What the guest's signature covers.
    pub body: ServerHelloBody,
    /// The guest's signature over the transcript.
    pub signature: SignatureBytes,
}

/// What the guest's signature covers, with the client's hello before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerHelloBody {
    /// The version of this connection.
    pub version: Version,
    /// What the guest can do and its policy has not switched off.
    pub capabilities: Capabilities,
    /// Its identity.
    pub guest_key: PublicKey,
    /// Its X25519 share, fresh for this connection.
    pub share: [u8; 32],
    /// Random bytes, fresh for this connection.
    pub nonce: [u8; 32],
    /// The session that this handshake opens.
    pub session: SessionId,
    /// SHA-256 of the guest's machine id under a label, so that a clone of a pinned image is recognised as another
    /// machine, and the machine id itself stays in the guest.
    pub machine: [u8; 32],
}

/// The host's proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAuth {
    /// The host's signature over the transcript.
    pub signature: SignatureBytes,
}

/// The guest trusts the host: the session is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The guest tools' release, for people.
    pub release: String,
    /// True where this connection made the guest pin the host's key (first use).
    pub first_use: bool,
}

/// A guest's hint on the host's announce port that it is there. It proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// The guest's host name.
    pub hostname: String,
    /// Its identity, to be proved when the host dials back.
    pub guest_key: PublicKey,
}

/// Why a handshake ends without a session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// A frame of the handshake does not decode.
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    /// No version in common.
    #[error("No protocol version in common: the peer speaks {theirs:?}, this side {ours:?}")]
    Version {
        /// What the peer offered or chose.
        theirs: Vec<Version>,
        /// What this side speaks.
        ours: &'static [Version],
    },
    /// The peer's signature does not hold.
    #[error("The peer does not hold the key {0} that it showed")]
    Unproved(PublicKey),
    /// The peer's X25519 share is of small order: it would make the secret guessable.
    #[error("The peer's key share is not valid")]
    Share,
}

impl HandshakeError {
    /// The error as the peer is told.
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        match self {
            Self::Codec(_) | Self::Share => WireError::protocol(self),
            Self::Version { .. } => {
                WireError::new(ErrorKind::VERSION, self).hint("Upgrade the older of host and guest tools")
            }
            Self::Unproved(_) => WireError::new(ErrorKind::UNPROVED, self),
        }
    }
}

/// A session as both ends know it after the handshake.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// What tickets are made with.
    pub secret: SessionSecret,
    /// The version agreed.
    pub version: Version,
    /// The capabilities that both have.
    pub capabilities: Capabilities,
    /// The other end's identity, proved.
    pub peer: PublicKey,
    /// The guest's machine, as [`ServerHelloBody::machine`].
    pub machine: [u8; 32],
}

/// Fresh random bytes for one handshake, and never for a second.
pub struct Entropy {
    /// Becomes the X25519 secret.
    pub share: [u8; 32],
    /// Becomes the nonce.
    pub nonce: [u8; 32],
    /// Becomes the session's name (the guest's only).
    pub session: [u8; 16],
}

/// The host's half.
pub struct Host<'k> {
    key: &'k SecretKey,
    secret: StaticSecret,
    hello: Vec<u8>,
    capabilities: Capabilities,
}

impl<'k> Host<'k> {
    /// Begins: appends the client's hello to `out`.
    pub fn start(
        key: &'k SecretKey,
        capabilities: Capabilities,
        entropy: &Entropy,
        out: &mut Vec<u8>,
    ) -> Self {
        let secret = StaticSecret::from(entropy.share);
        let message = ClientHello {
            versions: Version::SUPPORTED.to_vec(),
            capabilities,
            host_key: key.public(),
            share: Share::from(&secret).to_bytes(),
            nonce: entropy.nonce,
        };
        let mut hello = Vec::new();
        codec::encode_into(&message, &mut hello);
        frame::put_raw(FrameId::CLIENT_HELLO, 0, &hello, out);
        Self { key, secret, hello, capabilities }
    }

    /// The guest's hello arrived: checks its proof and appends ours to `out`. The caller then decides whether it knows
    /// [`Session::peer`]; the host sends nothing more to a guest it does not know.
    ///
    /// # Errors
    /// [`HandshakeError`]; the connection cannot go on.
    pub fn finish(self, payload: &[u8], out: &mut Vec<u8>) -> Result<Session, HandshakeError> {
        let ServerHello { body, signature } = codec::decode(payload)?;
        if !Version::SUPPORTED.contains(&body.version) {
            return Err(HandshakeError::Version { theirs: vec![body.version], ours: Version::SUPPORTED });
        }
        let transcript = transcript(&self.hello, &body);
        if !body.guest_key.verifies(&labelled(GUEST_LABEL, &transcript), &signature) {
            return Err(HandshakeError::Unproved(body.guest_key));
        }
        let secret = secret(&self.secret, body.share, &transcript)?;
        let signature = self.key.sign(&labelled(HOST_LABEL, &transcript));
        frame::put(FrameId::CLIENT_AUTH, &ClientAuth { signature }, out);
        Ok(Session {
            id: body.session,
            secret,
            version: body.version,
            capabilities: body.capabilities.common(self.capabilities),
            peer: body.guest_key,
            machine: body.machine,
        })
    }
}

/// The guest's half, after its hello.
pub struct Guest {
    transcript: [u8; 32],
    session: Session,
}

impl Guest {
    /// The host's hello arrived: answers it into `out`.
    ///
    /// # Errors
    /// [`HandshakeError`]; the connection cannot go on.
    pub fn answer(
        payload: &[u8],
        key: &SecretKey,
        machine: [u8; 32],
        capabilities: Capabilities,
        entropy: &Entropy,
        out: &mut Vec<u8>,
    ) -> Result<Self, HandshakeError> {
        let hello: ClientHello = codec::decode(payload)?;
        let version = Version::choose(&hello.versions).ok_or_else(|| HandshakeError::Version {
            theirs: hello.versions.iter().copied().take(crate::limits::VERSIONS).collect(),
            ours: Version::SUPPORTED,
        })?;
        let ours = StaticSecret::from(entropy.share);
        let body = ServerHelloBody {
            version,
            capabilities,
            guest_key: key.public(),
            share: Share::from(&ours).to_bytes(),
            nonce: entropy.nonce,
            session: SessionId(entropy.session),
            machine,
        };
        let transcript = transcript(payload, &body);
        let secret = secret(&ours, hello.share, &transcript)?;
        let signature = key.sign(&labelled(GUEST_LABEL, &transcript));
        let session = Session {
            id: body.session,
            secret,
            version,
            capabilities: capabilities.common(hello.capabilities),
            peer: hello.host_key,
            machine,
        };
        frame::put(FrameId::SERVER_HELLO, &ServerHello { body, signature }, out);
        Ok(Self { transcript, session })
    }

    /// The key that the host says it has, which is not proved yet.
    #[must_use]
    pub const fn claimed(&self) -> &PublicKey {
        &self.session.peer
    }

    /// The host's proof arrived. The caller then decides whether it trusts [`Session::peer`], and answers
    /// [`Ready`] or `FAILED`.
    ///
    /// # Errors
    /// [`HandshakeError`]; the connection cannot go on.
    pub fn finish(self, payload: &[u8]) -> Result<Session, HandshakeError> {
        let ClientAuth { signature } = codec::decode(payload)?;
        if !self.session.peer.verifies(&labelled(HOST_LABEL, &self.transcript), &signature) {
            return Err(HandshakeError::Unproved(self.session.peer));
        }
        Ok(self.session)
    }
}

/// The machine id as it is shown to hosts and as pins are bound to it.
#[must_use]
pub fn machine_digest(machine_id: &str) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(b"hospes machine\0");
    digest.update(machine_id.trim().as_bytes());
    digest.finalize().into()
}

fn transcript(client_hello: &[u8], body: &ServerHelloBody) -> [u8; 32] {
    let mut encoded = Vec::new();
    codec::encode_into(body, &mut encoded);
    let mut digest = Sha256::new();
    // Lengths first, so that no byte can move from one part to the other.
    digest.update((client_hello.len() as u64).to_le_bytes());
    digest.update(client_hello);
    digest.update(&encoded);
    digest.finalize().into()
}

fn labelled(label: &[u8], transcript: &[u8; 32]) -> Vec<u8> {
    [label, transcript].concat()
}

fn secret(
    ours: &StaticSecret,
    theirs: [u8; 32],
    transcript: &[u8; 32],
) -> Result<SessionSecret, HandshakeError> {
    let shared = ours.diffie_hellman(&Share::from(theirs));
    if !shared.was_contributory() {
        return Err(HandshakeError::Share);
    }
    let mut secret = [0; 32];
    #[expect(clippy::expect_used, reason = "32 bytes are within HKDF-SHA256's 8160")]
    Hkdf::<Sha256>::new(Some(transcript), shared.as_bytes())
        .expand(b"hospes 1 session", &mut secret)
        .expect("32 bytes is a valid output length");
    Ok(SessionSecret::new(secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameBuffer;

    fn entropy(n: u8) -> Entropy {
        Entropy { share: [n; 32], nonce: [n ^ 0x55; 32], session: [n; 16] }
    }

    fn payload(wire: &[u8]) -> Vec<u8> {
        let mut buffer = FrameBuffer::new();
        buffer.push(wire);
        buffer.take().unwrap().unwrap().payload.to_vec()
    }

    fn caps() -> Capabilities {
        Capabilities::EXEC.with(Capabilities::COPY)
    }

    #[test]
    fn both_ends_agree_on_the_secret_and_know_each_other() {
        let (host_key, guest_key) = (SecretKey::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]));
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        let host = Host::start(&host_key, caps(), &entropy(3), &mut a);
        let guest = Guest::answer(
            &payload(&a),
            &guest_key,
            machine_digest("m"),
            Capabilities::EXEC,
            &entropy(4),
            &mut b,
        )
        .unwrap();
        let ours = host.finish(&payload(&b), &mut c).unwrap();
        let theirs = guest.finish(&payload(&c)).unwrap();
        assert_eq!(ours.peer, guest_key.public());
        assert_eq!(theirs.peer, host_key.public());
        assert_eq!(ours.secret.bytes(), theirs.secret.bytes());
        assert_eq!(ours.capabilities, Capabilities::EXEC);
        assert_eq!(ours.id, theirs.id);
    }

    #[test]
    fn a_guest_that_relays_anothers_hello_is_found_out() {
        let host_key = SecretKey::from_bytes(&[1; 32]);
        let victim = SecretKey::from_bytes(&[2; 32]);
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        let host = Host::start(&host_key, caps(), &entropy(3), &mut a);
        // The relay must open its own connection to the victim: its hello differs, so the victim's signature does too.
        let relay_key = SecretKey::from_bytes(&[9; 32]);
        let _relay = Host::start(&relay_key, caps(), &entropy(8), &mut c);
        let _ = Guest::answer(&payload(&c), &victim, [0; 32], caps(), &entropy(4), &mut b).unwrap();
        assert!(matches!(host.finish(&payload(&b), &mut Vec::new()), Err(HandshakeError::Unproved(_))));
    }

    #[test]
    fn every_flipped_byte_of_the_servers_hello_is_refused() {
        let (host_key, guest_key) = (SecretKey::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let _ = Host::start(&host_key, caps(), &entropy(3), &mut a);
        Guest::answer(&payload(&a), &guest_key, [5; 32], caps(), &entropy(4), &mut b).unwrap();
        let good = payload(&b);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let host = Host::start(&host_key, caps(), &entropy(3), &mut Vec::new());
            assert!(host.finish(&bad, &mut Vec::new()).is_err(), "byte {at} may be changed unnoticed");
        }
    }

    #[test]
    fn a_host_without_the_key_it_shows_is_refused() {
        let guest_key = SecretKey::from_bytes(&[2; 32]);
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        let liar = SecretKey::from_bytes(&[6; 32]);
        let host = Host::start(&liar, caps(), &entropy(3), &mut a);
        let mut hello: ClientHello = codec::decode(&payload(&a)).unwrap();
        hello.host_key = SecretKey::from_bytes(&[1; 32]).public();
        let mut forged = Vec::new();
        codec::encode_into(&hello, &mut forged);
        let guest = Guest::answer(&forged, &guest_key, [0; 32], caps(), &entropy(4), &mut b).unwrap();
        // The host's own transcript differs from the forged one, so even reaching this point takes a colluding guest.
        assert!(host.finish(&payload(&b), &mut c).is_err());
        let mut auth = Vec::new();
        codec::encode_into(&ClientAuth { signature: liar.sign(b"anything") }, &mut auth);
        assert!(matches!(guest.finish(&auth), Err(HandshakeError::Unproved(_))));
    }

    #[test]
    fn a_small_order_share_is_refused() {
        let (host_key, guest_key) = (SecretKey::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]));
        let mut a = Vec::new();
        let _ = Host::start(&host_key, caps(), &entropy(3), &mut a);
        let mut hello: ClientHello = codec::decode(&payload(&a)).unwrap();
        hello.share = [0; 32];
        let mut zero = Vec::new();
        codec::encode_into(&hello, &mut zero);
        let answer = Guest::answer(&zero, &guest_key, [0; 32], caps(), &entropy(4), &mut Vec::new());
        assert!(matches!(answer.err(), Some(HandshakeError::Share)));
    }

    #[test]
    fn hosts_from_another_age_are_told_which_versions_there_are() {
        let guest_key = SecretKey::from_bytes(&[2; 32]);
        let hello = ClientHello {
            versions: vec![Version(900)],
            capabilities: caps(),
            host_key: PublicKey([0; 32]),
            share: [9; 32],
            nonce: [0; 32],
        };
        let mut bytes = Vec::new();
        codec::encode_into(&hello, &mut bytes);
        let error =
            Guest::answer(&bytes, &guest_key, [0; 32], caps(), &entropy(4), &mut Vec::new()).err().unwrap();
        assert_eq!(error.to_wire().kind, ErrorKind::VERSION);
        assert!(error.to_string().contains("900"), "{error}");
    }
}
