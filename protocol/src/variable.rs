//! Guest variables: small named values that a host leaves for its guest, and a guest for its host.
//!
//! A name is `[A-Za-z0-9._-]`, at most [`VARIABLE_NAME`] bytes. Names that begin with
//! `guest.` are the guest's to set, by its root alone; every other one is the host's. Each side reads all. A secret can
//! be read once, by the guest's root alone, and is then gone; it is never listed with its value. Variables live in the
//! guest's memory: they survive the daemon and end with the boot.

use serde::{Deserialize, Serialize};

use crate::limits::{VARIABLE_NAME, VARIABLE_VALUE};

/// A variable.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value, any bytes; empty where a secret is listed.
    pub value: Vec<u8>,
    /// Read once, then gone.
    pub secret: bool,
}

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Variable");
        shown.field("name", &self.name).field("secret", &self.secret).field("len", &self.value.len()).finish()
    }
}

/// Why a variable is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// The name is no name.
    #[error("\"{0}\" is no variable name: 1 to 128 of A-Z a-z 0-9 . _ -")]
    Name(String),
    /// The value is too long.
    #[error("The value has {0} bytes, the limit is 65536")]
    Value(usize),
    /// The other side's name.
    #[error("{name} is for the {owner} to set")]
    Owner {
        /// The name.
        name: String,
        /// Whose it is: `guest` or `host`.
        owner: &'static str,
    },
}

/// Who sets a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The host.
    Host,
    /// The guest's root.
    Guest,
}

impl Owner {
    /// Who may set the name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        if name.starts_with("guest.") { Self::Guest } else { Self::Host }
    }
}

/// Holds a name, and that `by` may set it, against the rules.
///
/// # Errors
/// [`VariableError`].
pub fn check_name(name: &str, by: Owner) -> Result<(), VariableError> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > VARIABLE_NAME || !name.bytes().all(valid) {
        return Err(VariableError::Name(name.chars().take(VARIABLE_NAME).collect()));
    }
    match Owner::of(name) {
        owner if owner == by => Ok(()),
        Owner::Guest => Err(VariableError::Owner { name: name.to_owned(), owner: "guest" }),
        Owner::Host => Err(VariableError::Owner { name: name.to_owned(), owner: "host" }),
    }
}

/// Holds a value against its limit.
///
/// # Errors
/// [`VariableError::Value`].
pub const fn check_value(value: &[u8]) -> Result<(), VariableError> {
    if value.len() > VARIABLE_VALUE { Err(VariableError::Value(value.len())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_sets_its_own_names_only() {
        check_name("build.id", Owner::Host).unwrap();
        check_name("guest.ready", Owner::Guest).unwrap();
        assert!(matches!(
            check_name("guest.ready", Owner::Host),
            Err(VariableError::Owner { owner: "guest", .. })
        ));
        assert!(matches!(
            check_name("build.id", Owner::Guest),
            Err(VariableError::Owner { owner: "host", .. })
        ));
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(129)] {
            assert!(matches!(check_name(bad, Owner::Host), Err(VariableError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn a_secret_does_not_show_in_debug_output() {
        let variable = Variable { name: "token".into(), value: b"hunter2".to_vec(), secret: true };
        assert!(!format!("{variable:?}").contains("hunter2") && !format!("{variable:?}").contains("104"));
    }
}
