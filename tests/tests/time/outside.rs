//! The guest's clock without any part of Hospes: a server in the guest says what it reads.

use std::cell::RefCell;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use integration_tests::{Guest, Lab};

const PORT: u32 = 5000;

/// A connection to it.
pub(crate) struct Outside(RefCell<UnixStream>);

impl Outside {
    pub(crate) fn of(guest: &Guest) -> Result<Self> {
        guest.put("/usr/local/bin/floor", 0o755, &fs::read(Lab::guest_program("floor")?)?)?;
        guest.check(&format!("systemd-run --quiet --unit=floor /usr/local/bin/floor {PORT}"))?;
        guest.wait_until(&format!("ss --vsock -ln | grep -q ':{PORT}'"), Duration::from_secs(20))?;
        let mut stream = UnixStream::connect(guest.vsock_path())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(format!("CONNECT {PORT}\nclock\n").as_bytes())?;
        let mut byte = [0];
        while byte != *b"\n" {
            ensure!(stream.read(&mut byte)? == 1, "The device closed the connection");
        }
        Ok(Self(RefCell::new(stream)))
    }

    /// What the guest's clock says, in nanoseconds since 1970.
    pub(crate) fn read(&self) -> Result<i64> {
        let mut stream = self.0.borrow_mut();
        let mut bytes = [0; 8];
        stream.write_all(&[0])?;
        stream.read_exact(&mut bytes)?;
        Ok(i64::try_from(u64::from_be_bytes(bytes))?)
    }

    /// Nanoseconds that the guest's clock is ahead of this machine's, by the shortest of twenty looks, and how long that
    /// one took.
    pub(crate) fn offset(&self) -> Result<(i64, i64)> {
        let mut best = (0, i64::MAX);
        for _ in 0..20 {
            let before = now()?;
            let guest = self.read()?;
            let after = now()?;
            if after - before < best.1 {
                best = (guest - before - (after - before) / 2, after - before);
            }
        }
        Ok(best)
    }
}

fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}
