//! The suites, each on one server's folder.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{FolderServer, Trio};

use crate::{Cases, Outcome};

const LIMIT: Duration = Duration::from_secs(900);
const FSX_SEEDS: usize = 2;
const FSX_OPERATIONS: usize = 2000;
const GIT_ROUNDS: usize = 2;

/// POSIX, call by call.
pub(crate) fn pjdfstest(trio: &Trio, server: &FolderServer) -> Result<Cases> {
    let output = trio.sh(
        &format!(
            r#"mkdir -p {0}/pjd /dev/shm/pjd
cat >/tmp/pjdfstest.toml <<'CONF'
[features]
posix_fallocate = {{}}
rename_ctime = {{}}
utimensat = {{}}
utime_now = {{}}
stat_st_birthtime = {{}}
[settings]
naptime = 0.05
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"]]
CONF
export RUST_BACKTRACE=0
pjdfstest -c /tmp/pjdfstest.toml -p {0}/pjd -s /dev/shm/pjd; rm -rf {0}/pjd /dev/shm/pjd"#,
            server.mount
        ),
        LIMIT,
    )?;
    let mut cases = Cases::new();
    let mut lines = output.stdout.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((name, word)) = line.rsplit_once(' ') else { continue };
        let name = name.trim().to_owned();
        let mut why = || lines.next_if(|line| line.starts_with('\t')).unwrap_or_default().trim().to_owned();
        match word {
            "ok" => cases.insert(name, Outcome::Passed),
            "FAILED" => cases.insert(name, Outcome::Failed(why())),
            "skipped" => cases.insert(name, Outcome::Skipped(why())),
            _ => None,
        };
    }
    ensure!(cases.len() > 300, "pjdfstest said:\n{}\n{}", output.stdout, output.stderr);
    Ok(cases)
}

/// Random operations on one file, every byte checked.
pub(crate) fn fsx(trio: &Trio, server: &FolderServer) -> Result<Cases> {
    let mut cases = Cases::new();
    for seed in 1..=FSX_SEEDS {
        let script = format!(
            "cat >/tmp/fsx.toml <<'CONF'
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1
invalidate = 1
mapread = 5
mapwrite = 5
read = 10
write = 10
truncate = 3
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 2
sendfile = 2
posix_fadvise = 1
copy_file_range = 3
CONF
cd {} && fsx -q -f /tmp/fsx.toml -N {FSX_OPERATIONS} -S {seed} -P /tmp fsx.file && rm fsx.file",
            server.mount
        );
        cases.insert(format!("seed {seed}, {FSX_OPERATIONS} operations"), ran(trio, &script)?);
    }
    Ok(cases)
}

/// Repositories made, cloned, collected and checked, while the host reads all of it.
pub(crate) fn git(trio: &Trio, server: &FolderServer) -> Result<Cases> {
    let script = format!(
        r#"set -e; cd {}; rm -rf git; mkdir git; cd git
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q -b main origin; cd origin; git config gc.auto 0
for round in $(seq {GIT_ROUNDS}); do
    for commit in $(seq 4); do
        for file in $(seq 12); do
            mkdir -p d$file; head -c $RANDOM /dev/urandom >d$file/f$commit; echo $round >d$file/round
        done
        git add -A; git commit -q -m "$round $commit"
    done
    git mv d1 e$round; git commit -q -m moved; git mv e$round d1; git commit -q -m back
    cd ..; rm -rf clone; git clone -q --no-local origin clone
    git -C clone fsck --strict --full 2>&1; test -z "$(git -C clone status --porcelain)"
    git -C clone switch -q -c other; echo x >clone/x; git -C clone add x; git -C clone commit -q -m x
    git -C clone push -q origin other:other-$round; git -C clone rebase -q main
    cd origin; git gc -q --prune=now; git fsck --strict --full 2>&1; test -z "$(git status --porcelain)"
done"#,
        server.mount
    );
    let stop = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                read_all(&server.folder);
            }
        });
        let outcome = ran(trio, &script);
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    let name =
        format!("{GIT_ROUNDS} rounds of commit, clone, push, rebase, gc and fsck while the host reads");
    let mut cases = Cases::from([(name, outcome)]);
    let there = format!("cd {}/git && diff -r origin clone -x .git -x x && rm -r ../git", server.mount);
    cases.insert("both trees are the same".to_owned(), ran(trio, &there)?);
    Ok(cases)
}

/// Reads every file of a tree, which changes meanwhile.
fn read_all(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => read_all(&entry.path()),
            Ok(kind) if kind.is_file() => drop(fs::read(entry.path())),
            _ => {}
        }
    }
}

/// A database with several writers, in both ways of keeping a journal, and with a writer that is killed.
pub(crate) fn sqlite(trio: &Trio, server: &FolderServer) -> Result<Cases> {
    let mut cases = Cases::new();
    for journal in ["delete", "wal"] {
        let script = format!(
            r#"set -e; cd {}; rm -rf db; mkdir db; cd db
sqlite3 d "pragma journal_mode={journal}; create table t(id integer primary key, w int, v text);" >/dev/null
writer() {{
    for i in $(seq 15); do
        echo ".timeout 60000"
        echo "begin immediate; insert into t(w, v) values($1, hex(randomblob(500))); update t set v = v || 'x' where w = $1; commit;"
    done | sqlite3 -bail d
}}
for w in 1 2 3; do writer $w & pids="$pids $!"; done
for pid in $pids; do wait $pid; done
test "$(sqlite3 d 'select count(*) from t')" = 45
(for i in $(seq 100000); do echo "insert into t(w, v) values(9, hex(randomblob(2000)));"; done | sqlite3 d) & killed=$!
sleep 2; pkill -KILL -P $killed sqlite3 || kill -KILL $killed; wait $killed || true
test "$(sqlite3 -cmd '.timeout 60000' d 'pragma integrity_check')" = ok
test "$(sqlite3 d 'select count(*) from t where w < 9')" = 45
sqlite3 d 'vacuum; pragma integrity_check' | grep -qx ok; cd ..; rm -r db"#,
            server.mount
        );
        cases.insert(format!("three writers and one that is killed, journal {journal}"), ran(trio, &script)?);
    }
    Ok(cases)
}

/// A C project from its source to its own tests.
pub(crate) fn build(trio: &Trio, server: &FolderServer) -> Result<Cases> {
    let script = format!(
        "set -e; cd {}; rm -rf build; mkdir build; cd build; tar -x --strip-components=1 -f /usr/src/*.orig.tar.*
         ./configure; make -j2; make test; make install DESTDIR=$PWD/installed; test -e installed/usr/local/lib/libz.a
         make distclean; cd ..; rm -r build",
        server.mount
    );
    Ok(Cases::from([("zlib: configure, make -j2, its tests, install".to_owned(), ran(trio, &script)?)]))
}

/// What else programs ask of files.
pub(crate) fn attributes(trio: &Trio, server: &FolderServer) -> Result<Cases> {
    let all = [
        ("a user's extended attribute", "setfattr -n user.a -v 1 f && getfattr -n user.a f"),
        ("file capabilities", "setcap cap_net_raw+ep f && getcap f | grep -q cap_net_raw"),
        ("a trusted attribute", "setfattr -n trusted.a -v 1 f && getfattr -n trusted.a f"),
        ("a security label", "setfattr -n security.a -v 1 f && getfattr -n security.a f"),
        ("an access control list", "setfacl -m u:1000:r f && getfacl f | grep -q user:1000"),
        ("when a file was made", "test $(stat -c %W f) -gt 0"),
        ("a lock against another process", "flock f true && ! flock f flock -n f true"),
        (
            "a leased file",
            "python3 -c 'import fcntl; fcntl.fcntl(open(\"f\"), fcntl.F_SETLEASE, fcntl.F_RDLCK)'",
        ),
        ("a character device", "mknod c c 1 3"),
        ("a block device", "mknod b b 7 0"),
        (
            "a set-user-id program",
            "cp /bin/true s && chown 1000 s && chmod 4755 s && test $(stat -c %a s) = 4755",
        ),
        (
            "a write takes the set-user-id bit away",
            "cp /bin/true s && chown 1000 s && chmod 4777 s && \
            chmod 777 . && setpriv --reuid 1001 --clear-groups sh -c 'echo >>s' && test $(stat -c %a s) = 777",
        ),
        ("a file that is executed", "cp /bin/true e && ./e"),
        (
            "a file without a name gets one",
            "python3 -c '\nimport os\n\
            fd = os.open(\".\", os.O_TMPFILE | os.O_RDWR)\nos.write(fd, b\"x\")\n\
            os.link(f\"/proc/self/fd/{fd}\", \"named\", src_dir_fd=fd)' && test -s named",
        ),
        (
            "holes are found",
            "truncate -s 1M h && printf x | dd of=h bs=1 seek=500000 conv=notrunc status=none && \
            python3 -c 'import os; assert os.lseek(os.open(\"h\", 0), 0, os.SEEK_DATA) > 400000'",
        ),
        ("names may be exchanged", "echo 1 >x; echo 2 >y; mv --exchange x y && grep -q 2 x"),
        (
            "an open file that was removed",
            "exec 3<>r; rm r; echo more >&3; test $(stat -L -c %s /dev/fd/3) = 5",
        ),
        (
            "a directory of 5,000 files is listed whole",
            "mkdir m; (cd m; seq 5000 | xargs touch); test $(ls m | wc -l) = 5000",
        ),
        (
            "a mapping shared by two processes",
            "truncate -s 4096 p; python3 -c '\nimport mmap, os\n\
            m = mmap.mmap(os.open(\"p\", os.O_RDWR), 4096)\n\
            if os.fork() == 0:\n    m[0] = 65\n    os._exit(0)\nos.wait()\nassert m[0] == 65\nm.flush()\n\
            assert open(\"p\", \"rb\").read(1) == b\"A\"'",
        ),
    ];
    let mut cases = Cases::new();
    for (name, script) in all {
        let whole = format!(
            "cd {} && rm -rf attributes && mkdir attributes && cd attributes && echo >f && {script}",
            server.mount
        );
        cases.insert(name.to_owned(), ran(trio, &whole)?);
    }
    trio.check(&format!("rm -rf {}/attributes", server.mount), LIMIT)?;
    Ok(cases)
}

/// Runs a script that has to succeed.
fn ran(trio: &Trio, script: &str) -> Result<Outcome> {
    let output = trio.sh(script, LIMIT)?;
    if output.status == 0 {
        return Ok(Outcome::Passed);
    }
    let said = format!("{}{}", output.stdout, output.stderr);
    let lines: Vec<&str> = said.trim().lines().collect();
    let end = lines[lines.len().saturating_sub(12)..].join(" / ");
    Ok(Outcome::Failed(format!("it ended with {}: {end}", output.status)))
}
