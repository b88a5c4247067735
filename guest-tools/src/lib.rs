//! Hospes in the guest: the root daemon, the per-user worker and the in-guest command.

pub mod handoff;
