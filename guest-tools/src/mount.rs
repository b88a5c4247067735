//! Mounts a file system of a user's, which takes root: copied files are shown in it by that user's desktop helper.
//!
//! Whoever connects to [`socket`] gets, with the path of the mount point, the device over which the kernel asks. It is
//! mounted for as long as they stay connected, beneath [`directory`], in a directory with the number of the user who the
//! kernel says they are: read-only, with no devices, no set-id bits and nothing to execute, and nobody else may enter it,
//! root included. What is in it is theirs to say, so that nothing that we or another user does may look into it.
//!
//! This is no part of the daemon: that has neither the right to mount nor the name space in which users would see it.
#![expect(unsafe_code, reason = "an inherited socket is taken over by its number")]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};

/// Users who may have something mounted at once.
const USERS: usize = 64;
/// How long a user may take to take what they asked for.
const TAKE: Duration = Duration::from_secs(5);
/// `SD_LISTEN_FDS_START` of `sd_listen_fds(3)`.
const FIRST: i32 = 3;

/// The socket's place.
#[must_use]
pub fn socket(run: &Path) -> PathBuf {
    run.join("mount.sock")
}

/// Where the mount points are.
#[must_use]
pub fn directory(run: &Path) -> PathBuf {
    run.join("clip")
}

/// Why nobody can be served.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no socket.
    #[error("No socket was passed: systemd starts hospes-mount, or say --listen")]
    NoSocket,
    /// The system.
    #[error("Could not {act}: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// Its words.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(act: &'static str) -> impl Fn(E) -> MountError {
    move |source| MountError::Io { act, source: source.into() }
}

/// The socket that systemd passed.
///
/// # Errors
/// [`MountError::NoSocket`].
pub fn inherited() -> Result<UnixListener, MountError> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) || number("LISTEN_FDS") != Some(1) {
        return Err(MountError::NoSocket);
    }
    // SAFETY: systemd passed this descriptor to us, and nobody here has touched it.
    Ok(unsafe { UnixListener::from_raw_fd(FIRST) })
}

/// A socket of our own, for everybody.
///
/// # Errors
/// The operating system's.
pub fn listen(path: &Path) -> Result<UnixListener, MountError> {
    let listener = UnixListener::bind(path).map_err(failed("listen"))?;
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(path, everybody).map_err(failed("open the socket to users"))?;
    Ok(listener)
}

/// Serves users, each on a thread, until the last one has left where `once` says so; a socket of systemd's starts the
/// next of us.
///
/// # Errors
/// [`MountError`].
pub fn serve(listener: &UnixListener, directory: &Path, once: bool) -> Result<(), MountError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(failed("make the directory of mount points"))?;
    // What one of us that was killed has left: those who had it ask again.
    let left = fs::read_dir(directory).map_err(failed("list the mount points"))?;
    left.flatten().for_each(|entry| clear(&entry.path()));
    let users = Arc::new(Mutex::new(Vec::<u32>::new()));
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("take a user")(error)),
        };
        let Ok(credentials) = getsockopt(&stream, sockopt::PeerCredentials) else { continue };
        let (uid, gid) = (credentials.uid(), credentials.gid());
        {
            let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
            // One of each: a second one is closed, which its helper says in its log.
            if users.contains(&uid) || users.len() >= USERS {
                continue;
            }
            users.push(uid);
        }
        let (users, point) = (Arc::clone(&users), directory.join(uid.to_string()));
        std::thread::spawn(move || {
            if let Err(error) = attend(stream, &point, uid, gid) {
                tracing::warn!("Nothing is mounted for user {uid}: {error}");
            }
            let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
            users.retain(|other| *other != uid);
            if once && users.is_empty() {
                // Whoever connects at this moment is still in the socket's queue.
                std::process::exit(0);
            }
        });
    }
}

/// One user's, until they leave.
fn attend(mut stream: UnixStream, point: &Path, uid: u32, gid: u32) -> Result<(), MountError> {
    DirBuilder::new().mode(0o700).create(point).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(failed("make the mount point")(error)),
    })?;
    let mounted = mount_for(point, uid, gid).and_then(|device| {
        let rights = [device.as_raw_fd()];
        stream.set_write_timeout(Some(TAKE)).map_err(failed("hand the device over"))?;
        let (bytes, rights) =
            ([IoSlice::new(point.as_os_str().as_bytes())], [ControlMessage::ScmRights(&rights)]);
        sendmsg::<()>(stream.as_raw_fd(), &bytes, &rights, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(failed("hand the device over"))
    });
    if mounted.is_ok() {
        tracing::info!("Mounted {} for user {uid}", point.display());
        let mut word = [0];
        // They say nothing: this is their end.
        while matches!(stream.read(&mut word), Ok(1..)) {}
    }
    clear(point);
    mounted.map(drop)
}

fn mount_for(point: &Path, uid: u32, gid: u32) -> Result<OwnedFd, MountError> {
    let device: File =
        OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(failed("open /dev/fuse"))?;
    let data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("hospes"), point, Some("fuse.hospes"), flags, Some(data.as_str())).map_err(failed("mount"))?;
    Ok(device.into())
}

/// Takes away whatever is mounted there, and the mount point.
fn clear(point: &Path) {
    while umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
    if let Err(error) = fs::remove_dir(point)
        && error.raw_os_error() != Some(Errno::ENOENT as i32)
    {
        tracing::warn!("{} cannot be removed: {error}", point.display());
    }
}
