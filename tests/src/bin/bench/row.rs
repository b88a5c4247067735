//! A row of the table.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One figure of ours beside the others'.
#[derive(Debug)]
pub(crate) struct Row {
    area: &'static str,
    metric: String,
    unit: &'static str,
    ours: f64,
    peers: BTreeMap<String, f64>,
    floor: Option<f64>,
    bars: Vec<Bar>,
    raw: Value,
}

#[derive(Debug)]
struct Bar {
    text: String,
    holds: bool,
}

impl Row {
    pub(crate) fn new(area: &'static str, metric: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self {
            area,
            metric: metric.into(),
            unit,
            ours,
            peers: BTreeMap::new(),
            floor: None,
            bars: Vec::new(),
            raw: Value::Null,
        }
    }

    pub(crate) fn peer(mut self, name: &str, value: f64) -> Self {
        self.peers.insert(name.to_owned(), value);
        self
    }

    pub(crate) fn floor(mut self, value: f64) -> Self {
        self.floor = Some(value);
        self
    }

    /// Ours is to be at most `factor` times `other`.
    pub(crate) fn at_most(self, factor: f64, name: &str, other: f64) -> Self {
        let holds = self.ours <= factor * other;
        self.bar(format!("≤ {factor} × {name}"), holds)
    }

    /// Ours is to be at least `factor` times `other`.
    pub(crate) fn at_least(self, factor: f64, name: &str, other: f64) -> Self {
        let holds = self.ours >= factor * other;
        self.bar(format!("≥ {factor} × {name}"), holds)
    }

    pub(crate) fn bar(mut self, text: String, holds: bool) -> Self {
        self.bars.push(Bar { text, holds });
        self
    }

    /// Every sample, for whoever doubts the medians.
    pub(crate) fn raw(mut self, raw: Value) -> Self {
        self.raw = raw;
        self
    }

    pub(crate) fn holds(&self) -> bool {
        self.bars.iter().all(|bar| bar.holds)
    }

    fn bar_text(&self) -> String {
        self.bars.iter().map(|bar| bar.text.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn to_json(&self) -> Value {
        json!({
            "area": self.area, "metric": self.metric, "unit": self.unit, "ours": self.ours, "peers": self.peers,
            "floor": self.floor, "bar": self.bar_text(), "holds": self.holds(), "raw": self.raw,
        })
    }
}

/// The median; zero of nothing.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (Some(low), Some(high)) if sorted.len().is_multiple_of(2) => f64::midpoint(*low, *high),
        (_, Some(value)) => *value,
        _ => 0.0,
    }
}

/// Puts these rows into the file, in place of what it has of their areas, if they are `whole`, or of these metrics.
pub(crate) fn merge(rows: &[Row], whole: bool) -> Result<()> {
    let path =
        PathBuf::from(std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into())).join("bench.json");
    let old: Vec<Value> =
        fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let kept = old.into_iter().filter(|row| {
        rows.iter().all(|new| row["area"] != new.area || !whole && row["metric"] != new.metric.as_str())
    });
    let all: Vec<Value> = kept.chain(rows.iter().map(Row::to_json)).collect();
    fs::write(&path, serde_json::to_vec_pretty(&all)?)
        .with_context(|| format!("Could not write {}", path.display()))
}

/// Prints the table.
pub(crate) fn print(rows: &[Row]) {
    println!("\n| area | metric | unit | ours | peers | floor | bar | holds |");
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let peers: Vec<String> =
            row.peers.iter().map(|(name, value)| format!("{name} {}", figure(*value))).collect();
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            row.area,
            row.metric,
            row.unit,
            figure(row.ours),
            peers.join(", "),
            row.floor.map_or_else(|| "–".to_owned(), figure),
            row.bar_text(),
            if row.bars.is_empty() {
                "–"
            } else if row.holds() {
                "yes"
            } else {
                "**no**"
            },
        );
    }
}

fn figure(value: f64) -> String {
    if value >= 100.0 || value == value.trunc() {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}
