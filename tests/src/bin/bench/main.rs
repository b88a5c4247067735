//! `make bench`: what Hospes costs, beside its peers and the floor, in the same guest and the same run.
//!
//! ```text
//! bench [AREA …]     exec, bytes, files, cost, vsock, share, notify, clipboard; all without
//! ```
//! Measurements of one row are interleaved, so that a machine whose speed drifts slows all of them alike; a figure is a
//! median, and a bar is held against ratios of the same run. `target/bench.json` is a list of rows, `{area, metric, unit,
//! ours, peers: {name: value}, floor, bar, holds, raw}`; a run of some areas replaces those areas' rows and keeps the
//! rest.

mod bytes;
mod clipboard;
mod cost;
mod exec;
mod files;
mod notify;
mod rig;
mod row;
mod share;
mod vsock;

use std::process::ExitCode;

use anyhow::{Result, bail};

use rig::Rig;
use row::{Row, merge, print};

type Area = (&'static str, Measure);

/// How an area is measured.
enum Measure {
    /// On the rig.
    Rig(fn(&mut Rig) -> Result<Vec<Row>>),
    /// In guests of its own.
    Alone(fn() -> Result<Vec<Row>>),
}

const AREAS: &[Area] = &[
    ("exec", Measure::Rig(exec::measure)),
    ("bytes", Measure::Rig(bytes::measure)),
    ("files", Measure::Rig(files::measure)),
    ("cost", Measure::Rig(cost::measure)),
    ("vsock", Measure::Alone(vsock::measure)),
    ("share", Measure::Alone(share::measure)),
    ("notify", Measure::Alone(notify::measure)),
    ("clipboard", Measure::Alone(clipboard::measure)),
];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("\nNot every bar holds.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every bar of this run holds.
fn run() -> Result<bool> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| AREAS.iter().all(|(area, _)| area != name)) {
        let names: Vec<&str> = AREAS.iter().map(|(area, _)| *area).collect();
        bail!("No area {unknown}: there are {}", names.join(", "));
    }
    let mut rig = None;
    let mut rows = Vec::new();
    for (area, measure) in AREAS {
        if wanted.is_empty() || wanted.iter().any(|name| name == area) {
            eprintln!("== {area}");
            let measured = match measure {
                Measure::Alone(measure) => {
                    // The rig's guest is not to be measured beside.
                    rig = None;
                    measure()?
                }
                Measure::Rig(measure) => {
                    let mut built = rig.take().map_or_else(Rig::build, Ok)?;
                    let measured = measure(&mut built)?;
                    rig = Some(built);
                    measured
                }
            };
            merge(&measured)?;
            rows.extend(measured);
        }
    }
    print(&rows);
    Ok(rows.iter().all(Row::holds))
}
