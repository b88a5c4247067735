//! Guest information: what `hospes info` shows and `hospes ip` picks from.

use serde::{Deserialize, Serialize};

/// What a guest says of itself. Every string is the guest's word: the host cleans it before a terminal sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Info {
    /// The guest tools' release.
    pub release: String,
    /// Host name.
    pub hostname: String,
    /// `PRETTY_NAME` of os-release(5).
    pub os: String,
    /// `ID` of os-release(5).
    pub os_id: String,
    /// `VERSION_ID` of os-release(5).
    pub os_version: String,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Architecture, as `uname -m`.
    pub architecture: String,
    /// Random for each boot, from the kernel.
    pub boot_id: String,
    /// Milliseconds since boot, suspended time included.
    pub uptime_ms: u64,
    /// Processors online.
    pub cpus: u32,
    /// Memory in all, KiB.
    pub memory_kib: u64,
    /// Memory that programs could still get, KiB.
    pub available_kib: u64,
    /// Load averages over 1, 5 and 15 minutes, in hundredths.
    pub load: [u32; 3],
    /// Network interfaces, the one with the default route first.
    pub interfaces: Vec<Interface>,
    /// File systems on real storage, by mount point.
    pub disks: Vec<Disk>,
    /// Users with a session.
    pub users: Vec<User>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as colon-separated hexadecimal, or empty.
    pub mac: String,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Whether a default route leaves by it.
    pub default_route: bool,
    /// Its addresses with prefix length, best first: global, then unique-local, then link-local.
    pub addresses: Vec<String>,
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mount_point: String,
    /// Its device or source.
    pub source: String,
    /// Its type.
    pub kind: String,
    /// Bytes in all.
    pub total: u64,
    /// Bytes that an ordinary user may still use.
    pub free: u64,
}

/// A user with a session.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct User {
    /// Name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// The session's terminal, seat or type, or empty.
    pub place: String,
}
