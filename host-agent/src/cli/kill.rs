//! `hospes kill`

use std::str::FromStr;

use clap::Parser;
use hospes_protocol::exec::ExecId;
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::process::{Kill as Request, Killed, Target};

use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::signal;
use crate::ui;
use crate::vm::VmName;

/// Signal processes in a VM, or commands with all they started
///
/// A plain number is a process id; id:NUMBER is a command, by the number that hospes exec --detach and hospes ps show.
#[derive(Debug, Parser)]
pub struct Kill {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// Process ids, or id:NUMBER of commands
    #[arg(required = true, value_name = "PID|id:NUMBER")]
    targets: Vec<Which>,
    /// The signal, by name or Linux number
    #[arg(short, long, default_value = "TERM", value_parser = signal::parse)]
    signal: u8,
    /// The guest user who does it
    #[arg(short, long)]
    user: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Which(Target);

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let target = match text.strip_prefix("id:") {
            Some(id) => id.parse().ok().map(|id| Target::Exec(ExecId(id))),
            None => text.parse().ok().filter(|pid| *pid > 0).map(Target::Pid),
        };
        target.map(Which).ok_or_else(|| "it is a process id, or id: and a command's number".to_owned())
    }
}

impl Verb for Kill {
    const NAME: &'static str = "kill";
    const VM: VmPlace = VmPlace::First;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let user = client.user(self.user);
        let mut failed = None;
        for Which(target) in self.targets {
            let mut operation = Vec::new();
            let request = Request { user: user.clone(), target, signal: self.signal };
            frame::put(FrameId::KILL, &request, &mut operation);
            let result = client.open(&operation).map_err(CommandError::from).and_then(|mut connection| {
                let killed: Killed = connection.expect(FrameId::KILLED)?.decode()?;
                Ok(killed)
            });
            // One that is gone must not save the others.
            if let Err(error) = result
                && let Some(earlier) = failed.replace(error)
            {
                ui::tell(&earlier, false);
            }
        }
        failed.map_or(Ok(0), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_never_everything() {
        assert_eq!("12".parse(), Ok(Which(Target::Pid(12))));
        assert_eq!("id:7".parse(), Ok(Which(Target::Exec(ExecId(7)))));
        for bad in ["0", "-1", "id:", "id:-1", "x", "4294967296"] {
            assert!(bad.parse::<Which>().is_err(), "{bad}");
        }
    }
}
