//! `host-hv`: devices for virtual machines.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

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
    /// "OK <port>" when the guest has agreed, or "ERR <reason>". A guest that connects to port P of cid 2 reaches
    /// whoever listens at the same path with "_P" appended.
    Vsock(VsockArgs),
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

    /// The most connections at a time
    #[arg(long, value_name = "COUNT", default_value_t = 8192)]
    max_connections: usize,

    /// Exit when the VMM has gone, rather than wait for the next
    #[arg(long)]
    once: bool,
}

fn parse_port(text: &str) -> Result<(u32, PathBuf), String> {
    let (port, path) = text.split_once('=').ok_or("expected PORT=PATH")?;
    Ok((port.parse().map_err(|error| format!("{port}: {error}"))?, PathBuf::from(path)))
}

fn main() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Cli::parse().command {
        Command::Vsock(args) => vsock(args),
    }
}

#[cfg(target_os = "linux")]
fn vsock(args: VsockArgs) -> Result<()> {
    use host_hv::vhost_user::{GuestSpec, Server};
    use host_hv::virtio::vsock::Limits;

    if args.max_connections == 0 {
        bail!("--max-connections must be 1 or more");
    }
    let spec = GuestSpec {
        cid: args.cid,
        socket: args.socket,
        uds: args.uds,
        ports: args.port_uds,
        limits: Limits { connections: args.max_connections, ..Limits::default() },
    };
    let mut server = Server::new(vec![spec], args.once).context("Failed to serve the vsock device")?;
    server.run().context("Failed to serve the vsock device")
}

#[cfg(not(target_os = "linux"))]
fn vsock(_args: VsockArgs) -> Result<()> {
    bail!("vhost-user needs Linux")
}
