//! `hospes info`

use clap::Parser;
use hospes_protocol::info::Info as GuestInfo;
use serde::Serialize;

use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::control;
use crate::printable;
use crate::ui;
use crate::vm::VmName;

/// Show what a guest is: system, addresses, memory, disks, users
///
/// With --json: {"vm", "release", "hostname", "os", "os_id", "os_version", "kernel", "architecture", "boot_id",
/// "uptime_ms", "cpus", "memory_kib", "available_kib", "load": [hundredths over 1, 5, 15 minutes], "interfaces":
/// [{"name", "mac", "up", "default_route", "addresses"}], "disks": [{"mount_point", "source", "kind", "total", "free"}
/// in bytes], "users": [{"name", "uid", "place"}]}. All of it is the guest's own word.
#[derive(Debug, Parser)]
pub struct Info {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Serialize)]
struct Told<'i> {
    vm: &'i VmName,
    #[serde(flatten)]
    info: &'i GuestInfo,
}

impl Verb for Info {
    const NAME: &'static str = "info";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let info = control::info(&self.reach.client(&self.vm)?)?;
        if self.json {
            ui::json(&Told { vm: &self.vm, info: &info })?;
        } else {
            ui::line(text(&self.vm, &info))?;
        }
        Ok(0)
    }
}

fn text(vm: &VmName, info: &GuestInfo) -> String {
    let mut lines = Vec::new();
    let mut say = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:<12} {value}"));
        }
    };
    let clean = |text: &str| printable::line(text).into_owned();
    say("VM", vm.to_string());
    say("Host name", clean(&info.hostname));
    say("System", clean(&info.os));
    say("Kernel", clean(&format!("{} {}", info.kernel, info.architecture)));
    say("Guest tools", clean(&info.release));
    say("Up", uptime(info.uptime_ms));
    let [one, five, fifteen] = info.load.map(|load| f64::from(load) / 100.0);
    say("Processors", format!("{}, load {one:.2} {five:.2} {fifteen:.2}", info.cpus));
    let used = info.memory_kib.saturating_sub(info.available_kib);
    say("Memory", format!("{} of {} in use", size(used << 10), size(info.memory_kib << 10)));
    for interface in &info.interfaces {
        let state = if interface.up { "" } else { " (down)" };
        say("Network", clean(&format!("{}{state} {}", interface.name, interface.addresses.join(" "))));
    }
    for disk in &info.disks {
        let used = size(disk.total.saturating_sub(disk.free));
        say(
            "Disk",
            clean(&format!("{} {used} of {} in use ({})", disk.mount_point, size(disk.total), disk.kind)),
        );
    }
    for user in &info.users {
        say("User", clean(format!("{} {}", user.name, user.place).trim_end()));
    }
    lines.join("\n")
}

/// Bytes for people.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut scale = 1u64;
    while unit + 1 < UNITS.len() && bytes / scale >= 1024 {
        scale *= 1024;
        unit += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let value = bytes as f64 / scale as f64;
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn uptime(ms: u64) -> String {
    let minutes = ms / 60_000;
    let (days, hours, minutes) = (minutes / 1440, minutes / 60 % 24, minutes % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min"),
        (0, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_guest_is_shown_without_effect() {
        let info = GuestInfo {
            hostname: "\u{1b}]0;x\u{7}".to_owned(),
            memory_kib: u64::MAX >> 10,
            uptime_ms: u64::MAX,
            load: [u32::MAX; 3],
            ..GuestInfo::default()
        };
        let text = text(&"dev".parse().unwrap(), &info);
        assert!(text.chars().all(|c| c == '\n' || printable::is_plain(c)), "{text}");
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(
            (size(1023), size(1024), size(1536 << 20)),
            ("1023 B".into(), "1.0 KiB".into(), "1.5 GiB".into())
        );
        assert!(size(u64::MAX).ends_with("TiB"));
    }
}
