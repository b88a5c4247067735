//! QEMU's command line, and devices that are plugged in later.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{Deadline, Lab, Process, Qmp, Shell, spawn};

const START: Duration = Duration::from_secs(30);
/// A Unix socket's path has 108 bytes at most, with the closing zero.
const SOCKET_PATH_MAX: usize = 107;
/// Slots for devices that come while the guest runs.
const SLOTS: usize = 4;

/// QEMU, and the lab's two connections to it. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) qemu: Process,
    pub(crate) qmp: Qmp,
    slots_used: usize,
    directory: Directory,
}

/// A guest's directory on this machine: its sockets, its logs.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Held open so that sockets have a short path however deep the checkout is.
    handle: File,
}

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let handle = File::open(path).with_context(|| format!("Could not open {}", path.display()))?;
        Ok(Self { path: path.to_owned(), handle })
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A path that fits into a socket's address, in this process and in those that it starts.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return path;
        }
        PathBuf::from(format!("/proc/{}/fd/{}/{name}", std::process::id(), self.handle.as_raw_fd()))
    }
}

/// What a machine has besides what every one has. Paths are relative to its directory.
#[derive(Clone, Debug)]
pub(crate) enum Device {
    /// The vhost-user device that listens on `vsock.sock`.
    Vsock,
    /// The vhost-user file system that listens on `fs.sock`.
    Folders,
    /// A network card with the guest's port 22 behind this port.
    Network(u16),
    /// The read-only disk `drop.ext4`.
    Drop,
}

/// The words that make the machine itself: what a frozen guest needs again, exactly, to be resumed.
pub(crate) fn machine_words(lab: &Lab, cpus: u32, memory_mib: u32) -> Vec<String> {
    let mut words: Vec<String> = [
        "-nodefaults -nographic",
        "-M virt,gic-version=3,memory-backend=mem -cpu cortex-a76 -accel tcg,thread=multi",
        "-serial file:console.log",
        "-qmp unix:qmp.sock,server=on,wait=off",
        "-device virtio-rng-pci -device virtio-serial-pci",
        "-chardev socket,id=lab,path=shell.sock,server=on,wait=off",
        "-device virtserialport,chardev=lab,name=hospes.lab",
        "-device virtio-blk-pci,drive=root",
    ]
    .iter()
    .flat_map(|line| line.split(' ').map(str::to_owned))
    .collect();
    for slot in 1..=SLOTS {
        words.extend(["-device".into(), format!("pcie-root-port,id=slot{slot},chassis={slot},slot={slot}")]);
    }
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("-smp", cpus.to_string());
    add("-m", memory_mib.to_string());
    // Shared, so that devices in other processes reach it.
    add("-object", format!("memory-backend-memfd,id=mem,size={memory_mib}M,share=on"));
    add("-kernel", lab.file("vmlinuz").display().to_string());
    add("-initrd", lab.file("initramfs").display().to_string());
    add("-append", "root=/dev/vda rw console=ttyAMA0 net.ifnames=0".into());
    words
}

/// The guest's disk. What it writes goes to a temporary file that is gone with QEMU, unless it is to be kept.
pub(crate) fn disk_words(disk: &Path, keep: bool) -> [String; 2] {
    let snapshot = if keep { "off" } else { "on" };
    // A comma ends the file's name unless it is doubled.
    let file = disk.display().to_string().replace(',', ",,");
    ["-drive".into(), format!("if=none,id=root,file={file},format=raw,snapshot={snapshot},cache=unsafe")]
}

impl Device {
    /// As part of the machine from its start.
    pub(crate) fn words(&self) -> Vec<String> {
        let words = match self {
            Self::Vsock => {
                "-chardev socket,id=vsock,path=vsock.sock -device vhost-user-vsock-pci,chardev=vsock"
                    .to_owned()
            }
            Self::Folders => {
                "-chardev socket,id=fs,path=fs.sock -device vhost-user-fs-pci,chardev=fs,tag=hospes"
                    .to_owned()
            }
            Self::Network(port) => format!(
                "-netdev user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22 \
                 -device virtio-net-pci,netdev=net,romfile="
            ),
            Self::Drop => "-drive if=none,id=drop,file=drop.ext4,format=raw,readonly=on \
                           -device virtio-blk-pci,drive=drop,serial=hospes-drop"
                .to_owned(),
        };
        words.split_ascii_whitespace().map(str::to_owned).collect()
    }
}

impl Machine {
    /// Starts QEMU in `directory` and connects to it.
    pub(crate) fn start(directory: &Path, words: &[String]) -> Result<(Self, Shell)> {
        let directory = Directory::open(directory)?;
        fs::write(directory.file("qemu.args"), words.join("\n"))?;
        let mut qemu = spawn("qemu-system-aarch64", words, &directory.path, &directory.file("qemu.log"))?;
        let deadline = Deadline::after(START);
        let mut connect = |name: &str| {
            deadline.poll(&format!("QEMU's socket {name}"), || {
                qemu.expect_alive()?;
                Ok(UnixStream::connect(directory.socket(name)).ok())
            })
        };
        let shell = Shell::new(connect("shell.sock")?)?;
        let qmp = Qmp::new(connect("qmp.sock")?)?;
        Ok((Self { qemu, qmp, slots_used: 0, directory }, shell))
    }

    /// Another connection to the shell's port; QEMU takes one at a time, so the last has to be closed.
    pub(crate) fn shell(&self) -> Result<Shell> {
        Shell::new(UnixStream::connect(self.directory.socket("shell.sock"))?)
    }

    /// Plugs a device into the running machine.
    pub(crate) fn plug(&mut self, device: &Device) -> Result<()> {
        if self.slots_used == SLOTS {
            bail!("All {SLOTS} of the machine's slots are taken");
        }
        self.slots_used += 1;
        let bus = format!("slot{}", self.slots_used);
        let qmp = &mut self.qmp;
        match device {
            Device::Vsock => {
                let address = json!({ "type": "unix", "data": { "path": "vsock.sock" } });
                let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
                qmp.execute("chardev-add", &json!({ "id": "vsock", "backend": backend }))?;
                let device = json!({ "driver": "vhost-user-vsock-pci", "id": "vsock", "chardev": "vsock", "bus": bus });
                qmp.execute("device_add", &device)?;
            }
            Device::Folders => {
                let address = json!({ "type": "unix", "data": { "path": "fs.sock" } });
                let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
                qmp.execute("chardev-add", &json!({ "id": "fs", "backend": backend }))?;
                let device = json!({
                    "driver": "vhost-user-fs-pci", "id": "fs", "chardev": "fs", "tag": "hospes", "bus": bus,
                });
                qmp.execute("device_add", &device)?;
            }
            Device::Network(port) => {
                let forward = json!([{ "str": format!("tcp:127.0.0.1:{port}-:22") }]);
                let net = json!({ "type": "user", "id": "net", "restrict": true, "hostfwd": forward });
                qmp.execute("netdev_add", &net)?;
                let device =
                    json!({ "driver": "virtio-net-pci", "netdev": "net", "romfile": "", "bus": bus });
                qmp.execute("device_add", &device)?;
            }
            Device::Drop => {
                let file = json!({ "driver": "file", "filename": "drop.ext4" });
                let drive = json!({ "node-name": "drop", "driver": "raw", "read-only": true, "file": file });
                qmp.execute("blockdev-add", &drive)?;
                let device = json!({ "driver": "virtio-blk-pci", "drive": "drop", "serial": "hospes-drop", "bus": bus });
                qmp.execute("device_add", &device)?;
            }
        }
        Ok(())
    }
}

/// An ext4 image `drop.ext4` with these files in it.
pub(crate) fn make_drop(files: &[PathBuf], directory: &Path) -> Result<()> {
    let staging = directory.join("drop");
    fs::create_dir(&staging)?;
    let mut bytes = 0;
    for file in files {
        let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
        bytes += fs::copy(file, staging.join(name))
            .with_context(|| format!("Could not copy {}", file.display()))?;
    }
    let mib = bytes / (1 << 20) + 16;
    let output = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d", "drop", "drop.ext4", &format!("{mib}M")])
        .current_dir(directory)
        .output()
        .context("Could not run mke2fs: run `make setup`")?;
    if !output.status.success() {
        bail!("Could not make the guest's second disk: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::remove_dir_all(&staging)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_deep_in_the_tree_has_an_address() -> Result<()> {
        let root = tempfile::tempdir()?;
        let deep = root.path().join("deep/".repeat(40));
        fs::create_dir_all(&deep)?;
        let directory = Directory::open(&deep)?;
        let _listener = UnixListener::bind(directory.socket("socket"))?;
        assert!(deep.join("socket").exists());
        UnixStream::connect(directory.socket("socket"))?;
        Ok(())
    }

    #[test]
    fn a_comma_in_a_disks_name_is_part_of_it() {
        assert_eq!(
            disk_words(Path::new("/a,b"), false)[1],
            "if=none,id=root,file=/a,,b,format=raw,snapshot=on,cache=unsafe"
        );
    }
}
