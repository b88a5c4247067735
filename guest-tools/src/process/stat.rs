//! `/proc/PID/stat`, from `proc_pid_stat(5)`.

use std::fs::File;
use std::io::Read;

/// What we want of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The program's name, at most 15 bytes, whatever bytes.
    pub(crate) name: Vec<u8>,
    /// State letter.
    pub(crate) state: u8,
    /// Parent.
    pub(crate) parent: i32,
    /// Process group.
    pub(crate) group: i32,
    /// Session.
    pub(crate) session: i32,
    /// CPU time in user mode and in the kernel, clock ticks.
    pub(crate) cpu: u64,
    /// Started, clock ticks after boot: with the pid, it names one process for ever.
    pub(crate) start: u64,
    /// Resident set, pages.
    pub(crate) rss: u64,
}

impl Stat {
    /// Reads a process's, unless it is gone.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let mut buffer = [0; 1024];
        let mut file = File::open(format!("/proc/{pid}/stat")).ok()?;
        let n = file.read(&mut buffer).ok()?;
        Self::parse(&buffer[..n])
    }

    /// Reads the file's text. The name is in parentheses and may hold any byte, parentheses too.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let name = text.get(open + 1..close)?.to_vec();
        let rest = str::from_utf8(text.get(close + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        // Counted as the manual counts: the state is field 3.
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        let user: u64 = fields.nth(7)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let start = fields.nth(6)?.parse().ok()?;
        let rss = fields.nth(1)?.parse().unwrap_or(0);
        Some(Self { name, state, parent, group, session, cpu: user.saturating_add(system), start, rss })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let text = b"42 (a) b) (c) S 1 40 39 34816 42 4194560 1 2 3 4 50 6 7 8 20 0 1 0 9000 1000 77 18446744073709551615";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.name, b"a) b) (c");
        assert_eq!((stat.state, stat.parent, stat.group, stat.session), (b'S', 1, 40, 39));
        assert_eq!((stat.cpu, stat.start, stat.rss), (56, 9000, 77));
    }

    #[test]
    fn our_own_can_be_read() {
        let own = Stat::read(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(own.parent, i32::try_from(std::os::unix::process::parent_id()).unwrap());
        assert!(own.rss > 0 && own.start > 0);
    }

    #[test]
    fn cut_text_is_no_process() {
        assert_eq!(Stat::parse(b"42 (x) S 1 2"), None);
        assert_eq!(Stat::parse(b""), None);
    }
}
