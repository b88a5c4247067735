//! `hospes clipboard`

use std::io::{self, IsTerminal};

use clap::{Parser, Subcommand, ValueEnum};
use hospes_clipboard::types;
use hospes_protocol::clipboard::{Offer, Selection, Set, check_type};
use hospes_protocol::error::ErrorKind;
use serde::Serialize;

use crate::agent::ask::{Ask, Question};
use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::client::{Client, ClientError};
use crate::clipboard::{self, Listening, TransferError};
use crate::command_error::CommandError;
use crate::printable;
use crate::registry::Registry;
use crate::ui;
use crate::vm::VmName;

/// Share the clipboard with a guest, or read and set the guest's
///
/// With --share on, the agent joins this machine's clipboard and the guest's: what is copied on one side can be pasted on
/// the other, text, pictures and all else, and only what is pasted crosses. It is off for a VM until somebody says so; each
/// guest with it on can read what is copied here. Nothing is shared with a guest's greeter or locked screen.
///
/// Without --share and without a command it says whether the clipboard is shared. copy, paste and watch are for scripts:
/// they are about the guest's clipboard alone, and need neither --share nor the agent.
///
/// Exit codes: 1 where paste finds nothing to paste, 125 where Hospes or the guest failed.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = false)]
pub struct Clipboard {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// Share this machine's clipboard with the guest, or stop that
    #[arg(long, value_name = "on|off")]
    share: Option<Switch>,
    /// Print JSON: {"vm", "shared"}
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    act: Option<Act>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Copy stdin into the guest's clipboard
    ///
    /// It can be pasted there until something else is copied, or its user logs out. At most 64 MiB.
    #[command(alias = "set")]
    Copy {
        /// What it is, such as image/png [default: text in UTF-8]
        #[arg(short, long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// The primary selection, which the middle button pastes
        #[arg(short, long)]
        primary: bool,
    },
    /// Print what can be pasted in the guest
    #[command(alias = "get")]
    Paste {
        /// As what, such as text/html [default: text, or else the first type there is]
        #[arg(short, long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// The primary selection, which the middle button pastes
        #[arg(short, long)]
        primary: bool,
        /// List the types it can be had as, one to a line
        #[arg(short, long, conflicts_with = "kind")]
        list: bool,
    },
    /// Print a line each time something is copied in the guest
    ///
    /// The line has the selection and the types that can be pasted. With --json: {"selection", "types"}, an empty list
    /// where there is nothing any more. The first lines say what is there now.
    Watch {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Serialize)]
struct Told<'v> {
    vm: &'v VmName,
    shared: bool,
}

#[derive(Serialize)]
struct ToldOffer<'o> {
    selection: &'static str,
    types: &'o [String],
}

impl Verb for Clipboard {
    const NAME: &'static str = "clipboard";
    const VM: VmPlace = VmPlace::First;

    fn run(self) -> Result<u8, CommandError> {
        let Some(act) = self.act else { return share(&self.vm, self.share, self.json) };
        if self.share.is_some() {
            return Err(CommandError::usage("--share stands alone: hospes clipboard VM --share on|off"));
        }
        let client = self.reach.client(&self.vm)?;
        match act {
            Act::Copy { kind, primary } => copy(&client, kind, selection(primary)),
            Act::Paste { kind, primary, list } => paste(&client, kind.as_deref(), selection(primary), list),
            Act::Watch { json } => watch(&client, json || self.json),
        }
    }
}

const fn selection(primary: bool) -> Selection {
    if primary { Selection::PRIMARY } else { Selection::CLIPBOARD }
}

fn share(name: &VmName, switch: Option<Switch>, json: bool) -> Result<u8, CommandError> {
    let registry = Registry::open()?;
    let mut vm = registry.load(name)?;
    if let Some(switch) = switch {
        vm.spec.clipboard = switch == Switch::On;
        registry.save(&vm, true)?;
        Ask::tell(&Question::Reload);
        if vm.spec.clipboard && Ask::once(&Question::List, std::time::Duration::from_millis(500)).is_err() {
            ui::warn("The agent does the sharing, and it does not run: hospes agent starts it");
        }
    }
    let shared = vm.spec.clipboard;
    if json {
        ui::json(&Told { vm: name, shared })?;
    } else if switch.is_none() {
        let words = if shared { "shared" } else { "not shared" };
        ui::line(format_args!("The clipboard is {words} with {name}"))?;
    }
    Ok(0)
}

fn copy(client: &Client, kind: Option<String>, selection: Selection) -> Result<u8, CommandError> {
    let kind = kind.unwrap_or_else(|| "text/plain;charset=utf-8".to_owned());
    check_type(&kind).map_err(CommandError::usage)?;
    let set = Set { selection, types: vec![kind] };
    clipboard::copy(client, &set, &mut io::stdin().lock()).map_err(|error| failed("stdin", error))?;
    Ok(0)
}

fn paste(client: &Client, kind: Option<&str>, selection: Selection, list: bool) -> Result<u8, CommandError> {
    let mut listening = Listening::open(client)?;
    if !listening.ready.selections.contains(&selection) {
        let error = CommandError::new("unsupported", "The guest's desktop has no primary selection");
        return Err(error.hint(format_args!(
            "Its clipboard is reached by {}",
            printable::line(&listening.ready.back_end)
        )));
    }
    let offer = loop {
        let offer = listening.offer()?;
        if offer.selection == selection {
            break offer;
        }
    };
    if offer.types.is_empty() {
        return Err(nothing("Nothing can be pasted in the guest"));
    }
    if list {
        for name in &offer.types {
            ui::line(printable::line(name))?;
        }
        return Ok(0);
    }
    let found = match kind {
        Some(kind) => types::original(kind, &offer.types),
        None => types::best(&offer.types),
    };
    let found = found.ok_or_else(|| {
        nothing(format_args!("It cannot be pasted as {}", printable::line(kind.unwrap_or_default())))
            .hint("hospes clipboard VM paste --list shows as what it can")
    })?;
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        // Somebody else's bytes: what a terminal would obey is made visible.
        let mut bytes = Vec::new();
        clipboard::paste(client, selection, offer.serial, found, &mut bytes)
            .map_err(|error| failed("stdout", error))?;
        drop(stdout);
        ui::line(printable::bytes(&bytes))?;
        return Ok(0);
    }
    match clipboard::paste(client, selection, offer.serial, found, &mut stdout) {
        Err(TransferError::Local { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(TransferError::Client(ClientError::Refused(error))) if error.kind == ErrorKind::NOT_FOUND => {
            Err(CommandError { code: 1, ..CommandError::refused(&error) })
        }
        result => result.map(|_| 0).map_err(|error| failed("stdout", error)),
    }
}

fn watch(client: &Client, json: bool) -> Result<u8, CommandError> {
    let mut listening = Listening::open(client)?;
    loop {
        let Offer { selection, types, .. } = listening.offer()?;
        let name = match selection {
            Selection::CLIPBOARD => "clipboard",
            Selection::PRIMARY => "primary",
            _ => continue,
        };
        let line = if json {
            ui::to_json(&ToldOffer { selection: name, types: &types })
        } else {
            let shown: Vec<_> = types.iter().map(|kind| printable::line(kind)).collect();
            format!("{name}: {}", if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") })
        };
        if !ui::line_read(line)? {
            return Ok(0);
        }
    }
}

fn nothing(message: impl std::fmt::Display) -> CommandError {
    CommandError { code: 1, ..CommandError::new("not_found", message) }
}

fn failed(stream: &str, error: TransferError) -> CommandError {
    match error {
        TransferError::Client(error) => error.into(),
        TransferError::Local { act, source } => {
            CommandError::io(format_args!("Cannot {act} {stream}"), &source)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_command_are_these() {
        let parse = |line: &str| Clipboard::try_parse_from(line.split(' '));
        assert_eq!(parse("clipboard dev --share on").unwrap().share, Some(Switch::On));
        assert!(parse("clipboard dev").unwrap().act.is_none());
        let copy = parse("clipboard dev copy --type image/png").unwrap().act;
        assert!(matches!(copy, Some(Act::Copy { kind: Some(kind), primary: false }) if kind == "image/png"));
        assert!(matches!(parse("clipboard dev get -p").unwrap().act, Some(Act::Paste { primary: true, .. })));
        assert!(matches!(parse("clipboard dev watch --json").unwrap().act, Some(Act::Watch { json: true })));
        assert!(parse("clipboard dev --share maybe").is_err());
        assert!(parse("clipboard dev paste --list --type a/b").is_err());
    }
}
