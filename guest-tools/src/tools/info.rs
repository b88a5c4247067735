//! `hospes-tools info`: the host's view of this guest, seen from within.

use std::io::Write;

use clap::Args;

use super::json;
use crate::audit::printable;
use crate::info;

/// What this guest tells its host: system, addresses, disks, users, load.
#[derive(Debug, Args)]
pub(super) struct Info {
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(super) fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        let info = info::collect();
        if self.json {
            json(&info, out)?;
            return Ok(0);
        }
        let text = |text: &str| printable(text.as_bytes());
        writeln!(out, "Host name  {}", text(&info.hostname))?;
        writeln!(out, "System     {}", text(&info.os))?;
        writeln!(out, "Kernel     {} {}", text(&info.kernel), info.architecture)?;
        writeln!(out, "Up         {}", duration(info.uptime_ms / 1000))?;
        let [one, five, fifteen] = info.load.map(|load| format!("{}.{:02}", load / 100, load % 100));
        writeln!(out, "Load       {one} {five} {fifteen} on {} processors", info.cpus)?;
        writeln!(
            out,
            "Memory     {} of {} MiB available",
            info.available_kib / 1024,
            info.memory_kib / 1024
        )?;
        for interface in &info.interfaces {
            let state = match (interface.up, interface.default_route) {
                (false, _) => "down",
                (true, true) => "default route",
                (true, false) => "up",
            };
            let addresses = interface.addresses.join(" ");
            let line =
                format!("Network    {} ({state}) {} {addresses}", text(&interface.name), interface.mac);
            writeln!(out, "{}", line.trim_end())?;
        }
        for disk in &info.disks {
            let (point, source) = (text(&disk.mount_point), text(&disk.source));
            let (free, total) = (disk.free >> 20, disk.total >> 20);
            writeln!(
                out,
                "Disk       {point} {free} of {total} MiB free ({} on {source})",
                text(&disk.kind)
            )?;
        }
        for user in &info.users {
            let line = format!("User       {} ({}) {}", text(&user.name), user.uid, text(&user.place));
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out, "Tools      {}", info.release)?;
        Ok(0)
    }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min"),
        (0, _) => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours} h"),
    }
}
