//! `hospes events`

use clap::Parser;

use crate::agent::ask::{Answer, Ask, Event, Question, What};
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::printable;
use crate::time;
use crate::ui;
use crate::vm::VmName;

/// Show what happens to the VMs, as it happens
///
/// With --json, an object on a line for each event: {"at_ms", "vm", "event", …}. "event" is added {"endpoint"},
/// removed, connected {"fingerprint", "first_use"}, disconnected and refused {"error": {"message", "hint"}}, info
/// {"info", as hospes info shows it}, stopping {"why"}, rebooting, stopped {"why"}, restored,
/// resumed, paused, unpaused, clock_set {"by_ns",
/// "why"}, variable {"name"}, announced {"guest": {"endpoint",
/// "hostname", "fingerprint", "at"}} or missed {"count"}. "vm" is null where the event is about none; programs pass
/// over events they do not know.
///
/// The agent tells the events, so it must run.
#[derive(Debug, Parser)]
pub struct Events {
    /// These VMs alone
    #[arg(value_name = "VM", add = crate::cli::complete::vms())]
    vms: Vec<VmName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a command that needs the agent tells without it.
#[must_use]
pub fn no_agent() -> CommandError {
    CommandError::local("The agent does not run")
        .hint("systemctl --user start hospes-agent.socket starts it, or hospes agent in the foreground")
}

impl Verb for Events {
    const NAME: &'static str = "events";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        let mut ask = Ask::send(&Question::Events).map_err(|_| no_agent())?;
        let lost = |error| CommandError::io("The agent's events are lost", &error);
        let Some(Answer::Done) = ask.next(None).map_err(lost)? else {
            return Err(
                CommandError::local("The agent tells no events").hint("Upgrade and restart the agent")
            );
        };
        while let Some(event) = ask.next::<Event>(None).map_err(lost)? {
            let wanted = self.vms.is_empty() || event.vm.as_ref().is_some_and(|vm| self.vms.contains(vm));
            if !wanted {
                continue;
            }
            let shown = if self.json { ui::to_json(&event) } else { text(&event) };
            if !ui::line_read(shown)? {
                return Ok(0);
            }
        }
        Err(CommandError::local("The agent ended"))
    }
}

fn text(event: &Event) -> String {
    let vm = event.vm.as_ref().map_or("-", VmName::as_str);
    let clean = |text: &str| printable::line(text).into_owned();
    let what = match &event.what {
        What::Added { endpoint } => format!("added at {endpoint}"),
        What::Removed => "removed".to_owned(),
        What::Connected { fingerprint, first_use: true } => format!("connected, pinned {fingerprint}"),
        What::Connected { .. } => "connected".to_owned(),
        What::Disconnected { error } => format!("disconnected: {}", clean(&error.message)),
        What::Refused { error } => format!("refused: {}", clean(&error.message)),
        What::Info { info } => {
            let addresses: Vec<String> = super::ip::addresses(info).collect();
            format!("info: {} {}", clean(&info.hostname), addresses.join(" "))
        }
        What::Missed { count } => format!("{count} events were missed"),
        What::Resumed => "resumed".to_owned(),
        What::Rebooting => "rebooting".to_owned(),
        What::Stopped { why } => format!("stopped: {}", clean(why)),
        What::Restored => "goes on from an earlier moment".to_owned(),
        What::Paused => "paused".to_owned(),
        What::Unpaused => "unpaused".to_owned(),
        What::ClockSet { by_ns, why } => format!("clock set by {}: {}", time::words(*by_ns), clean(why)),
        What::Variable { name } => format!("variable {} changed", clean(name)),
        What::Stopping { why } => format!("stopping: {}", clean(why)),
        What::Announced { guest } => {
            format!("{} announced itself at {}", clean(&guest.hostname), guest.endpoint)
        }
    };
    format!("{vm} {what}")
}
