//! A booted guest.

use std::fs::{self, File};
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::frozen::{self, BOOT, CPUS, Frozen, MEMORY_MIB};
use crate::lab::run_directory;
use crate::machine::{Device, Directory, Machine, disk_words, machine_words, make_drop};
use crate::process::read_lossy;
use crate::{Deadline, Lab, Output, Process, Shell, spawn};

const PLUG: Duration = Duration::from_secs(60);
const POWER_OFF: Duration = Duration::from_secs(90);
const COMMAND: Duration = Duration::from_secs(60);
const START: Duration = Duration::from_secs(30);
/// How much of the console a failure shows.
const TAIL_LINES: usize = 60;

/// What a guest is to be like.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    name: String,
    cold: bool,
    cpus: u32,
    memory_mib: u32,
    cid: u64,
    vsock: Vsock,
    folders: Option<Vec<String>>,
    ssh: bool,
    installed: Vec<PathBuf>,
    drop: Vec<PathBuf>,
    qemu: Vec<String>,
    screens: usize,
}

impl GuestSpec {
    /// Two CPUs, 1 GiB and a vsock device served by `host-hv`. The name is its log's directory: the feature's word.
    ///
    /// It is resumed from a saved one and gets its devices then, unless something here asks for a boot.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cold: false,
            cpus: CPUS,
            memory_mib: MEMORY_MIB,
            cid: 42,
            vsock: Vsock::Own { program: None, sibling: None },
            folders: None,
            ssh: false,
            installed: Vec::new(),
            drop: Vec::new(),
            qemu: Vec::new(),
            screens: 0,
        }
    }

    /// The guest with a screen, and so many of them: the first is there, others come when somebody gives them a size. Each
    /// has a VNC server, `vnc0.sock` and on. Boots cold.
    pub fn screens(mut self, count: usize) -> Self {
        self.screens = count;
        self.cold()
    }

    /// Booted from its first instruction, with its devices there.
    pub fn cold(mut self) -> Self {
        self.cold = true;
        self
    }

    /// How many CPUs. Boots cold.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self.cold()
    }

    /// How much memory, in MiB. Boots cold.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self.cold()
    }

    /// The address on vsock.
    pub fn cid(mut self, cid: u64) -> Self {
        self.cid = cid;
        self
    }

    /// No vsock device.
    pub fn without_vsock(mut self) -> Self {
        self.vsock = Vsock::None;
        self
    }

    /// A vsock device served by this `vhost-device-vsock` instead, to be measured beside ours.
    pub fn vsock_by(mut self, program: impl Into<PathBuf>) -> Self {
        self.vsock = Vsock::Own { program: Some(program.into()), sibling: None };
        self
    }

    /// The process that serves its vsock device serves another guest's too, of this address, and the two reach each
    /// other. The other is made with [`sibling_of`](Self::sibling_of).
    pub fn with_sibling(mut self, cid: u64) -> Self {
        self.vsock = Vsock::Own { program: None, sibling: Some(cid) };
        self
    }

    /// The sibling of a guest that was made [`with_sibling`](Self::with_sibling) of this address.
    pub fn sibling_of(mut self, first: &Guest, cid: u64) -> Self {
        self.vsock = Vsock::Siblings(first.path(""));
        self.cid(cid)
    }

    /// A file system device served by `host-hv fs`, with these shares: `NAME=PATH`, as its option `--share` takes them.
    pub fn folders<const N: usize>(mut self, shares: [String; N]) -> Self {
        self.folders = Some(shares.into());
        self
    }

    /// A network card whose port 22 [`Guest::ssh`] reaches; the guest reaches nothing.
    pub fn ssh(mut self) -> Self {
        self.ssh = true;
        self
    }

    /// A package that apt has installed, before the vsock device came. Done once for each build of the package.
    pub fn installed(mut self, package: impl Into<PathBuf>) -> Self {
        self.installed.push(package.into());
        self
    }

    /// A file that the guest finds in `/lab`, on a disk of its own: for large ones; [`Guest::put`] does the rest.
    pub fn drop_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.drop.push(path.into());
        self
    }

    /// More words for QEMU's command line. Relative paths are in the guest's directory ([`Guest::path`]). Boots cold.
    pub fn qemu<const N: usize>(self, words: [&str; N]) -> Self {
        self.qemu_words(words.map(str::to_owned))
    }

    /// The same, as many as there are.
    pub fn qemu_words(mut self, words: impl IntoIterator<Item = String>) -> Self {
        self.qemu.extend(words);
        self.cold()
    }
}

/// A graphics card with so many outputs, and what a desktop wants besides.
fn screen_words(count: usize) -> Vec<String> {
    if count == 0 {
        return Vec::new();
    }
    let mut words = format!(
        "-device virtio-gpu-pci,id=gpu,max_outputs={count} -device virtio-keyboard-pci -device virtio-tablet-pci"
    );
    for head in 0..count {
        words += &format!(" -vnc unix:vnc{head}.sock,id=vnc{head},display=gpu,head={head}");
    }
    words.split(' ').map(str::to_owned).collect()
}

/// Who serves a guest's vsock device.
#[derive(Clone, Debug)]
enum Vsock {
    None,
    /// A process of its own: `host-hv`, or a peer's program.
    Own {
        program: Option<PathBuf>,
        sibling: Option<u64>,
    },
    /// The process of the guest with this directory.
    Siblings(PathBuf),
}

/// A running guest. Dropping it ends its processes and shows the end of its console, which the test runner
/// keeps to itself unless the test failed.
#[derive(Debug)]
pub struct Guest {
    spec: GuestSpec,
    lab: Lab,
    directory: Directory,
    ssh_port: Option<u16>,
    shell: RwLock<Arc<Shell>>,
    hushed: AtomicBool,
    // Fields are dropped in this order: the machine before its devices, the lock on the directory last.
    machine: Mutex<Machine>,
    vsock: Option<Mutex<Process>>,
    folders: Option<Mutex<Process>>,
    _lock: File,
}

impl Guest {
    /// Starts one and waits until it is at multi-user, with its devices.
    pub fn boot(spec: GuestSpec) -> Result<Self> {
        let lab = if spec.screens > 0 { Lab::with_screen()? } else { Lab::find()? };
        // Where it is missing, making it is not part of this guest's time.
        let frozen = if spec.cold { None } else { Some(Frozen::with_packages(&lab, &spec.installed)?) };
        let deadline = Deadline::after(BOOT);
        let (path, lock) = run_directory(&spec.name)?;
        let directory = Directory::open(&path)?;
        let mut devices = Vec::new();
        let mut ssh_port = None;
        let mut vsock = None;
        match &spec.vsock {
            Vsock::None => (),
            Vsock::Own { program, sibling } => {
                let device = start_vsock(program.as_deref(), spec.cid, *sibling, &path)?;
                vsock = Some(Mutex::new(device));
            }
            Vsock::Siblings(of) => {
                symlink(of.join(sibling_socket(spec.cid)), path.join("vsock.sock"))?;
                symlink(of.join(sibling_uds(spec.cid)), path.join("vm.vsock"))?;
            }
        }
        if !matches!(spec.vsock, Vsock::None) {
            devices.push(Device::Vsock);
        }
        let mut folders = None;
        if let Some(shares) = &spec.folders {
            folders = Some(Mutex::new(start_folders(shares, &path)?));
            devices.push(Device::Folders);
        }
        if spec.ssh {
            let port = free_port()?;
            ssh_port = Some(port);
            devices.push(Device::Network(port));
        }
        if !spec.drop.is_empty() {
            make_drop(&spec.drop, &path)?;
            devices.push(Device::Drop);
        }

        let mut words = machine_words(&lab, spec.cpus, spec.memory_mib);
        // A second monitor, for the agent: QEMU serves one program at each.
        words.extend(["-qmp".to_owned(), "unix:agent.qmp,server=on,wait=off".to_owned()]);
        if let Some(frozen) = &frozen {
            words.extend(disk_words(&frozen.disk(), false));
            words.extend(frozen.incoming_words(&path)?);
            fs::copy(frozen.console(), path.join("console.before.log"))?;
        } else {
            words.extend(disk_words(&lab.file("root.ext4"), false));
            words.extend(devices.iter().flat_map(Device::words));
            words.extend(spec.qemu.iter().cloned());
            words.extend(screen_words(spec.screens));
        }
        let (machine, shell) = Machine::start(&path, &words)?;
        let shell = RwLock::new(Arc::new(shell));
        let guest = Self {
            spec,
            lab,
            directory,
            ssh_port,
            shell,
            hushed: AtomicBool::new(false),
            machine: Mutex::new(machine),
            vsock,
            folders,
            _lock: lock,
        };
        guest.wait_boot(None, &deadline)?;
        if frozen.is_some() {
            guest.thaw(&devices).with_context(|| guest.story())?;
        } else if !guest.spec.installed.is_empty() {
            guest.install(&guest.spec.installed)?;
        }
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
        frozen::install(&self.shell(), packages)
    }

    /// The host's end of the guest's vsock: what follows `unix:` in an endpoint.
    pub fn vsock_path(&self) -> PathBuf {
        self.directory.socket("vm.vsock")
    }

    /// QEMU's monitor for the agent: what follows `--qmp`.
    pub fn qmp_path(&self) -> PathBuf {
        self.directory.socket("agent.qmp")
    }

    /// The address on vsock.
    pub fn cid(&self) -> u64 {
        self.spec.cid
    }

    /// A file in the guest's directory on this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.file(name)
    }

    /// A socket in the guest's directory, by a path that is short enough.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.directory.socket(name)
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
        {
            let mut shell = self.shell.write().unwrap_or_else(PoisonError::into_inner);
            shell.close();
            *shell = Arc::new(lock(&self.machine).shell()?);
        }
        self.wait_boot(last.as_deref(), &Deadline::after(BOOT))
    }

    /// Runs `act`, which makes the guest reboot, and waits until it is up again.
    pub fn reboots(&self, act: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let last = self.shell().boot_id();
        act(self)?;
        self.wait_boot(last.as_deref(), &Deadline::after(BOOT))
    }

    /// Waits until it has powered itself off.
    pub fn wait_power_off(&self) -> Result<()> {
        let status =
            lock(&self.machine).qemu.wait(&Deadline::after(POWER_OFF)).with_context(|| self.story())?;
        if !status.success() {
            bail!("QEMU ended with {status}\n{}", self.story());
        }
        Ok(())
    }

    /// One command to QEMU's monitor.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value> {
        lock(&self.machine).qmp.execute(command, arguments)
    }

    /// All is well: the end of its console is not worth showing.
    pub fn hush(&self) {
        self.hushed.store(true, Ordering::Relaxed);
    }

    /// QEMU's process id.
    pub fn qemu_pid(&self) -> u32 {
        lock(&self.machine).qemu.pid()
    }

    /// The vsock device's process id.
    pub fn vsock_pid(&self) -> Option<u32> {
        self.vsock.as_ref().map(|device| lock(device).pid())
    }

    /// The file system device's process id.
    pub fn folders_pid(&self) -> Option<u32> {
        self.folders.as_ref().map(|device| lock(device).pid())
    }

    /// The file system device's control socket.
    pub fn control_path(&self) -> PathBuf {
        self.directory.socket("fs.control")
    }

    /// All that the guest has written to its console since it was started here.
    pub fn console(&self) -> String {
        read_lossy(&self.path("console.log"))
    }

    fn shell(&self) -> Arc<Shell> {
        Arc::clone(&self.shell.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn thaw(&self, devices: &[Device]) -> Result<()> {
        frozen::thaw(&self.shell())?;
        let mut waits = String::new();
        for device in devices {
            lock(&self.machine).plug(device)?;
            waits.push_str(match device {
                Device::Vsock => "until test -d /sys/module/vmw_vsock_virtio_transport; do sleep 0.05; done;",
                Device::Folders => {
                    "until ls /sys/bus/virtio/drivers/virtiofs/virtio* >/dev/null 2>&1; do sleep 0.05; done;"
                }
                Device::Network(_) => "until ip -br address | grep -q 10.0.2.15; do sleep 0.05; done;",
                Device::Drop => "until mountpoint -q /lab; do sleep 0.05; done;",
            });
        }
        let deadline = Deadline::after(PLUG);
        let script = format!("{waits} udevadm settle");
        if self.sh_within(&script, PLUG)?.status == 0 {
            return Ok(());
        }
        let facts = self.sh(
            "ls /sys/bus/virtio/drivers/*/; lsmod; ip -br address; systemctl list-jobs; journalctl -b -n 40",
        )?;
        bail!(
            "A device that was plugged in did not come up within {} s: {waits}\n{}",
            deadline.elapsed().as_secs(),
            facts.stdout
        );
    }

    fn wait_boot(&self, last: Option<&str>, deadline: &Deadline) -> Result<()> {
        loop {
            if self.shell().wait_ready(last, Duration::from_millis(500))?.is_some() {
                return Ok(());
            }
            lock(&self.machine).qemu.expect_alive().with_context(|| self.story())?;
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
        let qemu = read_lossy(&self.path("qemu.log"));
        let vsock = read_lossy(&self.path("vsock.log"));
        let log = self.path("console.log");
        let folders = read_lossy(&self.path("fs.log"));
        format!(
            "The guest's console ends so (all of it is in {}):\n{tail}\n{qemu}{vsock}{folders}",
            log.display()
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !self.hushed.load(Ordering::Relaxed) {
            eprintln!("{}", self.story());
        }
    }
}

/// One guest for all the tests of a file. It goes down with the process.
#[derive(Debug)]
pub struct SharedGuest {
    spec: fn() -> Result<GuestSpec>,
    prepare: fn(&Guest) -> Result<()>,
    guest: OnceLock<Result<Guest, String>>,
}

impl SharedGuest {
    /// To be started when the first test asks.
    pub const fn new(spec: fn() -> Result<GuestSpec>) -> Self {
        Self { spec, prepare: |_| Ok(()), guest: OnceLock::new() }
    }

    /// Runs once, before the first test.
    pub const fn prepared(mut self, prepare: fn(&Guest) -> Result<()>) -> Self {
        self.prepare = prepare;
        self
    }

    /// The guest. When its start failed, it failed for every test.
    pub fn get(&self) -> Result<Using<'_>> {
        let guest = self.guest.get_or_init(|| {
            let start = || {
                let guest = Guest::boot((self.spec)()?)?;
                (self.prepare)(&guest)?;
                Ok(guest)
            };
            start().map_err(|error: anyhow::Error| format!("{error:#}"))
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_vsock(program: Option<&Path>, cid: u64, sibling: Option<u64>, directory: &Path) -> Result<Process> {
    let cid = cid.to_string();
    let (program, mut words) = match program {
        None => {
            let words = vec!["vsock", "--socket", "vsock.sock", "--uds", "vm.vsock", "--cid", &cid];
            (Lab::program("host-hv")?, words)
        }
        Some(peer) => {
            let words = vec!["--socket", "vsock.sock", "--uds-path", "vm.vsock", "--guest-cid", &cid];
            (peer.to_owned(), words)
        }
    };
    let sibling =
        sibling.map(|cid| format!("cid={cid},socket={},uds={}", sibling_socket(cid), sibling_uds(cid)));
    if let Some(sibling) = &sibling {
        words.extend(["--sibling", sibling]);
    }
    let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    let mut device = spawn(program, &words, directory, &directory.join("vsock.log"))?;
    let socket = directory.join("vsock.sock");
    Deadline::after(START).poll("the vsock device's socket", || {
        device.expect_alive()?;
        Ok(socket.exists().then_some(()))
    })?;
    Ok(device)
}

fn sibling_socket(cid: u64) -> String {
    format!("vsock-{cid}.sock")
}

fn sibling_uds(cid: u64) -> String {
    format!("vm-{cid}.vsock")
}

fn start_folders(shares: &[String], directory: &Path) -> Result<Process> {
    let mut words: Vec<String> =
        ["fs", "--socket", "fs.sock", "--control", "fs.control"].map(str::to_owned).to_vec();
    words.extend(shares.iter().flat_map(|share| ["--share".to_owned(), share.clone()]));
    let mut device = spawn(Lab::program("host-hv")?, &words, directory, &directory.join("fs.log"))?;
    let socket = directory.join("fs.sock");
    Deadline::after(START).poll("the file system device's socket", || {
        device.expect_alive()?;
        Ok(socket.exists().then_some(()))
    })?;
    Ok(device)
}

/// A port that nothing listened on a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
