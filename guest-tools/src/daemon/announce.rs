//! The hint to a host that listens for one: "I am here, dial back". One attempt when the daemon starts, and whatever
//! comes of it changes nothing here.

use std::io;

use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::handshake::Announce;
use hospes_protocol::keys::PublicKey;
use hospes_protocol::limits::ANNOUNCE_PORT;
use vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

/// Says to the host that this guest is there. On another thread: connecting may wait for a host that does not answer.
pub async fn announce(key: PublicKey) {
    let said = tokio::task::spawn_blocking(move || say(key)).await;
    match said {
        Ok(Ok(())) => tracing::info!("Announced to the host"),
        Ok(Err(error)) => tracing::debug!("The host takes no announcements: {error}"),
        Err(error) => tracing::debug!("The announcement failed: {error}"),
    }
}

fn say(guest_key: PublicKey) -> io::Result<()> {
    use std::io::Write;
    let hostname = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let mut frame = Vec::new();
    frame::put(FrameId::ANNOUNCE, &Announce { hostname, guest_key }, &mut frame);
    let mut stream = VsockStream::connect(&VsockAddr::new(VMADDR_CID_HOST, ANNOUNCE_PORT))?;
    stream.write_all(&frame)
}
