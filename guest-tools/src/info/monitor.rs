//! News of this guest, without asking: the kernel and the file system say when something may have changed. It exists
//! only while a host has subscribed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use hospes_protocol::info::Info;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time;

use super::{collect, users, without_gauges};
use crate::async_fd;
use crate::watch::Watcher;

/// How long changes are gathered before they are told as one. One timer, after a change.
const GATHER: Duration = Duration::from_millis(250);

/// rtnetlink(7)'s groups of links, addresses and routes, IPv4 and IPv6 (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Watches what [`Info`] shows.
#[derive(Debug)]
pub struct Monitor {
    network: AsyncFd<OwnedFd>,
    /// Host name and mounts: files of the kernel that say by poll(2) that they have changed.
    hostname: Option<AsyncFd<File>>,
    mounts: Option<AsyncFd<File>>,
    files: Watcher,
    told: Info,
}

impl Monitor {
    /// Begins to watch.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        let network = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&network), &NetlinkAddr::new(0, GROUPS))?;
        let mut files = Watcher::new()?;
        files.add(Path::new(users::SESSIONS), None);
        files.add(Path::new("/run/systemd"), Some("sessions"));
        files.add(Path::new("/etc"), Some("os-release"));
        files.add(Path::new("/usr/lib"), Some("os-release"));
        Ok(Self {
            network: async_fd::register(network, Interest::READABLE)?,
            hostname: polled("/proc/sys/kernel/hostname"),
            mounts: polled("/proc/self/mountinfo"),
            files,
            told: without_gauges(&collect()),
        })
    }

    /// Returns the information once it is other than what was told last, what changes all the time left aside.
    pub async fn changed(&mut self) -> Box<Info> {
        loop {
            self.something().await;
            // One change seldom comes alone, and a link that flaps is one piece of news.
            let _ = time::timeout(GATHER, async {
                loop {
                    self.something().await;
                }
            })
            .await;
            let info = collect();
            let still = without_gauges(&info);
            if still != self.told {
                self.told = still;
                return Box::new(info);
            }
        }
    }

    /// Returns after something that may be news.
    async fn something(&mut self) {
        tokio::select! {
            () = drained(&self.network) => {}
            () = notified(self.hostname.as_ref()) => {}
            () = notified(self.mounts.as_ref()) => {}
            changed = self.files.changed() => if changed.is_err() {
                // Nothing more will come from there; the others go on.
                std::future::pending::<()>().await;
            }
        }
    }
}

fn polled(path: &str) -> Option<AsyncFd<File>> {
    async_fd::register(File::open(path).ok()?, Interest::PRIORITY).ok()
}

/// Returns after messages came; what they say is read again from elsewhere, so they are thrown away. An overrun is news,
/// too.
async fn drained(network: &AsyncFd<OwnedFd>) {
    let mut message = [0; 8192];
    let read = |fd: &OwnedFd| match nix::unistd::read(fd, &mut message) {
        Ok(_) | Err(nix::Error::ENOBUFS) => Ok(()),
        Err(error) => Err(io::Error::from(error)),
    };
    if network.async_io(Interest::READABLE, read).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn notified(file: Option<&AsyncFd<File>>) {
    let Some(file) = file else { return std::future::pending().await };
    match file.ready(Interest::PRIORITY).await {
        Ok(mut ready) => ready.clear_ready(),
        Err(_) => std::future::pending().await,
    }
}
