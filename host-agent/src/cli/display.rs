//! `hospes display`

use std::str::FromStr;

use clap::Parser;
use hospes_protocol::display::{Ask, Display as Request, Output, Position, Rule, Scale, Size, State, Want};
use hospes_protocol::frame::{self, FrameId};
use serde::Serialize;

use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::client::{Client, ClientError};
use crate::command_error::CommandError;
use crate::printable;
use crate::ui::{self, Table};
use crate::vm::VmName;

/// Pixels by which a desktop that rounds sizes may miss, and the command still has done what it could.
const NEAR: u32 = 8;

/// Set a guest's screens, or show them
///
/// The screens of a guest's desktop follow the VM's display by themselves, and keep the scale that their user chose. This
/// is for what a VM's display does not say: a scale, a place, or a size of one's own, which then stays until --follow, or
/// until the guest's user chooses another.
///
/// Without a size, a place or --follow it shows how the screens are, how the guest's desktop is reached, and why that
/// way. RULE is what a screen's size follows: "display" for the VM's display, "user" for one that the guest's user chose,
/// "host" for one that was set here.
///
/// With --json: {"vm", "user", "back_end", "why", "outputs": [{"name", "size": {"width", "height"} or null, "refresh" in
/// thousandths of a Hz, "scale", "position": {"x", "y"}, "offered": as size, "rule", "problem": text or null}]}.
///
/// Exit codes: 1 where the guest's desktop cannot do it, 125 where Hospes or the guest failed.
#[derive(Debug, Parser)]
pub struct Display {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// What the screen is to be: 2560x1600, 2560x1600@2 with a scale, or @2 for the scale alone
    #[arg(value_name = "SIZE[@SCALE]", conflicts_with = "follow")]
    mode: Option<Mode>,
    /// The screen, where the guest has several
    #[arg(short, long, value_name = "NAME")]
    output: Option<String>,
    /// Where its upper left corner is to be, in the desktop's units, such as 1920,0
    #[arg(short, long, value_name = "X,Y", allow_hyphen_values = true, conflicts_with = "follow")]
    position: Option<Position>,
    /// Let it (all, without --output) follow the VM's display again
    #[arg(short, long)]
    follow: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// A size, a scale or both, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    size: Option<Size>,
    scale: Option<Scale>,
}

impl FromStr for Mode {
    type Err = hospes_protocol::display::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (size, scale) = match text.split_once('@') {
            Some((size, scale)) => (size, Some(scale.parse()?)),
            None => (text, None),
        };
        let size = if size.is_empty() && scale.is_some() { None } else { Some(size.parse()?) };
        Ok(Self { size, scale })
    }
}

#[derive(Serialize)]
struct Told<'s> {
    vm: &'s VmName,
    user: &'s str,
    back_end: &'s str,
    why: &'s str,
    outputs: Vec<ToldOutput<'s>>,
}

#[derive(Serialize)]
struct ToldOutput<'s> {
    name: &'s str,
    size: Option<Size>,
    refresh: u32,
    scale: f64,
    position: Position,
    offered: Option<Size>,
    rule: &'static str,
    problem: Option<&'s str>,
}

impl<'s> From<&'s Output> for ToldOutput<'s> {
    fn from(output: &'s Output) -> Self {
        Self {
            name: &output.name,
            size: output.size,
            refresh: output.refresh,
            scale: f64::from(output.scale.0) / 1000.0,
            position: output.position,
            offered: output.offered,
            rule: rule(output.rule),
            problem: output.problem.as_deref(),
        }
    }
}

const fn rule(rule: Rule) -> &'static str {
    match rule {
        Rule::FOLLOWS => "display",
        Rule::USER => "user",
        Rule::HOST => "host",
        _ => "unknown",
    }
}

impl Verb for Display {
    const NAME: &'static str = "display";
    const VM: VmPlace = VmPlace::First;

    fn run(self) -> Result<u8, CommandError> {
        let output = self.output.clone().unwrap_or_default();
        let mode = self.mode.unwrap_or(Mode { size: None, scale: None });
        let want = Want { output, size: mode.size, scale: mode.scale, position: self.position };
        let sets = self.mode.is_some() || self.position.is_some();
        let ask = match (self.follow, sets) {
            (true, _) => Ask::Follow(want.output.clone()),
            (false, true) => Ask::Set(vec![want.clone()]),
            (false, false) => Ask::State,
        };
        let request = Request { ask };
        request.check().map_err(CommandError::usage)?;
        let state = ask_guest(&self.reach.client(&self.vm)?, &request)?;
        if self.json {
            let outputs = shown(&state, self.output.as_deref()).map(ToldOutput::from).collect();
            let State { user, back_end, why, .. } = &state;
            ui::json(&Told { vm: &self.vm, user, back_end, why, outputs })?;
        } else if !sets && !self.follow {
            show(&state, self.output.as_deref())?;
        }
        if sets { judge(&state, &want, self.json) } else { Ok(0) }
    }
}

fn ask_guest(client: &Client, request: &Request) -> Result<State, CommandError> {
    let mut operation = Vec::new();
    frame::put(FrameId::DISPLAY, request, &mut operation);
    let mut connection = client.open(&operation)?;
    let state: State = connection.expect(FrameId::DISPLAY_STATE)?.decode().map_err(ClientError::from)?;
    frame::put_raw(FrameId::BYE, 0, &[], connection.queue());
    // It has said all there was.
    let _ = connection.flush();
    Ok(state)
}

/// The screen that was named, or all.
fn shown<'s>(state: &'s State, name: Option<&str>) -> impl Iterator<Item = &'s Output> {
    state.outputs.iter().filter(move |output| name.is_none_or(|name| output.name == name))
}

fn size(size: Option<Size>, none: &str) -> String {
    size.map_or(none.to_owned(), |size| size.to_string())
}

fn show(state: &State, name: Option<&str>) -> Result<(), CommandError> {
    let mut table = Table::new(&["OUTPUT", "SIZE", "HZ", "SCALE", "POSITION", "RULE", "OFFERED"]);
    for output in shown(state, name) {
        table.row([
            printable::line(&output.name).into_owned(),
            size(output.size, "off"),
            format!("{}.{:03}", output.refresh / 1000, output.refresh % 1000),
            output.scale.to_string(),
            output.position.to_string(),
            rule(output.rule).to_owned(),
            size(output.offered, "-"),
        ]);
    }
    table.print()?;
    for output in shown(state, name) {
        if let Some(problem) = &output.problem {
            ui::warn(format_args!("{}: {}", printable::line(&output.name), printable::line(problem)));
        }
    }
    let why = printable::line(&state.why);
    if state.back_end.is_empty() {
        ui::warn(format_args!("The guest's screens cannot be reached: {why}"));
    } else {
        let (user, back_end) = (printable::line(&state.user), printable::line(&state.back_end));
        ui::line(format_args!("{user}'s desktop is reached by {back_end}. {why}"))?;
    }
    Ok(())
}

/// Whether the guest's screen has become what was asked.
fn judge(state: &State, want: &Want, json: bool) -> Result<u8, CommandError> {
    let name = Some(want.output.as_str()).filter(|name| !name.is_empty());
    let Some(output) = shown(state, name).next() else { return Ok(0) };
    let near = match (want.size, output.size) {
        (Some(wanted), Some(got)) => {
            wanted.width.abs_diff(got.width) <= NEAR && wanted.height.abs_diff(got.height) <= NEAR
        }
        (wanted, _) => wanted.is_none(),
    };
    let scaled = want.scale.is_none_or(|scale| scale.0.abs_diff(output.scale.0) <= 10);
    let placed = want.position.is_none_or(|position| position == output.position);
    let name = printable::line(&output.name);
    let so = format!("It is {} at scale {} now", size(output.size, "off"), output.scale);
    let problem = printable::line(output.problem.as_deref().unwrap_or(&so));
    if near && scaled && placed {
        if output.problem.is_some() && !json {
            ui::warn(format_args!("{name}: {problem}"));
        }
        return Ok(0);
    }
    let error = CommandError::new("not_applied", format_args!("{name}: {problem}"));
    Err(CommandError { code: 1, ..error.hint("hospes display VM shows what the guest has") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_command_are_these() {
        let parse = |line: &str| Display::try_parse_from(line.split(' '));
        let mode = |line: &str| parse(line).unwrap().mode.unwrap();
        let size = Some(Size { width: 2560, height: 1600 });
        assert_eq!(mode("display dev 2560x1600@1.5"), Mode { size, scale: Some(Scale(1500)) });
        assert_eq!(mode("display dev 2560x1600"), Mode { size, scale: None });
        assert_eq!(mode("display dev @2"), Mode { size: None, scale: Some(Scale(2000)) });
        let placed = parse("display dev --output Virtual-2 --position -1920,0").unwrap();
        assert_eq!(placed.position, Some(Position { x: -1920, y: 0 }));
        assert!(parse("display dev").unwrap().mode.is_none());
        for wrong in
            ["display dev 1x1", "display dev 8192x4320", "display dev @", "display dev 800x600 --follow"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
