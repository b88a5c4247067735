//! `hospes cp` against a booted guest: trees both ways, what it refuses, and what is left when something dies.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{Deadline, Guest, Host, SharedGuest, tools_started, with_tools};

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("copy")).prepared(tools_started);

/// Held for writing by the test that kills what the others need.
static LIVES: RwLock<()> = RwLock::new(());

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// What there is in a directory, on either side: kinds, modes, times, lengths, links, names of one file, sums.
const LOOK: &str = "find . ! -type d -printf '%P %y %m %T@ %s %n %l\\n' | sort; \
                    find . -type d -printf '%P %m %T@\\n' | sort; \
                    find . -type f -exec sha256sum {} + | sort";

fn host(guest: &Guest) -> Result<Host> {
    let host = Host::of(guest)?;
    host.run(&["wait", "vm", "--timeout", "60s"])?.text()?;
    // The user's first session takes its time where the machine is busy.
    host.run(&["exec", "--connect-timeout", "90s", "vm", "--", "true"])?.text()?;
    Ok(host)
}

fn look_here(directory: &Path) -> Result<String> {
    let output = Command::new("sh").args(["-c", LOOK]).env("LC_ALL", "C").current_dir(directory).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn look_there(guest: &Guest, directory: &str) -> Result<String> {
    guest.check(&format!("export LC_ALL=C; cd {directory} && {{ {LOOK}; }}"))
}

/// Names in a directory of the guest, the hidden ones too.
fn names(guest: &Guest, directory: &str) -> Result<Vec<String>> {
    Ok(guest.check(&format!("ls -A {directory}"))?.lines().map(str::to_owned).collect())
}

fn bytes(len: u32, seed: u32) -> Vec<u8> {
    (0..len).map(|n| (n.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect()
}

/// A tree with one of everything that an ordinary user can make.
fn nasty(top: &Path) -> Result<()> {
    fs::create_dir_all(top.join("sub/empty"))?;
    fs::write(top.join("sub/big"), bytes(3_000_000, 1))?;
    fs::write(top.join("none"), b"")?;
    fs::write(top.join("a name with\nlines and \u{1b}[31mcolours"), b"odd")?;
    fs::write(top.join("x".repeat(255)), b"long")?;
    fs::hard_link(top.join("sub/big"), top.join("other name"))?;
    symlink("/etc/shadow", top.join("outside"))?;
    symlink("nowhere", top.join("dangling"))?;
    let sparse = fs::File::create(top.join("sparse"))?;
    sparse.set_len(200 << 20)?;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 100 << 20)?;
    fs::set_permissions(top.join("none"), fs::Permissions::from_mode(0o640))?;
    fs::set_permissions(top.join("sub/empty"), fs::Permissions::from_mode(0o555))?;
    for n in 0..200u32 {
        fs::write(top.join(format!("sub/{n}")), bytes(n * 37, n))?;
    }
    Ok(())
}

#[test]
fn a_tree_arrives_as_it_was_and_comes_back_as_it_was() -> Result<()> {
    let _alive = LIVES.read().unwrap_or_else(PoisonError::into_inner);
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    let (from, back) = (host.home().join("from"), host.home().join("back"));
    nasty(&from)?;
    host.run(&["cp", "from", "vm:tree"])?.text()?;
    assert_eq!(look_there(&guest, "/home/dev/tree")?, look_here(&from)?);
    assert_eq!(guest.check("stat -c %U /home/dev/tree/none")?.trim(), "dev");
    let used: u64 =
        guest.check("du -k /home/dev/tree/sparse")?.split_whitespace().next().context("du")?.parse()?;
    ensure!(used < 1024, "the holes were filled: {used} KiB");
    host.run(&["cp", "vm:tree", "back"])?.text()?;
    assert_eq!(look_here(&back)?, look_here(&from)?);
    // Once more over what is there: the same.
    host.run(&["cp", "from/", "vm:tree"])?.text()?;
    assert_eq!(look_there(&guest, "/home/dev/tree/sub")?, look_here(&from.join("sub"))?);
    Ok(())
}

#[test]
fn slashes_and_targets_follow_rsync() -> Result<()> {
    let _alive = LIVES.read().unwrap_or_else(PoisonError::into_inner);
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    fs::create_dir(host.home().join("d"))?;
    fs::write(host.home().join("d/f"), b"f")?;
    guest.check("su dev -c 'mkdir -p ~/slash/there'")?;
    for (source, target) in [
        ("d", "slash/there"),
        ("d/", "slash/there"),
        ("d", "slash/new"),
        ("d/f", "slash/made/"),
        ("d/f", "~/slash/g"),
    ] {
        host.run(&["cp", source, &format!("vm:{target}")])?.text()?;
    }
    let found = guest.check("cd /home/dev/slash && find . -type f | sort")?;
    assert_eq!(found, "./g\n./made/f\n./new/f\n./there/d/f\n./there/f\n");
    let ran = host.run(&["cp", "d/f", "vm:slash/missing/f"])?;
    ensure!(ran.status == 125 && ran.stderr.contains("No such file"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn tar_archives_go_in_and_come_out() -> Result<()> {
    let _alive = LIVES.read().unwrap_or_else(PoisonError::into_inner);
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    let from = host.home().join("from");
    fs::create_dir_all(from.join("deep/er"))?;
    fs::write(from.join("deep/er/f"), bytes(100_000, 3))?;
    let archive = Command::new("tar").args(["-C"]).arg(&from).args(["-c", "."]).output()?;
    ensure!(host.run_with(&["cp", "-", "vm:untarred"], &archive.stdout)?.status == 0);
    guest.check("test -f /home/dev/untarred/deep/er/f")?;
    let out = host.run(&["cp", "vm:untarred/", "-"])?;
    ensure!(out.status == 0, "{}", out.stderr);
    fs::write(host.home().join("out.tar"), &out.stdout)?;
    let listed = Command::new("tar").arg("-tf").arg(host.home().join("out.tar")).output()?;
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "./\ndeep/\ndeep/er/\ndeep/er/f\n");
    Ok(())
}

#[test]
fn no_symbolic_link_in_the_target_leads_out_of_it() -> Result<()> {
    let _alive = LIVES.read().unwrap_or_else(PoisonError::into_inner);
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    guest.check("su dev -c 'mkdir -p ~/trap/kept ~/elsewhere && ln -s ~/elsewhere ~/trap/way'")?;
    fs::create_dir_all(host.home().join("trap/way"))?;
    fs::write(host.home().join("trap/way/out"), b"out")?;
    fs::write(host.home().join("trap/fine"), b"fine")?;
    let ran = host.run(&["cp", "trap/", "vm:trap"])?;
    ensure!(ran.status == 1 && ran.stderr.contains("way: A symbolic link"), "{}: {}", ran.status, ran.stderr);
    assert_eq!(guest.check("ls -A /home/dev/elsewhere")?, "");
    guest.check("test -f /home/dev/trap/fine").map(drop)
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_arrives() -> Result<()> {
    let _alive = LIVES.read().unwrap_or_else(PoisonError::into_inner);
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    guest.check("mkdir -p /home/dev/part && echo s >/home/dev/part/secret && chmod 600 /home/dev/part/secret && echo o >/home/dev/part/open")?;
    let ran = host.run(&["cp", "--json", "vm:part", "part"])?;
    assert_eq!(ran.status, 1);
    let told: serde_json::Value = serde_json::from_slice(&ran.stdout)?;
    assert_eq!((&told["problems"], &told["entries"][0]["kind"]), (&1.into(), &"permission".into()));
    assert_eq!(told["entries"][0]["path"], "part/secret");
    assert_eq!(fs::read(host.home().join("part/open"))?, b"o\n");
    Ok(())
}

#[test]
fn a_full_disk_is_said_with_numbers_before_it_is_full() -> Result<()> {
    let _alive = LIVES.read().unwrap_or_else(PoisonError::into_inner);
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    guest.check("mkdir -p /mnt/small && mount -t tmpfs -o size=2M,mode=1777 none /mnt/small")?;
    fs::write(host.home().join("big"), bytes(3_000_000, 9))?;
    let ran = host.run(&["cp", "big", "vm:/mnt/small"])?;
    let left = names(&guest, "/mnt/small");
    guest.check("umount /mnt/small")?;
    ensure!(
        ran.status == 1 && ran.stderr.contains("2.8 MiB needed, 2.0 MiB free"),
        "{}: {}",
        ran.status,
        ran.stderr
    );
    ensure!(left?.is_empty());
    Ok(())
}

/// Passes the host's connections on to the guest, and cuts each after so many bytes, until it may cut no more.
struct Cutter {
    path: String,
    /// Bytes until the next cut; below zero, none.
    left: Arc<AtomicI64>,
}

impl Cutter {
    fn new(host: &Host, guest: &Guest) -> Result<Self> {
        let path = host.home().join("cutter").display().to_string();
        let listener = UnixListener::bind(&path)?;
        let left = Arc::new(AtomicI64::new(-1));
        let (shared, to) = (Arc::clone(&left), guest.vsock_path());
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = UnixStream::connect(&to) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                        let left = Arc::clone(&shared);
                        thread::spawn(move || pass(&from, &to, &left));
                    }
                }
            }
        });
        host.run(&["add", "cut", &format!("unix:{path}"), "--user", "dev"])?.text()?;
        Ok(Self { path, left })
    }
}

fn pass(mut from: &UnixStream, mut to: &UnixStream, left: &AtomicI64) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let before = left.fetch_sub(i64::try_from(n).unwrap_or(0), Ordering::Relaxed);
        let cut = before >= 0 && before < i64::try_from(n).unwrap_or(0);
        if before < 0 {
            left.store(-1, Ordering::Relaxed);
        }
        if cut || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_cut_copy_goes_on_where_it_was() -> Result<()> {
    let _alive = LIVES.read().unwrap_or_else(PoisonError::into_inner);
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    let cutter = Cutter::new(&host, &guest)?;
    ensure!(Path::new(&cutter.path).exists());
    let content = bytes(6_000_000, 4);
    fs::write(host.home().join("big"), &content)?;
    host.run(&["exec", "cut", "--", "true"])?.text()?;
    for (n, at) in [5_000, 300_000, 2_500_000, 5_900_000].into_iter().enumerate() {
        cutter.left.store(at, Ordering::Relaxed);
        host.run(&["cp", "big", &format!("cut:pushed{n}")])?.text()?;
        ensure!(cutter.left.load(Ordering::Relaxed) < 0, "nothing was cut");
        cutter.left.store(at, Ordering::Relaxed);
        host.run(&["cp", &format!("cut:pushed{n}"), "pulled"])?.text()?;
        ensure!(cutter.left.load(Ordering::Relaxed) < 0, "nothing was cut");
        ensure!(fs::read(host.home().join("pulled"))? == content, "after a cut at {at}");
    }
    Ok(())
}

/// Somebody to kill in the middle of a copy.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Command,
    Worker,
    Daemon,
}

/// What came of a copy; an error where it hangs.
fn end(mut child: Child) -> Result<Output> {
    let ended = Deadline::after(LIMIT).poll("the copy's end", || Ok(child.try_wait()?));
    if let Err(error) = ended {
        child.kill()?;
        bail!("{error:#}");
    }
    Ok(child.wait_with_output()?)
}

/// Copies with a death in the middle, unless `HOSPES_COPY_DEATHS` says how many. Each worker that dies is a session
/// that starts again, which takes its time in an emulated guest.
const DEATHS: u32 = 12;

/// From this many on, some copies have to outlive their deaths and some have not to.
const ENOUGH: u32 = 60;

/// Copies, each with a death in the middle: the right result or a clear error, whole files or none, and nothing that
/// stays behind.
#[test]
fn nobodys_death_leaves_half_a_file() -> Result<()> {
    let _alone = LIVES.write().unwrap_or_else(PoisonError::into_inner);
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    let from = host.home().join("from");
    fs::create_dir(&from)?;
    for n in 0..20u32 {
        fs::write(from.join(format!("f{n}")), bytes(n * 800 + 1, n))?;
    }
    fs::write(from.join("zz"), bytes(2_000_000, 7))?;
    host.run(&["cp", "from", "vm:source"])?.text()?;
    let sums = |text: &str| -> Vec<(String, String)> {
        let pair = |line: &str| line.split_once("  ").map(|(sum, name)| (name.to_owned(), sum.to_owned()));
        text.lines().filter_map(pair).collect()
    };
    let sum_here = |directory: &Path| -> Result<Vec<(String, String)>> {
        let line = "ls -A | sort | xargs -r sha256sum";
        let output = Command::new("sh").args(["-c", line]).current_dir(directory).output()?;
        Ok(sums(&String::from_utf8_lossy(&output.stdout)))
    };
    let whole = sum_here(&from)?;
    let mut outcomes = [0; 2];
    let deaths =
        std::env::var("HOSPES_COPY_DEATHS").ok().and_then(|count| count.parse().ok()).unwrap_or(DEATHS);
    for round in 0..deaths {
        let pushed = round % 2 == 0;
        let words = if pushed { ["cp", "from", "vm:target"] } else { ["cp", "vm:source", "target"] };
        let mut child = host.command(&words).stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        // Spread over a copy's whole life without a clock that decides anything.
        thread::sleep(Duration::from_millis(u64::from(round.wrapping_mul(2_654_435_761) >> 23)));
        let victim = [Victim::Command, Victim::Worker, Victim::Daemon][round as usize % 3];
        match victim {
            Victim::Command => child.kill()?,
            Victim::Worker => guest.check("pkill -9 -u dev -x hospes-session || true").map(drop)?,
            Victim::Daemon => guest.check("systemctl kill -s KILL hospes-toolsd || true").map(drop)?,
        }
        let output = end(child).with_context(|| format!("round {round}, {victim:?}"))?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let landed = if pushed {
            sums(
                &guest
                    .check("cd /home/dev/target 2>/dev/null && ls -A | sort | xargs -r sha256sum || true")?,
            )
        } else if host.home().join("target").exists() {
            sum_here(&host.home().join("target"))?
        } else {
            Vec::new()
        };
        if output.status.success() {
            ensure!(landed == whole, "round {round}, {victim:?}: success, and not all is there");
            outcomes[0] += 1;
        } else {
            outcomes[1] += 1;
            ensure!(
                matches!(victim, Victim::Command) || told.starts_with("Error: "),
                "round {round}, {victim:?}: no clear error: {told}"
            );
            // Each file is whole; no other name is there.
            let strange: Vec<_> = landed.iter().filter(|file| !whole.contains(file)).collect();
            ensure!(strange.is_empty(), "round {round}, {victim:?}: {strange:?}");
        }
        guest.check("rm -rf /home/dev/target")?;
        let _ = fs::remove_dir_all(host.home().join("target"));
        tools_started(&guest)?;
    }
    ensure!(
        deaths < ENOUGH || outcomes.iter().all(|count| *count > 0),
        "the deaths came too early or too late: {outcomes:?}"
    );
    // Parked copies are given up after a minute, and then nothing of them is left.
    let holds =
        "for pid in $(pgrep -u dev -x hospes-session); do ls -l /proc/$pid/fd; done | grep -c deleted";
    guest.wait_until(&format!("test \"$({holds})\" = 0"), Duration::from_secs(90)).map(drop)
}
