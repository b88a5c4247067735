//! A booted guest.

use std::fs::{self, File};
use std::net::TcpListener;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::lab::run_directory;
use crate::process::read_lossy;
use crate::{Deadline, Lab, Output, Process, Qmp, Shell, spawn};

/// Four times what the slowest machine took with other builds beside it.
const BOOT: Duration = Duration::from_secs(240);
const POWER_OFF: Duration = Duration::from_secs(90);
const INSTALL: Duration = Duration::from_secs(240);
const COMMAND: Duration = Duration::from_secs(60);
const START: Duration = Duration::from_secs(20);
/// How much of the console a failure shows.
const TAIL_LINES: usize = 60;
/// A Unix socket's path has 108 bytes at most, with the closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// What a guest is to be like.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    name: String,
    cpus: u32,
    memory_mib: u32,
    cid: u64,
    vsock: bool,
    ssh: bool,
    drop: Vec<PathBuf>,
    devices: Vec<String>,
}

impl GuestSpec {
    /// Two CPUs, 1 GiB and a vsock device served by `host-hv`. The name is its log's directory: the feature's word.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cpus: 2,
            memory_mib: 1024,
            cid: 42,
            vsock: true,
            ssh: false,
            drop: Vec::new(),
            devices: Vec::new(),
        }
    }

    /// How many CPUs.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// How much memory, in MiB.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The address on vsock.
    pub fn cid(mut self, cid: u64) -> Self {
        self.cid = cid;
        self
    }

    /// No vsock device.
    pub fn without_vsock(mut self) -> Self {
        self.vsock = false;
        self
    }

    /// A network card whose port 22 [`Guest::ssh`] reaches; the guest reaches nothing.
    pub fn ssh(mut self) -> Self {
        self.ssh = true;
        self
    }

    /// A file that the guest finds in `/lab`, on a disk of its own: for large ones; [`Guest::put`] does the rest.
    pub fn drop_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.drop.push(path.into());
        self
    }

    /// More words for QEMU's command line. Relative paths are in the guest's directory ([`Guest::path`]).
    pub fn qemu<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.devices.extend(words.map(str::to_owned));
        self
    }
}

/// A running guest. Dropping it ends its processes and shows the end of its console, which the test runner
/// keeps to itself unless the test failed.
#[derive(Debug)]
pub struct Guest {
    spec: GuestSpec,
    lab: Lab,
    directory: PathBuf,
    /// Held open so that sockets have a short path however deep the checkout is.
    handle: File,
    ssh_port: Option<u16>,
    shell: RwLock<Arc<Shell>>,
    qmp: Mutex<Qmp>,
    // Fields are dropped in this order: the machine before its devices, the lock on the directory last.
    qemu: Mutex<Process>,
    vsock: Option<Mutex<Process>>,
    _lock: File,
}

impl Guest {
    /// Boots one and waits until it is at multi-user.
    pub fn boot(spec: GuestSpec) -> Result<Self> {
        let deadline = Deadline::after(BOOT);
        let lab = Lab::find()?;
        let (directory, lock) = run_directory(&spec.name)?;
        let handle = File::open(&directory)?;
        let ssh_port = if spec.ssh { Some(free_port()?) } else { None };
        let mut vsock = None;
        if spec.vsock {
            let words =
                ["vsock", "--socket", "vsock.sock", "--uds", "vm.vsock", "--cid", &spec.cid.to_string()];
            let words = words.map(str::to_owned);
            let mut device =
                spawn(Lab::program("host-hv")?, &words, &directory, &directory.join("vsock.log"))?;
            let socket = directory.join("vsock.sock");
            Deadline::after(START).poll("the vsock device's socket", || {
                device.expect_alive()?;
                Ok(socket.exists().then_some(()))
            })?;
            vsock = Some(Mutex::new(device));
        }
        let words = qemu_words(&spec, &lab, &directory, ssh_port)?;
        fs::write(directory.join("qemu.args"), words.join("\n"))?;
        let mut qemu = spawn("qemu-system-aarch64", &words, &directory, &directory.join("qemu.log"))?;

        let sockets = Deadline::after(START);
        let mut connect = |name: &str| {
            sockets.poll(&format!("QEMU's socket {name}"), || {
                qemu.expect_alive()?;
                Ok(UnixStream::connect(short_path(&directory, &handle, name)).ok())
            })
        };
        let shell = Shell::new(connect("shell.sock")?)?;
        let qmp = Qmp::new(connect("qmp.sock")?)?;
        let guest = Self {
            spec,
            lab,
            ssh_port,
            shell: RwLock::new(Arc::new(shell)),
            qmp: Mutex::new(qmp),
            qemu: Mutex::new(qemu),
            vsock,
            directory,
            handle,
            _lock: lock,
        };
        guest.wait_boot(None, &deadline)?;
        eprintln!("The guest {} was up after {:.1} s", guest.spec.name, deadline.elapsed().as_secs_f32());
        Ok(guest)
    }

    /// Runs a bash script as root, up to a minute long.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.sh_within(script, COMMAND)
    }

    /// Runs a bash script as root, up to `limit` long.
    pub fn sh_within(&self, script: &str, limit: Duration) -> Result<Output> {
        self.shell().run(script, limit)
    }

    /// Runs a bash script that has to succeed, and gives its standard output.
    pub fn check(&self, script: &str) -> Result<String> {
        self.check_within(script, COMMAND)
    }

    /// As [`check`](Self::check), up to `limit` long.
    pub fn check_within(&self, script: &str, limit: Duration) -> Result<String> {
        let output = self.sh_within(script, limit)?;
        if output.status != 0 {
            bail!(
                "In the guest, this ended with {}: {script}\n{}{}",
                output.status,
                output.stdout,
                output.stderr
            );
        }
        Ok(output.stdout)
    }

    /// Waits until a bash script succeeds, and gives its standard output.
    pub fn wait_until(&self, script: &str, limit: Duration) -> Result<String> {
        let deadline = Deadline::after(limit);
        deadline.poll(&format!("this to succeed in the guest: {script}"), || {
            let output = self.sh(script)?;
            Ok((output.status == 0).then_some(output.stdout))
        })
    }

    /// Writes a file in the guest.
    pub fn put(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.shell().put(path, mode, bytes)
    }

    /// Installs packages as a user would: apt, and no network.
    pub fn install(&self, packages: &[PathBuf]) -> Result<()> {
        let mut names = String::new();
        for package in packages {
            let bytes = fs::read(package).with_context(|| format!("Could not read {}", package.display()))?;
            let file = package.file_name().with_context(|| format!("{} is no file", package.display()))?;
            let path = format!("/root/{}", file.to_string_lossy());
            self.put(&path, 0o644, &bytes)?;
            names.push_str(&format!(" '{path}'"));
        }
        self.check_within(&format!("DEBIAN_FRONTEND=noninteractive apt-get -q -y install{names}"), INSTALL)?;
        Ok(())
    }

    /// The host's end of the guest's vsock: what follows `unix:` in an endpoint.
    pub fn vsock_path(&self) -> PathBuf {
        short_path(&self.directory, &self.handle, "vm.vsock")
    }

    /// The address on vsock.
    pub fn cid(&self) -> u64 {
        self.spec.cid
    }

    /// A file in the guest's directory on this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// `ssh` to `user`, everything but the remote command given.
    pub fn ssh(&self, user: &str) -> Result<Command> {
        let port = self.ssh_port.context("This guest has no network: ask for it with GuestSpec::ssh")?;
        let mut command = Command::new("ssh");
        command
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "LogLevel=ERROR",
            ])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30"])
            .arg("-i")
            .arg(self.lab.file("ssh_key"))
            .arg("-p")
            .arg(port.to_string())
            .arg(format!("{user}@127.0.0.1"));
        Ok(command)
    }

    /// Stops the guest's CPUs; its clock stands still.
    pub fn pause(&self) -> Result<()> {
        self.qmp("stop", &json!({})).map(drop)
    }

    /// Lets them go on.
    pub fn resume(&self) -> Result<()> {
        self.qmp("cont", &json!({})).map(drop)
    }

    /// Pulls the reset line, and waits until it is up again.
    pub fn reset(&self) -> Result<()> {
        let last = self.shell().boot_id();
        self.qmp("system_reset", &json!({}))?;
        self.reconnect()?;
        self.wait_boot(last.as_deref(), &Deadline::after(BOOT)).map(drop)
    }

    /// Runs `act`, which makes the guest reboot, and waits until it is up again.
    pub fn reboots(&self, act: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let last = self.shell().boot_id();
        act(self)?;
        self.wait_boot(last.as_deref(), &Deadline::after(BOOT)).map(drop)
    }

    /// Waits until it has powered itself off.
    pub fn wait_power_off(&self) -> Result<()> {
        let status = lock(&self.qemu).wait(&Deadline::after(POWER_OFF)).with_context(|| self.story())?;
        if !status.success() {
            bail!("QEMU ended with {status}\n{}", self.story());
        }
        Ok(())
    }

    /// One command to QEMU's monitor.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value> {
        lock(&self.qmp).execute(command, arguments)
    }

    /// QEMU's process id.
    pub fn qemu_pid(&self) -> u32 {
        lock(&self.qemu).pid()
    }

    /// The vsock device's process id.
    pub fn vsock_pid(&self) -> Option<u32> {
        self.vsock.as_ref().map(|device| lock(device).pid())
    }

    /// All that the guest has written to its console.
    pub fn console(&self) -> String {
        read_lossy(&self.directory.join("console.log"))
    }

    fn shell(&self) -> Arc<Shell> {
        Arc::clone(&self.shell.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn reconnect(&self) -> Result<()> {
        let mut shell = self.shell.write().unwrap_or_else(PoisonError::into_inner);
        // QEMU takes one client at a time: the last has to be gone.
        shell.close();
        let path = short_path(&self.directory, &self.handle, "shell.sock");
        *shell = Arc::new(Shell::new(UnixStream::connect(path)?)?);
        Ok(())
    }

    fn wait_boot(&self, last: Option<&str>, deadline: &Deadline) -> Result<String> {
        loop {
            if let Some(boot) = self.shell().wait_ready(last, Duration::from_millis(500))? {
                return Ok(boot);
            }
            lock(&self.qemu).expect_alive().with_context(|| self.story())?;
            if self.console().contains("Kernel panic - not syncing") {
                bail!("The guest's kernel panicked\n{}", self.story());
            }
            if deadline.left().is_zero() {
                bail!("The guest was not up after {} s\n{}", deadline.elapsed().as_secs(), self.story());
            }
        }
    }

    /// What a failure shows: the end of the console, and what the lab's own processes said.
    fn story(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n");
        let qemu = read_lossy(&self.directory.join("qemu.log"));
        let vsock = read_lossy(&self.directory.join("vsock.log"));
        let log = self.directory.join("console.log");
        format!("The guest's console ends so (all of it is in {}):\n{tail}\n{qemu}{vsock}", log.display())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        eprintln!("{}", self.story());
    }
}

/// One guest for all the tests of a file. It goes down with the process.
#[derive(Debug)]
pub struct SharedGuest {
    spec: fn() -> GuestSpec,
    prepare: fn(&Guest) -> Result<()>,
    guest: OnceLock<Result<Guest, String>>,
}

impl SharedGuest {
    /// To be booted when the first test asks.
    pub const fn new(spec: fn() -> GuestSpec) -> Self {
        Self { spec, prepare: |_| Ok(()), guest: OnceLock::new() }
    }

    /// Runs once, after the boot and before the first test: installs packages, say.
    pub const fn prepared(mut self, prepare: fn(&Guest) -> Result<()>) -> Self {
        self.prepare = prepare;
        self
    }

    /// The guest. When the boot failed, it failed for every test.
    pub fn get(&self) -> Result<Using<'_>> {
        let guest = self.guest.get_or_init(|| {
            let boot = || {
                let guest = Guest::boot((self.spec)())?;
                (self.prepare)(&guest)?;
                Ok(guest)
            };
            boot().map_err(|error: anyhow::Error| format!("{error:?}"))
        });
        match guest {
            Ok(guest) => Ok(Using(guest)),
            Err(error) => bail!("{error}"),
        }
    }
}

/// A test's hold on a shared guest. Letting go shows the end of the console, as dropping a guest does.
#[derive(Debug)]
pub struct Using<'a>(&'a Guest);

impl Deref for Using<'_> {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        self.0
    }
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        eprintln!("{}", self.story());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn short_path(directory: &Path, handle: &File, name: &str) -> PathBuf {
    let path = directory.join(name);
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return path;
    }
    PathBuf::from(format!("/proc/{}/fd/{}/{name}", std::process::id(), handle.as_raw_fd()))
}

/// A port that nothing listened on a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn qemu_words(spec: &GuestSpec, lab: &Lab, directory: &Path, ssh_port: Option<u16>) -> Result<Vec<String>> {
    let file = |name| lab.file(name).display().to_string();
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
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("-smp", spec.cpus.to_string());
    add("-m", spec.memory_mib.to_string());
    // Shared, so that devices in other processes reach it.
    add("-object", format!("memory-backend-memfd,id=mem,size={}M,share=on", spec.memory_mib));
    add("-kernel", file("vmlinuz"));
    add("-initrd", file("initramfs"));
    add("-append", "root=/dev/vda rw console=ttyAMA0".into());
    // What the guest writes goes to a temporary file that is gone with QEMU.
    let root = file("root.ext4");
    add("-drive", format!("if=none,id=root,file={root},format=raw,snapshot=on,cache=unsafe"));
    if spec.vsock {
        add("-chardev", "socket,id=vsock,path=vsock.sock".into());
        add("-device", "vhost-user-vsock-pci,chardev=vsock".into());
    }
    if let Some(port) = ssh_port {
        add("-netdev", format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"));
        add("-device", "virtio-net-pci,netdev=net,romfile=".into());
    }
    if !spec.drop.is_empty() {
        make_drop(&spec.drop, directory)?;
        add("-drive", "if=none,id=drop,file=drop.ext4,format=raw,readonly=on".into());
        add("-device", "virtio-blk-pci,drive=drop,serial=hospes-drop".into());
    }
    words.extend(spec.devices.iter().cloned());
    Ok(words)
}

/// An ext4 image with these files in it.
fn make_drop(files: &[PathBuf], directory: &Path) -> Result<()> {
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
