//! A network for one guest, of the kernel's own: what comes by a Unix socket, each frame behind its length, goes to a TAP
//! interface, and the other way round. `cable SOCKET INTERFACE`; it ends when the guest hangs up.
#![expect(unsafe_code, reason = "a TAP interface is made by an ioctl")]

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

/// More than any frame is long.
const FRAME_MAX: usize = 1 << 17;

// From linux/if_tun.h.
const IFF_TAP: u16 = 2;
const IFF_NO_PI: u16 = 0x1000;

/// `struct ifreq`, as far as this ioctl reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, interface] = &words[..] else { bail!("usage: cable SOCKET INTERFACE") };
    let tap = tap(interface).with_context(|| format!("no interface {interface}"))?;
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen at {socket}"))?;
    println!("{interface} is there");
    let (guest, _) = listener.accept()?;
    let (from, to) = (tap.try_clone()?, guest.try_clone()?);
    // It waits in a read until this process ends.
    thread::spawn(move || to_guest(from, to));
    from_guest(guest, tap)
}

fn tap(name: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
    ensure!(name.len() < request.name.len(), "its name is too long");
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request has the size of a `struct ifreq` and outlives the call.
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), nix::libc::TUNSETIFF, &raw mut request) };
    ensure!(result == 0, std::io::Error::last_os_error());
    Ok(file)
}

fn to_guest(mut tap: File, mut guest: UnixStream) -> Result<()> {
    let mut buffer = vec![0; 4 + FRAME_MAX];
    loop {
        let len = tap.read(&mut buffer[4..])?;
        buffer[..4].copy_from_slice(&u32::try_from(len)?.to_be_bytes());
        guest.write_all(&buffer[..4 + len])?;
    }
}

fn from_guest(mut guest: UnixStream, mut tap: File) -> Result<()> {
    let (mut prefix, mut buffer) = ([0; 4], vec![0; FRAME_MAX]);
    loop {
        match guest.read_exact(&mut prefix) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let frame = buffer.get_mut(..usize::try_from(u32::from_be_bytes(prefix))?).context("no frame")?;
        guest.read_exact(frame)?;
        // While the interface is down the kernel takes no frame, and the guest sends some already.
        match tap.write(frame) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => {}
            written => ensure!(written? == frame.len(), "a part of a frame"),
        }
    }
}
