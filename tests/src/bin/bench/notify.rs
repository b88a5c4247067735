//! Changes on the host, told to whoever watches in the guest: how long it takes, in a small folder and in a large tree,
//! how a storm of edits ends, and what it costs while nothing happens.
//!
//! The time is from before the act on the host until a line of the watcher in the guest has come back through exec,
//! whose own way there and back is the floor.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, Host, tools_started, with_tools};
use serde_json::json;

use crate::row::{Row, median};

const ROUNDS: usize = 25;
const DIRECTORIES: usize = 500;
const FILES: usize = 100;
const STORM_FILES: usize = 200;
const STORM_ROUNDS: usize = 25;
const IDLE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);
/// Milliseconds.
const BAR: f64 = 200.0;

/// Says every inotify event of directories, a line each: what, and the name. No package is needed for it.
const WATCHER: &str = r#"
my %names = (2 => "modify", 0x40 => "from", 0x80 => "to", 0x100 => "create", 0x200 => "delete");
my $fd = syscall(26, 0);
for my $path (@ARGV) { my $zero = "$path\0"; syscall(27, $fd, $zero, 0x3c2) >= 0 or die "$path: $!" }
open(my $in, "<&=", $fd) or die $!;
$| = 1;
print "ready\n";
while (sysread($in, my $bytes, 65536)) {
    while (length $bytes) {
        my ($wd, $mask, $cookie, $len) = unpack("iIII", $bytes);
        print(($names{$mask} // sprintf("%x", $mask)), " ", unpack("Z*", substr($bytes, 16, $len)), "\n");
        substr($bytes, 0, 16 + $len) = "";
    }
}
"#;

pub(crate) fn measure() -> Result<Vec<Row>> {
    let guest = Guest::boot(with_tools("bench-notify")?.folders([]))?;
    tools_started(&guest)?;
    let mut host = Host::sharing_identity()?;
    host.add("vm", &guest)?;
    host.run(&["exec", "vm", "--connect-timeout", "240s", "--", "true"])?.text()?;
    let folder = host.home().join("src");
    let (few, deep) = (folder.join("few"), folder.join(format!("tree/d{}", DIRECTORIES - 1)));
    fs::create_dir_all(&few)?;
    fill(&folder.join("tree"))?;
    host.run(&["share", "add", "vm", &folder.display().to_string()])?.text()?;
    host.start_agent()?;
    guest.wait_until("pgrep -f 'share [r]eplay'", Duration::from_secs(240))?;
    guest.put("/tmp/watch.pl", 0o644, WATCHER.as_bytes())?;
    let mut echo = Lines::of(&host, &["cat"])?;

    let inside =
        |path: &Path| format!("/mnt/hospes/src/{}", path.strip_prefix(&folder).unwrap_or(path).display());
    let mut rows = Vec::new();
    {
        let mut watcher = Lines::of(&host, &["perl", "/tmp/watch.pl", &inside(&few)])?;
        watcher.hear("ready")?;
        rows.push(latency("a change in a small folder", &few, &mut watcher, &mut echo)?);
        rows.push(storm(&guest, &few, &inside(&few), &mut watcher)?);
    }
    let known = guest.check_within("find /mnt/hospes/src/tree -type f | wc -l", Duration::from_secs(600))?;
    ensure!(known.trim() == (DIRECTORIES * FILES).to_string(), "the guest sees {known} files");
    let mut watcher = Lines::of(&host, &["perl", "/tmp/watch.pl", &inside(&deep)])?;
    watcher.hear("ready")?;
    rows.push(latency(
        "a change among 50,000 files that the guest has read",
        &deep,
        &mut watcher,
        &mut echo,
    )?);
    rows.push(idle(&guest)?);
    Ok(rows)
}

fn fill(tree: &Path) -> Result<()> {
    for directory in 0..DIRECTORIES {
        let directory = tree.join(format!("d{directory}"));
        fs::create_dir_all(&directory)?;
        for file in 0..FILES {
            File::create(directory.join(format!("f{file}")))?;
        }
    }
    Ok(())
}

fn latency(metric: &str, folder: &Path, watcher: &mut Lines, echo: &mut Lines) -> Result<Row> {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let mut each: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        let (name, moved) = (format!("n{round}"), format!("m{round}"));
        let (path, there) = (folder.join(&name), folder.join(&moved));
        let acts: [(String, &dyn Fn() -> std::io::Result<()>); 4] = [
            (format!("create {name}"), &|| File::create(&path).map(drop)),
            (format!("modify {name}"), &|| fs::write(&path, "changed")),
            (format!("to {moved}"), &|| fs::rename(&path, &there)),
            (format!("delete {moved}"), &|| fs::remove_file(&there)),
        ];
        for (kind, (line, act)) in acts.into_iter().enumerate() {
            let start = Instant::now();
            act()?;
            let took = watcher.hear(&line)?.duration_since(start).as_secs_f64() * 1000.0;
            each[kind].push(took);
            ours.push(took);
        }
        let start = Instant::now();
        echo.say(&name)?;
        floor.push(echo.hear(&name)?.duration_since(start).as_secs_f64() * 1000.0);
    }
    let middle = median(&ours);
    let [create, modify, to, delete] = &each;
    Ok(Row::new("notify", format!("{metric}, told"), "ms", middle)
        .floor(median(&floor))
        .bar(format!("≤ {BAR}"), middle <= BAR)
        .raw(json!({ "create": create, "modify": modify, "move": to, "delete": delete, "floor": floor })))
}

/// The end of it is what counts: everything told, the same on both sides, and nothing written by the telling.
fn storm(guest: &Guest, folder: &Path, inside: &str, watcher: &mut Lines) -> Result<Row> {
    for round in 0..STORM_ROUNDS {
        for file in 0..STORM_FILES {
            fs::write(folder.join(format!("storm-{file}")), format!("{round} {file}"))?;
        }
    }
    let written = times(folder)?;
    let start = Instant::now();
    File::create(folder.join("last"))?;
    let took = watcher.hear("create last")?.duration_since(start).as_secs_f64();
    let sums = "cat $(ls | sort) | sha256sum";
    let here = Command::new("sh").args(["-c", sums]).current_dir(folder).output()?.stdout;
    let there = guest.check(&format!("cd {inside} && {sums}"))?;
    ensure!(here == there.as_bytes(), "after the storm the guest reads something else");
    for file in 0..STORM_FILES {
        let line = format!("modify storm-{file}");
        ensure!(watcher.heard.contains(&line), "nobody was told that storm-{file} changed");
    }
    fs::remove_file(folder.join("last"))?;
    watcher.hear("delete last")?;
    ensure!(times(folder)? == written, "the telling changed files of the host");
    let events = watcher.heard.iter().filter(|line| line.starts_with("modify storm")).count();
    Ok(Row::new("notify", "5,000 edits of 200 files, from the last until all is told", "s", took)
        .bar("final state".to_owned(), true)
        .raw(json!({ "events": events })))
}

fn times(folder: &Path) -> Result<Vec<(String, i64, i64)>> {
    let mut times = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        times.push((name, metadata.mtime(), metadata.mtime_nsec()));
    }
    times.sort();
    Ok(times)
}

/// The device on the host and the helper in the guest, with a tree watched.
fn idle(guest: &Guest) -> Result<Row> {
    let device = guest.folders_pid().context("a file system device")?;
    let count = |text: &str| -> u64 {
        let lines = text.lines().filter_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        lines.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
    };
    let now = || -> Result<(u64, u64)> {
        let mut ours = String::new();
        for task in fs::read_dir(format!("/proc/{device}/task"))? {
            ours.push_str(&fs::read_to_string(task?.path().join("status"))?);
        }
        let theirs = guest.check("cat /proc/$(pgrep -f 'share [r]eplay' | head -1)/task/*/status")?;
        Ok((count(&ours), count(&theirs)))
    };
    thread::sleep(Duration::from_secs(3));
    let before = now()?;
    thread::sleep(IDLE);
    let after = now()?;
    let (device, helper) = (after.0 - before.0, after.1 - before.1);
    let both = u32::try_from(device + helper).map_or(f64::INFINITY, f64::from);
    Ok(Row::new("notify", "wake-ups in 30 s, idle, of device and helper", "wake-ups", both)
        .bar("0".to_owned(), both == 0.0)
        .raw(json!({ "device": device, "helper": helper })))
}

/// A command in the guest whose lines are read as they come.
struct Lines {
    child: Child,
    lines: Receiver<(Instant, String)>,
    heard: std::collections::HashSet<String>,
}

impl Lines {
    fn of(host: &Host, command: &[&str]) -> Result<Self> {
        let words = [&["exec", "vm", "--"], command].concat();
        let mut child = host.command(&words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines, heard: std::collections::HashSet::new() })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("stdin is a pipe")?;
        writeln!(stdin, "{line}").context("the command in the guest is gone")
    }

    /// Waits for a line; when it came.
    fn hear(&mut self, wanted: &str) -> Result<Instant> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (at, line) =
                self.lines.recv_timeout(left).with_context(|| format!("\"{wanted}\" was not told"))?;
            let found = line == wanted;
            self.heard.insert(line);
            if found {
                return Ok(at);
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
