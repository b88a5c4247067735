//! A door for hosts that know only the QEMU guest agent: its protocol, where its own program is not installed.
//!
//! ```text
//!  vsock port 1234, or the port org.qemu.guest_agent.0 ─ objects ─ [command] ─ what is asked ─ reply, in QEMU's spacing
//! ```
//! Nobody proves anything there. What each door lets through is in the policy, `[qga]`, by [`Group`]: on a host where any
//! user may open a guest's vsock port, that is what any user may do.

pub mod command;
pub mod reply;

use serde::{Deserialize, Serialize};

/// The port on virtio-serial, by its name.
pub const SERIAL: &str = "/dev/virtio-ports/org.qemu.guest_agent.0";
/// The vsock port, which vfkit, libkrun, podman machine and crc dial.
pub const PORT: u32 = 1234;
/// Where the agent's own program is, if it is installed.
pub const PROGRAMS: [&str; 2] = ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"];

/// What a door lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// What the guest is.
    Read,
    /// Setting its clock.
    Time,
    /// Shutting it down, restarting it, suspending it.
    Power,
}
