//! The guest's package in the lab's guest.

use std::time::Duration;

use anyhow::Result;

use crate::{Guest, GuestSpec, Lab};

/// A guest in which apt has installed hospes-tools. The vsock device comes after it, and starts the daemon.
pub fn with_tools(name: &str) -> Result<GuestSpec> {
    Ok(GuestSpec::new(name).installed(Lab::package()?))
}

/// Waits for the daemon, which starts with no further step.
pub fn tools_started(guest: &Guest) -> Result<()> {
    guest.wait_until("systemctl is-active hospes-toolsd", Duration::from_secs(60)).map(drop)
}
