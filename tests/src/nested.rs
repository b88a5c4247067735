//! An emulated arm64 machine that can be a host itself: Debian's kernel with KVM, and a script for all its userland. It is
//! there in some seconds, where the lab's guest, whose processor lacks EL2, would take a minute with one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::run_directory;
use crate::process::read_lossy;
use crate::{Deadline, Lab, spawn};

/// Where the cross compiler has the C library that programs for the guest are linked with.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu/lib";
/// What of it a program of ours needs.
const NEEDED: [&str; 4] = ["ld-linux-aarch64.so.1", "libc.so.6", "libgcc_s.so.1", "libm.so.6"];
/// The script's last word on the console, before the machine is switched off.
const END: &str = "nested: the script has ended";

/// Runs a script in such a machine, and returns all that its console showed. `name` is its log's directory.
///
/// The programs lie in `/`, and so do the kernel (`/vmlinuz`), a smallest userland (`/busybox`, which runs the script) and
/// an initramfs that has the same (`/initramfs`).
///
/// # Errors
/// With the console's text, where the script did not come to its end in time.
pub fn run_on_kvm(name: &str, programs: &[PathBuf], script: &str, patience: Duration) -> Result<String> {
    let lab = Lab::find()?;
    let (directory, _lock) = run_directory(name)?;
    let staging = directory.join("root");
    fs::create_dir_all(staging.join("lib"))?;
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to).with_context(|| format!("Could not copy {}", from.display())).map(drop)
    };
    for program in programs.iter().chain(&[lab.file("vmlinuz"), lab.file("initramfs")]) {
        copy(program, &staging.join(program.file_name().unwrap_or(OsStr::new(""))))?;
    }
    for library in NEEDED {
        copy(&Path::new(LIBRARIES).join(library), &staging.join("lib").join(library))?;
    }
    fs::write(staging.join("script"), format!("{script}\necho {END}\n"))?;
    // The kernel unpacks archives that stand one behind the other.
    let initramfs = directory.join("initramfs");
    let mut archive = File::create(&initramfs)?;
    io::copy(&mut File::open(lab.file("initramfs"))?, &mut archive)?;
    append(&staging, &mut archive)?;
    fs::remove_dir_all(&staging)?;

    let console = directory.join("console.log");
    let first = "/busybox mount -t devtmpfs dev /dev; exec </dev/console >/dev/console 2>&1; \
                 /busybox sh /script; /busybox poweroff -f";
    let append = format!("console=ttyAMA0 rdinit=/busybox -- sh -c \"{first}\"");
    let words = "-nodefaults -nographic -M virt,virtualization=on,gic-version=3 -cpu neoverse-n1 \
                 -accel tcg,thread=multi -smp 2 -m 1024 -serial file:console.log -no-reboot -initrd initramfs";
    let mut words: Vec<String> = words.split_ascii_whitespace().map(str::to_owned).collect();
    words.extend(["-kernel".into(), lab.file("vmlinuz").display().to_string(), "-append".into(), append]);
    let mut qemu = spawn("qemu-system-aarch64", &words, &directory, &directory.join("qemu.log"))?;
    let ended = qemu.wait(&Deadline::after(patience));
    let told = read_lossy(&console);
    // What is in it is in the cache and beside this program: only the log is worth keeping.
    let _ = fs::remove_file(&initramfs);
    match ended {
        Ok(status) => ensure!(status.success(), "QEMU: {status}: {}\n{told}", qemu.output()),
        Err(error) => bail!("{error:#}. The console's text:\n{told}"),
    }
    ensure!(told.contains(END), "The script did not come to its end. The console's text:\n{told}");
    Ok(told)
}

/// A module of the lab's kernel, ready for busybox's insmod. `name` is its path in the kernel's tree, without the end:
/// `drivers/virtio/virtio_mmio`.
///
/// # Errors
/// There is none of that name.
pub fn kernel_module(name: &str) -> Result<Vec<u8>> {
    const TREES: &str = "/usr/lib/modules";
    let disk = Lab::find()?.file("root.ext4");
    let ask = |command: String| -> Result<Vec<u8>> {
        let output = Command::new("debugfs").args(["-R", &command]).arg(&disk).output();
        Ok(output.context("debugfs is missing: run `make setup`")?.stdout)
    };
    // Its lines: /inode/mode/user/group/name/size/.
    let trees = String::from_utf8(ask(format!("ls -p {TREES}"))?)?;
    let versions = trees.lines().filter_map(|line| line.split('/').nth(5));
    let version = versions.into_iter().find(|name| name.starts_with(|first: char| first.is_ascii_digit()));
    let version = version.with_context(|| format!("no kernel's modules in {}", disk.display()))?;
    let packed = ask(format!("cat {TREES}/{version}/kernel/{name}.ko.xz"))?;
    ensure!(!packed.is_empty(), "{version} has no module {name}");

    let mut xz = Command::new("xz").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = xz.stdin.take().context("its input")?;
    let writer = std::thread::spawn(move || input.write_all(&packed));
    let output = xz.wait_with_output()?;
    writer.join().map_err(|_| anyhow::anyhow!("writing to xz panicked"))??;
    ensure!(output.status.success(), "xz failed");
    Ok(output.stdout)
}

/// Writes a tree as an archive that the kernel unpacks.
fn append(tree: &Path, archive: &mut File) -> Result<()> {
    let end = archive.metadata()?.len().next_multiple_of(4);
    archive.set_len(end)?;
    let mut files = vec![PathBuf::from("lib")];
    for directory in ["", "lib"] {
        for entry in fs::read_dir(tree.join(directory))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push(Path::new(directory).join(entry.file_name()));
            }
        }
    }
    let mut cpio = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cpio is missing: run `make setup`")?;
    let mut names = cpio.stdin.take().context("its input")?;
    let mut bytes = cpio.stdout.take().context("its output")?;
    let list: String = files.iter().map(|file| format!("{}\n", file.display())).collect();
    names.write_all(list.as_bytes())?;
    drop(names);
    io::Seek::seek(archive, io::SeekFrom::End(0))?;
    io::copy(&mut bytes, archive)?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    Ok(())
}
