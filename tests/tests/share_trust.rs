//! A guest whose root is hostile, and hosts that have bad days: what shared folders hold then.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{Guest, GuestSpec};

const MOUNT: &str = "mkdir -p /mnt/hospes && mount -t virtiofs hospes /mnt/hospes";
const SECRET: &str = "what no guest may ever read or change\n";

/// Everything that may go wrong for a guest's root, which fails if any of it goes well. `$A` and `$B` are shares.
const ESCAPES: &str = r#"
use strict; use warnings; use POSIX; use Fcntl;
my ($a, $b) = ("/mnt/hospes/a", "/mnt/hospes/b");
my $secret = "what no guest may ever";
sub told { my ($path) = @_; open(my $f, "<", $path) or return 0; local $/; my $text = <$f> // ""; index($text, $secret) >= 0 }
sub fails { my ($what, $errno, $ok) = @_; my $got = $!+0; die "$what went well\n" if $ok; die "$what: $got\n" if $errno && $got != $errno }

# Links and dots lead where they lead in the guest, and nothing of the host is there.
symlink("../outside/secret", "$a/near"); symlink($ENV{OUTSIDE} . "/secret", "$a/far"); symlink("..", "$a/up");
for my $path ("$a/near", "$a/far", "$a/up/outside/secret", "$a/../outside/secret", "$a/d/../../outside/secret", "$a/up/../../../..$ENV{OUTSIDE}/secret") {
    die "$path led out\n" if told($path);
}
fails("writing through a link", 0, sysopen(my $w, "$a/far", O_WRONLY));

# Names.
mkdir("$a/" . "n" x 255) && rmdir("$a/" . "n" x 255) or die "a name of 255 bytes: $!\n";
fails("a long name", ENAMETOOLONG, mkdir("$a/" . "n" x 256));
fails("a long path", ENAMETOOLONG, mkdir("$a" . "/n" x 4000));
symlink("x" x 4095, "$a/long"); fails("a longer target", ENAMETOOLONG, symlink("x" x 4096, "$a/longer"));

# Devices, set-id programs, owners.
for my $kind (020000, 060000) { fails("a device", EPERM, syscall(33, -100, "$a/device\0", $kind | 0666, 0x0103) == 0) }
open(my $p, ">", "$a/program") or die; close $p; chmod(06755, "$a/program");
die "set-id bits stay\n" if (stat("$a/program"))[2] & 06000;
fails("giving a file away", EPERM, chown(1234, 1234, "$a/program"));

# From one share to another.
fails("a hard link across shares", EXDEV, link("$a/program", "$b/program"));
fails("a move across shares", EXDEV, rename("$a/program", "$b/program"));
fails("a hard link over the top", EXDEV, link("$a/program", "/mnt/hospes/program"));
fails("a file beside the shares", 0, sysopen(my $t, "/mnt/hospes/new", O_WRONLY | O_CREAT));
fails("removing a share", 0, rmdir($b));
fails("writing where one may only read", EROFS, sysopen(my $r, "$b/new", O_WRONLY | O_CREAT));
fails("writing to what is there", EROFS, sysopen(my $r2, "$b/there", O_WRONLY));
fails("permissions there", EROFS, chmod(0777, "$b/there"));

# Races: a directory is a link out of the share, and a directory, and a link... while others look beneath it.
mkdir("$a/real"); open(my $s, ">", "$a/real/secret") or die; print $s "harmless\n"; close $s;
symlink($ENV{OUTSIDE}, "$a/swap");
my $racer = fork() // die; 
if (!$racer) { while (1) { syscall(276, -100, "$a/real\0", -100, "$a/swap\0", 2) } }
for my $round (1 .. 600) {
    die "a race was won\n" if told("$a/real/secret") || told("$a/swap/secret");
    if (open(my $f, "+<", "$a/real/secret")) { my $line = <$f> // ""; die "a race was won\n" if $line =~ /no guest/; }
    chmod(0777, "$a/real/secret"); utime(1, 1, "$a/swap/secret"); unlink("$a/real/out");
}
kill("KILL", $racer); waitpid($racer, 0);

# As many open files as one process may have, several times over; none is closed.
my @open;
for my $round (1 .. 3000) { last unless open(my $f, "<", "$a/program"); push @open, $f }
print scalar(@open), "\n";
"#;

fn folder(path: &Path) -> Result<BTreeMap<String, (u32, u32, u64, i64)>> {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        seen.insert(name, (meta.mode(), meta.uid(), meta.size(), meta.ctime_nsec()));
    }
    Ok(seen)
}

fn descriptors(guest: &Guest) -> Result<usize> {
    let pid = guest.folders_pid().context("a file system device")?;
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// A line to the device's control socket, and its answer.
fn control(guest: &Guest, line: &str) -> Result<String> {
    let mut stream = UnixStream::connect(guest.control_path())?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    ensure!(answer.contains(r#"{"ok""#), "{answer}");
    Ok(answer)
}

#[test]
fn a_guests_root_gets_nothing_but_its_shares() -> Result<()> {
    let host = tempfile::tempdir()?;
    let at = |name: &str| host.path().join(name);
    for name in ["a", "a/d", "b", "outside"] {
        fs::create_dir(at(name))?;
    }
    fs::write(at("outside/secret"), SECRET)?;
    fs::write(at("b/there"), "there\n")?;
    let before = (folder(&at("outside"))?, folder(&at("b"))?, folder(host.path())?.len());
    let shares = [format!("a={}", at("a").display()), format!("b={}:ro", at("b").display())];
    let guest = Guest::boot(GuestSpec::new("share-escape").folders(shares))?;
    guest.check(MOUNT)?;
    guest.put("/root/escapes.pl", 0o644, ESCAPES.as_bytes())?;
    let idle = descriptors(&guest)?;
    let outside = at("outside");
    let script = format!("ulimit -n 8192; OUTSIDE={} perl /root/escapes.pl", outside.display());
    let opened = guest.check_within(&script, Duration::from_secs(240))?;
    ensure!(opened.trim().parse::<usize>()? > 1000, "{opened}");

    // What it had is let go of, and nothing beyond its share is other than it was.
    guest.check("rm -rf /mnt/hospes/a/*; echo 2 > /proc/sys/vm/drop_caches; sync")?;
    let pid = guest.folders_pid().context("a file system device")?;
    integration_tests::Deadline::after(Duration::from_secs(60))
        .poll("descriptors to be closed", || Ok((descriptors(&guest)? <= idle + 64).then_some(())))?;
    let after = (folder(&at("outside"))?, folder(&at("b"))?, folder(host.path())?.len());
    assert_eq!(before, after);
    assert_eq!(fs::read_to_string(at("outside/secret"))?, SECRET);
    let links = fs::metadata(at("outside/secret"))?.nlink();
    assert_eq!(links, 1);
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("Seccomp:\t2"), "the device is not sandboxed\n{status}");
    Ok(())
}

/// A file system of the host with little room, gone with this value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Result<Self> {
        let disk = Self(tempfile::tempdir()?);
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "small"])
            .arg(disk.0.path())
            .status()?;
        if !done.success() {
            bail!("A small disk for this test could not be mounted; it takes root");
        }
        Ok(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Records, each on the disk before its number is written down.
const RECORDS: &str = r#"
use IO::Handle;
open(my $data, ">", "/mnt/hospes/data/records") or die $!;
open(my $done, ">", "/mnt/hospes/data/done") or die $!;
$data->autoflush(1); $done->autoflush(1);
for (my $at = 0; ; $at++) {
    print $data sprintf("%08d", $at), chr(65 + $at % 26) x 5000, "\n";
    $data->sync or die $!;
    print $done "$at\n";
}
"#;

#[test]
fn what_goes_wrong_is_an_error_and_what_was_synced_is_there() -> Result<()> {
    let host = tempfile::tempdir()?;
    let at = |name: &str| host.path().join(name);
    for name in ["data", "gone"] {
        fs::create_dir(at(name))?;
    }
    fs::write(at("gone/f"), "still open\n")?;
    let disk = SmallDisk::new()?;
    let shares = [
        format!("data={}", at("data").display()),
        format!("gone={}", at("gone").display()),
        format!("small={}", disk.0.path().display()),
    ];
    let guest = Guest::boot(GuestSpec::new("share-faults").folders(shares.clone()))?;
    guest.check(MOUNT)?;

    // No room: an error where it is written, what is there stays, and there is room again when there is.
    guest.check("cd /mnt/hospes/small; echo kept > kept; sync kept")?;
    let full = guest.sh("dd if=/dev/zero of=/mnt/hospes/small/big bs=64k count=128 conv=fsync")?;
    ensure!(full.status != 0 && full.stderr.contains("No space left on device"), "{}", full.stderr);
    assert_eq!(guest.check("cat /mnt/hospes/small/kept")?, "kept\n");
    guest.check(
        "rm /mnt/hospes/small/big; dd if=/dev/zero of=/mnt/hospes/small/fits bs=64k count=8 conv=fsync",
    )?;

    // The folder goes, with a file of it open; another comes in its place, which nobody has shared.
    guest.check("systemd-run --quiet --unit=holds sh -c 'exec 3</mnt/hospes/gone/f; sleep 600'")?;
    guest.wait_until(
        "ls -l /proc/$(systemctl show -P MainPID holds)/fd | grep -q gone/f",
        Duration::from_secs(20),
    )?;
    fs::remove_dir_all(at("gone"))?;
    fs::create_dir(at("gone"))?;
    fs::write(at("gone/other"), "other\n")?;
    let open = guest.check("sleep 1.1; cat /proc/$(systemctl show -P MainPID holds)/fd/3 2>&1 || true")?;
    ensure!(open.contains("still open") || open.contains("No such file") || open.contains("Stale"), "{open}");
    for act in [
        "cat /mnt/hospes/gone/f",
        "cat /mnt/hospes/gone/other",
        "touch /mnt/hospes/gone/new",
        "mkdir /mnt/hospes/gone/d",
    ] {
        let ran = guest.sh(&format!("timeout 20 {act}"))?;
        ensure!(ran.status != 0 && ran.status != 124, "{act}: {} {}{}", ran.status, ran.stdout, ran.stderr);
    }
    control(&guest, r#"{"do":"share.remove","name":"gone"}"#)?;
    control(&guest, &format!(r#"{{"do":"share.add","name":"gone","path":"{}"}}"#, at("gone").display()))?;
    guest.wait_until("grep -q other /mnt/hospes/gone/other", Duration::from_secs(20))?;

    // The guest is reset as it writes.
    guest.put("/root/records.pl", 0o644, RECORDS.as_bytes())?;
    let begin = |guest: &Guest| -> Result<()> {
        guest
            .check("rm -f /mnt/hospes/data/done; systemd-run --quiet --unit=records perl /root/records.pl")?;
        guest.wait_until("test $(wc -l < /mnt/hospes/data/done) -ge 20", Duration::from_secs(60))?;
        Ok(())
    };
    begin(&guest)?;
    guest.reset()?;
    every_record_is_there(&at("data"))?;
    guest.check(MOUNT)?;
    assert_eq!(guest.check("cat /mnt/hospes/gone/other")?, "other\n");

    // The device is killed. The guest goes on without its folders until it is started anew, with a new device.
    guest.put("/root/records.pl", 0o644, RECORDS.as_bytes())?;
    begin(&guest)?;
    let pid = guest.folders_pid().context("a file system device")?;
    Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
    every_record_is_there(&at("data"))?;
    guest.check("cat /etc/hostname")?;
    drop(guest);
    let guest = Guest::boot(GuestSpec::new("share-faults").folders(shares))?;
    guest.check(MOUNT)?;
    let done = fs::read_to_string(at("data/done"))?;
    assert_eq!(guest.check("cat /mnt/hospes/data/done")?, done);
    Ok(())
}

/// All that the guest had seen synced is whole.
fn every_record_is_there(data: &Path) -> Result<()> {
    const RECORD: usize = 8 + 5000 + 1;
    let done = fs::read_to_string(data.join("done"))?;
    // The last line may be half of one.
    let whole = done.rfind('\n').map_or("", |end| &done[..end]);
    let last: usize = whole.lines().last().context("no record was written")?.parse()?;
    let records = fs::read(data.join("records"))?;
    for (at, record) in records.chunks_exact(RECORD).take(last + 1).enumerate() {
        let letter = b'A' + u8::try_from(at % 26)?;
        ensure!(record.starts_with(format!("{at:08}").as_bytes()), "record {at} is another");
        ensure!(record[8..RECORD - 1].iter().all(|&byte| byte == letter), "record {at} is not whole");
    }
    ensure!(records.len() >= (last + 1) * RECORD, "{} of {} records", records.len() / RECORD, last + 1);
    Ok(())
}
