//! The screen of a guest as a window on the host has it: a VNC client that asks for sizes (RFC 6143, and the extension
//! `ExtendedDesktopSize` of the RFB protocol's community version).

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const RAW: i32 = 0;
const EXTENDED_DESKTOP_SIZE: i32 = -308;
const SET_ENCODINGS: u8 = 2;
const UPDATE_REQUEST: u8 = 3;
const SET_DESKTOP_SIZE: u8 = 251;

/// A connection to QEMU's VNC server for one screen.
#[derive(Debug)]
pub struct Vnc {
    stream: UnixStream,
    size: (u16, u16),
}

impl Vnc {
    /// Connects, and hears the screen's size.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("{}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut vnc = Self { stream, size: (0, 0) };
        let _version: [u8; 12] = vnc.read()?;
        vnc.stream.write_all(b"RFB 003.008\n")?;
        let [kinds] = vnc.read()?;
        let mut offered = vec![0; usize::from(kinds)];
        vnc.stream.read_exact(&mut offered)?;
        ensure!(offered.contains(&1), "QEMU's VNC server wants a password");
        vnc.stream.write_all(&[1])?;
        let result: [u8; 4] = vnc.read()?;
        ensure!(result == [0; 4], "QEMU's VNC server refused");
        vnc.stream.write_all(&[1])?;
        let init: [u8; 24] = vnc.read()?;
        vnc.size = (u16::from_be_bytes([init[0], init[1]]), u16::from_be_bytes([init[2], init[3]]));
        let name = u32::from_be_bytes([init[20], init[21], init[22], init[23]]);
        vnc.skip(u64::from(name))?;
        let mut encodings = vec![SET_ENCODINGS, 0, 0, 2];
        for encoding in [RAW, EXTENDED_DESKTOP_SIZE] {
            encodings.extend(encoding.to_be_bytes());
        }
        vnc.stream.write_all(&encodings)?;
        // The first update says that the extension is there; without it no size may be asked for. Of a screen on which
        // nothing changes it has to be a whole one.
        vnc.request(false)?;
        vnc.message()?;
        Ok(vnc)
    }

    /// The screen's size, as far as it was told.
    pub fn size(&self) -> (u16, u16) {
        self.size
    }

    /// Asks for a size, as a window does whose edge was dragged.
    pub fn ask(&mut self, width: u16, height: u16) -> Result<()> {
        let mut message = vec![SET_DESKTOP_SIZE, 0];
        let mut add = |number: u16| message.extend(number.to_be_bytes());
        for number in [width, height, 0x100, 0, 0, 0, 0, width, height, 0, 0] {
            add(number);
        }
        Ok(self.stream.write_all(&message)?)
    }

    /// Waits until the screen has this size; how long that took. `None` where it has not within `limit`.
    pub fn becomes(&mut self, size: (u16, u16), limit: Duration) -> Result<Option<Duration>> {
        let began = Instant::now();
        while self.size != size {
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.request(true)?;
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.message() {
                Ok(()) => (),
                Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                    Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                    _ => return Err(error),
                },
            }
        }
        Ok(Some(began.elapsed()))
    }

    /// Asks to be told of changes, or of what there is, of little more than the size.
    fn request(&mut self, changes: bool) -> Result<()> {
        let mut message = vec![UPDATE_REQUEST, u8::from(changes)];
        for number in [0_u16, 0, 16, 16] {
            message.extend(number.to_be_bytes());
        }
        Ok(self.stream.write_all(&message)?)
    }

    /// Takes one message of the server's.
    fn message(&mut self) -> Result<()> {
        let [kind] = self.read()?;
        self.stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        match kind {
            0 => {
                let [_, high, low] = self.read()?;
                for _ in 0..u16::from_be_bytes([high, low]) {
                    self.rectangle()?;
                }
                Ok(())
            }
            1 => {
                let [_, _, _, high, low] = self.read()?;
                self.skip(u64::from(u16::from_be_bytes([high, low])) * 6)
            }
            2 => Ok(()),
            3 => {
                let [_, _, _, a, b, c, d] = self.read()?;
                self.skip(u64::from(u32::from_be_bytes([a, b, c, d])))
            }
            other => bail!("QEMU's VNC server sent a message {other}"),
        }
    }

    fn rectangle(&mut self) -> Result<()> {
        let head: [u8; 12] = self.read()?;
        let short = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let (reason, status, width, height) = (short(0), short(2), short(4), short(6));
        match i32::from_be_bytes([head[8], head[9], head[10], head[11]]) {
            RAW => self.skip(u64::from(width) * u64::from(height) * 4),
            EXTENDED_DESKTOP_SIZE => {
                let [screens, _, _, _] = self.read()?;
                self.skip(u64::from(screens) * 16)?;
                // With reason 1 it is an answer to what we asked, and no change yet.
                if reason == 0 && status == 0 {
                    self.size = (width, height);
                }
                Ok(())
            }
            other => bail!("QEMU's VNC server sent a rectangle of encoding {other}"),
        }
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let read = std::io::copy(&mut (&self.stream).take(len), &mut std::io::sink())?;
        ensure!(read == len, "QEMU's VNC server closed");
        Ok(())
    }
}
