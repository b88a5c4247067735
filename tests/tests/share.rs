//! Shared folders in a booted guest: what one side does, the other sees.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, GuestSpec, Host, tools_started, with_tools};
use serde_json::Value;

const MOUNT: &str = "mkdir -p /mnt/hospes && mount -t virtiofs hospes /mnt/hospes";

#[test]
fn a_share_is_a_file_system_of_its_own_and_both_sides_see_what_either_does() -> Result<()> {
    let host = tempfile::tempdir()?;
    fs::write(host.path().join("from-host"), "hello\n")?;
    let guest = Guest::boot(GuestSpec::new("share").folders([format!("src={}", host.path().display())]))?;
    guest.check(MOUNT)?;
    assert_eq!(guest.check("ls /mnt/hospes; cat /mnt/hospes/src/from-host")?, "src\nhello\n");
    guest.check("test $(stat -c %W /mnt/hospes/src/from-host) -gt 1700000000")?;
    guest.check("mkdir /mnt/hospes/src/d && echo back > /mnt/hospes/src/d/f && sync /mnt/hospes/src/d/f")?;
    assert_eq!(fs::read_to_string(host.path().join("d/f"))?, "back\n");
    let devices = guest.check("stat -c %d /mnt/hospes /mnt/hospes/src/. | uniq | wc -l")?;
    assert_eq!(devices.trim(), "2");

    // What programs expect of a file system.
    guest.check_within(
        "set -e; cd /mnt/hospes/src
         ln -s ../../../etc/passwd l; readlink l | grep -qx ../../../etc/passwd
         echo data > f; ln f g; test $(stat -c %h f) = 2; rm f; grep -qx data g
         exec 3<>g; rm g; echo more >&3; test $(stat -L -c %s /proc/self/fd/3) = 5; exec 3>&-
         truncate -s 1M sparse; fallocate -o 4M -l 4K sparse; test $(stat -c %s sparse) = 4198400
         fallocate -p -o 0 -l 64K sparse
         setfattr -n user.note -v hi sparse; test \"$(getfattr --only-values -n user.note sparse)\" = hi
         ! setfattr -n trusted.note -v hi sparse 2>/dev/null
         mkfifo p; (echo through > p &) ; grep -qx through p
         chmod 640 sparse; test $(stat -c %a sparse) = 640; touch -d @1000000000 sparse
         test $(stat -c %Y sparse) = 1000000000; test $(stat -c %u:%g sparse) = 1000:1000
         mkdir x y; touch x/1; mv x/1 y/2; mv -T y z; test -e z/2; mv --exchange x z 2>/dev/null || mv z x/
         perl -e 'open(my $f, \"+>\", \"m\") or die; print $f \"x\" x 100000' ; cp --sparse=always m n; cmp m n
         flock m true; df . | grep -q hospes; sync -f .
         for i in $(seq 500); do echo $i > many-$i; done; test $(ls many-* | wc -l) = 500; rm many-*",
        Duration::from_secs(300),
    )?;
    assert_eq!(fs::metadata(host.path().join("sparse"))?.len(), 4_198_400);
    assert_eq!(fs::read(host.path().join("n"))?.len(), 100_000);

    // The host changes what the guest has read and cached.
    guest.check("cat /mnt/hospes/src/from-host")?;
    fs::write(host.path().join("from-host"), "another\n")?;
    guest.check("sleep 1.1")?;
    assert_eq!(guest.check("cat /mnt/hospes/src/from-host")?, "another\n");

    // A reset in the middle of it: the next boot mounts again.
    guest.check("systemd-run --quiet sh -c 'cd /mnt/hospes/src; while :; do date > date; done'")?;
    guest.reset()?;
    guest.check(MOUNT)?;
    assert_eq!(guest.check("cat /mnt/hospes/src/d/f")?, "back\n");
    Ok(())
}

/// The guest, and a host that knows its device's control socket.
fn with_folders(name: &str) -> Result<(Guest, Host)> {
    let guest = Guest::boot(with_tools(name)?.folders([]))?;
    tools_started(&guest)?;
    let host = Host::sharing_identity()?;
    host.add("vm", &guest)?;
    // The first connection starts the user's session, which takes its time on a busy machine.
    host.run(&["exec", "vm", "--connect-timeout", "240s", "--", "true"])?.text()?;
    Ok((guest, host))
}

#[test]
fn shares_come_and_go_while_the_guest_runs_with_no_step_in_it() -> Result<()> {
    let (guest, host) = with_folders("share-live")?;
    let folder = host.home().join("src");
    fs::create_dir(&folder)?;
    fs::write(folder.join("f"), "one\n")?;
    let path = folder.display().to_string();
    guest.wait_until("mountpoint -q /mnt/hospes", Duration::from_secs(30))?;
    ensure!(guest.check("hospes-tools share list")?.contains("shares nothing"));

    // By its own name, by another, and only to read. It is there when the command returns.
    host.run(&["share", "add", "vm", &path])?.text()?;
    assert_eq!(host.run(&["exec", "vm", "--", "cat", "/mnt/hospes/src/f"])?.text()?, "one\n");
    host.run(&["share", "add", "vm", "src", "--as", "look", "--ro"])?.text()?;
    host.run(&["exec", "vm", "--", "sh", "-c", "echo two > /mnt/hospes/src/g; ls -l /mnt/hospes/src"])?
        .text()?;
    assert_eq!(fs::read_to_string(folder.join("g"))?, "two\n");
    let refused = host.run(&["exec", "vm", "--", "sh", "-c", "echo three > /mnt/hospes/look/g"])?;
    ensure!(refused.status != 0 && refused.stderr.contains("Read-only file system"), "{}", refused.stderr);
    let listed = host.run(&["share", "list", "vm", "--json"])?.text()?;
    let listed: Value = serde_json::from_str(&listed).context(listed)?;
    assert_eq!(listed["shares"][0]["name"], "src");
    assert_eq!(listed["shares"][1]["read_only"], true);
    let seen: Value = serde_json::from_str(&guest.check("hospes-tools share list --json")?)?;
    assert_eq!(seen["shares"][1]["path"], "/mnt/hospes/src", "{seen}");

    // A link in the user's home, made by the user's own manager.
    guest.wait_until("test \"$(readlink /home/dev/hospes)\" = /mnt/hospes", Duration::from_secs(60))?;
    assert_eq!(guest.check("stat -c %U /home/dev/hospes")?, "dev\n");

    // What is wrong is said, with the side on which it is.
    for (words, kind) in [
        (&["add", "vm", &path][..], "name_taken"),
        (&["add", "vm", "/does/not/exist", "--as", "x"], "no_such_path"),
        (&["add", "vm", "/etc/passwd"], "not_a_directory"),
        (&["add", "vm", &path, "--as", "a/b"], "bad_name"),
        (&["add", "vm", &path, "--as", "x", "--owner", "me"], "bad_owner"),
    ] {
        let ran = host.run(&[&["share"], words, &["--json"]].concat())?;
        assert_eq!(ran.status, 125, "{words:?}");
        ensure!(ran.stderr.contains(kind) || String::from_utf8_lossy(&ran.stdout).contains(kind), "{ran:?}");
    }

    // An open file of a removed share fails, and the guest goes on.
    guest.check(
        "systemd-run --quiet --unit=holds sh -c 'exec 3</mnt/hospes/src/f; cd /mnt/hospes/src; sleep 1000'",
    )?;
    guest.wait_until(
        "ls -l /proc/$(systemctl show -P MainPID holds)/fd | grep -q src/f",
        Duration::from_secs(20),
    )?;
    host.run(&["share", "remove", "vm", "src"])?.text()?;
    guest.wait_until("! ls /mnt/hospes/src 2>/dev/null", Duration::from_secs(20))?;
    assert_eq!(guest.check("ls /mnt/hospes")?, "look\n");
    let ran = host.run(&["share", "remove", "vm", "src"])?;
    ensure!(ran.status == 125 && ran.stderr.contains("\"look\""), "{}", ran.stderr);

    // The name is free again, for another folder; and the daemon's end is none of the mount's business.
    let other = host.home().join("other");
    fs::create_dir(&other)?;
    fs::write(other.join("o"), "")?;
    host.run(&["share", "add", "vm", &other.display().to_string(), "--as", "src"])?.text()?;
    guest.check("systemctl kill -s KILL hospes-toolsd")?;
    guest.wait_until("test -e /mnt/hospes/src/o", Duration::from_secs(20))?;
    host.run(&["share", "set", "vm", "src", "--ro"])?.text()?;
    ensure!(guest.sh("touch /mnt/hospes/src/o")?.stderr.contains("Read-only"));
    host.run(&["share", "set", "vm", "src", "--rw"])?.text()?;
    guest.check("touch /mnt/hospes/src/o")?;

    // After a reboot all is there again, with no step.
    guest.reset()?;
    guest.wait_until("test -e /mnt/hospes/src/o", Duration::from_secs(60))?;
    assert_eq!(guest.check("systemctl --failed --plain --no-legend")?, "");
    Ok(())
}

/// How long the guest's kernel believes what it was told of names, and some.
const BELIEF: Duration = Duration::from_millis(1200);

/// Says every inotify event of a directory, a line each: what, and the name. No package is needed for it.
const WATCHER: &str = r#"
my %names = (2 => "modify", 4 => "attrib", 8 => "close_write", 0x40 => "from", 0x80 => "to", 0x100 => "create",
    0x200 => "delete", 0x400 => "delete_self", 0x800 => "move_self", 0x40000100 => "mkdir", 0x40000200 => "rmdir", 0x40000040 => "dir_from", 0x40000080 => "dir_to");
my $fd = syscall(26, 0);
for my $path (@ARGV) { my $zero = "$path\0"; syscall(27, $fd, $zero, 0xfce) >= 0 or die "$path: $!" }
open(my $in, "<&=", $fd) or die $!;
$| = 1;
print "ready\n";
while (sysread($in, my $bytes, 65536)) {
    while (length $bytes) {
        my ($wd, $mask, $cookie, $len) = unpack("iIII", $bytes);
        my $name = unpack("Z*", substr($bytes, 16, $len));
        substr($bytes, 0, 16 + $len) = "";
        print(($names{$mask} // sprintf("%x", $mask)), " ", length $name ? $name : ".", "\n");
    }
}
"#;

#[test]
fn what_others_do_on_the_host_is_told_to_whoever_watches_in_the_guest() -> Result<()> {
    let (guest, mut host) = with_folders("share-watch")?;
    let folder = host.home().join("src");
    fs::create_dir_all(folder.join("sub"))?;
    fs::write(folder.join("old"), "old\n")?;
    for watched in ["itself", "replaced", "soon"] {
        fs::write(folder.join(watched), "watched itself\n")?;
    }
    host.run(&["share", "add", "vm", &folder.display().to_string()])?.text()?;
    host.start_agent()?;
    guest.wait_until("pgrep -f 'share [r]eplay'", Duration::from_secs(240))?;
    guest.put("/root/watch.pl", 0o644, WATCHER.as_bytes())?;
    guest.check(
        "ls /mnt/hospes/src /mnt/hospes/src/sub; cat /mnt/hospes/src/old
         systemd-run --quiet --unit=watch -p StandardOutput=append:/root/events \\
             perl /root/watch.pl /mnt/hospes/src /mnt/hospes/src/sub /mnt/hospes/src/itself \
             /mnt/hospes/src/replaced /mnt/hospes/src/soon",
    )?;
    guest.wait_until("grep -q ready /root/events", Duration::from_secs(60))?;
    let expect = |what: &str, lines: &[&str]| -> Result<()> {
        for line in lines {
            guest
                .wait_until(&format!("grep -qx '{line}' /root/events"), Duration::from_secs(30))
                .with_context(|| {
                    format!(
                        "{what}: no \"{line}\" in\n{}",
                        guest.check("cat /root/events").unwrap_or_default()
                    )
                })?;
        }
        guest.check("truncate -s 0 /root/events").map(drop)
    };
    fs::write(folder.join("new"), "1\n")?;
    expect("made", &["create new", "modify new"])?;
    fs::write(folder.join("old"), "something else\n")?;
    expect("changed", &["modify old", "close_write old"])?;
    assert_eq!(guest.check("cat /mnt/hospes/src/old")?, "something else\n");
    fs::rename(folder.join("new"), folder.join("sub/moved"))?;
    expect("moved", &["from new", "to moved"])?;
    fs::create_dir(folder.join("sub/deep"))?;
    expect("a directory", &["mkdir deep"])?;
    fs::remove_file(folder.join("sub/moved"))?;
    fs::remove_dir(folder.join("sub/deep"))?;
    expect("removed", &["delete moved", "rmdir deep"])?;
    // A file that is watched itself, and not by way of its directory.
    fs::write(folder.join("itself"), "changed\n")?;
    expect("changed itself", &["modify itself", "modify ."])?;
    fs::rename(folder.join("itself"), folder.join("sub/itself"))?;
    expect("moved itself", &["to itself", "move_self ."])?;
    // The guest's kernel believes in what it knows for a second, and asks after that: both have to come to this.
    std::thread::sleep(BELIEF);
    fs::remove_file(folder.join("sub/itself"))?;
    expect("removed itself", &["delete itself", "delete_self ."])?;
    // An editor's way: a new file beside the old one, moved over it.
    fs::write(folder.join(".old.swp"), "edited\n")?;
    fs::rename(folder.join(".old.swp"), folder.join("old"))?;
    expect("replaced", &["to old"])?;
    assert_eq!(guest.check("cat /mnt/hospes/src/old")?, "edited\n");
    // And whoever watches no more than the file learns that it is another one now.
    for (name, wait) in [("replaced", BELIEF), ("soon", Duration::ZERO)] {
        guest.check(&format!("stat /mnt/hospes/src/{name}"))?;
        std::thread::sleep(wait);
        fs::write(folder.join(".new"), "another\n")?;
        fs::rename(folder.join(".new"), folder.join(name))?;
        expect("replaced itself", &[&format!("to {name}"), "delete_self ."])?;
        fs::remove_file(folder.join(name))?;
        expect("removed", &[&format!("delete {name}")])?;
    }
    // What happens in a directory that was moved is told where it is now.
    fs::rename(folder.join("sub"), folder.join("below"))?;
    expect("a directory moved", &["dir_from sub", "dir_to below"])?;
    fs::write(folder.join("below/inside"), "1\n")?;
    expect("made in it", &["create inside"])?;
    std::thread::sleep(BELIEF);
    fs::remove_file(folder.join("below/inside"))?;
    expect("removed from it", &["delete inside"])?;
    fs::set_permissions(folder.join("old"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    expect("attributes", &["attrib old"])?;

    // Nothing of it came back to the host, and the host holds what it held.
    assert_eq!(fs::read_to_string(folder.join("old"))?, "edited\n");
    let names: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");

    // What the guest does itself happens once.
    guest.check("echo own > /mnt/hospes/src/own; sleep 1")?;
    assert_eq!(guest.check("grep -c 'create own' /root/events")?, "1\n");

    // A storm: the end of it is told, whatever was merged on the way.
    for round in 0..2000 {
        fs::write(folder.join(format!("storm-{}", round % 50)), round.to_string())?;
    }
    for file in 0..50 {
        fs::remove_file(folder.join(format!("storm-{file}")))?;
    }
    fs::write(folder.join("last"), "")?;
    expect("after a storm", &["create last"])?;
    assert_eq!(guest.check("ls /mnt/hospes/src")?, "below\nlast\nold\nown\n");
    Ok(())
}
