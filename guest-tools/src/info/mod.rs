//! What this guest says of itself, and when it changes.

mod disks;
mod monitor;
mod network;
mod system;
mod users;

use hospes_protocol::info::{Info, User};

pub use monitor::Monitor;

/// Reads everything now. What cannot be read is left empty: a guest with a broken part still answers for the rest.
#[must_use]
pub fn collect() -> Info {
    let mut info = Info { release: env!("CARGO_PKG_VERSION").into(), ..Info::default() };
    system::fill(&mut info);
    info.interfaces = network::interfaces();
    info.disks = disks::mounted();
    info.users = users::with_sessions();
    info
}

/// Users with a session, and when each began, in seconds since 1970.
#[must_use]
pub fn logged_in() -> Vec<(User, f64)> {
    users::logged_in()
}

/// A value of os-release(5), or nothing.
#[must_use]
pub fn os_release(name: &str) -> String {
    system::assigned(&read("/etc/os-release"), name).unwrap_or_default()
}

/// The information without what changes all the time, to see whether there is news.
fn without_gauges(info: &Info) -> Info {
    let mut still = Info { uptime_ms: 0, available_kib: 0, load: [0; 3], ..info.clone() };
    for disk in &mut still.disks {
        disk.free = 0;
    }
    still
}

/// A file of the kernel's or the system's, or nothing.
fn read(path: &str) -> String {
    /// Bytes: the longest is a routing table.
    const FILE: u64 = 4 * 1024 * 1024;
    crate::atomic_file::read_text(std::path::Path::new(path), FILE).ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_that_runs_this_has_a_kernel_memory_and_processors() {
        let info = collect();
        assert!(!info.kernel.is_empty() && !info.architecture.is_empty() && !info.boot_id.is_empty());
        assert!(info.memory_kib > 0 && info.available_kib > 0 && info.available_kib <= info.memory_kib);
        assert!(info.cpus > 0 && info.uptime_ms > 0);
    }

    #[test]
    fn gauges_are_no_news_and_an_address_is() {
        let mut info = collect();
        let before = without_gauges(&info);
        info.uptime_ms += 1000;
        info.load[0] += 7;
        assert_eq!(without_gauges(&info), before);
        info.hostname.push('x');
        assert_ne!(without_gauges(&info), before);
    }
}
