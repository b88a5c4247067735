//! Identity keys: Ed25519, one of the host's and one of the guest's, known to people by a fingerprint.

use std::fmt;
use std::string::String;

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hex;

/// A public key as it stands in a hello, a file or a pin. Whether it is a valid point is found out when a signature
/// is checked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

/// Why text is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Not a Hospes key: expected \"hospes-ed25519 \" and 64 hexadecimal digits")]
pub struct KeyTextError;

impl PublicKey {
    const PREFIX: &'static str = "hospes-ed25519";

    /// The key as one line of text, as trust files and `hospes key show` have it.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{} {}", Self::PREFIX, hex::encode(&self.0))
    }

    /// Reads [`to_text`](Self::to_text)'s form; what follows the digits is a comment.
    ///
    /// # Errors
    /// [`KeyTextError`].
    pub fn from_text(text: &str) -> Result<Self, KeyTextError> {
        let mut words = text.split_whitespace();
        if words.next() != Some(Self::PREFIX) {
            return Err(KeyTextError);
        }
        let digits = words.next().ok_or(KeyTextError)?.as_bytes();
        let mut key = [0; 32];
        if digits.len() != 64 {
            return Err(KeyTextError);
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0]).zip(nibble(pair[1])).map(|(h, l)| h << 4 | l).ok_or(KeyTextError)?;
        }
        Ok(Self(key))
    }

    /// The key's fingerprint: `SHA256:` and the first 16 bytes of its digest, in groups that people can compare.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(self.0);
        let groups: Vec<String> = digest[..16].chunks(4).map(hex::encode).collect();
        format!("SHA256:{}", groups.join("-"))
    }

    /// Whether `signature` is this key's over `message`. Strict: small-order keys and malleable forms are refused.
    pub(crate) fn verifies(&self, message: &[u8], signature: &SignatureBytes) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(message, &Signature::from_bytes(&signature.to_array())).is_ok()
        })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

/// A secret key. Its bytes are wiped when it is dropped and never printed.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key from 32 random bytes.
    #[must_use]
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The 32 bytes, to be written to a file of mode 0600.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Its public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> SignatureBytes {
        use ed25519_dalek::Signer;
        SignatureBytes::from_array(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// A signature's 64 bytes, in two halves because serde's arrays end at 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignatureBytes([u8; 32], [u8; 32]);

impl SignatureBytes {
    fn from_array(bytes: [u8; 64]) -> Self {
        let mut halves = Self([0; 32], [0; 32]);
        halves.0.copy_from_slice(&bytes[..32]);
        halves.1.copy_from_slice(&bytes[32..]);
        halves
    }

    fn to_array(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..].copy_from_slice(&self.1);
        bytes
    }
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_and_ignores_the_comment() {
        let key = SecretKey::from_bytes(&[7; 32]).public();
        assert_eq!(PublicKey::from_text(&format!("{} someone@laptop", key.to_text())), Ok(key));
        assert_eq!(PublicKey::from_text("hospes-ed25519 zz"), Err(KeyTextError));
        assert_eq!(PublicKey::from_text("ssh-ed25519 AAAA"), Err(KeyTextError));
    }
}
