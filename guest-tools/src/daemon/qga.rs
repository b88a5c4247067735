//! The doors of the QEMU guest agent's protocol: a vsock port, and a port on virtio-serial.

mod port;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hospes_protocol::power::{Power, PowerAction};
use hospes_protocol::qga::{DELIMITER, Piece, Splitter};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};
use tokio::time;

use self::port::Port;
use super::transport::{Address, Listener, Stream, is_passing};
use super::{Daemon, EXHAUSTED, PowerAnswer};
use crate::info;
use crate::qga::command::{self, Ask, Command, Mode};
use crate::qga::reply::{self, Refusal};
use crate::qga::{Group, PORT, PROGRAMS, SERIAL};
use crate::time::{SECOND, chrony, kernel, words};

/// Connections at once on the vsock port. More wait in the kernel's backlog.
const CONNECTIONS: usize = 16;
/// How long a reply may take to be read.
const WRITE: Duration = Duration::from_secs(10);
/// Bytes of one read.
const READ: usize = 4096;

/// Opens the doors that the policy has, unless the agent's own program is there to do it.
pub(super) fn open(daemon: &Arc<Daemon>) {
    let doors = daemon.config().qga.clone();
    if let Some(address) = &daemon.options.qga {
        if *address == Address::Vsock
            && let Some(program) = PROGRAMS.iter().find(|program| Path::new(program).exists())
        {
            return tracing::info!("{program} is installed: its protocol is left to it");
        }
        if !doors.vsock.is_empty() {
            match Listener::bind_port(address, PORT) {
                Ok(listener) => drop(tokio::spawn(listen(Arc::clone(daemon), listener))),
                Err(error) => tracing::warn!("No door for the QEMU guest agent's protocol on vsock: {error}"),
            }
        }
        if *address == Address::Vsock && !doors.serial.is_empty() && Path::new(SERIAL).exists() {
            tokio::spawn(serial(Arc::clone(daemon)));
        }
    }
}

async fn listen(daemon: Arc<Daemon>, listener: Listener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) if peer.may_speak() => {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    // Whoever goes away needs no reply.
                    let _ = converse(&daemon, &stream).await;
                    drop(place);
                });
            }
            Ok((_, peer)) => daemon.refused(&peer.to_string(), "Only the host may connect here"),
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                tracing::error!("Cannot take a connection: {error}");
                time::sleep(EXHAUSTED).await;
            }
        }
    }
}

async fn converse(daemon: &Arc<Daemon>, stream: &Stream) -> io::Result<()> {
    let mut splitter = Splitter::new();
    let mut bytes = [0; READ];
    loop {
        let read = stream.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        for piece in pieces(&mut splitter, &bytes[..read]) {
            let groups = daemon.config().qga.vsock.clone();
            let reply = answer(daemon, piece, &groups, "vsock").await;
            time::timeout(WRITE, stream.write_all(&reply)).await??;
        }
    }
}

/// Serves the port for as long as it is there. Nobody else may have it open: the kernel gives it to one.
async fn serial(daemon: Arc<Daemon>) {
    if let Err(error) = try_serial(&daemon).await {
        tracing::warn!("The QEMU guest agent's port {SERIAL} is not served: {error}");
    }
}

async fn try_serial(daemon: &Arc<Daemon>) -> io::Result<()> {
    let port = Port::open(Path::new(SERIAL))?;
    tracing::info!("The QEMU guest agent's protocol is served at {SERIAL}");
    let mut splitter = Splitter::new();
    let mut bytes = [0; READ];
    loop {
        let read = port.read(&mut bytes).await?;
        for piece in pieces(&mut splitter, &bytes[..read]) {
            let groups = daemon.config().qga.serial.clone();
            let reply = answer(daemon, piece, &groups, "virtio-serial").await;
            // A host that reads nothing loses its reply; it says so itself, by asking again.
            let _ = time::timeout(WRITE, port.write_all(&reply)).await;
        }
    }
}

fn pieces(splitter: &mut Splitter, bytes: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    splitter.take(bytes, |piece| pieces.push(piece));
    pieces
}

/// The bytes that go back; none where success is silent.
async fn answer(daemon: &Arc<Daemon>, piece: Piece, groups: &[Group], door: &str) -> Vec<u8> {
    let object = match piece {
        Piece::Object(object) => object,
        Piece::Garbage => return reply::line(&Err(Refusal::new("Invalid JSON syntax")), None),
        Piece::TooLong => return reply::line(&Err(Refusal::new("The command is too long")), None),
    };
    let Command { ask, id, name } = command::read(&object, groups);
    let delimited = matches!(&ask, Ok(Ask::Answer { delimited: true, .. }));
    let result = match ask {
        Ok(ask) => obey(daemon, ask, &name, door).await,
        Err(refusal) => Err(refusal),
    };
    let reply = match result {
        Ok(Some(value)) => reply::line(&Ok(value), id.as_ref()),
        Ok(None) => return Vec::new(),
        Err(refusal) => reply::line(&Err(refusal), id.as_ref()),
    };
    if delimited { [&[DELIMITER][..], &reply].concat() } else { reply }
}

async fn obey(daemon: &Arc<Daemon>, ask: Ask, name: &str, door: &str) -> Result<Option<Value>, Refusal> {
    let os = |error: io::Error| Refusal::new(error.to_string());
    let value = match ask {
        Ask::Answer { value, .. } => value,
        Ask::HostName => json!({ "host-name": info::collect().hostname }),
        Ask::OsInfo => os_info(),
        Ask::Users => users(),
        Ask::FsInfo => fs_info(),
        Ask::Interfaces => interfaces(),
        Ask::GetTime => json!(kernel::now(nix::time::ClockId::CLOCK_REALTIME).map_err(os)?),
        Ask::SetTime(time) => {
            set_time(daemon, time, door).await?;
            json!({})
        }
        Ask::Shutdown(mode) => {
            let action = match mode {
                Mode::Powerdown => PowerAction::POWEROFF,
                Mode::Halt => PowerAction::HALT,
                Mode::Reboot => PowerAction::REBOOT,
            };
            power(daemon, action, name, door).await?;
            return Ok(None);
        }
        Ask::Suspend => {
            power(daemon, PowerAction::SUSPEND, name, door).await?;
            return Ok(None);
        }
    };
    Ok(Some(value))
}

/// As a trusted host's request: scripts, inhibitors, and everybody told.
async fn power(daemon: &Arc<Daemon>, action: PowerAction, name: &str, door: &str) -> Result<(), Refusal> {
    if let Some(frozen) = daemon.freezes.busy() {
        return Err(Refusal::new(frozen.message));
    }
    crate::audit::unproved(door, name);
    let (answer, answered) = oneshot::channel();
    let power = Power { action, force: false, script_timeout_ms: None };
    tokio::spawn(Arc::clone(daemon).power(power, answer));
    let PowerAnswer { reply, .. } = answered.await.map_err(|_| Refusal::new("The request was lost"))?;
    match reply {
        Ok(hospes_protocol::control::Answer::Power(done)) => match done.refused {
            Some(error) => Err(Refusal::new(error.message)),
            None => Ok(()),
        },
        Ok(_) => Ok(()),
        Err(error) => Err(Refusal::new(error.message)),
    }
}

async fn set_time(daemon: &Arc<Daemon>, time: Option<i64>, door: &str) -> Result<(), Refusal> {
    let os = |error: io::Error| Refusal::new(format!("The clock cannot be set: {error}"));
    let to = match time {
        Some(time) if time >= 0 => time,
        Some(_) => return Err(Refusal::new("A time before 1970 cannot be set")),
        None => battery_clock()?,
    };
    if !daemon.times.is_ours() {
        return Err(Refusal::new("This clock is not to be set by the guest tools"));
    }
    // Whoever proves nothing does not set a clock that a trusted host keeps.
    if daemon.times.is_kept() {
        return Err(Refusal::new("A host that this guest trusts keeps its clock"));
    }
    let by = to - kernel::now(nix::time::ClockId::CLOCK_REALTIME).map_err(os)?;
    kernel::step(by).map_err(os)?;
    crate::audit::unproved(door, &format!("guest-set-time: the clock is set by {}", words(by)));
    if chrony::listens() {
        tokio::spawn(async {
            if let Err(error) = chrony::forget_measurements().await {
                tracing::warn!("chrony was not told that the clock was set: {error}");
            }
        });
    }
    Ok(())
}

/// The machine's own clock, which goes on while it is off.
fn battery_clock() -> Result<i64, Refusal> {
    let text = std::fs::read_to_string("/sys/class/rtc/rtc0/since_epoch");
    let seconds = text.ok().and_then(|text| text.trim().parse::<i64>().ok());
    let none = || Refusal::new("This machine has no clock of its own: say which time to set");
    seconds.and_then(|seconds| seconds.checked_mul(SECOND)).ok_or_else(none)
}

fn os_info() -> Value {
    let info = info::collect();
    let uname = nix::sys::utsname::uname();
    let kernel_version = uname.map(|name| name.version().to_string_lossy().into_owned()).unwrap_or_default();
    json!({
        "id": info.os_id, "name": info::os_release("NAME"), "pretty-name": info.os,
        "version": info::os_release("VERSION"),
        "version-id": info.os_version, "kernel-release": info.kernel, "kernel-version": kernel_version,
        "machine": info.architecture,
    })
}

fn users() -> Value {
    let user =
        |(user, login): (hospes_protocol::info::User, f64)| json!({ "user": user.name, "login-time": login });
    info::logged_in().into_iter().map(user).collect()
}

fn fs_info() -> Value {
    let disks = info::collect().disks.into_iter();
    disks
        .map(|disk| {
            let name = disk.source.rsplit('/').next().unwrap_or_default();
            json!({
                "name": name, "mountpoint": disk.mount_point, "type": disk.kind, "total-bytes": disk.total,
                "used-bytes": disk.total.saturating_sub(disk.free), "disk": [],
            })
        })
        .collect()
}

fn interfaces() -> Value {
    let interfaces = info::collect().interfaces.into_iter();
    interfaces
        .map(|interface| {
            let addresses: Vec<Value> = interface
                .addresses
                .iter()
                .filter_map(|address| {
                    let (ip, prefix) = address.split_once('/')?;
                    let kind = if ip.contains(':') { "ipv6" } else { "ipv4" };
                    let prefix: u8 = prefix.parse().ok()?;
                    Some(json!({ "ip-address": ip, "ip-address-type": kind, "prefix": prefix }))
                })
                .collect();
            let mut value = json!({ "name": interface.name, "ip-addresses": addresses });
            if !interface.mac.is_empty() {
                value["hardware-address"] = json!(interface.mac);
            }
            value
        })
        .collect()
}
