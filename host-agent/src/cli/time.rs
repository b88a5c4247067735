//! `hospes time`

use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use hospes_protocol::time::{Deed, Keeper, Occasion, Report, Setting, Source};
use serde::Serialize;

use crate::cli::target::{Reach, duration};
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::printable;
use crate::time::{self, length, words};
use crate::ui;
use crate::vm::VmName;

/// Show how far a VM's clock is from this machine's, or set it
///
/// The guest asks this machine for the time, several times; the shortest exchange counts, and the truth is within half
/// of its round trip. With sync, the guest sets its clock where it is wrong, forwards or backwards, as far as [time] in
/// its /etc/hospes/tools.toml lets it.
///
/// The agent does this by itself: when it connects, when this machine has slept or its clock was set, and, for a VM that
/// was added with --qmp, when the VM goes on after a pause. Without --qmp a paused VM's clock is right when the guest
/// next asks: after 1 to 17 minutes where no time service runs in it, after a minute where chrony takes the host's time,
/// and else at the next of these occasions. Otherwise a clock is never set back.
///
/// With --json: {"vm", "offset_ns", "error_ns", "round_trip_ns", "source", "keeper", "unit", "fed", "setting", "deed",
/// "moved_ns", "left_ns"}. "offset_ns" is how far this machine was ahead; "keeper" is none, chrony, timesyncd or other;
/// "deed" is nothing, stepped, slewed, fed, held or failed; "left_ns" is how far it is ahead now.
///
/// Exit codes: 0, 124 when --timeout is over first, 125 where the guest refuses or cannot be asked.
#[derive(Debug, Parser)]
pub struct Time {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// Set the clock, if it is wrong
    #[arg(value_name = "sync")]
    act: Option<Act>,
    /// How long it may take
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Act {
    /// Set the clock, if it is wrong
    Sync,
}

#[derive(Serialize)]
struct Told<'t> {
    vm: &'t VmName,
    offset_ns: i64,
    error_ns: u64,
    round_trip_ns: u64,
    source: String,
    keeper: String,
    unit: &'t str,
    fed: bool,
    setting: &'static str,
    deed: String,
    moved_ns: i64,
    left_ns: i64,
}

impl Verb for Time {
    const NAME: &'static str = "time";
    const VM: VmPlace = VmPlace::First;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let sync = self.act == Some(Act::Sync);
        let occasion = if sync { Occasion::ASKED } else { Occasion::LOOK };
        let report = time::look(&client, occasion, Instant::now() + self.timeout, time::now)?;
        if self.json {
            ui::json(&told(&self.vm, &report))?;
        } else {
            ui::line(text(&report))?;
        }
        match report.deed {
            Deed::FAILED => Err(CommandError::local("The guest could not set its clock")
                .hint(format_args!("hospes logs {} tells why", self.vm))),
            _ if sync && report.setting == Setting::OFF => {
                Err(CommandError::local("The guest's owner does not let its clock be set")
                    .hint("In the guest: [time] mode in /etc/hospes/tools.toml"))
            }
            _ => Ok(0),
        }
    }
}

fn told<'t>(vm: &'t VmName, report: &'t Report) -> Told<'t> {
    let word = |name: Option<&str>| name.unwrap_or("unknown").to_ascii_lowercase();
    Told {
        vm,
        offset_ns: report.offset_ns,
        error_ns: report.error_ns,
        round_trip_ns: report.round_trip_ns,
        source: word(report.source.name()),
        keeper: word(report.keeper.name()),
        unit: &report.by,
        fed: report.fed,
        setting: report.setting.word(),
        deed: word(report.deed.name()),
        moved_ns: report.moved_ns,
        left_ns: report.left_ns,
    }
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    let mut say = |name: &str, value: String| lines.push(format!("{name:<12} {value}"));
    let side = if report.offset_ns < 0 { "behind" } else { "ahead" };
    say("Offset", format!("this machine is {} {side}", length(report.offset_ns.unsigned_abs())));
    say("Error", format!("{} at most", length(report.error_ns)));
    let source = match report.source {
        Source::VSOCK => format!("exchanges over vsock, the best in {}", length(report.round_trip_ns)),
        Source::PTP => "the hypervisor's clock device".to_owned(),
        _ => "unknown".to_owned(),
    };
    say("Source", source);
    let unit = printable::line(&report.by).into_owned();
    let keeper = match report.keeper {
        Keeper::NONE => "nobody else: the guest tools".to_owned(),
        Keeper::CHRONY if report.fed => format!("chrony ({unit}), which takes this machine's time too"),
        Keeper::CHRONY => format!("chrony ({unit})"),
        Keeper::TIMESYNCD => "systemd-timesyncd".to_owned(),
        _ if unit.is_empty() => "unknown".to_owned(),
        _ => unit,
    };
    say("In charge", keeper);
    say("Setting", report.setting.word().to_owned());
    let left = || length(report.left_ns.unsigned_abs());
    match report.deed {
        Deed::STEPPED => say("Done", format!("set by {}, {} left", words(report.moved_ns), left())),
        Deed::SLEWED => say("Done", format!("being brought by {}", words(report.moved_ns))),
        Deed::FED => say("Done", "chrony was told".to_owned()),
        Deed::HELD => {
            say("Done", "nothing: it is ahead, and is set back by hospes time VM sync alone".to_owned());
        }
        _ => (),
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_guest_is_shown_without_effect() {
        let report = Report {
            occasion: Occasion(99),
            offset_ns: i64::MIN,
            error_ns: u64::MAX,
            round_trip_ns: u64::MAX,
            source: Source(9),
            keeper: Keeper(9),
            by: "\u{1b}[31mchrony".into(),
            fed: false,
            setting: Setting(9),
            deed: Deed::STEPPED,
            moved_ns: i64::MIN,
            left_ns: i64::MAX,
        };
        let text = text(&report);
        assert!(text.chars().all(|c| c == '\n' || printable::is_plain(c)), "{text}");
        assert!(ui::to_json(&told(&"dev".parse().unwrap(), &report)).contains("\"unknown\""));
    }
}
