//! Gets a file system of ours mounted, which takes root: in a guest hospes-mount does it, on a host fusermount3.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hospes_fuse::abi::OUT_HEADER;
use nix::errno::Errno;
use nix::sys::uio::writev;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use crate::pipe::set_nonblocking;
use crate::readiness::register;

/// How long mounting may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the largest request: the least that the kernel takes is 8 KiB.
const REQUEST: usize = 16 * 1024;
/// `FUSE_NOTIFY_INVAL_ENTRY`.
const INVAL_ENTRY: i32 = 3;
/// What fusermount3 is asked for besides what it does for every user: only this user may enter, and it goes with us.
const OPTIONS: &str = "ro,nosuid,nodev,noexec,fsname=hospes,subtype=hospes,auto_unmount";

/// Who mounts.
#[derive(Debug, Clone)]
pub enum Mounter {
    /// Who listens at this socket: hospes-mount.
    Socket(PathBuf),
    /// fusermount3, on this directory.
    Fusermount(PathBuf),
}

/// Why nothing is mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The system.
    #[error("Copied files cannot be shown: {act} failed: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// Its words.
        source: io::Error,
    },
    /// fusermount3 is missing.
    #[error("Copied files cannot be shown: fusermount3 is missing. Install the package fuse3")]
    NoFusermount,
    /// Who mounts gave no device.
    #[error("Copied files cannot be shown: who mounts gave no device")]
    NoDevice,
}

fn failed(act: &'static str) -> impl Fn(io::Error) -> MountError {
    move |source| MountError::Io { act, source }
}

/// A mounted file system, until it is dropped.
#[derive(Debug)]
pub struct Device {
    /// Where it is.
    pub point: PathBuf,
    fd: AsyncFd<OwnedFd>,
    _keeper: Keeper,
}

/// Whose end unmounts.
#[derive(Debug)]
struct Keeper {
    _stream: UnixStream,
    program: Option<Child>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(mut program) = self.program.take() {
            // It ends as our end of its socket closes, which is just now.
            std::thread::spawn(move || program.wait());
        }
    }
}

impl Mounter {
    /// Mounts.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn mount(&self) -> Result<Device, MountError> {
        let mounter = self.clone();
        let mounted = spawn_blocking(move || match mounter {
            Self::Socket(path) => by_socket(&path),
            Self::Fusermount(point) => by_fusermount(&point),
        });
        let (point, fd, keeper) = mounted.await.map_err(|_| MountError::NoDevice)??;
        set_nonblocking(&fd).map_err(failed("setting the device up"))?;
        let fd = register(fd, Interest::READABLE).map_err(failed("listening to the device"))?;
        Ok(Device { point, fd, _keeper: keeper })
    }
}

type Mounted = (PathBuf, OwnedFd, Keeper);

fn by_socket(path: &std::path::Path) -> Result<Mounted, MountError> {
    let stream = UnixStream::connect(path).map_err(failed("asking hospes-mount"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed("asking hospes-mount"))?;
    let (point, fd) = receive(&stream)?;
    let point = PathBuf::from(std::ffi::OsString::from_vec(point));
    Ok((point, fd, Keeper { _stream: stream, program: None }))
}

fn by_fusermount(point: &std::path::Path) -> Result<Mounted, MountError> {
    use std::os::unix::fs::DirBuilderExt;
    // What a killed one of us has left there is in the way of everything, this look included.
    if std::fs::metadata(point).is_err_and(|error| error.raw_os_error() == Some(Errno::ENOTCONN as i32)) {
        let _ = Command::new("fusermount3").args(["-u", "-q", "-z"]).arg(point).status();
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(point);
    made.map_err(failed("making its directory"))?;
    let (ours, its) = UnixStream::pair().map_err(failed("making a socket"))?;
    ours.set_read_timeout(Some(PATIENCE)).map_err(failed("making a socket"))?;
    // It sends the device over the socket that this names.
    // A service of systemd's that may gain no rights asks the user's manager to start it.
    let mut command = if nix::sys::prctl::get_no_new_privs().unwrap_or(false) {
        let mut command = Command::new("systemd-run");
        command.args([
            "--user",
            "--pipe",
            "--quiet",
            "--collect",
            "--setenv=_FUSE_COMMFD=0",
            "--",
            "fusermount3",
        ]);
        command
    } else {
        Command::new("fusermount3")
    };
    let program = command
        .args(["-o", OPTIONS, "--"])
        .arg(point)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(its))
        .stdout(Stdio::null())
        .spawn();
    let mut program = match program {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(MountError::NoFusermount),
        other => other.map_err(failed("starting fusermount3"))?,
    };
    match receive(&ours) {
        Ok((_, fd)) => Ok((point.to_owned(), fd, Keeper { _stream: ours, program: Some(program) })),
        Err(error) => {
            drop(ours);
            let _ = program.wait();
            Err(error)
        }
    }
}

/// Some bytes, and the descriptor that comes with them.
fn receive(stream: &UnixStream) -> Result<(Vec<u8>, OwnedFd), MountError> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(|error| failed("receiving the device")(error.into()))?;
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((bytes[..received.bytes].to_vec(), device.ok_or(MountError::NoDevice)?))
}

impl Device {
    /// The next request, into `space`. `None` once it is unmounted.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) async fn request<'s>(&self, space: &'s mut Vec<u8>) -> io::Result<Option<&'s [u8]>> {
        space.resize(REQUEST, 0);
        loop {
            let read = self.fd.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, space)?)).await;
            match read {
                Ok(n) => return Ok(Some(&space[..n])),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    // Who asked has been ended meanwhile.
                    Some(Errno::ENOENT | Errno::EINTR) => (),
                    Some(Errno::ENODEV) => return Ok(None),
                    _ => return Err(error),
                },
            }
        }
    }

    /// Answers a request.
    pub(super) fn answer(&self, unique: u64, answer: Result<&[u8], Errno>) {
        let (error, bytes) = match answer {
            Ok(bytes) => (0, bytes),
            Err(errno) => (-(errno as i32), &[][..]),
        };
        let header = header(OUT_HEADER + bytes.len(), error, unique);
        // Where nobody waits any more there is nobody to be told.
        let _ = writev(self.fd.get_ref(), &[IoSlice::new(&header), IoSlice::new(bytes)]);
    }

    /// Has the kernel forget these names, unless it needs them. It may wait for a request that only we can answer, so it
    /// is done on another thread.
    pub(super) async fn forget(&self, names: Vec<(u64, Vec<u8>)>) {
        let Ok(fd) = self.fd.get_ref().try_clone() else { return };
        let told = spawn_blocking(move || {
            for (directory, name) in names {
                let mut body = directory.to_le_bytes().to_vec();
                body.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_le_bytes());
                body.extend_from_slice(&[0; 4]);
                body.extend_from_slice(&name);
                body.push(0);
                let header = header(OUT_HEADER + body.len(), INVAL_ENTRY, 0);
                let _ = writev(&fd, &[IoSlice::new(&header), IoSlice::new(&body)]);
            }
        });
        let _ = told.await;
    }
}

/// `fuse_out_header`.
fn header(len: usize, error: i32, unique: u64) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    header[4..8].copy_from_slice(&error.to_le_bytes());
    header[8..].copy_from_slice(&unique.to_le_bytes());
    header
}
