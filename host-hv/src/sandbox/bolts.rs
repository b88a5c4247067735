//! What is given up besides files: capabilities, privileges, calls.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::{Purpose, SandboxError, calls};

/// What acting as a share's owner takes, and making what raw owners make (`fuse/sys/identity.rs`).
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

pub(super) fn drop_capabilities(keep: bool) -> Result<(), SandboxError> {
    let kept = if keep { KEPT } else { CapabilitySet::empty() };
    drop_all_but(kept).map_err(|error| SandboxError::Capabilities(error.into()))
}

fn drop_all_but(kept: CapabilitySet) -> Result<(), rustix::io::Errno> {
    let now = capabilities(None)?;
    for capability in CapabilitySet::all().iter() {
        // A user without rights has none to drop, and may not drop them for its children either.
        let may = now.effective.contains(CapabilitySet::SETPCAP);
        if may && !kept.contains(capability) && capability_is_in_bounding_set(capability).unwrap_or(false) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    clear_ambient_capability_set()?;
    let effective = now.effective & kept;
    let permitted = now.permitted & kept;
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })
}

pub(super) fn no_new_privileges() -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(|error| SandboxError::Privileges(error.into()))
}

/// As much as this kernel's Landlock knows of what is not needed. For folders that is nothing about files: with any rule
/// about them it also refuses to move or link one into another directory, unless a rule allows that beneath a given
/// folder, and rules for shares that come later could not be added.
pub(super) fn landlock(purpose: Purpose) -> Result<(), SandboxError> {
    let rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let rules = match purpose {
        Purpose::Folders => Ok(rules),
        Purpose::Streams => rules.handle_access(AccessFs::from_all(ABI::V5)),
    };
    let status = rules
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI::V4)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(SandboxError::Landlock)?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(SandboxError::NoLandlock),
        _ => Ok(()),
    }
}

pub(super) fn filter(purpose: Purpose) -> Result<(), SandboxError> {
    let program = calls::program(purpose).map_err(|error| SandboxError::Seccomp(error.into()))?;
    seccompiler::apply_filter(&program).map_err(SandboxError::Seccomp)
}
