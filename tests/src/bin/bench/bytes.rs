//! Bytes in bulk: through a command's stdout and stdin, and as one file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::rig::{FLOOR, Rig, run, seconds};
use crate::row::{Row, median};

const ROUNDS: usize = 3;
pub(crate) const MIB: usize = 1 << 20;
/// The floor's writes: the best of them is the bare stream.
const WRITES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, BEST_WRITE];
const BEST_WRITE: usize = 256 << 10;

/// MiB in each measurement; `BENCH_MIB` changes it.
fn size() -> usize {
    std::env::var("BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(512)
}

pub(crate) fn measure(rig: &mut Rig) -> Result<Vec<Row>> {
    Ok(vec![stdout(rig)?, stdin(rig)?, file(rig)?])
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn rate(seconds: f64) -> f64 {
    size() as f64 / seconds
}

/// What a command writes, beside the same program writing into the connection itself, and into a pipe that the least of
/// servers carries: the pipe is what a command's output goes through, whoever runs it.
fn stdout(rig: &Rig) -> Result<Row> {
    let bytes = size() * MIB;
    let drained = |order: &str| {
        seconds(|| {
            let mut floor = rig.floor(order)?;
            ensure!(drain(&mut floor.0)? == bytes, "The floor's stream is short");
            Ok(())
        })
    };
    let (mut ours, mut piped, mut floors) = (Vec::new(), Vec::new(), [const { Vec::new() }; WRITES.len()]);
    let write = BEST_WRITE.to_string();
    for _ in 0..ROUNDS {
        ours.push(rate(seconds(|| {
            rig.hospes(&["exec", "dev", "--", FLOOR, "--source", &bytes.to_string(), &write])
        })?));
        piped.push(rate(drained(&format!("piped-source {bytes} {write}\n"))?));
        for (write, samples) in WRITES.iter().zip(&mut floors) {
            samples.push(rate(drained(&format!("source {bytes} {write}\n"))?));
        }
    }
    Ok(through_exec("stdout", &ours, &piped, &floors))
}

/// What a command reads, beside the same as in [`stdout`].
fn stdin(rig: &Rig) -> Result<Row> {
    let bytes = size() * MIB;
    let poured = |order: &str, write: usize| {
        seconds(|| {
            let mut floor = rig.floor(order)?;
            pour(&mut floor.0, bytes, write)?;
            floor.read_byte().map(drop)
        })
    };
    let (mut ours, mut piped, mut floors) = (Vec::new(), Vec::new(), [const { Vec::new() }; WRITES.len()]);
    for _ in 0..ROUNDS {
        ours.push(rate(seconds(|| {
            let words = ["exec", "-i", "dev", "--", FLOOR, "--sink"];
            let mut child = rig.host.command(&words).stdin(Stdio::piped()).spawn()?;
            let mut pipe = child.stdin.take().context("stdin is a pipe")?;
            pour(&mut pipe, bytes, BEST_WRITE)?;
            drop(pipe);
            ensure!(child.wait()?.success(), "hospes exec -i failed");
            Ok(())
        })?));
        piped.push(rate(poured(&format!("piped-sink {bytes}\n"), BEST_WRITE)?));
        for (write, samples) in WRITES.iter().zip(&mut floors) {
            samples.push(rate(poured(&format!("sink {bytes}\n"), *write)?));
        }
    }
    Ok(through_exec("stdin", &ours, &piped, &floors))
}

fn through_exec(stream: &str, ours: &[f64], piped: &[f64], floors: &[Vec<f64>; WRITES.len()]) -> Row {
    let bare = best(floors);
    Row::new("bytes", format!("{} MiB through exec's {stream}", size()), "MiB/s", median(ours))
        .peer("a pipe over bare vsock", median(piped))
        .floor(bare)
        .at_least(0.8, "bare vsock", bare)
        .raw(json!({ "hospes": ours, "pipe": piped, "bare by write size": floors }))
}

/// One file, host to guest, into memory: the disk is nobody's merit.
fn file(rig: &Rig) -> Result<Row> {
    let bytes = size() * MIB;
    let path = rig.host.home().join("bulk");
    pour(&mut File::create(&path)?, bytes, MIB)?;
    let source = path.display().to_string();
    let (mut ours, mut tar, mut scp, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let clean = || rig.guest.check("rm -rf /dev/shm/bench && install -d -o dev -m 777 /dev/shm/bench");
    for _ in 0..ROUNDS {
        clean()?;
        ours.push(rate(seconds(|| rig.hospes(&["cp", "-q", &source, "dev:/dev/shm/bench/bulk"]))?));
        let copied = rig.guest.check("stat -c %s /dev/shm/bench/bulk")?;
        ensure!(copied.trim() == bytes.to_string(), "the copy has {copied} bytes");
        clean()?;
        tar.push(rate(seconds(|| tar_to_guest(rig, rig.host.home(), "bulk"))?));
        clean()?;
        scp.push(rate(seconds(|| scp_to_guest(rig, &["-q"], &source))?));
        clean()?;
        bare.push(rate(seconds(|| {
            let mut floor = rig.floor(&format!("sink {bytes}\n"))?;
            pour(&mut floor.0, bytes, 256 << 10)?;
            floor.read_byte().map(drop)
        })?));
    }
    clean()?;
    std::fs::remove_file(&path)?;
    let [ours_, tar_, scp_, bare_] = [&ours, &tar, &scp, &bare].map(|samples| median(samples));
    Ok(Row::new("bytes", format!("one file of {} MiB by cp", size()), "MiB/s", ours_)
        .peer("tar over bare vsock", tar_)
        .peer("scp", scp_)
        .floor(bare_)
        .at_least(0.8, "bare vsock", bare_)
        .at_least(1.0, "tar", tar_)
        .raw(json!({ "hospes": ours, "tar": tar, "scp": scp, "bare": bare })))
}

/// `tar -c` here, `tar -x` there, and nothing but vsock between.
pub(crate) fn tar_to_guest(rig: &Rig, directory: &std::path::Path, name: &str) -> Result<()> {
    let mut floor = rig.floor("pipe tar -x -f - -C /dev/shm/bench\n")?;
    let writer = floor.0.try_clone()?;
    let mut tar = std::process::Command::new("tar")
        .args(["-c", "-f", "-", name])
        .current_dir(directory)
        .stdout(std::os::fd::OwnedFd::from(writer))
        .spawn()?;
    ensure!(tar.wait()?.success(), "tar failed");
    floor.0.shutdown(std::net::Shutdown::Write)?;
    // The guest's tar closes the connection when it has unpacked everything.
    drain(&mut floor.0)?;
    Ok(())
}

pub(crate) fn scp_to_guest(rig: &Rig, options: &[&str], source: &str) -> Result<()> {
    let ssh = rig.guest.ssh("dev")?;
    let mut words: Vec<String> = ssh.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let target = format!("{}:/dev/shm/bench/", words.pop().context("ssh's target is its last word")?);
    words.iter_mut().filter(|word| *word == "-p").for_each(|word| "-P".clone_into(word));
    let mut scp = std::process::Command::new("scp");
    run(scp.args(words).args(options).arg(source).arg(target).stdout(Stdio::null()))
}

pub(crate) fn pour(to: &mut impl Write, bytes: usize, write: usize) -> io::Result<()> {
    let (mut left, buffer) = (bytes, vec![0x5a; write]);
    while left > 0 {
        let n = left.min(write);
        to.write_all(buffer.get(..n).unwrap_or_default())?;
        left -= n;
    }
    Ok(())
}

pub(crate) fn drain(from: &mut impl Read) -> io::Result<usize> {
    let (mut total, mut buffer) = (0, vec![0; 256 << 10]);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(total),
            n => total += n,
        }
    }
}

fn best(samples: &[Vec<f64>]) -> f64 {
    samples.iter().map(|samples| median(samples)).fold(0.0, f64::max)
}
