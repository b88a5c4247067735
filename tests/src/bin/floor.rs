//! The floor that benchmarks are measured against: the least that a guest can do for a host over vsock.
//!
//! It runs in the guest, listens on a vsock port and serves one line per connection: no frames, no keys, no users, no
//! counts. What Hospes takes beyond it is the price of those.
//!
//! ```text
//! spawn PROGRAM [ARG …]   run it, all streams on /dev/null; the exit status comes back as one byte
//! pipe PROGRAM [ARG …]    run it with the connection as its stdin and stdout
//! source BYTES WRITE      send so many bytes in writes of that size
//! sink BYTES              read so many bytes, then send one byte
//! echo                    send everything back
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};
use std::os::fd::{AsRawFd, FromRawFd};

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let port = std::env::args().nth(1).context("usage: floor PORT")?.parse()?;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc_any(), port))?;
    listen(&listener, Backlog::MAXCONN)?;
    loop {
        let connection = accept(&listener)?;
        thread::spawn(move || {
            if let Err(error) = answer(connection) {
                eprintln!("floor: {error:#}");
            }
        });
    }
}

/// `VMADDR_CID_ANY` of vsock(7).
const fn libc_any() -> u32 {
    u32::MAX
}

#[expect(unsafe_code, reason = "nix gives the accepted descriptor as a bare number")]
fn accept(listener: &OwnedFd) -> Result<File> {
    let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made this descriptor and nothing else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(raw) }))
}

fn answer(mut connection: File) -> Result<()> {
    let line = read_line(&mut connection)?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["spawn", program, arguments @ ..] => {
            let null = Stdio::null;
            let status =
                Command::new(program).args(arguments).stdin(null()).stdout(null()).stderr(null()).status()?;
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
            connection.write_all(&[code])?;
        }
        ["pipe", program, arguments @ ..] => {
            let status = Command::new(program)
                .args(arguments)
                .stdin(connection.try_clone()?)
                .stdout(connection)
                .status()?;
            if !status.success() {
                bail!("{line}: {status}");
            }
        }
        ["source", bytes, write] => {
            let (mut left, buffer) = (bytes.parse::<usize>()?, vec![0x5a; write.parse()?]);
            while left > 0 {
                let n = left.min(buffer.len());
                connection.write_all(buffer.get(..n).unwrap_or_default())?;
                left -= n;
            }
        }
        ["sink", bytes] => {
            let (mut left, mut buffer) = (bytes.parse::<usize>()?, vec![0; 256 << 10]);
            while left > 0 {
                let n = connection.read(&mut buffer)?;
                if n == 0 {
                    bail!("The stream ended {left} bytes early");
                }
                left = left.saturating_sub(n);
            }
            connection.write_all(&[0])?;
        }
        ["echo"] => {
            let mut buffer = vec![0; 1 << 20];
            loop {
                let n = connection.read(&mut buffer)?;
                if n == 0 {
                    break;
                }
                connection.write_all(buffer.get(..n).unwrap_or_default())?;
            }
        }
        _ => bail!("No such order: {line}"),
    }
    Ok(())
}

/// Byte by byte: what follows the line is the program's.
fn read_line(connection: &mut File) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 4096 {
        connection.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(String::from_utf8(line)?);
        }
        line.push(byte[0]);
    }
    bail!("The order is too long")
}
