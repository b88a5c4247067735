//! Room on the target's file system, asked for before it runs out.

use std::os::fd::BorrowedFd;

use hospes_protocol::error::{ErrorKind, WireError};
use rustix::fs::fstatvfs;

use super::Writer;

/// Files from this size on are worth the question.
const WORTH_ASKING: u64 = 1024 * 1024;

/// Bytes that the user may still write there; none where the file system does not say.
fn available(fd: BorrowedFd<'_>) -> Option<u64> {
    let stat = fstatvfs(fd).ok().filter(|stat| stat.f_blocks > 0)?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Refuses a file that will not fit.
pub(super) fn check(fd: BorrowedFd<'_>, size: u64) -> Result<(), WireError> {
    if size < WORTH_ASKING {
        return Ok(());
    }
    match available(fd) {
        Some(free) if size > free => Err(no_room(size, free)),
        _ => Ok(()),
    }
}

fn no_room(needed: u64, free: u64) -> WireError {
    WireError::new(
        ErrorKind::NO_SPACE,
        format_args!("There is no room: {} needed, {} free", readable(needed), readable(free)),
    )
}

/// A size as people read it.
fn readable(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(5);
    let whole = bytes >> (10 * unit);
    let tenth = ((u128::from(bytes) * 10) >> (10 * unit)) % 10;
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{whole}.{tenth} {}", UNITS[unit as usize]),
    }
}

impl Writer {
    /// The first entry is new, so that all that is expected comes on top of what is there.
    pub(super) fn fresh(&mut self) -> Result<(), WireError> {
        if let Some(root) = &mut self.root {
            root.fresh = true;
        }
        self.check_total()
    }

    /// Refuses a copy that will not fit. Nothing is refused where files that are there may be replaced, for that
    /// frees what they take.
    pub(super) fn check_total(&self) -> Result<(), WireError> {
        let (Some(root), Some(expected)) = (&self.root, self.expected) else { return Ok(()) };
        let needed = expected.saturating_sub(self.progress.bytes());
        match available(std::os::fd::AsFd::as_fd(&*root.dir)) {
            Some(free) if root.fresh && needed > free => Err(no_room(needed, free)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (u64::MAX, "16383.9 PiB")]
        {
            assert_eq!(readable(bytes), text);
        }
    }
}
