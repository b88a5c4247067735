//! The operating system, the kernel, memory and load.

use hospes_protocol::info::Info;
use nix::time::ClockId;
use nix::unistd::SysconfVar;

use super::read;

pub(super) fn fill(info: &mut Info) {
    if let Ok(name) = nix::sys::utsname::uname() {
        info.hostname = name.nodename().to_string_lossy().into_owned();
        info.kernel = name.release().to_string_lossy().into_owned();
        info.architecture = name.machine().to_string_lossy().into_owned();
    }
    // os-release(5): the second is for a system that has no /etc of its own.
    let mut release = read("/etc/os-release");
    if release.is_empty() {
        release = read("/usr/lib/os-release");
    }
    info.os = assigned(&release, "PRETTY_NAME").unwrap_or_else(|| "Linux".into());
    info.os_id = assigned(&release, "ID").unwrap_or_else(|| "linux".into());
    info.os_version = assigned(&release, "VERSION_ID").unwrap_or_default();
    info.boot_id = read("/proc/sys/kernel/random/boot_id").trim().into();
    if let Ok(up) = nix::time::clock_gettime(ClockId::CLOCK_BOOTTIME) {
        info.uptime_ms = u64::try_from(up.tv_sec()).unwrap_or(0) * 1000
            + u64::try_from(up.tv_nsec()).unwrap_or(0) / 1_000_000;
    }
    let online = nix::unistd::sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    info.cpus = online.and_then(|count| u32::try_from(count).ok()).unwrap_or(1);
    let memory = read("/proc/meminfo");
    info.memory_kib = meminfo(&memory, "MemTotal:");
    info.available_kib = meminfo(&memory, "MemAvailable:");
    info.load = load(&read("/proc/loadavg"));
}

/// The value of an assignment in an os-release(5) or os-release-like file, its quotes taken away.
pub(super) fn assigned(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?.trim();
    let quoted = |mark| value.strip_prefix(mark).and_then(|rest: &str| rest.strip_suffix(mark));
    Some(match quoted('"') {
        // Within double quotes a backslash takes the meaning from `"`, `$`, a backquote and itself.
        Some(inner) => {
            let mut plain = String::new();
            let mut characters = inner.chars();
            while let Some(c) = characters.next() {
                plain.push(if c == '\\' { characters.next().unwrap_or(c) } else { c });
            }
            plain
        }
        None => quoted('\'').unwrap_or(value).to_owned(),
    })
}

fn meminfo(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Averages in hundredths, read as digits: a float would round them.
fn load(text: &str) -> [u32; 3] {
    let mut load = [0; 3];
    for (average, word) in load.iter_mut().zip(text.split_whitespace()) {
        let (whole, hundredths) = word.split_once('.').unwrap_or((word, "0"));
        let parsed = whole.parse::<u32>().ok().zip(hundredths.parse::<u32>().ok());
        *average = parsed.map_or(0, |(whole, part)| whole.saturating_mul(100).saturating_add(part));
    }
    load
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_lose_their_quotes() {
        let text = "NAME=\"Debian GNU/Linux\"\nID=debian\nPRETTY_NAME='Plain'\nODD=\"a \\\"b\\\" \\\\\"\nVERSION_IDX=1\n";
        assert_eq!(assigned(text, "NAME").unwrap(), "Debian GNU/Linux");
        assert_eq!(assigned(text, "ID").unwrap(), "debian");
        assert_eq!(assigned(text, "PRETTY_NAME").unwrap(), "Plain");
        assert_eq!(assigned(text, "ODD").unwrap(), "a \"b\" \\");
        assert_eq!(assigned(text, "VERSION_ID"), None);
    }

    #[test]
    fn load_and_memory_are_read_as_the_kernel_writes_them() {
        assert_eq!(load("0.07 12.30 1.00 1/123 4567\n"), [7, 1230, 100]);
        assert_eq!(load(""), [0; 3]);
        assert_eq!(meminfo("MemTotal:        2048 kB\nMemFree: 1 kB\n", "MemTotal:"), 2048);
    }
}
