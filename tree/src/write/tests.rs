use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use hospes_protocol::copy::archive::{Fault, data_header};

use super::*;
use crate::exclude::Exclude;
use crate::frames::frames;
use crate::read::{Produce, Reader, Source};

/// Reads sources on a thread and writes them at a target, frame by frame.
fn copy(sources: &[&Path], target: &Path, exclude: &[&str]) -> Result<(Summary, Summary), WireError> {
    let slashed = |path: &Path| path.as_os_str().as_bytes().to_vec();
    copy_bytes(&sources.iter().map(|path| slashed(path)).collect::<Vec<_>>(), &slashed(target), exclude)
}

fn copy_bytes(sources: &[Vec<u8>], target: &[u8], exclude: &[&str]) -> Result<(Summary, Summary), WireError> {
    let sources: Vec<_> = sources.iter().map(|path| Source::new(path).unwrap()).collect();
    let into = sources.len() > 1 || sources.iter().any(Source::is_contents);
    let target = Target::new(target, into).only(&sources);
    let mut writer = Writer::new(target, Options::default(), Arc::default())?;
    let reader = Reader::new(sources, Exclude::new(exclude).unwrap(), true, Arc::default())?;
    let (mut frames, queue) = frames();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let read = Box::new(reader).run(&mut frames);
            drop(frames);
            read
        });
        let mut failed = Ok(());
        while let Ok(frame) = queue.full.recv() {
            failed = writer.frame(frame.payload());
            if failed.is_err() {
                break;
            }
            let _ = queue.used.send(frame);
        }
        drop(queue);
        let read = reading.join().unwrap();
        failed?;
        Ok((read.unwrap(), writer.finish()?))
    })
}

/// Everything that a copy keeps, by path.
fn look(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![top.to_owned()];
    let mut names: BTreeMap<u64, usize> = BTreeMap::new();
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let mut words = format!("{:o} {}.{:09}", meta.mode(), meta.mtime(), meta.mtime_nsec());
        if kind.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if kind.is_symlink() {
            words += &format!(" -> {:?}", fs::read_link(&path).unwrap());
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            let sum = bytes.iter().fold(0u64, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte));
            words += &format!(" {} {sum:x} nlink {}", meta.len(), meta.nlink());
            if meta.nlink() > 1 {
                *names.entry(meta.ino()).or_default() += 1;
            }
        }
        let mut value = [0; 64];
        if let Ok(len) = rustix::fs::lgetxattr(&path, "user.colour", &mut value[..]) {
            words += &format!(" {:?}", &value[..len]);
        }
        found.insert(path.strip_prefix(top).unwrap().to_owned(), words);
    }
    assert!(names.values().all(|count| *count > 1), "a hard link without its other name");
    found
}

fn stamp(path: &Path, seconds: i64) {
    let times = link::times((seconds, 123_456_789));
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A tree with one of everything.
fn nasty(top: &Path) {
    fs::create_dir_all(top.join("empty")).unwrap();
    fs::create_dir_all(top.join("a/b/c")).unwrap();
    fs::write(top.join("a/zero"), b"").unwrap();
    fs::write(top.join("a/one"), b"1").unwrap();
    fs::write(top.join("a/b/big"), (0..3_000_000u32).map(|n| (n % 251) as u8).collect::<Vec<_>>()).unwrap();
    fs::write(top.join("a/b/just"), vec![7; 64 * 1024]).unwrap();
    fs::write(top.join("a/b/over"), vec![8; 64 * 1024 + 1]).unwrap();
    fs::write(top.join(OsStr::from_bytes(b"\xff\xfe\n\x1b[31m")), b"not text").unwrap();
    fs::write(top.join("n".repeat(255)), b"long name").unwrap();
    fs::hard_link(top.join("a/one"), top.join("a/b/c/other")).unwrap();
    fs::hard_link(top.join("a/one"), top.join("third")).unwrap();
    symlink("/etc/passwd", top.join("outside")).unwrap();
    symlink("../../..", top.join("a/b/up")).unwrap();
    symlink("nowhere", top.join("dangling")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, top.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)
        .unwrap();
    let sparse = fs::File::create(top.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 32 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"start", 0).unwrap();
    let _ = rustix::fs::setxattr(top.join("a/one"), "user.colour", b"red\0", rustix::fs::XattrFlags::empty());
    let mut deep = top.join("deep");
    for _ in 0..120 {
        deep = deep.join("d".repeat(16));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"down here").unwrap();
    mode(&top.join("a/one"), 0o444);
    mode(&top.join("a/zero"), 0o600);
    mode(&top.join("a/b/c"), 0o555);
    mode(&top.join("empty"), 0o1777);
    for (n, path) in
        ["a/zero", "a/one", "a/b/c", "outside", "dangling", "fifo", "sparse", "empty", "a", "deep", ""]
            .iter()
            .enumerate()
    {
        stamp(&top.join(path), 1_000_000_000 + i64::try_from(n).unwrap());
    }
    stamp(&top.join("a/b/big"), -5);
}

#[test]
fn a_nasty_tree_arrives_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    nasty(&from);
    let (read, wrote) = copy(&[&from], &to, &[]).unwrap();
    assert_eq!(wrote.problems, Problems::default());
    assert_eq!(read.done, wrote.done);
    assert_eq!(look(&to), look(&from));
    assert!(fs::metadata(to.join("sparse")).unwrap().blocks() < 1024, "the holes were filled");
    let again = copy(&[&from], &to, &[]).unwrap().1;
    assert_eq!(again.problems.named(), [], "a second copy merges");
    let inside = to.join("from");
    assert_eq!(look(&inside), look(&from));
    fs::remove_dir_all(&inside).unwrap();
    stamp(&to, 1_000_000_010);
    copy_bytes(&[[from.as_os_str().as_bytes(), b"/"].concat()], to.as_os_str().as_bytes(), &[]).unwrap();
    assert_eq!(look(&to).len(), look(&from).len());
    mode(&from.join("a/b/c"), 0o755);
    mode(&to.join("a/b/c"), 0o755);
}

#[test]
fn targets_are_what_users_of_cp_and_rsync_expect() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let put = |from: &str, to: &str| {
        let (from, to) = (at(from), format!("{}/{to}", dir.path().display()));
        copy_bytes(&[from.as_os_str().as_bytes().to_vec()], to.as_bytes(), &[])
    };
    let contents = |from: &str, to: &str| {
        copy_bytes(
            &[format!("{}/{from}/", dir.path().display()).into_bytes()],
            at(to).as_os_str().as_bytes(),
            &[],
        )
    };
    fs::create_dir_all(at("d/sub")).unwrap();
    fs::write(at("d/f"), b"f").unwrap();
    fs::write(at("file"), b"file").unwrap();
    fs::create_dir(at("there")).unwrap();

    put("file", "new").unwrap();
    assert_eq!(fs::read(at("new")).unwrap(), b"file");
    put("file", "there").unwrap();
    assert_eq!(fs::read(at("there/file")).unwrap(), b"file");
    put("file", "slashed/").unwrap();
    assert_eq!(fs::read(at("slashed/file")).unwrap(), b"file");
    put("d", "there").unwrap();
    assert!(at("there/d/sub").is_dir());
    put("d", "renamed").unwrap();
    assert!(at("renamed/f").is_file());
    contents("d", "there").unwrap();
    assert!(at("there/f").is_file());
    contents("d", "made").unwrap();
    assert!(at("made/sub").is_dir());
    copy(&[&at("file"), &at("new")], &at("several"), &[]).unwrap();
    assert!(at("several/new").is_file());

    let error = put("file", "no/such").unwrap_err();
    assert_eq!((error.kind, error.hint.is_empty()), (ErrorKind::NOT_FOUND, false));
    assert_eq!(copy(&[&at("file"), &at("new")], &at("file"), &[]).unwrap_err().kind, ErrorKind::FILE_KIND);
    assert_eq!(put("missing", "x").unwrap_err().kind, ErrorKind::NOT_FOUND);
    let problems = put("d", "file").unwrap().1.problems;
    assert_eq!(problems.named()[0].error.kind, ErrorKind::FILE_KIND);
    assert_eq!(fs::read(at("file")).unwrap(), b"file", "a file is not replaced by a directory");
    fs::create_dir_all(at("there/new/keep")).unwrap();
    let problems = put("new", "there").unwrap().1.problems;
    assert_eq!(problems.named()[0].error.kind, ErrorKind::FILE_KIND);
    assert!(at("there/new/keep").is_dir());
}

#[test]
fn one_missing_source_of_several_is_a_problem_and_not_the_end() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), b"a").unwrap();
    let to = dir.path().join("to");
    let (read, _) = copy(&[&dir.path().join("missing"), &dir.path().join("a")], &to, &[]).unwrap();
    assert_eq!(read.problems.named()[0].path, b"missing");
    assert!(to.join("a").is_file());
}

#[test]
fn excluded_names_stay_behind() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("target/debug")).unwrap();
    fs::create_dir_all(from.join("src")).unwrap();
    fs::write(from.join("src/a.o"), b"").unwrap();
    fs::write(from.join("src/a.rs"), b"").unwrap();
    copy(&[&from], &dir.path().join("to"), &["target/", "*.o"]).unwrap();
    assert_eq!(
        look(&dir.path().join("to")).keys().map(|path| path.to_str().unwrap()).collect::<Vec<_>>(),
        ["", "src", "src/a.rs"]
    );
}

#[test]
fn a_link_in_the_sources_is_followed_only_where_it_was_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("real"), b"real").unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    copy(&[&dir.path().join("link")], &dir.path().join("to"), &[]).unwrap();
    assert_eq!(fs::read(dir.path().join("to")).unwrap(), b"real");
    assert!(!fs::symlink_metadata(dir.path().join("to")).unwrap().is_symlink());
}

#[test]
fn a_file_that_does_not_know_its_length_is_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    copy(&[Path::new("/proc/cpuinfo"), Path::new("/proc/self/status")], &dir.path().join("to"), &[]).unwrap();
    assert!(fs::metadata(dir.path().join("to/cpuinfo")).unwrap().len() > 0);
    assert!(fs::read_to_string(dir.path().join("to/status")).unwrap().contains("VmPeak"));
}

/// Writes records that no reader of ours would make.
fn write(target: Target, records: &[Record<'_>]) -> Result<Summary, WireError> {
    let mut bytes = Vec::new();
    records.iter().for_each(|record| record.encode(&mut bytes));
    let options = Options { report_skipped: true, ..Options::default() };
    let mut writer = Writer::new(target, options, Arc::default())?;
    writer.frame(&bytes)?;
    writer.finish()
}

const PLAIN: Attributes<'_> = Attributes { mode: 0o644, seconds: 0, nanoseconds: 0, xattrs: &[] };

fn file(name: &[u8]) -> [Record<'_>; 3] {
    [
        Record::File { name, attributes: PLAIN, size: 4, linked: false, sparse: false },
        Record::Data(b"evil"),
        Record::End,
    ]
}

#[test]
fn no_symbolic_link_is_followed_below_the_target() {
    let dir = tempfile::tempdir().unwrap();
    let (outside, target) = (dir.path().join("outside"), dir.path().join("target"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(outside.join("secret"), b"good").unwrap();
    symlink(&outside, target.join("found")).unwrap();
    let enter = |name| Record::Enter { name, attributes: None };
    let [a, b, c] = file(b"secret");
    let here = || Target::new(target.as_os_str().as_bytes(), true);
    let summary = write(here(), &[enter(b"found"), a, b, c, Record::Leave]).unwrap();
    assert_eq!(summary.problems.named()[0].error.kind, ErrorKind::ESCAPES);
    // A link that the archive itself brings is no way out either.
    let way = outside.as_os_str().as_bytes();
    let link = Record::Symlink { name: b"sent", attributes: PLAIN, target: way };
    let summary = write(here(), &[link, enter(b"sent"), a, b, c, Record::Leave]).unwrap();
    assert_eq!(summary.problems.named()[0].error.kind, ErrorKind::ESCAPES);
    // A file replaces a link, and what the link points to stays.
    symlink(outside.join("secret"), target.join("secret")).unwrap();
    write(here(), &[a, b, c]).unwrap();
    assert!(!target.join("secret").is_symlink());
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"good");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_name_that_was_not_asked_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = [Source::new(b"notes").unwrap()];
    let target = |into| Target::new(dir.path().as_os_str().as_bytes(), into).only(&source);
    let [a, b, c] = file(b".bashrc");
    assert_eq!(write(target(false), &[a, b, c]).unwrap_err().kind, ErrorKind::PROTOCOL);
    assert_eq!(
        write(target(false), &[Record::Here(None), a, b, c, Record::Leave]).unwrap_err().kind,
        ErrorKind::PROTOCOL
    );
    // One entry was asked for, under a new name: a second may not come.
    let renamed = || Target::new(dir.path().join("new").as_os_str().as_bytes().to_vec().as_slice(), false);
    let [d, e, f] = file(b"notes");
    assert_eq!(write(renamed().only(&source), &[d, e, f, d, e, f]).unwrap_err().kind, ErrorKind::PROTOCOL);
    assert_eq!(write(renamed(), &[Record::Here(None), Record::Leave]).unwrap_err().kind, ErrorKind::PROTOCOL);
    assert_eq!(look(dir.path()).len(), 2, "only the one file of the third attempt");
}

#[test]
fn a_file_that_breaks_off_leaves_nothing_and_keeps_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"before").unwrap();
    let [a, b, _] = file(b"f");
    let broken = Record::Broken(Fault { kind: ErrorKind::OS, message: "it shrank" });
    let here = || Target::new(dir.path().as_os_str().as_bytes(), true);
    let summary = write(here(), &[a, b, broken]).unwrap();
    assert_eq!(summary.problems.named()[0].path, b"f");
    write(here(), &[a, b]).unwrap_err();
    for nameless in [true, false] {
        let mut writer = Writer::new(here(), Options::default(), Arc::default()).unwrap();
        writer.nameless = nameless;
        let mut bytes = Vec::new();
        a.encode(&mut bytes);
        b.encode(&mut bytes);
        writer.frame(&bytes).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), if nameless { 1 } else { 2 });
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"before");
}

#[test]
fn a_file_system_without_nameless_files_gets_whole_files_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer =
        Writer::new(Target::new(dir.path().as_os_str().as_bytes(), true), Options::default(), Arc::default())
            .unwrap();
    writer.nameless = false;
    let mut bytes = Vec::new();
    for record in [file(b"a"), file(b"b"), file(b"a")].concat() {
        record.encode(&mut bytes);
    }
    writer.frame(&bytes).unwrap();
    assert_eq!(writer.finish().unwrap().done.files, 3);
    assert_eq!(look(dir.path()).len(), 3);
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"evil");
}

#[test]
fn what_a_killed_copy_left_is_cleared_away_and_what_a_live_one_holds_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let name = |n: u32| dir.path().join(format!("{}{n}", place::PREFIX));
    fs::write(name(1), b"fresh").unwrap();
    fs::write(dir.path().join("other"), b"").unwrap();
    let fd = rustix::fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
    place::sweep(&fd);
    assert!(name(1).exists(), "a name of a moment ago may be somebody's");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn special_bits_are_kept_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let attributes = Attributes { mode: 0o4755, ..PLAIN };
    for (special_bits, expected) in [(false, 0o755), (true, 0o4755)] {
        let target = Target::new(dir.path().as_os_str().as_bytes(), true);
        let mut writer =
            Writer::new(target, Options { special_bits, ..Options::default() }, Arc::default()).unwrap();
        let mut bytes = Vec::new();
        let [_, b, c] = file(b"f");
        for record in [Record::File { name: b"f", attributes, size: 4, linked: false, sparse: false }, b, c] {
            record.encode(&mut bytes);
        }
        writer.frame(&bytes).unwrap();
        writer.finish().unwrap();
        assert_eq!(fs::metadata(dir.path().join("f")).unwrap().mode() & 0o7777, expected);
    }
}

#[test]
fn a_copy_that_will_not_fit_is_refused_before_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let target = Target::new(dir.path().join("new").as_os_str().as_bytes(), true);
    let error =
        write(target, &[Record::Here(None), Record::Total { entries: 1, bytes: 1 << 60 }]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NO_SPACE);
    assert!(error.message.contains("1024.0 PiB needed"), "{error}");
    // One file that is too long is that file's problem; one that is mostly holes is none.
    let long = |sparse| Record::File { name: b"f", attributes: PLAIN, size: 1 << 60, linked: false, sparse };
    let broken = Record::Broken(Fault { kind: ErrorKind::OS, message: "" });
    let here = || Target::new(dir.path().as_os_str().as_bytes(), true);
    let summary = write(here(), &[long(false), broken]).unwrap();
    assert_eq!(summary.problems.named()[0].error.kind, ErrorKind::NO_SPACE);
    assert_eq!(summary.problems.count(), 1);
    assert_eq!(write(here(), &[long(true), broken]).unwrap().problems.named()[0].error.kind, ErrorKind::OS);
}

#[test]
fn a_full_disk_is_an_error_of_its_entry_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1M", "tmpfs"])
        .arg(&disk)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        return;
    }
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("big"), vec![1; 900 * 1024]).unwrap();
    fs::write(from.join("bigger"), vec![2; 900 * 1024]).unwrap();
    fs::write(from.join("small"), b"small").unwrap();
    // Into the directory that is there: nothing is refused up front, for it might replace what it finds.
    fs::create_dir(disk.join("from")).unwrap();
    let copied = copy(&[&from], &disk, &[]);
    let left: Vec<_> = look(&disk).into_keys().collect();
    std::process::Command::new("umount").arg(&disk).status().unwrap();
    let problems = copied.unwrap().1.problems;
    assert_eq!(problems.count(), 1);
    assert_eq!(problems.named()[0].error.kind, ErrorKind::NO_SPACE);
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn a_directory_that_cannot_be_read_is_a_problem_and_the_rest_arrives() {
    if is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("closed")).unwrap();
    fs::write(from.join("open"), b"").unwrap();
    mode(&from.join("closed"), 0);
    let (read, _) = copy(&[&from], &dir.path().join("to"), &[]).unwrap();
    mode(&from.join("closed"), 0o755);
    assert_eq!(read.problems.named()[0].error.kind, ErrorKind::PERMISSION);
    assert!(dir.path().join("to/open").exists());
}

#[test]
fn a_read_only_directory_is_filled_and_is_read_only_again() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("locked")).unwrap();
    fs::write(from.join("locked/f"), b"1").unwrap();
    mode(&from.join("locked"), 0o555);
    let to = dir.path().join("to");
    for _ in 0..2 {
        let contents = [from.as_os_str().as_bytes(), b"/"].concat();
        let problems = copy_bytes(&[contents], to.as_os_str().as_bytes(), &[]).unwrap().1.problems;
        assert_eq!(problems.named(), []);
        assert_eq!(fs::metadata(to.join("locked")).unwrap().mode() & 0o777, 0o555);
    }
    mode(&from.join("locked"), 0o755);
    mode(&to.join("locked"), 0o755);
}

/// Somebody with rights in the target swaps directories for links as fast as they can: whatever they win, nothing is
/// written outside.
#[test]
fn racing_swaps_in_the_target_win_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to, outside) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("outside"));
    fs::create_dir_all(&outside).unwrap();
    for n in 0..16 {
        fs::create_dir_all(from.join(format!("d{n}/x"))).unwrap();
        fs::write(from.join(format!("d{n}/x/f")), b"f").unwrap();
    }
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                for n in 0..16 {
                    for name in [format!("d{n}"), format!("d{n}/x")] {
                        let path = to.join(name);
                        if fs::rename(&path, dir.path().join("aside")).is_ok() {
                            let _ = symlink(&outside, &path);
                            let _ = fs::remove_dir_all(dir.path().join("aside"));
                            let _ = fs::remove_file(&path);
                        }
                    }
                }
            }
        });
        for _ in 0..8 {
            let _ = copy(&[&from], &to, &[]);
            let _ = fs::remove_dir_all(&to);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_frame_of_a_stranger_never_panics() {
    use proptest::prelude::*;
    let dir = tempfile::tempdir().unwrap();
    proptest!(ProptestConfig::with_cases(300), |(picks in proptest::collection::vec((0usize..12, "[a-c]"), 0..40))| {
        let records: Vec<_> = picks.iter().map(|(pick, name)| {
            let name = name.as_bytes();
            match pick {
                0 | 1 => Record::Enter { name, attributes: Some(Attributes { mode: 0o755, ..PLAIN }) },
                2 | 3 => Record::Leave,
                4 => Record::File { name, attributes: PLAIN, size: 4, linked: true, sparse: false },
                5 => Record::Data(b"evil"),
                6 | 7 => Record::End,
                8 => Record::Symlink { name, attributes: PLAIN, target: b"../../a" },
                9 => Record::HardLink { name, to: 0 },
                10 => Record::Fifo { name, attributes: PLAIN },
                _ => Record::Here(Some(Attributes { mode: 0o755, ..PLAIN })),
            }
        }).collect();
        let mut bytes: Vec<u8> = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        bytes.extend(data_header(5));
        let inner = dir.path().join("inner");
        let mut writer = Writer::new(Target::new(inner.as_os_str().as_bytes(), true), Options::default(), Arc::default()).unwrap();
        let _ = writer.frame(&bytes);
        let _ = writer.finish();
        drop(writer);
        prop_assert!(fs::read_dir(dir.path()).unwrap().count() <= 1, "something beside the target");
        let _ = fs::remove_dir_all(&inner);
    });
}
