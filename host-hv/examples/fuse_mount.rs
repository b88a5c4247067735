//! Mounts a folder of this machine on this machine, through the file system's server: what a guest would see, with this
//! machine's kernel as the guest's. For suites that need no guest, and for measuring the server alone. Root only.
//!
//!     cargo run -p host-hv --features testing --example fuse_mount -- FOLDER MOUNTPOINT [OWNER]
//!
//! It ends when the mount point is unmounted. The share is the directory `share` there.

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::{File, OpenOptions};
    use std::io::{ErrorKind, Read, Write};
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;
    use std::sync::Arc;

    use anyhow::{Context, Result};
    use host_hv::fuse::{Limits, Owner, Server, ShareSpec};
    use host_hv::testing::fuse::raw;
    use nix::mount::{MsFlags, mount};

    /// A write's data, and its header.
    const BUFFER: usize = (1 << 20) + 4096;
    const THREADS: usize = 4;

    pub(super) fn main() -> Result<()> {
        let mut words = std::env::args().skip(1);
        let folder = PathBuf::from(words.next().context("FOLDER is missing")?);
        let point = words.next().context("MOUNTPOINT is missing")?;
        let owner: Owner = words.next().as_deref().unwrap_or("raw").parse()?;
        let server = Arc::new(Server::new(Limits::within(65536)));
        let path = folder.canonicalize()?;
        server.add_share(ShareSpec { name: "share".into(), path, read_only: false, owner })?;
        // The mask of this process would be taken off a second time.
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
        let fd = device.as_raw_fd();
        let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other");
        let flags = MsFlags::MS_NODEV;
        mount(Some("hospes"), point.as_str(), Some("fuse.hospes"), flags, Some(data.as_str()))
            .context("mount")?;
        println!("mounted");
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (device, server) = (device.try_clone(), server.clone());
                std::thread::spawn(move || serve(device?, &server))
            })
            .collect();
        for thread in threads {
            thread.join().expect("no thread panics")?;
        }
        Ok(())
    }

    fn serve(mut device: File, server: &Server) -> Result<()> {
        host_hv::fuse::sys::prepare_thread();
        let (mut request, mut reply) = (vec![0; BUFFER], vec![0; BUFFER]);
        loop {
            let count = match device.read(&mut request) {
                Ok(count) => count,
                // Unmounted.
                Err(error) if error.raw_os_error() == Some(19) => return Ok(()),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::NotFound) => {
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let written = raw(server, &mut request[..count], &mut reply);
            if written > 0 {
                // A request that was interrupted meanwhile has nobody who waits.
                let _ = device.write(&reply[..written]);
            }
        }
    }
}
