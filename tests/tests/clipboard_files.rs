//! Files that were copied on one machine are pasted on the other: real compositors, a helper with its user's rights, what
//! mounts for it, an agent with fusermount3, and the programs that people copy files with.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::Deadline;
use integration_tests::desktop::{Compositor, Kind, Rig};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIST: &str = "text/uri-list";
const GNOME: &str = "x-special/gnome-copied-files";
const WAIT: Duration = Duration::from_secs(60);

/// The URI of a file, with nothing left as it is.
fn uri(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes().iter();
    let path: String =
        bytes.map(|byte| if *byte == b'/' { "/".to_owned() } else { format!("%{byte:02x}") }).collect();
    format!("file://{path}")
}

/// The files that such a list names.
fn paths(list: &[u8]) -> Result<Vec<PathBuf>> {
    let text = str::from_utf8(list).context("a list is ASCII")?;
    let mut paths = Vec::new();
    for line in text.lines().filter(|line| *line != "copy") {
        let encoded = line.strip_prefix("file://").with_context(|| format!("\"{line}\" is no file"))?;
        let (mut bytes, mut rest) = (Vec::new(), encoded.as_bytes());
        while let Some((byte, more)) = rest.split_first() {
            let hex = more.first_chunk::<2>().filter(|_| *byte == b'%');
            bytes.push(match hex {
                Some(hex) => u8::from_str_radix(str::from_utf8(hex)?, 16)?,
                None => *byte,
            });
            rest = if hex.is_some() { &more[2..] } else { more };
        }
        paths.push(PathBuf::from(OsStr::from_bytes(&bytes)));
    }
    Ok(paths)
}

/// What is in a tree: each path, and in a word what lies there.
fn contents(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let stat = fs::symlink_metadata(&path)?;
        let word = if stat.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
            "directory".to_owned()
        } else if stat.is_symlink() {
            format!("link to {}", fs::read_link(&path)?.display())
        } else {
            let mut hasher = DefaultHasher::new();
            let mut file = BufReader::with_capacity(1 << 20, File::open(&path)?);
            loop {
                let chunk = file.fill_buf()?;
                if chunk.is_empty() {
                    break;
                }
                hasher.write(chunk);
                let len = chunk.len();
                file.consume(len);
            }
            format!("{} bytes, {:x}, executable: {}", stat.len(), hasher.finish(), stat.mode() & 0o100 != 0)
        };
        found.insert(path.strip_prefix(root)?.to_owned(), word);
    }
    Ok(found)
}

/// A file of so many bytes, no block like another.
fn fill(path: &Path, len: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut block = integration_tests::desktop::noise(1 << 20);
    let mut left = len;
    while left > 0 {
        block[..8].copy_from_slice(&left.to_le_bytes());
        let n = left.min(1 << 20);
        file.write_all(&block[..usize::try_from(n)?])?;
        left -= n;
    }
    Ok(())
}

/// A folder with all that a file system lets one have in it.
fn odd_folder(at: &Path) -> Result<PathBuf> {
    let root = at.join("A folder");
    fs::create_dir_all(root.join("deep/er/and er"))?;
    fs::create_dir(root.join("nothing in it"))?;
    let names: [&[u8]; 9] = [
        b"plain.txt",
        b"a b",
        "\u{fc}ml\u{e4}ut \u{1f41f}".as_bytes(),
        b"100% #1 ?&=.txt",
        b"-rf",
        b"two\nlines",
        b"\xff\xfe no text",
        b"deep/er/and er/...",
        b"x'\"$(y)`z`\\",
    ];
    for (n, name) in names.iter().enumerate() {
        fs::write(root.join(OsStr::from_bytes(name)), format!("this is file {n}"))?;
    }
    fs::write(root.join("empty"), b"")?;
    fs::write(root.join(std::ffi::OsString::from_vec(vec![b'n'; 255])), b"a long name")?;
    fill(&root.join("deep/large"), 3_000_001)?;
    fs::write(root.join("program"), b"#!/bin/sh\n")?;
    fs::set_permissions(root.join("program"), fs::Permissions::from_mode(0o755))?;
    symlink("large", root.join("deep/link"))?;
    symlink("../a b", root.join("deep/up"))?;
    Ok(root)
}

/// Copies files on a desktop as a file manager does.
fn copy(on: &Compositor, files: &[&Path]) -> Result<integration_tests::desktop::Copied> {
    let list: String = files.iter().map(|path| format!("{}\r\n", uri(path))).collect();
    on.copy(LIST, list.as_bytes(), &[])
}

/// Waits until so many files can be pasted, and tells where they lie.
fn pasted(on: &Compositor, names: &[&Path]) -> Result<Vec<PathBuf>> {
    let mut last = Vec::new();
    Deadline::after(WAIT)
        .poll("the files to be pasted", || {
            let Some(list) = on.paste(LIST, &[])?.filter(|list| !list.is_empty()) else { return Ok(None) };
            // What was copied before may be there yet, and no files.
            last = paths(&list).unwrap_or_default();
            let fit = last.iter().map(|path| path.file_name()).eq(names.iter().map(|name| name.file_name()));
            Ok((fit && last.iter().zip(names).all(|(path, name)| path != name)).then_some(()))
        })
        .with_context(|| format!("{last:?} could be pasted last"))?;
    Ok(last)
}

/// Has a program of the machine's copy what was pasted there.
fn take(on_guest: Option<&Compositor>, from: &Path, to: &Path) -> Result<()> {
    let mut command = match on_guest {
        Some(desktop) => desktop.command("cp"),
        None => Command::new("cp"),
    };
    let output = command.arg("-r").arg("--").arg(from).arg(to).output()?;
    ensure!(output.status.success(), "cp: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Both ways: who copies, who pastes, and that one's desktop where it is the guest's.
fn ways(rig: &Rig) -> [(&Compositor, &Compositor, Option<&Compositor>); 2] {
    [(&rig.there, &rig.here, None), (&rig.here, &rig.there, Some(&rig.there))]
}

/// A directory in which the desktop's user may write.
fn place(desktop: &Compositor, name: &str) -> Result<PathBuf> {
    let path = desktop.runtime().join(name);
    fs::create_dir_all(&path)?;
    std::os::unix::fs::chown(&path, Some(desktop.user()), Some(desktop.user()))?;
    Ok(path)
}

#[test]
fn a_folder_is_pasted_with_all_that_is_in_it() -> Result<()> {
    for kind in Kind::ALL {
        let rig = Rig::with_files(Compositor::start(kind)?, Compositor::sway()?)?;
        folder(&rig).with_context(|| format!("On {kind:?}"))?;
    }
    Ok(())
}

fn folder(rig: &Rig) -> Result<()> {
    for (from, to, guest) in ways(rig) {
        let root = odd_folder(&place(from, "theirs")?)?;
        let before = contents(&root)?;
        // What is not copied: what would lead out, and what is no file.
        symlink("/etc/passwd", root.join("out"))?;
        symlink("../../out", root.join("deep/out"))?;
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU)?;
        let single = root.join("a b");
        let _copied = copy(from, &[&root, &single])?;
        let lie = pasted(to, &[&root, &single])?;
        let target = place(to, "ours")?;
        take(guest, &lie[0], &target.join("copy"))?;
        take(guest, &lie[1], &target.join("one"))?;
        let after = contents(&target.join("copy"))?;
        assert_eq!(after, before, "from {:?}", from.kind());
        assert_eq!(fs::read(target.join("one"))?, fs::read(&single)?);
        if guest.is_none() {
            let (here, there) = (fs::metadata(lie[0].join("empty"))?, fs::metadata(root.join("empty"))?);
            assert_eq!((here.mtime(), here.mtime_nsec()), (there.mtime(), there.mtime_nsec()));
            let written = fs::write(lie[0].join("new"), b"x").expect_err("the mount was written to");
            assert_eq!(written.raw_os_error(), Some(Errno::EROFS as i32));
        }
    }
    Ok(())
}

#[test]
fn file_managers_are_given_what_they_ask_for() -> Result<()> {
    let rig = Rig::with_files(Compositor::start(Kind::Labwc)?, Compositor::sway()?)?;
    for (from, to, _) in ways(&rig) {
        let file = place(from, "theirs")?.join("a b.txt");
        fs::write(&file, b"hello")?;
        // Cut in GNOME's: on another machine it is a copy.
        let _cut = from.copy(GNOME, format!("cut\n{}", uri(&file)).as_bytes(), &[])?;
        let lie = pasted(to, &[&file])?;
        let types = to.types(&[])?;
        for kind in [LIST, GNOME, "x-special/mate-copied-files", "application/x-kde4-urilist"] {
            ensure!(types.iter().any(|name| name == kind), "{kind} is missing: {types:?}");
        }
        let list = to.paste(GNOME, &[])?.context("no list for GNOME")?;
        ensure!(list.starts_with(b"copy\nfile:///") && !list.ends_with(b"\n"), "{list:?}");
        assert_eq!(paths(&list)?, lie);
        // As Nautilus and Thunar do it.
        if std::ptr::eq(to, &rig.there) {
            let target = place(to, "ours")?;
            let uri = str::from_utf8(&list)?.lines().nth(1).context("the list names no file")?;
            let output = to.command("gio").args(["copy", uri]).arg(&target).output()?;
            ensure!(output.status.success(), "gio: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(fs::read(target.join("a b.txt"))?, b"hello");
        }
        // A browser's links are no files, and stay what they are.
        let links = b"https://example.org/a?b#c\r\n";
        let _links = from.copy(LIST, links, &[])?;
        to.pastes(LIST, links, &[])?;
        // Nobody's file is given for a file's name that a machine makes up.
        let _missing = from.copy(LIST, b"file:///no/such/file\r\n", &[])?;
        let lie = pasted(to, &[Path::new("/no/such/file")])?;
        if to.user() == rig.here.user() && std::ptr::eq(to, &rig.here) {
            let error = fs::metadata(&lie[0]).expect_err("it is there");
            assert_eq!(error.raw_os_error(), Some(Errno::ENOENT as i32));
        }
    }
    Ok(())
}

#[test]
fn any_size_and_any_number_in_little_memory() -> Result<()> {
    let rig = Rig::with_files(Compositor::sway()?, Compositor::sway()?)?;
    for (from, to, guest) in ways(&rig) {
        let root = place(from, "theirs")?.join("many");
        fs::create_dir_all(root.join("small"))?;
        for n in 0..10_000 {
            fs::write(root.join(format!("small/{n}")), n.to_string())?;
        }
        fill(&root.join("large"), 500 << 20)?;
        let _copied = copy(from, &[&root])?;
        let lie = pasted(to, &[&root])?;
        let target = place(to, "ours")?.join("copy");
        let began = std::time::Instant::now();
        take(guest, &lie[0].join("small"), &target)?;
        let small = began.elapsed();
        assert_eq!(contents(&target)?, contents(&root.join("small"))?);
        fs::remove_dir_all(&target)?;
        let began = std::time::Instant::now();
        take(guest, &lie[0].join("large"), &target)?;
        let large = began.elapsed();
        ensure!(contents(&target)? == contents(&root.join("large"))?, "the large file differs");
        fs::remove_file(&target)?;
        fs::remove_dir_all(&root)?;
        let [helper, agent] = [rig.helper.pid(), rig.host.agent_pid().context("no agent")?].map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(u64::MAX)
        });
        eprintln!(
            "from {}: 10,000 files in {small:?}, 500 MiB in {large:?}; helper {helper} KiB, agent {agent} KiB",
            if guest.is_some() { "host" } else { "guest" }
        );
        ensure!(helper < 24 << 10, "the helper had {helper} KiB");
    }
    Ok(())
}

#[test]
fn nobody_waits_for_a_machine_that_does_not_answer() -> Result<()> {
    let mut rig = Rig::with_files(Compositor::sway()?, Compositor::sway()?)?;
    let root = place(&rig.here, "theirs")?;
    let (large, other) = (root.join("large"), root.join("other"));
    fill(&large, 64 << 20)?;
    fill(&other, 64 << 20)?;
    let _copied = copy(&rig.here, &[&large, &other])?;
    let lie = pasted(&rig.there, &[&large, &other])?;
    let agent = Pid::from_raw(i32::try_from(rig.host.agent_pid().context("no agent")?)?);
    kill(agent, Signal::SIGSTOP)?;
    // A program that reads ends when its user ends it.
    let mut reader = rig.there.command("cat");
    let mut reader = reader.arg(&lie[0]).stdout(Stdio::null()).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(reader.try_wait()?.is_none(), "it read from a machine that does not answer");
    kill(Pid::from_raw(i32::try_from(reader.id())?), Signal::SIGTERM)?;
    Deadline::after(WAIT).poll("the reader to end", || Ok(reader.try_wait()?))?;
    // Another one waits until the connection is gone, and is told.
    let mut reader = rig.there.command("cat");
    let mut reader = reader.arg(&lie[1]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    rig.host.kill_agent();
    let status = Deadline::after(WAIT).poll("the reader to be told", || Ok(reader.try_wait()?))?;
    let mut words = String::new();
    reader.stderr.take().context("no stderr")?.read_to_string(&mut words)?;
    ensure!(!status.success() && words.contains("Input/output error"), "{status}: {words}");
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    let mut rig = Rig::with_files(Compositor::sway()?, Compositor::sway()?)?;
    let points = |rig: &Rig| -> Result<Vec<PathBuf>> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let (guest, host) = (rig.guest.directory().to_owned(), rig.host.home().to_owned());
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
        Ok(points.filter(|point| point.starts_with(&guest) || point.starts_with(&host)).collect())
    };
    assert_eq!(points(&rig)?, Vec::<PathBuf>::new(), "nothing is mounted before somebody pastes files");
    let file = place(&rig.here, "theirs")?.join("file");
    fs::write(&file, b"hello")?;
    let _copied = copy(&rig.here, &[&file])?;
    let lie = pasted(&rig.there, &[&file])?;
    let point = rig.guest.directory().join(format!("run/clip/{}", rig.there.user()));
    assert_eq!(points(&rig)?, std::slice::from_ref(&point));
    ensure!(lie[0].starts_with(&point), "{lie:?}");
    // Nobody else may look, root included.
    let error = fs::metadata(&lie[0]).expect_err("root looked into it");
    assert_eq!(error.raw_os_error(), Some(Errno::EACCES as i32));
    let shared = || rig.there.command("cat").arg(&lie[0]).output();
    assert_eq!(shared()?.stdout, b"hello");
    // Where it is shared no more, the names lead nowhere.
    rig.host.run(&["clipboard", "vm", "--share", "off"])?.text()?;
    Deadline::after(WAIT).poll("the files to go", || Ok((!shared()?.status.success()).then_some(())))?;
    rig.helper.kill();
    Deadline::after(WAIT).poll("the mount to go", || Ok((!point.exists()).then_some(())))?;
    assert_eq!(points(&rig)?, Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn who_reads_reads_on_when_something_else_is_copied() -> Result<()> {
    let rig = Rig::with_files(Compositor::sway()?, Compositor::sway()?)?;
    let file = place(&rig.there, "theirs")?.join("file");
    fill(&file, 8 << 20)?;
    let _copied = copy(&rig.there, &[&file])?;
    let lie = pasted(&rig.here, &[&file])?;
    let mut reader = File::open(&lie[0])?;
    let mut some = vec![0; 1 << 20];
    reader.read_exact(&mut some)?;
    let _text = rig.there.copy("text/plain;charset=utf-8", b"something else", &[])?;
    rig.here.pastes("text/plain;charset=utf-8", b"something else", &[])?;
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest)?;
    ensure!([some, rest].concat() == fs::read(&file)?, "what was read is not what was copied");
    Ok(())
}
