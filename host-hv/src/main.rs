//! `host-hv`: devices for virtual machines.

#![cfg_attr(not(target_os = "linux"), expect(dead_code, unused_imports, reason = "vhost-user needs Linux"))]

mod cli;
mod log;

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Devices for virtual machines, one program per machine.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a virtio-vsock device over vhost-user.
    ///
    /// Clients on the host connect to the socket given by --uds, write "CONNECT <port>" and a newline, and read
    /// "OK <port>" when the guest has agreed, or "ERR <reason>" before the end. A guest that connects to port P of cid 2 reaches
    /// whoever listens at the same path with "_P" appended. All sockets are made for their owner alone.
    ///
    /// QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine TYPE,memory-backend=mem
    /// -chardev socket,id=vs,path=SOCKET -device vhost-user-vsock-pci,chardev=vs
    Vsock(VsockArgs),
    /// Serve a virtio-fs device over vhost-user: folders of this machine in the guest.
    ///
    /// The guest mounts it by its tag ("mount -t virtiofs hospes /mnt/hospes"; hospes-tools does it by itself) and sees
    /// a directory for each share. Shares are named here or, while the guest runs, at the control socket: "hospes
    /// share add" does that.
    ///
    /// Linux caches of a share what it may believe for a second. What a program in the guest has written is on this
    /// machine when the write returns, and on its disk after fsync.
    ///
    /// QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine TYPE,memory-backend=mem
    /// -chardev socket,id=fs,path=SOCKET -device vhost-user-fs-pci,chardev=fs,tag=hospes
    #[cfg(target_os = "linux")]
    Fs(FsArgs),
    /// Run an arm64 Linux guest, with its serial console on this terminal.
    ///
    /// That takes an arm64 Linux with KVM. So far the guest has its kernel, an initramfs, the console, disks, networks, folders,
    /// vsock, the host's time and its random numbers; there is no sandbox around this program yet.
    #[cfg(unix)]
    Run(cli::run::RunArgs),
}

#[cfg(target_os = "linux")]
#[derive(Args)]
struct FsArgs {
    /// Where the VMM connects (vhost-user)
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// What the guest mounts it by, for VMMs that ask the device; QEMU has it on its own command line
    #[arg(long, value_name = "TAG", default_value = "hospes")]
    tag: String,

    /// A folder to share from the start, by its own name or another; may be given again
    ///
    /// ":ro" after the path keeps the guest from changing it. ":owner=" says who owns what: "map" (the folder's owner
    /// here is the guest's user 1000; "map:UID:GID" for another), "squash" (all is that user's, and changes of owner
    /// are accepted and forgotten), "raw" (the same numbers on both sides).
    #[arg(long, value_name = "[NAME=]PATH[:ro][:owner=…]", value_parser = cli::share::parse)]
    share: Vec<host_hv::fuse::ShareSpec>,

    /// Where shares are added, listed and removed while the guest runs
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// How many requests are served at a time
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,

    /// Exit when the VMM has gone, rather than wait for the next
    #[arg(long)]
    once: bool,

    /// What a guest that takes this program over is left with
    #[arg(long, value_name = "MODE", default_value = "auto")]
    sandbox: Sandboxing,
}

#[cfg(target_os = "linux")]
#[derive(Clone, Copy, clap::ValueEnum)]
enum Sandboxing {
    /// As little as this kernel and this user allow; what is missing is told
    Auto,
    /// What the device is for and nothing else, or nothing is served
    Strict,
    /// All that this user may do. For finding faults, and for guests that you trust
    Off,
}

#[derive(Args)]
struct VsockArgs {
    /// Where the VMM connects (vhost-user)
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// The guest's cid, 3 or more
    #[arg(long, value_name = "CID")]
    cid: u64,

    /// Where clients on the host connect; also the stem of the sockets for guest-initiated connections
    #[arg(long, value_name = "PATH")]
    uds: PathBuf,

    /// A socket that leads straight to one port of the guest, with no CONNECT line; may be given again
    #[arg(long, value_name = "PORT=PATH", value_parser = parse_port)]
    port_uds: Vec<(u32, PathBuf)>,

    /// Another guest to serve, which may then connect to this one and be connected to by cid; may be given again
    ///
    /// Guests served by different programs never reach each other.
    #[arg(long, value_name = "cid=CID,socket=PATH,uds=PATH", value_parser = parse_sibling)]
    sibling: Vec<Sibling>,

    /// The most connections of a guest at a time
    #[arg(long, value_name = "COUNT", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,

    /// Exit when the VMM has gone, rather than wait for the next
    #[arg(long)]
    once: bool,

    /// What a guest that takes this program over is left with
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "MODE", default_value = "auto")]
    sandbox: Sandboxing,
}

#[derive(Clone)]
struct Sibling {
    cid: u64,
    socket: PathBuf,
    uds: PathBuf,
}

fn parse_port(text: &str) -> Result<(u32, PathBuf), String> {
    let (port, path) = text.split_once('=').ok_or("expected PORT=PATH")?;
    Ok((port.parse().map_err(|error| format!("{port}: {error}"))?, PathBuf::from(path)))
}

fn parse_sibling(text: &str) -> Result<Sibling, String> {
    let (mut cid, mut socket, mut uds) = (None, None, None);
    for part in text.split(',') {
        match part.split_once('=').ok_or("expected cid=CID,socket=PATH,uds=PATH")? {
            ("cid", value) => cid = Some(value.parse().map_err(|error| format!("{value}: {error}"))?),
            ("socket", value) => socket = Some(PathBuf::from(value)),
            ("uds", value) => uds = Some(PathBuf::from(value)),
            (other, _) => return Err(format!("{other} is none of cid, socket and uds")),
        }
    }
    let missing = |what| move || format!("{what}= is missing");
    Ok(Sibling {
        cid: cid.ok_or_else(missing("cid"))?,
        socket: socket.ok_or_else(missing("socket"))?,
        uds: uds.ok_or_else(missing("uds"))?,
    })
}

fn main() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let color = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(color);
    tracing_subscriber::registry().with(filter).with(lines.with_filter(log::Dam::default())).init();
    match Cli::parse().command {
        Command::Vsock(args) => vsock(args),
        #[cfg(target_os = "linux")]
        Command::Fs(args) => fs(args),
        #[cfg(unix)]
        Command::Run(args) => cli::run::run(args),
    }
}

#[cfg(target_os = "linux")]
fn vsock(args: VsockArgs) -> Result<()> {
    use std::rc::Rc;

    use host_hv::sandbox::Purpose;
    use host_hv::vhost_user::{GuestSpec, Server};
    use host_hv::virtio::vsock::Limits;
    use host_hv::virtio::vsock::uds::{Dialer, dial};
    use nix::sys::stat::{Mode, umask};

    // Sockets are their owner's alone from the moment they exist.
    umask(Mode::from_bits_truncate(0o177));
    // Each connection needs a descriptor.
    raise_open_files();

    let connections = args.max_connections as usize;
    let limits = Limits { connections, ..Limits::default() };
    let first = GuestSpec { cid: args.cid, socket: args.socket, uds: args.uds, ports: args.port_uds, limits };
    let others = args.sibling.into_iter().map(|sibling| GuestSpec {
        cid: sibling.cid,
        socket: sibling.socket,
        uds: sibling.uds,
        ports: Vec::new(),
        limits,
    });
    let guests: Vec<_> = std::iter::once(first).chain(others).collect();
    for (at, guest) in guests.iter().enumerate() {
        if guests[..at].iter().any(|other| other.cid == guest.cid) {
            bail!("Two guests cannot have the same cid, {}", guest.cid);
        }
    }

    let stems: Vec<_> = guests.iter().map(|guest| guest.uds.clone()).collect();
    let sockets: Vec<_> = guests
        .iter()
        .flat_map(|guest| {
            [&guest.socket, &guest.uds].into_iter().chain(guest.ports.iter().map(|(_, path)| path))
        })
        .cloned()
        .collect();
    let (inside, outside) =
        std::os::unix::net::UnixStream::pair().context("Failed to prepare the sandbox")?;
    let inside = Rc::new(inside);
    let sandboxed = !matches!(args.sandbox, Sandboxing::Off);
    let dialer = |number: usize, guest: &GuestSpec| -> Dialer {
        let (inside, stem) = (inside.clone(), guest.uds.clone());
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        if sandboxed {
            Box::new(move |port| host_hv::sandbox::ask(&inside, number, port))
        } else {
            Box::new(move |port| dial(&stem, port))
        }
    };
    let mut server = Server::new(guests, args.once, dialer).context("Failed to serve the vsock device")?;
    server.stop_on(stop_signals()?).context("Failed to prepare for signals")?;
    let serve = move |_| if sandboxed { host_hv::sandbox::serve_dials(stems, outside) } else { Ok(()) };
    let (sandbox, _door) = begin_sandbox(args.sandbox, &sockets, serve)?;
    tell(&sandbox.close(Purpose::Streams).context("Failed to close the sandbox")?);
    server.run().context("Failed to serve the vsock device")
}

#[cfg(target_os = "linux")]
fn fs(args: FsArgs) -> Result<()> {
    use std::sync::Arc;

    use host_hv::fuse::share::{open_root, unopened};
    use host_hv::fuse::{Limits, Server};
    use host_hv::sandbox::Purpose;
    use host_hv::vhost_user::FolderServer;
    use host_hv::virtio::{fs::Fs, vsock::uds};
    use nix::sys::stat::{Mode, umask};

    umask(Mode::from_bits_truncate(0o177));
    let limits = Limits::within(raise_open_files());
    let listener = uds::bind(&args.socket).context("Failed to serve the file system device")?;
    let control =
        args.control.as_ref().map(|path| uds::bind(path).context("Failed to open the control socket"));
    let control = control.transpose()?;
    let (front, desk) = host_hv::control::pair().context("Failed to open the control socket")?;

    let sockets: Vec<_> = std::iter::once(&args.socket).chain(&args.control).cloned().collect();
    let serve =
        move |opener| control.map_or(Ok(()), |control| host_hv::control::front(control, front, opener));
    let (sandbox, door) = begin_sandbox(args.sandbox, &sockets, serve)?;
    let opener = sandbox.opener();
    let shared = Arc::new(Server::new(limits));
    for share in args.share {
        let (name, path) = (share.name.clone(), share.path.clone());
        let root = open_root(&path)
            .and_then(|root| opener.enclose(root).map_err(|error| unopened(&path, error)))
            .and_then(|root| shared.add_opened(share, root));
        root.with_context(|| format!("Failed to share \"{name}\""))?;
    }
    let stop = stop_signals()?;
    tell(&sandbox.close(Purpose::Folders).context("Failed to close the sandbox")?);

    let device = Fs::new(&args.tag, shared.clone(), args.threads as usize)
        .context("Failed to make the file system device")?;
    let mut server = FolderServer::new(listener, &args.socket, device, args.once)
        .context("Failed to serve the file system device")?;
    host_hv::control::desk(desk, shared).context("Failed to serve the control socket")?;
    // The guest's kernel has taken its own programs' masks off already.
    umask(Mode::empty());
    server.stop_on(stop).context("Failed to prepare for signals")?;
    let result = server.run().context("Failed to serve the file system device");
    if let (None, Some(path)) = (&door, &args.control) {
        drop(std::fs::remove_file(path));
    }
    result
}

/// The sandbox, not yet closed, and the process that stays outside; without one, what that would serve is served here.
#[cfg(target_os = "linux")]
fn begin_sandbox(
    mode: Sandboxing,
    sockets: &[PathBuf],
    serve: impl FnOnce(host_hv::sandbox::Opener) -> std::io::Result<()>,
) -> Result<(host_hv::sandbox::Sandbox, Option<host_hv::sandbox::Door>)> {
    use host_hv::sandbox::{Door, Mode, Sandbox};

    let mode = match mode {
        Sandboxing::Auto => Mode::Auto,
        Sandboxing::Strict => Mode::Strict,
        Sandboxing::Off => Mode::Off,
    };
    let sandbox = Sandbox::prepare(mode).context("Failed to prepare the sandbox")?;
    let opener = sandbox.opener();
    if mode == Mode::Off {
        tracing::warn!("No sandbox: a guest that takes this program over may do all that its user may");
        serve(opener).context("Failed to serve the sockets")?;
        return Ok((sandbox, None));
    }
    let door = Door::open(sockets, move || serve(opener)).context("Failed to prepare the sandbox")?;
    Ok((sandbox, Some(door)))
}

/// What of the sandbox holds, and what does not.
#[cfg(target_os = "linux")]
fn tell(report: &host_hv::sandbox::Report) {
    if !report.holds().is_empty() {
        tracing::info!(bolts = %report, "Sandboxed");
    }
    for error in report.missing() {
        tracing::warn!(error = error as &dyn std::error::Error, "The sandbox is not whole");
    }
}

/// Raises the limit of open files as far as it goes; returns what it is then.
#[cfg(target_os = "linux")]
fn raise_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    let Ok((now, most)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, most, most) {
        Ok(()) => most,
        Err(error) => {
            tracing::warn!(%error, most, "Failed to raise the limit of open files");
            now
        }
    }
}

/// A stream that becomes readable when the program is to end.
#[cfg(target_os = "linux")]
fn stop_signals() -> Result<std::os::unix::net::UnixStream> {
    use signal_hook::consts::{SIGINT, SIGTERM};

    let (stop, on_signal) =
        std::os::unix::net::UnixStream::pair().context("Failed to prepare for signals")?;
    for signal in [SIGINT, SIGTERM] {
        let on_signal = on_signal.try_clone().context("Failed to prepare for signals")?;
        signal_hook::low_level::pipe::register(signal, on_signal).context("Failed to prepare for signals")?;
    }
    Ok(stop)
}

#[cfg(not(target_os = "linux"))]
fn vsock(_args: VsockArgs) -> Result<()> {
    bail!("vhost-user needs Linux")
}
