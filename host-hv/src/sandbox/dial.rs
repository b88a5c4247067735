//! Sockets of the host, connected to from outside of the sandbox: the device says which guest dials which port, and gets
//! a stream or a reason. It names no path, so it reaches what its guests may reach and nothing else.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::virtio::vsock::uds::dial;

/// The guest's number and the port, each four bytes; the answer is an error number, 0 with a stream.
const REQUEST: usize = 8;
const ANSWER: usize = 4;

/// Outside: connects for the guests whose sockets have these stems, on a thread of its own, until the device ends.
pub fn serve_dials(stems: Vec<PathBuf>, mut device: UnixStream) -> io::Result<()> {
    thread::Builder::new().name("dial".into()).spawn(move || {
        let mut request = [0; REQUEST];
        while device.read_exact(&mut request).is_ok() {
            let (guest, port) = request.split_at(4);
            let number = |raw: &[u8]| raw.first_chunk().map_or(u32::MAX, |raw| u32::from_ne_bytes(*raw));
            let stem = usize::try_from(number(guest)).ok().and_then(|guest| stems.get(guest));
            let dialed = stem.map_or(Err(io::ErrorKind::NotFound.into()), |stem| dial(stem, number(port)));
            if let Err(error) = answer(&device, dialed.map(OwnedFd::from)) {
                tracing::warn!(%error, "The device does not take a stream");
                return;
            }
        }
    })?;
    Ok(())
}

fn answer(device: &UnixStream, dialed: io::Result<OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let (code, stream) = match dialed {
        Ok(stream) => (0, Some(stream)),
        Err(error) => (error.raw_os_error().unwrap_or(libc::ECONNREFUSED), None),
    };
    let streams: Vec<_> = stream.iter().map(AsFd::as_fd).collect();
    if !streams.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&streams)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(device, &[IoSlice::new(&code.to_ne_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Inside: has a port dialed for a guest.
pub fn ask(mut door: &UnixStream, guest: u32, port: u32) -> io::Result<UnixStream> {
    let mut request = [0; REQUEST];
    request[..4].copy_from_slice(&guest.to_ne_bytes());
    request[4..].copy_from_slice(&port.to_ne_bytes());
    door.write_all(&request)?;
    let mut code = [0; ANSWER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(door, &mut [IoSliceMut::new(&mut code)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if received.bytes != ANSWER {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the process that dials has ended"));
    }
    let code = i32::from_ne_bytes(code);
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code));
    }
    let stream = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    stream.map(UnixStream::from).ok_or_else(|| io::Error::other("a stream without a descriptor"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_guest_reaches_its_own_ports_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let stem = |name: &str| directory.path().join(name);
        let listener = UnixListener::bind(stem("one_7")).expect("a socket");
        let _other = UnixListener::bind(stem("secret")).expect("a socket");
        let (inside, outside) = UnixStream::pair().expect("a pair");
        serve_dials(vec![stem("one"), stem("two")], outside).expect("a thread");
        let mut stream = ask(&inside, 0, 7).expect("connected");
        stream.write_all(b"hello").expect("written");
        let mut heard = [0; 5];
        listener.accept().expect("accepted").0.read_exact(&mut heard).expect("read");
        assert_eq!(&heard, b"hello");
        for (guest, port) in [(0, 8), (1, 7), (2, 7), (u32::MAX, 7)] {
            assert!(ask(&inside, guest, port).is_err(), "{guest} {port}");
        }
        assert!(ask(&inside, 0, 7).is_ok());
    }
}
