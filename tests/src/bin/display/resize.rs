//! Sizes, scales and places.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration_tests::desktop::Kind;
use integration_tests::screens::Screens;
use integration_tests::{Deadline, Vnc};
use serde_json::json;

/// Until it is said that a size was not taken: generous, since it is no measure.
const LIMIT: Duration = Duration::from_secs(60);
/// Pixels by which a desktop that rounds may miss.
const NEAR: u64 = 8;

/// How a desktop followed.
pub(crate) struct Row {
    kind: Kind,
    times: Vec<Duration>,
    /// Sizes that it has only nearly, and which.
    nearest: Vec<String>,
    scaled: bool,
}

impl Row {
    fn at(&self, percent: usize) -> f32 {
        self.times
            .get((self.times.len().saturating_sub(1)) * percent / 100)
            .map_or(0.0, Duration::as_secs_f32)
    }

    /// Tells them all.
    pub(crate) fn table(rows: &[Self]) {
        println!(
            "\n| desktop | sizes | median s | 90 of 100 within s | slowest s | scale 2 kept | not exact |"
        );
        println!("|---|---|---|---|---|---|---|");
        for row in rows {
            let scaled = if row.scaled { "yes" } else { "has none" };
            let nearest = if row.nearest.is_empty() { "none".to_owned() } else { row.nearest.join(", ") };
            println!(
                "| {:?} | {} | {:.2} | {:.2} | {:.2} | {scaled} | {nearest} |",
                row.kind,
                row.times.len(),
                row.at(50),
                row.at(90),
                row.at(100)
            );
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sizes, from the last request to the new mode: median {:.2} s, 90 of 100 within {:.2} s, slowest {:.2} s",
            self.times.len(),
            self.at(50),
            self.at(90),
            self.at(100)
        )
    }
}

/// The screen follows a window on the host, half of the time with a scale that its user set.
pub(crate) fn follow(screens: &Screens, sizes: usize) -> Result<Row> {
    let kind = screens.kind()?;
    let mut window = screens.window(0)?;
    let mut random = Random::new();
    let mut row = Row { kind, times: Vec::new(), nearest: Vec::new(), scaled: false };
    let mut scale = 1_u32;
    for n in 0..sizes {
        if n == sizes / 2 {
            // Larger than most before it: a desktop offers a scale only where something is left to see.
            reach(screens, &mut window, (1920, 1200), &mut row)?;
            if screens.set_scale(2).context("its user's scale")? {
                (scale, row.scaled) = (2, true);
            }
        }
        let size =
            if scale == 2 { (random.side(1700, 2500), random.side(1000, 1600)) } else { random.size() };
        // Every tenth is a drag: of many sizes the last one counts.
        if n % 10 == 9 {
            for step in 0..20 {
                window.ask(size.0 + 40 - step * 2, size.1 + 20 - step)?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        reach(screens, &mut window, size, &mut row)?;
        screens.picture(0, &format!("{kind:?}-{n:03}-{}x{}", size.0, size.1).to_lowercase())?;
        if n % 10 == 9 || n + 1 == sizes {
            let size = window.size();
            screens.agree(0, size, LIMIT)?;
            let screen = screens.screen(0)?;
            ensure!(screen["rule"] == "display", "{screen}");
            ensure!(
                kind == Kind::X11 || screen["scale"] == f64::from(scale),
                "the scale was {scale}: {screen}"
            );
        }
    }
    if row.scaled {
        screens.set_scale(1)?;
    }
    row.times.sort();
    Ok(row)
}

/// Asks for a size, and waits until the screen has it, or the nearest that the desktop has.
fn reach(screens: &Screens, window: &mut Vnc, size: (u16, u16), row: &mut Row) -> Result<()> {
    window.ask(size.0, size.1)?;
    if let Some(took) = window.becomes(size, LIMIT)? {
        row.times.push(took);
        return Ok(());
    }
    let screen = screens.screen(0)?;
    let off = |name: &str, wanted: u16| {
        screen["size"][name].as_u64().unwrap_or_default().abs_diff(u64::from(wanted)) > NEAR
    };
    let problem = screen["problem"].as_str().unwrap_or_default();
    if off("width", size.0) || off("height", size.1) || !problem.contains("nearest") {
        bail!("{size:?} was not set, QEMU has {:?}: {screen}\n{}", window.size(), screens.journal());
    }
    row.nearest.push(problem.to_owned());
    Ok(())
}

/// The host asks for what no window says: sizes, scales and places of its own, and then for following again.
pub(crate) fn asked(screens: &Screens) -> Result<()> {
    let kind = screens.kind()?;
    let mut window = screens.window(0)?;
    let display =
        |words: &[&str]| screens.host.run(&[&["display", "vm", "--output", "Virtual-1"], words].concat());
    // Mutter, and KWin before Plasma 6.6, take listed sizes alone: this is one that they list.
    display(&["1600x1200"])?.text()?;
    ensure!(window.becomes((1600, 1200), LIMIT)?.is_some(), "{}", screens.state()?);
    ensure!(screens.screen(0)?["rule"] == "host");
    // The window changes, and what the host asked for stays.
    let before = screens.screen(0)?["offered"].clone();
    window.ask(1111, 777)?;
    Deadline::after(LIMIT)
        .poll("the offer", || Ok((screens.screen(0)?["offered"] != before).then_some(())))?;
    if kind != Kind::X11 {
        display(&["@2"])?.text()?;
        ensure!(screens.screen(0)?["scale"] == 2.0, "{}", screens.state()?);
        display(&["@1"])?.text()?;
    }
    screens.agree(0, (1600, 1200), LIMIT)?;
    display(&["--follow"])?.text()?;
    screens.agree(0, (1111, 777), LIMIT)
}

/// A second screen comes, stands beside the first, and follows a window of its own.
pub(crate) fn second(screens: &Screens) -> Result<()> {
    let kind = screens.kind()?;
    let mut second = screens.window(1)?;
    for size in [(1000, 700), (1234, 777)] {
        second.ask(size.0, size.1)?;
        screens.agree(1, size, LIMIT)?;
        apart(screens)?;
    }
    let mut first = screens.window(0)?;
    first.ask(1501, 901)?;
    screens.agree(0, (1501, 901), LIMIT)?;
    apart(screens)?;
    for head in 0..2 {
        screens.picture(head, &format!("{kind:?}-two-{}", head + 1).to_lowercase())?;
    }
    // Below the first, as windows on the host may stand.
    let below = ["display", "vm", "--output", "Virtual-2", "--position", "0,901"];
    screens.host.run(&below)?.text()?;
    let at = screens.screen(1)?["position"].clone();
    ensure!(at == json!({ "x": 0, "y": 901 }), "it stands at {at}");
    // It goes again, as a window does that is closed.
    screens.offer(1, (0, 0), (0, 0))?;
    Deadline::after(LIMIT)
        .poll("the second screen to go", || Ok(screens.screen(1)?["size"].is_null().then_some(())))
}

/// No screen lies over another.
fn apart(screens: &Screens) -> Result<()> {
    let state = screens.state()?;
    let side = |head: usize, what: &str, name: &str| -> i64 {
        state["outputs"].as_array().and_then(|outputs| outputs[head][what][name].as_i64()).unwrap_or_default()
    };
    let beside = |one: usize, other: usize, place: &str, len: &str| {
        side(one, "position", place) + side(one, "size", len) <= side(other, "position", place)
    };
    let clear = [("x", "width"), ("y", "height")]
        .into_iter()
        .any(|(place, len)| beside(0, 1, place, len) || beside(1, 0, place, len));
    ensure!(state["outputs"].as_array().map_or(0, Vec::len) == 2 && clear, "{state}");
    Ok(())
}

/// A small generator, the same sizes every time (xorshift64, Marsaglia 2003).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }

    fn side(&mut self, from: u64, to: u64) -> u16 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u16::try_from(from + self.0 % (to - from)).unwrap_or(u16::MAX)
    }

    pub(crate) fn size(&mut self) -> (u16, u16) {
        (self.side(400, 1900), self.side(300, 1100))
    }
}
