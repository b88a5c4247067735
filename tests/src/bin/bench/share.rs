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
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::{FolderServer, Lab, Trio};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::rig::run;
use crate::row::{Row, median};
use crate::trace::Trace;

/// Rounds of what is done to a tree, and of fio's loads, unless others are asked for.
const ROUNDS: usize = 2;
const LOAD_ROUNDS: usize = 5;
const FILES: usize = 20_000;
/// virtiofsd has each file open that the guest knows: where a process may not have so many, the tree is smaller by this
/// much than what it may have.
const OTHERS: u64 = 2_000;
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

/// What is measured, in this order.
struct Act {
    /// What it is chosen by.
    name: &'static str,
    /// The row's words.
    words: &'static str,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    /// A script in which `TREE` and `TAR` stand for both. Between the first, which lays the tree, and the last, which
    /// takes it away, it is there.
    Tree(&'static str),
    /// By fio: the block's bytes, how, and MiB. Through the guest's cache, each block once: virtiofsd 7.2 takes an arm64
    /// guest's `O_DIRECT` for an x86 flag that means another thing, and opens nothing.
    Load(usize, &'static str, usize),
}

const ACTS: [Act; 8] = [
    Act { name: "untar", words: "untar", how: How::Tree("tar -xf TAR") },
    Act {
        name: "status",
        words: "git status",
        how: How::Tree("git -C TREE status --porcelain | { ! grep .; }"),
    },
    Act { name: "find", words: "find", how: How::Tree("find TREE -type f -size +0 | wc -l") },
    Act { name: "rm", words: "rm -r", how: How::Tree("rm -r TREE") },
    Act { name: "randread", words: "4 KiB random reads", how: How::Load(4096, "randread", 40) },
    Act { name: "randwrite", words: "4 KiB random writes", how: How::Load(4096, "randwrite", 40) },
    Act { name: "read", words: "1 MiB sequential reads", how: How::Load(1 << 20, "read", FIO_MIB) },
    Act { name: "write", words: "1 MiB sequential writes", how: How::Load(1 << 20, "write", FIO_MIB) },
];

/// The rows by which a part of this may be chosen.
pub(crate) fn rows_to_choose() -> Vec<&'static str> {
    ACTS.iter().map(|act| act.name).collect()
}

/// Which acts, and on how many files.
struct Plan {
    wanted: [bool; ACTS.len()],
    files: usize,
}

impl Plan {
    fn wants(&self, which: impl Fn(&How) -> bool) -> bool {
        ACTS.iter().zip(self.wanted).any(|(act, wanted)| wanted && which(&act.how))
    }

    /// With so many files in the tree, and this many rounds.
    fn with(&self, files: usize) -> Self {
        Self { files, wanted: self.wanted }
    }
}

/// `chosen` rows, all if none is; `rounds` of each.
pub(crate) fn measure(chosen: &[String], rounds: Option<usize>) -> Result<Vec<Row>> {
    let wanted = ACTS.each_ref().map(|act| chosen.is_empty() || chosen.iter().any(|name| name == act.name));
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = FILES.min(usize::try_from(most.saturating_sub(OTHERS))? / PER_DIRECTORY * PER_DIRECTORY);
    let plan = Plan { wanted, files };
    let trio = Trio::start("bench-share", &Lab::released("host-hv")?, Path::new("/dev/shm"))?;
    // The host finds memory for a page of the guest's when it is first written, on the account of whoever does that.
    trio.check("head -c 900M /dev/zero >/dev/shm/all; rm /dev/shm/all", LIMIT)?;
    let trees = if plan.wants(|how| matches!(how, How::Tree(_))) { &[files, FEW_FILES][..] } else { &[] };
    for files in trees {
        plant(&trio, *files)?;
    }
    let mut samples = Samples::new();
    let most = if trees.is_empty() { LOAD_ROUNDS } else { LOAD_ROUNDS.max(ROUNDS) };
    for round in 0..rounds.unwrap_or(most) {
        let tree = round < rounds.unwrap_or(ROUNDS);
        let load = round < rounds.unwrap_or(LOAD_ROUNDS);
        for turn in 0..trio.servers.len() {
            let number = (round + turn) % trio.servers.len();
            let server = &trio.servers[number];
            eprintln!("{}, round {}", server.name, round + 1);
            let mut part = plan.with(files);
            for (act, wanted) in ACTS.iter().zip(&mut part.wanted) {
                *wanted &= if matches!(act.how, How::Tree(_)) { tree } else { load };
            }
            for (act, sample) in once(&trio, server, &part, |_, act| act())? {
                let Sample { seconds, operations, cpu } = sample;
                let (rate, each) = (operations / seconds, cpu / operations * 1e6);
                eprintln!("  {}: {seconds:.2} s, {rate:.0}/s, {each:.1} µs each", ACTS[act].name);
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
        for (act, sample) in once(&trio, server, &plan.with(FEW_FILES), counting)? {
            calls.insert((act, number), sample.cpu / sample.operations);
        }
    }
    Ok(rows(&trio, &plan, &samples, &calls))
}

/// Every act of the plan once, `around` each.
fn once(
    trio: &Trio,
    server: &FolderServer,
    plan: &Plan,
    around: impl Fn(&FolderServer, &mut dyn FnMut() -> Result<Sample>) -> Result<Sample>,
) -> Result<Vec<(usize, Sample)>> {
    let mut all = Vec::new();
    let files = plan.files;
    trio.check(FORGET, LIMIT)?;
    for (number, act) in ACTS.iter().enumerate() {
        let wanted = plan.wanted[number];
        match act.how {
            How::Tree(script) if plan.wants(|how| matches!(how, How::Tree(_))) => {
                let script = script
                    .replace("TREE", &format!("tree-{files}"))
                    .replace("TAR", &format!("/dev/shm/{files}.tar"));
                let script = format!("set -e -o pipefail; cd {}; {script}", server.mount);
                if wanted {
                    all.push((number, around(server, &mut || timed(trio, server, &script, Some(files)))?));
                } else if number == 0 {
                    lay(trio, server, files)?;
                } else if act.name == "rm" {
                    fs::remove_dir_all(server.folder.join(format!("tree-{files}")))?;
                }
                if number == 0 && plan.wanted[1] {
                    // What the index says of the files' numbers and times is of another place.
                    let status = format!("git -C {}/tree-{files} status >/dev/null; {FORGET}", server.mount);
                    trio.check(&status, LIMIT)?;
                }
            }
            How::Load(block, how, mib) if wanted => {
                // Fewer where each call is counted.
                let mib = if files == FEW_FILES { mib / 8 } else { mib };
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
                all.push((number, around(server, &mut || timed(trio, server, &script, None))?));
            }
            _ => {}
        }
    }
    Ok(all)
}

/// Lays the tree from this machine's side.
fn lay(trio: &Trio, server: &FolderServer, files: usize) -> Result<()> {
    let archive = trio.servers[0].folder.join(format!("{files}.tar"));
    run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&server.folder))?;
    trio.check(FORGET, LIMIT).map(drop)
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
             tar -cf /dev/shm/{files}.tar -C /dev/shm tree-{files}; rm -r /dev/shm/tree-{files} {0}/plant
             cp /dev/shm/{files}.tar {0}",
            trio.servers[0].mount
        ),
        LIMIT,
    )
    .map(drop)
}

fn rows(trio: &Trio, plan: &Plan, samples: &Samples, calls: &BTreeMap<(usize, usize), f64>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (act, Act { words, how, .. }) in ACTS.iter().enumerate().filter(|(act, _)| plan.wanted[*act]) {
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
        if matches!(how, How::Tree(_)) {
            let time = of(|sample| sample.seconds);
            rows.push(row(format!("{words}, {} files", plan.files), "s", &time).at_most(
                1.0,
                "the better",
                best(&time, false),
            ));
        } else {
            let rate = of(|sample| sample.operations / sample.seconds);
            rows.push(row((*words).to_owned(), "/s", &rate).at_least(1.0, "the better", best(&rate, true)));
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
