//! Signals by their Linux names and numbers, whatever this machine calls them.

/// Linux's signals, the same on every architecture that guests have. The place is the number.
const LINUX: [&str; 32] = [
    "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The guest's number for one of our signals.
#[must_use]
pub fn linux_number(ours: i32) -> Option<u8> {
    let name = nix::sys::signal::Signal::try_from(ours).ok()?.as_str();
    number(name.strip_prefix("SIG")?)
}

/// Reads a signal: `TERM`, `SIGTERM`, `term`, `15`, `RTMIN+1`.
///
/// # Errors
/// What is wrong with it, as clap tells it.
pub fn parse(text: &str) -> Result<u8, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = || {
        let rest = name.strip_prefix("RTMIN")?;
        let offset: u8 = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        (offset <= 30).then_some(34 + offset)
    };
    let found = number(name).or_else(|| name.parse().ok().filter(|number| (0..=64).contains(number)));
    found
        .or_else(realtime)
        .ok_or_else(|| format!("{text:?} is no signal; it is a name such as TERM or a number"))
}

fn number(name: &str) -> Option<u8> {
    let at = LINUX.iter().position(|known| *known == name && !name.is_empty())?;
    u8::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_linuxs() {
        assert_eq!(parse("TERM"), Ok(15));
        assert_eq!(parse("sigkill"), Ok(9));
        assert_eq!(parse("10"), Ok(10));
        assert_eq!(parse("RTMIN+2"), Ok(36));
        for bad in ["", "SIG", "NOSUCH", "65", "-1", "RTMIN+31"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(linux_number(nix::libc::SIGUSR1), Some(10));
        assert_eq!(linux_number(nix::libc::SIGINT), Some(2));
    }
}
