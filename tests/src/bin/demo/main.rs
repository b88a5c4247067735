//! `make demo`: a real guest gets the package and is commanded from this machine, step by step, with real output.
//!
//! Every step shows the command as a user types it and what it printed, and then holds the result against the truth.
//! The table at the end says what worked; one step that did not makes the whole fail.
//!
//! `make demo-desktop` tells the chapter of a guest with a screen instead ([`desktop`]): its image is large.

mod desktop;
mod story;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, GuestSpec, Host, Lab};

use self::story::{Say, Story};

fn main() -> ExitCode {
    let mut story = Story::default();
    let told = match std::env::args().nth(1).as_deref() {
        Some("desktop") => desktop::tell(&mut story),
        _ => tell(&mut story),
    };
    if let Err(error) = told {
        println!("\nThe story could not go on: {error:#}");
        story.failed = true;
    }
    story.table();
    if story.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn tell(story: &mut Story) -> Result<()> {
    let guest = story.must("A Debian 13 arm64 guest boots under QEMU", |_| {
        Guest::boot(GuestSpec::new("demo").cold().ssh().folders([]))
    })?;
    story.must("The guest gets the package by apt install, and the daemon runs", |say| {
        let package = Lab::package()?;
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        say.typed(&format!("(in the guest) apt install ./{name}"));
        guest.install(&[package])?;
        say.printed(&guest.wait_until("systemctl is-active hospes-toolsd", Duration::from_secs(60))?);
        say.typed("(in the guest) hospes-tools status");
        say.printed(&guest.check("hospes-tools status")?);
        Ok(())
    })?;
    let mut host = Host::new()?;
    story.must("The host meets the guest over its vsock, and each pins the other's key", |say| {
        let endpoint = format!("unix:{}", guest.vsock_path().display());
        let control = guest.control_path().display().to_string();
        say.run(&host, &["add", "dev", &endpoint, "--user", "dev", "--hv", &control])?.text()?;
        host.start_agent()?;
        say.run(&host, &["wait", "dev", "--timeout", "60s"])?.text()?;
        say.run(&host, &["list"])?.text().map(drop)
    })?;
    story.step("info: what the guest says of itself", |say| {
        let info = say.run(&host, &["info", "dev"])?.text()?;
        let kernel = guest.check("uname -r")?;
        ensure!(info.contains(kernel.trim()), "it does not name the kernel {}", kernel.trim());
        Ok(())
    });
    story.step("exec: stdin, stdout and the exit status are the command's own", |say| {
        say.typed("printf 'hello, guest' | hospes exec dev -- tr a-z A-Z");
        let ran = host.run_with(&["exec", "dev", "--", "tr", "a-z", "A-Z"], b"hello, guest")?;
        say.printed(&String::from_utf8_lossy(&ran.stdout));
        ensure!(ran.status == 0 && ran.stdout == b"HELLO, GUEST", "it came back as {ran:?}");
        let ran = say.run(&host, &["exec", "dev", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
        ensure!(
            ran.status == 7 && ran.stdout == b"out\n" && ran.stderr == "err\n",
            "it came back as {ran:?}"
        );
        let ran = say.run(&host, &["exec", "dev", "--", "no-such-program"])?;
        ensure!(ran.status == 127, "a missing program gives 127 in every shell, here {}", ran.status);
        Ok(())
    });
    story.step("exec -t: a terminal, of the size that yours has", |say| {
        say.typed("hospes exec -t dev -- sh -c 'tty; stty size'");
        let text =
            in_a_terminal(&host, &["exec", "-t", "dev", "--", "sh", "-c", "tty; stty size"], (31, 97))?;
        say.printed(&text);
        ensure!(text.contains("/dev/pts/"), "the command has no terminal");
        ensure!(text.contains("31 97"), "the terminal is not of 31 rows and 97 columns");
        Ok(())
    });
    story.step("cp: a tree goes over and comes back the same", |say| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol");
        let source = source.canonicalize()?.display().to_string();
        say.run(&host, &["cp", "--exclude", "target", &source, "dev:tree"])?.text()?;
        say.run(&host, &["cp", "dev:tree", "back"])?.text()?;
        let here = tree_hash(Path::new(&source))?;
        let there = guest.check(&format!("cd /home/dev/tree && {HASH_TREE}"))?;
        let back = tree_hash(&host.home().join("back"))?;
        say.printed(&format!("here   {here}there  {there}back   {back}"));
        ensure!(here == there && there == back, "the trees differ");
        Ok(())
    });
    story.step("forward: a page of the guest's own web server, fetched here", |say| {
        guest.put("/tmp/server.pl", 0o755, SERVER.as_bytes())?;
        guest.check("systemd-run --quiet --unit=demo-server /usr/bin/perl /tmp/server.pl")?;
        guest.wait_until("ss -ltn | grep -q :8080", Duration::from_secs(20))?;
        say.typed("hospes forward dev -L 127.0.0.1:0:localhost:8080 &");
        let page = through_a_forward(&host)?;
        say.printed(&page);
        ensure!(page.contains("This page comes from Linux"), "that is not the guest's page");
        Ok(())
    });
    story.step("connect: rsync over ssh over vsock, with no network", |say| {
        let source = host.home().join("rsynced");
        fs::create_dir_all(source.join("a/b"))?;
        fs::write(source.join("a/b/file"), vec![42; 100_000])?;
        let remote = format!(
            "ssh -F none -i {} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
             -o LogLevel=ERROR -o ProxyCommand='{} connect dev tcp:22'",
            Lab::find()?.file("ssh_key").display(),
            host.program().display()
        );
        say.typed("rsync -a -e \"ssh -o ProxyCommand='hospes connect dev tcp:22'\" rsynced dev@dev:");
        let output = Command::new("rsync")
            .args(["-a", "--stats", "-e", &remote, "rsynced", "dev@dev:"])
            .env_clear()
            .envs(host.environment())
            .current_dir(host.home())
            .output()
            .context("Could not run rsync: run `make setup`")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        say.printed(&text.lines().filter(|line| line.contains("transferred")).collect::<Vec<_>>().join("\n"));
        ensure!(output.status.success(), "rsync: {}", String::from_utf8_lossy(&output.stderr));
        ensure!(
            guest.check(&format!("cd /home/dev/rsynced && {HASH_TREE}"))? == tree_hash(&source)?,
            "the trees differ"
        );
        Ok(())
    });
    story.step("share: a folder of this machine, in the running guest", |say| {
        let notes = host.home().join("notes");
        fs::create_dir(&notes)?;
        fs::write(notes.join("todo"), "written on the host\n")?;
        say.run(&host, &["share", "add", "dev", "notes"])?.text()?;
        let there = ["exec", "dev", "--", "cat", "/mnt/hospes/notes/todo"];
        ensure!(say.run(&host, &there)?.text()? == "written on the host\n", "the guest reads something else");
        let write = "echo written in the guest >> /mnt/hospes/notes/todo";
        say.run(&host, &["exec", "dev", "--", "sh", "-c", write])?.text()?;
        say.typed("cat notes/todo");
        let both = fs::read_to_string(notes.join("todo"))?;
        say.printed(&both);
        ensure!(both == "written on the host\nwritten in the guest\n", "the host reads something else");
        Ok(())
    });
    story.step("share: what happens on the host wakes whoever watches in the guest", |say| {
        guest.wait_until("pgrep -f 'share [r]eplay'", Duration::from_secs(120))?;
        guest.put("/tmp/watch.pl", 0o755, WATCHER.as_bytes())?;
        say.typed("hospes exec dev -- perl watch.pl /mnt/hospes/notes &");
        let told = watched(&host, &host.home().join("notes"), say)?;
        let expected = ["created new", "modified todo", "moved new", "moved here old", "deleted old"];
        for event in expected {
            ensure!(told.iter().any(|line| line == event), "nobody was told \"{event}\"");
        }
        Ok(())
    });
    story.step("share: gone from the guest, still here", |say| {
        say.run(&host, &["share", "list", "dev"])?.text()?;
        say.run(&host, &["share", "remove", "dev", "notes"])?.text()?;
        guest.wait_until("! ls /mnt/hospes/notes 2>/dev/null", Duration::from_secs(20))?;
        let ran = say.run(&host, &["exec", "dev", "--", "ls", "/mnt/hospes"])?.text()?;
        ensure!(ran.is_empty(), "it is still there");
        ensure!(host.home().join("notes/todo").exists(), "the host's own is gone");
        Ok(())
    });
    story.step("stop: a clean shutdown", |say| {
        say.run(&host, &["stop", "dev"])?.text()?;
        guest.wait_power_off()?;
        let console = guest.console();
        ensure!(console.contains("reboot: Power down"), "the guest's kernel did not say that it powers down");
        say.printed("(on the guest's console) reboot: Power down");
        Ok(())
    });
    if !story.failed {
        guest.hush();
    }
    Ok(())
}

const HASH_TREE: &str = "find . -type f ! -path './target/*' ! -path '*/target/*' -print0 | LC_ALL=C sort -z \
                         | xargs -0 sha256sum | sha256sum";

const SERVER: &str = r#"use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8080, Listen => 5, ReuseAddr => 1) or die $!;
while (my $client = $server->accept) {
    while (<$client>) { last if /^\r?$/ }
    my $page = "This page comes from " . `uname -sr`;
    print $client "HTTP/1.0 200 OK\r\nContent-Length: " . length($page) . "\r\n\r\n$page";
    close $client;
}
"#;

/// Says every inotify event of a directory, a line each, for a minute at the most.
const WATCHER: &str = r#"
my %names = (2 => "modified", 0x40 => "moved", 0x80 => "moved here", 0x100 => "created", 0x200 => "deleted");
alarm 60;
my ($fd, $path) = (syscall(26, 0), "$ARGV[0]\0");
syscall(27, $fd, $path, 0x3c2) >= 0 or die $!;
open(my $in, "<&=", $fd) or die $!;
$| = 1;
print "ready\n";
while (sysread($in, my $bytes, 65536)) {
    while (length $bytes) {
        my ($wd, $mask, $cookie, $len) = unpack("iIII", $bytes);
        print "$names{$mask} ", unpack("Z*", substr($bytes, 16, $len)), "\n";
        substr($bytes, 0, 16 + $len) = "";
    }
}
"#;

/// Watches in the guest what is done to a folder here; returns what was told.
fn watched(host: &Host, folder: &Path, say: &Say) -> Result<Vec<String>> {
    let words = ["exec", "dev", "--", "perl", "/tmp/watch.pl", "/mnt/hospes/notes"];
    let mut watcher = host.command(&words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let said = watcher.stdout.take().context("stdout is a pipe")?;
    let told = act_and_hear(BufReader::new(said).lines(), folder, say);
    let _ = watcher.kill();
    let _ = watcher.wait();
    told
}

fn act_and_hear(
    mut lines: impl Iterator<Item = std::io::Result<String>>,
    folder: &Path,
    say: &Say,
) -> Result<Vec<String>> {
    let mut told = Vec::new();
    let mut hear = |last: &str| -> Result<()> {
        loop {
            let line = lines.next().with_context(|| format!("\"{last}\" was not told within a minute"))??;
            say.printed(&line);
            told.push(line);
            if told.last().is_some_and(|line| line == last) {
                return Ok(());
            }
        }
    };
    hear("ready")?;
    say.typed("touch notes/new");
    fs::write(folder.join("new"), "")?;
    hear("created new")?;
    say.typed("echo something else > notes/todo");
    fs::write(folder.join("todo"), "something else\n")?;
    hear("modified todo")?;
    say.typed("mv notes/new notes/old");
    fs::rename(folder.join("new"), folder.join("old"))?;
    hear("moved here old")?;
    say.typed("rm notes/old");
    fs::remove_file(folder.join("old"))?;
    hear("deleted old")?;
    Ok(told)
}

fn tree_hash(directory: &Path) -> Result<String> {
    let output = Command::new("sh").arg("-c").arg(HASH_TREE).current_dir(directory).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a `hospes` command in a terminal of so many rows and columns, by way of script(1).
fn in_a_terminal(host: &Host, words: &[&str], (rows, cols): (u16, u16)) -> Result<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let line =
        format!("stty rows {rows} cols {cols}; exec '{}' {}", host.program().display(), quoted.join(" "));
    let output = Command::new("script")
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .env_clear()
        .envs(host.environment())
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .context("Could not run script(1)")?;
    // script(1) sends its own end of file through the terminal, which echoes it.
    Ok(String::from_utf8_lossy(&output.stdout).replace(['\r', '\0', '\u{4}', '\u{8}'], "").replace("^@", ""))
}

fn through_a_forward(host: &Host) -> Result<String> {
    let mut forward = host
        .command(&["forward", "--json", "dev", "-L", "127.0.0.1:0:localhost:8080"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let said = forward.stdout.take();
    let page = said.context("stdout is a pipe").and_then(fetch);
    // It runs until it is told to end.
    let _ = forward.kill();
    let _ = forward.wait();
    page
}

/// Fetches a page by way of the forward that says on `said` which port it listens on.
fn fetch(said: impl Read + Send + 'static) -> Result<String> {
    let (sender, first) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(said).read_line(&mut line);
        sender.send(read.map(|_| line))
    });
    let line =
        first.recv_timeout(Duration::from_secs(60)).context("The forward said nothing for a minute")??;
    let listening: serde_json::Value = serde_json::from_str(&line).context("The forward ended at once")?;
    let port = listening["port"].as_u64().and_then(|port| u16::try_from(port).ok());
    let mut stream = TcpStream::connect(("127.0.0.1", port.with_context(|| format!("no port in {line}"))?))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned())
}
