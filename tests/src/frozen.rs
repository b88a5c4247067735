//! Guests that were booted once, stopped, and saved with their memory: resuming one takes 3 s, booting one 12.
//!
//! A vhost-user device cannot be saved with a machine, so a frozen guest has none: it is plugged in after the guest
//! has been resumed, and comes up through udev as it would at boot. What has to be seen from the first instruction
//! on boots cold ([`GuestSpec::cold`](crate::GuestSpec::cold)).

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::lab::target_dir;
use crate::machine::{Machine, disk_words, machine_words};
use crate::process::read_lossy;
use crate::{Deadline, Lab, Shell};

pub(crate) const CPUS: u32 = 2;
pub(crate) const MEMORY_MIB: u32 = 1024;
/// Generous: beside twenty other busy processes on two cores, a boot has taken 60 s and an installation 250 s.
pub(crate) const BOOT: Duration = Duration::from_secs(240);
const INSTALL: Duration = Duration::from_secs(600);
const SAVE: Duration = Duration::from_secs(120);
/// How many guests with packages installed are kept beside a build: today's, and the one before it.
const KEPT: usize = 2;

/// A saved guest: its disk, and the rest of its state.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    directory: PathBuf,
}

impl Frozen {
    /// The freshly booted guest of this image. Made where it is missing.
    pub(crate) fn booted(lab: &Lab) -> Result<Self> {
        let mut hash = DefaultHasher::new();
        qemu_version()?.hash(&mut hash);
        machine_words(lab, CPUS, MEMORY_MIB).hash(&mut hash);
        let directory = lab.file(&format!("booted-{:016x}", hash.finish()));
        make(&directory, |build| {
            let disk = build.join("root.ext4");
            copy_disk(&lab.file("root.ext4"), &disk)?;
            let mut words = machine_words(lab, CPUS, MEMORY_MIB);
            words.extend(disk_words(&disk, true));
            let (mut machine, shell) = Machine::start(build, &words)?;
            wait_ready(&mut machine, &shell, build)?;
            shell.run("systemctl is-system-running --wait; sync", BOOT)?;
            save(&mut machine, &shell)
        })
    }

    /// The booted guest with these packages installed by apt. Made where it is missing.
    pub(crate) fn with_packages(lab: &Lab, packages: &[PathBuf]) -> Result<Self> {
        let base = Self::booted(lab)?;
        if packages.is_empty() {
            return Ok(base);
        }
        let mut hash = DefaultHasher::new();
        base.directory.hash(&mut hash);
        for package in packages {
            let bytes = fs::read(package)
                .with_context(|| format!("{} is missing. Run `make test-package`", package.display()))?;
            bytes.hash(&mut hash);
        }
        let parent = target_dir()?.join("lab-frozen");
        fs::create_dir_all(&parent)?;
        let frozen = make(&parent.join(format!("{:016x}", hash.finish())), |build| {
            let disk = build.join("root.ext4");
            copy_disk(&base.disk(), &disk)?;
            let mut words = machine_words(lab, CPUS, MEMORY_MIB);
            words.extend(disk_words(&disk, true));
            words.extend(base.incoming_words(build)?);
            let (mut machine, shell) = Machine::start(build, &words)?;
            wait_ready(&mut machine, &shell, build)?;
            thaw(&shell)?;
            install(&shell, packages)?;
            shell.run("sync", BOOT)?;
            save(&mut machine, &shell)
        })?;
        forget_old(&parent);
        Ok(frozen)
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.join("root.ext4")
    }

    /// QEMU's words to go on from here; `directory` is where it will run.
    pub(crate) fn incoming_words(&self, directory: &Path) -> Result<[String; 2]> {
        // QEMU hands the command to a shell: a name of our own keeps it free of what paths may have in them.
        std::os::unix::fs::symlink(self.directory.join("state"), directory.join("state.from"))?;
        Ok(["-incoming".into(), "exec:cat state.from".into()])
    }

    /// What it had said on its console before it was saved.
    pub(crate) fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }
}

/// Brings a resumed guest up to now: its clock stood still, and its random numbers are those of every other one.
pub(crate) fn thaw(shell: &Shell) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    let mut seed = [0; 32];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut seed)?;
    let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    // RNDADDENTROPY with 256 bits, then RNDRESEEDCRNG.
    let script = format!(
        "date -s @{now:.3} >/dev/null; perl -e 'open(my $r, \"+<\", \"/dev/urandom\") or die $!;
         my $seed = pack(\"iiH64\", 256, 32, \"{seed}\");
         ioctl($r, 0x40085203, $seed) or die $!; my $none = 0; ioctl($r, 0x5207, $none) or die $!'"
    );
    let output = shell.run(&script, Duration::from_secs(60))?;
    if output.status != 0 {
        bail!("The resumed guest did not take the time and a seed: {}", output.stderr);
    }
    Ok(())
}

/// Installs packages as a user would: apt, and no network.
pub(crate) fn install(shell: &Shell, packages: &[PathBuf]) -> Result<()> {
    let mut names = String::new();
    for package in packages {
        let bytes = fs::read(package).with_context(|| format!("Could not read {}", package.display()))?;
        let file = package.file_name().with_context(|| format!("{} is no file", package.display()))?;
        let path = format!("/root/{}", file.to_string_lossy());
        shell.put(&path, 0o644, &bytes)?;
        names.push_str(&format!(" '{path}'"));
    }
    let output =
        shell.run(&format!("DEBIAN_FRONTEND=noninteractive apt-get -q -y install{names} 2>&1"), INSTALL)?;
    if output.status != 0 {
        bail!("apt could not install{names} in the guest:\n{}", output.stdout);
    }
    Ok(())
}

/// Makes `directory` if it is not there: all of it or nothing, and one run at a time.
fn make(directory: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Frozen> {
    let frozen = Frozen { directory: directory.to_owned() };
    if directory.exists() {
        return Ok(frozen);
    }
    let lock = File::create(directory.with_extension("lock"))?;
    lock.lock()?;
    if directory.exists() {
        return Ok(frozen);
    }
    let build = directory.with_extension("build");
    if build.exists() {
        fs::remove_dir_all(&build)?;
    }
    fs::create_dir(&build)?;
    fill(&build)?;
    fs::rename(&build, directory)?;
    Ok(frozen)
}

fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    // cp knows about holes and about file systems that share blocks.
    let status = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to).status()?;
    if !status.success() {
        bail!("Could not copy {}: {status}", from.display());
    }
    Ok(())
}

fn wait_ready(machine: &mut Machine, shell: &Shell, directory: &Path) -> Result<()> {
    let deadline = Deadline::after(BOOT);
    deadline
        .poll("the guest's shell", || {
            machine.qemu.expect_alive()?;
            shell.wait_ready(None, Duration::from_millis(500))
        })
        .with_context(|| format!("The guest's console:\n{}", read_lossy(&directory.join("console.log"))))?;
    Ok(())
}

fn save(machine: &mut Machine, shell: &Shell) -> Result<()> {
    shell.close();
    // The guest notices that nobody listens, and waits for somebody: that is the moment to be resumed at.
    thread::sleep(Duration::from_secs(1));
    // Not stopped first: a guest is resumed in the state in which it was saved.
    machine.qmp.execute("migrate", &json!({ "uri": "exec:cat > state" }))?;
    Deadline::after(SAVE).poll("QEMU to save the guest", || {
        let migration = machine.qmp.execute("query-migrate", &json!({}))?;
        match migration["status"].as_str() {
            Some("completed") => Ok(Some(())),
            Some("failed" | "cancelled") => bail!("QEMU could not save the guest: {migration}"),
            _ => Ok(None),
        }
    })?;
    machine.qmp.execute("quit", &json!({}))?;
    machine.qemu.wait(&Deadline::after(SAVE))?;
    Ok(())
}

fn qemu_version() -> Result<String> {
    let output = Command::new("qemu-system-aarch64").arg("--version").output();
    let output = output.context("qemu-system-aarch64 is missing: run `make setup`")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every build of a package makes a guest of its own, a few hundred MiB: the oldest go.
fn forget_old(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let mut guests: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().join("state").exists() && entry.path().extension().is_none())
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    guests.sort();
    for (_, path) in guests.iter().rev().skip(KEPT) {
        // One that is in use keeps its files until it is let go of; one that cannot be removed is no harm.
        let _ = fs::remove_dir_all(path);
    }
}
