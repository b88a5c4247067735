//! The vsock device beside `vhost-device-vsock`: alone under a fake driver, and in a guest.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{Guest, GuestSpec, Lab};
use serde_json::{Value, json};

use crate::bytes::{MIB, drain, pour};
use crate::rig::{Floor, connect_floor_in_steps, seconds, serve_floor};
use crate::row::{Row, median};

const ROUNDS: usize = 3;
/// MiB of one stream in the guest.
const STREAM: usize = 128;
const WRITES: [usize; 3] = [4 << 10, 64 << 10, 256 << 10];
const PEER: &str = "vhost-device-vsock";

pub(crate) fn measure() -> Result<Vec<Row>> {
    let peer = std::env::var_os("VSOCK_PEER").map(PathBuf::from);
    let peer = peer.context("VSOCK_PEER does not name vhost-device-vsock: make bench builds it and does")?;
    let mut rows = native(&peer)?;
    rows.extend(in_a_guest(&peer)?);
    Ok(rows)
}

/// Both devices under a driver that is a program of this machine: no emulation stands between.
fn native(peer: &Path) -> Result<Vec<Row>> {
    let mut cells: BTreeMap<(String, u64, u64), BTreeMap<bool, Vec<f64>>> = BTreeMap::new();
    let (mut trips, mut stalls) = (BTreeMap::<bool, Vec<f64>>::new(), 0);
    for _ in 0..ROUNDS {
        let output = Command::new(Lab::program("examples/vsock_bench")?)
            .args([Lab::program("host-hv")?.as_path(), peer])
            .output()
            .context("vsock_bench does not start")?;
        ensure!(output.status.success(), "vsock_bench failed: {}", String::from_utf8_lossy(&output.stderr));
        for line in String::from_utf8(output.stdout)?.lines() {
            let row: Value = serde_json::from_str(line)?;
            let ours = !row["device"].as_str().unwrap_or_default().starts_with(PEER);
            stalls += u64::from(ours && row["stalled"] == true);
            let (Some(metric), number) = (row["metric"].as_str(), |name: &str| row[name].as_f64()) else {
                bail!("vsock_bench said {line}");
            };
            if let Some(p50) = number("p50_us") {
                trips.entry(ours).or_default().push(p50);
            } else if let Some(bytes) = number("bytes_per_cpu_second") {
                let cell = (
                    metric.to_owned(),
                    row["connections"].as_u64().unwrap_or(0),
                    row["size"].as_u64().unwrap_or(0),
                );
                cells.entry(cell).or_default().entry(ours).or_default().push(bytes / f64::from(1 << 20));
            }
        }
    }
    let mut rows = Vec::new();
    for (metric, words) in [("vsock_to_host", "to the host"), ("vsock_to_guest", "to the guest")] {
        for connections in [1, 100] {
            let sizes: Vec<(u64, f64, f64)> = cells
                .iter()
                .filter(|((name, count, _), _)| name == metric && *count == connections)
                .filter_map(|((_, _, size), sides)| {
                    Some((*size, median(sides.get(&true)?), median(sides.get(&false)?)))
                })
                .collect();
            let worst = sizes.iter().min_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)));
            let (size, ours, theirs) = *worst.context("vsock_bench measured nothing")?;
            let words = format!(
                "{words}, {connections} connections, writes of {} KiB (the worst of six sizes)",
                size >> 10
            );
            rows.push(
                Row::new("vsock", words, "MiB per CPU second", ours)
                    .peer(PEER, theirs)
                    .at_least(2.0, PEER, theirs)
                    .raw(json!({ "size, ours, peer": sizes })),
            );
        }
    }
    let side = |ours| trips.get(&ours).map_or(0.0, |samples| median(samples));
    rows.push(
        Row::new("vsock", "a round trip of 16 bytes, median", "µs", side(true))
            .peer(PEER, side(false))
            .at_most(1.0, PEER, side(false))
            .bar(format!("no stall ({stalls} seen)"), stalls == 0)
            .raw(json!({ "ours": trips.get(&true), "peer": trips.get(&false) })),
    );
    Ok(rows)
}

/// The same guest twice, one device each, in turns.
fn in_a_guest(peer: &Path) -> Result<Vec<Row>> {
    let ours = Guest::boot(GuestSpec::new("bench-vsock"))?;
    let theirs = Guest::boot(GuestSpec::new("bench-vsock-peer").vsock_by(peer))?;
    let guests = [ours, theirs];
    for guest in &guests {
        serve_floor(guest)?;
    }
    let mut rows = Vec::new();
    for to_host in [true, false] {
        for write in WRITES {
            let mut samples: [Vec<Option<Sample>>; 2] = Default::default();
            for _ in 0..ROUNDS {
                for (guest, samples) in guests.iter().zip(&mut samples) {
                    samples.push(stream(guest, to_host, write)?);
                }
            }
            let [ours, theirs] = samples.each_ref().map(|samples| Figures::of(samples));
            let words = if to_host { "to the host" } else { "to the guest" };
            rows.push(
                Row::new(
                    "vsock",
                    format!("in a guest, {words}, writes of {} KiB", write >> 10),
                    "MiB/s",
                    ours.rate,
                )
                .peer(PEER, theirs.rate)
                .at_least(1.0, PEER, theirs.rate)
                .bar(format!("no stall ({}; {PEER} {})", ours.stalls, theirs.stalls), ours.stalls == 0)
                .raw(json!({ "kicks per MiB": [ours.kicks, theirs.kicks],
                                 "interrupts per MiB": [ours.interrupts, theirs.interrupts] })),
            );
        }
    }
    Ok(rows)
}

struct Sample {
    /// MiB per second.
    rate: f64,
    /// Of the device, by the guest, per MiB.
    kicks: f64,
    /// Of the guest, by the device, per MiB.
    interrupts: f64,
}

/// Medians of those that came to their end; zero where none did.
struct Figures {
    rate: f64,
    kicks: f64,
    interrupts: f64,
    stalls: usize,
}

impl Figures {
    fn of(samples: &[Option<Sample>]) -> Self {
        let figure = |of: fn(&Sample) -> f64| median(&samples.iter().flatten().map(of).collect::<Vec<_>>());
        Self {
            rate: figure(|sample| sample.rate),
            kicks: figure(|sample| sample.kicks),
            interrupts: figure(|sample| sample.interrupts),
            stalls: samples.iter().filter(|sample| sample.is_none()).count(),
        }
    }
}

/// One stream, or nothing where it stalled.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn stream(guest: &Guest, to_host: bool, write: usize) -> Result<Option<Sample>> {
    let bytes = STREAM * MIB;
    let (kicks, interrupts) = (kicks(guest)?, interrupts(guest)?);
    let took = seconds(|| {
        if to_host {
            let Floor(mut stream) = connect_floor_in_steps(guest, &format!("source {bytes} {write}\n"))?;
            ensure!(drain(&mut stream)? == bytes, "The floor's stream is short");
            return Ok(());
        }
        let mut floor = connect_floor_in_steps(guest, &format!("sink {bytes}\n"))?;
        pour(&mut floor.0, bytes, write)?;
        floor.read_byte().map(drop)
    });
    let took = match took {
        Err(error) if is_stall(&error) => return Ok(None),
        took => took?,
    };
    let per_mib = |before: u64, after: u64| after.saturating_sub(before) as f64 / STREAM as f64;
    let (kicks, interrupts) =
        (per_mib(kicks, self::kicks(guest)?), per_mib(interrupts, self::interrupts(guest)?));
    Ok(Some(Sample { rate: STREAM as f64 / took, kicks, interrupts }))
}

/// Whether a socket's own time limit ran out.
fn is_stall(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    })
}

/// How often QEMU has written to a descriptor: under emulation each kick is such a write, and little else is.
fn kicks(guest: &Guest) -> Result<u64> {
    let counts = fs::read_to_string(format!("/proc/{}/io", guest.qemu_pid()))?;
    let line = counts.lines().find_map(|line| line.strip_prefix("syscw: "));
    line.and_then(|count| count.parse().ok()).with_context(|| format!("No count of writes in {counts}"))
}

/// How often the guest was interrupted by virtio devices.
fn interrupts(guest: &Guest) -> Result<u64> {
    let text = guest.check("grep virtio /proc/interrupts | awk '{n += $2 + $3} END {print n + 0}'")?;
    text.trim().parse().with_context(|| format!("No count: {text}"))
}
