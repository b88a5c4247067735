//! The vsock device under a real guest's driver: bytes, ends, refusals and crowds, with no part of Hospes above it.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{Guest, GuestSpec, Lab, SharedGuest};

const PORT: u32 = 5000;

static GUEST: SharedGuest = SharedGuest::new(|| Ok(GuestSpec::new("vsock"))).prepared(|guest| {
    guest.put("/usr/local/bin/floor", 0o755, &fs::read(Lab::guest_program("floor")?)?)?;
    guest.check(&format!("systemd-run --quiet --unit=floor /usr/local/bin/floor {PORT}"))?;
    guest.wait_until(&format!("ss --vsock -ln | grep -q ':{PORT}'"), Duration::from_secs(20)).map(drop)
});

fn dial(guest: &Guest, port: u32, first: &str) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(guest.vsock_path())?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(format!("CONNECT {port}\n{first}").as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    loop {
        if stream.read(&mut byte)? == 0 {
            bail!("The device closed the connection after {:?}", String::from_utf8_lossy(&answer));
        }
        if byte == *b"\n" {
            break;
        }
        answer.push(byte[0]);
    }
    ensure!(answer.starts_with(b"OK "), "The device answered {:?}", String::from_utf8_lossy(&answer));
    Ok(stream)
}

/// Bytes that no repetition, swap or loss leaves the same.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(len);
    bytes
}

fn echo(guest: &Guest, seed: u64, len: usize) -> Result<()> {
    let mut stream = dial(guest, PORT, "echo\n")?;
    let sent = pattern(seed, len);
    let mut writer = stream.try_clone()?;
    let received = thread::scope(|scope| -> Result<Vec<u8>> {
        scope.spawn(|| {
            // Where this fails, the other side misses bytes, and that is what the test reports.
            let _ = writer.write_all(&sent);
            let _ = writer.shutdown(Shutdown::Write);
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        Ok(received)
    })?;
    ensure!(received.len() == len, "{} of {len} bytes came back", received.len());
    ensure!(received == sent, "other bytes came back");
    Ok(())
}

#[test]
fn bytes_come_back_whole_after_a_half_close() -> Result<()> {
    let guest = GUEST.get()?;
    for len in [0, 1, 4095, 65_536, 1 << 20, 16 << 20] {
        echo(&guest, len as u64, len).with_context(|| format!("echo of {len} bytes"))?;
    }
    Ok(())
}

#[test]
fn writes_of_any_size_arrive_from_the_guest() -> Result<()> {
    let guest = GUEST.get()?;
    for write in [1 << 10, 4 << 10, 64 << 10, 100_000, 1 << 20] {
        let mut stream = dial(&guest, PORT, &format!("source {} {write}\n", 24 << 20))?;
        let mut total = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match stream
                .read(&mut buffer)
                .with_context(|| format!("stalled after {total} bytes, {write} a write"))?
            {
                0 => break,
                n => total += n,
            }
        }
        assert_eq!(total, 24 << 20, "in writes of {write}");
    }
    Ok(())
}

#[test]
fn two_hundred_connections_keep_apart() -> Result<()> {
    let guest = GUEST.get()?;
    thread::scope(|scope| {
        let all: Vec<_> = (0..200u64)
            .map(|n| {
                let guest: &Guest = &guest;
                scope.spawn(move || echo(guest, n, 1000 + usize::try_from(n).unwrap_or(0) * 517))
            })
            .collect();
        all.into_iter().try_for_each(|each| each.join().expect("no thread panics"))
    })
}

#[test]
fn a_port_that_nobody_listens_on_is_refused_at_once() -> Result<()> {
    let guest = GUEST.get()?;
    assert!(dial(&guest, 9999, "").is_err());
    Ok(())
}

#[test]
fn a_guest_reaches_the_hosts_socket_of_its_port() -> Result<()> {
    let guest = GUEST.get()?;
    let mut path = guest.vsock_path().into_os_string();
    path.push("_1234");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    thread::scope(|scope| {
        let server = scope.spawn(move || -> Result<Vec<u8>> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.write_all(b"welcome\n")?;
            let mut said = Vec::new();
            stream.read_to_end(&mut said)?;
            Ok(said)
        });
        let heard = guest.check("echo from the guest | socat -t 20 - VSOCK-CONNECT:2:1234")?;
        ensure!(heard == "welcome\n", "the guest heard {heard:?}");
        let said = server.join().expect("the server does not panic")?;
        ensure!(said == b"from the guest\n", "the guest said {:?}", String::from_utf8_lossy(&said));
        Ok(())
    })?;
    // With the listener gone, the next call is refused.
    let refused = guest.sh("socat -t 5 - VSOCK-CONNECT:2:1234 </dev/null")?;
    assert_ne!(refused.status, 0);
    Ok(())
}

#[test]
fn a_reset_guest_takes_its_connections_with_it_and_comes_back() -> Result<()> {
    let guest = Guest::boot(GuestSpec::new("vsock-reset"))?;
    let floor = fs::read(Lab::guest_program("floor")?)?;
    let serve = || -> Result<()> {
        guest.put("/run/floor", 0o755, &floor)?;
        guest.check(&format!("systemd-run --quiet --unit=floor /run/floor {PORT}"))?;
        guest.wait_until(&format!("ss --vsock -ln | grep -q ':{PORT}'"), Duration::from_secs(20)).map(drop)
    };
    serve()?;
    let mut held = dial(&guest, PORT, "echo\n")?;
    guest.reset()?;
    let mut rest = Vec::new();
    // An end or a reset: either tells the host that it is over.
    let _ = held.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    serve()?;
    echo(&guest, 7, 1 << 20)
}
