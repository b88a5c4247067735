//! `hospes file` through real processes: the command, the daemon and the user's worker.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Beside, Deadline, Guest, Host, Ran, SharedGuest, tools_started, with_tools};

/// A directory as the guest sees it, and the host that sees the guest.
struct Place {
    guest: Beside,
    host: Host,
    directory: tempfile::TempDir,
}

fn place() -> Result<Place> {
    let guest = Beside::start("")?;
    let host = guest.host()?;
    Ok(Place { guest, host, directory: tempfile::tempdir()? })
}

impl Place {
    fn at(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn file(&self, words: &[&str]) -> Result<Ran> {
        self.host.run(&[&["file", "vm"], words].concat())
    }

    fn write(&self, words: &[&str], bytes: &[u8]) -> Result<Ran> {
        self.host.run_with(&[&["file", "vm", "write"], words].concat(), bytes)
    }

    fn names(&self) -> Result<Vec<String>> {
        let names = fs::read_dir(self.directory.path())?;
        let mut names: Vec<_> = names
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    }
}

fn noise(len: u32) -> Vec<u8> {
    (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect()
}

#[test]
fn megabytes_are_written_and_read_back_unchanged_whole_or_in_part() -> Result<()> {
    let place = place()?;
    let bytes = noise(5 << 20);
    let path = place.at("big");
    assert_eq!(
        place.write(&["-m", "640", &path], &bytes)?,
        Ran { status: 0, stdout: vec![], stderr: String::new() }
    );
    ensure!(fs::read(&path)? == bytes, "other bytes arrived");
    assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o7777, 0o640);
    let read = place.file(&["read", &path])?;
    ensure!(read.status == 0 && read.stdout == bytes, "other bytes came back: {}", read.stderr);
    let part = place.file(&["read", &path, "--offset", "1000000", "--length", "2000001"])?;
    ensure!(part.stdout == bytes[1_000_000..3_000_001], "another part came back");
    assert_eq!(place.write(&[&place.at("none")], b"")?.status, 0);
    assert_eq!(fs::read(place.at("none"))?, b"");
    assert_eq!(place.write(&["-a", &path], b"end")?.status, 0);
    assert_eq!(fs::metadata(&path)?.len(), (5 << 20) + 3);
    Ok(())
}

#[test]
fn a_write_that_is_cut_leaves_the_old_file_and_nothing_else() -> Result<()> {
    let place = place()?;
    let path = place.at("kept");
    fs::write(&path, "old")?;
    // One end is killed in the middle, then the other.
    for kill_worker in [false, true] {
        let mut child = place
            .host
            .command(&["file", "vm", "write", &path])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("a pipe")?;
        stdin.write_all(&noise(3 << 20))?;
        // Bytes have arrived: the worker holds a file that no name leads to, in that directory.
        let deadline = Deadline::after(Duration::from_secs(60));
        deadline.poll("bytes in the worker's file", || Ok(holds_bytes(&place).then_some(())))?;
        if kill_worker {
            place.guest.kill_workers();
            drop(stdin);
            let ended = child.wait_with_output()?;
            assert_eq!(ended.status.code(), Some(125));
            ensure!(String::from_utf8_lossy(&ended.stderr).contains("Error:"), "it says why");
        } else {
            child.kill()?;
            child.wait()?;
            deadline.poll("the worker to give the write up", || Ok((!holds_bytes(&place)).then_some(())))?;
        }
        assert_eq!(fs::read_to_string(&path)?, "old");
        assert_eq!(place.names()?, ["kept"]);
    }
    Ok(())
}

/// Whether a worker has an open file in the directory with bytes in it.
fn holds_bytes(place: &Place) -> bool {
    let prefix = format!("{}/", place.directory.path().display());
    place.guest.workers().iter().any(|pid| {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        entries.flatten().any(|entry| {
            let leads_there =
                fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with(&prefix));
            leads_there && fs::metadata(entry.path()).is_ok_and(|file| file.is_file() && file.len() > 0)
        })
    })
}

#[test]
fn every_verb_does_what_its_namesake_does() -> Result<()> {
    let place = place()?;
    let ok = |words: &[&str]| -> Result<String> { place.file(words)?.text() };
    ok(&["mkdir", "-p", "-m", "0710", &place.at("a/b/c")])?;
    assert_eq!(fs::metadata(place.at("a/b/c"))?.permissions().mode() & 0o7777, 0o710);
    fs::write(place.at("a/f"), "12345")?;
    symlink("f", place.at("a/link"))?;
    fs::write(place.at("a/.hidden"), "")?;
    assert_eq!(ok(&["ls", &place.at("a")])?, "b\nf\nlink\n");
    assert_eq!(ok(&["ls", "-a0", &place.at("a")])?, ".hidden\0b\0f\0link\0");
    assert_eq!(ok(&["ls", &place.at("a/f")])?, format!("{}\n", place.at("a/f")), "a file is listed itself");
    let long = ok(&["ls", "-l", &place.at("a")])?;
    assert_eq!(long.lines().count(), 3);
    ensure!(
        long.lines().nth(2).is_some_and(|line| line.starts_with('l') && line.ends_with(" link -> f")),
        "{long}"
    );
    let stat: serde_json::Value =
        serde_json::from_str(&ok(&["stat", "--json", &place.at("a/f"), &place.at("a/link")])?)?;
    assert_eq!((&stat["entries"][0]["type"], &stat["entries"][0]["size"]), (&"file".into(), &5.into()));
    assert_eq!(
        (&stat["entries"][1]["type"], &stat["entries"][1]["target"]),
        (&"symlink".into(), &"f".into())
    );
    let followed: serde_json::Value =
        serde_json::from_str(&ok(&["stat", "-L", "--json", &place.at("a/link")])?)?;
    assert_eq!(followed["entries"][0]["type"], "file");
    ok(&["mv", &place.at("a/f"), &place.at("a/b")])?;
    assert_eq!(fs::read_to_string(place.at("a/b/f"))?, "12345", "into the directory, as mv does");
    fs::write(place.at("a/g"), "g")?;
    assert_eq!(place.file(&["mv", "-n", &place.at("a/g"), &place.at("a/b/f")])?.status, 1);
    ok(&["mv", &place.at("a/g"), &place.at("a/b/f")])?;
    assert_eq!(fs::read_to_string(place.at("a/b/f"))?, "g");
    let made = ok(&["mktemp", "-d", "-p", &place.at("a"), "new-"])?;
    ensure!(made.starts_with(&place.at("a/new-")) && fs::metadata(made.trim_end())?.is_dir(), "{made}");
    assert_eq!(place.file(&["rm", &place.at("a")])?.status, 1, "it is not empty");
    ok(&["rm", "-r", &place.at("a")])?;
    assert_eq!(place.names()?, [""; 0]);
    assert_eq!(place.file(&["rm", &place.at("a")])?.status, 1);
    ok(&["rm", "-f", &place.at("a")])?;
    Ok(())
}

#[test]
fn names_that_are_no_text_survive_end_to_end() -> Result<()> {
    let place = place()?;
    let raw = OsStr::from_bytes(b"\xff\x1b[2J\nname");
    let path = place.directory.path().join(raw);
    let mut write = place.host.command(&["file", "vm", "write"]);
    let mut child = write.arg(&path).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(b"raw")?;
    ensure!(child.wait()?.success());
    assert_eq!(fs::read(&path)?, b"raw");
    let listed = place.file(&["ls", "-0", &place.at(".")])?;
    assert_eq!(listed.stdout, [raw.as_bytes(), b"\0"].concat());
    let told: serde_json::Value =
        serde_json::from_str(&place.file(&["ls", "--json", &place.at(".")])?.text()?)?;
    assert_eq!(told["entries"][0]["name_hex"], "ff1b5b324a0a6e616d65");
    // Nothing that a terminal would obey reaches a message.
    let missing =
        place.host.command(&["file", "vm", "stat"]).arg(OsStr::from_bytes(b"/\x1b[2J\xff")).output()?;
    assert_eq!(missing.status.code(), Some(1));
    ensure!(!missing.stderr.contains(&0x1b) && !missing.stderr.contains(&0xff), "{missing:?}");
    Ok(())
}

#[test]
fn failures_have_their_codes_words_and_hints() -> Result<()> {
    let place = place()?;
    let missing = place.file(&["read", "/no/such/file"])?;
    assert_eq!(missing.status, 1);
    ensure!(
        missing.stderr.contains("Could not read \"/no/such/file\": No such file or directory"),
        "{}",
        missing.stderr
    );
    let json = place.file(&["read", "--json", "/no/such/file"])?;
    let told: serde_json::Value = serde_json::from_str(&json.stderr)?;
    assert_eq!((&told["error"]["kind"], &told["error"]["code"]), (&"not_found".into(), &1.into()));
    ensure!(place.file(&["stat", "~/x"])?.stderr.contains("Leave out ~/"));
    ensure!(place.file(&["rm", &place.at(".")])?.status == 1);
    assert_eq!(place.host.run(&["file", "vm", "rm"])?.status, 125, "a wrong command line is ours");
    let policy = Beside::start("[verbs]\nfile = false\n")?;
    let host = policy.host()?;
    let refused = host.run(&["file", "vm", "ls", "/"])?;
    assert_ne!(refused.status, 0);
    ensure!(refused.stderr.contains("does not allow file"), "{}", refused.stderr);
    ensure!(policy.log()?.contains("does not allow file"), "each refusal is logged");
    ensure!(place.guest.log()?.contains("read /no/such/file"), "and each deed, with its path");
    Ok(())
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() -> Result<()> {
    let place = place()?;
    fs::write(place.at("big"), noise(4 << 20))?;
    let mut command = place.host.command(&["file", "vm", "read", &place.at("big")]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut first = [0; 1000];
    child.stdout.take().context("a pipe")?.read_exact(&mut first)?;
    let ended = child.wait_with_output()?;
    assert_eq!((ended.status.code(), ended.stderr), (Some(0), vec![]));
    Ok(())
}

/// A user's first session takes its time under emulation: it is begun before the tests.
fn prepared(guest: &Guest) -> Result<()> {
    tools_started(guest)?;
    guest.check("systemctl start --no-block user@1000.service")?;
    guest.wait_until("systemctl is-active user@1000.service", Duration::from_secs(240)).map(drop)
}

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("file")).prepared(prepared);

fn booted(guest: &Guest) -> Result<Host> {
    let host = Host::of(guest)?;
    host.run(&["wait", "vm", "--timeout", "60s"])?.text()?;
    host.run(&["exec", "--connect-timeout", "120s", "vm", "--", "true"])?.text()?;
    Ok(host)
}

#[test]
fn in_a_booted_guest_files_are_the_users() -> Result<()> {
    let guest = GUEST.get()?;
    let host = booted(&guest)?;
    let bytes = noise(2 << 20);
    let nowhere = host.run_with(&["file", "vm", "write", "notes/.."], b"")?;
    ensure!(nowhere.status == 1, "{}: {}", nowhere.status, nowhere.stderr);
    host.run(&["file", "vm", "mkdir", "-p", "notes/today"])?.text()?;
    ensure!(host.run_with(&["file", "vm", "write", "notes/today/big"], &bytes)?.status == 0);
    assert_eq!(
        guest.check("stat -c '%U:%G %s' /home/dev/notes/today/big")?,
        format!("dev:dev {}\n", bytes.len())
    );
    ensure!(host.run(&["file", "vm", "read", "notes/today/big"])?.stdout == bytes, "other bytes came back");
    let denied = host.run_with(&["file", "vm", "write", "/etc/hospes-test"], b"x")?;
    assert_eq!(denied.status, 1);
    ensure!(denied.stderr.contains("Permission denied"), "{}", denied.stderr);
    host.run_with(
        &["file", "--connect-timeout", "120s", "-u", "root", "vm", "write", "/etc/hospes-test"],
        b"x",
    )?
    .text()?;
    assert_eq!(guest.check("stat -c %U /etc/hospes-test")?, "root\n");
    guest.check("mkdir -p /home/dev/t/locked/in /home/dev/t/open && chown -R root /home/dev/t/locked && chown dev /home/dev/t /home/dev/t/open")?;
    let partly = host.run(&["file", "vm", "rm", "-r", "t"])?;
    assert_eq!(partly.status, 1);
    ensure!(partly.stderr.contains("\"t/locked/in\": Permission denied"), "{}", partly.stderr);
    assert_eq!(guest.check("ls /home/dev/t")?, "locked\n");
    Ok(())
}
