//! Our server of shared folders and both of Debian's virtiofsd, in one guest: what the suites run on and the benchmark
//! measures.
//!
//! All three have the same cache mode and the same validity (`auto`, a second), extended attributes, no write-back
//! cache, and pass owners through; each is sandboxed as it is by default. All folders are on the same file system.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::lab::workspace;
use crate::{Deadline, Guest, GuestSpec, Output, Process, spawn};

/// Debian 12's, in C; qemu-system-arm brings it.
const IN_C: &str = "/usr/lib/qemu/virtiofsd";
const START: Duration = Duration::from_secs(30);
/// The guest's: room for what is unpacked from it.
const MEMORY_MIB: u32 = 2048;

/// One server with its folder.
#[derive(Debug)]
pub struct FolderServer {
    /// `ours`, `virtiofsd 7.2` or `virtiofsd 1.13`.
    pub name: &'static str,
    /// The folder on this machine.
    pub folder: PathBuf,
    /// The same in the guest, below the suites' tree too.
    pub mount: String,
    process: Process,
}

/// The guest that has all of them. The disk of suites is its `/suites`.
#[derive(Debug)]
pub struct Trio {
    /// The guest.
    pub guest: Guest,
    /// Ours comes first.
    pub servers: Vec<FolderServer>,
    _directory: TempDir,
}

impl Trio {
    /// Starts the servers and the guest. `name` is its log's directory; `ours` is our server's program, and the folders
    /// lie in `parent`.
    pub fn start(name: &str, ours: &Path, parent: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hospes-").tempdir_in(parent)?;
        let disk = suites()?;
        let mut servers = Vec::new();
        let mut words = vec![
            "-drive".to_owned(),
            format!("if=none,id=suites,file={},format=raw,readonly=on", disk.display()),
            "-device".to_owned(),
            "virtio-blk-pci,drive=suites,serial=suites".to_owned(),
        ];
        for (name, tag) in [("ours", "ours"), ("virtiofsd 7.2", "in-c"), ("virtiofsd 1.13", "in-rust")] {
            let folder = directory.path().join(tag);
            fs::create_dir(&folder)?;
            fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            let socket = directory.path().join(format!("{tag}.sock"));
            let (socket_word, folder_word) = (socket.display().to_string(), folder.display().to_string());
            let (program, server_words) = command(tag, ours, &socket_word, &folder_word)?;
            let log = directory.path().join(format!("{tag}.log"));
            let mut process = spawn(program, &server_words, directory.path(), &log)?;
            Deadline::after(START).poll(&format!("the socket of {name}"), || {
                process.expect_alive()?;
                Ok(socket.exists().then_some(()))
            })?;
            words.extend([
                "-chardev".to_owned(),
                format!("socket,id={tag},path={socket_word}"),
                "-device".to_owned(),
                format!("vhost-user-fs-pci,chardev={tag},tag={tag}"),
            ]);
            let mount = format!("/mnt/{tag}{}", if tag == "ours" { "/share" } else { "" });
            servers.push(FolderServer { name, folder, mount, process });
        }
        let guest =
            Guest::boot(GuestSpec::new(name).without_vsock().memory_mib(MEMORY_MIB).qemu_words(words))?;
        guest.check(
            "mkdir -p /suites && mount -o ro /dev/disk/by-id/virtio-suites /suites
             for at in proc dev tmp mnt; do mount --rbind /$at /suites/$at; done
             for tag in ours in-c in-rust; do mkdir /mnt/$tag && mount -t virtiofs $tag /mnt/$tag || exit; done
             ls /mnt/ours/share",
        )?;
        Ok(Self { guest, servers, _directory: directory })
    }

    /// Runs a bash script as root in the guest, among the suites' programs.
    pub fn sh(&self, script: &str, limit: Duration) -> Result<Output> {
        // The script is in a file: quoting is the shell's business alone.
        self.guest.put("/tmp/script", 0o644, script.as_bytes())?;
        self.guest.sh_within("chroot /suites /bin/bash /tmp/script", limit)
    }

    /// As [`sh`](Self::sh), and it has to succeed; gives its standard output.
    pub fn check(&self, script: &str, limit: Duration) -> Result<String> {
        let output = self.sh(script, limit)?;
        ensure!(
            output.status == 0,
            "In the guest, this ended with {}: {script}\n{}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }
}

impl FolderServer {
    /// What it has used of the processors so far, all its processes together.
    pub fn cpu(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for pid in self.pids()? {
            let clock: ClockId = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))?;
            sum += clock_gettime(clock)?.into();
        }
        Ok(sum)
    }

    /// Its processes.
    pub fn pids(&self) -> Result<BTreeSet<u32>> {
        let mut all = BTreeSet::new();
        let mut unseen = vec![self.process.pid()];
        while let Some(pid) = unseen.pop() {
            all.insert(pid);
            for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                unseen.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        Ok(all)
    }

    /// What it has said.
    pub fn log(&self) -> String {
        self.process.output()
    }
}

/// How a server is started.
fn command(tag: &str, ours: &Path, socket: &str, folder: &str) -> Result<(PathBuf, Vec<String>)> {
    let (program, words) = match tag {
        "ours" => {
            let share = format!("share={folder}:owner=raw");
            (ours.to_owned(), vec!["fs".into(), "--socket".into(), socket.into(), "--share".into(), share])
        }
        "in-c" => {
            let words = format!("-o cache=auto -o xattr --socket-path={socket} -o source={folder}");
            (PathBuf::from(IN_C), words.split(' ').map(str::to_owned).collect())
        }
        _ => {
            let words = format!("--cache auto --xattr --socket-path {socket} --shared-dir {folder}");
            (script(&["peers.sh", "virtiofsd"])?, words.split(' ').map(str::to_owned).collect())
        }
    };
    Ok((program, words))
}

/// The disk of suites.
fn suites() -> Result<PathBuf> {
    let path = script(&["suites.sh", "--path"])?;
    ensure!(
        path.exists(),
        "The disk of suites is not built: {} is missing. Run `make suites`.",
        path.display()
    );
    Ok(path)
}

/// What one of the lab's scripts prints, as a path.
fn script(words: &[&str]) -> Result<PathBuf> {
    let [name, words @ ..] = words else { bail!("no script is named") };
    let script = workspace().join("tests/lab").join(name);
    let output = Command::new("sh")
        .arg(&script)
        .args(words)
        .output()
        .with_context(|| format!("Could not run {}", script.display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        script.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(Path::new(String::from_utf8_lossy(&output.stdout).trim()).to_owned())
}
