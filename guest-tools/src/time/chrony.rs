//! chrony: fed through its SOCK reference clock, and told when the clock was set under it.
//!
//! `/etc/chrony/conf.d/hospes.conf`, which the package brings, has chronyd make a socket; each datagram to it is one sample
//! (chrony.conf(5), refclock SOCK; the layout is of its `refclock_sock.c`, 40 bytes where a long has eight).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::SECOND;
use crate::daemon::systemd;

/// Where chronyd makes its socket. The name is within what Debian's `AppArmor` profile of chronyd allows.
pub const SOCKET: &str = "/run/chrony.hospes.sock";

/// `SOCK_MAGIC`.
const MAGIC: u32 = 0x534f_434b;

/// Whether chronyd has made the socket.
#[must_use]
pub fn listens() -> bool {
    Path::new(SOCKET).exists()
}

/// Tells chronyd that at `real`, in nanoseconds since 1970 by this machine's clock, the host was ahead by `offset`.
///
/// # Errors
/// What the kernel says: nobody reads the socket, or too much waits there.
pub fn feed(real: i64, offset: i64) -> io::Result<()> {
    feed_at(Path::new(SOCKET), real, offset)
}

fn feed_at(path: &Path, real: i64, offset: i64) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let bytes = sample(real, offset);
    let sent = socket.send_to(&bytes, path)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// `struct sock_sample`: the time, the offset, then pulse, leap, padding and the magic.
fn sample(real: i64, offset: i64) -> [u8; 40] {
    #[expect(clippy::cast_precision_loss, reason = "chrony takes a double of seconds")]
    let offset = offset as f64 / SECOND as f64;
    let mut bytes = [0; 40];
    bytes[0..8].copy_from_slice(&real.div_euclid(SECOND).to_ne_bytes());
    bytes[8..16].copy_from_slice(&(real.rem_euclid(SECOND) / 1000).to_ne_bytes());
    bytes[16..24].copy_from_slice(&offset.to_ne_bytes());
    bytes[36..40].copy_from_slice(&MAGIC.to_ne_bytes());
    bytes
}

/// Tells chronyd that the clock was set: what it had measured before is of another time.
///
/// # Errors
/// Why it was not told, in words for the journal.
pub async fn forget_measurements() -> Result<(), String> {
    let argv = ["/usr/bin/chronyc", "-n", "reset", "sources"];
    systemd::run_to_its_end(
        "hospes-chrony-reset.service",
        "Hospes tells chrony that the clock was set",
        &argv,
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_what_chronyd_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let chronyd = UnixDatagram::bind(&path).unwrap();
        feed_at(&path, 1_789_000_000_123_456_789, -2_500_000_000).unwrap();
        let mut bytes = [0; 64];
        assert_eq!(chronyd.recv(&mut bytes).unwrap(), 40);
        assert_eq!(i64::from_ne_bytes(bytes[0..8].try_into().unwrap()), 1_789_000_000);
        assert_eq!(i64::from_ne_bytes(bytes[8..16].try_into().unwrap()), 123_456);
        assert!((f64::from_ne_bytes(bytes[16..24].try_into().unwrap()) + 2.5).abs() < 1e-12);
        assert_eq!(bytes[24..36], [0; 12]);
        assert_eq!(u32::from_ne_bytes(bytes[36..40].try_into().unwrap()), MAGIC);
        assert!(feed_at(&folder.path().join("none"), 0, 0).is_err());
    }
}
