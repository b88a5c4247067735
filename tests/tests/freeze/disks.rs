//! Two disks that are files of the host's, with programs in the guest that write to them without an end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Deadline, Guest};
use serde_json::json;

/// Where each file system is mounted, in the order in which it has to be frozen: the loop lies in a file of the ext4 one,
/// which was mounted before the xfs one. The last is the guest's own disk.
pub(crate) const PLACES: [&str; 4] = ["/srv/loop", "/srv/xfs", "/srv/ext4", "/"];

/// Makes the two disks, plugs them in and mounts them; the ext4 one at a second place, too.
pub(crate) fn plug(guest: &Guest) -> Result<()> {
    let staging = guest.path("staging");
    fs::create_dir(&staging)?;
    let (inner, ext4, xfs) = (staging.join("image"), guest.path("data.ext4"), guest.path("data.xfs"));
    run(Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4"]).arg(&inner).arg("24M"))?;
    run(Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&staging).arg(&ext4).arg("128M"))?;
    // The least that mkfs.xfs makes; most of it is a hole.
    File::create_new(&xfs)?.set_len(320 << 20)?;
    run(Command::new("/sbin/mkfs.xfs").arg("-q").arg(&xfs))?;
    for (name, slot) in [("ext4", "slot2"), ("xfs", "slot3")] {
        let file = json!({ "driver": "file", "filename": format!("data.{name}") });
        let disk = json!({ "node-name": name, "driver": "raw", "file": file, "discard": "unmap" });
        guest.qmp("blockdev-add", &disk)?;
        let device = json!({ "driver": "virtio-blk-pci", "drive": name, "serial": name, "bus": slot });
        guest.qmp("device_add", &device)?;
    }
    guest.check(
        "id=/dev/disk/by-id/virtio
         until [ -e $id-ext4 ] && [ -e $id-xfs ]; do sleep 0.05; done
         mkdir /srv/ext4 /srv/xfs /srv/loop /srv/bind
         mount $id-ext4 /srv/ext4 && mount $id-xfs /srv/xfs && mount -o loop /srv/ext4/image /srv/loop &&
             mount --bind /srv/ext4 /srv/bind",
    )?;
    Ok(())
}

/// Makes, changes, renames, links and removes files, and counts what it has done where nothing is frozen. No file loses its
/// last name while it is open: such a one is freed when its disk is mounted next, and until then fsck tells of it.
const WRITER: &str = r#"
use IO::Handle;
my ($dir, $count) = @ARGV;
mkdir $dir; chdir $dir or die "$dir: $!";
my $done = 0;
while (1) {
    my ($a, $b, $act) = (map({ 'f' . int rand 60 } 1, 2), rand);
    if ($act < 0.6) {
        open(my $file, (-s $a // 0) > 100_000 ? '>' : '>>', $a) or die $!;
        print $file chr(97 + rand 26) x rand 30_000 or die $!;
        $file->flush or die $!;
        if (rand() < 0.3) { $file->sync or die $! }
        close $file or die $!;
    }
    elsif ($act < 0.7) { rename $a, $b }
    elsif ($act < 0.8) { link $a, $b }
    elsif ($act < 0.9) { unlink $a }
    else { mkdir "d$a"; rmdir "d$b" }
    open(my $told, '>', "$count.new") or die $!;
    print $told ++$done, "\n";
    close $told;
    rename "$count.new", $count;
    select undef, undef, undef, 0.01;
}
"#;

/// Starts a program that writes to each of the [`PLACES`].
pub(crate) fn write(guest: &Guest) -> Result<()> {
    guest.put("/run/writer.pl", 0o644, WRITER.as_bytes())?;
    for (at, place) in PLACES.iter().enumerate() {
        guest.check(&format!(
            "systemd-run -q --unit=writer-{at} perl /run/writer.pl {place}/written /run/count-{at}"
        ))?;
    }
    let all = "until [ -e /run/count-0 -a -e /run/count-1 -a -e /run/count-2 -a -e /run/count-3 ]; do sleep 0.05; done";
    guest.check(all)?;
    advance(guest)
}

/// How much each has written.
pub(crate) fn counts(guest: &Guest) -> Result<[u64; PLACES.len()]> {
    let text = guest.check("cd /run && cat count-0 count-1 count-2 count-3")?;
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    numbers.try_into().ok().with_context(|| format!("the writers count so: {text}"))
}

/// Waits until each has written more.
pub(crate) fn advance(guest: &Guest) -> Result<()> {
    let before = counts(guest)?;
    let more = || {
        let now = counts(guest)?;
        Ok(now.iter().zip(&before).all(|(now, before)| now > before).then_some(()))
    };
    Deadline::after(Duration::from_secs(90))
        .poll("every writer to write more", more)
        .with_context(|| facts(guest))
}

/// What a failure shows of the guest: who waits for what.
pub(crate) fn facts(guest: &Guest) -> String {
    let script = "systemctl --no-pager list-jobs; systemctl --no-pager status hospes-toolsd hospes-freeze.service hospes-freeze.socket
        ps -e -o pid,stat,wchan:30,args | grep -v '\\]$'; head /run/count-* /run/order; ls -l /run/hospes
        for at in $(ps -e -o stat=,pid= | sed -n 's/^D[^ ]* *//p'); do cat /proc/$at/comm /proc/$at/stack; done";
    guest.sh(script).map_or_else(|error| error.to_string(), |output| output.stdout + &output.stderr)
}

/// Copies of both disks, taken now.
pub(crate) fn copy(guest: &Guest, to: &Path) -> Result<()> {
    run(&mut copying(guest, to))
}

/// The command that takes them.
pub(crate) fn copying(guest: &Guest, to: &Path) -> Command {
    let mut command = Command::new("cp");
    command.args(["--sparse=always", "--"]).arg(guest.path("data.ext4")).arg(guest.path("data.xfs")).arg(to);
    command
}

/// Holds the copies in a directory against what others say a whole file system is, the one within another too. Nothing is
/// mended.
pub(crate) fn are_whole(copies: &Path) -> Result<()> {
    let (ext4, inner) = (copies.join("data.ext4"), copies.join("image"));
    run(Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(&ext4))?;
    let dump = format!("dump /image {}", inner.display());
    run(Command::new("/sbin/debugfs").args(["-R", &dump]).arg(&ext4))?;
    run(Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(&inner))?;
    let output = Command::new("/sbin/xfs_repair").arg("-n").arg(copies.join("data.xfs")).output()?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    let complaint = words.lines().find(|line| !SAID_OF_WHOLE.iter().any(|known| line.starts_with(known)));
    ensure!(complaint.is_none(), "xfs_repair complains of {complaint:?}:\n{words}");
    Ok(())
}

/// What `xfs_repair` says of a whole file system that was frozen. It has a log, for freezing xfs makes one on purpose, and
/// with a log the sum of free blocks is counted anew when it is mounted.
const SAID_OF_WHOLE: [&str; 12] = [
    "No modify flag set",
    "Phase ",
    "        - ",
    "Cannot get host filesystem geometry.",
    "Repair may fail if there is a sector size mismatch between",
    "the image and the host filesystem.",
    "ALERT: The filesystem has valuable metadata changes in a log which is being",
    "ignored because the -n option was used.",
    "which may be resolved by first mounting the filesystem to replay the log.",
    "sb_fdblocks ",
    "sb_icount ",
    "sb_ifree ",
];

/// A copy of the xfs disk, mounted once, has nothing that `xfs_repair` would so much as mention.
pub(crate) fn is_whole_once_mounted(guest: &Guest, copies: &Path) -> Result<()> {
    let copy = copies.join("data.xfs");
    let file = json!({ "driver": "file", "filename": copy });
    guest.qmp("blockdev-add", &json!({ "node-name": "copy", "driver": "raw", "file": file }))?;
    let device = json!({ "driver": "virtio-blk-pci", "drive": "copy", "serial": "copy", "id": "copy", "bus": "slot4" });
    guest.qmp("device_add", &device)?;
    // Its identity is the other's, which is mounted.
    guest.check(
        "until [ -e /dev/disk/by-id/virtio-copy ]; do sleep 0.05; done
         mount -o nouuid /dev/disk/by-id/virtio-copy /mnt && ls /mnt/written >/dev/null && umount /mnt",
    )?;
    run(Command::new("/sbin/xfs_repair").arg("-n").arg(&copy))
}

/// Bytes that a disk takes on the host.
pub(crate) fn taken(guest: &Guest, name: &str) -> Result<u64> {
    let path: PathBuf = guest.path(name);
    Ok(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path)?) * 512)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}: run `make setup`"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
