//! The file system's server, asked as a guest's kernel asks it.
#![cfg(target_os = "linux")]

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use host_hv::fuse::abi::op;
use host_hv::fuse::watch::{GuestPath, Line, Watch};
use host_hv::fuse::{Limits, Server, ShareSpec};
use host_hv::testing::fuse::Client;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

const ENOENT: i32 = 2;
const ENFILE: i32 = 23;
const EINVAL: i32 = 22;
const EPERM: i32 = 1;
const EROFS: i32 = 30;
const ELOOP: i32 = 40;
const ESTALE: i32 = 116;
const EXDEV: i32 = 18;

fn spec(name: &str, path: &Path) -> ShareSpec {
    ShareSpec {
        name: name.into(),
        path: path.into(),
        read_only: false,
        owner: "map".parse().expect("a mapping"),
    }
}

fn served(limits: Limits) -> (TempDir, Server) {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::new(limits);
    server.add_share(spec("src", directory.path())).expect("a share");
    (directory, server)
}

#[test]
fn files_are_made_written_read_and_listed() {
    let (host, server) = served(Limits::within(1024));
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share");
    assert_eq!(root.flags, 1, "a share is a file system of its own");
    let (file, handle) = guest.create(root.node, "f").expect("made");
    assert_eq!(file.uid, 1000, "what the host's user owns is the guest's user's");
    assert_eq!(guest.write(handle, 3, b"hello"), Ok(5));
    assert_eq!(guest.read(handle, 0, 100).as_deref(), Ok(&b"\0\0\0hello"[..]));
    assert_eq!(fs::read(host.path().join("f")).expect("on the host"), b"\0\0\0hello");
    let made = fs::metadata(host.path().join("f")).expect("on the host").created().ok();
    let made = made.map(|at| at.duration_since(UNIX_EPOCH).expect("later"));
    let expected = made.map(|at| (at.as_secs(), at.subsec_nanos()));
    assert_eq!(guest.born(file.node), Ok(expected));
    assert!(guest.born(1).is_ok_and(|born| born.is_some()), "the directory of shares");
    for at in 0..300 {
        fs::write(host.path().join(format!("file-{at}")), "").expect("a file");
    }
    for plus in [false, true] {
        let mut names = guest.list(root.node, 1000, plus).expect("a listing");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 303, "with the two dots, each once");
    }
    let mut shares = guest.list(1, 4096, true).expect("the shares");
    shares.sort();
    assert_eq!(shares, [".", "..", "src"]);
}

#[test]
fn no_name_leads_out_of_a_share() {
    let (host, server) = served(Limits::within(1024));
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("secret"), "x").expect("a file");
    symlink(outside.path(), host.path().join("link")).expect("a link");
    symlink(outside.path().join("secret"), host.path().join("file")).expect("a link");
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    for name in ["..", ".", "", "a/b", "/etc", "link/secret"] {
        assert_eq!(guest.lookup(root, name), Err(EINVAL), "{name:?}");
        assert_eq!(guest.mkdir(root, name), Err(EINVAL), "{name:?}");
        assert_eq!(guest.rename(root, "link", root, name, 0), Err(EINVAL), "{name:?}");
    }
    // A link is a link, and nothing goes through it.
    let link = guest.lookup(root, "link").expect("the link");
    assert_eq!(link.mode & 0o170_000, 0o120_000);
    assert!(guest.lookup(link.node, "secret").is_err());
    assert!(guest.create(link.node, "new").is_err());
    let file = guest.lookup(root, "file").expect("the link");
    assert_eq!(guest.open(file.node, 2), Err(ELOOP));
    assert_eq!(guest.create(root, "file").map(drop), Err(ELOOP));
    assert_eq!(fs::read(outside.path().join("secret")).expect("the file"), b"x");
    assert_eq!(fs::read_dir(outside.path()).expect("the directory").count(), 1);
}

#[test]
fn a_directory_that_became_a_link_is_not_followed() {
    let (host, server) = served(Limits { directories: 0, ..Limits::within(1024) });
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("secret"), "x").expect("a file");
    fs::create_dir(host.path().join("d")).expect("a directory");
    let mut guest = Client::mount(&server);
    let d = guest.walk("src/d").expect("the directory").node;
    fs::remove_dir(host.path().join("d")).expect("removed");
    symlink(outside.path(), host.path().join("d")).expect("a link");
    assert!(guest.lookup(d, "secret").is_err());
    assert_eq!(guest.getattr(d).map(drop), Err(ESTALE));
}

#[test]
fn devices_are_neither_made_nor_opened() {
    let (host, server) = served(Limits::within(1024));
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    for mode in [0o020_644, 0o060_644] {
        assert_eq!(guest.named(op::MKNOD, root, &[mode, 0x0103, 0, 0], &["dev"]).map(drop), Err(EPERM));
    }
    guest.named(op::MKNOD, root, &[0o010_644, 0, 0, 0], &["fifo"]).expect("a fifo");
    let fifo = guest.lookup(root, "fifo").expect("the fifo");
    // It would wait for the other end for ever.
    assert!(guest.open(fifo.node, 0).is_err());
    assert!(guest.create(root, "fifo").is_err());
    assert!(host.path().join("fifo").exists());
}

#[test]
fn a_file_stays_reachable_through_renames_links_and_removal() {
    let (host, server) = served(Limits::within(1024));
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    let d = guest.mkdir(root, "d").expect("a directory").node;
    let (file, handle) = guest.create(root, "f").expect("made");
    guest.rename(root, "f", d, "g", 0).expect("renamed");
    assert_eq!(guest.getattr(file.node).map(|entry| entry.inode), Ok(file.inode));
    // The host renames behind the guest's back: the open file is still this one, a closed one is looked up again.
    fs::rename(host.path().join("d/g"), host.path().join("h")).expect("renamed");
    assert_eq!(guest.getattr(file.node).map(|entry| entry.inode), Ok(file.inode));
    guest.call(op::RELEASE, file.node, &[&handle.to_le_bytes()[..], &[0; 16]].concat(), 16).expect("closed");
    assert_eq!(guest.getattr(file.node).map(drop), Err(ESTALE));
    assert_eq!(guest.lookup(root, "h").map(|entry| entry.node), Ok(file.node));
    assert_eq!(guest.getattr(file.node).map(|entry| entry.inode), Ok(file.inode));
    // Another file in its place is another file.
    fs::write(host.path().join("other"), "other").expect("a file");
    fs::rename(host.path().join("other"), host.path().join("h")).expect("replaced");
    assert_eq!(guest.getattr(file.node).map(drop), Err(ESTALE));
    assert_eq!(guest.open(file.node, 0), Err(ESTALE));
    assert_ne!(guest.lookup(root, "h").map(|entry| entry.node), Ok(file.node));
    // Removed while open.
    let (file, handle) = guest.create(root, "gone").expect("made");
    guest.named(op::UNLINK, root, &[], &["gone"]).expect("removed");
    assert_eq!(guest.write(handle, 0, b"still"), Ok(5));
    assert_eq!(guest.getattr(file.node).map(|entry| entry.size), Ok(5));
    // Without a name, until it is given one.
    let raw = guest.named(op::TMPFILE, root, &[2, 0o600, 0, 0], &["x"]).expect("a file");
    let node = u64::from_le_bytes(*raw.first_chunk().expect("a node"));
    let halves = [u32::try_from(node).expect("small"), 0];
    guest.named(op::LINK, root, &halves, &["named"]).expect("a name");
    assert!(host.path().join("named").exists());
}

#[test]
fn a_tree_deeper_than_the_descriptors_allowed_is_walked() {
    let (_host, server) = served(Limits { directories: 4, ..Limits::within(1024) });
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    let mut at = root;
    let mut nodes = Vec::new();
    for _ in 0..500 {
        at = guest
            .mkdir(at, "a-name-that-makes-the-path-longer-than-any-path-may-be")
            .expect("a directory")
            .node;
        nodes.push(at);
    }
    guest.create(at, "deep").expect("a file");
    for node in nodes.iter().step_by(50) {
        guest.getattr(*node).expect("still there");
    }
    assert!(guest.lookup(at, "deep").is_ok());
    let open = fs::read_dir("/proc/self/fd").expect("descriptors").count();
    assert!(open < 200, "{open} descriptors");
}

#[test]
fn a_guest_that_forgets_nothing_is_stopped_at_the_limit() {
    let (host, server) = served(Limits { nodes: 50, handles: 10, directories: 5 });
    for at in 0..100 {
        fs::write(host.path().join(at.to_string()), "").expect("a file");
    }
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    let told = (0..100).map(|at| guest.lookup(root, &at.to_string())).filter(Result::is_ok).count();
    assert_eq!(told, 49);
    assert_eq!(guest.lookup(root, "99").map(drop), Err(ENFILE));
    let node = guest.lookup(root, "0").expect("known").node;
    let opened = (0..100).map(|_| guest.open(node, 0)).filter(Result::is_ok).count();
    assert_eq!(opened, 10);
    // It forgets one, and may know another.
    guest.call(op::FORGET, node + 1, &1u64.to_le_bytes(), 0).expect("no answer");
    assert!(guest.lookup(root, "99").is_ok());
}

#[test]
fn read_only_holds_for_everything_and_at_once() {
    let (host, server) = served(Limits::within(1024));
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    let (file, handle) = guest.create(root, "f").expect("made");
    server.set_read_only("src", true).expect("the share");
    assert_eq!(guest.write(handle, 0, b"x"), Err(EROFS));
    assert_eq!(guest.open(file.node, 1), Err(EROFS));
    assert_eq!(guest.open(file.node, 0o1000), Err(EROFS));
    assert_eq!(guest.mkdir(root, "d").map(drop), Err(EROFS));
    assert_eq!(guest.create(root, "g").map(drop), Err(EROFS));
    assert_eq!(guest.rename(root, "f", root, "g", 0), Err(EROFS));
    for (opcode, before, names) in [
        (op::UNLINK, &[][..], &["f"][..]),
        (op::RMDIR, &[], &["f"]),
        (op::SYMLINK, &[], &["l", "f"]),
        (op::MKNOD, &[0o100_644, 0, 0, 0], &["n"]),
        (op::SETXATTR, &[1, 0], &["user.a", ""]),
        (op::REMOVEXATTR, &[], &["user.a"]),
    ] {
        assert_eq!(guest.named(opcode, root, before, names).map(drop), Err(EROFS), "{opcode}");
    }
    let mut size = [0; 88];
    size[0] = 8;
    assert_eq!(guest.call(op::SETATTR, file.node, &size, 256).map(drop), Err(EROFS));
    let mut range = handle.to_le_bytes().to_vec();
    range.resize(32, 1);
    assert_eq!(guest.call(op::FALLOCATE, file.node, &range, 16).map(drop), Err(EROFS));
    assert!(guest.open(file.node, 0).is_ok());
    assert_eq!(fs::metadata(host.path().join("f")).expect("the file").size(), 0);
}

#[test]
fn a_removed_share_is_gone_at_once_and_its_name_is_free() {
    let (host, server) = served(Limits::within(1024));
    let other = tempfile::tempdir().expect("a directory");
    server.add_share(spec("other", other.path())).expect("a share");
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    let elsewhere = guest.lookup(1, "other").expect("the share").node;
    let (file, handle) = guest.create(root, "f").expect("made");
    assert_eq!(guest.rename(root, "f", elsewhere, "f", 0), Err(EXDEV));
    server.remove_share("src").expect("removed");
    assert!(guest.read(handle, 0, 1).is_err());
    for node in [root, file.node] {
        assert_eq!(guest.getattr(node).map(drop), Err(ESTALE));
    }
    assert_eq!(guest.lookup(1, "src").map(drop), Err(ENOENT));
    server.add_share(spec("src", other.path())).expect("a share");
    assert_ne!(guest.lookup(1, "src").map(|entry| entry.node), Ok(root));
    assert!(host.path().join("f").exists());
}

#[test]
fn set_ids_are_dropped_and_owners_are_whom_they_should_be() {
    let (host, server) = served(Limits::within(1024));
    let mut guest = Client::mount(&server);
    guest.ids = (1000, 1000);
    let root = guest.lookup(1, "src").expect("the share").node;
    let (file, _) = guest.create(root, "f").expect("made");
    let mut mode = [0; 88];
    mode[0] = 1;
    mode[68..72].copy_from_slice(&0o106_755u32.to_le_bytes());
    guest.call(op::SETATTR, file.node, &mode, 256).expect("changed");
    let metadata = fs::metadata(host.path().join("f")).expect("the file");
    assert_eq!(metadata.mode() & 0o7777, 0o755);
    assert_eq!(metadata.uid(), fs::metadata(host.path()).expect("the share").uid());
    // To itself is no change; to root is refused.
    let mut owner = [0; 88];
    owner[0] = 2;
    owner[76..80].copy_from_slice(&1000u32.to_le_bytes());
    guest.call(op::SETATTR, file.node, &owner, 256).expect("no change");
    owner[76..80].copy_from_slice(&0u32.to_le_bytes());
    assert_eq!(guest.call(op::SETATTR, file.node, &owner, 256).map(drop), Err(EPERM));
}

#[test]
fn what_is_cached_holds_only_while_the_file_is_the_same() {
    const KEEP: u32 = 2;
    let (host, server) = served(Limits::within(1024));
    let path = host.path().join("f");
    fs::write(&path, "one").expect("a file");
    let mut guest = Client::mount(&server);
    let node = guest.walk("src/f").expect("the file").node;
    let mut keeps = || {
        let raw = guest.call(op::OPEN, node, &[0; 8], 64).expect("open");
        u32::from_le_bytes(*raw[8..].first_chunk().expect("flags")) & KEEP != 0
    };
    // What changed a moment ago may change again unseen.
    assert!(!keeps());
    assert!(!keeps());
    let file = fs::File::open(&path).expect("the file");
    drop(file);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    assert!(!keeps(), "the first time that it is settled");
    assert!(keeps(), "and nothing happened since");
    fs::write(&path, "two").expect("changed");
    assert!(!keeps());
}

/// Takes in all events that are there.
fn collect(watch: &Watch) {
    while poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1) {
        watch.collect().expect("events");
    }
}

fn path(bytes: &[u8]) -> GuestPath {
    bytes.to_vec().into()
}

/// The helper in the guest says what it is about to do again.
fn announce(guest: &mut Client<'_>, secret: &str, line: &Line) -> Result<(), i32> {
    let value = format!("{secret} {}", line.number);
    let size = u32::try_from(value.len()).expect("short");
    guest.named(op::SETXATTR, 1, &[size, 0], &["user.hospes.replay", &value]).map(drop)
}

#[test]
fn what_others_do_is_told_and_done_again_without_touching_the_host() {
    let (host, server) = served(Limits::within(1024));
    let server = Arc::new(server);
    let Ok(watch) = Watch::begin(&server, "secret".into()) else {
        eprintln!("this kernel does not let directories be watched");
        return;
    };
    let others = |script: &str| {
        let status = Command::new("sh").args(["-ec", script]).current_dir(host.path()).status();
        assert!(status.expect("sh").success(), "{script}");
        collect(&watch);
    };
    let mut ready = VecDeque::new();
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    // What the guest does is not told to it.
    let (_, handle) = guest.create(root, "own").expect("made");
    guest.write(handle, 0, b"x").expect("written");
    others("echo one > new");
    let line = watch.next(&mut ready).expect("a change");
    assert_eq!((line.act, &line.path), ("make", &path(b"src/new")));

    // The helper makes it again: it is not there until then, and the host's own after.
    guest.pid = 9;
    assert_eq!(announce(&mut guest, "guess", &line), Err(EPERM));
    announce(&mut guest, "secret", &line).expect("known");
    assert_eq!(guest.lookup(root, "new").map(drop), Err(ENOENT));
    assert!(guest.mkdir(root, "another").is_err(), "only what was told");
    guest.named(op::MKNOD, root, &[0o100_600, 0, 0, 0], &["new"]).expect("made");
    let new = guest.lookup(root, "new").expect("there");
    assert_eq!(new.size, 4);
    let line = watch.next(&mut ready).expect("a change");
    assert_eq!((line.act, &line.path), ("change", &path(b"src/new")));
    announce(&mut guest, "secret", &line).expect("known");
    let handle = guest.open(new.node, 1).expect("opened");
    assert_eq!(guest.write(handle, 0, b"Z"), Ok(1));
    assert_eq!(fs::read(host.path().join("new")).expect("the file"), b"one\n");

    // Anybody else in the guest sees what is there, and acts on it.
    guest.pid = 10;
    assert!(guest.mkdir(root, "mine").is_ok());
    guest.pid = 9;

    others("mv new elsewhere");
    let line = watch.next(&mut ready).expect("a change");
    assert_eq!((line.act, &line.to), ("move", &Some(path(b"src/elsewhere"))));
    announce(&mut guest, "secret", &line).expect("known");
    assert_eq!(guest.lookup(root, "new").map(|entry| entry.node), Ok(new.node));
    guest.rename(root, "new", root, "elsewhere", 0).expect("moved");
    assert!(host.path().join("elsewhere").exists());

    // A storm: a few lines, and the last of them is how it is.
    others("for i in 1 2 3 4 5 6 7 8 9 10; do echo $i > elsewhere; echo $i > other; done; rm elsewhere");
    let mut told = Vec::new();
    while told.last() != Some(&("remove", path(b"src/elsewhere"))) {
        let line = watch.next(&mut ready).expect("a change");
        announce(&mut guest, "secret", &line).expect("known");
        if line.act == "remove" {
            assert_eq!(guest.lookup(root, "elsewhere").map(|entry| entry.node), Ok(new.node));
            guest.named(op::UNLINK, root, &[], &["elsewhere"]).expect("removed");
        }
        told.push((line.act, line.path));
        assert!(told.len() < 8, "{told:?}");
    }
    // Names are bytes.
    others("rm -f other; mkdir \"$(printf 'b\\377d')\"");
    let bytes = loop {
        let line = watch.next(&mut ready).expect("a change");
        announce(&mut guest, "secret", &line).expect("known");
        if line.act == "make" {
            break line;
        }
    };
    assert_eq!(bytes.path, path(b"src/b\xffd"));
    let told = serde_json::to_string(&bytes).expect("a line");
    assert!(told.contains(r#""path":[115,114,99,47,98,255,100]"#), "{told}");
    watch.end();
    assert!(watch.next(&mut ready).is_none());
    others("rmdir b*");
    let mut names: Vec<_> =
        fs::read_dir(host.path()).expect("the share").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["mine", "own"]);
}

/// A guest's kernel believes in names for a second, and then makes no lookup before it moves or removes something.
#[test]
fn who_watches_a_file_itself_is_told_of_its_end_whatever_the_guest_believed_on_the_way() {
    let (host, server) = served(Limits::within(1024));
    let server = Arc::new(server);
    for file in ["moves", "old"] {
        fs::write(host.path().join(file), file).expect("written");
    }
    fs::create_dir(host.path().join("d")).expect("made");
    let Ok(watch) = Watch::begin(&server, "secret".into()) else {
        eprintln!("this kernel does not let directories be watched");
        return;
    };
    let others = |script: &str| {
        let status = Command::new("sh").args(["-ec", script]).current_dir(host.path()).status();
        assert!(status.expect("sh").success(), "{script}");
        collect(&watch);
    };
    let mut ready = VecDeque::new();
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    let [moves, old, directory] =
        ["moves", "old", "d"].map(|name| guest.lookup(root, name).expect("there").node);
    guest.pid = 9;
    let mut next = |guest: &mut Client<'_>, act: &str, at: &str| {
        let line = watch.next(&mut ready).expect("a change");
        assert_eq!((line.act, &line.path), (act, &path(at.as_bytes())));
        announce(guest, "secret", &line).expect("known");
    };

    // Moved with no lookup, then removed after one: it is the file that the guest knew.
    others("mv moves d/moved");
    next(&mut guest, "move", "src/moves");
    guest.rename(root, "moves", directory, "moved", 0).expect("moved");
    others("rm d/moved");
    next(&mut guest, "remove", "src/d/moved");
    assert_eq!(guest.lookup(directory, "moved").map(|entry| entry.node), Ok(moves));
    guest.named(op::UNLINK, directory, &[], &["moved"]).expect("removed");

    // An editor's way: what was replaced is told of as the file that it was, and as there.
    others("echo new > new");
    next(&mut guest, "make", "src/new");
    guest.named(op::MKNOD, root, &[0o100_600, 0, 0, 0], &["new"]).expect("made");
    let new = guest.lookup(root, "new").expect("there").node;
    next(&mut guest, "change", "src/new");
    others("mv new old");
    next(&mut guest, "move", "src/new");
    assert_eq!(guest.lookup(root, "new").map(|entry| entry.node), Ok(new));
    assert_eq!(guest.lookup(root, "old").map(|entry| entry.node), Ok(old));
    guest.rename(root, "new", root, "old", 0).expect("moved");
    assert_eq!(guest.lookup(root, "old").map(|entry| entry.node), Ok(new));

    // What happens in a directory that was moved has its new path, though the guest never looked.
    others("mv d e; echo > e/f");
    next(&mut guest, "move", "src/d");
    guest.rename(root, "d", root, "e", 0).expect("moved");
    next(&mut guest, "make", "src/e/f");
    watch.end();
}
