//! A VM as its user knows it: a name, and where it is reached.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;

/// A VM's name: 1 to 63 letters, digits, dots, dashes and underscores, the first a letter. So it is no number, no
/// path, no option, and safe in a terminal and as a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// Why text is no VM name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Not a VM name: {text:?}")]
pub struct VmNameError {
    /// The text.
    pub text: String,
}

impl VmNameError {
    /// What a name may be.
    pub const HINT: &'static str =
        "A name is 1 to 63 letters, digits, dots, dashes and underscores, and begins with a letter";
}

impl VmName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = VmNameError;

    fn from_str(text: &str) -> Result<Self, VmNameError> {
        let inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let good = text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(inner);
        if good { Ok(Self(text.to_owned())) } else { Err(VmNameError { text: text.to_owned() }) }
    }
}

impl TryFrom<String> for VmName {
    type Error = VmNameError;

    fn try_from(text: String) -> Result<Self, VmNameError> {
        text.parse()
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A VM's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its name.
    pub name: VmName,
    /// What its file says.
    pub spec: VmSpec,
}

/// What a VM's file says. Unknown keys are left alone, so that a newer release's file still works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// How it is reached.
    pub endpoint: Endpoint,
    /// The guest user for whom commands run where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The control socket of the VM's device on this machine, where it has one of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hv: Option<std::path::PathBuf>,
    /// The VMM's own socket for machines (QMP), where the agent is to be told of what it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<std::path::PathBuf>,
    /// Whether the agent shares this machine's clipboard with the guest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clipboard: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_everywhere_they_are_used() {
        for good in ["dev", "a", "Build-2.arm_64", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in ["", "1", "-x", ".hidden", "a/b", "a b", "a\u{1b}[31m", "ä", "..", &"x".repeat(64)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad}");
        }
    }
}
