//! The floor that benchmarks are measured against: the least that a guest can do for a host over vsock.
//!
//! It runs in the guest, listens on a vsock port and serves one line per connection: no frames, no keys, no users, no
//! counts. What Hospes takes beyond it is the price of those.
//!
//! ```text
//! spawn PROGRAM [ARG …]      run it, all streams on /dev/null; the exit status comes back as one byte
//! pipe PROGRAM [ARG …]       run it with the connection as its stdin and stdout
//! source BYTES WRITE         send so many bytes in writes of that size
//! sink BYTES                 read so many bytes, then send one byte
//! piped-source BYTES WRITE   the same from another process, through a pipe
//! piped-sink BYTES           the same to another process, through a pipe
//! echo                       send everything back
//! clock                      for each byte, send the guest's clock: nanoseconds since 1970, a big-endian u64
//! ```
//!
//! `floor --source BYTES WRITE` and `floor --sink` do the same on stdout and stdin, for whoever carries those.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};
use std::os::fd::{AsRawFd, FromRawFd};

/// Bytes of a read.
const BUFFER: usize = 256 << 10;

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
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--source", bytes, write] => source(&mut std::io::stdout(), bytes.parse()?, write.parse()?),
        ["--sink"] => drain(&mut std::io::stdin()).map(drop),
        [port] => listen_on(port.parse()?),
        _ => bail!("usage: floor PORT | --source BYTES WRITE | --sink"),
    }
}

fn listen_on(port: u32) -> Result<()> {
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
        ["source", bytes, write] => source(&mut connection, bytes.parse()?, write.parse()?)?,
        ["sink", bytes] => {
            carry(&mut connection, &mut std::io::sink(), bytes.parse()?)?;
            connection.write_all(&[0])?;
        }
        ["piped-source", bytes, write] => {
            widen(&connection);
            let mut child = itself(&["--source", bytes, write]).stdout(Stdio::piped()).spawn()?;
            let mut pipe = child.stdout.take().context("stdout is a pipe")?;
            fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(1 << 20))?;
            carry(&mut pipe, &mut connection, bytes.parse()?)?;
            child.wait()?;
        }
        ["piped-sink", bytes] => {
            widen(&connection);
            let mut child = itself(&["--sink"]).stdin(Stdio::piped()).spawn()?;
            let mut pipe = child.stdin.take().context("stdin is a pipe")?;
            fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(1 << 20))?;
            carry(&mut connection, &mut pipe, bytes.parse()?)?;
            drop(pipe);
            child.wait()?;
            connection.write_all(&[0])?;
        }
        ["clock"] => {
            let mut byte = [0];
            while connection.read(&mut byte)? > 0 {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
                connection.write_all(&u64::try_from(now.as_nanos())?.to_be_bytes())?;
            }
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

/// This program once more.
fn itself(words: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(words);
    command
}

fn source(to: &mut impl Write, bytes: usize, write: usize) -> Result<()> {
    let (mut left, buffer) = (bytes, vec![0x5a; write]);
    while left > 0 {
        let n = left.min(buffer.len());
        to.write_all(buffer.get(..n).unwrap_or_default())?;
        left -= n;
    }
    Ok(())
}

fn carry(from: &mut impl Read, to: &mut impl Write, bytes: usize) -> Result<()> {
    let (mut left, mut buffer) = (bytes, vec![0; BUFFER]);
    while left > 0 {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            bail!("The stream ended {left} bytes early");
        }
        to.write_all(buffer.get(..n).unwrap_or_default())?;
        left = left.saturating_sub(n);
    }
    Ok(())
}

fn drain(from: &mut impl Read) -> Result<usize> {
    let (mut total, mut buffer) = (0, vec![0; BUFFER]);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(total),
            n => total += n,
        }
    }
}

/// Gives a connection the buffer that Hospes gives its own in a long stream.
#[expect(unsafe_code, reason = "no crate has these options, whose values are 64 bits wide")]
fn widen(connection: &File) {
    let bytes: u64 = 1 << 20;
    // SO_VM_SOCKETS_BUFFER_MAX_SIZE and SO_VM_SOCKETS_BUFFER_SIZE of linux/vm_sockets.h.
    for option in [2, 0] {
        let value = (&raw const bytes).cast();
        // SAFETY: the value outlives the call and is as long as the call is told.
        unsafe { nix::libc::setsockopt(connection.as_raw_fd(), nix::libc::AF_VSOCK, option, value, 8) };
    }
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
