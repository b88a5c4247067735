//! Shared folders beside both of Debian's virtiofsd: what a guest waits for, what the server uses of the processors for
//! it, and how many system calls it makes.
//!
//! The folders are in memory, since no disk is to be measured, and our server is built as it is shipped, as the others
//! are. The server's time is read from its processes' clocks, from before an act until the guest has forgotten what it
//! learned by it: a server that keeps something for each file pays for that then. System calls are counted in a round of
//! its own, by strace, which makes everything slow and nothing more.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::{Deadline, FolderServer, Lab, Trio};
use serde_json::{Value, json};

use crate::row::{Row, median};

const ROUNDS: usize = 2;
/// virtiofsd has each file open that the guest knows: so many fit into what a process may have open everywhere.
const FILES: usize = 5_000;
/// For the round in which system calls are counted.
const FEW_FILES: usize = 1_000;
const PER_DIRECTORY: usize = 100;
const LIMIT: Duration = Duration::from_secs(600);
/// The file that fio reads and writes.
const FIO_MIB: usize = 256;

/// Clean pages and what is known of names and files goes, and the guest tells the server so.
const FORGET: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; sleep 0.7";

/// What one act took.
#[derive(Clone, Copy)]
struct Sample {
    seconds: f64,
    operations: f64,
    cpu: f64,
}

/// By act and server.
type Samples = BTreeMap<(usize, usize), Vec<Sample>>;

/// What is measured: the row's words, and a script in which `TREE` and `TAR` stand for both.
const ACTS: [(&str, &str); 4] = [
    ("untar", "tar -xf TAR"),
    ("git status", "git -C TREE status --porcelain | { ! grep .; }"),
    ("find", "find TREE -type f -size +0 | wc -l"),
    ("rm -r", "rm -r TREE"),
];
/// And by fio: the row's words, the block's bytes, how, and MiB. Through the guest's cache, each block once: virtiofsd
/// 7.2 takes an arm64 guest's `O_DIRECT` for an x86 flag that means another thing, and opens nothing.
const LOADS: [(&str, usize, &str, usize); 4] = [
    ("4 KiB random reads", 4096, "randread", 40),
    ("4 KiB random writes", 4096, "randwrite", 40),
    ("1 MiB sequential reads", 1 << 20, "read", FIO_MIB),
    ("1 MiB sequential writes", 1 << 20, "write", FIO_MIB),
];

pub(crate) fn measure() -> Result<Vec<Row>> {
    let trio = Trio::start("bench-share", &Lab::released("host-hv")?, Path::new("/dev/shm"))?;
    for files in [FILES, FEW_FILES] {
        plant(&trio, files)?;
    }
    let mut samples = Samples::new();
    for round in 0..ROUNDS {
        for turn in 0..trio.servers.len() {
            let number = (round + turn) % trio.servers.len();
            let server = &trio.servers[number];
            eprintln!("{}, round {}", server.name, round + 1);
            for (act, sample) in once(&trio, server, FILES, |_, act| act())? {
                samples.entry((act, number)).or_default().push(sample);
            }
        }
    }
    let mut calls: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    for (number, server) in trio.servers.iter().enumerate() {
        eprintln!("{}, its system calls", server.name);
        let counting = |server: &FolderServer, act: &mut dyn FnMut() -> Result<Sample>| {
            let trace = Trace::start(server)?;
            let sample = act()?;
            Ok(Sample { cpu: trace.count()?, ..sample })
        };
        for (act, sample) in once(&trio, server, FEW_FILES, counting)? {
            calls.insert((act, number), sample.cpu / sample.operations);
        }
    }
    Ok(rows(&trio, &samples, &calls))
}

/// Every act once, `around` each.
fn once(
    trio: &Trio,
    server: &FolderServer,
    files: usize,
    around: impl Fn(&FolderServer, &mut dyn FnMut() -> Result<Sample>) -> Result<Sample>,
) -> Result<Vec<(usize, Sample)>> {
    let mut all = Vec::new();
    trio.check(FORGET, LIMIT)?;
    for (number, (_, script)) in ACTS.iter().enumerate() {
        let script =
            script.replace("TREE", &format!("tree-{files}")).replace("TAR", &format!("/dev/shm/{files}.tar"));
        let script = format!("set -e -o pipefail; cd {}; {script}", server.mount);
        all.push((number, around(server, &mut || timed(trio, server, &script, Some(files)))?));
        if number == 0 {
            // What the index says of the files' numbers and times is of another place.
            let status = format!("git -C {}/tree-{files} status >/dev/null; {FORGET}", server.mount);
            trio.check(&status, LIMIT)?;
        }
    }
    for (number, (_, block, how, mib)) in LOADS.iter().enumerate() {
        let lay = format!(
            "test -e {0}/fio || dd if=/dev/zero of={0}/fio bs=1M count={FIO_MIB} status=none",
            server.mount
        );
        trio.check(&lay, LIMIT)?;
        // Blocks that nobody asked for are no part of random reads.
        let hint = if how.starts_with("rand") { "random" } else { "sequential" };
        let script = format!(
            "fio --name=load --filename={}/fio --size={FIO_MIB}M --io_size={mib}M --bs={block} --rw={how} \
             --fadvise_hint={hint} --ioengine=psync --output-format=json",
            server.mount
        );
        all.push((ACTS.len() + number, around(server, &mut || timed(trio, server, &script, None))?));
    }
    Ok(all)
}

/// Runs the script once. Where the operations are not known before, fio says how many there were, and for how long.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn timed(trio: &Trio, server: &FolderServer, script: &str, operations: Option<usize>) -> Result<Sample> {
    let before = server.cpu()?;
    let start = Instant::now();
    let output = trio.check(script, LIMIT)?;
    let mut seconds = start.elapsed().as_secs_f64();
    trio.check(FORGET, LIMIT)?;
    let cpu = (server.cpu()? - before).as_secs_f64();
    let operations = if let Some(operations) = operations {
        operations as f64
    } else {
        let said: Value = serde_json::from_str(&output).with_context(|| format!("fio said {output}"))?;
        let job = &said["jobs"][0];
        let both = |what: &str| {
            job["read"][what].as_f64().unwrap_or_default() + job["write"][what].as_f64().unwrap_or_default()
        };
        // Milliseconds.
        seconds = both("runtime") / 1000.0;
        both("total_ios")
    };
    ensure!(operations > 0.0 && seconds > 0.0, "Nothing was done: {output}");
    Ok(Sample { seconds, operations, cpu })
}

/// A git repository of so many files, clean, as a tar archive in the guest's memory.
fn plant(trio: &Trio, files: usize) -> Result<()> {
    let tree = trio.servers[0].folder.join("plant").join(format!("tree-{files}"));
    for directory in 0..files / PER_DIRECTORY {
        let path = tree.join(format!("directory-{directory}"));
        fs::create_dir_all(&path)?;
        for file in 0..PER_DIRECTORY {
            let len = (directory * PER_DIRECTORY + file) * 1021 % 2049;
            fs::write(path.join(format!("file-{file}")), vec![b'x'; len])?;
        }
    }
    trio.check(
        &format!(
            "set -e; cd /dev/shm; cp -r {0}/plant/tree-{files} .; cd tree-{files}
             export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
             git init -q; git config core.compression 0; git config gc.auto 0; git add .; git commit -q -m all
             git repack -q -a -d --depth=0 --window=0; git prune-packed
             tar -cf /dev/shm/{files}.tar -C /dev/shm tree-{files}; rm -r /dev/shm/tree-{files} {0}/plant",
            trio.servers[0].mount
        ),
        LIMIT,
    )
    .map(drop)
}

/// strace on a server.
struct Trace {
    child: Child,
    directory: tempfile::TempDir,
}

impl Trace {
    fn start(server: &FolderServer) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let pids: Vec<String> = server.pids()?.iter().map(u32::to_string).collect();
        let mut child = Command::new("strace")
            .args(["-f", "-c", "-o"])
            .arg(directory.path().join("calls"))
            .args(["-p", &pids.join(",")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("strace does not start: run `make setup`")?;
        Deadline::after(Duration::from_secs(10)).poll("strace to take hold of the server", || {
            ensure!(child.try_wait()?.is_none(), "strace could not take hold of {}", server.name);
            let all = pids.iter().all(|pid| {
                fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| {
                    tasks.flatten().all(|task| {
                        fs::read_to_string(task.path().join("status"))
                            .is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
                    })
                })
            });
            Ok(all.then_some(()))
        })?;
        Ok(Self { child, directory })
    }

    fn count(mut self) -> Result<f64> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.child.wait()?;
        let table = fs::read_to_string(self.directory.path().join("calls"))?;
        let total = table.lines().find(|line| line.trim_end().ends_with("total"));
        let calls = total.and_then(|line| line.split_whitespace().nth(3));
        calls
            .and_then(|calls| calls.parse().ok())
            .with_context(|| format!("strace counted nothing:\n{table}"))
    }
}

fn rows(trio: &Trio, samples: &Samples, calls: &BTreeMap<(usize, usize), f64>) -> Vec<Row> {
    let words = ACTS.iter().map(|(words, _)| (*words, true));
    let words = words.chain(LOADS.iter().map(|(words, ..)| (*words, false)));
    let mut rows = Vec::new();
    for (act, (words, whole)) in words.enumerate() {
        let of = |figure: fn(&Sample) -> f64| -> Vec<(&str, f64, Vec<f64>)> {
            let servers = trio.servers.iter().enumerate();
            servers
                .map(|(number, server)| {
                    let all: Vec<f64> =
                        samples.get(&(act, number)).into_iter().flatten().map(figure).collect();
                    (server.name, median(&all), all)
                })
                .collect()
        };
        let row = |metric: String, unit, figures: &[(&'static str, f64, Vec<f64>)]| {
            let row = Row::new("share", metric, unit, figures[0].1);
            let row = figures[1..].iter().fold(row, |row, (name, value, _)| row.peer(name, *value));
            let raw: BTreeMap<_, _> = figures.iter().map(|(name, _, all)| (*name, all)).collect();
            row.raw(json!(raw))
        };
        let best = |figures: &[(&str, f64, Vec<f64>)], most: bool| {
            let values = figures[1..].iter().map(|(_, value, _)| *value);
            if most { values.fold(0.0, f64::max) } else { values.fold(f64::INFINITY, f64::min) }
        };
        if whole {
            let time = of(|sample| sample.seconds);
            rows.push(row(format!("{words}, {FILES} files"), "s", &time).at_most(
                1.0,
                "the better",
                best(&time, false),
            ));
        } else {
            let rate = of(|sample| sample.operations / sample.seconds);
            rows.push(row(words.to_owned(), "/s", &rate).at_least(1.0, "the better", best(&rate, true)));
        }
        let cpu = of(|sample| sample.cpu / sample.operations * 1e6);
        let name = format!("{words}: the server's time for each");
        rows.push(row(name, "µs", &cpu).at_most(0.8, "the better", best(&cpu, false)));
        let calls: Vec<_> = trio
            .servers
            .iter()
            .enumerate()
            .map(|(number, server)| {
                (server.name, calls.get(&(act, number)).copied().unwrap_or_default(), Vec::new())
            })
            .collect();
        rows.push(row(format!("{words}: its system calls for each"), "calls", &calls));
    }
    rows
}
