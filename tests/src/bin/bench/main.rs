//! `make bench`: what Hospes costs, beside its peers and the floor, in the same guest and the same run.
//!
//! ```text
//! bench [--rounds N] [AREA | share:ROW …]     exec, bytes, files, cost, vsock, share, notify, clipboard; all without
//! ```
//! `share`, which takes long, can be run row by row: `bench share:randread`. `--rounds` is for it as well.
//!
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
mod trace;
mod vsock;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use rig::Rig;
use row::{Row, merge, print};

type Area = (&'static str, Measure);

/// How an area is measured.
enum Measure {
    /// On the rig.
    Rig(fn(&mut Rig) -> Result<Vec<Row>>),
    /// In guests of its own.
    Alone(fn() -> Result<Vec<Row>>),
    /// The same, and row by row if that is asked for.
    Rows(fn() -> Vec<&'static str>, fn(&[String], Option<usize>) -> Result<Vec<Row>>),
}

const AREAS: &[Area] = &[
    ("exec", Measure::Rig(exec::measure)),
    ("bytes", Measure::Rig(bytes::measure)),
    ("files", Measure::Rig(files::measure)),
    ("cost", Measure::Rig(cost::measure)),
    ("vsock", Measure::Alone(vsock::measure)),
    ("share", Measure::Rows(share::rows_to_choose, share::measure)),
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

/// What the command line asks for.
struct Wanted {
    /// Areas and rows, as given; all areas without.
    names: Vec<String>,
    rounds: Option<usize>,
}

impl Wanted {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut wanted = Self { names: Vec::new(), rounds: None };
        while let Some(word) = words.next() {
            if word == "--rounds" {
                let number = words.next().context("--rounds takes a number")?;
                wanted.rounds =
                    Some(number.parse().with_context(|| format!("{number} is no number of rounds"))?);
            } else {
                wanted.names.push(word);
            }
        }
        if let Some(unknown) = wanted.names.iter().find(|name| !names().contains(name)) {
            bail!("No area or row {unknown}: there are {}", names().join(", "));
        }
        Ok(wanted)
    }

    /// The rows of an area that are wanted, none for all of them; nothing if the area is not wanted at all.
    fn rows(&self, area: &str) -> Option<Vec<String>> {
        if self.names.is_empty() || self.names.iter().any(|name| name == area) {
            return Some(Vec::new());
        }
        let rows = self.names.iter().filter_map(|name| name.strip_prefix(area)?.strip_prefix(':'));
        let rows: Vec<String> = rows.map(str::to_owned).collect();
        (!rows.is_empty()).then_some(rows)
    }
}

/// All areas, and the rows that can be asked for.
fn names() -> Vec<String> {
    let mut names = Vec::new();
    for (area, measure) in AREAS {
        names.push((*area).to_owned());
        if let Measure::Rows(rows, _) = measure {
            names.extend(rows().iter().map(|row| format!("{area}:{row}")));
        }
    }
    names
}

/// Whether every bar of this run holds.
fn run() -> Result<bool> {
    let wanted = Wanted::parse(std::env::args().skip(1))?;
    let mut rig = None;
    let mut rows = Vec::new();
    for (area, measure) in AREAS {
        let Some(chosen) = wanted.rows(area) else { continue };
        eprintln!("== {area}");
        let measured = match measure {
            Measure::Alone(measure) => {
                // The rig's guest is not to be measured beside.
                rig = None;
                measure()?
            }
            Measure::Rows(_, measure) => {
                rig = None;
                measure(&chosen, wanted.rounds)?
            }
            Measure::Rig(measure) => {
                let mut built = rig.take().map_or_else(Rig::build, Ok)?;
                let measured = measure(&mut built)?;
                rig = Some(built);
                measured
            }
        };
        merge(&measured, chosen.is_empty())?;
        rows.extend(measured);
    }
    print(&rows);
    Ok(rows.iter().all(Row::holds))
}
