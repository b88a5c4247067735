//! What every measurement stands on: one guest with the package, a host with an agent, the floor's server, ssh.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{Guest, GuestSpec, Host, Lab};

/// The floor's program in the guest.
pub(crate) const FLOOR: &str = "/usr/local/bin/floor";
/// A stream that moves nothing for so long has stalled.
const STALL: Duration = Duration::from_secs(15);
/// The floor's vsock port in the guest.
const FLOOR_PORT: u32 = 5000;

/// The rig.
pub(crate) struct Rig {
    pub(crate) guest: Guest,
    pub(crate) host: Host,
}

impl Rig {
    pub(crate) fn build() -> Result<Self> {
        eprintln!("Booting the guest, installing the package");
        let spec = GuestSpec::new("bench").ssh().memory_mib(3072).qemu([
            "-chardev",
            "socket,id=qga,path=qga.sock,server=on,wait=off",
            "-device",
            "virtserialport,chardev=qga,name=org.qemu.guest_agent.0",
        ]);
        let guest = Guest::boot(spec)?;
        guest.install(&[Lab::released_package()?])?;
        guest.wait_until("systemctl is-active hospes-toolsd", Duration::from_secs(60))?;
        serve_floor(&guest)?;
        guest.check("systemctl start qemu-guest-agent")?;
        let mut host = Host::new()?;
        host.add("dev", &guest)?;
        host.start_agent()?;
        let rig = Self { guest, host };
        rig.hospes(&["wait", "dev", "--timeout", "60s"])?;
        rig.hospes(&["exec", "dev", "--", "true"])?;
        ensure!(rig.floor("spawn /bin/true\n")?.read_byte()? == 0, "The floor does not serve");
        Ok(rig)
    }

    /// Runs a `hospes` command that has to succeed; its output is thrown away.
    pub(crate) fn hospes(&self, words: &[&str]) -> Result<()> {
        let mut command = self.host.command(words);
        run(command.stdin(Stdio::null()).stdout(Stdio::null()))
    }

    /// A connection to the floor with its order sent.
    pub(crate) fn floor(&self, order: &str) -> Result<Floor> {
        connect_floor(&self.guest, order)
    }

    /// `ssh` to the guest, with these options more.
    pub(crate) fn ssh(&self, options: &[&str], words: &[&str]) -> Result<Command> {
        let mut command = self.guest.ssh("dev")?;
        command.args(options).args(words).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command)
    }
}

/// Starts the floor's server in a guest.
pub(crate) fn serve_floor(guest: &Guest) -> Result<()> {
    guest.put(FLOOR, 0o755, &fs::read(Lab::guest_program("floor")?)?)?;
    guest.check(&format!("systemd-run --quiet --unit=floor {FLOOR} {FLOOR_PORT}")).map(drop)
}

/// A connection to the floor, the order sent together with the request for it, as any careful client would: it waits
/// in the socket until the guest has answered.
pub(crate) fn connect_floor(guest: &Guest, order: &str) -> Result<Floor> {
    connect(guest, order)
}

/// The same, the order sent behind the answer: vhost-device-vsock drops what comes together with the request.
pub(crate) fn connect_floor_in_steps(guest: &Guest, order: &str) -> Result<Floor> {
    let mut floor = connect(guest, "")?;
    floor.0.write_all(order.as_bytes())?;
    Ok(floor)
}

fn connect(guest: &Guest, order: &str) -> Result<Floor> {
    let mut stream = UnixStream::connect(guest.vsock_path())?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    stream.write_all(format!("CONNECT {FLOOR_PORT}\n{order}").as_bytes())?;
    let mut answer = Vec::new();
    let mut floor = Floor(stream);
    loop {
        match floor.read_byte()? {
            b'\n' => break,
            byte if answer.len() < 64 => answer.push(byte),
            _ => bail!("The vsock device answered {:?}", String::from_utf8_lossy(&answer)),
        }
    }
    ensure!(answer.starts_with(b"OK "), "The vsock device answered {:?}", String::from_utf8_lossy(&answer));
    Ok(floor)
}

/// A connection to the floor's server.
pub(crate) struct Floor(pub(crate) UnixStream);

impl Floor {
    pub(crate) fn read_byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.0.read_exact(&mut byte).context("The floor's connection ended early")?;
        Ok(byte[0])
    }
}

/// Runs a command that has to succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.stderr(Stdio::piped()).spawn()?.wait_with_output()?;
    if !output.status.success() {
        let program = command.get_program().to_string_lossy().into_owned();
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// How long it took, in seconds.
pub(crate) fn seconds(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed().as_secs_f64())
}
